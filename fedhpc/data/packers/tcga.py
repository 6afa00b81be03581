"""What the packers of TCGA share: stages, hospitals, groups of hospitals, and the packed file.

One row a patient. Modalities are tabular and may be missing; a single missing value is NaN in a row that has the
modality. Nothing is scaled or clipped here: such statistics belong to the training rows of a run.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fedhpc.data.hdf5 import PackWriter
from fedhpc.data.packers.split import split_by_patient
from fedhpc.data.packers.table import PackReport

Array = np.ndarray
Fractions = tuple[float, float, float]

STAGES = ("I", "II", "III", "IV")
TP53 = ("wild_type", "mutated")
PATIENT = re.compile(r"^TCGA-[A-Z0-9]{2}-[A-Z0-9]{4}$")
RACES = ("white", "black", "asian", "other")
_RACE_WORDS = {
    "white": "white", "black or african american": "black", "asian": "asian",
    "american indian or alaska native": "other", "native hawaiian or other pacific islander": "other", "other": "other",
}  # fmt: skip
_STAGE = re.compile(r"^(?:stage)?[ _]*(iv|iii|ii|i)[abc]?[0-9]?$", re.IGNORECASE)
_MISSING = {
    "", "-", "--", "'--", "na", "nan", "n/a", "none", "null", "unknown", "not reported", "not available",
    "not applicable", "not evaluated", "not allowed to collect", "discrepancy",
}  # fmt: skip


@dataclass(frozen=True)
class Modality:
    """A table: float [n, D], one row a patient of `patients`, and the names of its columns."""

    patients: Sequence[str]
    columns: Sequence[str]
    values: Array


@dataclass(frozen=True, kw_only=True)
class Cohorts:
    """Everything that becomes one packed file; the lists have one entry a patient."""

    patients: Sequence[str]
    cohort: Sequence[str]
    stage: Sequence[str]
    """I to IV; "" where it is not known."""
    modalities: Mapping[str, Modality]
    tp53: Sequence[str] = ()
    """wild_type, mutated or ""; empty: no label."""
    labels: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Further categorical columns; "" is missing."""


@dataclass(frozen=True, kw_only=True)
class TcgaPlan:
    """How it is written."""

    out: Path
    name: str
    source: str
    licence: str
    note: str
    command: str = ""
    groups: int = 3
    """Groups of whole hospitals a cohort, for clients."""
    split: Fractions = (0.6, 0.2, 0.2)
    random_seed: int = 0
    overwrite: bool = False


def missing(cell: str) -> bool:
    """Whether a cell of TCGA's tables says that nothing is known."""
    return cell.strip().strip("[]").lower() in _MISSING


def stage_of(cell: str) -> str:
    """I, II, III or IV of "Stage IIA", "stage iib", "II"; "" for anything else (Stage X, Stage 0, not reported)."""
    found = _STAGE.match(cell.strip())
    return found.group(1).upper() if found else ""


def race_of(cell: str) -> str:
    """One of RACES, "" where it is not known. Raises ValueError for an unknown word."""
    if missing(cell):
        return ""
    try:
        return _RACE_WORDS[cell.strip().lower()]
    except KeyError:
        raise ValueError(f"race is {cell!r}: one of {', '.join(_RACE_WORDS)} was expected") from None


def hospital_of(patient: str) -> str:
    """The tissue source site: TCGA-BH-A0B3 came from BH. A code belongs to one hospital and one cohort."""
    return patient[5:7]


def one_hot(values: Sequence[str], classes: Sequence[str]) -> Array:
    """float32 [N, len(classes)] of 0 and 1; NaN where the value is ""."""
    out = np.asarray([[value == name for name in classes] for value in values], np.float32).reshape(len(values), -1)
    out[[not value for value in values]] = np.nan
    return out


