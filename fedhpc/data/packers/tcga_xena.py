"""The user's own TCGA: expression, copy number and mutation tables, clinical tables, histology features.

Folder: files a cohort, named <cohort>_<modality> (the layout of dgb-pcw-fl: brca_mrna.csv, brca_clinical.csv,
brca_image.csv, brca_stages.csv), or as Xena names its downloads (TCGA-BRCA.star_fpkm.tsv.gz, TCGA-BRCA.clinical.tsv.gz,
TCGA.BRCA.sampleMap_HiSeqV2.gz).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from fedhpc.data.packers.table import PackReport
from fedhpc.data.packers.tcga import TP53, Cohorts, Modality, TcgaPlan, pack_tcga
from fedhpc.data.packers.tcga_clinical import Words, clinical_features, has_stage, stages
from fedhpc.data.packers.tcga_tables import Dropped, read_numbers, read_words

_SOURCE = "TCGA (the TCGA Research Network is acknowledged), cohorts {cohorts}; files: {files}"
_LICENCE = "TCGA open-access tier, GDC policy: no identification of participants; and the terms of where you got it"
_FILE = re.compile(r"^(?:tcga[-.])?([a-z]{2,4})[._-](.+)$", re.IGNORECASE)
_ENDING = re.compile(r"(\.(csv|tsv|txt))?(\.gz)?$", re.IGNORECASE)
_WORDS = {  # modality -> what a file's name may hold behind the cohort
    "stages": ("stages",),
    "clinical": ("clinical", "phenotype"),
    "mrna": ("mrna", "fpkm", "tpm", "star_counts", "htseq_counts", "hiseqv2", "rnaseq", "rsem"),
    "cnv": ("cnv", "gistic", "ascat", "copy_number"),
    "mutation": ("mutation", "mc3_gene_level"),
    "histology": ("image", "histology"),
}
_GENES = ("mrna", "cnv", "mutation")
_NUMBERS = (*_GENES, "histology")
_TP53 = re.compile(r"^(TP53(\|\d+)?|ENSG00000141510(\.\d+)?)$", re.IGNORECASE)
_CURE = (
    "give a folder that holds for each cohort <cohort>_mrna and <cohort>_clinical, and where you have them "
    "<cohort>_cnv, <cohort>_mutation, <cohort>_image and <cohort>_stages (such as brca_mrna.csv; .csv, .tsv or .txt, "
    "gzip or not), or files under the names of Xena (TCGA-BRCA.star_fpkm.tsv.gz, TCGA-BRCA.clinical.tsv.gz); from "
    "https://xenabrowser.net or https://portal.gdc.cancer.gov"
)

Files = Mapping[str, Mapping[str, Path]]  # cohort -> modality -> file


def pack_tcga_folder(
    folder: Path, out: Path, *, cohorts: Sequence[str] = (), clinical_columns: Sequence[str] = (),
    stage_column: str | None = None, genes: Path | None = None, groups: int = 3,
    split: tuple[float, float, float] = (0.6, 0.2, 0.2), random_seed: int = 0, overwrite: bool = False,
    command: str = "",
) -> PackReport:  # fmt: skip
    """Pack every patient of any table; a modality has the features that every cohort with it has.

    cohorts: those to pack; none, all that the folder holds. clinical_columns: see `clinical_features`. genes: a file
    with names, one a line, of the mrna, cnv and mutation features that are kept. Raises ValueError, FileNotFoundError.
    """
    files = _files(folder, [name.upper() for name in cohorts])
    keep = _names(genes) if genes else None
    dropped, notes = Dropped(), list[str]()
    words = {
        (cohort, kind): Words(paths[kind], *read_words(paths[kind]))
        for cohort, paths in files.items()
        for kind in ("clinical", "stages")
        if kind in paths
    }
    clinical = [table for (_, kind), table in words.items() if kind == "clinical"]
    numbers = {
        (cohort, kind): read_numbers(paths[kind], dropped, keep if kind in _GENES else None)
        for cohort, paths in files.items()
        for kind in _NUMBERS
        if kind in paths
    }
    cohort_of = _cohorts({key: table.patients for key, table in (words | numbers).items()}, files)
    patients = sorted(cohort_of)
    modalities = {
        kind: _joined(kind, {cohort: table for (cohort, k), table in numbers.items() if k == kind}, notes)
        for kind in _NUMBERS
        if any(k == kind for _, k in numbers)
    }
    tp53, modalities = _tp53(modalities, patients)
    if clinical:
        modalities["clinical"] = clinical_features(clinical, clinical_columns)
        notes.append(f"clinical: {', '.join(modalities['clinical'].columns)}.")
    stage = _stage(words, stage_column)
    plan = TcgaPlan(
        out=out, name="tcga", licence=_LICENCE, command=command, groups=groups, split=split, random_seed=random_seed,
        overwrite=overwrite, note=_note(dropped, notes, bool(tp53)),
        source=_SOURCE.format(
            cohorts=", ".join(files), files=", ".join(path.name for paths in files.values() for path in paths.values())
        ),
    )  # fmt: skip
    whole = Cohorts(
        patients=patients, cohort=[cohort_of[patient] for patient in patients],
        stage=[stage.get(patient, "") for patient in patients], modalities=modalities, tp53=tp53,
    )  # fmt: skip
    return pack_tcga(whole, plan)


# ---------------------------------------------------------------------------------------------------------- files
def _files(folder: Path, cohorts: Sequence[str]) -> Files:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder: {_CURE}")
    found: dict[str, dict[str, Path]] = {}
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        kind = _kind(path.name)
        if kind is None:
            continue
        cohort, modality = kind
        if cohorts and cohort not in cohorts:
            continue
        if modality in found.setdefault(cohort, {}):
            raise ValueError(f"{folder}: {found[cohort][modality].name} and {path.name} are both {modality} of "
                             f"{cohort}: keep the one that is meant")  # fmt: skip
        found[cohort][modality] = path
    lacking = [name for name in cohorts if name not in found]
    if lacking:
        raise FileNotFoundError(f"{folder} holds no file of {', '.join(lacking)} (--cohorts): {_CURE}")
    if not found:
        raise FileNotFoundError(f"{folder} holds no table of TCGA: {_CURE}")
    for cohort, paths in found.items():
        if not any(kind in paths for kind in (*_NUMBERS, "clinical")):
            raise FileNotFoundError(f"{folder} holds {', '.join(p.name for p in paths.values())} of {cohort}, but no "
                                    f"modality: {_CURE}")  # fmt: skip
    return found


def _kind(name: str) -> tuple[str, str] | None:
    """Cohort and modality that a file's name tells; None where it tells none."""
    match = _FILE.match(name)
    if match is None or not _ENDING.search(name):
        return None
    rest = match.group(2).lower()
    kinds = [kind for kind, words in _WORDS.items() if any(word in rest for word in words)]
    return (match.group(1).upper(), kinds[0]) if kinds else None


