"""Exit codes of `fedhpc run --ranks N`, with ranks that do nothing but end."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

import pytest

from fedhpc.exit_codes import EXIT_PREEMPTED, EXIT_RANK_LOST
from fedhpc.process import Stop
from fedhpc.spawn import spawn_ranks

PREAMBLE = "import os, signal, sys, time; rank = int(os.environ['RANK']); "


def play(tmp_path: Path, program: str, patience_s: float = 5.0, stop: Stop | None = None) -> int:
    return spawn_ranks([sys.executable, "-S", "-c", PREAMBLE + program], 2, tmp_path, 1, patience_s, stop)


@pytest.mark.parametrize(
    ("program", "code"),
    [
        ("sys.exit(0)", 0),
        ("sys.exit(75)", EXIT_PREEMPTED),
        ("sys.exit(2 if rank else 0)", 2),
        ("sys.exit(70 if rank else 0)", EXIT_RANK_LOST),
        ("os.kill(os.getpid(), signal.SIGKILL) if rank else sys.exit(70)", EXIT_RANK_LOST),
        ("os.kill(os.getpid(), signal.SIGTERM) if rank else sys.exit(0)", EXIT_RANK_LOST),  # nobody asked us
    ],
)
def test_exit_codes(program: str, code: int, tmp_path: Path) -> None:
    assert play(tmp_path, program) == code


def test_a_killed_rank_is_named_and_the_others_do_not_wait_for_ever(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program = "print('last words', flush=True); os.kill(os.getpid(), signal.SIGKILL) if rank else time.sleep(100)"
    assert play(tmp_path, program, patience_s=0.2) == EXIT_RANK_LOST
    said = capsys.readouterr().err
    assert "rank 1 of 2 was killed by SIGKILL" in said
    assert "[rank 1] last words" in said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_ranks_that_a_forwarded_signal_ends_were_stopped_not_lost(number: signal.Signals, tmp_path: Path) -> None:
    """In their first moments they cannot catch it; there is nothing to lose by then."""
    timer = threading.Timer(0.5, os.kill, (os.getpid(), number))
    timer.start()
    assert play(tmp_path, "time.sleep(100)") == EXIT_PREEMPTED
    timer.join()


def test_ranks_that_were_asked_again_were_stopped_not_lost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    timer = threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    assert play(tmp_path, "signal.signal(signal.SIGINT, lambda n, f: sys.exit(128 + n)); time.sleep(100)") == 130
    said = capsys.readouterr().err
    assert "stopped at once" in said
    assert "ended with exit code" not in said
    timer.join()


def test_a_signal_before_the_ranks_began_reaches_them(tmp_path: Path) -> None:
    stop = Stop()
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        assert play(tmp_path, "time.sleep(100)", stop=stop) == EXIT_PREEMPTED
    finally:
        stop.restore()
