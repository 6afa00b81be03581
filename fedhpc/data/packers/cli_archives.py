"""``fedhpc pack`` of published archives, each in its official layout."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedhpc.data.packers.cli_shared import (
    Folder,
    Limit,
    MaxTokens,
    Out,
    Overwrite,
    Pixels,
    Ranks,
    Seed,
    SkipBad,
    Tokenizer,
    VocabSize,
    command_line,
    crew_of,
    done,
    fractions_of,
    user_errors,
)

if TYPE_CHECKING:
    from fedhpc.data.packers.official import Options


class Uncertain(str, Enum):
    missing, absent, present = "missing", "absent", "present"
    own_class = "class"


class Blank(str, Enum):
    missing, absent = "missing", "absent"


class Labeler(str, Enum):
    chexpert, negbio = "chexpert", "negbio"


class ValidAs(str, Enum):
    test, val = "test", "val"


UncertainCells = Annotated[Uncertain, typer.Option("--uncertain", help="What a cell of -1 becomes.")]
BlankCells = Annotated[Blank, typer.Option("--blank", help="What a label that is not mentioned becomes.")]
ValFraction = Annotated[float, typer.Option(help="Of the training patients, drawn by hash, that become val.")]
Split = Annotated[str, typer.Option(help="Fractions train,val,test, drawn by a hash of the patient.")]
NoText = Annotated[bool, typer.Option("--no-text", help="Leave out the template text made from the labels.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for name, command in (
        ("mimic-cxr", mimic_cxr), ("chexpert", chexpert), ("rsna", rsna), ("covidx", covidx), ("brset", brset),
        ("mbrset", mbrset), ("messidor", messidor),
    ):  # fmt: skip
        app.command(name)(command)


def mimic_cxr(
    folder: Folder,
    out: Out,
    reports: Annotated[
        Path | None, typer.Option(help="mimic-cxr-reports.zip of MIMIC-CXR, or its folder; default: no text.")
    ] = None,
    views: Annotated[str, typer.Option(help="Values of ViewPosition that are packed.")] = "PA,AP",
    labeler: Annotated[Labeler, typer.Option(help="Whose labels.")] = Labeler.chexpert,
    uncertain: UncertainCells = Uncertain.missing,
    blank: BlankCells = Blank.missing,
    keep_textless: Annotated[
        bool, typer.Option("--keep-textless", help="Keep pictures whose report has no findings or impression.")
    ] = False,
    image_size: Pixels = 256,
    vocab_size: VocabSize = 8000,
    max_tokens: MaxTokens = 112,
    tokenizer: Tokenizer = None,
    limit: Limit = None,
    skip_bad: SkipBad = False,
    overwrite: Overwrite = False,
    ranks: Ranks = None,
) -> None:
    """MIMIC-CXR-JPG 2.0.0: chest X-rays (grey) with reports and 14 labels, official split."""
    with user_errors():
        from fedhpc.data.packers.labeler import LabelRule
        from fedhpc.data.packers.mimic_cxr import pack_mimic_cxr
        from fedhpc.data.packers.official import TextOptions

        if keep_textless and reports is None:
            raise ValueError("--keep-textless has no effect without --reports")
        done(pack_mimic_cxr(
            folder, out, _options(image_size, limit, skip_bad, overwrite, ranks),
            TextOptions(vocab_size=vocab_size, max_tokens=max_tokens, tokenizer=tokenizer), reports=reports,
            views=tuple(view.strip() for view in views.split(",") if view.strip()), labeler=labeler.value,
            rule=LabelRule(uncertain.value, blank.value), keep_textless=keep_textless,
        ))  # fmt: skip


def chexpert(
    folder: Folder,
    out: Out,
    lateral: Annotated[bool, typer.Option("--lateral", help="Pack lateral views as well.")] = False,
    uncertain: UncertainCells = Uncertain.missing,
    blank: BlankCells = Blank.missing,
    valid_as: Annotated[ValidAs, typer.Option(help="The split that valid.csv becomes.")] = ValidAs.test,
    val_fraction: ValFraction = 0.1,
    image_size: Pixels = 256,
    random_seed: Seed = 0,
    limit: Limit = None,
    skip_bad: SkipBad = False,
    overwrite: Overwrite = False,
    ranks: Ranks = None,
) -> None:
    """CheXpert v1.0 or v1.0-small: chest X-rays (grey) with 14 labels, no text."""
    with user_errors():
        from fedhpc.data.packers.chexpert import pack_chexpert
        from fedhpc.data.packers.labeler import LabelRule

        done(pack_chexpert(
            folder, out, _options(image_size, limit, skip_bad, overwrite, ranks, random_seed),
            rule=LabelRule(uncertain.value, blank.value), lateral=lateral, valid_as=valid_as.value,
            val_fraction=val_fraction,
        ))  # fmt: skip


def rsna(
    folder: Folder,
    out: Out,
    mappings: Annotated[
        Path | None, typer.Option(help="pneumonia-challenge-dataset-mappings_2018.json: tells the NIH patients apart.")
    ] = None,
    split: Split = "0.7,0.15,0.15",
    image_size: Pixels = 256,
    random_seed: Seed = 0,
    limit: Limit = None,
    skip_bad: SkipBad = False,
    overwrite: Overwrite = False,
    ranks: Ranks = None,
) -> None:
    """RSNA pneumonia challenge 2018, stage 2: chest X-rays (grey), boxes as masks. DICOM needs the extra dicom."""
    with user_errors():
        from fedhpc.data.packers.rsna import pack_rsna

        fractions = fractions_of(split)
        assert fractions is not None
        options = _options(image_size, limit, skip_bad, overwrite, ranks, random_seed)
        done(pack_rsna(folder, out, options, split=fractions, mappings=mappings))


def covidx(
    folder: Folder,
    out: Out,
    train_list: Annotated[Path | None, typer.Option(help="Default: train_COVIDx*.txt in the folder.")] = None,
    test_list: Annotated[Path | None, typer.Option(help="Default: test_COVIDx*.txt in the folder.")] = None,
    val_fraction: ValFraction = 0.1,
    image_size: Pixels = 256,
    random_seed: Seed = 0,
    limit: Limit = None,
    skip_bad: SkipBad = False,
    overwrite: Overwrite = False,
    ranks: Ranks = None,
) -> None:
    """COVIDx: chest X-rays (grey) of several collections, three classes (or two), official train and test."""
    with user_errors():
        from fedhpc.data.packers.covidx import pack_covidx

        done(pack_covidx(
            folder, out, _options(image_size, limit, skip_bad, overwrite, ranks, random_seed),
            val_fraction=val_fraction, train_list=train_list, test_list=test_list,
        ))  # fmt: skip


def brset(
    folder: Folder,
    out: Out,
    no_text: NoText = False,
    split: Split = "0.7,0.1,0.2",
    image_size: Pixels = 256,
    vocab_size: VocabSize = 400,
    max_tokens: MaxTokens = 64,
    tokenizer: Tokenizer = None,
    random_seed: Seed = 0,
    limit: Limit = None,
    skip_bad: SkipBad = False,
    overwrite: Overwrite = False,
    ranks: Ranks = None,
) -> None:
    """BRSET 1.0: fundus photographs (RGB) of two cameras. Its text is template text, not reports."""
    with user_errors():
        options = _options(image_size, limit, skip_bad, overwrite, ranks, random_seed)
    _retina("brset", folder, out, options, no_text, split, vocab_size, max_tokens, tokenizer)


def mbrset(
    folder: Folder,
    out: Out,
    no_text: NoText = False,
    split: Split = "0.7,0.1,0.2",
    image_size: Pixels = 256,
    vocab_size: VocabSize = 400,
    max_tokens: MaxTokens = 64,
    tokenizer: Tokenizer = None,
    random_seed: Seed = 0,
    limit: Limit = None,
    skip_bad: SkipBad = False,
    overwrite: Overwrite = False,
    ranks: Ranks = None,
) -> None:
    """mBRSET 1.0: fundus photographs (RGB) of a handheld camera. Its text is template text, not reports."""
    with user_errors():
        options = _options(image_size, limit, skip_bad, overwrite, ranks, random_seed)
    _retina("mbrset", folder, out, options, no_text, split, vocab_size, max_tokens, tokenizer)


def messidor(
    folder: Folder,
    out: Out,
    pairs: Annotated[
        Path | None, typer.Option(help="messidor-2.csv, which says which two pictures are one patient.")
    ] = None,
    unpaired: Annotated[
        bool, typer.Option("--unpaired", help="MESSIDOR-2 without its pairs: each picture its own patient.")
    ] = False,
    split: Split = "0.7,0.1,0.2",
    image_size: Pixels = 256,
    random_seed: Seed = 0,
    limit: Limit = None,
    skip_bad: SkipBad = False,
    overwrite: Overwrite = False,
    ranks: Ranks = None,
) -> None:
    """MESSIDOR or MESSIDOR-2: fundus photographs (RGB) of three hospitals. .xls and .xlsx need the extra sheets."""
    with user_errors():
        from fedhpc.data.packers.messidor import pack_messidor

        fractions = fractions_of(split)
        assert fractions is not None
        options = _options(image_size, limit, skip_bad, overwrite, ranks, random_seed)
        done(pack_messidor(folder, out, options, split=fractions, pairs=pairs, unpaired=unpaired))


def _options(
    image_size: int, limit: int | None, skip_bad: bool, overwrite: bool, ranks: int | None, random_seed: int = 0
) -> Options:
    from fedhpc.data.packers.official import Options

    return Options(
        image_size=image_size, limit=limit, skip_bad=skip_bad, overwrite=overwrite, random_seed=random_seed,
        command=command_line(), crew=crew_of(ranks),
    )  # fmt: skip


def _retina(
    name: str, folder: Path, out: Path, options: Options, no_text: bool, split: str, vocab_size: int, max_tokens: int,
    tokenizer: str | None,
) -> None:  # fmt: skip
    with user_errors():
        from fedhpc.data.packers.brset import pack_retina
        from fedhpc.data.packers.official import TextOptions

        if no_text and tokenizer:
            raise ValueError("--tokenizer has no effect with --no-text")
        fractions = fractions_of(split)
        assert fractions is not None
        text = None if no_text else TextOptions(vocab_size=vocab_size, max_tokens=max_tokens, tokenizer=tokenizer)
        done(pack_retina(name, folder, out, options, text, split=fractions))