def _names(path: Path) -> set[str]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: --genes takes a text file with the name of a gene a line")
    names = {line.strip() for line in path.read_text(encoding="utf-8").splitlines()} - {""}
    if not names:
        raise ValueError(f"{path} is empty: --genes takes a text file with the name of a gene a line")
    return names


# --------------------------------------------------------------------------------------------------------- joining
def _cohorts(patients: Mapping[tuple[str, str], Sequence[str]], files: Files) -> dict[str, str]:
    out: dict[str, str] = {}
    for (cohort, kind), names in patients.items():
        for patient in names:
            if out.setdefault(patient, cohort) != cohort:
                raise ValueError(f"{files[cohort][kind]} has {patient}, who is in a table of {out[patient]} too: keep "
                                 "each patient in one cohort")  # fmt: skip
    return out


def _joined(kind: str, parts: Mapping[str, Modality], notes: list[str]) -> Modality:
    """The cohorts' tables one below the other, with the features that all have, in the order of the first."""
    first, *others = parts.values()
    shared: Collection[str] = set.intersection(*({*part.columns} for part in parts.values()))
    columns = [name for name in first.columns if name in shared]
    if not columns:
        raise ValueError(f"{kind}: the tables of {', '.join(parts)} share no feature ({first.columns[0]}, ... and "
                         f"{others[0].columns[0]}, ...): give tables with the same names of genes")  # fmt: skip
    every = set[str]().union(*(part.columns for part in parts.values()))
    if len(every) > len(columns):
        notes.append(f"{kind}: {len(columns)} features that all cohorts have, of {len(every)}.")
    values = [part.values[:, _places(part.columns, columns)] for part in parts.values()]
    return Modality([p for part in parts.values() for p in part.patients], columns, np.concatenate(values))


def _places(held: Sequence[str], wanted: Sequence[str]) -> list[int]:
    place = {name: k for k, name in enumerate(held)}
    return [place[name] for name in wanted]


def _tp53(modalities: Mapping[str, Modality], patients: Sequence[str]) -> tuple[list[str], dict[str, Modality]]:
    """The label of each patient, and the modalities without that gene; no label where no mutation table has it."""
    out = dict(modalities)
    table = out.get("mutation")
    at = [k for k, name in enumerate(table.columns) if _TP53.match(name)] if table else []
    if table is None or not at:
        return [], out
    value = dict(zip(table.patients, table.values[:, at[0]].tolist(), strict=True))
    kept = [k for k in range(len(table.columns)) if k not in at]
    del out["mutation"]
    if kept:
        out["mutation"] = Modality(table.patients, [table.columns[k] for k in kept], table.values[:, kept])
    known = [value.get(patient, np.nan) for patient in patients]
    return ["" if np.isnan(v) else TP53[int(v > 0)] for v in known], out


def _stage(words: Mapping[tuple[str, str], Words], column: str | None) -> dict[str, str]:
    """Stage of the patients whose stage is known: of <cohort>_stages where there is one, else of the clinical table."""
    out: dict[str, str] = {}
    cohorts = dict.fromkeys(cohort for cohort, _ in words)
    for cohort in cohorts:
        own, clinical = words.get((cohort, "stages")), words.get((cohort, "clinical"))
        table = own or clinical
        assert table is not None
        if own is None and column is None and not has_stage(table):
            raise ValueError(f"{table.path} has no column of stages, and there is no {cohort.lower()}_stages: add that "
                             "file, or set --stage-column")  # fmt: skip
        found = stages(table, None if own else column)
        out |= {patient: stage for patient, stage in zip(table.patients, found, strict=True) if stage}
    if not out:
        raise ValueError("no patient has a stage I to IV: give <cohort>_stages, or a clinical table with a column of "
                         "stages such as 'Stage IIA' (--stage-column)")  # fmt: skip
    return out


def _note(dropped: Dropped, notes: Sequence[str], tp53: bool) -> str:
    parts = list(notes)
    if tp53:
        parts.append("The label tp53 is the mutation table's TP53, which is no feature.")
    parts += [f"Left out: {count} {reason}." for reason, count in sorted(dropped.counts.items())]
    parts.append("Stages other than I to IV (X, 0, not reported) are missing.")
    return " ".join(parts)
