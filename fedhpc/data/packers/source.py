"""Where raw rows and pictures come from: CSV tables (gzip too), folders, and npz archives of encoded pictures."""

from __future__ import annotations

import csv
import difflib
import gzip
import io
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Protocol

import numpy as np


class BadRow(ValueError):
    """One row cannot be packed. `reason` is the short name under which --skip-bad counts it."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass
class Skipped:
    """What --skip-bad does with bad rows: count them, or raise when it is off."""

    on: bool
    counts: Counter[str] = field(default_factory=Counter)

    def take(self, error: BadRow) -> None:
        if not self.on:
            raise ValueError(f"{error}; or drop such rows with --skip-bad") from error
        self.counts[error.reason] += 1


@dataclass(frozen=True)
class Row:
    """One row of a table, and where it stands, for error messages."""

    values: dict[str, str]
    where: str  # "metadata.csv, line 17"
    index: int  # data row, from 0


def read_table(path: Path) -> list[Row]:
    """Rows of a CSV file with a header; cells are stripped of white space. Raises FileNotFoundError or ValueError."""
    return list(iter_table(path))


def iter_table(path: Path, wanted: Sequence[tuple[str, str]] | None = None, *, delimiter: str = ",") -> Iterator[Row]:
    """The same one by one, for tables too large to hold; gzip is read as it is.

    wanted: the (option, column) pairs that are kept; the others are dropped as they are read. Raises ValueError for
    one that the table lacks.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: give the CSV file that lists the rows")
    index = -1
    try:
        with _open_text(path) as file:
            reader = csv.reader(file, strict=True, delimiter=delimiter)
            header = [name.strip() for name in next(reader, [])]
            twice = [name for name, n in Counter(header).items() if n > 1]
            if twice:
                raise ValueError(f"{path}: the column {twice[0]!r} occurs twice in the header: rename one")
            if wanted is not None:
                _require(path, header, wanted)
            keep = {name for _, name in wanted} if wanted is not None else set(header)
            line = reader.line_num + 1
            for cells in reader:
                where, line = f"{path}, line {line}", reader.line_num + 1
                if not cells:
                    continue
                if len(cells) != len(header):
                    raise ValueError(f"{where}: {len(cells)} cells, but the header has {len(header)}: correct the line "
                                     "(text with commas needs quotes)")  # fmt: skip
                index += 1
                yield Row({k: cell.strip() for k, cell in zip(header, cells, strict=True) if k in keep}, where, index)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error}): save it as UTF-8") from error
    except csv.Error as error:
        raise ValueError(f"{path}: not a readable CSV file ({error})") from error
    except (gzip.BadGzipFile, EOFError) as error:
        raise ValueError(f"{path} is truncated or no gzip file ({error}): copy it again") from error
    if index < 0:
        raise ValueError(f"{path} has no rows: it needs a header and at least one line")


def _open_text(path: Path) -> IO[str]:
    if path.suffix == ".gz":
        return io.TextIOWrapper(gzip.open(path, "rb"), encoding="utf-8-sig", newline="")
    return open(path, newline="", encoding="utf-8-sig")


def require_columns(path: Path, rows: Sequence[Row], wanted: Iterable[tuple[str, str | None]]) -> None:
    """Raise ValueError, with the nearest name, for an (option, column) that the table lacks."""
    _require(path, list(rows[0].values), wanted)


def _require(path: Path, has: Sequence[str], wanted: Iterable[tuple[str, str | None]]) -> None:
    for option, column in wanted:
        if column is None or column in has:
            continue
        near = difflib.get_close_matches(column.lower(), [name.lower() for name in has], n=1)
        original = [name for name in has if near and name.lower() == near[0]]
        guess = f" Did you mean {original[0]!r}?" if original else ""
        raise ValueError(f"{path} has no column {column!r} ({option}).{guess} It has: {', '.join(has)}")


class PictureSource(Protocol):
    """Encoded pictures by row; :class:`Pictures` is the usual one, packers may bring their own."""

    def key(self, row: Row) -> str | int | None:
        """What names the row's picture, the same for rows that share one; None where the row has none."""

    def read(self, key: str | int, row: Row) -> bytes:
        """The encoded bytes (DICOM too). Raises BadRow."""

    def stamp(self, key: str | int, row: Row) -> str:
        """Another text when the picture has changed, found without reading it: an interrupted pack goes by it."""


