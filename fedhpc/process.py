"""What a process does to itself: signals, its heap, its last words. Knows neither ranks nor config."""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import NoReturn

ONE_REQUEST_S = 2.0  # Slurm and srun may both pass on one SIGTERM
LOOKS, LOOK_S = 3, 0.003  # looks in a row at which all other threads must sleep


class Stop:
    """SIGTERM, SIGUSR2 and SIGINT (Ctrl-C) ask for a checkpoint at the next safe point. A second SIGTERM or SIGINT ends
    at once.

    Made as early as possible, so that a signal during start-up is remembered until there is a safe point.
    """

    def __init__(self) -> None:
        self.requested = False
        self._since = 0.0
        self._old = {s: signal.signal(s, self._handle) for s in (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.requested and number != signal.SIGUSR2 and now - self._since > ONE_REQUEST_S:
            raise SystemExit(128 + number)
        if not self.requested:
            self.requested, self._since = True, now
            if number == signal.SIGINT:  # somebody waits; print() might be what the signal came upon
                os.write(
                    2, b"\nfedhpc: stopping at the end of this round, with a checkpoint; Ctrl-C again stops at once\n"
                )

    def restore(self) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)


def keep_heap(largest: int = 32 << 20) -> None:
    """Stop glibc from handing freed memory back between steps, up to 1 GiB of it.

    largest: bytes; what is larger is handed back all the same. Of a large model's tensors the heap would keep gigabytes
    in holes between others.

    A training step frees its activations at its end; glibc then shrinks the heap and grows it again in the next step:
    hundreds of page faults a step, up to a tenth of the time of a small network on a CPU (benchmarks/README.md).
    """
    if platform.libc_ver()[0] != "glibc":
        return
    trim_threshold, mmap_threshold = -1, -3  # parameter numbers of mallopt(3)
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(mmap_threshold, largest)  # 32 MiB are the most that glibc takes
    mallopt(trim_threshold, 1 << 30)


def settle() -> None:
    """Call once when all is built: hands back what building left on the heap, and tells the garbage collector that
    what is there stays, so that it does not look at half a million objects again and again."""
    gc.collect()
    gc.freeze()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def let_threads_rest(patience_s: float = 2.0) -> None:
    """Wait until no other thread of this process runs, or is about to (Linux).

    A thread of gloo drops the tensors of the last collective a moment after its caller has gone on.
    It needs the interpreter for that; where this one is being taken down by then, the process is aborted.
    """
    tasks, me = Path("/proc/self/task"), str(threading.get_native_id())
    if not tasks.is_dir():
        return
    deadline, at_rest = time.monotonic() + patience_s, 0
    while at_rest < LOOKS and time.monotonic() < deadline:
        time.sleep(LOOK_S)  # without the interpreter's lock: who waits for it gets it
        at_rest = at_rest + 1 if all(_sleeps(task) for task in tasks.iterdir() if task.name != me) else 0


def _sleeps(task: Path) -> bool:
    try:
        state = (task / "stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True  # it has ended
    return state != "R"


def end_with_parent() -> None:
    """A rank that `fedhpc run --ranks` started is asked to stop when that process is killed (Linux)."""
    if sys.platform == "linux":
        set_parent_death_signal = 1  # PR_SET_PDEATHSIG of prctl(2)
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM)


def warn(text: str) -> None:
    print(f"fedhpc: {text}", file=sys.stderr, flush=True)


def leave(code: int, text: str) -> NoReturn:
    """End this process now. The group may be broken, and taking it down in order could hang."""
    print(text, file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(code)


def reserve_port(host: str = "127.0.0.1") -> socket.socket:
    """A listening socket for the rendezvous store, to be inherited by rank 0."""
    listener = socket.create_server((host, 0), backlog=1024)
    listener.set_inheritable(True)
    return listener
