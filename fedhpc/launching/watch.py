"""How runs are doing: state, round, time left and best metric, from the files in their folders and from Slurm."""

from __future__ import annotations

import json
import os
import re
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.table import Table

from fedhpc.exit_codes import EXIT_PREEMPTED
from fedhpc.launching import journal, slurm
from fedhpc.launching.journal import Launch
from fedhpc.launching.logs import last_words
from fedhpc.launching.pool import JOB as LOCAL
from fedhpc.launching.slurm import ACTIVE, WAITING, JobState
from fedhpc.report.shown import SHOWN

TAIL_BYTES = 256 * 1024
RECENT = 20  # rounds whose mean time tells the time left
DEPTH = 3  # folders below the one given in which runs are looked for
SILENT_ROUNDS = 5.0  # a running run that wrote nothing for as long as this many rounds is stalled
LOCKS = Path("/proc/locks")
OVER = ("finished", "failed", "cancelled", "stopped", "not started")
COLOURS = {"finished": "green", "running": "cyan", "failed": "red", "stalled": "red", "cancelled": "yellow"}


@dataclass(frozen=True)
class RunState:
    """One run, now.

    Attributes:
        state: queued, requeued, running, stalled, finished, failed, cancelled, stopped (it goes on when started again),
            not started.
        left_s: seconds to the end at the pace of the last rounds; None when not running or not known.
        best: (metric, mean over clients, round counted from 1) of the best evaluation.
        reason: why it waits, failed or was queued again.
    """

    folder: Path
    state: str
    round: int = 0
    rounds: int = 0
    left_s: float | None = None
    best: tuple[str, float, int] | None = None
    reason: str = ""
    job: str = ""

    @property
    def is_over(self) -> bool:
        return self.state in OVER


def find_runs(folder: Path) -> list[Path]:
    """The folder itself when it is a run's, else the run folders below it, in order of their names.

    Raises ValueError when there is none.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; give a run folder, or one that holds some (runs, or a sweep's)")
    found = [folder] if is_run(folder) else sorted(_runs_below(folder, DEPTH), key=_by_number)
    if not found:
        raise ValueError(f"{folder} holds no run folder (config.yaml and what `fedhpc run` writes beside it)")
    return found


def is_run(folder: Path) -> bool:
    return (folder / "config.yaml").is_file()


def _runs_below(folder: Path, depth: int) -> Iterator[Path]:
    for child in sorted(folder.iterdir()) if depth else ():
        if child.is_dir() and not child.name.startswith("."):
            if is_run(child):
                yield child
            else:
                yield from _runs_below(child, depth - 1)


def _by_number(path: Path) -> list[Any]:
    """seed=2 before seed=10."""
    return [(0, float(part), "") if re.fullmatch(r"\d+(\.\d+)?", part) else (1, 0.0, part)
            for part in re.split(r"(\d+(?:\.\d+)?)", str(path))]  # fmt: skip


# ------------------------------------------------------------------------------------------------------------ states
def states(folders: Sequence[Path]) -> list[RunState]:
    """Of all runs, with one question to Slurm."""
    launches = {folder: journal.read(folder) for folder in folders}
    jobs = {folder: last_job(launches[folder]) for folder in folders}
    known = slurm.job_states(job for job in jobs.values() if job)
    locked = locked_inodes()
    return [_state(folder, launches[folder], jobs[folder], known, locked) for folder in folders]


def last_job(launches: Sequence[Launch]) -> str:
    """Slurm's id of the job that was submitted last; "" when the last start was a local one, or there is none."""
    for launch in reversed(launches):
        if launch.event in ("submitted", "started"):
            return "" if launch.job == LOCAL else launch.job
    return ""


def _state(
    folder: Path, launches: Sequence[Launch], job: str, known: Mapping[str, JobState], locked: frozenset[int]
) -> RunState:
    config = yaml.safe_load((folder / "config.yaml").read_text())
    rounds = int(config["rounds"])
    lines = _tail(folder / "metrics.jsonl")
    done = int(lines[-1]["round"]) + 1 if lines else 0
    results = _results(folder)
    best = best_metric(folder, str(config["model"]["kind"]), results)
    if results is not None and results.get("rounds") == rounds and done >= rounds:
        return RunState(folder, "finished", done, rounds, best=best, job=job)
    state, reason = _by_slurm(folder, job, known[job]) if job in known else _by_files(folder, launches, job, locked)
    left = None
    if state == "running":
        seconds = [float(line["seconds"]) for line in lines[-RECENT:] if "seconds" in line]
        left = statistics.fmean(seconds) * (rounds - done) if seconds else None
        silent = _silence(folder, launches)
        if silent > max(float(config["runtime"]["timeout_s"]), SILENT_ROUNDS * max(seconds, default=0.0)):
            state, left, reason = "stalled", None, f"nothing written for {duration(silent)}"
    return RunState(folder, state, done, rounds, left, best, reason, job)


