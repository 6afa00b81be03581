"""MESSIDOR (Decenciere et al., Image Analysis and Stereology 2014) and MESSIDOR-2: fundus photographs, three hospitals.

MESSIDOR: Annotation_Base11.xls to Annotation_Base34.xls (or .xlsx, .csv), pictures in Base11/ ... or beside them.
MESSIDOR-2: messidor_data.csv (adjudicated grades, Krause et al. 2018), messidor-2.csv (pairs of eyes), IMAGES/.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

from fedhpc.data.packers.official import Options, code_of, converted, find_file, hash_split, thin, with_values
from fedhpc.data.packers.progress import track
from fedhpc.data.packers.sheets import read_sheet
from fedhpc.data.packers.source import BadRow, Row, Skipped, iter_table, read_table, require_columns
from fedhpc.data.packers.table import PackReport, TablePlan, pack_rows

Fractions = tuple[float, float, float]

_FIRST = (
    "MESSIDOR (Decenciere et al. 2014), kindly provided by the Messidor program partners "
    "(adcis.net/en/third-party/messidor)"
)
_SECOND = (
    "MESSIDOR-2 (Decenciere et al. 2014; Abramoff et al. 2013, adcis.net/en/third-party/messidor2), grades adjudicated "
    "by retina specialists (Krause et al., Ophthalmology 2018)"
)
_LICENCE = "research and education only, after registration with the Messidor consortium; no redistribution"
_ENDINGS = (".tif", ".tiff", ".png", ".jpg", ".jpeg")
_HOSPITALS = {"lariboisi": "lariboisiere_paris", "etienne": "chu_saint_etienne", "brest": "latim_chu_brest"}
_CURE = (
    "give the folder with Annotation_Base11.xls ... and the pictures, or with messidor_data.csv, messidor-2.csv and "
    "IMAGES/ of MESSIDOR-2"
)


def pack_messidor(
    folder: Path, out: Path, options: Options, *, split: Fractions = (0.7, 0.1, 0.2), pairs: Path | None = None,
    unpaired: bool = False,
) -> PackReport:  # fmt: skip
    """Pack MESSIDOR, or MESSIDOR-2 where `folder` holds messidor_data.csv; split by a hash of the patient.

    pairs: messidor-2.csv (left;right), which says what two pictures are one patient; MESSIDOR-2 needs it, or
    `unpaired`, which takes every picture for a patient. Pictures of equal bytes are one patient in any case.
    Raises ValueError, FileNotFoundError.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder: {_CURE}")
    if pairs is not None and unpaired:
        raise ValueError("--pairs and --unpaired are both set: choose one")
    second = (folder / "messidor_data.csv").is_file()
    if second and pairs is None and not unpaired:
        cure = "add it (it comes with MESSIDOR-2), name it with --pairs, or set --unpaired: eyes may then be parted"
        pairs = find_file(folder, ("messidor-2.csv",), cure)
    mate = _mates(pairs) if pairs is not None else {}
    pictures = _pictures(folder)
    skipped = Skipped(options.skip_bad)
    raw = _second(folder / "messidor_data.csv") if second else _first(folder)
    build: Callable[[Row], Row] = _second_row if second else _first_row

    def convert(row: Row) -> Row:
        made = build(row)
        name = made.values["id"]
        path = _find(made, pictures)
        return with_values(made, {"path": path, "patient": mate.get(_stem(name), _stem(name))})

    rows = converted(thin(raw, options.limit), convert, skipped)
    if not rows:
        raise ValueError(f"{folder}: every row was dropped ({dict(skipped.counts)}); nothing is left to pack")
    rows, copies = _join_copies(rows, folder)
    rows = [with_values(r, {"split": hash_split(r.values["patient"], split, options.random_seed)}) for r in rows]
    classes = (
        {"dr_grade": tuple("01234"), "macular_edema": ("absent", "present"), "gradable": ("no", "yes")}
        if second
        else {"dr_grade": tuple("0123"), "edema_risk": tuple("012")}
    )
    plan = TablePlan(
        table=folder / "messidor_data.csv" if second else folder, out=out, name="messidor-2" if second else "messidor",
        source=_SECOND if second else _FIRST, licence=_LICENCE, version="2" if second else "1",
        note=_note(second, bool(mate), copies, split, options.random_seed), channels=3, image_column="path",
        image_root=folder, labels=tuple(classes), classes=classes, site_column="site", patient_column="patient",
        id_column="id", split_column="split", **options.plan(),
    )  # fmt: skip
    return pack_rows(rows, plan, skipped)


def _stem(name: str) -> str:
    return Path(name).stem.lower()


# ------------------------------------------------------------------------------------------------- the two tables
def _first(folder: Path) -> list[Row]:
    """Rows of every Annotation_Base file."""
    files = sorted(p for p in folder.rglob("Annotation_Base*") if p.suffix.lower() in (".xls", ".xlsx", ".csv"))
    if not files:
        raise FileNotFoundError(f"{folder} holds no Annotation_Base*.xls: {_CURE}")
    bases = [file.stem for file in files]
    twice = [base for base in bases if bases.count(base) > 1]
    if twice:
        raise ValueError(f"{folder} holds {twice[0]} twice: keep one of {', '.join(map(str, files))}")
    rows: list[Row] = []
    columns = ("Image name", "Ophthalmologic department", "Retinopathy grade", "Risk of macular edema")
    for file in files:
        part = read_sheet(file)
        require_columns(file, part, [("messidor", name) for name in columns])
        base = file.stem.removeprefix("Annotation_")
        rows += [Row({**row.values, "base": base}, row.where, len(rows) + i) for i, row in enumerate(part)]
    return rows


