"""The ranks that decode: processes of this machine (``--ranks N``), or a job's with MPI. Rank 0 leads, and decodes."""

from __future__ import annotations

import multiprocessing
import signal
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol, TypeVar

T = TypeVar("T")
R = TypeVar("R")
Work = Callable[[Any, Callable[[], None]], Any]  # (task, called now and then) -> result
AHEAD = 2  # tasks that a rank has at a time, so that it need not wait for the next
STOP = None


class Crew(Protocol):
    """Rank 0's view of the others."""

    rank: int
    size: int

    def agree(self, error: str, fingerprint: str) -> None:
        """Every rank calls this once, before the work. Raises ValueError where one has an error, or other rows."""

    def start(self, work: Work) -> bool:
        """Make the others ready. False on a rank that has served until the end, and has nothing left to do."""

    def give(self, rank: int, task: Any) -> None:
        """Rank 0: hand over a task. Does not wait."""

    def take(self, wait_s: float) -> list[tuple[int, Any]]:
        """Rank 0: (rank, result) of those that are done. Raises what went wrong there."""

    def close(self) -> None:
        """Rank 0, whatever happened."""


def run(crew: Crew, tasks: Iterable[T], work: Callable[[T, Callable[[], None]], R]) -> Iterator[R]:
    """Results in the order in which they are ready. Rank 0 hands out tasks between its own rows of work."""
    todo = deque(tasks)
    busy = dict.fromkeys(range(1, crew.size), 0)
    ready: deque[R] = deque()

    def exchange(wait_s: float = 0.0) -> None:
        for rank, result in crew.take(wait_s) if any(busy.values()) else ():
            busy[rank] -= 1
            ready.append(result)
        for rank in busy:
            while todo and busy[rank] < AHEAD:
                busy[rank] += 1
                crew.give(rank, todo.popleft())

    while True:
        exchange(0.0 if todo or ready else 1.0)
        if ready:
            yield ready.popleft()
        elif todo:
            yield work(todo.popleft(), exchange)
        elif not any(busy.values()):
            return


def _attempt(work: Work, task: Any) -> Any:
    """(True, result), or (False, whether the user is to blame, what to say)."""
    try:
        return True, work(task, lambda: None)
    except ValueError as error:
        return False, True, str(error)
    except Exception:
        return False, False, traceback.format_exc()


def _opened(answer: Any, rank: int) -> Any:
    if answer[0]:
        return answer[1]
    if answer[1]:
        raise ValueError(answer[2])
    raise RuntimeError(f"rank {rank} failed:\n{answer[2]}")


class Processes:
    """`size` - 1 forked processes: they inherit the table and the archives. One rank is no process more."""

    rank = 0

    def __init__(self, size: int) -> None:
        if size < 1:
            raise ValueError(f"--ranks is {size}: set 1 or more")
        self.size = size
        self._pipes: dict[int, Connection] = {}
        self._processes: dict[int, Any] = {}

    def agree(self, error: str, fingerprint: str) -> None:
        if error:
            raise ValueError(error)

    def start(self, work: Work) -> bool:
        fork = multiprocessing.get_context("fork")
        for rank in range(1, self.size):
            mine, theirs = fork.Pipe()
            others = [mine, *self._pipes.values()]  # inherited: held open, they would hide that rank 0 has died
            self._processes[rank] = fork.Process(target=_serve, args=(theirs, others, work), daemon=True)
            self._processes[rank].start()
            theirs.close()
            self._pipes[rank] = mine
        return True

    def give(self, rank: int, task: Any) -> None:
        try:
            self._pipes[rank].send(task)
        except OSError as error:
            raise self._lost(rank) from error

    def take(self, wait_s: float) -> list[tuple[int, Any]]:
        ranks = {id(pipe): rank for rank, pipe in self._pipes.items()}
        done = []
        for pipe in wait(list(self._pipes.values()), wait_s):
            rank = ranks[id(pipe)]
            try:
                done.append((rank, _opened(self._pipes[rank].recv(), rank)))
            except (EOFError, ConnectionError) as error:
                raise self._lost(rank) from error
        return done

    def _lost(self, rank: int) -> ChildProcessError:
        process = self._processes[rank]
        process.join(1.0)
        code = process.exitcode
        how = f"was killed by {signal.Signals(-code).name}" if code is not None and code < 0 else f"ended with {code}"
        return ChildProcessError(
            f"rank {rank} of {self.size} {how} while it decoded. Where memory ran out, set fewer --ranks; the same "
            "command goes on with what was decoded"
        )

    def close(self) -> None:
        for process in self._processes.values():
            process.terminate()
        for process in self._processes.values():
            process.join()
            process.close()
        for pipe in self._pipes.values():
            pipe.close()
        self._processes, self._pipes = {}, {}


