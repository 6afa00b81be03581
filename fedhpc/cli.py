"""The command line: fedhpc run | check | pack | describe | report | evaluate | export, and those of cli_*.py.

Heavy imports happen inside the commands: `fedhpc check` answers without torch.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedhpc import cli_complete, cli_launch, cli_machine
from fedhpc.cli_shared import EXIT_USER_ERROR, Config, Overrides, fail, load_run, wide_console
from fedhpc.data.packers.cli import pack_app

if TYPE_CHECKING:
    from rich.console import Console

    from fedhpc.process import Stop

app = typer.Typer(
    name="fedhpc",
    help="Federated learning over medical data, on torch.distributed.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(pack_app, name="pack")
cli_launch.register(app)
cli_complete.register(app)
cli_machine.register(app, pack_app)


@app.command()
def check(
    config: Config,
    overrides: Overrides = None,
    ranks: Annotated[int | None, typer.Option(help="Also check against this many ranks.")] = None,
) -> None:
    """Validate a config: all mistakes at once, and what to do about each."""
    from fedhpc.data.known import not_checked

    resolved = load_run(config, overrides, ranks, names=True)
    typer.echo(f"{config}: ok ({resolved.algorithm.name}, {resolved.rounds} rounds, {resolved.model.kind})")
    if resolved.privacy is not None:
        from fedhpc.federation.privacy_plan import privacy_plan

        try:
            typer.echo(privacy_plan(resolved))
        except ValueError as error:
            raise fail(str(error)) from error
    if left := not_checked(resolved):
        typer.echo(f"left to the start of the run: {', '.join(left)}")


@app.command()
def run(
    config: Config,
    overrides: Overrides = None,
    ranks: Annotated[int | None, typer.Option(help="Start this many processes on this machine.", min=1)] = None,
    run_dir: Annotated[Path | None, typer.Option(help="Run folder. Default: runs/NAME.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Delete what an earlier run left in the run folder.")] = False,
    accept_changes: Annotated[
        bool, typer.Option("--accept-changes", help="Resume although the config is another than at the start.")
    ] = False,
) -> None:
    """Run a config, or resume it from the last checkpoint in its run folder.

    Alone, under torchrun, or with --ranks N. Exit codes: 0 done, 2 a mistake of yours, 70 a rank was lost,
    75 stopped at a checkpoint, also by Ctrl-C (run the same command again).
    """
    from fedhpc.process import Stop
    from fedhpc.run_folder import delete_run

    stop = Stop()  # before anything that takes time: a signal is not lost

    from fedhpc.runtime import limit_threads, read_launch, warn_if_alone

    try:
        launch = read_launch()
    except ValueError as error:
        raise fail(str(error)) from error
    world = launch.world if ranks is None else ranks
    if ranks is not None and launch.world > 1:
        raise fail(f"--ranks {ranks} inside a job of {launch.world} ranks; leave --ranks out under {launch.launcher}")
    resolved = load_run(config, overrides, world)
    folder = run_dir or Path("runs") / resolved.name
    if fresh:
        if launch.world > 1:
            raise fail("--fresh would race between ranks; delete the run folder before starting the job")
        delete_run(folder)
    if ranks is not None and ranks > 1:
        from fedhpc.spawn import spawn_ranks

        command = [sys.executable, "-m", "fedhpc.cli", "run", str(config), *(overrides or []), "--run-dir", str(folder)]
        command += ["--accept-changes"] if accept_changes else []
        threads = resolved.runtime.threads_per_rank
        patience = min(resolved.runtime.timeout_s, 10.0)
        raise typer.Exit(spawn_ranks(command, ranks, folder / "logs", threads, patience, stop))
    if ranks is None:
        warn_if_alone(launch)
    limit_threads(resolved.runtime.threads_per_rank)
    _play(resolved, folder, accept_changes, launch.rank, launch.world, stop)


@app.command()
def describe(
    file: Annotated[Path, typer.Argument(help="A packed HDF5 file.", show_default=False)],
    overrides: Overrides = None,
    config: Annotated[Path | None, typer.Option(help="Also show what each client of this run would hold.")] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Recompute the checksum: reads the whole file.")] = False,
) -> None:
    """Show what a packed file holds: rows by split, site, label and modality, source and licence."""
    from rich.console import Console

    from fedhpc.data.describe import describe as describe_file

    try:
        tables = describe_file(file, load_run(config, overrides, None, files=False) if config else None, verify=verify)
    except (ValueError, OSError) as error:
        raise fail(str(error)) from error
    Console().print(tables)


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="Run folder: config.yaml and checkpoints/.", show_default=False)],
    task: Annotated[Path, typer.Option(help="YAML file of the task; see configs/downstream.", show_default=False)],
    overrides: Overrides = None,
) -> None:
    """Evaluate a finished run's model on a downstream task; results in RUN/downstream/NAME.json."""
    from fedhpc.config.downstream import load_task

    try:
        resolved = load_task(task, overrides or [])  # before torch, which takes seconds to import

        from fedhpc.downstream.run import evaluate as play
        from fedhpc.downstream.run import show, write_results

        results = play(run, resolved)
        path = write_results(run, results)
    except (ValueError, FloatingPointError, OSError) as error:
        raise fail(str(error)) from error
    show(results)
    typer.echo(f"written to {path}")


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Folders of finished runs; the first is the baseline.")],
    metric: Annotated[list[str] | None, typer.Option(help="Only this, as R@5 or recall_at_5; may be repeated.")] = None,
    privacy: Annotated[bool, typer.Option("--privacy", help="What left each client, in place of the tables.")] = False,
) -> None:
    """Compare finished runs in one table: mean and worst client, over random seeds, and paired with the first."""
    console = wide_console()
    if privacy:
        if metric:
            raise fail("--privacy shows no metrics; leave --metric out")
        return _show_privacy(runs, console)
    from fedhpc.report.compare import comparison, differences, paired, read_arms, unseen

    try:
        arms = read_arms(runs)
        tables = [table(arms, metric or ()) for table in (comparison, paired, unseen)]
    except ValueError as error:
        raise fail(str(error)) from error
    for table in tables:
        if table is not None:
            console.print(table)
    for line in differences(arms):
        console.print(line, highlight=False)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="Run folder: config.yaml and checkpoints/.", show_default=False)],
    to: Annotated[Path, typer.Option(help="Folder to write; must be new or empty.", show_default=False)],
    client: Annotated[str | None, typer.Option(help="A client's own model, by number or name.")] = None,
) -> None:
    """Write a run's encoders as folders that timm and transformers load, with a model card."""
    from fedhpc.export import export_run

    try:
        export_run(run, to, client)
    except (ValueError, OSError) as error:
        raise fail(str(error)) from error
    typer.echo(f"written to {to}; begin with {to / 'README.md'}")