def _first_row(row: Row) -> Row:
    cell = row.values
    department = cell["Ophthalmologic department"]
    site = next((name for word, name in _HOSPITALS.items() if word in department.lower()), "")
    if not site:
        site = re.sub(r"\W+", "_", department.lower()).strip("_")
    return Row({
        "id": cell["Image name"], "base": cell["base"], "site": site,
        "dr_grade": _grade(row, "Retinopathy grade", "0123"), "edema_risk": _grade(row, "Risk of macular edema", "012"),
    }, row.where, row.index)  # fmt: skip


def _second(table: Path) -> list[Row]:
    rows = read_table(table)
    names = ("image_id", "adjudicated_dr_grade", "adjudicated_dme", "adjudicated_gradable")
    require_columns(table, rows, [("messidor", name) for name in names])
    return rows


def _second_row(row: Row) -> Row:
    cell = row.values
    edema = {"0": "absent", "1": "present", "": ""}[_grade(row, "adjudicated_dme", "01")]
    return Row({
        "id": cell["image_id"], "base": "", "dr_grade": _grade(row, "adjudicated_dr_grade", "01234"),
        "macular_edema": edema, "gradable": {"0": "no", "1": "yes", "": ""}[_grade(row, "adjudicated_gradable", "01")],
        "site": "brest_extension" if cell["image_id"].upper().startswith("IM") else "messidor_original",
    }, row.where, row.index)  # fmt: skip


def _grade(row: Row, column: str, grades: str) -> str:
    cell = row.values[column]
    value = code_of(cell, {grade: grade for grade in grades}) if cell else ""
    if value is None:
        raise BadRow("bad grade", f"{row.where}: {column} is {cell!r}: {grades[0]} to {grades[-1]} or nothing was "
                     "expected")  # fmt: skip
    return value


# ------------------------------------------------------------------------------------- pictures, pairs and copies
def _pictures(folder: Path) -> dict[str, list[str]]:
    """Pictures below the folder, by lower-case stem: archives ship .tif, people convert them."""
    found: dict[str, list[str]] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in _ENDINGS:
            found.setdefault(path.stem.lower(), []).append(path.relative_to(folder).as_posix())
    if not found:
        raise FileNotFoundError(f"{folder} holds no pictures ({', '.join(_ENDINGS)}): {_CURE}")
    return found


def _find(row: Row, pictures: dict[str, list[str]]) -> str:
    name, base = row.values["id"], row.values["base"]
    if not name:
        raise BadRow("no picture", f"{row.where}: the row names no picture: fill in its image name")
    paths = pictures.get(_stem(name), [])
    inside = [path for path in paths if base and base.lower() in path.lower().split("/")[:-1]]
    paths = inside or paths
    if len(paths) != 1:
        held = f"{len(paths)} pictures ({', '.join(paths)})" if paths else "no picture"
        raise BadRow("missing picture" if not paths else "two pictures", f"{row.where}: the folder holds {held} of the "
                     f"name {name}: keep exactly one")  # fmt: skip
    return paths[0]


def _mates(table: Path) -> dict[str, str]:
    """Patient of each paired picture: the left one's name."""
    if not table.is_file():
        raise FileNotFoundError(f"{table} does not exist: --pairs takes messidor-2.csv of MESSIDOR-2")
    delimiter = ";" if ";" in table.read_text(encoding="utf-8-sig").split("\n", 1)[0] else ","
    rows = iter_table(table, [("--pairs", "left"), ("--pairs", "right")], delimiter=delimiter)
    return {_stem(row.values[eye]): _stem(row.values["left"]) for row in rows for eye in ("left", "right")}


def _join_copies(rows: list[Row], folder: Path) -> tuple[list[Row], int]:
    """Rows of equal pictures get one patient (Base33 holds some twice), and how many copies there are."""
    first: dict[str, str] = {}
    leader: dict[str, str] = {}
    copies = 0
    for row in track(rows, "copies"):
        path = folder / row.values["path"]
        digest = hashlib.sha256(path.read_bytes()).hexdigest() if path.stat().st_size else row.values["id"]
        patient = row.values["patient"]
        if digest in first:
            copies += 1
            leader[_root(leader, patient)] = _root(leader, first[digest])
        first.setdefault(digest, patient)
    leader = {patient: other for patient, other in leader.items() if patient != other}
    return [with_values(row, {"patient": _root(leader, row.values["patient"])}) for row in rows], copies


def _root(leader: dict[str, str], patient: str) -> str:
    while leader.get(patient, patient) != patient:
        patient = leader[patient]
    return patient


def _note(second: bool, paired: bool, copies: int, split: Fractions, random_seed: int) -> str:
    grades = (
        "dr_grade is the adjudicated ICDR grade 0-4, missing where the picture is not gradable."
        if second
        else "dr_grade is MESSIDOR's own grade 0-3 (not ICDR), edema_risk 0-2; later corrections are not applied. "
        "Sites are the ophthalmologic departments."
    )
    patients = (
        "Two eyes of one examination are one patient."
        if paired
        else "Patients are unknown: each picture counts as one, so two eyes of a patient may be in two splits."
    )
    return (
        f"Colour. {grades} {patients} {copies} pictures are copies of another, and go with it. Split "
        f"{','.join(map(str, split))} drawn by a hash of the patient, seed {random_seed}."
    )
