"""``fedhpc pack`` of labelled and captioned picture sets: blood cells, CIFAR, MedMNIST, birds, flowers."""

from __future__ import annotations

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
    Seed,
    SkipBad,
    Tokenizer,
    VocabSize,
    command_line,
    done,
    fractions_of,
    user_errors,
)

if TYPE_CHECKING:
    from fedhpc.data.packers.official import Options, TextOptions

Resize = Annotated[int | None, typer.Option("--image-size", help="Letterbox to N x N px; default: as it is.", min=8)]
Crop = Annotated[int, typer.Option(help="px of the centre that is kept before resizing; 0: all.", min=0)]
KeepUnknown = Annotated[
    bool, typer.Option("--keep-unknown", help="Also pack classes that are none of the 13; cell_type is missing.")
]
ValFraction = Annotated[float, typer.Option(help="Of the training rows, drawn by hash, that become val.")]
Captions = Annotated[
    Path | None, typer.Option(help="Folder of the captions; default: text_c10 or text beside the pictures.")
]
Caption = Annotated[
    str, typer.Option(help="Which caption is a row's text: a number from 1, or joined. All are kept beside it.")
]
NoText = Annotated[bool, typer.Option("--no-text", help="Pack pictures and labels without captions.")]
OwnSplit = Annotated[
    str | None, typer.Option("--split", help="Fractions train,val,test, drawn by a hash, instead of the official.")
]
Split = Annotated[str, typer.Option(help="Fractions train,val,test, drawn by a hash of the patient.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for name, command in (
        ("bccd-cells", bccd_cells), ("int-20", int_20), ("matek-19", matek_19), ("cifar", cifar),
        ("medmnist", medmnist), ("cub-200", cub_200), ("flowers-102", flowers_102),
    ):  # fmt: skip
        app.command(name)(command)


def bccd_cells(
    folder: Folder,
    out: Out,
    image_size: Resize = None,
    typed_only: Annotated[
        bool, typer.Option("--typed-only", help="Only cells with a class of PBC: platelets, typed white cells.")
    ] = False,
    split: Annotated[str, typer.Option(help="Fractions train,val,test, drawn by smear.")] = "0.7,0.1,0.2",
    random_seed: Seed = 0,
    keep_encoded: Annotated[bool, typer.Option("--keep-encoded", help="Store JPEG bytes as they are.")] = False,
    skip_bad: SkipBad = False,
    overwrite: Overwrite = False,
) -> None:
    """Blood cells of another lab than PBC (BCCD), 64 px RGB, with PBC's classes.

    FOLDER: ../shared/data/bccd_cells, with metadata.csv and bccd64_jpeg.npz.
    """
    with user_errors():
        from fedhpc.data.packers.bccd_cells import pack_bccd_cells

        fractions = fractions_of(split)
        assert fractions is not None
        done(pack_bccd_cells(
            folder, out, image_size=image_size, typed_only=typed_only, split=fractions, random_seed=random_seed,
            keep_encoded=keep_encoded, skip_bad=skip_bad, overwrite=overwrite, command=command_line(),
        ))  # fmt: skip


def int_20(
    folder: Folder,
    out: Out,
    crop: Crop = 288,
    keep_unknown: KeepUnknown = False,
    split: Split = "0.7,0.1,0.2",
    image_size: Pixels = 256,
    random_seed: Seed = 0,
    limit: Limit = None,
    skip_bad: SkipBad = False,
    overwrite: Overwrite = False,
) -> None:
    """INT_20: white blood cells of the Munich Leukemia Laboratory (RGB), 13 cell types shared with Matek_19.

    FOLDER: holds the class folders 01-NORMO/, 04-LGL/, 05-MONO/, ..., 22-Atyp-PMYEL/ with .TIF pictures whose names
    begin with the case, as 10-025377.PB.PAP~C.1-213.TIF (or lies up to three levels above them).
    """
    _cells(
        "int-20", folder, out, crop, keep_unknown, split, _options(image_size, limit, skip_bad, overwrite, random_seed)
    )


def matek_19(
    folder: Folder,
    out: Out,
    crop: Crop = 288,
    keep_unknown: KeepUnknown = False,
    split: Split = "0.7,0.1,0.2",
    image_size: Pixels = 256,
    random_seed: Seed = 0,
    limit: Limit = None,
    skip_bad: SkipBad = False,
    overwrite: Overwrite = False,
) -> None:
    """Matek_19 (AML-Cytomorphology_LMU): white blood cells (RGB), 13 cell types shared with INT_20.

    FOLDER: holds the class folders BAS/, EBO/, EOS/, ..., PMO/ with BAS_0001.tiff and so on (or lies up to three levels
    above them, as TCIA unpacks it).
    """
    options = _options(image_size, limit, skip_bad, overwrite, random_seed)
    _cells("matek-19", folder, out, crop, keep_unknown, split, options)


def cifar(
    folder: Folder,
    out: Out,
    val_fraction: ValFraction = 0.1,
    image_size: Resize = None,
    random_seed: Seed = 0,
    limit: Limit = None,
    overwrite: Overwrite = False,
) -> None:
    """CIFAR-10 or CIFAR-100, python version (32 px RGB), official train and test.

    FOLDER: cifar-10-batches-py (data_batch_1 to data_batch_5, test_batch, batches.meta) or cifar-100-python (train,
    test, meta), or the folder above: torchvision's root. Nothing that these pickles name is run.
    """
    with user_errors():
        from fedhpc.data.packers.cifar import pack_cifar

        options = _options(image_size, limit, False, overwrite, random_seed)
        done(pack_cifar(folder, out, options, val_fraction=val_fraction))


def medmnist(
    file: Annotated[Path, typer.Argument(help="The npz file under its published name, such as bloodmnist_64.npz.")],
    out: Out,
    image_size: Resize = None,
    limit: Limit = None,
    overwrite: Overwrite = False,
) -> None:
    """MedMNIST v2: one of its twelve 2-D sets (28, 64, 128 or 224 px), official split.

    FILE: holds train_images, train_labels, val_images, val_labels, test_images and test_labels.
    """
    with user_errors():
        from fedhpc.data.packers.medmnist import pack_medmnist

        done(pack_medmnist(file, out, _options(image_size, limit, False, overwrite)))


def cub_200(
    folder: Folder,
    out: Out,
    captions: Captions = None,
    caption: Caption = "1",
    no_text: NoText = False,
    val_fraction: Annotated[
        float | None, typer.Option(help="Of the training pictures, drawn by hash, that become val; default 0.1.")
    ] = None,
    split: OwnSplit = None,
    image_size: Pixels = 256,
    vocab_size: VocabSize = 4000,
    max_tokens: MaxTokens = 48,
    tokenizer: Tokenizer = None,
    random_seed: Seed = 0,
    limit: Limit = None,
    skip_bad: SkipBad = False,
    overwrite: Overwrite = False,
) -> None:
    """CUB-200-2011: 200 species of birds (RGB), ten captions a picture (Reed et al.).

    FOLDER: CUB_200_2011 with images.txt, classes.txt, image_class_labels.txt,
    train_test_split.txt and images/, or the folder above it.

    Captions: text_c10/001.Black_footed_Albatross/<picture>.txt of cvpr2016_cub,
    a caption a line; in FOLDER, beside CUB_200_2011, or by --captions.
    """
    with user_errors():
        from fedhpc.data.packers.captions import choice_of
        from fedhpc.data.packers.cub import pack_cub

        if split is not None and val_fraction is not None:
            raise ValueError("--split and --val-fraction are both set: choose one")
        done(pack_cub(
            folder, out, _options(image_size, limit, skip_bad, overwrite, random_seed),
            _text(no_text, captions, caption, vocab_size, max_tokens, tokenizer), captions=captions,
            caption=choice_of(caption), val_fraction=0.1 if val_fraction is None else val_fraction,
            split=fractions_of(split),
        ))  # fmt: skip


def flowers_102(
    folder: Folder,
    out: Out,
    captions: Captions = None,
    caption: Caption = "1",
    no_text: NoText = False,
    split: OwnSplit = None,
    image_size: Pixels = 256,
    vocab_size: VocabSize = 4000,
    max_tokens: MaxTokens = 48,
    tokenizer: Tokenizer = None,
    random_seed: Seed = 0,
    limit: Limit = None,
    skip_bad: SkipBad = False,
    overwrite: Overwrite = False,
) -> None:
    """Oxford 102 Flowers (RGB), ten captions a picture (Reed et al.), official split.

    FOLDER: jpg/image_00001.jpg and so on, imagelabels.mat and setid.mat (or the
    folder above flowers-102, as torchvision unpacks it).

    Captions: text_c10/class_00001/image_06734.txt of cvpr2016_flowers, a caption
    a line; in FOLDER, beside it, or by --captions.
    """
    with user_errors():
        from fedhpc.data.packers.captions import choice_of
        from fedhpc.data.packers.flowers import pack_flowers

        done(pack_flowers(
            folder, out, _options(image_size, limit, skip_bad, overwrite, random_seed),
            _text(no_text, captions, caption, vocab_size, max_tokens, tokenizer), captions=captions,
            caption=choice_of(caption), split=fractions_of(split),
        ))  # fmt: skip


def _text(
    no_text: bool, captions: Path | None, caption: str, vocab_size: int, max_tokens: int, tokenizer: str | None
) -> TextOptions | None:
    from fedhpc.data.packers.official import TextOptions

    if not no_text:
        return TextOptions(vocab_size=vocab_size, max_tokens=max_tokens, tokenizer=tokenizer)
    for option, given in (("captions", captions), ("tokenizer", tokenizer), ("caption", caption != "1")):
        if given:
            raise ValueError(f"--{option} has no effect with --no-text")
    return None


def _options(
    image_size: int | None, limit: int | None, skip_bad: bool, overwrite: bool, random_seed: int = 0
) -> Options:
    from fedhpc.data.packers.official import Options

    return Options(
        image_size=image_size, limit=limit, skip_bad=skip_bad, overwrite=overwrite, random_seed=random_seed,
        command=command_line(),
    )  # fmt: skip


def _cells(name: str, folder: Path, out: Path, crop: int, keep_unknown: bool, split: str, options: Options) -> None:
    with user_errors():
        from fedhpc.data.packers.blood_cells import pack_blood_cells

        fractions = fractions_of(split)
        assert fractions is not None
        done(pack_blood_cells(name, folder, out, options, crop=crop, keep_unknown=keep_unknown, split=fractions))
