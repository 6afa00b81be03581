"""What the commands of ``fedhpc pack`` share: options, errors, and the last line. Heavy imports happen inside."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from fedhpc.data.packers.crew import Crew
    from fedhpc.data.packers.table import PackReport

Out = Annotated[Path, typer.Option("-o", "--out", help="The packed file to write.")]
Folder = Annotated[Path, typer.Argument(help="Folder with the raw dataset.")]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Drop bad rows and count them, instead of stopping.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the file if it exists.")]
VocabSize = Annotated[int, typer.Option(help="Most entries of the WordPiece tokenizer trained on the training text.")]
MaxTokens = Annotated[int, typer.Option(help="Tokens that a text is cut or padded to.")]
Seed = Annotated[int, typer.Option(help="Seed of a drawn split.", min=0)]
Limit = Annotated[int | None, typer.Option(help="Pack only so many rows, spread evenly over the table.", min=1)]
Tokenizer = Annotated[
    str | None, typer.Option(help="tokenizer.json, folder, packed file or hub id, instead of training.")
]
Ranks = Annotated[int | None, typer.Option(help="Decode pictures in this many processes of this machine.", min=1)]
Pixels = Annotated[int, typer.Option(help="Letterbox to N x N px.", min=1)]


@dataclass
class _Job:
    """Of this process: set once, by the command line that these commands hang below."""

    launcher: str = "single"
    world: int = 1
    mpi: str = ""
    crew: Crew | None = None


_JOB = _Job()


def tell_launch(launcher: str, world: int, mpi: str) -> None:
    """`fedhpc pack` runs in a job of `world` ranks. mpi: the kind that the launcher can start; empty for none."""
    _JOB.launcher, _JOB.world, _JOB.mpi = launcher, world, mpi


@contextmanager
def user_errors() -> Iterator[None]:
    """A user's mistake is one red message and exit code 2; a traceback is left to our own bugs."""
    from pydantic import ValidationError

    try:
        yield
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, one['loc'])) or 'config'}: {one['msg']}" for one in error.errors()]
        _fail_together("; ".join(lines))
    except (
        ValueError,
        FileNotFoundError,
        FileExistsError,
        IsADirectoryError,
        NotADirectoryError,
        PermissionError,
        ChildProcessError,
    ) as e:
        _fail_together(str(e))


def crew_of(ranks: int | None) -> Crew:
    """The ranks that decode: those of the job, or `ranks` processes. Raises ValueError where there are both, and for a
    job without MPI."""
    from fedhpc.data.packers.crew import Mpi, Processes

    if _JOB.world == 1:
        return Processes(ranks or 1)
    if ranks is not None:
        raise ValueError(f"--ranks {ranks} inside a job of {_JOB.world} ranks: leave --ranks out")
    if _JOB.launcher == "torchrun":
        raise ValueError("fedhpc pack does not run under torchrun: set --ranks on one machine, or use mpirun or srun")
    if not _JOB.mpi:  # an MPI library would end the process, and say little
        raise ValueError(
            f"{_JOB.launcher} started {_JOB.world} processes, but not for MPI: srun --mpi=pmix for Open MPI, "
            "--mpi=pmi2 for MPICH (srun --mpi=list shows what this Slurm has), or mpirun, or --ranks on one machine"
        )
    _JOB.crew = Mpi(_JOB.world, _JOB.launcher)
    return _JOB.crew


def alone() -> None:
    """For sets that one process packs. Raises ValueError inside a job of several ranks: each would write the file."""
    if _JOB.world > 1:
        raise ValueError(f"this job has {_JOB.world} ranks, but one process packs this set: start it without mpirun "
                         "or srun")  # fmt: skip


def _fail_together(message: str) -> None:
    """Under MPI every rank may have the same complaint, or one alone: rank 0 says what all have to say."""
    crew = _JOB.crew
    if crew is not None:
        try:
            crew.agree(message, "")
        except ValueError as error:
            message = str(error)
        if crew.rank:
            raise typer.Exit(2)
    fail(message)


def fail(message: str) -> None:
    typer.secho(f"Error: {message}", fg="red", err=True)
    raise typer.Exit(2)


def command_line() -> str:
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def done(report: PackReport, cure: str = "") -> None:
    """cure: what else helps against sites with very few rows."""
    if report.rank:
        return
    typer.echo(f"{report.path}: {report.rows} rows")
    if report.skipped:
        reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(report.skipped.items()))
        typer.secho(f"dropped {sum(report.skipped.values())} bad rows: {reasons}", fg="yellow", err=True)
    if report.cut_texts:
        typer.secho(f"{report.cut_texts} texts were longer than --max-tokens and were cut", fg="yellow", err=True)

    if small := small_sites(report.path):
        counts = ", ".join(f"{site} ({train} train, {val} val, {test} test)" for site, train, val, test in small)
        names = ", ".join(site for site, *_ in small)
        typer.secho(
            f"sites with fewer than 2 training or validation rows: {counts}. Algorithms that measure every client's "
            f"loss (feddra, afl, qffl) refuse them: set partition.leave_out: [{names}] in the run{cure}",
            fg="yellow",
            err=True,
        )


def small_sites(path: Path) -> list[tuple[str, int, int, int]]:
    """Sites with fewer than 2 rows in train or val, of a file with several: name, rows in train, val and test."""
    import numpy as np

    from fedhpc.data.hdf5 import PackedFile

    with PackedFile(path) as packed:
        names = packed.site_names
        counts = np.zeros((len(names), 3), np.int64)
        np.add.at(counts, (packed.read("site"), packed.read("split")), 1)
    if len(names) < 2:
        return []
    rows = [(name, int(train), int(val), int(test)) for name, (train, val, test) in zip(names, counts, strict=True)]
    return [row for row in rows if row[1] < 2 or row[2] < 2]


def fractions_of(text: str | None) -> tuple[float, float, float] | None:
    if text is None:
        return None
    try:
        train, val, test = (float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"--split is {text!r}: give three fractions train,val,test, such as 0.7,0.1,0.2") from None
    return train, val, test
