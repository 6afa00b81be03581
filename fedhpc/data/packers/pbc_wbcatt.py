"""Blood cells of Barcelona with 11 expert attributes (PBC + WBCAtt), 64 px RGB.

Folder: metadata.csv (index, source_file, label, caption, split and 11 attributes) and pbc64_jpeg.npz. `caption` is a
sentence made from the attributes, so many pictures share one: score retrieval by attribute match, not by pair. It names
the cell type too ("A small basophil with ..."), so no classifier of types should read it as it is.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from fedhpc.data.hdf5 import SPLITS
from fedhpc.data.packers.crew import Crew
from fedhpc.data.packers.source import Row, read_table, require_columns
from fedhpc.data.packers.split import split_by_patient
from fedhpc.data.packers.table import PackReport, TablePlan, pack_rows

ATTRIBUTES = (
    "cell_size", "cell_shape", "nucleus_shape", "nuclear_cytoplasmic_ratio", "chromatin_density", "cytoplasm_vacuole",
    "cytoplasm_texture", "cytoplasm_colour", "granule_type", "granule_colour", "granularity",
)  # fmt: skip
_SOURCE = (
    "PBC_dataset_normal_DIB, Hospital Clinic of Barcelona (Acevedo et al. 2020, Mendeley Data snkd93bnjr), attributes "
    "and split of WBCAtt (Tsutsui, Pang, Wen, NeurIPS 2023)"
)
_NOTE = (
    "Captions are sentences made from the 11 attributes, not free text; many pictures share one. Rows without "
    "attributes (erythroblast, ig, platelet) have no caption: present/text is false. They have no official split "
    "either: theirs is 70/10/20 within each class, drawn by id."
)


def pack_pbc_wbcatt(
    folder: Path, out: Path, *, image_size: int | None = None, captioned_only: bool = False, hide_type: bool = False,
    hide_granules: bool = False, keep_encoded: bool = False, vocab_size: int = 400, max_tokens: int = 64,
    tokenizer: str | None = None, skip_bad: bool = False, overwrite: bool = False, command: str = "",
    crew: Crew | None = None,
) -> PackReport:  # fmt: skip
    """Pack all rows, or with `captioned_only` those with a caption; pictures come in 64 px and are resized to
    `image_size`. hide_type: captions say "cell" for its type. hide_granules: they end before what they say of granules,
    from which 88 % of types can be told. Raises ValueError, FileNotFoundError."""
    table = folder / "metadata.csv"
    rows = read_table(table)
    require_columns(table, rows, [("pbc-wbcatt", name) for name in ("index", "label", "caption", "split", *ATTRIBUTES)])
    if captioned_only:
        rows = [row for row in rows if row.values["caption"]]
    rows = [replace(row, values={**row.values, "cell_type": row.values["label"]}) for row in rows]
    if hide_type or hide_granules:
        rows = [_hidden(row, hide_type, hide_granules) for row in rows]
    rows = _with_split(rows)
    hidden = [*(["the cell type's name"] if hide_type else []), *(["granules"] if hide_granules else [])]
    plan = TablePlan(
        table=table, out=out, name="pbc-wbcatt", source=_SOURCE, licence="CC BY 4.0 (pictures), MIT (attributes)",
        note=_NOTE + (f" Left out of captions: {' and '.join(hidden)}." if hidden else ""), command=command, crew=crew,
        image_npz=folder / "pbc64_jpeg.npz", npz_index_column="index", channels=3, image_size=image_size,
        keep_encoded=keep_encoded, text_column="caption", vocab_size=vocab_size, max_tokens=max_tokens,
        tokenizer=tokenizer, labels=("cell_type", *ATTRIBUTES), id_column="index", split_column="split",
        allow_missing=True, skip_bad=skip_bad, overwrite=overwrite,
    )  # fmt: skip
    return pack_rows(rows, plan)


def _hidden(row: Row, hide_type: bool, hide_granules: bool) -> Row:
    """Captions read "A SIZE TYPE with ...; CYTOPLASM; GRANULES." Raises ValueError for one that does not."""
    caption, cell_type = row.values["caption"], row.values["cell_type"]
    if not caption:
        return row
    parts = caption.split("; ")
    if len(parts) != 3 or parts[0].split(" ").count(cell_type) != 1 or not parts[2].endswith(" granules."):
        raise ValueError(
            f"{row.where}: the caption {caption!r} is not 'A SIZE {cell_type} with ...; CYTOPLASM; "
            "GRANULES granules.', so nothing can be left out of it; leave --hide-type and --hide-granules away"
        )
    if hide_type:
        parts[0] = parts[0].replace(f" {cell_type} ", " cell ")
    if hide_granules:
        parts = [parts[0], f"{parts[1]}."]
    return replace(row, values={**row.values, "caption": "; ".join(parts)})


def _with_split(rows: list[Row]) -> list[Row]:
    """Give rows without an official split one, 70/10/20 within each class."""
    bare = [row for row in rows if not row.values["split"]]
    if not bare:
        return rows
    classes = sorted({row.values["cell_type"] for row in bare})
    stratum = np.asarray([classes.index(row.values["cell_type"]) for row in bare])
    codes = split_by_patient([row.values["index"] for row in bare], stratum, (0.7, 0.1, 0.2), 0)
    given = {row.index: SPLITS[code] for row, code in zip(bare, codes, strict=True)}
    return [
        replace(row, values={**row.values, "split": given[row.index]}) if row.index in given else row for row in rows
    ]
