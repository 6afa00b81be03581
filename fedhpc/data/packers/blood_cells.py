"""White blood cells of two labs, the data of MDH-FL: INT_20 and Matek_19, each a folder of class folders.

INT_20 (Munich Leukemia Laboratory): 01-NORMO/10-025377.PB.PAP~C.1-213.TIF, ... (18 classes); a name begins with the
case. Matek_19 (AML-Cytomorphology_LMU of TCIA): BAS/BAS_0001.tiff, ... (15 classes); names tell no patient.
Both get the 13 classes that Salehi et al. (MICCAI 2022) and MDH-FL compare them by.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from fedhpc.data.images import decode_image
from fedhpc.data.packers.official import Options, converted, hash_split, thin
from fedhpc.data.packers.source import BadRow, Row, Skipped
from fedhpc.data.packers.table import PackReport, TablePlan, pack_rows

Fractions = tuple[float, float, float]

CELL_TYPES = (
    "basophil", "eosinophil", "erythroblast", "myeloblast", "promyelocyte", "myelocyte", "metamyelocyte",
    "neutrophil_banded", "neutrophil_segmented", "monocyte", "lymphocyte_typical", "lymphocyte_atypical",
    "smudge_cell",
)  # fmt: skip
# Class folder -> cell type; "" where the other set has no such class.
_INT_20 = {
    "01-NORMO": "erythroblast", "04-LGL": "", "05-MONO": "monocyte", "08-LYMPH-neo": "lymphocyte_atypical",
    "09-BASO": "basophil", "10-EOS": "eosinophil", "11-STAB": "neutrophil_banded",
    "12-LYMPH-reaktiv": "lymphocyte_atypical", "13-MYBL": "myeloblast", "14-LYMPH-typ": "lymphocyte_typical",
    "15-SEG": "neutrophil_segmented", "16-PLZ": "", "17-Kernschatten": "smudge_cell", "18-PMYEL": "promyelocyte",
    "19-MYEL": "myelocyte", "20-Meta": "metamyelocyte", "21-Haarzelle": "", "22-Atyp-PMYEL": "",
}  # fmt: skip
_MATEK_19 = {
    "BAS": "basophil", "EBO": "erythroblast", "EOS": "eosinophil", "KSC": "smudge_cell", "LYA": "lymphocyte_atypical",
    "LYT": "lymphocyte_typical", "MMZ": "metamyelocyte", "MOB": "monocyte", "MON": "monocyte", "MYB": "myelocyte",
    "MYO": "myeloblast", "NGB": "neutrophil_banded", "NGS": "neutrophil_segmented", "PMB": "", "PMO": "promyelocyte",
}  # fmt: skip
_ENDINGS = {".tif", ".tiff", ".png", ".jpg", ".jpeg", ".bmp"}
_CASE = re.compile(r"^(\d+-\d+)\.")  # of INT_20: year and number


@dataclass(frozen=True)
class _Archive:
    classes: dict[str, str]
    source: str
    licence: str
    cure: str
    patients: str  # for the note


_ARCHIVES = {
    "int-20": _Archive(
        _INT_20,
        "INT_20, Munich Leukemia Laboratory (Salehi et al., MICCAI 2022; Madni, Umer, Foresti, MDH-FL 2023)",
        "not published: the terms under which the Munich Leukemia Laboratory gave it to you, this file included",
        "give the folder that holds 01-NORMO/, 05-MONO/, ..., 22-Atyp-PMYEL/ (INT_20 is not public: ask its authors)",
        "A patient is the case that a file's name begins with.",
    ),
    "matek-19": _Archive(
        _MATEK_19,
        "Matek_19: AML-Cytomorphology_LMU (Matek et al., Nature Machine Intelligence 2019; TCIA, "
        "doi:10.7937/tcia.2019.36f5o9ld)",
        "CC BY 3.0, and the data usage policy of TCIA",
        "give the folder that holds BAS/, EBO/, ..., PMO/ (AML-Cytomorphology_LMU of cancerimagingarchive.net)",
        "The archive does not say which patient a cell is of: each picture counts as one, so cells of one patient may "
        "be in two splits.",
    ),
}


class CentrePictures:
    """Pictures below a folder, cut to their central `crop` x `crop` px (0: whole). Larger ones lose their rim."""

    def __init__(self, root: Path, crop: int) -> None:
        self.root, self.crop = root, crop

    def key(self, row: Row) -> str:
        return row.values["path"]

    def read(self, key: str | int, row: Row) -> bytes:
        path = self.root / str(key)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise BadRow("missing picture", f"{row.where} cannot be read ({error.strerror}): copy it again") from error
        if not self.crop:
            return data
        try:
            image = decode_image(data, 3)
        except ValueError as error:
            raise BadRow("unreadable picture", f"{row.where}: {error}: copy it again") from error
        top, left = (max(0, (side - self.crop) // 2) for side in image.shape[:2])
        image = image[top : top + self.crop, left : left + self.crop]
        header = f"P6 {image.shape[1]} {image.shape[0]} 255\n"  # PPM: no time is lost on compression
        return header.encode() + image.tobytes()

    def stamp(self, key: str | int, row: Row) -> str:
        """Another text when the picture or its crop has changed."""
        try:
            status = (self.root / str(key)).stat()
        except OSError:
            return "missing"
        return f"{self.crop} {status.st_size} {status.st_mtime_ns}"


def pack_blood_cells(
    name: str, folder: Path, out: Path, options: Options, *, crop: int = 288, keep_unknown: bool = False,
    split: Fractions = (0.7, 0.1, 0.2),
) -> PackReport:  # fmt: skip
    """Pack `int-20` or `matek-19`; no split is published: it is drawn by a hash of the patient.

    crop: px of the centre that is kept before resizing, 0 for all (MDH-FL: 288). keep_unknown: also pack classes that
    are none of the 13, with cell_type missing. Raises ValueError, FileNotFoundError.
    """
    archive = _ARCHIVES[name]
    root = _root(folder, archive)
    skipped = Skipped(options.skip_bad)
    rows = _rows(root, archive)
    unknown = Counter(row.values["class"] for row in rows if not row.values["cell_type"])
    if not keep_unknown:
        rows = [row for row in rows if row.values["cell_type"]]

    def convert(row: Row) -> Row:
        patient = _patient(name, row)
        drawn = hash_split(patient, split, options.random_seed)
        return Row({**row.values, "patient": patient, "split": drawn}, row.where, row.index)

    rows = converted(thin(rows, options.limit), convert, skipped)
    if not rows:
        raise ValueError(f"{root}: no picture of the 13 cell types ({dict(skipped.counts)}): {archive.cure}")
    plan = TablePlan(
        table=root, out=out, name=name, source=archive.source, licence=archive.licence,
        note=_note(archive, unknown, crop, keep_unknown, split, options.random_seed), channels=3,
        images=CentrePictures(root, crop), labels=("cell_type", "class"),
        classes={"cell_type": CELL_TYPES, "class": tuple(archive.classes)}, patient_column="patient",
        id_column="path", split_column="split", **options.plan(),
    )  # fmt: skip
    return pack_rows(rows, plan, skipped)


def _root(folder: Path, archive: _Archive) -> Path:
    """The folder of the class folders: the one given, or one up to three levels below it."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder: {archive.cure}")
    level = [folder]
    for _ in range(4):
        found = [path for path in level if any((path / name).is_dir() for name in archive.classes)]
        if len(found) > 1:
            raise ValueError(f"{', '.join(map(str, found))} hold class folders: give the one that is meant")
        if found:
            return found[0]
        level = sorted(sub for path in level for sub in path.iterdir() if sub.is_dir())
    raise FileNotFoundError(f"{folder} holds none of the class folders {', '.join(archive.classes)}: {archive.cure}")


