"""`fedhpc submit` and `fedhpc sweep` on a real Slurm of two nodes: the bits of one process, come what may."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedhpc.launching import journal, slurm, watch
from tests.conftest import ROOT
from tests.e2e.command import SMOKE, finish, send, sha_of, start

pytestmark = [pytest.mark.slurm, pytest.mark.usefixtures("cluster")]

CONFIG = str(SMOKE / "fedavg.yaml")
CLUSTER = ("--cluster", str(ROOT / "configs" / "cluster" / "two_nodes.yaml"))
QUIET = ("data.path=phantom.h5", "report.tensorboard=false", "report.plots=false")
LONG = ("rounds=12", "fit.steps=10", "evaluation.every=5", *QUIET)
PATIENCE_S = 400.0


def fedhpc(folder: Path, *arguments: str) -> tuple[int, str, str]:
    return finish(start(folder, *arguments), PATIENCE_S)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("submit")


@pytest.fixture(scope="module")
def sha(folder: Path) -> str:
    """Of LONG in one process, which nothing disturbs."""
    code, out, err = fedhpc(folder, "run", CONFIG, *LONG, "--run-dir", "whole")
    assert code == 0, err
    return sha_of(out)


@pytest.fixture
def run_dir(folder: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A new run folder; what a failed test leaves in the queue is cancelled."""
    path = folder / re.sub(r"\W+", "_", request.node.name)
    yield path
    for launch in journal.read(path):
        if launch.event == "submitted":
            subprocess.run(["scancel", launch.job], check=False, capture_output=True)


def submit(folder: Path, run_dir: Path, *overrides: str) -> str:
    """Returns the job id."""
    code, out, err = fedhpc(folder, "submit", CONFIG, *overrides, *CLUSTER, "--run-dir", str(run_dir))
    assert code == 0, err
    found = re.match(r"job (\d+) is queued: 2 nodes \* 1 ranks, partition debug", out)
    assert found, out
    assert f"run folder  {run_dir}" in out
    assert f"tail -F {run_dir}/slurm/{found[1]}_0_log.out" in out
    return found[1]


def wait_until(run_dir: Path, *wanted: str) -> watch.RunState:
    """What `fedhpc status` says of the run, once it is in one of these states."""
    deadline = time.monotonic() + PATIENCE_S
    while (now := watch.states([run_dir])[0]).state not in wanted:
        assert time.monotonic() < deadline, now
        time.sleep(0.5)
    return now


def wait_for_the_end(run_dir: Path) -> list[str]:
    """Of a job that finishes. Returns the journal's events."""
    wait_until(run_dir, "finished")
    deadline = time.monotonic() + PATIENCE_S
    while (found := events(run_dir))[-1] != "ended":
        assert time.monotonic() < deadline, found
        time.sleep(0.2)
    return found


def wait_for_round(run_dir: Path, count: int) -> None:
    metrics = run_dir / "metrics.jsonl"
    deadline = time.monotonic() + PATIENCE_S
    while not metrics.exists() or len(metrics.read_text().splitlines()) < count:
        assert time.monotonic() < deadline, "no progress"
        time.sleep(0.05)


def process_of_rank(job: str, rank: int) -> int:
    """On this machine, which is both nodes."""
    wanted = {f"SLURM_JOB_ID={job}".encode(), f"SLURM_PROCID={rank}".encode(), b"SUBMITIT_EXECUTOR=slurm"}
    for entry in Path("/proc").iterdir():
        try:
            command, environment = (entry / "cmdline").read_bytes(), (entry / "environ").read_bytes()
        except OSError:
            continue
        if b"submitit.core._submit" in command and b"srun" not in command and wanted <= set(environment.split(b"\0")):
            return int(entry.name)
    raise AssertionError(f"job {job} has no rank {rank} here")


def logs(run_dir: Path) -> str:
    return "\n".join(path.read_text() for path in sorted((run_dir / "slurm").glob("*_log.out")))


