"""`fedhpc run CONFIG --ranks N`: N processes on this machine, watched until they end."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from fedhpc.exit_codes import EXIT_PREEMPTED, EXIT_RANK_LOST
from fedhpc.process import Stop, reserve_port
from fedhpc.runtime import STORE_FD, child_environment

POLL_S = 0.05
LAST_LINES = 20  # of a failed rank's log


def spawn_ranks(
    command: Sequence[str],
    num_ranks: int,
    log_folder: Path,
    threads: int,
    patience_s: float,
    stop: Stop | None = None,
    hope: str = "The run resumes from its last checkpoint when started again",
) -> int:
    """Run `command` as ranks 0..N-1; rank 0 speaks here, the others into log_folder/rank_K.log.

    The first rank that fails is named, with the last lines of its log.

    Args:
        patience_s: how long the others may take to end by themselves after one failed.
        stop: made earlier, so that a signal since then is not lost.
        hope: what to do when a rank failed.

    Returns:
        0; 75 when the ranks were asked to stop and did; 70 when one was killed; otherwise the exit code of the first
        rank that failed.
    """
    log_folder.mkdir(parents=True, exist_ok=True)
    listener = reserve_port()
    host, port = listener.getsockname()
    processes: list[subprocess.Popen[bytes]] = []
    logs = []
    for rank in range(num_ranks):
        environment = child_environment(
            {
                "RANK": str(rank),
                "WORLD_SIZE": str(num_ranks),
                "LOCAL_RANK": str(rank),
                "LOCAL_WORLD_SIZE": str(num_ranks),
                STORE_FD: f"{host}:{port}:{listener.fileno()}",
                "OMP_NUM_THREADS": str(threads),
            }
        )
        log = None if rank == 0 else (log_folder / f"rank_{rank}.log").open("wb")
        logs.append(log)
        processes.append(
            subprocess.Popen(
                list(command),
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(listener.fileno(),) if rank == 0 else (),
                # Kernels that group tasks by session (sched_autogroup) then give each rank a share of a busy node.
                start_new_session=True,
            )
        )
    listener.close()

    asked: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        for process in processes:
            if process.poll() is None:
                process.send_signal(number)

    old = {s: signal.signal(s, forward) for s in (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)}
    try:
        if stop is not None and stop.requested:
            forward(signal.SIGUSR2, None)
        return _watch(processes, log_folder, patience_s, asked, hope)
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.wait()
        for log in logs:
            if log is not None:
                log.close()


def _watch(
    processes: Sequence[subprocess.Popen[bytes]], log_folder: Path, patience_s: float, asked: Sequence[int], hope: str
) -> int:
    first: tuple[int, int] | None = None  # (rank, exit code) of the first failure
    deadline = float("inf")
    while None in (codes := [p.poll() for p in processes]):
        time.sleep(POLL_S)
        stopped = [code for code in codes if code is not None and _stopped(code, asked)]
        if stopped and deadline == float("inf"):
            deadline = time.monotonic() + patience_s  # the others stop at the same place, or wait for it in vain
        failure = _first_failure(codes, asked)
        if failure and first is None:
            first = failure
            deadline = time.monotonic() + patience_s
            _tell(*first, len(processes), log_folder, hope)
        if time.monotonic() > deadline:
            break  # the caller kills what is left: checkpoints are atomic, and a rank may hang for good
    if first is None:  # the last ranks ended together
        first = _first_failure(codes, asked)
        if first is not None:
            _tell(*first, len(processes), log_folder, hope)
    if first is not None:
        return first[1] if first[1] > 0 else EXIT_RANK_LOST
    if all(code == 0 for code in codes):
        return 0
    at_once = [code for code in codes if code is not None and code - 128 in asked]
    if at_once:
        print("fedhpc: stopped at once; the same command goes on from the last checkpoint", file=sys.stderr, flush=True)
        return at_once[0]
    if EXIT_PREEMPTED not in codes:  # else a rank has said so
        print(
            "fedhpc: asked to stop while the ranks were starting; run the same command again",
            file=sys.stderr,
            flush=True,
        )
    return EXIT_PREEMPTED


def _stopped(code: int, asked: Sequence[int]) -> bool:
    """Whether a rank ended because it was asked to: at a checkpoint, at once when it was asked again, or so early that
    it could not catch the signal."""
    return code == EXIT_PREEMPTED or -code in asked or code - 128 in asked


def _first_failure(codes: Sequence[int | None], asked: Sequence[int]) -> tuple[int, int] | None:
    """(rank, exit code). A rank that was killed is the cause; one with an exit code may only have noticed."""
    failed = [(rank, code) for rank, code in enumerate(codes) if code and not _stopped(code, asked)]
    return min(failed, key=lambda item: item[1] >= 0) if failed else None


def _tell(rank: int, code: int, world: int, log_folder: Path, hope: str) -> None:
    """Print what became of a rank. Rank 0's last words stand here already."""
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    log = log_folder / f"rank_{rank}.log"
    where = "" if rank == 0 else f"; its log is {log}"
    print(f"fedhpc: rank {rank} of {world} {how}{where}. {hope}", file=sys.stderr)
    if rank > 0:
        for line in log.read_text(errors="replace").splitlines()[-LAST_LINES:]:
            print(f"[rank {rank}] {line}", file=sys.stderr)
    sys.stderr.flush()
