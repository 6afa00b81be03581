"""Read the python batches of CIFAR without running anything that a pickle could name.

The official files are pickles of a dict of numbers, text, lists and one uint8 array. A pickle builds every other object
by calling something that it names; this reader resolves the three names that the official files hold (NumPy's, for the
array) to inert stand-ins of its own, and refuses every other name. So no function of this or any other library is ever
called on behalf of the file. https://docs.python.org/3/library/pickle.html#restricting-globals
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np


class _Dtype:
    """What numpy.dtype('u1', ...) becomes: its arguments, kept."""

    def __init__(self, code: object = None, *rest: object) -> None:
        self.code = code

    def __setstate__(self, state: object) -> None:
        pass  # byte order and flags: one byte has none


class _Array:
    """What the array becomes: shape, dtype and bytes, as NumPy would have been given them."""

    shape: object = None
    dtype: object = None
    data: object = None

    def __setstate__(self, state: object) -> None:
        if isinstance(state, tuple) and len(state) == 5:  # version, shape, dtype, Fortran order, bytes
            _, self.shape, self.dtype, fortran, self.data = state
            if fortran:
                self.data = None  # no official file has it


def _reconstruct(*_: object) -> _Array:
    return _Array()


def _encode(text: object, *_: object) -> object:
    """Bytes in a pickle that Python 3 wrote for Python 2: latin-1 text, and "encode it"."""
    return text.encode("latin-1") if isinstance(text, str) else text


_NAMES = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,  # NumPy 2
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _encode,
}


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _NAMES[module, name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"it names {module}.{name}, which no official file does, and is not run"
            ) from None


def read_batch(path: Path) -> dict[str, Any]:
    """The dict of one file: text keys; numbers, text and lists as they are; the array uint8.

    Raises FileNotFoundError, or ValueError for a file that is torn or holds anything else.
    """
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist") from None
    try:
        content = _Reader(io.BytesIO(raw), encoding="latin-1").load()
    except Exception as error:  # a torn pickle raises nearly anything
        raise ValueError(f"{path} is no batch of CIFAR or is damaged ({error}): download it again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no dict: it is no batch of CIFAR; download it again")
    return {
        (key.decode("latin-1") if isinstance(key, bytes) else str(key)): (
            _uint8(value, path) if isinstance(value, _Array) else value
        )
        for key, value in content.items()
    }


def _uint8(array: _Array, path: Path) -> np.ndarray:
    data = array.data.encode("latin-1") if isinstance(array.data, str) else array.data
    shape = array.shape
    if not (
        isinstance(array.dtype, _Dtype)
        and array.dtype.code in ("u1", "|u1")
        and isinstance(data, bytes)
        and isinstance(shape, tuple)
        and all(isinstance(side, int) and side >= 0 for side in shape)
        and int(np.prod(shape, dtype=np.int64)) == len(data)
    ):
        raise ValueError(f"{path}: its array is not plain uint8, or is cut short: download it again")
    return np.frombuffer(data, np.uint8).reshape(shape)
