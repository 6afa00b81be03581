"""`fedhpc pack` in a job of several ranks."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fedhpc.data.hdf5 import PackedFile
from tests.conftest import ROOT
from tests.e2e.command import fedhpc
from tests.e2e.pictures import ROWS, write_pictures

MPIRUN = shutil.which("mpirun")
needs_mpi = pytest.mark.skipif(
    MPIRUN is None or importlib.util.find_spec("mpi4py") is None,
    reason="mpirun or mpi4py is missing: apt-get install openmpi-bin libopenmpi-dev; pip install -e '.[mpi]'",
)


@pytest.fixture
def raw(tmp_path: Path) -> list[str]:
    return write_pictures(tmp_path)


def mpirun(folder: Path, *arguments: str) -> tuple[int, str, str]:
    assert MPIRUN is not None
    run = subprocess.run(
        [MPIRUN, "--allow-run-as-root", "--oversubscribe", "-n", "2", sys.executable, "-m", "fedhpc.cli", *arguments],
        cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
        timeout=180, check=False,
    )  # fmt: skip
    return run.returncode, run.stdout, run.stderr


@needs_mpi
def test_mpirun_packs_the_file_of_a_serial_pack(tmp_path: Path, raw: list[str]) -> None:
    code, _, err = fedhpc(tmp_path, *raw, "-o", "serial.h5")
    assert code == 0, err
    code, out, err = mpirun(tmp_path, *raw, "-o", "parallel.h5")
    assert code == 0, err
    assert out.count(f"{ROWS} rows") == 1
    with PackedFile(tmp_path / "serial.h5") as serial, PackedFile(tmp_path / "parallel.h5") as parallel:
        parallel.verify()
        assert parallel.checksum == serial.checksum
    # A mistake is told once, and ends all ranks.
    code, _, err = mpirun(tmp_path, *raw, "-o", "other.h5", "--label", "knd")
    assert code == 2
    assert err.count("Did you mean 'kind'") == 1
    (tmp_path / "50.png").write_bytes(b"no picture")
    code, _, err = mpirun(tmp_path, *raw, "-o", "other.h5")
    assert code == 2
    assert err.count("line 52: picture 50.png: not a readable picture") == 1
    code, _, err = mpirun(tmp_path, *raw, "-o", "other.h5", "--ranks", "2")
    assert code == 2
    assert "inside a job of 2 ranks: leave --ranks out" in err


def test_torchrun_is_refused(tmp_path: Path, raw: list[str]) -> None:
    variables = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    code, _, err = fedhpc(tmp_path, *raw, "-o", "x.h5", extra=variables)
    assert code == 2
    assert "does not run under torchrun: set --ranks" in err
