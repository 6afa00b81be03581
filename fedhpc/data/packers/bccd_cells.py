"""Blood cells of another lab (BCCD), 64 px RGB: domain shift for PBC, or a public set of MDH-FL.

Folder: metadata.csv (index, smear, label, wbc_type, and the box in its smear) and bccd64_jpeg.npz. Cells of one smear
are one patient here: the smear is all that is known of where a cell comes from.
"""

from __future__ import annotations

from pathlib import Path

from fedhpc.data.packers.official import with_values
from fedhpc.data.packers.source import BadRow, Row, Skipped, read_table, require_columns
from fedhpc.data.packers.table import PackReport, TablePlan, pack_rows

Fractions = tuple[float, float, float]

# The classes of pbc-wbcatt, in their order: a model for PBC can be tested here.
PBC_CLASSES = (
    "basophil", "eosinophil", "erythroblast", "ig", "lymphocyte", "monocyte", "neutrophil", "platelet",
)  # fmt: skip
_KINDS = {"WBC": "white cell", "RBC": "red cell", "Platelets": "platelet"}
_SOURCE = (
    "BCCD (github.com/Shenggan/BCCD_Dataset); types of white cells from the labels of the Kaggle set built from it "
    "(github.com/apple2373/BCCD)"
)
_NOTE = (
    "Crops around the boxes of BCCD. cell_type has the classes of pbc-wbcatt; it is missing for red cells (mature: not "
    "PBC's erythroblasts) and for white cells whose type is not known. Patients are unknown: a smear is one, and "
    "smears of one patient may be in two splits."
)


def pack_bccd_cells(
    folder: Path, out: Path, *, image_size: int | None = None, typed_only: bool = False,
    split: Fractions = (0.7, 0.1, 0.2), random_seed: int = 0, keep_encoded: bool = False, skip_bad: bool = False,
    overwrite: bool = False, command: str = "",
) -> PackReport:  # fmt: skip
    """Pack all cells, or with `typed_only` those with a cell_type; pictures come in 64 px and are resized to
    `image_size`. Raises ValueError, FileNotFoundError."""
    table = folder / "metadata.csv"
    raw = read_table(table)
    require_columns(table, raw, [("bccd-cells", name) for name in ("index", "smear", "label", "wbc_type")])
    skipped, rows = Skipped(skip_bad), []
    for row in raw:
        try:
            rows.append(_row(row))
        except BadRow as error:
            skipped.take(error)
    if typed_only:
        rows = [row for row in rows if row.values["cell_type"]]
    plan = TablePlan(
        table=table, out=out, name="bccd-cells", source=_SOURCE, licence="MIT", note=_NOTE, command=command,
        image_npz=folder / "bccd64_jpeg.npz", npz_index_column="index", channels=3, image_size=image_size,
        keep_encoded=keep_encoded, labels=("cell_type", "kind"),
        classes={"cell_type": PBC_CLASSES, "kind": tuple(_KINDS.values())}, patient_column="smear", id_column="index",
        split=split, random_seed=random_seed, skip_bad=skip_bad, overwrite=overwrite,
    )  # fmt: skip
    return pack_rows(rows, plan, skipped)


def _row(row: Row) -> Row:
    label, white = row.values["label"], row.values["wbc_type"].lower()
    if label not in _KINDS or white not in ("", *PBC_CLASSES):
        raise BadRow("unknown class", f"{row.where}: label is {label!r} and wbc_type {row.values['wbc_type']!r}: "
                     f"{', '.join(_KINDS)} and a class of PBC were expected")  # fmt: skip
    return with_values(row, {"kind": _KINDS[label], "cell_type": "platelet" if label == "Platelets" else white})