def _rows(root: Path, archive: _Archive) -> list[Row]:
    rows: list[Row] = []
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        pictures = sorted(path for path in folder.iterdir() if path.suffix.lower() in _ENDINGS)
        if pictures and folder.name not in archive.classes:
            raise ValueError(f"{folder} holds pictures, but is none of the classes {', '.join(archive.classes)}: move "
                             "it away, or correct its name")  # fmt: skip
        for path in pictures:
            values = {
                "path": path.relative_to(root).as_posix(), "class": folder.name,
                "cell_type": archive.classes[folder.name],
            }  # fmt: skip
            rows.append(Row(values, str(path), len(rows)))
    if not rows:
        raise FileNotFoundError(f"{root}: its class folders hold no pictures ({', '.join(sorted(_ENDINGS))})")
    return rows


def _patient(name: str, row: Row) -> str:
    if name == "matek-19":
        return row.values["path"]
    file = Path(row.values["path"]).name
    found = _CASE.match(file)
    if found is None:
        raise BadRow("no case", f"{row.where}: its name does not begin with a case, as 10-025377.PB.PAP~C.1-213.TIF "
                     "does: correct it, else cells of one patient could be in two splits")  # fmt: skip
    return found.group(1)


def _note(
    archive: _Archive, unknown: Counter[str], crop: int, keep_unknown: bool, split: Fractions, random_seed: int
) -> str:
    parts = ["cell_type: the 13 classes that INT_20 and Matek_19 share; class: the archive's own."]
    if unknown:
        counts = ", ".join(f"{name} {count}" for name, count in sorted(unknown.items()))
        parts.append(f"Of no such class and {'kept without cell_type' if keep_unknown else 'left out'}: {counts}.")
    parts.append(archive.patients)
    if crop:
        parts.append(f"Pictures were cut to their central {crop} px.")
    parts.append(f"Split {','.join(map(str, split))} drawn by a hash of the patient, seed {random_seed}.")
    return " ".join(parts)
