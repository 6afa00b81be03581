"""Signals, the end of an allocation, how ranks meet. Ranks that really start are in tests/dist and tests/e2e."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fedhpc import process, runtime
from fedhpc.comm import rendezvous
from fedhpc.comm.mesh import Mesh
from fedhpc.comm.rendezvous import Met
from fedhpc.environment import Launch
from fedhpc.process import Stop
from fedhpc.runtime import Runtime, limit_threads, warn_if_alone

ALONE = Mesh(rank=0, world=1, shard=1, group=None)


@pytest.fixture
def stop() -> Iterator[Stop]:
    made = Stop()
    yield made
    made.restore()


def here(stop: Stop, **fields: Any) -> Runtime:
    return Runtime(Launch("single", 0, 1, 0, 1), ALONE, None, stop, **fields)  # type: ignore[arg-type]


def test_signals_are_remembered_and_handlers_come_back() -> None:
    numbers = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)
    before = [signal.getsignal(number) for number in numbers]
    for number in numbers:
        stop = Stop()
        assert not stop.requested
        os.kill(os.getpid(), number)
        assert stop.requested
        stop.restore()
    assert [signal.getsignal(number) for number in numbers] == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["TERM", "INT"])
def test_a_second_request_ends_at_once_but_an_echo_does_not(
    number: signal.Signals, stop: Stop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """srun and Slurm may both pass on what was one request; a terminal and torchrun, one Ctrl-C."""
    os.kill(os.getpid(), signal.SIGUSR2)
    os.kill(os.getpid(), number)
    monkeypatch.setattr(process, "ONE_REQUEST_S", 0.0)
    os.kill(os.getpid(), signal.SIGUSR2)
    with pytest.raises(SystemExit) as end:
        os.kill(os.getpid(), number)
        time.sleep(1.0)
    assert end.value.code == 128 + number


def test_ctrl_c_says_what_happens(stop: Stop, capfd: pytest.CaptureFixture[str]) -> None:
    os.kill(os.getpid(), signal.SIGINT)
    assert stop.requested
    assert "stopping at the end of this round" in capfd.readouterr().err


def test_a_run_stops_when_another_round_could_outlast_the_allocation(stop: Stop) -> None:
    now = time.time()
    assert not here(stop).must_stop(1e9), "no allocation, no end"
    os.environ["FEDHPC_END_TIME"] = str(int(now) + 1000)
    try:
        run = here(stop, ends_at=now + 1000, margin_s=100.0)
        assert not run.must_stop(800.0)
        assert run.must_stop(950.0)
        assert not run.must_stop(None), "the first round is always tried"
        os.environ["FEDHPC_END_TIME"] = str(int(now) + 5000)  # an operator prolonged the job
        assert not run.must_stop(950.0)
    finally:
        del os.environ["FEDHPC_END_TIME"]
    os.kill(os.getpid(), signal.SIGUSR2)
    assert run.must_stop(None)


def test_one_process_in_an_allocation_of_many_is_warned(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_NTASKS", "4")
    warn_if_alone(Launch("single", 0, 1, 0, 1))
    assert (
        "for 4 tasks, but one process runs alone; put srun before the command, or add --ranks 4"
        in capsys.readouterr().err
    )
    warn_if_alone(Launch("srun", 0, 4, 0, 4))
    assert capsys.readouterr().err == ""


def test_threads_of_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        monkeypatch.setenv(name, "64")
    limit_threads(2)
    assert os.environ["OMP_NUM_THREADS"] == os.environ["OPENBLAS_NUM_THREADS"] == "2"


# ------------------------------------------------------------------------------------------------------------ meeting
@pytest.fixture
def met(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which way was taken, instead of taking it."""
    taken: list[str] = []

    def way(name: str, address: str) -> Any:
        def take(*args: Any) -> Met:
            taken.append(name)
            return Met(None, address)  # type: ignore[arg-type]

        return take

    monkeypatch.setattr(rendezvous, "meet_by_file", way("file", "127.0.0.1"))
    monkeypatch.setattr(rendezvous, "meet_by_mpi", way("mpi", "127.0.0.1"))
    monkeypatch.setattr(rendezvous, "meet_by_environment", way("environment", "127.0.0.1"))
    monkeypatch.setenv("MASTER_ADDR", "node1")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "given")
    monkeypatch.delenv("MPI4PY_MPIABI", raising=False)
    return taken


@pytest.mark.parametrize(
    ("launch", "way"),
    [
        (Launch("srun", 0, 2, 0, 1, job="srun-7-0"), "file"),
        (Launch("submitit", 0, 2, 0, 2, job="submitit-9"), "file"),
        (Launch("Open MPI", 0, 2, 0, 2, job="open-mpi-3"), "mpi"),
        (Launch("MPICH", 0, 2, 0, 2), "mpi"),
        (Launch("torchrun", 0, 2, 0, 2, master=True), "environment"),
        (Launch("srun", 0, 2, 0, 1, job="srun-7-0", master=True), "environment"),
    ],
)
def test_ways_to_meet(launch: Launch, way: str, met: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPI4PY_MPIABI", "given")
    runtime._meet(launch, Path("runs"), 1.0)
    assert met == [way]
    assert os.environ["GLOO_SOCKET_IFNAME"] == os.environ["MPI4PY_MPIABI"] == "given", "what is set stays"


def test_without_mpi4py_open_mpi_meets_by_a_file_and_mpich_says_why_not(
    met: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*args: Any) -> Met:
        raise ImportError("libmpi.so.12: cannot open shared object file")

    monkeypatch.setenv("MPI4PY_MPIABI", "given")
    monkeypatch.setattr(rendezvous, "meet_by_mpi", missing)
    runtime._meet(Launch("Open MPI", 0, 2, 0, 2, job="open-mpi-3"), Path("runs"), 1.0)
    assert met == ["file"]
    with pytest.raises(ValueError, match=r"MPICH .*libmpi.so.12.* pip install 'fedhpc\[mpi\]'"):
        runtime._meet(Launch("MPICH", 0, 2, 0, 2), Path("runs"), 1.0)


@pytest.mark.parametrize(("loopback", "local_world", "chosen"), [(True, 1, "lo"), (False, 1, None), (True, 2, None)])
def test_gloo_is_told_its_network_only_where_the_hostname_would_mislead_it(
    loopback: bool, local_world: int, chosen: str | None, met: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "")
    monkeypatch.delenv("GLOO_SOCKET_IFNAME")
    monkeypatch.setattr(socket, "gethostbyname", lambda name: "127.0.1.1" if loopback else "10.0.0.1")
    runtime._meet(Launch("srun", 0, 2, 0, local_world, job="srun-7-0"), Path("runs"), 1.0)
    found = os.environ.pop("GLOO_SOCKET_IFNAME", None)
    assert found == chosen


def test_a_folder_that_cannot_be_written_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"^/proc/nowhere cannot be written: .* set --run-dir"):
        runtime._meet(Launch("srun", 0, 2, 0, 2, job="srun-7-0"), Path("/proc/nowhere"), 1.0)
