"""Signs of life: finds out which rank died, because "connection closed by peer" does not say.

A thread in every rank counts up its own key in the rendezvous store and watches its right neighbour's. A neighbour
whose count stands still for the timeout is written down as lost, every rank reads that, and ends. When a collective
fails first, `diagnose` compares all counts to name the rank.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Sequence

import torch.distributed as dist

from fedhpc.exit_codes import EXIT_RANK_LOST, EXIT_USER_ERROR

HEARD_S = 5.0  # how long a rank with a user's mistake waits for the others to hear of it


class Liveness:
    """Started by every rank once the process group is up; `stop` before it goes down.

    Args:
        store: the rendezvous store, reachable by all ranks.
        timeout_s: silence after which a rank is taken for dead.
        context: tells where we are ("round 3"), for the error.
        on_lost: called with the error text and the exit code; ends the process so unless a test replaces it.
    """

    def __init__(
        self,
        store: dist.Store,
        rank: int,
        world: int,
        timeout_s: float,
        context: Callable[[], str],
        on_lost: Callable[[str, int], None] | None = None,
    ) -> None:
        self._store = dist.PrefixStore("fedhpc/alive", store)
        self._rank = rank
        self._world = world
        self._timeout = timeout_s
        self._interval = max(0.2, min(2.0, timeout_s / 10))
        self._context = context
        self._on_lost = on_lost or _end_process
        self._stopped = threading.Event()
        self._count = 0
        self._diagnosing = False
        self._refused: str | None = None
        self._beat()
        self._thread = threading.Thread(target=self._watch, name="fedhpc-liveness", daemon=True)

    def start(self) -> None:
        """After a barrier: every rank has written its first sign."""
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()

    def diagnose(self) -> str:
        """Names the ranks that stopped; waits a few beats for it. For use after a failed collective."""
        lost: Sequence[int]
        self._diagnosing = True  # the thread leaves the last word to this call
        try:
            # Who notices later must not take the ranks that noticed first, and ended, for the cause.
            lost = self._known_lost()
            if not lost:
                before = self._counts()
                time.sleep(3 * self._interval)
                self._beat()
                after = self._counts()
                silent = [r for r in range(self._world) if r != self._rank and before[r] == after[r]]
                lost = self._known_lost() or silent
                if lost:
                    self._store.set("lost", ",".join(map(str, lost)))
            if self._rank == 0:
                time.sleep(3 * self._interval)  # the store ends with this rank: let the others read it
        except RuntimeError:
            lost = [0]  # rank 0 serves the store
        if not lost:
            return f"no rank is silent, so the network or a collective is at fault ({self._context()})"
        return self._sentence(lost)

    def refuse(self, text: str) -> None:
        """This rank ends because of a user's mistake: the others shall not take it for a loss, and not start again."""
        try:
            self._store.set(f"heard/{self._rank}", "")  # whatever another rank says, this one ends in the same way
            if not self._store.check(["refused"]):
                self._store.set("refused", f"rank {self._rank} ended: {text}")
            if self._rank == 0:  # the store ends with this rank: let the others read it
                heard = [f"heard/{rank}" for rank in range(1, self._world)]
                deadline = time.monotonic() + max(HEARD_S, 3 * self._interval)
                while time.monotonic() < deadline and not self._store.check(heard):
                    time.sleep(0.05)
        except RuntimeError:
            return  # rank 0 is gone already, and its reason with it

    def refusal(self) -> str | None:
        """What a rank said that ended because of a user's mistake."""
        try:
            if self._refused is None and self._store.check(["refused"]):
                self._refused = self._store.get("refused").decode()
                self._store.set(f"heard/{self._rank}", "")
        except RuntimeError:
            pass  # rank 0 has ended: what was heard before holds
        return self._refused

    def _known_lost(self) -> list[int]:
        if not self._store.check(["lost"]):
            return []
        return [int(r) for r in self._store.get("lost").decode().split(",")]

    def _sentence(self, lost: Sequence[int]) -> str:
        names = ", ".join(f"rank {r}" for r in lost)
        return (
            f"{names} of {self._world} died or stopped answering in {self._context()}, noticed by rank {self._rank}. "
            "Run the same command again to resume from the last checkpoint"
        )

    def _beat(self) -> None:
        self._count += 1
        self._store.set(str(self._rank), str(self._count))

    def _counts(self) -> list[bytes]:
        return list(self._store.multi_get([str(r) for r in range(self._world)]))

    def _watch(self) -> None:
        neighbour = (self._rank + 1) % self._world
        seen, since = b"", time.monotonic()
        while not self._stopped.wait(self._interval):
            try:
                self._beat()
                count = self._store.get(str(neighbour))
                lost = self._known_lost()
                refused = self.refusal()
            except RuntimeError:
                # Rank 0 leaves last in an orderly end; a short wait tells an end from a loss.
                if not self._stopped.wait(2 * self._interval) and not self._diagnosing:
                    self._on_lost(self._sentence([0]), EXIT_RANK_LOST)
                return
            if refused and not self._diagnosing and not self._stopped.wait(self._interval):
                self._on_lost(refused, EXIT_USER_ERROR)  # the main thread waits for that rank, and cannot say so
                return
            now = time.monotonic()
            if count != seen:
                seen, since = count, now
            elif now - since > self._timeout:
                self._store.set("lost", str(neighbour))
                lost = [neighbour]
            if lost and not self._diagnosing:
                self._on_lost(self._sentence(lost), EXIT_RANK_LOST)
                return


def _end_process(text: str, code: int) -> None:
    # The main thread may hang inside a collective for good, so this thread ends the process. Checkpoints are atomic.
    print(f"fedhpc: {text}", file=sys.stderr, flush=True)
    os._exit(code)
