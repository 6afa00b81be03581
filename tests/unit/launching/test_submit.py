"""The sbatch file that submitit writes for us, and how a submitted run ends."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any, NoReturn

import pytest

from fedhpc.config.cluster import SlurmCluster
from fedhpc.config.load import load_config
from fedhpc.exit_codes import EXIT_PREEMPTED, EXIT_RANK_LOST, EXIT_USER_ERROR
from fedhpc.launching import submit
from fedhpc.launching.job import NotAgain, SubmittedRun

pytest.importorskip("submitit")

SMOKE = Path(__file__).resolve().parents[3] / "configs" / "smoke" / "fedavg.yaml"
PLAIN = {"kind": "slurm", "time": "01:30:00"}


def text(cluster: SlurmCluster, count: int = 1) -> list[str]:
    run = SubmittedRun(load_config(SMOKE), Path("/runs/x"), submit.limits_of(cluster))
    return submit.sbatch_text([run] * count, cluster, Path("/runs/x/slurm"), "x").splitlines()


def options(lines: list[str]) -> dict[str, str]:
    pairs = (line.removeprefix("#SBATCH --").partition("=") for line in lines if line.startswith("#SBATCH"))
    return {name: value for name, _, value in pairs}


def test_every_key_of_the_cluster_becomes_an_option() -> None:
    cluster = SlurmCluster(
        **PLAIN,
        partition="gpu",
        account="lab",
        qos="normal",
        constraint="a100",
        nodes=2,
        ranks_per_node=4,
        cpus_per_rank=8,
        gpus_per_rank=1,
        gpu_type="a100",
        memory_gb_per_rank=1.5,
        stop_before_s=300,
        sbatch={"reservation": "maint", "exclusive": True, "mail_type": "FAIL", "contiguous": False},
        srun=["--mpi=none"],
        setup=["module load cuda"],
        python="/sw/python",
    )  # type: ignore[arg-type]
    lines = text(cluster)
    assert options(lines) == {
        "partition": "gpu",
        "account": "lab",
        "qos": "normal",
        "constraint": "a100",
        "nodes": "2",
        "ntasks-per-node": "4",
        "cpus-per-task": "8",
        "gpus-per-node": "a100:4",
        "mem": "6144M",
        "time": "90",
        "signal": "USR2@300",
        "requeue": "",
        "open-mode": "append",
        "job-name": "x",
        "output": "/runs/x/slurm/%j_0_log.out",
        "reservation": "maint",
        "exclusive": "",
        "mail-type": "FAIL",
    }
    (srun,) = [line for line in lines if line.startswith("srun")]
    for part in (
        "--kill-on-bad-exit=0",
        "--cpus-per-task=8",
        "--wait=180",
        "--mpi=none",
        "--output /runs/x/slurm/%j_%t",
    ):
        assert part in srun
    assert "/sw/python -u -m submitit.core._submit /runs/x/slurm" in srun


def test_what_lies_around_the_ranks() -> None:
    lines = text(SlurmCluster(**PLAIN, setup=["module load cuda"]))  # type: ignore[arg-type]
    order = [
        next(i for i, line in enumerate(lines) if part in line)
        for part in (
            "OMP_NUM_THREADS=1",
            "module load cuda",
            "batch started",
            "srun",
            "fedhpc_code=$?",
            "batch ended",
            "exit $fedhpc_code",
        )
    ]
    assert order == sorted(order)
    between = lines[order[3] + 1 : order[4]]
    assert all(not line.strip() or line.startswith("#") for line in between), "$? is srun's"


def test_an_array_has_a_limit() -> None:
    assert options(text(SlurmCluster(**PLAIN, max_runs_at_once=2), 6))["array"] == "0-5%2"  # type: ignore[arg-type]
    assert "array" not in options(text(SlurmCluster(**PLAIN)))  # type: ignore[arg-type]


def test_limits() -> None:
    limits = submit.limits_of(SlurmCluster(**PLAIN, max_restarts=5, stop_before_s=600))  # type: ignore[arg-type]
    assert (limits.max_restarts, limits.soon_s) == (5, 5400 - 600 - 60)


# ------------------------------------------------------------------------------------------------- how a run ends
class Left(Exception):
    """Instead of the end of the process."""


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, str]]:
    """What the process would have ended with."""
    import fedhpc.runtime as runtime

    calls: list[tuple[int, str]] = []

    def leave(code: int, text: str) -> NoReturn:
        calls.append((code, text))
        raise Left

    monkeypatch.setattr(runtime, "leave", leave)
    return calls


def play(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, outcome: Any, rank: int = 0) -> Any:
    import fedhpc.runtime as runtime
    import fedhpc.task as task

    class Launch:
        def __init__(self) -> None:
            self.rank = rank

    def call(self: object) -> Any:
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    monkeypatch.setattr(task.RunTask, "__call__", call)
    monkeypatch.setattr(runtime, "read_launch", Launch)
    return SubmittedRun(load_config(SMOKE), tmp_path, submit.limits_of(SlurmCluster(**PLAIN)))()  # type: ignore[arg-type]


def test_a_run_that_ends_well(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert play(monkeypatch, tmp_path, {"sha256": "ab"}) == {"sha256": "ab"}
    assert capsys.readouterr().out == "shared sha256 ab\n"


def test_mistakes_and_losses_have_their_exit_codes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ended: list[tuple[int, str]]
) -> None:
    from fedhpc.comm.collectives import RankLost

    for error, code in ((ValueError("x"), EXIT_USER_ERROR), (RankLost("rank 1"), EXIT_RANK_LOST)):
        with pytest.raises(Left):
            play(monkeypatch, tmp_path, error)
        assert ended.pop()[0] == code


@pytest.mark.parametrize(
    ("handler", "told"),
    [
        (SystemExit(-1), "queued again"),
        (NotAgain("job 7 was cancelled"), "not queued again: job 7 was cancelled"),
        (OSError("no scontrol"), "could not be queued again: no scontrol"),
        (None, "not queued again: nothing handles"),
    ],
    ids=["requeued", "not again", "no scontrol", "not submitit"],
)
def test_a_stopped_run_is_handed_to_submitits_handler_by_rank_0(
    handler: BaseException | None,
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    ended: list[tuple[int, str]],
) -> None:
    from fedhpc.runtime import Preempted

    calls = []

    def handle(number: int, frame: object) -> None:
        calls.append(number)
        if handler is not None:
            raise handler

    old = signal.signal(signal.SIGUSR2, handle)
    try:
        with pytest.raises(Left):
            play(monkeypatch, tmp_path, Preempted("asked to stop"), rank=1)
        assert (calls, ended.pop()[0]) == ([], EXIT_PREEMPTED), "rank 1 leaves it to rank 0"
        with pytest.raises(Left):
            play(monkeypatch, tmp_path, Preempted("asked to stop"))
    finally:
        signal.signal(signal.SIGUSR2, old)
    assert calls == [signal.SIGUSR2]
    assert ended[0][0] == EXIT_PREEMPTED
    assert told in ended[0][1]
