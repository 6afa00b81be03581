"""A sweep on this machine: runs as processes, some at a time. A run that crashes takes no other with it."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from fedhpc.exit_codes import EXIT_PREEMPTED
from fedhpc.launching import journal
from fedhpc.launching.logs import from_files
from fedhpc.run_folder import rounds_done
from fedhpc.runtime import child_environment

POLL_S = 0.1
JOB = "local"  # in the journal, where Slurm's jobs have their id
LOG = Path("logs") / "run.log"


@dataclass(frozen=True)
class Outcome:
    """How a run ended. reason: "" when it came to its end."""

    name: str
    exit_code: int
    seconds: float
    reason: str = ""


def command(folder: Path, ranks: int) -> list[str]:
    """What plays the run whose config lies in the folder."""
    line = [sys.executable, "-m", "fedhpc.cli", "run", str(folder / "config.yaml"), "--run-dir", str(folder)]
    return [*line, *(["--ranks", str(ranks)] if ranks > 1 else [])]


class Pool:
    """Starts runs, at most `at_once` at a time. SIGTERM, SIGUSR2 and Ctrl-C stop all of them at their next checkpoint,
    a second Ctrl-C at once."""

    def __init__(self, at_once: int, ranks: int) -> None:
        self._at_once = at_once
        self._ranks = ranks
        self._under_way: dict[str, tuple[Path, subprocess.Popen[bytes], float]] = {}
        self.stopping = False

    def play(
        self, runs: Sequence[tuple[str, Path, int]], on_start: Callable[[str], None], on_end: Callable[[Outcome], None]
    ) -> list[Outcome]:
        """Every (name, run folder, threads a rank), to its end. Returns how those ended that were started."""
        waiting, outcomes = list(runs), []
        numbers = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)
        old = {number: signal.signal(number, self._stop) for number in numbers}
        try:
            while self._under_way or (waiting and not self.stopping):
                while waiting and len(self._under_way) < self._at_once and not self.stopping:
                    name, folder, threads = waiting.pop(0)
                    self._start(name, folder, threads)
                    on_start(name)
                time.sleep(POLL_S)
                for outcome in self._collect():
                    outcomes.append(outcome)
                    on_end(outcome)
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)
            for _, process, _ in self._under_way.values():  # only after an error of ours
                process.kill()
                process.wait()
        return outcomes

    def _start(self, name: str, folder: Path, threads: int) -> None:
        log = folder / LOG
        log.parent.mkdir(parents=True, exist_ok=True)
        journal.write(folder, "started", JOB, rounds_done=rounds_done(folder), ranks=self._ranks)
        with log.open("wb") as stream:
            process = subprocess.Popen(
                command(folder, self._ranks),
                env=child_environment({"OMP_NUM_THREADS": str(threads)}),
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                start_new_session=True,  # Ctrl-C reaches this process only, which passes on a chance to checkpoint
            )
        self._under_way[name] = (folder, process, time.monotonic())

    def _collect(self) -> list[Outcome]:
        """Those that ended since the last call."""
        ended = []
        for name, (folder, process, started) in list(self._under_way.items()):
            code = process.poll()
            if code is None:
                continue
            del self._under_way[name]
            code = code if code >= 0 else 128 - code
            reason = "" if code == 0 else _reason(folder, code)
            journal.write(folder, "ended", JOB, rounds_done=rounds_done(folder), exit_code=code, reason=reason)
            ended.append(Outcome(name, code, time.monotonic() - started, reason))
        return ended

    def _stop(self, number: int, frame: FrameType | None) -> None:
        again = self.stopping and number == signal.SIGINT
        self.stopping = True
        for _, process, _ in self._under_way.values():
            if process.poll() is None:
                process.send_signal(signal.SIGKILL if again else signal.SIGTERM)


def _reason(folder: Path, code: int) -> str:
    if code == EXIT_PREEMPTED:
        return "stopped at a checkpoint; the same command goes on from there"
    said = from_files([folder / LOG])
    if code - 128 in {number.value for number in signal.Signals}:
        killed = f"killed by {signal.Signals(code - 128).name}"
        return f"{killed}: {said}" if said else killed
    return said or f"exit code {code}; its log is {folder / LOG}"
