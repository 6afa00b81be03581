"""The command `fedhpc complete`: what a run with a `completion` section trains on, made before the run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedhpc.cli_shared import Overrides, fail, load_run


def register(app: typer.Typer) -> None:
    app.command()(complete)


def complete(
    data: Annotated[Path, typer.Argument(help="A packed HDF5 file.", show_default=False)],
    config: Annotated[Path, typer.Option(help="YAML file of the run, with a completion section.", show_default=False)],
    overrides: Overrides = None,
) -> None:
    """Complete rows that lack a picture or a text, into a file beside the packed one; go on if it was stopped.

    The run's partition, missing rows and random seed decide which rows lack what, so the same config then runs on it.
    """
    resolved = load_run(config, [*(overrides or []), f"data.path={data}"], None)
    try:
        from fedhpc.completion.command import complete_run

        for line in complete_run(resolved):
            typer.echo(line)
    except (ValueError, OSError) as error:
        raise fail(str(error)) from error
