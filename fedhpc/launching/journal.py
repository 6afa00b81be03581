"""RUN_DIR/launches.jsonl: one line for everything that was done to get a run to its end.

`fedhpc submit` and `fedhpc sweep` write "submitted"; the batch script writes "started" and "ended"; whoever queues the
job again writes "requeued" before, so that no job is queued again without a line that says so.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from fedhpc.run_folder import LAUNCHES

Event = Literal["submitted", "started", "requeued", "ended"]


@dataclass(frozen=True)
class Launch:
    """One line.

    Attributes:
        job: Slurm's id ("12", "12_3" in an array), or "local".
        time: seconds since 1970.
        rounds_done: in the newest checkpoint then.
        counts: a "requeued" that counts towards max_restarts.
        reason: of "requeued" and "ended", in words.
    """

    event: Event
    job: str
    time: float
    rounds_done: int = 0
    exit_code: int | None = None
    reason: str = ""
    counts: bool = False
    logs: str = ""  # of "submitted": pattern of the log files, for glob
    ranks: int = 1


def write(
    folder: Path,
    event: Event,
    job: str,
    *,
    rounds_done: int = 0,
    exit_code: int | None = None,
    reason: str = "",
    counts: bool = False,
    logs: str = "",
    ranks: int = 1,
) -> None:
    """Append a line, now."""
    line = Launch(event, job, time.time(), rounds_done, exit_code, reason, counts, logs, ranks)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LAUNCHES).open("a") as file:
        file.write(json.dumps(asdict(line)) + "\n")


def read(folder: Path) -> list[Launch]:
    """All lines in order; a torn last line is left out."""
    path = folder / LAUNCHES
    launches = []
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            launches.append(Launch(**json.loads(line)))
        except (json.JSONDecodeError, TypeError):
            continue
    return launches


def of_job(folder: Path, job: str) -> list[Launch]:
    """Those of one job."""
    return [launch for launch in read(folder) if launch.job == job]


@dataclass(frozen=True)
class Limits:
    """How often a job may go on.

    Attributes:
        max_restarts: of the cluster file.
        soon_s: seconds after a start at which its time limit is near.
    """

    max_restarts: int
    soon_s: float


@dataclass(frozen=True)
class Verdict:
    """Whether a job may be queued again, whether that counts as a restart, and why."""

    again: bool
    counts: bool
    reason: str


def verdict(folder: Path, job: str, rounds_done: int, limits: Limits, failed: bool) -> Verdict:
    """Whether a job that lost a rank (failed), or was asked to stop, may be queued again.

    Counted are losses, and time limits that were reached without one more checkpoint: either could go on for ever.
    Preemptions do not count: they are nobody's fault, and the cluster bounds them.
    """
    launches = of_job(folder, job)
    start = next((launch for launch in reversed(launches) if launch.event == "started"), None)
    stuck = start is not None and rounds_done <= start.rounds_done and time.time() - start.time >= limits.soon_s
    counts = failed or stuck
    so_far = sum(launch.counts for launch in launches if launch.event == "requeued")
    what = "a rank was lost" if failed else "time limit without a new checkpoint" if stuck else "asked to stop"
    if counts and so_far >= limits.max_restarts:
        return Verdict(
            False, True, f"{what}; {so_far} restarts were made already (max_restarts: {limits.max_restarts})"
        )
    return Verdict(True, counts, f"{what}, restart {so_far + 1} of {limits.max_restarts}" if counts else what)


def is_requeued(folder: Path, job: str) -> bool:
    """Whether the job has been queued again since it last started."""
    launches = of_job(folder, job)
    return bool(launches) and launches[-1].event == "requeued"
