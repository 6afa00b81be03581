"""What schema version 1 of a packed file means, and the checksum over its content.

Root attributes: fedhpc_schema (int), name, source, licence, command (that made it), created (UTC, ISO 8601), checksum,
generated (bool: not real data), num_rows, note. Datasets, N rows each unless said otherwise:

================================  ===============================================================================
``image``                         uint8 [N, H, W, C], C = 1 or 3, chunked by rows
``image_bytes/data``, ``offsets``  uint8 [total], int64 [N+1]: JPEG or PNG as it was; attrs height, width, channels
``text``                          UTF-8 strings
``tokens``, ``tokenizer``         int32 [N, L], attrs pad_token, vocab_size; JSON of the ``tokenizers`` library
``captions/text``, ``tokens``     UTF-8 strings [M], int32 [M, L]: all texts of rows that have several; ``text`` and
                                  ``tokens`` hold one of them, or all in one
``captions/offsets``              int64 [N+1]: row i has the captions offsets[i]:offsets[i+1]
``tabular/<name>``                float32 or float16 [N, D], attr columns (JSON list)
``label/<name>``                  int32 [N], -1 missing, attr classes (JSON list)
``mask``, ``mask_row``            uint8 [M, H, W]; int64 [N], -1 none
``site``                          int32 [N], attr names (JSON list)
``patient``, ``row_id``           UTF-8 strings; row_id is unique
``split``                         int8 [N]: 0 train, 1 val, 2 test; never cuts a patient in two
``present/<modality>``            bool [N] for image, text and tabular/<name>
================================  ===============================================================================
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import h5py
import numpy as np

SCHEMA_VERSION = 1
SPLITS = ("train", "val", "test")
BLOCK_BYTES = 16 << 20  # how much is read at once when a column is walked through


def is_string(dataset: h5py.Dataset) -> bool:
    return h5py.check_string_dtype(dataset.dtype) is not None


def row_bytes(dataset: h5py.Dataset) -> int:
    """Bytes of one row in memory; strings are guessed at 256."""
    if is_string(dataset):
        return 256
    return max(1, int(np.prod(dataset.shape[1:], dtype=np.int64)) * dataset.dtype.itemsize)


def hash_strings(digest: Any, strings: Any) -> None:
    for value in strings:
        data = value if isinstance(value, bytes) else str(value).encode()
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)


def column_paths(file: h5py.File) -> list[str]:
    """Sorted paths of all datasets."""
    paths: list[str] = []
    file.visititems(lambda path, item: paths.append(path) if isinstance(item, h5py.Dataset) else None)
    return sorted(paths)


def _column_digest(dataset: h5py.Dataset) -> bytes:
    digest = hashlib.sha256()
    if dataset.shape == ():
        hash_strings(digest, [dataset[()]])
        return digest.digest()
    step = max(1, BLOCK_BYTES // row_bytes(dataset))
    for start in range(0, dataset.shape[0], step):
        part = dataset[start : start + step]
        if is_string(dataset):
            hash_strings(digest, part)
        else:
            digest.update(np.ascontiguousarray(part).tobytes())
    return digest.digest()


def content_checksum(file: h5py.File, known: Mapping[str, bytes] | None = None) -> str:
    """sha256 over every column: path, shape, dtype, attributes, values. Independent of creation time, command, chunking
    and compression: the same rows give the same checksum.

    known: SHA-256 digests of column values that the writer took while it streamed them, so that they are not read
    again.
    """
    total = hashlib.sha256(f"fedhpc pack {SCHEMA_VERSION}".encode())
    for path in column_paths(file):
        dataset = file[path]
        kind = "string" if is_string(dataset) else dataset.dtype.str
        head = [path, kind, repr(tuple(int(n) for n in dataset.shape))]
        for key in sorted(dataset.attrs):
            head += [key, str(dataset.attrs[key])]
        hash_strings(total, head)
        total.update(known[path] if known and path in known else _column_digest(dataset))
    return total.hexdigest()
