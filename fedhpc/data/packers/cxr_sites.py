"""Chest X-rays of two hospitals, with lung masks for some: NIH Clinical Center (adults), Guangzhou WCMC (children).

Folder: metadata.csv, cxr128_jpeg.npz and lungmask128_png.npz. Site and age are confounded: the site shift is real and
large. Together with a second folder (:mod:`fedhpc.data.packers.cxr_text`) Hannover is a third site.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from fedhpc.data.packers.crew import Crew
from fedhpc.data.packers.cxr_text import pack_both
from fedhpc.data.packers.source import Row, read_table, require_columns
from fedhpc.data.packers.table import PackReport, TablePlan, pack_rows

_SOURCE = (
    "NIH ChestX-ray14 (Wang et al., CVPR 2017; https://nihcc.app.box.com/v/ChestXray-NIHCC; the NIH Clinical Center is "
    "acknowledged), Kermany et al. 2018 (Mendeley Data rscbjbr9sj v2), lung masks of V7 Labs (covid-19-xray-dataset)"
)
_LICENCE = (
    "NIH CC: no restrictions, attribution requested (site nih_clinical_center); CC BY 4.0 (guangzhou_wcmc, masks)"
)
_NOTE = (
    "TEXT IS TEMPLATE TEXT made from the labels (label column text_kind), not radiology reports: never score retrieval "
    "on it. Adults at one site, children at the other: site and age are confounded. tabular/demographics: sex_male (1 "
    "or 0) and age in years, NIH only; NaN elsewhere."
)
_COLUMNS = (
    "index", "site", "country", "label", "findings", "view", "sex", "age", "patient_id", "text", "text_kind",
    "mask_row",
)  # fmt: skip
_SEX = {"M": "1", "F": "0", "": ""}


def pack_cxr_sites(
    folder: Path, out: Path, *, also: Path | None = None, hospitals_only: bool = False, image_size: int = 128,
    split: tuple[float, float, float] = (0.7, 0.1, 0.2), random_seed: int = 0, vocab_size: int = 400,
    max_tokens: int = 48, skip_bad: bool = False, overwrite: bool = False, command: str = "",
    crew: Crew | None = None,
) -> PackReport:  # fmt: skip
    """Pack both sites, split by patient within each. Raises ValueError, FileNotFoundError.

    also: the folder of cxr_text, packed into the same file.
    """
    if hospitals_only and also is None:
        raise ValueError("--hospitals-only has no effect without --and: cxr_sites holds hospitals only")
    table = folder / "metadata.csv"
    rows = read_table(table)
    require_columns(table, rows, [("cxr-sites", name) for name in _COLUMNS])
    rows = [_with_numbers(row) for row in rows]
    if also is not None:
        return pack_both(
            folder, also, out, site_rows=rows, site_source=_SOURCE, site_licence=_LICENCE,
            hospitals_only=hospitals_only, image_size=image_size, split=split, random_seed=random_seed,
            vocab_size=vocab_size, max_tokens=max_tokens, skip_bad=skip_bad, overwrite=overwrite, command=command,
            crew=crew,
        )  # fmt: skip
    plan = TablePlan(
        table=table, out=out, name="cxr-sites", source=_SOURCE, licence=_LICENCE, note=_NOTE, command=command,
        crew=crew,
        image_npz=folder / "cxr128_jpeg.npz", npz_index_column="index", image_size=image_size, channels=1,
        text_column="text", vocab_size=vocab_size, max_tokens=max_tokens,
        labels=("label", "findings", "view", "sex", "text_kind"), tabular={"demographics": ("sex_male", "age")},
        site_column="site", patient_column="patient_id", id_column="index", split=split, random_seed=random_seed,
        mask_npz=folder / "lungmask128_png.npz", mask_index_column="mask_row", skip_bad=skip_bad, overwrite=overwrite,
    )  # fmt: skip
    return pack_rows(rows, plan)


def _with_numbers(row: Row) -> Row:
    sex = row.values["sex"]
    if sex not in _SEX:
        raise ValueError(f"{row.where}: sex is {sex!r}: M, F or empty were expected")
    return replace(row, values={**row.values, "sex_male": _SEX[sex]})
