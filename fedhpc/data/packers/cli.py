"""``fedhpc pack``: raw data in, one packed HDF5 file out. Heavy imports happen inside the commands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedhpc.data.packers import cli_archives, cli_pictures, cli_tcga
from fedhpc.data.packers.cli_shared import (
    Folder,
    MaxTokens,
    Out,
    Overwrite,
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

pack_app = typer.Typer(
    name="pack", help="Turn raw data into one packed HDF5 file.", no_args_is_help=True, pretty_exceptions_enable=False
)


def _tabular(given: list[str]) -> dict[str, tuple[str, ...]]:
    out: dict[str, tuple[str, ...]] = {}
    for item in given:
        name, equals, columns = item.partition("=")
        names = tuple(column.strip() for column in columns.split(",") if column.strip())
        if not (equals and name and names):
            raise ValueError(f"--tabular is {item!r}: write name=column1,column2")
        if name in out:
            raise ValueError(f"--tabular {name} is given twice: list all its columns in one")
        out[name] = names
    return out


@pack_app.command()
def table(
    csv_file: Annotated[Path, typer.Argument(help="CSV file with a header, one row an example.")],
    out: Out,
    name: Annotated[str, typer.Option(help="Name of the dataset.")],
    source: Annotated[str, typer.Option(help="Where the data come from: citation, address.")],
    licence: Annotated[str, typer.Option(help="Licence of the data.")],
    note: Annotated[str, typer.Option(help="Anything a reader must know.")] = "",
    image_column: Annotated[str | None, typer.Option(help="Column with picture paths below --image-root.")] = None,
    image_root: Annotated[Path | None, typer.Option(help="Folder of the pictures; default: the CSV file's.")] = None,
    image_npz: Annotated[Path | None, typer.Option(help="Instead: npz with jpeg or png, and offsets.")] = None,
    npz_index_column: Annotated[str | None, typer.Option(help="Column with a row's picture in the npz.")] = None,
    image_size: Annotated[int | None, typer.Option(help="Letterbox to N x N px; default: keep the size.")] = None,
    channels: Annotated[int | None, typer.Option(help="1 grey or 3 RGB; default: as the first picture.")] = None,
    keep_encoded: Annotated[bool, typer.Option("--keep-encoded", help="Store JPEG and PNG bytes as they are.")] = False,
    text_column: Annotated[str | None, typer.Option(help="Column with text.")] = None,
    vocab_size: VocabSize = 4000,
    max_tokens: MaxTokens = 128,
    tokenizer: Tokenizer = None,
    label: Annotated[list[str] | None, typer.Option(help="Categorical column; repeatable.")] = None,
    tabular: Annotated[list[str] | None, typer.Option(help="name=column1,column2 of numbers; repeatable.")] = None,
    site_column: Annotated[str | None, typer.Option(help="Column with the site; default: one site.")] = None,
    patient_column: Annotated[
        str | None, typer.Option(help="Column with the patient; default: each row its own.")
    ] = None,
    id_column: Annotated[str | None, typer.Option(help="Column with unique row ids; default: the row number.")] = None,
    split_column: Annotated[str | None, typer.Option(help="Column with train, val or test.")] = None,
    split: Annotated[str | None, typer.Option(help="Instead: fractions train,val,test, drawn by patient.")] = None,
    random_seed: Seed = 0,
    mask_column: Annotated[str | None, typer.Option(help="Column with mask paths below --mask-root.")] = None,
    mask_root: Annotated[Path | None, typer.Option(help="Folder of the masks; default: the CSV file's.")] = None,
    mask_npz: Annotated[Path | None, typer.Option(help="Instead: npz with png, and offsets.")] = None,
    mask_index_column: Annotated[
        str | None, typer.Option(help="Column with a row's mask in the npz, -1: none.")
    ] = None,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Empty text or picture cells: the row lacks that modality.")
    ] = False,
    skip_bad: SkipBad = False,
    gzip: Annotated[bool, typer.Option("--gzip", help="Compress: smaller, slower to read.")] = False,
    overwrite: Overwrite = False,
    ranks: Ranks = None,
) -> None:
    """Any dataset that a CSV table describes."""
    with user_errors():
        from fedhpc.data.packers.table import TablePlan, pack_table

        beside = csv_file.parent
        plan = TablePlan(
            table=csv_file, out=out, name=name, source=source, licence=licence, note=note, command=command_line(),
            image_column=image_column, image_root=image_root or (beside if image_column else None), image_npz=image_npz,
            npz_index_column=npz_index_column, image_size=image_size, channels=channels, keep_encoded=keep_encoded,
            text_column=text_column, vocab_size=vocab_size, max_tokens=max_tokens, tokenizer=tokenizer,
            labels=tuple(label or ()), tabular=_tabular(tabular or []), site_column=site_column,
            patient_column=patient_column, id_column=id_column, split_column=split_column, split=fractions_of(split),
            random_seed=random_seed, mask_column=mask_column, mask_root=mask_root or (beside if mask_column else None),
            mask_npz=mask_npz, mask_index_column=mask_index_column, allow_missing=allow_missing, skip_bad=skip_bad,
            gzip=gzip, overwrite=overwrite, crew=crew_of(ranks),
        )  # fmt: skip
        done(pack_table(plan))


@pack_app.command("pbc-wbcatt")
def pbc_wbcatt(
    folder: Folder,
    out: Out,
    image_size: Annotated[int | None, typer.Option(help="Resize to this; the pictures have 64 pixels.", min=8)] = None,
    captioned_only: Annotated[bool, typer.Option("--captioned-only", help="Leave out rows without caption.")] = False,
    hide_type: Annotated[
        bool, typer.Option("--hide-type", help="Captions say 'cell' for the cell type, which they name otherwise.")
    ] = False,
    hide_granules: Annotated[
        bool, typer.Option("--hide-granules", help="Captions say nothing of granules, which all but name the type.")
    ] = False,
    keep_encoded: Annotated[bool, typer.Option("--keep-encoded", help="Store JPEG bytes as they are.")] = False,
    vocab_size: VocabSize = 400,
    max_tokens: MaxTokens = 64,
    tokenizer: Tokenizer = None,
    skip_bad: SkipBad = False,
    overwrite: Overwrite = False,
    ranks: Ranks = None,
) -> None:
    """Blood cells of Barcelona with 11 expert attributes and captions."""
    with user_errors():
        from fedhpc.data.packers.pbc_wbcatt import pack_pbc_wbcatt

        done(pack_pbc_wbcatt(
            folder, out, image_size=image_size, captioned_only=captioned_only, hide_type=hide_type,
            hide_granules=hide_granules, keep_encoded=keep_encoded, vocab_size=vocab_size, max_tokens=max_tokens,
            tokenizer=tokenizer, skip_bad=skip_bad, overwrite=overwrite, command=command_line(), crew=crew_of(ranks),
        ))  # fmt: skip


@pack_app.command("cxr-sites")
def cxr_sites(
    folder: Folder,
    out: Out,
    also: Annotated[
        Path | None, typer.Option("--and", help="Folder of cxr_text: Hannover and the literature in the same file.")
    ] = None,
    hospitals_only: Annotated[
        bool, typer.Option("--hospitals-only", help="With --and: leave out the pictures from the literature.")
    ] = False,
    image_size: Annotated[int, typer.Option(help="Height and width in pixels.")] = 128,
    split: Annotated[
        str, typer.Option(help="Fractions train,val,test, drawn by patient within each site.")
    ] = "0.7,0.1,0.2",
    random_seed: Seed = 0,
    vocab_size: VocabSize = 400,
    max_tokens: MaxTokens = 48,
    skip_bad: SkipBad = False,
    overwrite: Overwrite = False,
    ranks: Ranks = None,
) -> None:
    """Chest X-rays of two hospitals, lung masks for some. Its text is template text, not reports."""
    with user_errors():
        from fedhpc.data.packers.cxr_sites import pack_cxr_sites

        fractions = fractions_of(split)
        assert fractions is not None
        done(pack_cxr_sites(
            folder, out, also=also, hospitals_only=hospitals_only, image_size=image_size, split=fractions,
            random_seed=random_seed, vocab_size=vocab_size, max_tokens=max_tokens, skip_bad=skip_bad,
            overwrite=overwrite, command=command_line(), crew=crew_of(ranks),
        ), "" if hospitals_only or also is None else ", or pack again with --hospitals-only")  # fmt: skip


@pack_app.command()
def phantom(
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Default: data/phantom-<config>.h5.")] = None,
    num_patients: Annotated[int, typer.Option(help="Patients in the whole set; each has one or two pictures.")] = 600,
    num_sites: Annotated[int, typer.Option(help="Sites that differ in scanner, prevalence and wording.")] = 5,
    hard_sites: Annotated[int, typer.Option(help="The last ones: an old scanner, German.", min=0)] = 0,
    noise_sites: Annotated[int, typer.Option(help="The first ones: pictures of noise.", min=0)] = 0,
    image_size: Annotated[int, typer.Option(help="Height and width in pixels.")] = 64,
    random_seed: Annotated[int, typer.Option(help="The same seed gives the same file.", min=0)] = 0,
    vocab_size: VocabSize = 400,
    max_tokens: MaxTokens = 32,
) -> None:
    """Generated chest-like pictures with sentences. NOT real data."""
    with user_errors():
        from fedhpc.config.schema import PhantomConfig
        from fedhpc.data.hdf5 import PackedFile
        from fedhpc.data.packers.phantom import ensure_phantom

        config = PhantomConfig(
            num_patients=num_patients, num_sites=num_sites, hard_sites=hard_sites, noise_sites=noise_sites,
            image_size=image_size, random_seed=random_seed, vocab_size=vocab_size, max_tokens=max_tokens,
        )  # fmt: skip
        path = ensure_phantom(config, out)
        with PackedFile(path) as packed:
            typer.echo(f"{path}: {packed.num_rows} rows (generated, not real data)")


cli_archives.register(pack_app)
cli_pictures.register(pack_app)
cli_tcga.register(pack_app)
