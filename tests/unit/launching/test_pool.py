"""A sweep's processes on this machine: some at a time, each for itself, all asked to stop together."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from fedhpc.exit_codes import EXIT_PREEMPTED
from fedhpc.launching import journal, pool
from fedhpc.launching.pool import Outcome, Pool

PLAY = """
import os, signal, sys, time
from pathlib import Path
folder = Path(sys.argv[1])
(folder / "begun").touch()
how = (folder / "how").read_text()
if how == "crash": os.kill(os.getpid(), signal.SIGKILL)
if how == "mistake": sys.exit("fedhpc: data.path = x: no such file") or sys.exit(2)
if how == "wait":
    signal.signal(signal.SIGTERM, lambda *_: os._exit(75))
    (folder / "ready").touch()
    time.sleep(60)
time.sleep(0.2)
"""


@pytest.fixture(autouse=True)
def short_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "command", lambda folder, ranks: [sys.executable, "-c", PLAY, str(folder)])


def runs(folder: Path, *how: str) -> list[tuple[str, Path, int]]:
    found = []
    for number, text in enumerate(how):
        path = folder / f"run{number}"
        path.mkdir()
        (path / "how").write_text(text)
        found.append((path.name, path, 1))
    return found


def test_so_many_at_once_and_a_crash_takes_no_other(tmp_path: Path) -> None:
    ended: list[Outcome] = []
    started: list[str] = []
    under_way: list[int] = []

    def on_start(name: str) -> None:
        started.append(name)
        under_way.append(len(started) - len(ended))

    outcomes = Pool(2, 1).play(runs(tmp_path, "ok", "crash", "mistake", "ok", "ok"), on_start, ended.append)
    assert started == [f"run{number}" for number in range(5)]
    assert ended == outcomes
    codes = {outcome.name: outcome.exit_code for outcome in outcomes}
    assert codes == {"run0": 0, "run1": 137, "run2": 1, "run3": 0, "run4": 0}
    reasons = {outcome.name: outcome.reason for outcome in outcomes}
    assert reasons["run1"] == "killed by SIGKILL"
    assert reasons["run2"] == "data.path = x: no such file"
    assert max(under_way) == 2
    assert [launch.event for launch in journal.read(tmp_path / "run1")] == ["started", "ended"]
    assert journal.read(tmp_path / "run2")[-1].reason == "data.path = x: no such file"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["TERM", "INT"])
def test_a_signal_stops_all_at_a_checkpoint_and_starts_no_more(number: signal.Signals, tmp_path: Path) -> None:
    before = signal.getsignal(number)

    def send() -> None:
        deadline = time.monotonic() + 30
        while len(list(tmp_path.glob("*/ready"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        os.kill(os.getpid(), number)

    sender = threading.Thread(target=send)
    sender.start()
    players = Pool(2, 1)
    outcomes = players.play(runs(tmp_path, "wait", "wait", "ok"), lambda name: None, lambda outcome: None)
    sender.join()
    assert players.stopping
    assert [outcome.exit_code for outcome in outcomes] == [EXIT_PREEMPTED] * 2
    assert "goes on from there" in outcomes[0].reason
    assert not (tmp_path / "run2" / "begun").exists()
    assert signal.getsignal(number) == before
