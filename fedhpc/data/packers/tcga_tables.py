"""Tables as Xena, the GDC and Firehose give them: patients (or samples) down or across, gzip or not.

A table whose header holds barcodes has patients across (Xena's expression matrices, Firehose); else one of its columns
holds them. Of several samples of a patient the first primary tumour counts; normal tissue and metastases do not.
"""

from __future__ import annotations

import csv
import gzip
import itertools
import re
import zlib
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

import numpy as np

from fedhpc.data.packers.tcga import Modality, missing

_BARCODE = re.compile(r"^TCGA-[A-Z0-9]{2}-[A-Z0-9]{4}(-[0-9]{2}.*)?$", re.IGNORECASE)
_PRIMARY = ("01", "03", "05", "09")  # primary: solid, blood, additional, of bone marrow
_INDEX = ("", "unnamed: 0")  # what pandas writes for its row numbers
_CURE = "a barcode such as TCGA-BH-A0B3 or TCGA-BH-A0B3-01A was expected in its header or in one of its columns"


@dataclass
class Dropped:
    """Samples that are not packed, by reason: for the note."""

    counts: Counter[str] = field(default_factory=Counter)


def read_numbers(path: Path, dropped: Dropped, keep: Collection[str] | None = None) -> Modality:
    """A table of numbers: float32, missing cells NaN, patients in alphabetical order.

    keep: names of the features that are read (genes); None reads all. Raises ValueError that names file and line.
    """
    with _lines(path) as lines:
        header = _header(path, lines)
        if _across(header):
            return _numbers_across(path, header, lines, dropped, keep)
        return _numbers_down(path, header, lines, dropped, keep)


def read_words(path: Path) -> tuple[list[str], dict[str, list[str]]]:
    """A clinical table as text: the patients, sorted, and each column's cells in their order; "" is missing.

    Several rows of a patient (one a treatment, one a sample) become one: each cell the first that is known.
    """
    with _lines(path) as lines:
        header = _header(path, lines)
        table = [[cell.strip() for cell in cells] for _, cells in _rows(path, header, lines)]
    if _across(header):  # fields down: turn it round
        fields = [cells[0] for cells in table]
        places = _chosen_columns(header)
        known = {p: {f: c[k] for f, c in zip(fields, table, strict=True)} for p, k in places.items()}
        names = list(dict.fromkeys(fields))
    else:
        if not table:
            raise ValueError(f"{path} has no rows below its header")
        at = _id_column(path, table[0])
        names = [name for k, name in enumerate(header) if k != at and name.lower() not in _INDEX]
        known = {}
        for cells in sorted(table, key=lambda cells: cells[at]):
            patient = known.setdefault(_patient(cells[at], path), {})
            for name, cell in zip(header, cells, strict=True):
                if name not in patient or missing(patient[name]):
                    patient[name] = cell
    patients = sorted(known)
    return patients, {
        name: ["" if missing(known[p].get(name, "")) else known[p][name] for p in patients] for name in names
    }


