"""Commands about the machine: fedhpc doctor | plan, and what `fedhpc pack` must know of the job that it runs in."""

from __future__ import annotations

import sys
import tempfile
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedhpc.cli_shared import EXIT_USER_ERROR, Config, Overrides, fail, load_run, wide_console
from fedhpc.data.packers.cli_shared import tell_launch

if TYPE_CHECKING:
    from fedhpc.config.schema import RunConfig
    from fedhpc.environment import Launch


RANKS = "1,2,4,8"


def register(app: typer.Typer, pack_app: typer.Typer) -> None:
    """Add the commands to `app`."""
    pack_app.callback()(pack)
    app.command()(doctor)
    app.command()(plan)


def pack() -> None:
    """Turn raw data into one packed HDF5 file. Under mpirun or srun all ranks decode."""
    from fedhpc.runtime import prepare_mpi

    launch = _launch()
    prepare_mpi(launch)
    tell_launch(launch.launcher, launch.world, launch.mpi)


class Device(str, Enum):
    auto, cpu, cuda = "auto", "cpu", "cuda"


def doctor(
    data: Annotated[
        Path | None, typer.Option(help="A packed file, or the folder where it will lie; also seen by every rank?")
    ] = None,
    ranks: Annotated[
        int | None, typer.Option(help="Start this many processes on this machine. Default: 2, or one a GPU.", min=1)
    ] = None,
    device: Annotated[Device, typer.Option(help="Where ranks add.")] = Device.auto,
    answer: Annotated[Path | None, typer.Option(hidden=True)] = None,
) -> None:
    """Look whether this machine, or this job, is fit for a run; name what is not, with its cure, and the slow rank.

    Alone, under srun, mpirun or torchrun. Exit codes: 0 nothing failed, 2 something did.
    """
    launch = _launch()
    if launch.world > 1 and ranks is not None and answer is None:
        raise fail(f"--ranks {ranks} inside a job of {launch.world} ranks; leave it out under {launch.launcher}")
    count = _default_ranks(device) if ranks is None else ranks
    if launch.world == 1 and answer is None and count > 1:
        raise typer.Exit(_doctor_of(count, data, device))
    from fedhpc.doctor.visit import visit

    good = visit(data, device.value, wide_console())
    if answer is None:
        raise typer.Exit(0 if good else EXIT_USER_ERROR)
    if launch.rank == 0:
        answer.write_text("good" if good else "bad")


def _launch() -> Launch:
    from fedhpc.runtime import read_launch

    try:
        return read_launch()
    except ValueError as error:
        raise fail(str(error)) from error


def _doctor_of(ranks: int, data: Path | None, device: Device) -> int:
    """Exit code of a visit with `ranks` processes."""
    from fedhpc.spawn import spawn_ranks

    with tempfile.TemporaryDirectory() as name:
        answer = Path(name) / "answer"
        command = [sys.executable, "-m", "fedhpc.cli", "doctor", "--device", device.value, "--answer", str(answer)]
        command += ["--data", str(data)] if data is not None else []
        code = spawn_ranks(command, ranks, Path(name) / "logs", 1, 10.0, hope="Nothing was changed")
        if code or not answer.exists():
            return code or EXIT_USER_ERROR
        return 0 if answer.read_text() == "good" else EXIT_USER_ERROR


def _default_ranks(device: Device) -> int:
    """A rank a GPU; without GPUs two. Found without torch, which the ranks import."""
    gpus = Path("/proc/driver/nvidia/gpus")
    return len(list(gpus.iterdir())) if device != Device.cpu and gpus.is_dir() else 2