def _serve(pipe: Connection, others: Sequence[Connection], work: Work) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # rank 0 gets it too, and ends us
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for other in others:
        other.close()
    try:
        while True:
            pipe.send(_attempt(work, pipe.recv()))
    except (EOFError, OSError):
        return  # rank 0 is gone


class Mpi:
    """The ranks of a job that mpirun or srun started; each has read the table for itself."""

    def __init__(self, world: int, launcher: str) -> None:
        try:
            from mpi4py import MPI
        except (ImportError, RuntimeError) as error:
            raise ValueError(
                f"{launcher} started {world} processes, and packing in them needs mpi4py ({error}): pip install -c "
                "constraints.txt -e '.[mpi]' where MPI's compilers are, or use --ranks on one machine"
            ) from error
        self._mpi, self._comm = MPI, MPI.COMM_WORLD
        self.rank, self.size = self._comm.rank, self._comm.size
        if self.size != world:
            raise ValueError(
                f"{launcher} started {world} processes, but MPI sees {self.size}: mpi4py was built for another MPI "
                "than the one that starts it. Under Slurm: srun --mpi=pmix (srun --mpi=list names others), or mpirun"
            )
        self._agreed = False
        self._busy = dict.fromkeys(range(1, self.size), 0) if self.rank == 0 else {}

    def agree(self, error: str, fingerprint: str) -> None:
        if self._agreed:  # during the work only rank 0 fails, and tells the others to stop
            if error:
                raise ValueError(error)
            return
        self._agreed = True
        said = self._comm.allgather((error, fingerprint))
        errors = {text: [r for r, (other, _) in enumerate(said) if other == text] for text, _ in said if text}
        if errors:
            where = [text if len(ranks) == self.size else f"rank {ranks[0]}: {text}" for text, ranks in errors.items()]
            raise ValueError("; ".join(where))
        odd = [r for r, (_, other) in enumerate(said) if other != said[0][1]]
        if odd:
            raise ValueError(f"rank {odd[0]} reads other rows than rank 0: all ranks must see the same files")

    def start(self, work: Work) -> bool:
        if self.rank == 0:
            return True
        while (task := self._receive(0)) is not STOP:
            self._comm.send(_attempt(work, task), 0)
        return False

    def _receive(self, source: int) -> Any:
        while not self._comm.iprobe(source):  # a plain receive would keep a core busy
            time.sleep(0.001)
        return self._comm.recv(source=source)

    def give(self, rank: int, task: Any) -> None:
        self._comm.send(task, rank)
        self._busy[rank] += 1

    def take(self, wait_s: float) -> list[tuple[int, Any]]:
        deadline = time.monotonic() + wait_s
        while True:
            done = []
            for rank in self._busy:
                if self._comm.iprobe(rank):
                    self._busy[rank] -= 1
                    done.append((rank, _opened(self._comm.recv(source=rank), rank)))
            if done or time.monotonic() >= deadline:
                return done
            time.sleep(0.001)

    def close(self) -> None:
        for rank, count in self._busy.items():
            for _ in range(count):
                self._receive(rank)
            self._comm.send(STOP, rank)
        self._busy = {}
