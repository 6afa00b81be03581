"""Ranks that die, hang or are asked to stop: the job ends in time, says who, and goes on to the same result."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from tests.e2e.command import SMOKE, TIMEOUT_S, child_of_rank, fedhpc, finish, send, sha_of, start, wait_for_rounds

CONFIG = str(SMOKE / "fedavg.yaml")
LONG = (
    "rounds=12",
    "fit.steps=12",
    "data.path=phantom.h5",
    "report.tensorboard=false",
    "report.plots=false",
    "evaluation.every=5",
)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder with the data, and the sha256 of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("failure")
    code, out, err = fedhpc(folder, "run", CONFIG, *LONG, "--run-dir", "whole")
    assert code == 0, err
    return folder, sha_of(out)


def test_kill_9_of_a_rank_and_resume_on_other_ranks(uninterrupted: tuple[Path, str]) -> None:
    folder, sha = uninterrupted
    process = start(folder, "run", CONFIG, *LONG, "--run-dir", "killed", "--ranks", "2")
    wait_for_rounds(folder / "killed", 3, process)
    send(child_of_rank(process.pid, 1), signal.SIGKILL)
    killed = time.monotonic()
    code, _, err = finish(process)
    assert code == 70
    assert "rank 1 of 2 was killed by SIGKILL" in err
    assert time.monotonic() - killed < 60  # runtime.timeout_s of the config
    code, out, err = fedhpc(folder, "run", CONFIG, *LONG, "--run-dir", "killed", "--ranks", "3")
    assert code == 0, err
    assert "resuming after round" in err
    assert sha_of(out) == sha


def test_a_rank_that_hangs_is_named_by_the_others(uninterrupted: tuple[Path, str]) -> None:
    """SIGSTOP keeps the connection open, so only silence tells. Nothing watches from outside but the other rank."""
    folder, _ = uninterrupted
    process = start(folder, "run", CONFIG, *LONG, "--run-dir", "hung", "--ranks", "2", "runtime.timeout_s=6")
    wait_for_rounds(folder / "hung", 2, process)
    silent = child_of_rank(process.pid, 1)
    send(silent, signal.SIGSTOP)
    stopped = time.monotonic()
    try:
        code, _, err = finish(process, timeout=60)
    finally:
        with contextlib.suppress(ProcessLookupError):  # the parent has done it
            send(silent, signal.SIGKILL)
    assert code == 70
    assert "rank 1 of 2 died or stopped answering in round" in err, err
    assert time.monotonic() - stopped < 6 + 10 + 10, "timeout, then the parent's patience, then a margin"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2], ids=["TERM", "USR2"])
def test_a_signal_checkpoints_and_says_so(number: signal.Signals, uninterrupted: tuple[Path, str]) -> None:
    folder, sha = uninterrupted
    name = f"stopped_{number.name}"
    process = start(folder, "run", CONFIG, *LONG, "--run-dir", name, "--ranks", "2", "checkpoint.every=100")
    wait_for_rounds(folder / name, 2, process)
    process.send_signal(number)
    code, _, err = finish(process)
    assert code == 75, err
    assert "a checkpoint of" in err
    code, out, err = fedhpc(folder, "run", CONFIG, *LONG, "--run-dir", name)
    assert code == 0, err
    assert sha_of(out) == sha


@pytest.mark.parametrize("ranks", [(), ("--ranks", "2")], ids=["alone", "two"])
def test_a_signal_in_the_first_seconds_is_not_lost(ranks: tuple[str, ...], uninterrupted: tuple[Path, str]) -> None:
    """Before anything was trained: nothing to lose, and the same command goes on."""
    folder, sha = uninterrupted
    name = f"early_{len(ranks)}"
    process = start(folder, "run", CONFIG, *LONG, "--run-dir", name, *ranks)
    wait_for_handler(process)
    process.terminate()
    code, _, err = finish(process)
    assert code == 75, err
    assert "asked to stop" in err
    assert not (folder / name / "metrics.jsonl").exists()
    if ranks:
        code, out, err = fedhpc(folder, "run", CONFIG, *LONG, "--run-dir", name)
        assert code == 0, err
        assert sha_of(out) == sha


def test_a_run_stops_before_its_allocation_ends(uninterrupted: tuple[Path, str]) -> None:
    """Every start does a round at least, so that a job that is queued again comes to its end."""
    folder, _ = uninterrupted
    soon = {"FEDHPC_END_TIME": str(int(time.time()) + 500)}
    arguments = ("run", CONFIG, *LONG, "rounds=2", "evaluation.every=1", "--run-dir", "short", "--ranks", "2")
    code, _, err = fedhpc(folder, *arguments, "runtime.time_margin_s=1000", extra=soon)
    assert code == 75, err
    assert "a checkpoint of 1 of 2 rounds is written" in err
    code, _, err = fedhpc(folder, *arguments, extra={"FEDHPC_END_TIME": str(int(time.time()) + 10_000)})
    assert code == 0, err
    assert "resuming after round 1" in err


def test_a_mistake_that_one_rank_sees_ends_all_as_a_mistake(uninterrupted: tuple[Path, str]) -> None:
    """Else a batch script would take it for a lost rank, and start again. Rank 0 alone looks into the run folder."""
    folder, _ = uninterrupted
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
    arguments = ("run", CONFIG, *LONG, "fit.steps=2", "--run-dir", "whole")
    common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = [start(folder, *arguments, extra=common | {"RANK": str(r), "LOCAL_RANK": str(r)}) for r in range(2)]
    for rank, process in enumerate(ranks):
        code, _, err = finish(process)
        assert code == 2, f"rank {rank}: {err}"
        assert "fit.steps was 12, is 2" in err, f"rank {rank}: {err}"


def wait_for_handler(process: subprocess.Popen[str]) -> None:
    """Until the process catches SIGTERM, which is long before it trains."""
    deadline = time.monotonic() + TIMEOUT_S
    bit = 1 << (signal.SIGTERM - 1)
    while True:
        status = Path(f"/proc/{process.pid}/status").read_text()
        if int(status.split("SigCgt:")[1].split()[0], 16) & bit:
            return
        assert process.poll() is None and time.monotonic() < deadline, finish(process)
        time.sleep(0.01)


def test_two_runs_in_one_folder_are_refused(uninterrupted: tuple[Path, str]) -> None:
    folder, _ = uninterrupted
    process = start(folder, "run", CONFIG, *LONG, "--run-dir", "shared")
    wait_for_rounds(folder / "shared", 1, process)
    code, _, err = fedhpc(folder, "run", CONFIG, *LONG, "--run-dir", "shared")
    process.terminate()
    finish(process)
    assert code == 2
    assert "another process is running" in err
