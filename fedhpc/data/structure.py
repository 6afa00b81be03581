"""Is this HDF5 file what content.py says of a packed file? Checked when it is opened, from names, shapes, types and
attributes alone, so that a damaged or foreign file ends in one clear error and never in a huge allocation."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import h5py
import numpy as np

# Deflate stores 1032 bytes in one at most; what never was written takes no space, but a packed file has no such rows.
MOST_RATIO = 1100
CHUNK_BYTES = 8  # of its entry in the file's index at least; HDF5 takes kilobytes of memory for each that is read
SLACK_BYTES = 1 << 20  # small columns may be a single chunk
MOST_PIXELS = 1 << 28  # of one encoded picture


class Expected(NamedTuple):
    """Of a column."""

    kinds: str  # of numpy dtypes; T: text
    dims: int
    rows: str  # which columns it has as many rows as; "" for as many as it likes, "+" for one more than the set


COLUMNS: Mapping[str, Expected] = {
    "image": Expected("u", 4, "set"),
    "image_bytes/data": Expected("u", 1, ""),
    "image_bytes/offsets": Expected("i", 1, "+"),
    "text": Expected("T", 1, "set"),
    "tokens": Expected("i", 2, "set"),
    "tokenizer": Expected("T", 0, ""),
    "captions/text": Expected("T", 1, "captions"),
    "captions/tokens": Expected("i", 2, "captions"),
    "captions/offsets": Expected("i", 1, "+"),
    "mask": Expected("u", 3, ""),
    "mask_row": Expected("i", 1, "set"),
    "site": Expected("i", 1, "set"),
    "patient": Expected("T", 1, "set"),
    "row_id": Expected("T", 1, "set"),
    "split": Expected("i", 1, "set"),
}
FAMILIES: Mapping[str, Expected] = {
    "tabular": Expected("f", 2, "set"),
    "label": Expected("i", 1, "set"),
    "present": Expected("b", 1, "set"),
}
TOGETHER = (("image_bytes/data", "image_bytes/offsets"), ("captions/text", "captions/tokens", "captions/offsets"))
NEEDED = ("row_id", "patient", "site", "split")
GROUPS = frozenset({*FAMILIES, "present/tabular", *(path.split("/")[0] for path in COLUMNS if "/" in path)})


def problems(file: h5py.File) -> Iterator[str]:
    """What is wrong, one line each, in the order of a reader's needs: what comes later relies on what came before.

    Raises what h5py does where the file cannot be read.
    """
    num_rows = file.attrs.get("num_rows")
    if not _is_count(num_rows):
        yield "num_rows is no number of rows"
        return
    found: dict[str, h5py.Dataset] = {}
    for path, item in _walk(file, ""):
        if isinstance(item, str):
            yield item
            return
        found[path] = item
    missing = [key for key in NEEDED if key not in found]
    if missing:
        yield f"it lacks the columns {', '.join(missing)}"
        return
    for paths in TOGETHER:
        if any(path in found for path in paths) and not all(path in found for path in paths):
            yield f"of the columns {', '.join(paths)} some are missing"
            return
    captions = found["captions/text"].shape if "captions/text" in found else None
    lengths = {"set": int(num_rows), "+": int(num_rows) + 1, "captions": captions[0] if captions else 0}
    size = file.id.get_filesize()
    for path, dataset in found.items():
        if (line := _column(path, dataset, lengths, size)) is not None:
            yield line
            return
    for path, dataset in found.items():
        if (line := _attributes(path, dataset)) is not None:
            yield line
            return


def _walk(group: h5py.Group, prefix: str) -> Iterator[tuple[str, h5py.Dataset | str]]:
    """(path, dataset) of all, or (path, what is wrong)."""
    for name in group:
        path = f"{prefix}{name}"
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            yield path, f"{path} is a link to elsewhere"
            return
        item = group[name]
        if isinstance(item, h5py.Group):
            if path not in GROUPS:
                yield path, f"{path} is a group, not a column"
                return
            yield from _walk(item, f"{path}/")
        elif isinstance(item, h5py.Dataset):
            yield path, item
        else:
            yield path, f"{path} is neither group nor column"
            return


def _column(path: str, dataset: h5py.Dataset, lengths: Mapping[str, int], file_bytes: int) -> str | None:
    """What is wrong with type and shape."""
    shape = dataset.shape
    if dataset.external or dataset.is_virtual or shape is None:
        return f"{path} has no values in this file"
    expected = COLUMNS.get(path) or FAMILIES.get(path.split("/")[0] if "/" in path else "")
    if expected is None:
        return f"{path} is no column of a packed file"
    text = h5py.check_string_dtype(dataset.dtype) is not None
    kind = "T" if text else dataset.dtype.kind
    if kind not in expected.kinds or len(shape) != expected.dims:
        return f"{path} is {dataset.dtype} {list(shape)}"
    if expected.rows and shape[0] != lengths[expected.rows]:
        return f"{path} has {shape[0]} rows, not {lengths[expected.rows]}"
    if path == "image" and shape[3] not in (1, 3):
        return f"image has {shape[3]} channels"
    if math.prod(shape) * dataset.dtype.itemsize > MOST_RATIO * file_bytes + SLACK_BYTES:
        return f"{path} of {list(shape)} is larger than the file can hold"
    if dataset.chunks and CHUNK_BYTES * math.prod(map(_parts, shape, dataset.chunks)) > file_bytes:
        return f"{path} of {list(shape)} in chunks of {list(dataset.chunks)} has more of them than the file can hold"
    return None


def _parts(length: int, chunk: int) -> int:
    return -(-length // chunk)


def _attributes(path: str, dataset: h5py.Dataset) -> str | None:
    """What is wrong with names and numbers beside a column."""
    attrs = dataset.attrs
    if path == "tokens" and not all(_is_count(attrs.get(key)) for key in ("vocab_size", "pad_token")):
        return "tokens lacks vocab_size or pad_token"
    if path == "image_bytes/data":
        sizes = [dataset.parent.attrs.get(key) for key in ("height", "width", "channels")]
        if not all(_is_count(size) and int(size) > 0 for size in sizes) or int(sizes[2]) not in (1, 3):
            return "image_bytes lacks height, width or channels"
        if int(sizes[0]) * int(sizes[1]) > MOST_PIXELS:
            return f"pictures of {int(sizes[0])} x {int(sizes[1])} pixels"
    for family, key in (("label", "classes"), ("tabular", "columns"), ("site", "names")):
        if path == family or path.startswith(f"{family}/"):
            names = _names(attrs.get(key))
            if names is None:
                return f"{path} lacks its {key}"
            if family == "tabular" and len(names) != dataset.shape[1]:
                return f"{path} has {dataset.shape[1]} columns and {len(names)} names"
    return None


def _is_count(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool) and 0 <= int(value) < 2**53


def _names(value: Any) -> list[str] | None:
    """A JSON list of text."""
    try:
        names = json.loads(value)
    except (TypeError, ValueError, RecursionError):
        return None
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else None
