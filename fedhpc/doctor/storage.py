"""The data path: file system, space, HDF5 with and without locks, reading speed."""

from __future__ import annotations

import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np

from fedhpc.data.hdf5 import PackedFile
from fedhpc.doctor.finding import Finding

READ_BYTES = 64 << 20
LITTLE_GIB = 5


def examine(data: Path) -> Iterator[Finding]:
    """`data`: a packed file, or a folder where some will lie."""
    if not data.exists():
        yield Finding("FAIL", "data", f"{data} does not exist on this node",
                      "pack it (fedhpc pack), correct --data, or use a file system that this node mounts")  # fmt: skip
        return
    folder = data if data.is_dir() else data.parent
    yield space(folder)
    yield locking(folder)
    if data.is_file():
        yield packed(data)


def space(folder: Path) -> Finding:
    free = shutil.disk_usage(folder).free / 2**30
    found = f"{folder}: {file_system(folder)}, {free:.1f} GiB free"
    if free < LITTLE_GIB:
        return Finding("WARN", "disk", found, "checkpoints and packs take gigabytes: free some, or set --run-dir")
    return Finding("PASS", "disk", found)


def file_system(folder: Path, mounts: Path = Path("/proc/mounts")) -> str:
    """Kind of the file system that `folder` lies on: ext4, nfs4, lustre, ..."""
    path, best, kind = folder.resolve(), Path("/"), "unknown file system"
    for line in mounts.read_text().splitlines():
        _, where, name, *_ = line.split()
        mount = Path(where.replace("\\040", " "))
        if path.is_relative_to(mount) and len(mount.parts) >= len(best.parts):
            best, kind = mount, name
    return kind


def locking(folder: Path) -> Finding:
    """Whether HDF5 can lock a file here. fedhpc reads without locks, so that nothing depends on it."""
    probe = folder / f".fedhpc-doctor-{uuid.uuid4().hex}.h5"
    try:
        try:
            with h5py.File(probe, "w", locking=False) as file:
                file["x"] = np.arange(4)
            with h5py.File(probe, "r", locking=False) as one, h5py.File(probe, "r", locking=False) as two:
                same = bool((one["x"][:] == two["x"][:]).all())
        except OSError as error:
            return Finding("WARN", "HDF5", f"{folder} cannot be written ({error})",
                           "packing and runs need a folder that can be written: set --out and --run-dir")  # fmt: skip
        if not same:
            return Finding("FAIL", "HDF5", f"{folder} gives back other bytes than were written", "use other storage")
        try:
            with h5py.File(probe, "r+", locking=True):
                pass
        except OSError as error:
            return Finding(
                "WARN", "HDF5", f"HDF5 {h5py.version.hdf5_version}: {folder} has no file locks ({error})",
                "fedhpc reads without them; for other programs set HDF5_USE_FILE_LOCKING=FALSE. Two runs in one run "
                "folder at once would not be noticed",
            )  # fmt: skip
        return Finding("PASS", "HDF5", f"HDF5 {h5py.version.hdf5_version} reads without locks; locks work here too")
    finally:
        probe.unlink(missing_ok=True)


def packed(path: Path) -> Finding:
    """Opens, and how fast it is read: often from the page cache, so this is a lower bound of trouble, not of speed."""
    try:
        with PackedFile(path) as file:
            found = f"{path}: {file.num_rows} rows of {file.name}"
        start, got = time.perf_counter(), 0
        with open(path, "rb") as raw:
            while got < READ_BYTES and (part := raw.read(8 << 20)):
                got += len(part)
        speed = got / max(time.perf_counter() - start, 1e-9) / 1e6
    except (OSError, ValueError) as error:
        return Finding("FAIL", "data", str(error), "pack or copy it again: fedhpc describe --verify tells more")
    found = f"{found}, read at {speed:,.0f} MB/s"
    if speed < 20:
        return Finding("WARN", "data", found, "copy it to local or parallel storage before the run")
    return Finding("PASS", "data", found)
