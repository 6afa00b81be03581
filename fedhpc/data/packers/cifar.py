"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009), python version, as torchvision unpacks it: 32 px RGB.

Folder: cifar-10-batches-py/ (data_batch_1 to data_batch_5, test_batch, batches.meta) or cifar-100-python/ (train, test,
meta); or the folder above. The files are pickles; they are read by :mod:`fedhpc.data.packers.cifar_batches`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedhpc.data.packers.arrays import BLOCK, ArrayPlan, pack_arrays
from fedhpc.data.packers.cifar_batches import read_batch
from fedhpc.data.packers.official import Options, carve_val, thin
from fedhpc.data.packers.table import PackReport

_SIZE = 32  # px
_SOURCE = "(Krizhevsky, Learning multiple layers of features from tiny images, 2009)"
_LICENCE = "none stated; made from 80 Million Tiny Images, which its authors withdrew: research use"
_CURE = (
    "give the folder that torchvision or https://www.cs.toronto.edu/~kriz/cifar.html (python version) unpacks: "
    "cifar-10-batches-py with data_batch_1 to data_batch_5, test_batch and batches.meta, or cifar-100-python with "
    "train, test and meta"
)


class _Layout(NamedTuple):
    title: str
    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    meta: str
    labels: dict[str, tuple[str, str]]  # label -> key of the codes, key of the names in meta


_LAYOUTS = {
    "cifar-10": _Layout(
        "CIFAR-10", "cifar-10-batches-py", tuple(f"data_batch_{k}" for k in range(1, 6)), ("test_batch",),
        "batches.meta", {"label": ("labels", "label_names")},
    ),
    "cifar-100": _Layout(
        "CIFAR-100", "cifar-100-python", ("train",), ("test",), "meta",
        {"label": ("fine_labels", "fine_label_names"), "coarse_label": ("coarse_labels", "coarse_label_names")},
    ),
}  # fmt: skip


def pack_cifar(folder: Path, out: Path, options: Options, *, val_fraction: float = 0.1) -> PackReport:
    """Pack the set that the folder holds; `val_fraction` of the training rows, drawn by a hash of the row, are val.

    Raises ValueError, FileNotFoundError.
    """
    name, root = _find(folder)
    layout = _LAYOUTS[name]
    meta = read_batch(root / layout.meta)
    batches = [
        _Batch(split, file, _checked(root / file, layout))
        for split, files in (("train", layout.train), ("test", layout.test))
        for file in files
    ]
    kept = thin([(batch, k) for batch in batches for k in range(len(batch.content["data"]))], options.limit)
    row_ids = [f"{batch.file}/{k:05d}" for batch, k in kept]
    splits = [
        carve_val(batch.split, row_id, val_fraction, options.random_seed)
        for (batch, _), row_id in zip(kept, row_ids, strict=True)
    ]
    labels = {}
    for label, (key, names_key) in layout.labels.items():
        codes = np.asarray([batch.content[key][k] for batch, k in kept], np.int32)
        labels[label] = (codes, _names(meta, names_key, root / layout.meta))
    plan = ArrayPlan(
        out=out, name=name, source=f"{layout.title} {_SOURCE}", licence=_LICENCE,
        note=f"Official train and test; {val_fraction:g} of the training rows, drawn by a hash of the row (seed "
        f"{options.random_seed}), are val.",
        command=options.command, row_ids=row_ids, splits=splits, labels=labels, image_size=options.image_size,
        overwrite=options.overwrite,
    )  # fmt: skip
    return pack_arrays(_blocks(kept), plan)


class _Batch(NamedTuple):
    split: str
    file: str
    content: dict[str, Any]


def _find(folder: Path) -> tuple[str, Path]:
    """Which of the two sets it is, and its folder."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder: {_CURE}")
    found = [
        (name, root)
        for name, layout in _LAYOUTS.items()
        for root in (folder, folder / layout.folder)
        if (root / layout.meta).is_file()
    ]
    if len(found) > 1:
        raise ValueError(f"{folder} holds {' and '.join(str(root) for _, root in found)}: give one of them")
    if not found:
        raise FileNotFoundError(f"{folder} holds neither batches.meta nor meta: {_CURE}")
    name, root = found[0]
    missing = [file for file in (*_LAYOUTS[name].train, *_LAYOUTS[name].test) if not (root / file).is_file()]
    if missing:
        raise FileNotFoundError(f"{root} lacks {', '.join(missing)}: {_CURE}")
    return name, root


def _checked(path: Path, layout: _Layout) -> dict[str, Any]:
    content = read_batch(path)
    data = content.get("data")
    if not (isinstance(data, np.ndarray) and data.ndim == 2 and data.shape[1] == 3 * _SIZE * _SIZE):
        raise ValueError(f"{path}: data must be uint8 [n, {3 * _SIZE * _SIZE}]: {_CURE}")
    for key, _ in layout.labels.values():
        codes = content.get(key)
        if not (isinstance(codes, list) and len(codes) == len(data) and all(isinstance(c, int) for c in codes)):
            raise ValueError(f"{path}: {key} must be {len(data)} numbers: {_CURE}")
    return content


def _names(meta: dict[str, Any], key: str, path: Path) -> list[str]:
    names = meta.get(key)
    if not (isinstance(names, list) and names and all(isinstance(name, str) for name in names)):
        raise ValueError(f"{path} has no list {key}: {_CURE}")
    return names


def _blocks(kept: list[tuple[_Batch, int]]) -> Iterator[np.ndarray]:
    for start in range(0, len(kept), BLOCK):
        rows = np.stack([batch.content["data"][k] for batch, k in kept[start : start + BLOCK]])
        yield rows.reshape(-1, 3, _SIZE, _SIZE).transpose(0, 2, 3, 1)  # the files are colour by colour
