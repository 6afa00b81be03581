"""MIMIC-CXR-JPG 2.0.0 with the reports of MIMIC-CXR 2.0.0 (Johnson et al., Scientific Data 2019).

Folder: files/p10/p10000032/s50414267/<dicom_id>.jpg, mimic-cxr-2.0.0-split.csv.gz, -metadata.csv.gz and
-chexpert.csv.gz (or -negbio.csv.gz); unpacked .csv are read as well. One row is one picture.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from fedhpc.data.packers.labeler import LABELS, LabelRule
from fedhpc.data.packers.official import Options, TextOptions, converted, find_file, thin, with_values
from fedhpc.data.packers.progress import track
from fedhpc.data.packers.reports import Reports, report_text
from fedhpc.data.packers.source import BadRow, Row, Skipped, iter_table
from fedhpc.data.packers.table import PackReport, TablePlan, pack_rows

Labeler = Literal["chexpert", "negbio"]

_SOURCE = (
    "MIMIC-CXR-JPG 2.0.0 (Johnson et al., PhysioNet, doi:10.13026/8360-t248), reports of MIMIC-CXR 2.0.0 "
    "(doi:10.13026/C2JT1Q), Beth Israel Deaconess Medical Center"
)
_LICENCE = "PhysioNet Credentialed Health Data License 1.5.0: credentialed users only, no sharing, this file included"
_SITE = "beth_israel_deaconess"
_CURE = "give the folder of MIMIC-CXR-JPG 2.0.0, the one that holds files/ and mimic-cxr-2.0.0-*.csv.gz"
_SPLITS = {"train": "train", "validate": "val", "test": "test"}


def pack_mimic_cxr(
    folder: Path, out: Path, options: Options, text: TextOptions, *, reports: Path | None,
    views: Sequence[str] = ("PA", "AP"), labeler: Labeler = "chexpert", rule: LabelRule | None = None,
    keep_textless: bool = False,
) -> PackReport:  # fmt: skip
    """Pack the pictures of the given views in their official split; patient is subject_id.

    reports: mimic-cxr-reports.zip or its folder; None packs pictures and labels alone. keep_textless: keep pictures
    whose report has no findings or impression, without text. Raises ValueError, FileNotFoundError.
    """
    rule = rule or LabelRule()
    table = _file(folder, "metadata")
    skipped = Skipped(options.skip_bad)
    rows = thin(_pictures(table, views), options.limit)
    splits = _splits(_file(folder, "split"), {row.values["dicom_id"] for row in rows})
    labels = _labels(_file(folder, labeler), {row.values["study_id"] for row in rows})

    def convert(row: Row) -> Row:
        return _row(row, splits, labels, rule)

    rows = converted(rows, convert, skipped)
    textless = 0
    if reports is not None:
        rows = _with_text(rows, Reports(reports), skipped)
        textless = sum(not row.values["text"] for row in rows)
        if not keep_textless:
            rows = [row for row in rows if row.values["text"]]
    if not rows:
        raise ValueError(f"{table}: no picture is left with views {','.join(views)}"
                         f"{' and a report' if reports else ''}: check --views and --reports")  # fmt: skip
    plan = TablePlan(
        table=table, out=out, name="mimic-cxr", source=_SOURCE, licence=_LICENCE, version="2.0.0",
        note=_note(views, labeler, rule, reports is not None, textless, keep_textless), channels=1,
        image_column="path", image_root=folder,
        labels=(*rule.label_classes(), "view", *(("text_kind",) if reports else ())),
        classes=rule.label_classes(), site_column="site", patient_column="subject_id", id_column="dicom_id",
        split_column="split", allow_missing=keep_textless, **options.plan(),
        **(text.plan("text") if reports else {}),
    )  # fmt: skip
    return pack_rows(rows, plan, skipped)


def _file(folder: Path, kind: str) -> Path:
    return find_file(folder, (f"mimic-cxr-2.0.0-{kind}.csv.gz", f"mimic-cxr-2.0.0-{kind}.csv"), _CURE)


def _pictures(table: Path, views: Sequence[str]) -> list[Row]:
    """Rows of the metadata that show one of the views."""
    if not views:
        raise ValueError("--views names no view: set PA,AP, or others of the column ViewPosition")
    wanted = [("mimic-cxr", name) for name in ("dicom_id", "subject_id", "study_id", "ViewPosition")]
    seen: Counter[str] = Counter()
    rows = []
    for row in iter_table(table, wanted):
        view = row.values["ViewPosition"]
        seen[view] += 1
        if view in views:
            rows.append(row)
    unknown = [view for view in views if not seen[view]]
    if unknown:
        raise ValueError(f"--views has {','.join(unknown)}, but ViewPosition of {table} holds "
                         f"{', '.join(sorted(view for view in seen if view))}")  # fmt: skip
    return rows


def _splits(table: Path, pictures: set[str]) -> dict[str, str]:
    wanted = [("mimic-cxr", name) for name in ("dicom_id", "split")]
    return {
        row.values["dicom_id"]: row.values["split"]
        for row in iter_table(table, wanted)
        if row.values["dicom_id"] in pictures
    }


def _labels(table: Path, studies: set[str]) -> dict[str, dict[str, str]]:
    """The 14 cells of each study; a few studies have none."""
    wanted = [("mimic-cxr", name) for name in ("study_id", *LABELS)]
    return {
        row.values["study_id"]: row.values for row in iter_table(table, wanted) if row.values["study_id"] in studies
    }


def _row(row: Row, splits: dict[str, str], labels: dict[str, dict[str, str]], rule: LabelRule) -> Row:
    cell = row.values
    split = _SPLITS.get(splits.get(cell["dicom_id"], ""))
    if split is None:
        raise BadRow("no split", f"{row.where}: picture {cell['dicom_id']} has the split "
                     f"{splits.get(cell['dicom_id'])!r} in the split table: train, validate or test were expected; "
                     "use tables of one release")  # fmt: skip
    patient, study = cell["subject_id"], cell["study_id"]
    return with_values(row, {
        "path": f"files/p{patient[:2]}/p{patient}/s{study}/{cell['dicom_id']}.jpg", "view": cell["ViewPosition"],
        "site": _SITE, "split": split, **rule.apply(labels.get(study, {}), row),
    })  # fmt: skip


def _with_text(rows: list[Row], reports: Reports, skipped: Skipped) -> list[Row]:
    """The rows with their report's text; pictures of one study share it."""
    texts: dict[str, str] = {}

    def convert(row: Row) -> Row:
        study = row.values["study_id"]
        if study not in texts:
            texts[study] = report_text(reports.read(row.values["subject_id"], study, row))
        return with_values(row, {"text": texts[study], "text_kind": "report" if texts[study] else ""})

    try:
        return converted(track(rows, "reports"), convert, skipped)
    finally:
        reports.close()


def _note(
    views: Sequence[str], labeler: Labeler, rule: LabelRule, has_text: bool, textless: int, keep_textless: bool
) -> str:
    parts = [
        f"Views {','.join(views)}; official split; one hospital, so clients come from partition by label, not site.",
        rule.note if labeler == "chexpert" else f"Cells are those of NegBio instead. {rule.note}",
    ]
    if has_text:
        fate = "are kept without text" if keep_textless else "were left out"
        parts.append(
            "Text: impression, then findings, of the report; sentences of 2 words or more, reports of 3 or more. "
            f"{textless} pictures whose report has neither {fate}. Pictures of one study share their report."
        )
    return " ".join(parts)
