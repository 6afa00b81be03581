"""mpirun of Open MPI and of MPICH, without Slurm."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.e2e.command import SMOKE, TIMEOUT_S, fedhpc, mpich_libraries, sha_of

ARGUMENTS = (
    str(SMOKE / "fedavg.yaml"), "rounds=1", "evaluation.every=1", "data.path=phantom.h5", "report.tensorboard=false",
    "report.plots=false",
)  # fmt: skip
OPEN_MPI = ("mpirun.openmpi", "--allow-run-as-root", "--oversubscribe")
MPICH = ("mpirun.mpich",)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("mpi")
    code, out, err = fedhpc(folder, "run", *ARGUMENTS, "--run-dir", "alone")
    assert code == 0, err
    return folder, sha_of(out)


@pytest.mark.parametrize("mpirun", [OPEN_MPI, MPICH], ids=["openmpi", "mpich"])
def test_mpirun_gives_the_bits_of_one_process(mpirun: tuple[str, ...], alone: tuple[Path, str]) -> None:
    folder, sha = alone
    pytest.importorskip("mpi4py", reason="no mpi4py: pip install 'fedhpc[mpi]'")
    if shutil.which(mpirun[0]) is None:
        pytest.skip(f"no {mpirun[0]}: apt-get install {'mpich' if mpirun is MPICH else 'openmpi-bin'}")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    if mpirun is MPICH:
        environment["LD_LIBRARY_PATH"] = mpich_libraries(folder)
    train = str(ROOT / "launch" / "train.py")
    done = subprocess.run(
        [*mpirun, "-n", "2", sys.executable, train, *ARGUMENTS, "--run-dir", mpirun[0]],
        cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TIMEOUT_S,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"shared sha256 {sha}" in done.stdout
    assert not (folder / mpirun[0] / ".rendezvous").exists()