def plan(
    config: Config,
    overrides: Overrides = None,
    ranks: Annotated[str, typer.Option(help="Numbers of ranks, such as 8,64,512.")] = RANKS,
    ranks_per_node: Annotated[
        int | None, typer.Option(help="Default: as many as this machine runs at full speed.", min=1)
    ] = None,
    full_speed: Annotated[
        int | None, typer.Option(help="Ranks that a node runs at full speed. Default: as this machine.", min=1)
    ] = None,
    step_seconds: Annotated[
        float | None, typer.Option(help="Of an optimizer step where the run will be. Default: measured here.", min=0)
    ] = None,
    latency_us: Annotated[float | None, typer.Option(help="Of the network between nodes.", min=0)] = None,
    bandwidth_gbit: Annotated[float | None, typer.Option(help="Of the network between nodes, a second.", min=0)] = None,
    memory: Annotated[
        bool, typer.Option("--memory", help="Only what the model takes of memory, by shapes: nothing is measured.")
    ] = False,
    pictures: Annotated[
        str | None,
        typer.Option(help="With --memory, where the data are not: CHANNELSxHEIGHTxWIDTH, such as 1x224x224."),
    ] = None,
    vocabulary: Annotated[
        int | None, typer.Option(help="With --memory, where the data are not: tokens of the tokenizer.", min=2)
    ] = None,
) -> None:
    """What a run will cost on many ranks: seconds a round, idle share, bytes, memory, and where more do not pay.

    Measures some steps of the real model on this machine (half a minute or so), and computes the rest; see
    docs/planning.md.
    """
    if (pictures is None) != (vocabulary is None) or (pictures is not None and not memory):
        raise fail("--pictures and --vocabulary stand in for the data under --memory; give all three, or only --memory")
    counts = _counts(ranks)
    resolved = load_run(config, overrides, None, files=pictures is None)
    if memory and (step_seconds or latency_us or bandwidth_gbit or ranks_per_node or full_speed or ranks != RANKS):
        raise fail("--memory asks for nothing that is measured: the other options have no effect; leave them out")
    if memory or resolved.sharding is not None:
        assumed = None if pictures is None or vocabulary is None else (_picture(pictures), vocabulary)
        _tell_memory(resolved, assumed, measured=not memory, on_cpu=step_seconds is not None)
    if memory:
        return
    for count in counts:
        load_run(config, overrides, count, files=False)
    from fedhpc.planning.plan import Asked, make_plan
    from fedhpc.planning.show import sentences, table

    asked = Asked(
        counts,
        ranks_per_node,
        full_speed,
        step_seconds or None,
        None if latency_us is None else latency_us * 1e-6,
        bandwidth_gbit * 1e9 / 8 if bandwidth_gbit else None,
    )
    try:
        made = make_plan(resolved, asked)
    except ValueError as error:
        raise fail(str(error)) from error
    wide_console().print(table(made, resolved.rounds))
    for line in sentences(made, latency_us is not None or bandwidth_gbit is not None):
        typer.echo(line)
    if resolved.aggregation.secure:
        typer.echo("What masks cost (aggregation.secure) is not in these numbers; see docs/security.md.")
    if resolved.aggregation.robust is not None:
        typer.echo(
            "Bytes and seconds of exchanges are those of a plain sum, not of aggregation.robust; see docs/robust.md."
        )
    if resolved.aggregation.compression is not None:
        typer.echo(
            "Bytes and seconds of exchanges are those of a plain sum, not of aggregation.compression; see "
            "docs/compression.md."
        )


def _tell_memory(
    config: RunConfig, assumed: tuple[tuple[int, int, int], int] | None, measured: bool, on_cpu: bool
) -> None:
    """Print it. assumed: pictures and vocabulary of data that are not here.

    measured: a run will be measured next, on_cpu even where it wants a GPU; exits where that takes more than there is.
    """
    from fedhpc.planning.shards import assumed_spec, count, rank_memory, refuse_too_large, spec_of
    from fedhpc.planning.show import memory_sentences, memory_table

    try:
        spec = spec_of(config) if assumed is None else assumed_spec(config, *assumed)
        elements = count(config, spec)
        found = rank_memory(config, elements)
        wide_console().print(memory_table(found))
        for line in memory_sentences(config, found):
            typer.echo(line)
        if measured:
            refuse_too_large(config, elements, on_cpu)
    except ValueError as error:
        raise fail(str(error)) from error


def _picture(text: str) -> tuple[int, int, int]:
    try:
        channels, height, width = (int(part) for part in text.split("x"))
    except ValueError:
        raise fail(f"--pictures is {text!r}: write channels, height and width, such as 1x224x224") from None
    return channels, height, width


def _counts(text: str) -> list[int]:
    try:
        counts = [int(part) for part in text.split(",")]
    except ValueError:
        raise fail(f"--ranks is {text!r}: write numbers such as 8,64,512") from None
    if min(counts) < 1:
        raise fail(f"--ranks is {text}: a job has 1 rank or more")
    return counts
