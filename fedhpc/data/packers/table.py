"""Pack any dataset that one CSV table describes. The other packers of real data are presets of this one.

The order of work: read the table and check it as a whole; read, check and write pictures row by row; then write all
other columns for the rows that were kept. A bad row is an error that names it, or is dropped and counted with
`skip_bad`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fedhpc.data.hdf5 import SPLITS, PackWriter
from fedhpc.data.packers.captions import write_captions
from fedhpc.data.packers.pictures import PictureWriter
from fedhpc.data.packers.progress import track
from fedhpc.data.packers.source import (
    BadRow,
    Pictures,
    PictureSource,
    Row,
    Skipped,
    read_table,
    require_columns,
)
from fedhpc.data.packers.split import split_by_patient
from fedhpc.data.text import encode_texts, load_tokenizer, pad_token_of, train_wordpiece

_SPLIT_WORDS = {"train": 0, "training": 0, "val": 1, "valid": 1, "validation": 1, "dev": 1, "test": 2, "testing": 2}


@dataclass(frozen=True, kw_only=True)
class TablePlan:
    """What is packed and how; the fields are the options of ``fedhpc pack table``."""

    table: Path
    out: Path
    name: str
    source: str
    licence: str
    note: str = ""
    command: str = ""
    image_column: str | None = None
    image_root: Path | None = None
    image_npz: Path | None = None
    npz_index_column: str | None = None
    image_size: int | None = None
    """Letterbox to this many pixels, both ways; None: pictures stay as they are and must agree in size."""
    channels: int | None = None
    keep_encoded: bool = False
    text_column: str | None = None
    vocab_size: int = 4000
    max_tokens: int = 128
    tokenizer: str | None = None
    labels: Sequence[str] = ()
    tabular: Mapping[str, Sequence[str]] = field(default_factory=dict)
    site_column: str | None = None
    patient_column: str | None = None
    id_column: str | None = None
    split_column: str | None = None
    split: tuple[float, float, float] | None = None
    random_seed: int = 0
    mask_column: str | None = None
    mask_root: Path | None = None
    mask_npz: Path | None = None
    mask_index_column: str | None = None
    allow_missing: bool = False
    """Empty text or picture cells mean that the row lacks that modality; otherwise they are errors."""
    skip_bad: bool = False
    gzip: bool = False
    overwrite: bool = False
    # What a packer sets beyond the options of `fedhpc pack table`:
    images: PictureSource | None = None
    """Pictures from elsewhere than one column or archive."""
    masks: PictureSource | None = None
    captions_column: str | None = None
    """Column with all texts of a row, one a line, of which `text_column` holds one, or all in one."""
    classes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Names of a label's classes in order, present or not; default: the sorted values that occur."""
    version: str = ""
    """Version of the dataset, kept as root attribute dataset_version."""


@dataclass(frozen=True)
class PackReport:
    """What a packer did."""

    path: Path
    rows: int
    skipped: Mapping[str, int]  # reason -> rows dropped
    cut_texts: int  # texts longer than max_tokens


def pack_table(plan: TablePlan) -> PackReport:
    """Pack the table of `plan`. Raises ValueError or FileNotFoundError that names file and row."""
    return pack_rows(read_table(plan.table), plan)


def pack_rows(rows: list[Row], plan: TablePlan, skipped: Skipped | None = None) -> PackReport:
    """The same for rows in memory, which a packer may have given further columns.

    skipped: bad rows that the packer itself has dropped; they are reported with the others.
    """
    _check_plan(plan)
    require_columns(plan.table, rows, _wanted(plan))
    if plan.split_column is None and plan.split is None:
        raise ValueError(
            "no split: set --split-column to the column that holds train, val and test, or --split 0.7,0.1,0.2"
        )
    skipped = skipped or Skipped(plan.skip_bad)
    rows = _check_rows(rows, plan, skipped)
    images = _images(plan, rows)
    masks = _masks(plan)
    with PackWriter(
        plan.out, name=plan.name, source=plan.source, licence=plan.licence, command=plan.command, note=_full_note(plan),
        gzip=plan.gzip, overwrite=plan.overwrite, extra={"dataset_version": plan.version} if plan.version else None,
    ) as pack:  # fmt: skip
        if images is not None:
            writer = PictureWriter(plan, pack, images, masks)
            kept = []
            for row in track(rows, "pictures"):
                try:
                    writer.add(row)
                    kept.append(row)
                except BadRow as error:
                    skipped.take(error)
            rows = kept
            writer.finish()
        if not rows:
            raise ValueError(f"{plan.table}: every row was dropped ({dict(skipped.counts)}); nothing is left to pack")
        cut = _write_columns(rows, plan, pack)
    return PackReport(plan.out, len(rows), dict(skipped.counts), cut)


