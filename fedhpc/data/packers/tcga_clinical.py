"""What a clinical table of TCGA gives: features and the stage, whatever its columns are called."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedhpc.data.packers.tcga import RACES, Modality, one_hot, race_of, stage_of

# The GDC and Xena put a group before or after a column's name: demographic.gender, gender.demographic.
_GROUPS = {"demographic", "diagnoses", "cases", "exposures", "samples", "project", "annotations"}
_AGE = ("age_at_index", "age_at_initial_pathologic_diagnosis", "years_to_birth", "age", "age_at_diagnosis")
_DAYS = {"age_at_diagnosis"}  # the GDC gives days
_SEX = ("gender", "sex", "sex_at_birth", "is_female")
_RACE = ("race",)
_STAGE = (
    "ajcc_pathologic_stage", "pathologic_stage", "pathological_stage", "ajcc_pathologic_tumor_stage", "tumor_stage",
    "stage",
)  # fmt: skip
# Words of columns that tell how it went, or what is to be told: never a feature unless asked for by name.
_OUTCOMES = ("stage", "surviv", "days_to", "vital", "event", "censor", "death", "follow", "recurr")
_OUTCOME_PARTS = {"os", "dss", "pfi", "dfi"}
_FEMALE = {"female": 1.0, "f": 1.0, "1": 1.0, "1.0": 1.0, "male": 0.0, "m": 0.0, "0": 0.0, "0.0": 0.0}


@dataclass(frozen=True)
class Words:
    """A clinical table as text; see `read_words`."""

    path: Path
    patients: Sequence[str]
    columns: Mapping[str, Sequence[str]]

    def find(self, names: Sequence[str]) -> str | None:
        """The column with the first of these names, whatever group it is in."""
        plain = {_plain(column): column for column in reversed(list(self.columns))}
        return next((plain[name] for name in names if name in plain), None)


def _plain(column: str) -> str:
    parts = [part for part in column.lower().split(".") if part not in _GROUPS]
    return ".".join(parts)


def stages(table: Words, column: str | None = None) -> list[str]:
    """Stage of each patient, I to IV or "". Raises ValueError where the table has no such column."""
    name = column if column in table.columns else table.find((column,) if column else _STAGE)
    if name is None and column is None and len(table.columns) == 1:
        name = next(iter(table.columns))
    if name is None:
        raise ValueError(f"{table.path} has no column {column or ' or '.join(_STAGE)}: set --stage-column to its "
                         f"column of stages. It has: {_some(table.columns)}")  # fmt: skip
    return [stage_of(cell) for cell in table.columns[name]]


def has_stage(table: Words) -> bool:
    return table.find(_STAGE) is not None


def clinical_features(tables: Sequence[Words], wanted: Sequence[str] = ()) -> Modality:
    """One table of features over all cohorts, float32, missing NaN.

    wanted: columns that become features: numbers, or a column a category. Without them age (years), is_female and one
    column a race; in a table that names none of these, every column of numbers that does not look like an outcome.
    Raises ValueError.
    """
    patients = [patient for table in tables for patient in table.patients]
    if wanted:
        parts = [part for name in wanted for part in _wanted(tables, name)]
    elif any(table.find((*_AGE, *_SEX, *_RACE)) for table in tables):
        parts = [*_known(tables)]
    else:
        parts = [*_numeric(tables)]
        if not parts:
            raise ValueError(f"{tables[0].path} has neither age, sex nor race, nor columns of numbers that all "
                             "clinical tables share: name its features with --clinical-columns. It has: "
                             f"{_some(tables[0].columns)}")  # fmt: skip
    return Modality(patients, [name for name, _ in parts], np.stack([values for _, values in parts], axis=1))


Part = tuple[str, np.ndarray]


def _known(tables: Sequence[Words]) -> Iterator[Part]:
    yield "age", _each(tables, _AGE, _age)
    yield "is_female", _each(tables, _SEX, lambda cell, _: _FEMALE[cell.lower()])
    race = [cell for table in tables for cell in _cells(table, _RACE)]
    for k, name in enumerate(RACES):
        yield f"race_{name}", one_hot([race_of(cell) for cell in race], RACES)[:, k]


def _age(cell: str, column: str) -> float:
    return float(cell) / 365.25 if _plain(column) in _DAYS else float(cell)


def _cells(table: Words, names: Sequence[str]) -> Sequence[str]:
    column = table.find(names)
    return table.columns[column] if column else [""] * len(table.patients)


def _each(tables: Sequence[Words], names: Sequence[str], convert: Callable[[str, str], float]) -> np.ndarray:
    out: list[float] = []
    for table in tables:
        column = table.find(names) or ""
        for patient, cell in zip(table.patients, _cells(table, names), strict=True):
            try:
                out.append(convert(cell, column) if cell else np.nan)
            except (ValueError, KeyError):
                raise ValueError(f"{table.path}: {column} of {patient} is {cell!r}, which is not understood: correct "
                                 "it, or name the features with --clinical-columns") from None  # fmt: skip
    return np.asarray(out, np.float32)


def _wanted(tables: Sequence[Words], name: str) -> Iterator[Part]:
    cells: list[str] = []
    for table in tables:
        column = name if name in table.columns else table.find((name.lower(),))
        if column is None:
            raise ValueError(f"{table.path} has no column {name!r} (--clinical-columns). It has: "
                             f"{_some(table.columns)}")  # fmt: skip
        cells += table.columns[column]
    numbers = _numbers(cells)
    if numbers is not None:
        yield name, numbers
        return
    classes = sorted({cell.lower() for cell in cells if cell})
    if len(classes) > 50:
        raise ValueError(f"--clinical-columns {name} has {len(classes)} different words: it is no category")
    hot = one_hot([cell.lower() for cell in cells], classes)
    for k, word in enumerate(classes):
        yield f"{name}={word}", hot[:, k]


def _numeric(tables: Sequence[Words]) -> Iterator[Part]:
    for name in tables[0].columns:
        plain = _plain(name)
        if any(word in plain for word in _OUTCOMES) or _OUTCOME_PARTS & set(plain.replace(".", "_").split("_")):
            continue
        if all(name in table.columns for table in tables):
            numbers = _numbers([cell for table in tables for cell in table.columns[name]])
            if numbers is not None:
                yield name, numbers


def _numbers(cells: Sequence[str]) -> np.ndarray | None:
    """float32, NaN where missing; None where a cell is no number, or all are missing."""
    try:
        out = np.asarray([float(cell) if cell else np.nan for cell in cells], np.float32)
    except ValueError:
        return None
    return None if np.isnan(out).all() else out


def _some(columns: Mapping[str, object]) -> str:
    names = list(columns)
    return ", ".join(names[:30]) + (f", ... ({len(names)} in all)" if len(names) > 30 else "")
