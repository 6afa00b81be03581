"""One run, started in every way that a cluster has, stopped in every way that it knows: always the same bits.

All jobs of this file are queued at once, so that the tests wait for them together.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fedhpc.data.hdf5 import PackedFile
from tests.conftest import ROOT
from tests.e2e.command import SMOKE, fedhpc, mpich_libraries, send, sha_of
from tests.e2e.pictures import write_pictures
from tests.e2e.slurm.jobs import PATIENCE_S, call, output, process_of_rank, rounds_of, sbatch, show, wait_for_end

pytestmark = [pytest.mark.slurm, pytest.mark.usefixtures("cluster")]

TRAIN = str(ROOT / "launch" / "train.py")
ARGUMENTS = (
    str(SMOKE / "fedavg.yaml"),
    "rounds=8",
    "fit.steps=8",
    "evaluation.every=5",
    "data.path=phantom.h5",
    "report.tensorboard=false",
    "report.plots=false",
)


# What happens to a run in the middle of a round.
DISTURBED: dict[str, Callable[[Path, str], object]] = {
    "requeued": lambda folder, job: call(folder, "scontrol", "requeue", job),
    # as Slurm sends it to the batch script before the time is over (--signal=B:USR2@120)
    "usr2": lambda folder, job: call(folder, "scancel", "--batch", "--signal=USR2", job),
    "killed": lambda folder, job: send(process_of_rank(job, 1), signal.SIGKILL),
    "cancelled": lambda folder, job: call(folder, "scancel", job),
}


@pytest.fixture(scope="module")
def folder(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("launchers")


@pytest.fixture(scope="module")
def sha(folder: Path) -> str:
    """Of a single process."""
    code, out, err = fedhpc(folder, "run", *ARGUMENTS, "--run-dir", "alone")
    assert code == 0, err
    return sha_of(out)


@pytest.fixture(scope="module")
def jobs(folder: Path, sha: str) -> Iterator[dict[str, str]]:
    """Run folder -> job id, except "array". Every job is queued, and those that are to be disturbed have been."""
    queued = {
        name: sbatch(folder, "multinode", *ARGUMENTS, "--run-dir", name) for name in (*DISTURBED, "first", "second")
    }
    queued["mpi"] = sbatch(folder, "mpi", *ARGUMENTS, "--run-dir", "mpi")
    quoted = [f"'{argument}'" for argument in ARGUMENTS]
    lines = [" ".join([*quoted, "algorithm='{name: fedavg}'", f"--run-dir array_{i}"]) for i in range(2)]
    (folder / "runs.txt").write_text("\n".join(lines) + "\n")
    options = ("--array=0-1%1", "--output=array-%a.out")
    queued["array"] = sbatch(folder, "array", "runs.txt", options=options)
    queued["mistake"] = sbatch(folder, "multinode", ARGUMENTS[0], "rounds=0")
    waiting = dict(DISTURBED)
    deadline = time.monotonic() + PATIENCE_S
    while waiting:
        assert time.monotonic() < deadline, f"no progress of {list(waiting)}"
        for name in list(waiting):
            if rounds_of(folder / name) >= 2:  # in the middle of the third, then
                waiting.pop(name)(folder, queued[name])
        time.sleep(0.05)
    yield queued
    subprocess.run(["scancel", *queued.values()], capture_output=True, check=False)  # what failed tests leave


def finished(folder: Path, job: str) -> str:
    """The job's output; it ended well."""
    out = wait_for_end(folder, job)
    assert show(job)["JobState"] == "COMPLETED", out
    return out


def test_scontrol_requeue_in_a_round(folder: Path, jobs: dict[str, str], sha: str) -> None:
    job = jobs["requeued"]
    out = finished(folder, job)
    assert f"shared sha256 {sha}" in out
    assert "resuming after round" in out
    assert show(job)["Restarts"] == "1"


def test_sigusr2_in_a_round(folder: Path, jobs: dict[str, str], sha: str) -> None:
    job = jobs["usr2"]
    out = finished(folder, job)
    assert f"shared sha256 {sha}" in out
    assert "a checkpoint of" in out
    assert "stopped at a checkpoint (exit code 75) and is queued again" in out
    assert show(job)["Restarts"] == "1"


def test_kill_9_of_a_rank(folder: Path, jobs: dict[str, str], sha: str) -> None:
    job = jobs["killed"]
    out = finished(folder, job)
    assert f"shared sha256 {sha}" in out
    assert "lost a rank (exit code 137) and is queued again" in out
    assert "rank 1 of 2 died or stopped answering in round" in out
    assert show(job)["Restarts"] == "1"