def events(run_dir: Path) -> list[str]:
    return [launch.event for launch in journal.read(run_dir)]


@pytest.mark.parametrize("rank", [0, 1])
def test_kill_9_of_a_rank_and_the_job_finishes_by_itself(rank: int, folder: Path, sha: str, run_dir: Path) -> None:
    job = submit(folder, run_dir, *LONG)
    wait_for_round(run_dir, 3)
    send(process_of_rank(job, rank), signal.SIGKILL)
    wait_until(run_dir, "requeued")
    requeued = journal.read(run_dir)[-1]
    assert requeued.counts
    assert requeued.exit_code == 128 + signal.SIGKILL
    assert f"rank {rank} of 2 died or stopped answering" in requeued.reason
    code, _, err = fedhpc(folder, "submit", CONFIG, *LONG, *CLUSTER, "--run-dir", str(run_dir))
    assert code == 2
    assert f"job {job}" in err and "scancel" in err  # the same folder twice
    assert wait_for_the_end(run_dir) == ["submitted", "started", "requeued", "started", "ended"]
    assert f"shared sha256 {sha}" in logs(run_dir)


def test_sigusr2_in_a_round_checkpoints_and_queues_again(folder: Path, sha: str, run_dir: Path) -> None:
    """What Slurm sends before it takes the nodes away."""
    job = submit(folder, run_dir, *LONG, "checkpoint.every=100")
    wait_for_round(run_dir, 3)
    subprocess.run(["scancel", "--signal=USR2", job], check=True)
    wait_until(run_dir, "requeued")
    requeued = journal.read(run_dir)[-1]
    assert not requeued.counts
    assert 3 <= requeued.rounds_done < 12
    assert wait_for_the_end(run_dir) == ["submitted", "started", "requeued", "started", "ended"]
    assert f"shared sha256 {sha}" in logs(run_dir)
    assert f"resuming after round {requeued.rounds_done} of 12" in logs(run_dir)


def test_a_cancelled_job_stays_cancelled(folder: Path, run_dir: Path) -> None:
    job = submit(folder, run_dir, *LONG)
    wait_for_round(run_dir, 2)
    subprocess.run(["scancel", job], check=True)
    deadline = time.monotonic() + PATIENCE_S
    while slurm.job_states([job])[job].state != "CANCELLED":
        assert time.monotonic() < deadline
        time.sleep(0.5)
    assert watch.states([run_dir])[0].state == "cancelled"
    assert "requeued" not in events(run_dir)


def test_restarts_are_bounded_and_status_says_why(folder: Path, run_dir: Path) -> None:
    job = submit(folder, run_dir, *LONG, "cluster.max_restarts=0")
    wait_for_round(run_dir, 2)
    send(process_of_rank(job, 1), signal.SIGKILL)
    wait_until(run_dir, "failed")
    code, out, _ = fedhpc(folder, "status", str(run_dir))
    assert code == 0
    assert "1 failed" in out
    assert "max_restarts: 0" in out
    assert "rank 1 of 2 died" in out
    assert events(run_dir)[-1] == "ended"


def test_a_mistake_that_shows_while_running_is_not_queued_again(folder: Path, run_dir: Path) -> None:
    submit(folder, run_dir, *QUIET, "fit.optimizer={name: sgd, learning_rate: 1e38}")
    now = wait_until(run_dir, "failed")
    assert "fit.optimizer.learning_rate" in now.reason
    assert events(run_dir) == ["submitted", "started", "ended"]
    assert journal.read(run_dir)[-1].exit_code == 2


