"""HDF5 2.0 walks a string heap object by object and never ends at one of no size, which damage can make. So heaps are
walked here first, on the bytes of the file (HDF5 File Format 3.0, III.E "Global Heap")."""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

SIGNATURE = b"GCOL\x01\0\0\0"  # with version and reserved bytes: not to be met by chance
HEADER = struct.Struct("<8sQ")  # signature, bytes of the heap with this header
OBJECT = struct.Struct("<HHIQ")  # index (0: what is free), references, reserved, bytes
MOST_BYTES = 256 << 20  # of a file that is searched when it is opened, a tenth of a second or two


def endless_heap(path: Path, most_bytes: int | None = MOST_BYTES) -> int | None:
    """Where in the file a string heap begins that HDF5 would never come to the end of; None where there is none, or
    where the file is larger than `most_bytes`."""
    size = path.stat().st_size
    if size < HEADER.size or (most_bytes is not None and size > most_bytes):
        return None
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        start = data.find(SIGNATURE)
        while start >= 0:
            if not _ends(data, start):
                return start
            start = data.find(SIGNATURE, start + len(SIGNATURE))
    return None


def _ends(data: mmap.mmap, start: int) -> bool:
    """Does every object lead on to the next? Those that lead beyond the heap HDF5 refuses by itself."""
    if start + HEADER.size > len(data):
        return True
    end = min(start + HEADER.unpack_from(data, start)[1], len(data))
    at = start + HEADER.size
    while at + OBJECT.size <= end:
        index, _, _, size = OBJECT.unpack_from(data, at)
        step = (size if index == 0 else OBJECT.size + (size + 7) // 8 * 8) % 2**64  # as HDF5 counts
        if step == 0:
            return False
        at += step
    return True
