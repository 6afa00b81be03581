"""What `fedhpc submit`, `sweep`, `status` and `collect` do, in order; the parts lie beside this file."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import typer
from rich.console import Console
from rich.live import Live

from fedhpc.config.cluster import AnyCluster, LocalCluster, SlurmCluster
from fedhpc.config.load import ConfigError, load_config
from fedhpc.exit_codes import EXIT_PREEMPTED
from fedhpc.launching import collect as collecting
from fedhpc.launching import prepare, watch
from fedhpc.launching import submit as submitting
from fedhpc.launching import sweep as sweeping
from fedhpc.launching.job import SubmittedRun
from fedhpc.launching.pool import Outcome, Pool
from fedhpc.launching.sweep import Planned
from fedhpc.run_folder import delete_run, refuse_other_config, write_config

EXIT_SOME_FAILED = 1
LOGS = "slurm"  # folder of sbatch files, pickles and logs inside a run or sweep folder


def submit(
    config: Path,
    overrides: Sequence[str],
    cluster: AnyCluster,
    run_dir: Path | None,
    *,
    dry_run: bool,
    fresh: bool,
    accept_changes: bool,
) -> None:
    """One run as one job. Raises ValueError, with the cure, before anything is queued."""
    if not isinstance(cluster, SlurmCluster):
        raise ValueError(f"submit wants a cluster of kind: slurm; here, `fedhpc run {config} --ranks N` starts the run")
    resolved = load_config(config, overrides)
    folder = (run_dir or Path("runs") / resolved.name).absolute()
    notes = prepare.check_slurm(str(config), [resolved], folder, cluster, "--run-dir", dry_run=dry_run)
    if not fresh:
        if not accept_changes:
            refuse_other_config(folder, resolved)
        if sweeping.is_finished(folder, resolved):
            raise ValueError(f"{folder} holds this run, finished; use another --run-dir, or --fresh to make it again")
    run = SubmittedRun(resolved, folder, submitting.limits_of(cluster), accept_changes)
    for note in notes:
        typer.secho(f"fedhpc: note: {note}", err=True)
    if dry_run:
        typer.echo(submitting.sbatch_text([run], cluster, folder / LOGS, resolved.name), nl=False)
        return
    if (job := prepare.job_under_way(folder)) is not None:
        raise ValueError(f"job {job} has {folder} already; wait for it, `scancel` it, or use another --run-dir")
    prepare.ask_slurm(str(config), [run], cluster, folder / LOGS, resolved.name)
    if fresh:
        delete_run(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_config(folder, resolved)
    (job,) = submitting.submit([run], cluster, folder / LOGS, resolved.name)
    typer.echo(f"job {job} is queued: {_shape(cluster)}")
    typer.echo(f"run folder  {folder}")
    typer.echo(f"its log     tail -F {submitting.log(folder / LOGS, job, 0)}")
    typer.echo(f"its state   fedhpc status {folder}")


def sweep(config: Path, overrides: Sequence[str], cluster: AnyCluster, sweep_dir: Path | None, *, dry_run: bool) -> int:
    """All runs of a sweep that are not finished. Returns an exit code. Raises ValueError before anything is started."""
    runs = sweeping.plan(config, overrides)
    folder = (sweep_dir or Path("runs") / f"{runs[0].config.name}-sweep").absolute()
    places = sweeping.place(runs, folder)
    notes: list[str] = []
    if isinstance(cluster, SlurmCluster):
        configs = [run.config for run in runs]
        notes = prepare.check_slurm(str(config), configs, folder, cluster, "--sweep-dir", dry_run=dry_run)
    else:
        problems = [line for run in runs for line in prepare.config_problems(run.config, cluster.ranks, None)]
        if problems:
            raise ConfigError(str(config), problems)
    for note in notes:
        typer.secho(f"fedhpc: note: {note}", err=True)
    left = [run for run in runs if not sweeping.is_finished(places[run.name], run.config)]
    states = {state.folder: state for state in watch.states([p for p in places.values() if watch.is_run(p)])}
    busy = [run for run in left if (state := states.get(places[run.name])) is not None and not state.is_over]
    left = [run for run in left if run not in busy]
    typer.echo(
        f"{len(runs)} runs in {folder}: {len(runs) - len(left) - len(busy)} finished, "
        f"{len(busy)} queued or running, {len(left)} to start",
        err=dry_run,
    )
    if isinstance(cluster, SlurmCluster):
        _sweep_slurm(config, overrides, cluster, folder, runs, left, places, dry_run)
        return 0
    if dry_run:
        for run in left:
            typer.echo(places[run.name].name)
        return 0
    sweeping.write_manifest(folder, config, overrides, runs, places)
    sweeping.write_folders(left, places)
    return _sweep_here(cluster, folder, left, places)


def _sweep_slurm(
    config: Path,
    overrides: Sequence[str],
    cluster: SlurmCluster,
    folder: Path,
    runs: Sequence[Planned],
    left: Sequence[Planned],
    places: dict[str, Path],
    dry_run: bool,
) -> None:
    """One array."""
    if not left:
        typer.echo("nothing to submit")
        return
    limits = submitting.limits_of(cluster)
    jobs = [SubmittedRun(run.config, places[run.name], limits) for run in left]
    name = folder.name
    if dry_run:
        typer.echo(submitting.sbatch_text(jobs, cluster, folder / LOGS, name), nl=False)
        return
    prepare.ask_slurm(str(config), jobs, cluster, folder / LOGS, name)
    sweeping.write_manifest(folder, config, overrides, runs, places)
    sweeping.write_folders(left, places)
    ids = submitting.submit(jobs, cluster, folder / LOGS, name)
    at_once = min(len(ids), cluster.max_runs_at_once)
    typer.echo(f"job {ids[0].partition('_')[0]} is queued: {len(ids)} runs, {at_once} at once, each {_shape(cluster)}")
    for job, run in zip(ids, left, strict=True):
        typer.echo(f"  {job}  {places[run.name].name}")
    typer.echo(f"their logs  tail -F {submitting.log(folder / LOGS, ids[0], 0)} (and so on)")
    typer.echo(f"their state fedhpc status {folder}")


def _sweep_here(cluster: LocalCluster, folder: Path, left: Sequence[Planned], places: dict[str, Path]) -> int:
    """Processes of this machine; a table at the end. Runs that fail do not stop the others."""
    number = 0

    def on_start(name: str) -> None:
        typer.echo(f"{name}: started")

    def on_end(outcome: Outcome) -> None:
        nonlocal number
        number += 1
        stopped = outcome.exit_code == EXIT_PREEMPTED
        how = outcome.reason if stopped else f"failed: {outcome.reason}" if outcome.exit_code else "finished"
        typer.echo(f"[{number}/{len(left)}] {outcome.name}: {how} ({watch.duration(outcome.seconds)})")

    pool = Pool(cluster.max_runs_at_once, cluster.ranks)
    threads = [run.config.runtime.threads_per_rank for run in left]
    waiting = [(places[r.name].name, places[r.name], t) for r, t in zip(left, threads, strict=True)]
    outcomes = pool.play(waiting, on_start, on_end)
    console = Console()
    console = console if console.is_terminal else Console(width=200)
    console.print(watch.table(watch.states(list(dict.fromkeys(places.values()))), folder))
    failed = [outcome for outcome in outcomes if outcome.exit_code not in (0, EXIT_PREEMPTED)]
    if failed:
        typer.secho(
            f"fedhpc: {len(failed)} of {len(left)} runs failed; the same command again starts what is not finished",
            err=True,
        )
        return EXIT_SOME_FAILED
    return EXIT_PREEMPTED if pool.stopping else 0


def status(folder: Path, console: Console, *, once: bool, every: float) -> None:
    """A table, kept up to date on a terminal until all runs are over or somebody presses Ctrl-C."""

    def look() -> list[watch.RunState]:
        return watch.states(watch.find_runs(folder))

    now = look()
    if once or not console.is_terminal:
        console.print(watch.table(now, folder))
        return
    with Live(watch.table(now, folder), console=console, auto_refresh=False) as live:
        try:
            while not all(run.is_over for run in now):
                time.sleep(every)
                now = look()
                live.update(watch.table(now, folder), refresh=True)
        except KeyboardInterrupt:
            pass


def collect(folder: Path, to: Path, metrics: Sequence[str], console: Console) -> None:
    """The CSV, the table, and what is not finished."""
    from fedhpc.report.compare import comparison, differences

    found = watch.find_runs(folder)
    finished = [run for run in found if (run / "results.json").is_file()]
    if not finished:
        raise ValueError(
            f"{folder}: none of its {len(found)} runs is finished; `fedhpc status {folder}` tells how they do"
        )
    collecting.write_csv(to, collecting.rows(finished, folder))
    try:
        arms = collecting.arms(finished)
        console.print(comparison(arms, metrics))
        for line in differences(arms):
            console.print(line, highlight=False)
    except ValueError as error:  # the CSV has all of them; a table would mix what is not alike
        typer.secho(f"fedhpc: no table: {error}", err=True)
    typer.echo(f"{len(finished)} runs written to {to}")
    for run in found:
        if run not in finished:
            typer.echo(f"not finished: {run}")


def _shape(cluster: SlurmCluster) -> str:
    where = f"partition {cluster.partition}" if cluster.partition else "the default partition"
    return f"{cluster.nodes} nodes * {cluster.ranks_per_node} ranks, {where}, {cluster.time}"