def _by_slurm(folder: Path, job: str, now: JobState) -> tuple[str, str]:
    launches = journal.of_job(folder, job)
    last = launches[-1] if launches else None
    requeued = [launch for launch in launches if launch.event == "requeued"]
    if now.state in WAITING or (now.state in ACTIVE and last is not None and last.event == "requeued"):
        why = now.reason.strip("()") if now.state in WAITING else ""
        if requeued:
            return "requeued", "; ".join(part for part in (requeued[-1].reason, why) if part)
        return "queued", why
    if now.state in ACTIVE:
        return "running", f"restarts: {len(requeued)}" if requeued else ""
    if now.state.startswith("CANCELLED"):
        return "cancelled", ""
    ended = [launch for launch in launches if launch.event == "ended"]
    said = ended[-1].reason if ended else last_words(folder, job)
    if ended and ended[-1].exit_code == EXIT_PREEMPTED:
        return "stopped", said
    return "failed", said or f"Slurm says {now.state}" + (f" ({now.reason})" if now.reason else "")


def _by_files(folder: Path, launches: Sequence[Launch], job: str, locked: frozenset[int]) -> tuple[str, str]:
    last = launches[-1] if launches else None
    if _inode(folder / ".lock") in locked:
        return "running", ""
    if last is not None and last.event == "ended" and last.exit_code not in (0, EXIT_PREEMPTED):
        return "failed", last.reason
    if last is not None and job and last.event != "ended":
        return "failed", f"Slurm has forgotten job {job}, which never ended in order; {last_words(folder, job)}".strip(
            "; "
        )
    if last is not None and last.event == "started" and time.time() - last.time < 60:
        return "running", "starting"
    begun = (folder / "metrics.jsonl").is_file() or last is not None
    return ("stopped", last.reason if last else "") if begun else ("not started", "")


def _silence(folder: Path, launches: Sequence[Launch]) -> float:
    """Seconds since the run last wrote something, or started."""
    signs = [launch.time for launch in launches[-1:]]
    for name in ("metrics.jsonl", "evaluation.jsonl", ".lock", "config.yaml"):
        try:
            signs.append((folder / name).stat().st_mtime)
        except OSError:
            continue
    return time.time() - max(signs, default=time.time())


def locked_inodes(locks: str | None = None) -> frozenset[int]:
    """Files on which a process of this machine holds a lock. Read from the kernel: trying to lock could stop a run that
    is just starting."""
    if locks is None:
        locks = LOCKS.read_text() if LOCKS.is_file() else ""
    return frozenset(int(inode) for inode in re.findall(r"WRITE\s+-?\d+ [0-9a-f]+:[0-9a-f]+:(\d+) ", locks))


def _inode(path: Path) -> int:
    try:
        return path.stat().st_ino
    except OSError:
        return -1


# ----------------------------------------------------------------------------------------------------------- metrics
def best_metric(folder: Path, kind: str, results: Mapping[str, Any] | None) -> tuple[str, float, int] | None:
    """The first metric of the run's table, as mean over the clients that train: of a finished run the final
    one, else the best on the way."""
    metric = next(iter(SHOWN[kind]))
    by_round: dict[tuple[str, int], list[float]] = {}
    for line in _tail(folder / "evaluation.jsonl"):
        value = line.get(metric)
        if value is not None and not str(line.get("client", "")).endswith(" (unseen)"):
            by_round.setdefault((str(line["split"]), int(line["round"]) + 1), []).append(float(value))
    means = {key: statistics.fmean(values) for key, values in by_round.items()}
    if results is not None and metric in results.get("summary", {}):
        value = results["summary"][metric]["mean"]
        means = {(str(results["split"]), int(results["rounds"])): value} if value is not None else {}
    if not means:
        return None
    (_, index), value = max(means.items(), key=lambda item: item[1])
    return SHOWN[kind][metric], value, index


def _results(folder: Path) -> dict[str, Any] | None:
    try:
        results: dict[str, Any] = json.loads((folder / "results.json").read_text())
    except (OSError, json.JSONDecodeError):
        return None
    return results


def _tail(path: Path) -> list[dict[str, Any]]:
    """The last lines of a JSON-lines file; a torn one is left out."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(0, size - TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return []
    found = []
    for line in lines[1:] if size > TAIL_BYTES else lines:
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found


# ------------------------------------------------------------------------------------------------------------- table
def table(runs: Sequence[RunState], base: Path) -> Table:
    """A row a run; names are relative to `base`."""
    counts = {state: sum(run.state == state for run in runs) for state in dict.fromkeys(run.state for run in runs)}
    told = ", ".join(f"{number} {state}" for state, number in counts.items())
    grid = Table(title=f"{base}\n{told}", title_justify="left")
    grid.add_column("run")
    grid.add_column("state")
    for heading in ("round", "left", "best"):
        grid.add_column(heading, justify="right")
    grid.add_column("job")
    grid.add_column("why")
    for run in runs:
        name = "." if run.folder == base else str(run.folder.relative_to(base))
        colour = COLOURS.get(run.state)
        best = "-" if run.best is None else f"{run.best[0]} {run.best[1]:.3f} (round {run.best[2]})"
        grid.add_row(
            name,
            f"[{colour}]{run.state}[/]" if colour else run.state,
            f"{run.round}/{run.rounds}",
            "-" if run.left_s is None else duration(run.left_s),
            best,
            run.job or "-",
            run.reason.replace("[", r"\["),
        )
    return grid


def duration(seconds: float) -> str:
    """14 s, 3 min, 2 h 05 min, 3 d 4 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"
