"""CheXpert v1.0 and v1.0-small (Irvin et al., AAAI 2019): chest X-rays of Stanford Hospital, no text.

Folder: train.csv, valid.csv, and train/ and valid/ with patient00001/study1/view1_frontal.jpg.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from fedhpc.data.packers.labeler import LABELS, LabelRule
from fedhpc.data.packers.official import Options, carve_val, converted, find_file, thin, with_values
from fedhpc.data.packers.source import BadRow, Row, Skipped, iter_table
from fedhpc.data.packers.table import PackReport, TablePlan, pack_rows

ValidAs = Literal["test", "val"]

_SOURCE = "CheXpert {version} (Irvin et al., AAAI 2019), Stanford Hospital"
_LICENCE = "Stanford University Dataset Research Use Agreement: no redistribution, this file included"
_CURE = (
    "give the folder of CheXpert-v1.0 or CheXpert-v1.0-small with train.csv, valid.csv, train/ and valid/ (merge the "
    "batches of v1.0 into one)"
)
_COLUMNS = ("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA")
_PATH = re.compile(r"(?:^|/)((?:train|valid)/(patient\d+)/.+)$")
_SEX = {"Male": ("M", "1"), "Female": ("F", "0"), "Unknown": ("", ""), "": ("", "")}


def pack_chexpert(
    folder: Path, out: Path, options: Options, *, rule: LabelRule | None = None, lateral: bool = False,
    valid_as: ValidAs = "test", val_fraction: float = 0.1,
) -> PackReport:  # fmt: skip
    """Pack the frontal pictures, or all with `lateral`; the patient is read from the path.

    valid_as: the split that valid.csv becomes. As test, `val_fraction` of the training patients, drawn by hash, are
    val; as val there is no test split. Raises ValueError, FileNotFoundError.
    """
    if valid_as == "val" and val_fraction:
        raise ValueError(f"--valid-as val makes valid.csv the validation split, but --val-fraction is {val_fraction}: "
                         "set --val-fraction 0")  # fmt: skip
    rule = rule or LabelRule()
    skipped = Skipped(options.skip_bad)
    wanted = [("chexpert", name) for name in (*_COLUMNS, *LABELS)]
    rows: list[Row] = []
    for name, split in (("train.csv", "train"), ("valid.csv", valid_as)):
        table = find_file(folder, (name,), _CURE)
        rows += [
            with_values(row, {"split": split})
            for row in iter_table(table, wanted)
            if lateral or row.values["Frontal/Lateral"] == "Frontal"
        ]

    def convert(row: Row) -> Row:
        return _row(row, rule, val_fraction, options.random_seed)

    rows = converted(thin(rows, options.limit), convert, skipped)
    if not rows:
        raise ValueError(f"{folder}: no picture is left ({dict(skipped.counts)}); set --lateral for lateral views")
    version = "v1.0-small" if "small" in rows[0].values["Path"].split("/")[0] else "v1.0"
    plan = TablePlan(
        table=folder / "train.csv", out=out, name="chexpert", source=_SOURCE.format(version=version), licence=_LICENCE,
        version=version, note=_note(rule, lateral, valid_as, val_fraction, options.random_seed), channels=1,
        image_column="path", image_root=folder,
        labels=(*rule.label_classes(), "view", "sex"), classes=rule.label_classes(),
        tabular={"demographics": ("sex_male", "age")}, site_column="site", patient_column="patient", id_column="path",
        split_column="split", **options.plan(),
    )  # fmt: skip
    return pack_rows(rows, plan, skipped)


def _row(row: Row, rule: LabelRule, val_fraction: float, random_seed: int) -> Row:
    cell = row.values
    found = _PATH.search(cell["Path"])
    if found is None:
        raise BadRow("bad path", f"{row.where}: Path is {cell['Path']!r}: .../train/patient00001/... was expected")
    if cell["Sex"] not in _SEX:
        raise BadRow("bad sex", f"{row.where}: Sex is {cell['Sex']!r}: Male, Female or Unknown were expected")
    path, patient = found.groups()
    sex, sex_male = _SEX[cell["Sex"]]
    return with_values(row, {
        "path": path, "patient": patient, "sex": sex, "sex_male": sex_male, "age": cell["Age"], "site": "stanford",
        "view": "lateral" if cell["Frontal/Lateral"] == "Lateral" else cell["AP/PA"],
        "split": carve_val(cell["split"], patient, val_fraction, random_seed), **rule.apply(cell, row),
    })  # fmt: skip


def _note(rule: LabelRule, lateral: bool, valid_as: ValidAs, val_fraction: float, random_seed: int) -> str:
    split = (
        f"valid.csv, whose labels are those of radiologists, is the test split; {val_fraction:g} of the training "
        f"patients, drawn by hash (seed {random_seed}), are val."
        if valid_as == "test"
        else "valid.csv is the val split; there is no test split."
    )
    views = "Frontal and lateral views." if lateral else "Frontal views only."
    return f"{views} {split} One hospital: clients come from partition by label. {rule.note} sex_male is 1 or 0."