class Pictures:
    """Encoded pictures by a row's cell: a path below a folder, or an index into an npz archive.

    The archive holds `jpeg` or `png` uint8 [total] and `offsets` int64 [n+1]: picture i is bytes
    offsets[i]:offsets[i+1].
    """

    def __init__(self, *, column: str | None, root: Path | None, npz: Path | None, index_column: str | None) -> None:
        self.column, self.root, self.npz, self.index_column = column, root, npz, index_column
        self._data: np.ndarray | None = None
        if npz is not None:
            self._data, self._offsets = _open_npz(npz)
            self._stamp = file_stamp(npz)

    @property
    def count(self) -> int | None:
        """Pictures in the archive; None for a folder."""
        return None if self._data is None else len(self._offsets) - 1

    def key(self, row: Row) -> str | int | None:
        """What names the row's picture; None where the row has none (an empty cell, or index -1)."""
        if self._data is None:
            assert self.column is not None
            return row.values[self.column] or None
        if self.index_column is None:
            return row.index
        cell = row.values[self.index_column]
        try:
            index = int(cell) if cell else -1
        except ValueError:
            raise BadRow("bad index", f"{row.where}: {self.index_column} is {cell!r}, not an integer") from None
        if not -1 <= index < len(self._offsets) - 1:
            raise BadRow("bad index", f"{row.where}: {self.index_column} is {index}, but {self.npz} holds pictures "
                         f"0..{len(self._offsets) - 2}")  # fmt: skip
        return None if index == -1 else index

    def read(self, key: str | int, row: Row) -> bytes:
        """The encoded bytes. Raises BadRow."""
        if self._data is not None:
            index = int(key)
            return self._data[self._offsets[index] : self._offsets[index + 1]].tobytes()
        path = self._path(key)
        try:
            return path.read_bytes()
        except OSError as error:
            raise BadRow("missing picture", f"{row.where}: {path} cannot be read ({error.strerror}): copy it "
                         "there, or correct the cell or --image-root / --mask-root") from error  # fmt: skip

    def stamp(self, key: str | int, row: Row) -> str:
        return self._stamp if self._data is not None else file_stamp(self._path(key))

    def _path(self, key: str | int) -> Path:
        return (self.root or Path()) / str(key)


def file_stamp(path: Path) -> str:
    """Size and time of last change."""
    try:
        status = path.stat()
    except OSError:
        return "missing"
    return f"{status.st_size} {status.st_mtime_ns}"


def _open_npz(path: Path) -> tuple[np.ndarray, np.ndarray]:
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: give an npz archive with jpeg or png, and offsets")
    try:
        with zipfile.ZipFile(path) as members:  # np.load would try other formats, and speak of pickle
            names = [name.removesuffix(".npy") for name in members.namelist()]
        kinds = [name for name in ("jpeg", "png") if name in names]
        if len(kinds) == 1 and "offsets" in names:
            with np.load(path, allow_pickle=False) as archive:
                data, offsets = archive[kinds[0]], archive["offsets"]
    except (zipfile.BadZipFile, OSError, EOFError) as error:
        raise ValueError(f"{path} is truncated or no npz archive ({error}): copy it again") from error
    except ValueError as error:
        raise ValueError(f"{path}: its arrays cannot be read ({error}): they must be plain uint8 and int64") from error
    if len(kinds) != 1 or "offsets" not in names:
        raise ValueError(f"{path} must hold one of jpeg and png, and offsets; it holds {', '.join(names)}")
    fits = (
        data.dtype == np.uint8
        and data.ndim == 1
        and offsets.ndim == 1
        and offsets.dtype.kind in "iu"
        and len(offsets) > 1
        and offsets[0] == 0
        and offsets[-1] == len(data)
        and bool((np.diff(offsets.astype(np.int64)) >= 0).all())
    )
    if not fits:
        raise ValueError(f"{path}: offsets must be integers that rise from 0 to {len(data)}, the length of the data")
    return data, offsets.astype(np.int64)
