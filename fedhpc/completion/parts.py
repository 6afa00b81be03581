"""Work that is cut into parts, each saved when it is done: what was stopped goes on where it was, and several ranks
share it. At the end one HDF5 file takes the place of the parts."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from fedhpc.data.packers.progress import Bar

Array = np.ndarray
Part = Mapping[str, Array]  # dataset of the file -> rows of it


@dataclass(frozen=True)
class Ranks:
    """Who shares the work. wait: returns when all ranks have called it."""

    rank: int = 0
    world: int = 1
    wait: Callable[[], object] = lambda: None


def in_parts(
    path: Path,
    names: Sequence[str],
    make: Callable[[int], Part],
    ranks: Ranks,
    attributes: Mapping[str, Any],
    *,
    what: str = "",
    unit: str = "rows",
) -> None:
    """Write `path`, unless it is there: part after part by make(number of the part), in files of these names.

    Parts lie in ``PATH.parts/`` until all are done. Their arrays are put behind each other by dataset, in the order of
    names. attributes: of the file. what: shown beside a bar; no bar without it. Every rank calls this.
    """
    folder = path.with_name(path.name + ".parts")
    if _agreed(path, ranks):
        return
    folder.mkdir(parents=True, exist_ok=True)
    mine = range(ranks.rank, len(names), ranks.world)
    if what and ranks.rank == 0:
        with Bar(len(mine), what, unit=unit) as bar:
            for number in mine:
                bar.advance(1, counts=_do(folder / f"{names[number]}.npz", make, number))
    else:
        for number in mine:
            _do(folder / f"{names[number]}.npz", make, number)
    ranks.wait()
    if ranks.rank == 0:
        _assemble(path, [folder / f"{name}.npz" for name in names], attributes)
        shutil.rmtree(folder)
    ranks.wait()


def _agreed(path: Path, ranks: Ranks) -> bool:
    """Whether the file is there, asked at a time when no rank is about to write it."""
    there = path.is_file()
    ranks.wait()
    return there


def _do(path: Path, make: Callable[[int], Part], number: int) -> bool:
    """Whether there was anything left to do."""
    if path.is_file():
        return False
    temporary = path.with_name(f".{path.name}.partial")
    with temporary.open("wb") as file:
        np.savez(file, **dict(make(number)))  # type: ignore[arg-type]
    temporary.replace(path)
    return True


def _assemble(path: Path, parts: Sequence[Path], attributes: Mapping[str, Any]) -> None:
    temporary = path.with_name(path.name + ".partial")
    with h5py.File(temporary, "w") as file:
        file.attrs.update(attributes)
        for part in parts:
            with np.load(part, allow_pickle=False) as arrays:
                for name in arrays.files:
                    _append(file, name, arrays[name])
    temporary.replace(path)


def _append(file: h5py.File, name: str, rows: Array) -> None:
    key = name.replace(".", "/")
    if rows.dtype.kind == "U":
        rows = rows.astype(h5py.string_dtype())
    if key not in file:
        chunk = (max(1, min(64, len(rows))), *rows.shape[1:])
        file.create_dataset(key, data=rows, maxshape=(None, *rows.shape[1:]), chunks=chunk)
        return
    dataset = file[key]
    start = len(dataset)
    dataset.resize(start + len(rows), axis=0)
    dataset[start:] = rows
