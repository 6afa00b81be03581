"""TCGA BRCA, LUSC and LIHC as ../shared/data/tcga_stage holds them: mRNA, copy number, mutations, clinical, stage.

Folder: clinical.csv (one row a patient), rna_common.npz (rna, genes, case_id), cnv_common.npz (cnv) and
mut_<cohort>.npz (mut, with genes of its own).
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from fedhpc.data.packers.official import find_file
from fedhpc.data.packers.source import Row, read_table, require_columns
from fedhpc.data.packers.table import PackReport
from fedhpc.data.packers.tcga import RACES, TP53, Cohorts, Modality, TcgaPlan, one_hot, pack_tcga, race_of, stage_of

MutationGenes = Literal["union", "common"]

_SOURCE = (
    "TCGA (the TCGA Research Network is acknowledged): values of mahmoodlab/PORPOISE (from cBioPortal and GDC), stages "
    "of TCGA-CDR (Liu et al., Cell 2018, doi:10.1016/j.cell.2018.02.052)"
)
_LICENCE = "TCGA open-access tier, GDC policy (no identification of participants); non-commercial academic use"
_CURE = (
    "give the folder tcga_stage of the project's shared data, with clinical.csv, rna_common.npz, cnv_common.npz and "
    "mut_<cohort>.npz"
)
_COLUMNS = (
    "case_id", "cohort", "age", "is_female", "tss_site", "oncotree_code", "histological_grade", "race", "stage",
)  # fmt: skip
_GENE = "TP53"


def pack_tcga_stage(
    folder: Path, out: Path, *, mutation_genes: MutationGenes = "union", groups: int = 3,
    split: tuple[float, float, float] = (0.6, 0.2, 0.2), random_seed: int = 0, overwrite: bool = False,
    command: str = "",
) -> PackReport:  # fmt: skip
    """Pack all patients.

    mutation_genes: each cohort's table has its own genes; `union` keeps all and leaves those that a cohort's table
    lacks as NaN, `common` keeps those of every table. Raises ValueError, FileNotFoundError.
    """
    table = find_file(folder, ("clinical.csv",), _CURE)
    rows = read_table(table)
    require_columns(table, rows, [("tcga-stage", name) for name in _COLUMNS])
    patients = [row.values["case_id"] for row in rows]
    cohort = [row.values["cohort"] for row in rows]
    mutations, tp53 = _mutations(folder, patients, cohort, mutation_genes)
    modalities = {
        "mrna": _modality(find_file(folder, ("rna_common.npz",), _CURE), "rna", np.float16),
        "cnv": _modality(find_file(folder, ("cnv_common.npz",), _CURE), "cnv", np.float16),
        "mutation": mutations,
        "clinical": _clinical(rows),
        "oncotree": _oncotree(rows),
    }
    for name, modality in modalities.items():
        strangers = sorted(set(modality.patients) - set(patients))
        if strangers:
            raise ValueError(f"{name} has {strangers[0]} and {len(strangers) - 1} more patients that {table} lacks: "
                             f"{_CURE}")  # fmt: skip
    plan = TcgaPlan(
        out=out, name="tcga-stage", source=_SOURCE, licence=_LICENCE, command=command, groups=groups, split=split,
        random_seed=random_seed, overwrite=overwrite, note=_note(mutation_genes),
    )  # fmt: skip
    cohorts = Cohorts(
        patients=patients, cohort=cohort, stage=[stage_of(row.values["stage"]) for row in rows], modalities=modalities,
        tp53=tp53,
        labels={
            "oncotree_code": [row.values["oncotree_code"] for row in rows],
            "sex": [_sex(row) for row in rows],
            "race": [_race(row) for row in rows],
            "grade": [row.values["histological_grade"] for row in rows],
        },
    )  # fmt: skip
    return pack_tcga(cohorts, plan)


# ---------------------------------------------------------------------------------------------------------- genes
def _modality(path: Path, key: str, dtype: type) -> Modality:
    """One npz file: values [n, genes], genes, case_id."""
    if not zipfile.is_zipfile(path):  # np.load would try other formats, and speak of pickle
        raise ValueError(f"{path} is truncated or no npz archive: copy it again")
    try:
        with np.load(path, allow_pickle=False) as archive:
            held = list(archive)
            absent = [name for name in (key, "genes", "case_id") if name not in held]
            if not absent:
                values, genes, cases = archive[key], archive["genes"], archive["case_id"]
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError) as error:
        raise ValueError(f"{path} is damaged, or holds other than plain arrays ({error}): copy it again") from error
    if absent:
        raise ValueError(f"{path} lacks {', '.join(absent)}; it holds {', '.join(held)}: {_CURE}")
    if values.shape != (len(cases), len(genes)) or values.dtype.kind not in "iuf":
        raise ValueError(f"{path}: {key} must be numbers [{len(cases)}, {len(genes)}], not {values.dtype} "
                         f"{list(values.shape)}: {_CURE}")  # fmt: skip
    if len(set(cases.tolist())) != len(cases) or len(set(genes.tolist())) != len(genes):
        raise ValueError(f"{path}: a patient or a gene occurs twice: {_CURE}")
    return Modality(cases.tolist(), genes.tolist(), values.astype(dtype))


def _mutations(
    folder: Path, patients: Sequence[str], cohort: Sequence[str], which: MutationGenes
) -> tuple[Modality, list[str]]:
    """The mutation table of all cohorts without TP53, which is the label, and that label of each patient."""
    tables = {
        name: _modality(find_file(folder, (f"mut_{name.lower()}.npz",), _CURE), "mut", np.float16)
        for name in sorted(set(cohort))
    }
    for name, table in tables.items():
        if not np.isin(table.values, (0, 1)).all():
            raise ValueError(f"mut_{name.lower()}.npz: mut must be 0 or 1: {_CURE}")
        if _GENE not in table.columns:
            raise ValueError(f"mut_{name.lower()}.npz lacks {_GENE}, the gene of the label tp53: {_CURE}")
    mutated = {
        patient: TP53[int(value)]
        for table in tables.values()
        for patient, value in zip(table.patients, table.values[:, list(table.columns).index(_GENE)], strict=True)
    }
    sets = [set(table.columns) for table in tables.values()]
    genes = sorted((set.union(*sets) if which == "union" else set.intersection(*sets)) - {_GENE})
    parts = [_reordered(table, genes) for table in tables.values()]
    merged = Modality([p for part in parts for p in part.patients], genes, np.concatenate([p.values for p in parts]))
    return merged, [mutated.get(patient, "") for patient in patients]


def _reordered(table: Modality, genes: Sequence[str]) -> Modality:
    """The table with these columns; NaN for genes that it lacks."""
    place = {gene: k for k, gene in enumerate(table.columns)}
    values = np.full((len(table.patients), len(genes)), np.nan, np.float16)
    held = [k for k, gene in enumerate(genes) if gene in place]
    values[:, held] = table.values[:, [place[genes[k]] for k in held]]
    return replace(table, columns=genes, values=values)


# ------------------------------------------------------------------------------------------------------- clinical
def _clinical(rows: Sequence[Row]) -> Modality:
    """age (years), is_female, one column for each race, grade (1 to 4). Neither stage nor survival."""
    plain = np.asarray([[_number(row, "age"), _number(row, "is_female"), _grade(row)] for row in rows], np.float32)
    race = one_hot([_race(row) for row in rows], RACES)
    columns = ("age", "is_female", "grade", *(f"race_{name}" for name in RACES))
    return Modality([row.values["case_id"] for row in rows], columns, np.concatenate([plain, race], axis=1))


def _oncotree(rows: Sequence[Row]) -> Modality:
    """One column for each OncoTree code. It tells the cohort."""
    codes = [row.values["oncotree_code"] for row in rows]
    classes = sorted(set(codes) - {""})
    return Modality([row.values["case_id"] for row in rows], classes, one_hot(codes, classes))


def _number(row: Row, column: str) -> float:
    cell = row.values[column]
    try:
        return float(cell) if cell else np.nan
    except ValueError:
        raise ValueError(f"{row.where}: {column} is {cell!r}, not a number: {_CURE}") from None


def _grade(row: Row) -> float:
    cell = row.values["histological_grade"]
    grades: Mapping[str, float] = {"": np.nan, "G1": 1, "G2": 2, "G3": 3, "G4": 4}
    if cell not in grades:
        raise ValueError(f"{row.where}: histological_grade is {cell!r}: G1 to G4 or nothing was expected")
    return grades[cell]


def _sex(row: Row) -> str:
    value = _number(row, "is_female")
    return "" if np.isnan(value) else "female" if value else "male"


def _race(row: Row) -> str:
    try:
        return race_of(row.values["race"])
    except ValueError as error:
        raise ValueError(f"{row.where}: {error}") from None


def _note(mutation_genes: MutationGenes) -> str:
    genes = (
        "each cohort's table has genes of its own, and genes that it lacks are NaN, not unmutated (packed with "
        "--mutation-genes union)"
        if mutation_genes == "union"
        else "the genes that every cohort's table has"
    )
    return (
        f"mrna: z-scores with a heavy tail. cnv: GISTIC -2 to 2, not for LUSC. mutation: 0 or 1; {genes}; without "
        "TP53, which is the label tp53. clinical: age, sex, grade (LIHC alone), race; neither stage nor survival. "
        "oncotree: one column a tumour type, which tells the cohort."
    )
