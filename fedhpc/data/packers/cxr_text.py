"""Chest X-rays of cxr_sites (NIH Clinical Center, Guangzhou) and cxr_text (Hannover, literature) in one file.

The second folder holds metadata.csv, images/ and masks/. What both have in common becomes the same columns.
"""

from __future__ import annotations

from pathlib import Path

from fedhpc.data.packers.crew import Crew
from fedhpc.data.packers.official import converted, with_values
from fedhpc.data.packers.source import BadRow, Pictures, Row, Skipped, read_table, require_columns
from fedhpc.data.packers.table import PackReport, TablePlan, pack_rows

_SOURCE = (
    "COVID-19 image data repository of Hannover Medical School (doi:10.6084/m9.figshare.12275009), "
    "covid-chestxray-dataset (Cohen et al., arXiv:2006.11988), lung masks of V7 Labs and lungVAE"
)
_LICENCE = "CC BY 3.0 (hannover), CC BY 4.0, CC BY or CC BY-SA a picture (literature), CC BY-SA (lungVAE masks)"
_NOTE = (
    "MOST TEXT IS TEMPLATE TEXT, not radiology reports (label column text_kind): template_from_labels states the "
    "findings, template_from_structured_fields (hannover) does not; clinical_note was written by case authors "
    "(literature, 8 rows). Never score retrieval on templates as if they were reports. label is normal or pneumonia; "
    "COVID-19 and Pneumocystis count as pneumonia; ARDS, and hannover's pictures that were never labelled, have none. "
    "Sites differ in age, disease and labels: adults, children, a COVID-19 cohort. Site literature is pictures of "
    "several hospitals from papers and an encyclopaedia. mask_source tells lung masks reviewed by humans from a "
    "model's. tabular/demographics: sex_male (1 or 0) and age in years where both are known; NaN elsewhere."
)
_COLUMNS = (
    "image_id", "image", "mask", "mask_source", "patient_id", "text", "text_kind", "label", "view", "sex", "age",
    "site", "country",
)  # fmt: skip
_LABELS = ("label", "findings", "view", "sex", "text_kind", "mask_source", "country")
_TEXT_LABEL = {"No Finding": "normal", "COVID-19": "pneumonia", "Pneumocystis": "pneumonia", "ARDS": "", "": ""}
_MASK_SOURCE = {"v7labs": "v7labs_human_reviewed", "lungvae": "lungvae_model_generated"}
_SEX = {"M": "1", "F": "0", "": ""}


class TwoFolders:
    """Pictures of two folders: a row's cell `part` says which."""

    def __init__(self, **parts: Pictures) -> None:
        self._parts = parts

    def key(self, row: Row) -> str | None:
        part = row.values["part"]
        inner = self._parts[part].key(row)
        return None if inner is None else f"{part}:{inner}"

    def read(self, key: str | int, row: Row) -> bytes:
        part, _, inner = str(key).partition(":")
        return self._parts[part].read(inner, row)

    def stamp(self, key: str | int, row: Row) -> str:
        part, _, inner = str(key).partition(":")
        return self._parts[part].stamp(inner, row)


def pack_both(
    sites: Path, text: Path, out: Path, *, site_rows: list[Row], site_source: str, site_licence: str,
    hospitals_only: bool, image_size: int, split: tuple[float, float, float], random_seed: int, vocab_size: int,
    max_tokens: int, skip_bad: bool, overwrite: bool, command: str, crew: Crew | None,
) -> PackReport:  # fmt: skip
    """Pack cxr_sites (`site_rows` of folder `sites`) and cxr_text together; every site is split by patient.

    hospitals_only: leave out the pictures from the literature, whose site is no hospital.
    Raises ValueError, FileNotFoundError.
    """
    table = text / "metadata.csv"
    rows = read_table(table)
    require_columns(table, rows, [("cxr-sites --and", name) for name in _COLUMNS])
    skipped = Skipped(skip_bad)
    both = [_site_row(row) for row in site_rows] + converted(rows, _text_row, skipped)
    if hospitals_only:
        both = [row for row in both if row.values["site"] != "literature"]
    plan = TablePlan(
        table=table, out=out, name="cxr-sites+text", source=f"{site_source}; {_SOURCE}",
        licence=f"{site_licence}; {_LICENCE}", note=_NOTE, command=command, crew=crew, channels=1,
        image_size=image_size,
        images=TwoFolders(
            sites=Pictures(column=None, root=None, npz=sites / "cxr128_jpeg.npz", index_column="index"),
            text=Pictures(column="image", root=text, npz=None, index_column=None),
        ),
        masks=TwoFolders(
            sites=Pictures(column=None, root=None, npz=sites / "lungmask128_png.npz", index_column="mask_row"),
            text=Pictures(column="mask", root=text, npz=None, index_column=None),
        ),
        text_column="text", vocab_size=vocab_size, max_tokens=max_tokens, labels=_LABELS,
        classes={"label": ("normal", "pneumonia")}, tabular={"demographics": ("sex_male", "age")}, site_column="site",
        patient_column="patient_id", id_column="id", split=split, random_seed=random_seed, skip_bad=skip_bad,
        overwrite=overwrite,
    )  # fmt: skip
    return pack_rows(both, plan, skipped)


def _site_row(row: Row) -> Row:
    cell = row.values
    has_mask = cell["mask_row"] not in ("", "-1")
    return with_values(row, {
        "part": "sites", "id": f"sites-{cell['index']}", "mask_source": _MASK_SOURCE["v7labs"] if has_mask else "",
    })  # fmt: skip


def _text_row(row: Row) -> Row:
    cell = row.values
    for column, known in (("label", _TEXT_LABEL), ("sex", _SEX)):
        if cell[column] not in known:
            raise BadRow(f"unknown {column}", f"{row.where}: {column} is {cell[column]!r}: "
                         f"{', '.join(filter(None, known))} or empty were expected")  # fmt: skip
    reviewer = cell["mask_source"].split(" ")[0].lower()
    if cell["mask"] and reviewer not in _MASK_SOURCE:
        raise BadRow("unknown mask_source", f"{row.where}: mask_source is {cell['mask_source']!r}: v7labs or lungVAE "
                     "were expected")  # fmt: skip
    return with_values(row, {
        "part": "text", "id": f"text-{cell['image_id']}", "findings": cell["label"],
        "label": _TEXT_LABEL[cell["label"]], "sex_male": _SEX[cell["sex"]],
        "site": cell["site"] if cell["site"] == "hannover" else "literature",
        "mask_source": _MASK_SOURCE[reviewer] if cell["mask"] else "",
    })  # fmt: skip