def test_a_sweep_is_one_array_and_gives_the_bits_of_single_processes(folder: Path) -> None:
    sweep = (str(SMOKE / "fedprox.yaml"), "algorithm.mu=0.01,0.1", "random_seed=0,1,2", "rounds=2", *QUIET)
    code, out, err = fedhpc(folder, "sweep", *sweep, "--cluster", "local", "--sweep-dir", "here")
    assert code == 0, err
    code, out, err = fedhpc(folder, "sweep", *sweep, *CLUSTER, "--sweep-dir", "there")
    assert code == 0, err
    found = re.search(r"job (\d+) is queued: 6 runs, 2 at once", out)
    assert found, out
    names = sorted(path.name for path in (folder / "here").iterdir() if (path / "config.yaml").exists())
    assert names == sorted(f"mu={mu},random_seed={seed}" for mu in ("0.01", "0.1") for seed in (0, 1, 2))
    waiting = watch.states([folder / "there" / name for name in names])
    assert {run.job for run in waiting} == {f"{found[1]}_{index}" for index in range(6)}, "one array"
    assert subprocess.run(
        ["scontrol", "show", "job", found[1], "--oneliner"], capture_output=True, text=True, check=True
    ).stdout.count("ArrayTaskThrottle=2")
    code, out, _ = fedhpc(folder, "sweep", *sweep, *CLUSTER, "--sweep-dir", "there")
    assert code == 0
    assert "nothing to submit" in out, "what is queued is not queued twice"
    for name in names:
        wait_until(folder / "there" / name, "finished")
    code, out, err = fedhpc(folder, "collect", "there")
    assert code == 0, err
    assert "6 runs written to" in out
    assert out.count("algorithm.mu=0.") >= 2, "two arms of three random seeds"
    assert shas(folder / "there") == shas(folder / "here")


def shas(sweep: Path) -> dict[str, str]:
    from fedhpc.launching.collect import rows

    found = {row["run"]: str(row["sha256"]) for row in rows(watch.find_runs(sweep), sweep)}
    assert len(set(found.values())) == len(found) == 6
    return found


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (("cluster.partition=debgu",), ("partition = debgu", "did you mean debug?", "debug, short")),
        (("cluster.ranks_per_node=64",), ("64 CPUs a node", "has 4", "set ranks_per_node: 4")),
        (("cluster.nodes=3",), ("nodes = 3 but partition debug has 2", "set nodes: 2")),
        (("cluster.partition=short",), ("time = 00:10:00 but partition short allows 00:05:00", 'set time: "00:05:00"')),
        (("cluster.sbatch={nodelist: node7}",), ("Slurm would refuse this job", "node")),
        (("data.phantom=null", "data.path=nowhere.h5"), ("data.path = nowhere.h5: no such file in ", "fedhpc pack")),
        (("--run-dir", "/proc/1/runs"), ("the run folder /proc/1/runs cannot be written", "set --run-dir")),
        (("cluster.shared_folders=[/srv]",), ("lies in none of the folders that all nodes see (/srv)", "--run-dir")),
        (("cluster.time=day",), ('"day" is no time', "24:00:00")),
        (("cluster.nodez=2",), ("nodez = 2: unknown key", "did you mean nodes?")),
    ],
    ids=lambda value: "" if isinstance(value[0], str) and " " in value[0] else value[0].split("=")[0],
)
def test_refused_before_queueing_with_the_cure(
    overrides: tuple[str, ...], told: tuple[str, ...], tmp_path: Path
) -> None:
    before = subprocess.run(
        ["squeue", "--noheader", "--name=refused"], capture_output=True, text=True, check=True
    ).stdout
    place = () if "--run-dir" in overrides else ("--run-dir", "refused")
    code, out, err = fedhpc(tmp_path, "submit", CONFIG, "name=refused", *overrides, *place, *CLUSTER)
    assert code == 2, out
    for part in told:
        assert part in err, err
    assert "Traceback" not in err
    assert not (tmp_path / "refused").exists()
    after = subprocess.run(
        ["squeue", "--noheader", "--name=refused"], capture_output=True, text=True, check=True
    ).stdout
    assert before == after == ""
