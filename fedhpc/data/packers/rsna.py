"""RSNA Pneumonia Detection Challenge 2018, stage 2 (Shih et al., Radiology: AI 2019): boxes become masks.

Folder, as Kaggle unpacks it: stage_2_train_labels.csv (a line a box), stage_2_detailed_class_info.csv and
stage_2_train_images/<patientId>.dcm; PNG or JPEG of the same names are read as well.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from fedhpc.data.images import encode_png
from fedhpc.data.packers.dicom import read_header, require_pydicom
from fedhpc.data.packers.official import Options, converted, find_file, hash_split, thin
from fedhpc.data.packers.progress import track
from fedhpc.data.packers.source import BadRow, Row, Skipped, iter_table
from fedhpc.data.packers.table import PackReport, TablePlan, pack_rows

_SOURCE = (
    "RSNA Pneumonia Detection Challenge 2018 (Kaggle; Shih et al., Radiology: Artificial Intelligence 2019), pictures "
    "of NIH ChestX-ray (Wang et al., CVPR 2017; the NIH Clinical Center is acknowledged)"
)
_LICENCE = "Kaggle competition rules of the RSNA: non-commercial and academic use, no redistribution"
_CURE = "give the folder that holds stage_2_train_labels.csv, stage_2_detailed_class_info.csv and stage_2_train_images/"
_CLASSES = ("Normal", "No Lung Opacity / Not Normal", "Lung Opacity")
_BOX = ("x", "y", "width", "height")
_SIZE = 1024  # px: every picture of the challenge is 1024 x 1024
_TAGS = ("ViewPosition", "PatientSex", "PatientAge", "Rows", "Columns")
_IMAGES = "stage_2_train_images"

Box = tuple[float, float, float, float]  # x, y (of the upper left corner), width, height in px


class BoxMasks:
    """A mask drawn from each row's boxes; rows without boxes share an empty one."""

    def __init__(self, boxes: dict[str, list[Box]]) -> None:
        self._boxes = boxes

    def key(self, row: Row) -> str:
        return row.values["id"] if self._boxes.get(row.values["id"]) else ""

    def read(self, key: str | int, row: Row) -> bytes:
        mask = np.zeros((_SIZE, _SIZE, 1), np.uint8)
        for x, y, width, height in self._boxes.get(str(key), ()):
            mask[round(y) : round(y + height), round(x) : round(x + width)] = 255
        return encode_png(mask)

    def stamp(self, key: str | int, row: Row) -> str:
        return str(self._boxes.get(str(key), ()))


def pack_rsna(
    folder: Path, out: Path, options: Options, *, split: tuple[float, float, float] = (0.7, 0.15, 0.15),
    mappings: Path | None = None,
) -> PackReport:  # fmt: skip
    """Pack the labelled pictures (stage 2, train), split by a hash of the patient: Kaggle publishes no split.

    mappings: pneumonia-challenge-dataset-mappings_2018.json of the RSNA, which names the NIH patients: patientId of
    Kaggle names pictures, and one patient may have several. Raises ValueError, FileNotFoundError.
    """
    table = find_file(folder, ("stage_2_train_labels.csv",), _CURE)
    classes = _class_of(find_file(folder, ("stage_2_detailed_class_info.csv",), _CURE))
    if not (folder / _IMAGES).is_dir():
        raise FileNotFoundError(f"{folder} holds no folder {_IMAGES}: {_CURE}")
    skipped = Skipped(options.skip_bad)
    firsts, boxes = _read_boxes(table, skipped)
    patients = _patients(mappings) if mappings is not None else {}

    def convert(row: Row) -> Row:
        return _row(row, folder, classes, patients if mappings is not None else None, split, options.random_seed)

    rows = converted(track(thin(firsts, options.limit), "headers"), convert, skipped)
    if not rows:
        raise ValueError(f"{table}: every row was dropped ({dict(skipped.counts)}); nothing is left to pack")
    note = (
        "Masks are the filled boxes of radiologists around lung opacities, not outlines; pictures without a box have "
        f"an empty mask. Split {','.join(map(str, split))} drawn by a hash of the patient, seed {options.random_seed}. "
        + ("Patients are those of the NIH." if mappings is not None else
           "Patients are unknown: patientId of Kaggle names pictures, so one patient may be in two splits; "
           "--mappings tells them apart.")
        + " view, sex and tabular/demographics come from DICOM headers, and are missing for PNG and JPEG."
    )  # fmt: skip
    plan = TablePlan(
        table=table, out=out, name="rsna-pneumonia", source=_SOURCE, licence=_LICENCE, version="stage 2", note=note,
        channels=1, image_column="path", image_root=folder / _IMAGES, masks=BoxMasks(boxes),
        labels=("pneumonia", "class", "view", "sex"),
        classes={"pneumonia": ("absent", "present"), "class": _CLASSES}, tabular={"demographics": ("sex_male", "age")},
        site_column="site", patient_column="patient", id_column="id", split_column="split", **options.plan(),
    )  # fmt: skip
    return pack_rows(rows, plan, skipped)


