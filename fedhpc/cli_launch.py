"""Commands that start runs elsewhere, or many of them, and look at them: fedhpc submit | sweep | status | collect."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedhpc.cli_shared import EXIT_USER_ERROR, Config, Overrides, fail, wide_console

if TYPE_CHECKING:
    from fedhpc.config.cluster import AnyCluster

Cluster = Annotated[
    str, typer.Option("--cluster", help="YAML file, or its name in configs/cluster; see configs/cluster/site.yaml.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check, print the sbatch file and submit nothing.")]
Runs = Annotated[Path, typer.Argument(help="A run folder, or one that holds some.", show_default=False)]


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    for command in (submit, sweep, status, collect):
        app.command()(command)


def submit(
    config: Config,
    overrides: Overrides = None,
    cluster: Cluster = "site",
    run_dir: Annotated[Path | None, typer.Option(help="Run folder. Default: runs/NAME.")] = None,
    dry_run: DryRun = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Delete what an earlier run left in the run folder.")] = False,
    accept_changes: Annotated[
        bool, typer.Option("--accept-changes", help="Resume although the config is another than at the start.")
    ] = False,
) -> None:
    """Queue a run on a Slurm cluster. It goes on by itself after preemption, time limit and lost ranks.

    Overrides that begin with cluster. change the cluster file: cluster.nodes=4. Everything is checked before anything
    is queued.
    """
    from fedhpc.launching import commands

    there, changes = _cluster(cluster, overrides)
    with _user_errors():
        commands.submit(config, changes, there, run_dir, dry_run=dry_run, fresh=fresh, accept_changes=accept_changes)


def sweep(
    config: Config,
    overrides: Overrides = None,
    cluster: Cluster = "local",
    sweep_dir: Annotated[Path | None, typer.Option(help="Folder of the run folders. Default: runs/NAME-sweep.")] = None,
    dry_run: DryRun = False,
) -> None:
    """All combinations of values (algorithm.mu=0.01,0.1 random_seed=0,1,2): one Slurm array, or processes here.

    Commas inside [], {} and quotes belong to a value. The same command again starts only what is not finished. Exit
    code 1: some runs failed.
    """
    from fedhpc.launching import commands

    there, changes = _cluster(cluster, overrides)
    with _user_errors():
        code = commands.sweep(config, changes, there, sweep_dir, dry_run=dry_run)
    if code:
        raise typer.Exit(code)


def status(
    folder: Runs,
    once: Annotated[bool, typer.Option("--once", help="Print the table once, also on a terminal.")] = False,
    every: Annotated[float, typer.Option(help="Seconds between looks.", min=0.5)] = 5.0,
) -> None:
    """A live table of runs: state, round, time left, best metric, and why a run waits or failed."""
    from fedhpc.launching import commands

    with _user_errors():
        commands.status(folder, wide_console(), once=once, every=every)


def collect(
    folder: Runs,
    to: Annotated[Path | None, typer.Option(help="CSV file to write. Default: DIR/runs.csv.")] = None,
    metric: Annotated[list[str] | None, typer.Option(help="Only these in the table; may be repeated.")] = None,
) -> None:
    """All finished runs as one CSV file, and a table: mean and spread over random seeds."""
    from fedhpc.launching import commands

    with _user_errors():
        commands.collect(folder, to or folder / "runs.csv", metric or (), wide_console())


def _cluster(given: str, overrides: list[str] | None) -> tuple[AnyCluster, list[str]]:
    """The cluster with its overrides, and the overrides that are left for the run."""
    from fedhpc.config.cluster import load_cluster, split_overrides

    with _user_errors():
        of_run, of_cluster = split_overrides(overrides or [])
        return load_cluster(given, of_cluster), of_run


class _user_errors:
    """ValueError and OSError are told without a traceback."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, ValueError | OSError):
            raise fail(str(error), EXIT_USER_ERROR) from error
