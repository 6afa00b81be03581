"""Drives the command line as a user does: in processes of their own, from another folder."""

from __future__ import annotations

import ctypes.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.conftest import ROOT

SMOKE = ROOT / "configs" / "smoke"
TIMEOUT_S = 400.0  # for machines that do much else


def start(
    folder: Path, *arguments: str, extra: Mapping[str, str] | None = None, module: str = "fedhpc.cli"
) -> subprocess.Popen[str]:
    """`fedhpc ARGUMENTS`, with `folder` as working directory."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "160", "PYTHONPATH": str(ROOT), **(extra or {})}
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str], timeout: float = TIMEOUT_S) -> tuple[int, str, str]:
    """Exit code, standard output and standard error."""
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        raise AssertionError(f"no end within {timeout} s:\n{out}\n{err}") from None
    return process.returncode, out, err


def fedhpc(folder: Path, *arguments: str, extra: Mapping[str, str] | None = None) -> tuple[int, str, str]:
    return finish(start(folder, *arguments, extra=extra))


def sha_of(out: str) -> str:
    """From the last line that `fedhpc run` prints."""
    word, kind, sha = out.strip().splitlines()[-1].split()
    assert (word, kind, len(sha)) == ("shared", "sha256", 64), out
    return sha


def wait_for_rounds(run_dir: Path, count: int, process: subprocess.Popen[str]) -> None:
    """Until metrics.jsonl has `count` lines."""
    metrics = run_dir / "metrics.jsonl"
    deadline = time.monotonic() + TIMEOUT_S
    while not metrics.exists() or len(metrics.read_text().splitlines()) < count:
        assert process.poll() is None, finish(process)
        assert time.monotonic() < deadline, "no progress"
        time.sleep(0.02)


def child_of_rank(parent: int, rank: int) -> int:
    """Process id of a rank that `fedhpc run --ranks` started."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            status = (entry / "status").read_text()
            environment = (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if f"PPid:\t{parent}\n" in status and f"RANK={rank}".encode() in environment:
            return int(entry.name)
    raise AssertionError(f"process {parent} has no rank {rank}")


def send(process_id: int, number: signal.Signals) -> None:
    os.kill(process_id, number)


def mpich_libraries(folder: Path) -> str:
    """A LD_LIBRARY_PATH with which mpi4py finds Debian's MPICH: its name for the library is not the one that all MPICH
    builds have agreed on. Skips without it."""
    library = ctypes.util.find_library("mpich")
    if library is None:
        pytest.skip("no libmpich: apt-get install mpich")
    libraries = folder / "lib"
    libraries.mkdir(exist_ok=True)
    (libraries / "libmpi.so.12").symlink_to(Path("/usr/lib/x86_64-linux-gnu") / library)
    return str(libraries)