def _class_of(table: Path) -> dict[str, str]:
    return {
        row.values["patientId"]: row.values["class"]
        for row in iter_table(table, [("rsna", "patientId"), ("rsna", "class")])
    }


def _read_boxes(table: Path, skipped: Skipped) -> tuple[list[Row], dict[str, list[Box]]]:
    """The first line of each picture, and the boxes of those that have some."""
    firsts: dict[str, Row] = {}
    boxes: dict[str, list[Box]] = {}
    for row in iter_table(table, [("rsna", name) for name in ("patientId", *_BOX, "Target")]):
        name = row.values["patientId"]
        try:
            box = _box(row)
        except BadRow as error:
            skipped.take(error)
            continue
        if name in firsts and (box is None or name not in boxes):
            skipped.take(BadRow("bad box", f"{row.where}: {name} has Target 0 and 1: correct one of its lines"))
            continue
        firsts.setdefault(name, row)
        if box is not None:
            boxes.setdefault(name, []).append(box)
    return list(firsts.values()), boxes


def _box(row: Row) -> Box | None:
    if row.values["Target"] == "0":
        return None
    try:
        x, y, width, height = (float(row.values[name]) for name in _BOX)
    except ValueError:
        raise BadRow("bad box", f"{row.where}: Target is {row.values['Target']!r}, but the box is not four numbers: 0, "
                     "or 1 with x, y, width, height were expected") from None  # fmt: skip
    inside = x >= 0 and y >= 0 and width > 0 and height > 0 and x + width <= _SIZE and y + height <= _SIZE
    if row.values["Target"] != "1" or not inside:
        raise BadRow("bad box", f"{row.where}: Target {row.values['Target']} with the box {x:g},{y:g},{width:g},"
                     f"{height:g}: 1 and a box within {_SIZE} px were expected")  # fmt: skip
    return x, y, width, height


def _row(
    row: Row, folder: Path, classes: dict[str, str], patients: dict[str, str] | None,
    split: tuple[float, float, float], random_seed: int,
) -> Row:  # fmt: skip
    name = row.values["patientId"]
    if classes.get(name) not in _CLASSES:
        raise BadRow("no class", f"{row.where}: {name} has class {classes.get(name)!r} in stage_2_detailed_class_info"
                     f".csv: one of {', '.join(_CLASSES)} was expected")  # fmt: skip
    if patients is not None and name not in patients:
        raise BadRow("no NIH patient", f"{row.where}: {name} is not in the file of --mappings")
    patient = name if patients is None else patients[name]
    path = next((f"{name}{end}" for end in (".dcm", ".png", ".jpg", ".jpeg") if (folder / _IMAGES / f"{name}{end}")
                 .exists()), f"{name}.dcm")  # fmt: skip
    header = _header(folder / _IMAGES / path)
    if header["Rows"] != header["Columns"]:
        raise BadRow("not square", f"{row.where}: {path} is {header['Columns']}x{header['Rows']}, but boxes refer to "
                     f"the whole {_SIZE}x{_SIZE} picture: convert the DICOM file without cropping")  # fmt: skip
    sex = header["PatientSex"] if header["PatientSex"] in ("M", "F") else ""
    age = header["PatientAge"].rstrip("Y")
    return Row(
        {
            "id": name, "path": path, "patient": patient, "site": "nih_clinical_center",
            "pneumonia": "present" if row.values["Target"] == "1" else "absent", "class": classes[name],
            "view": header["ViewPosition"], "sex": sex, "sex_male": {"M": "1", "F": "0"}.get(sex, ""),
            "age": age if age.isdigit() else "", "split": hash_split(patient, split, random_seed),
        },
        row.where, row.index,
    )  # fmt: skip


def _header(path: Path) -> dict[str, str]:
    """The tags of a DICOM file; of other pictures only the size. Empty where the picture cannot be read: that is told
    when its pixels are."""
    if path.suffix == ".dcm":
        require_pydicom()
        return read_header(path, _TAGS)
    header = dict.fromkeys(_TAGS, "")
    try:
        with Image.open(path) as picture:
            header |= {"Rows": str(picture.height), "Columns": str(picture.width)}
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        pass
    return header


def _patients(mappings: Path) -> dict[str, str]:
    """NIH patient of each picture: img_id is <patient>_<number>.png."""
    if not mappings.is_file():
        raise FileNotFoundError(f"{mappings} does not exist: --mappings takes pneumonia-challenge-dataset-mappings_2018"
                                ".json of the RSNA")  # fmt: skip
    try:
        entries = json.loads(mappings.read_text(encoding="utf-8"))
        return {entry["subset_img_id"]: f"nih-{int(entry['img_id'].split('_')[0])}" for entry in entries}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{mappings} is no list of entries with subset_img_id and img_id ({error!r}): give "
                         "pneumonia-challenge-dataset-mappings_2018.json of the RSNA") from error  # fmt: skip