# ------------------------------------------------------------------------------------------------------- checking
def _check_plan(plan: TablePlan) -> None:
    """Refuse options that conflict or would have no effect."""
    has_image = plan.image_column is not None or plan.image_npz is not None or plan.images is not None
    has_mask = plan.mask_column is not None or plan.mask_npz is not None or plan.masks is not None
    rules = [
        (plan.image_column and plan.image_npz, "--image-column and --image-npz are both set: choose one"),
        (plan.mask_column and plan.mask_npz, "--mask-column and --mask-npz are both set: choose one"),
        (plan.image_root and not plan.image_column, "--image-root has no effect without --image-column"),
        (plan.npz_index_column and not plan.image_npz, "--npz-index-column has no effect without --image-npz"),
        (plan.mask_root and not plan.mask_column, "--mask-root has no effect without --mask-column"),
        (plan.mask_npz and not plan.mask_index_column, "--mask-npz needs --mask-index-column (-1: no mask)"),
        (plan.mask_index_column and not plan.mask_npz, "--mask-index-column has no effect without --mask-npz"),
        (has_mask and not has_image, "masks without pictures: set --image-column or --image-npz"),
        (plan.image_size and not has_image, "--image-size has no effect without pictures"),
        (plan.keep_encoded and not has_image, "--keep-encoded has no effect without pictures"),
        (plan.keep_encoded and plan.image_size, "--keep-encoded keeps pictures as they are: remove --image-size"),
        (plan.keep_encoded and plan.gzip, "--gzip gains nothing on encoded pictures: remove it or --keep-encoded"),
        (plan.channels not in (None, 1, 3), f"--channels is {plan.channels}: set 1 (grey) or 3 (RGB)"),
        (plan.image_size is not None and plan.image_size < 1, f"--image-size is {plan.image_size}: set 1 or more"),
        (plan.tokenizer and not plan.text_column, "--tokenizer has no effect without --text-column"),
        (plan.text_column and plan.max_tokens < 3, f"--max-tokens is {plan.max_tokens}: set 3 or more"),
        (plan.split and plan.split_column, "--split and --split-column are both set: choose one"),
        (not (has_image or plan.text_column or plan.tabular), "nothing to pack: set --image-column, --image-npz, "
         "--text-column or --tabular"),
    ]  # fmt: skip
    for wrong, message in rules:
        if wrong:
            raise ValueError(message)


def _wanted(plan: TablePlan) -> list[tuple[str, str | None]]:
    return [
        ("--image-column", plan.image_column), ("--npz-index-column", plan.npz_index_column),
        ("--text-column", plan.text_column), ("--site-column", plan.site_column),
        ("--patient-column", plan.patient_column), ("--id-column", plan.id_column),
        ("--split-column", plan.split_column), ("--mask-column", plan.mask_column),
        ("--mask-index-column", plan.mask_index_column), *(("--label", name) for name in plan.labels),
        *((f"--tabular {name}", column) for name, columns in plan.tabular.items() for column in columns),
    ]  # fmt: skip


def _check_rows(rows: list[Row], plan: TablePlan, skipped: Skipped) -> list[Row]:
    """The rows whose cells are good."""
    kept: list[Row] = []
    seen: dict[str, Row] = {}
    split_of: dict[str, tuple[int, Row]] = {}
    for row in rows:
        try:
            _check_row(row, plan, seen, split_of)
            kept.append(row)
        except BadRow as error:
            skipped.take(error)
    if not kept:
        raise ValueError(f"{plan.table}: every row was dropped ({dict(skipped.counts)}); nothing is left to pack")
    return kept


def _check_row(row: Row, plan: TablePlan, seen: dict[str, Row], split_of: dict[str, tuple[int, Row]]) -> None:
    cell = row.values
    for column, option in ((plan.site_column, "site"), (plan.patient_column, "patient"), (plan.id_column, "id")):
        if column and not cell[column]:
            raise BadRow(
                f"empty {option}", f"{row.where}: {column} is empty, and every row needs a {option}: fill it in"
            )
    row_id = _row_id(row, plan)
    if row_id in seen:
        raise BadRow(
            "duplicate id", f"{row.where}: id {row_id!r} is already that of {seen[row_id].where}: make ids unique"
        )
    if plan.text_column and not cell[plan.text_column] and not plan.allow_missing:
        raise BadRow("empty text", f"{row.where}: {plan.text_column} is empty: fill it in, or set --allow-missing "
                     "where rows may lack text")  # fmt: skip
    for columns in plan.tabular.values():
        for column in columns:
            _number(row, column)
    if plan.split_column:
        code = _SPLIT_WORDS.get(cell[plan.split_column].lower())
        if code is None:
            raise BadRow("bad split", f"{row.where}: {plan.split_column} is {cell[plan.split_column]!r}: use train, "
                         "val or test")  # fmt: skip
        patient = cell[plan.patient_column] if plan.patient_column else row_id
        first, there = split_of.setdefault(patient, (code, row))
        if first != code:
            raise BadRow("patient in two splits", f"{row.where}: patient {patient!r} is in {SPLITS[code]}, but in "
                         f"{SPLITS[first]} at {there.where}: put its rows in one split, or use --split")  # fmt: skip
    seen[row_id] = row


