"""Runs cases of a target in a process of its own, which may crash, hang or ask for too much memory without harm.

A case is a pure function of (target, seed, number), so that `--target T --seed S --case N` shows it again.
"""

from __future__ import annotations

import multiprocessing
import random
import resource
import shutil
import signal
import tempfile
import time
import traceback
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

CPU_S = 10.0  # of a case of a few kilobytes; one that takes more hangs
PATIENCE_S = 240.0  # for a case that waits; machines are busy
MEMORY_BYTES = 1 << 30  # more than this on top of what is in use is huge, for files of a few kilobytes


class Target(Protocol):
    """What is fuzzed."""

    name: str
    declared: tuple[type[BaseException], ...]  # errors that bad input may raise

    def prepare(self, folder: Path) -> None:
        """Write good files, to be damaged. Called once."""

    def damage(self, seeds: Path, folder: Path, rng: random.Random) -> None:
        """Write a case into an empty folder."""

    def exercise(self, folder: Path) -> None:
        """Read it."""


@dataclass
class Finding:
    """A case that ended otherwise than it may."""

    target: str
    seed: int
    case: int
    what: str  # exception, signal or hang
    where: str = ""  # last frames within fedhpc


@dataclass
class Outcome:
    """Of one target."""

    cases: int = 0
    seconds: float = 0.0
    accepted: int = 0  # cases that were read without an error
    findings: list[Finding] = field(default_factory=list)


def rng_of(target: str, seed: int, case: int) -> random.Random:
    return random.Random(f"{target}/{seed}/{case}")


def one(target: Target, seeds: Path, seed: int, case: int) -> tuple[bool, Finding | None]:
    """(accepted, finding) of one case, in this process."""
    folder = Path(tempfile.mkdtemp(dir=seeds.parent))
    try:
        target.damage(seeds, folder, rng_of(target.name, seed, case))
        try:
            target.exercise(folder)
        except target.declared:
            return False, None
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            frames = traceback.extract_tb(error.__traceback__)
            own = [f"{Path(f.filename).name}:{f.name}:{f.lineno}" for f in frames if "/fedhpc/" in f.filename]
            return False, Finding(target.name, seed, case, f"{type(error).__name__}: {error}"[:300], " ".join(own[-3:]))
        return True, None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _work(target: Target, seeds: str, seed: int, first: int, cpu_s: float, pipe: Connection) -> None:
    """Cases from `first` on, until the pipe is closed. Says which case begins before it begins."""
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + MEMORY_BYTES, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # ends the process, in whatever library it is
    case = first
    try:
        while True:
            pipe.send(("begin", case))
            signal.setitimer(signal.ITIMER_PROF, cpu_s)
            accepted, finding = one(target, Path(seeds), seed, case)
            signal.setitimer(signal.ITIMER_PROF, 0)
            pipe.send(("end", accepted, finding))
            case += 1
    except (BrokenPipeError, ConnectionResetError):
        return


def fuzz(
    target: Target,
    seed: int,
    *,
    seconds: float | None = None,
    cases: int | None = None,
    first: int = 0,
    cpu_s: float = CPU_S,
) -> Outcome:
    """As many cases as fit, or as are asked for. The clock runs while cases do, not while a process starts."""
    outcome = Outcome()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["h5py", "fedhpc.federation.checkpoint", "fedhpc.config.load"])
    case = first

    def over() -> bool:
        late = seconds is not None and outcome.seconds >= seconds
        return late or (cases is not None and outcome.cases >= cases)

    with tempfile.TemporaryDirectory() as scratch:
        seeds = Path(scratch) / "seeds"
        seeds.mkdir()
        target.prepare(seeds)
        while not over():
            mine, theirs = context.Pipe(duplex=False)
            process = context.Process(target=_work, args=(target, str(seeds), seed, case, cpu_s, theirs), daemon=True)
            process.start()
            theirs.close()
            lost, since = "", None
            while not over() and not lost:
                message = _next(mine)
                now = time.monotonic()
                if since is not None:
                    outcome.seconds += now - since
                since = now
                if message is None:
                    process.join(1.0)
                    lost = "hang" if process.is_alive() else "crash"
                elif message[0] == "begin":
                    case = message[1]
                else:
                    outcome.cases += 1
                    outcome.accepted += message[1]
                    if message[2] is not None:
                        outcome.findings.append(message[2])
                    case += 1
            if process.is_alive():
                process.kill()
            process.join()
            mine.close()
            if lost:
                what = f"no answer within {PATIENCE_S:.0f} s" if lost == "hang" else f"exit code {process.exitcode}"
                if process.exitcode == -signal.SIGPROF:
                    what = f"more than {cpu_s:g} s of processor time"
                outcome.findings.append(Finding(target.name, seed, case, what))
                outcome.cases += 1
                case += 1
            process.close()
    return outcome


def _next(pipe: Connection) -> Any:
    """The next message; None when none came in time, or the process is gone."""
    try:
        return pipe.recv() if pipe.poll(PATIENCE_S) else None
    except (EOFError, ConnectionResetError):
        return None
