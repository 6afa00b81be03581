"""Commands about the machine: fedhpc doctor | plan, and what `fedhpc pack` must know of the job that it runs in."""

from __future__ import annotations

import typer

from fedhpc.cli_shared import fail
from fedhpc.data.packers.cli_shared import tell_launch


def register(app: typer.Typer, pack_app: typer.Typer) -> None:
    """Add the commands to `app`."""
    pack_app.callback()(pack)


def pack() -> None:
    """Turn raw data into one packed HDF5 file. Under mpirun or srun all ranks decode."""
    from fedhpc.runtime import read_launch

    try:
        launch = read_launch()
    except ValueError as error:
        raise fail(str(error)) from error
    tell_launch(launch.launcher, launch.world)