def _row_id(row: Row, plan: TablePlan) -> str:
    return row.values[plan.id_column] if plan.id_column else str(row.index)


def _number(row: Row, column: str) -> float:
    """A cell as a number; NaN where it is empty."""
    cell = row.values[column]
    try:
        value = float(cell) if cell else math.nan
    except ValueError:
        raise BadRow("not a number", f"{row.where}: {column} is {cell!r}, not a number: --tabular takes numbers, use "
                     "--label for categories") from None  # fmt: skip
    if math.isinf(value) or abs(value) > float(np.finfo(np.float32).max):
        raise BadRow("not a number", f"{row.where}: {column} is {cell}, beyond float32")
    return value


# -------------------------------------------------------------------------------------------------------- pictures
def _images(plan: TablePlan, rows: Sequence[Row]) -> PictureSource | None:
    if plan.images is not None:
        return plan.images
    if plan.image_column is None and plan.image_npz is None:
        return None
    pictures = Pictures(
        column=plan.image_column, root=plan.image_root, npz=plan.image_npz, index_column=plan.npz_index_column
    )
    if plan.image_npz and plan.npz_index_column is None and (pictures.count or 0) <= max(row.index for row in rows):
        raise ValueError(f"{plan.image_npz} holds {pictures.count} pictures, {plan.table} has more rows: set "
                         "--npz-index-column to the column with each row's picture")  # fmt: skip
    return pictures


def _masks(plan: TablePlan) -> PictureSource | None:
    if plan.masks is not None:
        return plan.masks
    if plan.mask_column is None and plan.mask_npz is None:
        return None
    return Pictures(
        column=plan.mask_column, root=plan.mask_root, npz=plan.mask_npz, index_column=plan.mask_index_column
    )


def _full_note(plan: TablePlan) -> str:
    parts = [plan.note] if plan.note else []
    if plan.image_size:
        parts.append(f"Pictures: longer side scaled to {plan.image_size} px (bicubic), centred on black.")
    elif plan.image_column or plan.image_npz or plan.images:
        parts.append("Pictures: size kept" + (", encoded bytes kept." if plan.keep_encoded else "."))
    if plan.split:
        parts.append(f"Split {','.join(map(str, plan.split))} drawn by patient, seed {plan.random_seed}.")
    return " ".join(parts)


# --------------------------------------------------------------------------------------------------- other columns
def _write_columns(rows: Sequence[Row], plan: TablePlan, pack: PackWriter) -> int:
    """Everything but pictures, for the rows that were kept. Returns how many texts were cut."""
    row_ids = [_row_id(row, plan) for row in rows]
    patients = [row.values[plan.patient_column] for row in rows] if plan.patient_column else row_ids
    site, site_names = _codes([row.values[plan.site_column] for row in rows]) if plan.site_column else (
        np.zeros(len(rows), np.int32), [plan.name])  # fmt: skip
    if plan.split_column:
        split = np.asarray([_SPLIT_WORDS[row.values[plan.split_column].lower()] for row in rows], np.int8)
    else:
        assert plan.split is not None
        split = split_by_patient(patients, site, plan.split, plan.random_seed)
    pack.set_row_ids(row_ids)
    pack.set_patients(patients)
    pack.set_site(site, site_names)
    pack.set_split(split)
    for name in plan.labels:
        pack.set_label(name, *_codes([row.values[name] for row in rows], plan.classes.get(name)))
    for name, columns in plan.tabular.items():
        values = np.asarray([[_number(row, column) for column in columns] for row in rows], np.float32)
        pack.set_tabular(name, values, columns)
        pack.set_present(f"tabular/{name}", np.asarray(~np.isnan(values).any(axis=1)))
    if plan.captions_column:
        return write_captions(rows, split, plan, pack)
    return _write_text([row.values[plan.text_column] for row in rows], split, plan, pack) if plan.text_column else 0


def _write_text(texts: list[str], split: np.ndarray, plan: TablePlan, pack: PackWriter) -> int:
    if plan.tokenizer:
        tokenizer = load_tokenizer(plan.tokenizer)
    else:  # val and test must not shape the vocabulary
        tokenizer = train_wordpiece((t for t, s in zip(texts, split, strict=True) if s == 0), plan.vocab_size)
    tokens, cut = encode_texts(tokenizer, texts, plan.max_tokens)
    pack.set_text(texts)
    pack.set_tokens(
        tokens,
        tokenizer_json=tokenizer.to_str(),
        pad_token=pad_token_of(tokenizer),
        vocab_size=tokenizer.get_vocab_size(),
    )
    pack.set_present("text", np.asarray([bool(text) for text in texts], bool))
    return cut


def _codes(values: Sequence[str], classes: Sequence[str] | None = None) -> tuple[np.ndarray, list[str]]:
    """int32 [N] codes (-1: empty) and the names, sorted where `classes` does not give them."""
    names = list(classes) if classes else sorted(Counter(value for value in values if value))
    place = {name: code for code, name in enumerate(names)} | {"": -1}
    return np.asarray([place[value] for value in values], np.int32), names