def _show_privacy(runs: list[Path], console: Console) -> None:
    from fedhpc.report.privacy import read_statement, sentences, tables

    for folder in runs:
        try:
            statement = read_statement(folder)
        except ValueError as error:
            raise fail(str(error)) from error
        for table in tables(statement):
            console.print(table)
        for line in sentences(statement):
            console.print(line, highlight=False)


def _play(resolved: Any, folder: Path, accept_changes: bool, rank: int, world: int, stop: Stop) -> None:
    from fedhpc.comm.collectives import RankLost
    from fedhpc.exit_codes import EXIT_PREEMPTED, EXIT_RANK_LOST
    from fedhpc.process import leave
    from fedhpc.runtime import USER_ERRORS, Preempted
    from fedhpc.task import RunTask

    name = f"rank {rank}: " if world > 1 else ""
    end: Callable[[str, int], None] = lambda text, code: leave(code, f"fedhpc: {name}{text}")  # noqa: E731
    try:
        results = RunTask(resolved, folder, accept_changes)(stop)
    except Preempted as error:
        end(str(error), EXIT_PREEMPTED)
    except RankLost as error:
        end(str(error), EXIT_RANK_LOST)
    except USER_ERRORS as error:
        end(str(error), EXIT_USER_ERROR)
    else:
        if rank == 0:
            typer.echo(f"shared sha256 {results['sha256']}")


def main() -> None:
    """Entry point of the console script."""
    app()


if __name__ == "__main__":
    main()
