"""`fedhpc run CONFIG --ranks N`: N processes on this machine, watched until they end."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from fedhpc.runtime import EXIT_PREEMPTED, STORE_FD, child_environment, reserve_port

POLL_S = 0.05


def spawn_ranks(command: Sequence[str], num_ranks: int, log_folder: Path, threads: int, patience_s: float) -> int:
    """Run `command` as ranks 0..N-1; rank 0 speaks here, the others into log_folder/rank_K.log.

    Args:
        patience_s: how long the others may take to end by themselves after one failed.

    Returns:
        0; 75 when all ranks stopped at a checkpoint; otherwise the exit code of the first rank that failed.
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

    def forward(number: int, frame: FrameType | None) -> None:
        for process in processes:
            if process.poll() is None:
                process.send_signal(number)

    old = {s: signal.signal(s, forward) for s in (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)}
    try:
        return _watch(processes, log_folder, patience_s)
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


def _watch(processes: Sequence[subprocess.Popen[bytes]], log_folder: Path, patience_s: float) -> int:
    first: tuple[int, int] | None = None  # (rank, exit code) of the first failure
    deadline = 0.0
    while None in (codes := [p.poll() for p in processes]):
        time.sleep(POLL_S)
        failed = [(rank, code) for rank, code in enumerate(codes) if code not in (None, 0, EXIT_PREEMPTED)]
        if failed and first is None:
            # A rank that was killed is the cause; one with an exit code may only have noticed.
            first = min(failed, key=lambda item: item[1] >= 0)
            deadline = time.monotonic() + patience_s
            print(f"fedhpc: {_fate(*first, len(processes), log_folder)}", file=sys.stderr, flush=True)
        if first is not None and time.monotonic() > deadline:
            break  # the caller kills what is left: checkpoints are atomic, and a rank may hang for good
    failed = [(rank, code) for rank, code in enumerate(codes) if code not in (None, 0, EXIT_PREEMPTED)]
    if first is None and failed:  # the last ranks ended together
        first = min(failed, key=lambda item: item[1] >= 0)
        print(f"fedhpc: {_fate(*first, len(processes), log_folder)}", file=sys.stderr, flush=True)
    if first is not None:
        return first[1] if first[1] > 0 else 128 - first[1]
    return EXIT_PREEMPTED if EXIT_PREEMPTED in codes else 0


def _fate(rank: int, code: int, world: int, log_folder: Path) -> str:
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    where = "" if rank == 0 else f"; its log is {log_folder / f'rank_{rank}.log'}"
    return f"rank {rank} of {world} {how}{where}. The run resumes from its last checkpoint when started again"