def hospital_groups(cohort: Sequence[str], hospital: Sequence[str], num_groups: int) -> list[str]:
    """Group of each patient, such as BRCA-2: hospitals are kept whole, groups of a cohort are about equally large.

    The largest hospital first, each to the group that is smallest so far. Raises ValueError for a cohort with fewer
    hospitals than groups.
    """
    if num_groups < 1:
        raise ValueError(f"--groups is {num_groups}: set 1 or more")
    group: dict[tuple[str, str], str] = {}
    for name in sorted(set(cohort)):
        sizes = Counter(h for c, h in zip(cohort, hospital, strict=True) if c == name)
        if len(sizes) < num_groups:
            raise ValueError(f"--groups is {num_groups}, but {name} has only {len(sizes)} hospitals, which are kept "
                             "whole: lower it")  # fmt: skip
        load = [0] * num_groups
        for code, size in sorted(sizes.items(), key=lambda item: (-item[1], item[0])):
            k = load.index(min(load))
            load[k] += size
            group[name, code] = f"{name}-{k + 1}"
    return [group[c, h] for c, h in zip(cohort, hospital, strict=True)]


def pack_tcga(cohorts: Cohorts, plan: TcgaPlan) -> PackReport:
    """Write the file. Split by patient, within each hospital group and stage. Raises ValueError."""
    patients = list(cohorts.patients)
    bad = [patient for patient in patients if not PATIENT.match(patient)]
    if bad:
        raise ValueError(f"{bad[0]!r} is no patient of TCGA: TCGA-BH-A0B3 has the form that was expected")
    hospital = [hospital_of(patient) for patient in patients]
    groups = hospital_groups(cohorts.cohort, hospital, plan.groups)
    stratum = _codes([f"{g} {s}" for g, s in zip(groups, cohorts.stage, strict=True)])[0]
    with PackWriter(
        plan.out, name=plan.name, source=plan.source, licence=plan.licence, command=plan.command,
        note=f"{plan.note} {_note(plan)}", overwrite=plan.overwrite,
    ) as pack:  # fmt: skip
        pack.set_row_ids(patients)
        pack.set_patients(patients)
        pack.set_site(*_codes(hospital))
        pack.set_split(split_by_patient(patients, stratum, plan.split, plan.random_seed))
        two = ["" if stage in ("", "III", "IV") else stage for stage in cohorts.stage]
        early = [{"": "", "I": "early", "II": "early"}.get(stage, "late") for stage in cohorts.stage]
        pack.set_label("stage", *_codes(cohorts.stage, STAGES))
        pack.set_label("stage_1_2", *_codes(two, STAGES[:2]))
        pack.set_label("early_late", *_codes(early, ("early", "late")))
        if cohorts.tp53:
            pack.set_label("tp53", *_codes(cohorts.tp53, TP53))
        for name, values in {"cohort": cohorts.cohort, "hospital_group": groups, **cohorts.labels}.items():
            pack.set_label(name, *_codes(values))
        for name, modality in cohorts.modalities.items():
            table, present = _aligned(modality, patients)
            pack.set_tabular(name, table, modality.columns)
            pack.set_present(f"tabular/{name}", present)
    return PackReport(plan.out, len(patients), {}, 0)


def _aligned(modality: Modality, patients: Sequence[str]) -> tuple[Array, Array]:
    """The modality's rows in the order of `patients`, and who has it: at least one value."""
    place = {patient: k for k, patient in enumerate(modality.patients)}
    if len(place) != len(modality.patients):
        raise ValueError("a patient has two rows of one modality")
    dtype = modality.values.dtype if modality.values.dtype == np.float16 else np.float32
    out = np.full((len(patients), len(modality.columns)), np.nan, dtype)
    rows = [k for k, patient in enumerate(patients) if patient in place]
    out[rows] = modality.values[[place[patients[k]] for k in rows]]
    return out, np.asarray(~np.isnan(out).all(axis=1))


def _codes(values: Sequence[str], classes: Sequence[str] | None = None) -> tuple[Array, list[str]]:
    names = list(classes) if classes else sorted({value for value in values if value})
    place = {name: code for code, name in enumerate(names)} | {"": -1}
    return np.asarray([place[value] for value in values], np.int32), names


def _note(plan: TcgaPlan) -> str:
    return (
        "One row a patient; site is the tissue source site (hospital). hospital_group: whole hospitals of a cohort in "
        f"{plan.groups} groups of about equal size, to partition by. Values are neither scaled nor clipped; a missing "
        "value is NaN, and a row has a modality where it has any value of it. Split "
        f"{','.join(map(str, plan.split))} drawn by patient within hospital group and stage, seed {plan.random_seed}. "
        "Do not try to identify participants."
    )