# ---------------------------------------------------------------------------------------------------- reading lines
@contextmanager
def _lines(path: Path) -> Iterator[Iterator[list[str]]]:
    """Cells of each line; the delimiter is a tab where the first line has one, else a comma."""
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8-sig", newline="") as text:
            first = text.readline()
            if "\t" in first:
                yield (line.replace('"', "").rstrip("\r\n").split("\t") for line in _chain(first, text))
            else:
                yield csv.reader(_chain(first, text))
    except (gzip.BadGzipFile, zlib.error, EOFError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is truncated or no text table ({error}): download it again") from error


def _chain(first: str, text: TextIO) -> Iterator[str]:
    yield first
    yield from text


def _header(path: Path, lines: Iterator[list[str]]) -> list[str]:
    header = [cell.strip() for cell in next(lines, [])]
    if len(header) < 2:
        raise ValueError(f"{path} has no columns: a table of tabs or commas was expected")
    return header


def _rows(path: Path, header: Sequence[str], lines: Iterator[list[str]]) -> Iterator[tuple[int, list[str]]]:
    """Line number and cells of each line below the header."""
    for number, cells in enumerate(lines, 2):
        if not cells or cells == [""]:
            continue
        if len(cells) != len(header):
            raise ValueError(f"{path}, line {number}: {len(cells)} cells, but the header has {len(header)}: download "
                             "it again")  # fmt: skip
        yield number, cells


# ------------------------------------------------------------------------------------------------------- barcodes
def _across(header: Sequence[str]) -> bool:
    return any(_BARCODE.match(cell) for cell in header[1:])


def _patient(barcode: str, path: Path) -> str:
    if not _BARCODE.match(barcode):
        raise ValueError(f"{path}: {barcode!r} is no barcode of TCGA: {_CURE}")
    return barcode[:12].upper()


def _primary(barcode: str) -> bool:
    return len(barcode) == 12 or barcode[13:15] in _PRIMARY


def _chosen(barcodes: Sequence[str], dropped: Dropped | None = None) -> dict[str, int]:
    """Patient -> place of the sample that counts, in alphabetical order of patients."""
    out: dict[str, int] = {}
    reasons = dropped.counts if dropped else Counter[str]()
    for place in sorted(range(len(barcodes)), key=lambda k: barcodes[k].upper()):
        barcode = barcodes[place].upper()
        if not _BARCODE.match(barcode):
            continue
        if not _primary(barcode):
            reasons["samples that are no primary tumour"] += 1
        elif out.setdefault(barcode[:12], place) != place:
            reasons["further samples of a patient"] += 1
    return out


def _chosen_columns(header: Sequence[str], dropped: Dropped | None = None) -> dict[str, int]:
    return {patient: place + 1 for patient, place in _chosen(header[1:], dropped).items()}


def _some_chosen(path: Path, chosen: dict[str, int]) -> dict[str, int]:
    if not chosen:
        raise ValueError(f"{path} has no sample of a primary tumour (barcodes ending in -01A and so on): give the "
                         "table of tumours")  # fmt: skip
    return chosen


def _id_column(path: Path, cells: Sequence[str]) -> int:
    """The column of barcodes, from the first row; one with whole patients before one with samples."""
    places = [k for k, cell in enumerate(cells) if _BARCODE.match(cell.strip())]
    if not places:
        raise ValueError(f"{path}: {_CURE}")
    return min(places, key=lambda k: (len(cells[k].strip()) != 12, k))


# -------------------------------------------------------------------------------------------------------- numbers
def _numbers_across(
    path: Path, header: Sequence[str], lines: Iterator[list[str]], dropped: Dropped, keep: Collection[str] | None
) -> Modality:
    places = _some_chosen(path, _chosen_columns(header, dropped))
    take = list(places.values())
    columns: dict[str, np.ndarray] = {}
    for number, cells in _rows(path, header, lines):
        name = cells[0].strip()
        if keep is not None and name not in keep:
            continue
        chosen = [cells[k] for k in take]
        if number == 2 and not any(_is_number(cell) or missing(cell) for cell in chosen):
            continue  # Firehose has a second header
        if name in columns:
            raise ValueError(f"{path}, line {number}: {name} occurs twice: keep one of its lines")
        columns[name] = _floats(chosen, f"{path}, line {number}")
    if not columns:
        raise ValueError(f"{path} has no rows of numbers{_kept(keep)}")
    return Modality(list(places), list(columns), np.stack(list(columns.values()), axis=1))


def _numbers_down(
    path: Path, header: Sequence[str], lines: Iterator[list[str]], dropped: Dropped, keep: Collection[str] | None
) -> Modality:
    rows = _rows(path, header, lines)
    first = next(rows, None)
    if first is None:
        raise ValueError(f"{path} has no rows below its header")
    at = _id_column(path, first[1])
    take = [
        k for k, name in enumerate(header) if k != at and name.lower() not in _INDEX and (keep is None or name in keep)
    ]
    twice = [name for name, count in Counter(header[k] for k in take).items() if count > 1]
    if twice:
        raise ValueError(f"{path}: the column {twice[0]!r} occurs twice: keep one of them")
    if not take:
        raise ValueError(f"{path} has no columns of numbers{_kept(keep)}")
    barcodes: list[str] = []
    values: list[np.ndarray] = []  # not text: 20,000 genes of 1,000 patients would take a gigabyte
    for number, cells in itertools.chain([first], rows):
        barcodes.append(cells[at].strip())
        _patient(barcodes[-1], path)
        values.append(_floats([cells[k] for k in take], f"{path}, line {number}"))
    chosen = _some_chosen(path, _chosen(barcodes, dropped))
    return Modality(list(chosen), [header[k] for k in take], np.stack([values[k] for k in chosen.values()]))


def _kept(keep: Collection[str] | None) -> str:
    return " of the names that --genes lists" if keep is not None else ""


def _floats(cells: list[str], where: str) -> np.ndarray:
    try:
        return np.asarray([float(cell) for cell in cells], np.float32)
    except ValueError:
        pass  # missing cells, or no number
    out = np.full(len(cells), np.nan, np.float32)
    for k, cell in enumerate(cells):
        if not missing(cell):
            if not _is_number(cell):
                raise ValueError(f"{where}: {cell!r} is not a number: give a table of numbers, one a patient and "
                                 "feature")  # fmt: skip
            out[k] = float(cell)
    return out


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
