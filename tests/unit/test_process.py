"""What a process does to itself."""

from __future__ import annotations

import hashlib
import sys
import threading
import time

import pytest

from fedhpc.process import let_threads_rest


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_waits_for_threads_that_run_outside_the_interpreter() -> None:
    data, ended = bytes(64 << 20), threading.Event()

    def work() -> None:
        hashlib.sha256(data)  # without the interpreter's lock, as gloo's threads
        ended.set()

    thread = threading.Thread(target=work)
    thread.start()
    let_threads_rest(60.0)
    assert ended.is_set()
    thread.join()


def test_does_not_wait_for_threads_that_wait() -> None:
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    before = time.monotonic()
    let_threads_rest(60.0)
    assert time.monotonic() - before < 30
    stop.set()
    thread.join()