def test_a_cancelled_job_stays_cancelled(folder: Path, jobs: dict[str, str]) -> None:
    job = jobs["cancelled"]
    out = wait_for_end(folder, job)
    state = show(job)
    assert (state["JobState"], state.get("Restarts")) == ("CANCELLED", "0"), out


def test_two_jobs_at_once_on_the_same_nodes(folder: Path, jobs: dict[str, str], sha: str) -> None:
    for name in ("first", "second"):
        out = finished(folder, jobs[name])
        assert f"shared sha256 {sha}" in out
        assert show(jobs[name])["NodeList"] == "node[1-2]"
        assert not (folder / name / ".rendezvous").exists()


def test_mpirun_in_a_batch_script(folder: Path, jobs: dict[str, str], sha: str) -> None:
    assert f"shared sha256 {sha}" in finished(folder, jobs["mpi"])


def test_an_array_of_runs(folder: Path, jobs: dict[str, str], sha: str) -> None:
    for index in range(2):
        wait_for_end(folder, f"{jobs['array']}_{index}")
        out = (folder / f"array-{index}.out").read_text()
        assert f"shared sha256 {sha}" in out, out
        assert (folder / f"array_{index}" / "results.json").exists()


def test_srun(folder: Path, sha: str) -> None:
    out = call(folder, "srun", "--nodes=2", "--ntasks=2", sys.executable, TRAIN, *ARGUMENTS, "--run-dir", "srun")
    assert sha_of(out) == sha


def test_torchrun_on_every_node(folder: Path, sha: str) -> None:
    """With a rendezvous of torchrun's own, whose port comes from the job's number."""
    command = (
        'srun --nodes=2 --ntasks=2 bash -c \'exec "$PYTHON" -m torch.distributed.run --nnodes=2 --nproc-per-node=1'
        " --rdzv-backend=c10d --rdzv-id=$SLURM_JOB_ID --rdzv-endpoint=$(hostname):$((20000 + SLURM_JOB_ID % 10000))"
        ' "$@"\' - "$@"'
    )
    out = call(folder, "bash", "-c", command, "-", TRAIN, *ARGUMENTS, "--run-dir", "torchrun")
    assert f"shared sha256 {sha}" in out


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="both ranks on one CPU are equally slow")
def test_the_doctor_names_the_slow_rank(folder: Path) -> None:
    burners = [
        subprocess.Popen(["taskset", "-c", "1", "sh", "-c", "while :; do :; done"], start_new_session=True)
        for _ in range(4)
    ]
    try:
        command = 'exec taskset -c $SLURM_PROCID "$PYTHON" -m fedhpc.cli doctor --data "$1"'
        out = call(folder, "srun", "--nodes=2", "--ntasks=2", "bash", "-c", command, "-", str(ROOT))
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()
    words = " ".join(out.replace("│", " ").split())
    assert "gloo adds exactly over 2 ranks" in words
    assert "rank 1 on node2 (" in words, out
    assert "the same on 2 ranks, 2 nodes" in words
    assert "seen by all 2 ranks" in words
    assert "slurm-wlm" in words


@pytest.mark.skipif(shutil.which("mpirun.mpich") is None, reason="no MPICH: apt-get install mpich")
def test_packing_under_srun(folder: Path) -> None:
    """With MPICH: two slurmd on one machine cannot both serve PMIx, which Open MPI needs."""
    pytest.importorskip("mpi4py", reason="no mpi4py: pip install 'fedhpc[mpi]'")
    raw = folder / "raw"
    raw.mkdir()
    pack = (sys.executable, "-m", "fedhpc.cli", *write_pictures(raw))
    call(raw, *pack, "-o", "serial.h5")
    srun = ("srun", "--nodes=2", "--ntasks=2")
    with pytest.raises(AssertionError, match="not for MPI: srun --mpi=pmix"):
        call(raw, *srun, *pack, "-o", "srun.h5")
    libraries = f"LD_LIBRARY_PATH={mpich_libraries(raw)}"
    call(raw, *srun, "--mpi=pmi2", "env", libraries, *pack, "-o", "srun.h5")
    with PackedFile(raw / "serial.h5") as serial, PackedFile(raw / "srun.h5") as parallel:
        assert parallel.checksum == serial.checksum


def test_a_mistake_is_not_queued_again(folder: Path, jobs: dict[str, str]) -> None:
    job = jobs["mistake"]
    out = wait_for_end(folder, job)
    state = show(job)
    assert (state["JobState"], state["ExitCode"], state["Restarts"]) == ("FAILED", "2:0", "0"), out
    assert "rounds" in output(folder, job)
