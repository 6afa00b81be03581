"""Output of Slurm's commands, read. recorded/ is of Slurm 22.05.8 and the two nodes of slurm/local_cluster.sh; GPU
nodes, limits and accounting follow the manual pages, as no such site is at hand."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from fedhpc.launching import slurm
from fedhpc.launching.slurm import JobState, Node, Partition, SlurmError, parse_gpus, parse_nodes, parse_partitions

RECORDED = Path(__file__).parent / "recorded"


def test_recorded_partitions() -> None:
    assert parse_partitions((RECORDED / "partitions.txt").read_text()) == [
        Partition("debug", is_default=True, max_time_s=3600),
        Partition("short", max_time_s=300),
    ]


def test_limits_of_a_partition() -> None:
    line = (
        "PartitionName=gpu AllowAccounts=lab,chair AllowQos=normal DenyAccounts=old Default=NO MaxNodes=4 "
        "MaxTime=2-00:00:00 MinNodes=1 MaxCPUsPerNode=48 State=DRAIN MaxMemPerNode=180000"
    )
    assert parse_partitions(line) == [
        Partition(
            "gpu",
            state="DRAIN",
            max_time_s=172800,
            max_nodes=4,
            min_nodes=1,
            max_cpus_per_node=48,
            max_memory_mb_per_node=180000,
            allow_accounts=frozenset({"lab", "chair"}),
            deny_accounts=frozenset({"old"}),
            allow_qos=frozenset({"normal"}),
        )
    ]
    assert parse_partitions("PartitionName=x MaxTime=UNLIMITED MaxNodes=UNLIMITED")[0].max_time_s is None


def test_recorded_nodes() -> None:
    found = parse_nodes((RECORDED / "nodes.txt").read_text())
    assert found == [Node("node1", 4, 24105), Node("node2", 4, 24105)]


def test_a_gpu_node_with_features() -> None:
    (node,) = parse_nodes("gpu01|128|515000+|gpu:a100:4(S:0-1),nvme:1|a100,ib|mixed-\n")
    assert node == Node("gpu01", 128, 515000, {"a100": 4}, frozenset({"a100", "ib"}), "mixed-")


@pytest.mark.parametrize(
    ("gres", "gpus"),
    [
        ("(null)", {}),
        ("gpu:4", {"": 4}),
        ("gpu", {"": 1}),
        ("gpu:a100:4(S:0-1)", {"a100": 4}),
        ("gpu:a100:2,gpu:v100:6,shard:8", {"a100": 2, "v100": 6}),
    ],
)
def test_gpus_of_a_gres(gres: str, gpus: dict[str, int]) -> None:
    assert parse_gpus(gres) == gpus


@pytest.mark.parametrize(
    ("state", "up"),
    [("idle", True), ("mixed", True), ("allocated+", True), ("idle~", True), ("down*", False), ("drained", False)],
)
def test_nodes_that_are_up(state: str, up: bool) -> None:
    assert Node("n", 1, 1, state=state).is_up is up


def test_recorded_queue() -> None:
    assert slurm.parse_squeue((RECORDED / "queue.txt").read_text()) == {
        "39_0": JobState("RUNNING"),
        "39_1": JobState("PENDING", "JobArrayTaskLimit"),
        "39_2": JobState("PENDING", "JobArrayTaskLimit"),
        "41": JobState("PENDING", "BeginTime"),
    }


def test_accounting() -> None:
    lines = (
        "7|REQUEUED|None",
        "7|COMPLETED|None",
        "8_1|CANCELLED by 0|None",
        "8_[2-5]|PENDING|None",
        "9|OUT_OF_MEMORY|",
    )
    assert slurm.parse_sacct("\n".join([*lines, "9.0|FAILED|"])) == {
        "7": JobState("COMPLETED"),
        "8_1": JobState("CANCELLED"),
        "9": JobState("OUT_OF_MEMORY"),
    }


def fake(folder: Path, **commands: str) -> None:
    """Commands of Slurm that answer with a shell line each."""
    for name in ("sbatch", "squeue", "scontrol", "srun", "sacct", "sacctmgr", "sinfo"):
        path = folder / name
        path.write_text(f"#!/bin/sh\n{commands.get(name, 'exit 1')}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)


def test_a_job_that_squeue_forgot_is_asked_of_sacct(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(
        tmp_path,
        squeue='case "$*" in *5,6*) echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1;; '
        "*=6*) echo '6|RUNNING|None';; *) exit 1;; esac",
        sacct="echo '5|FAILED|None'",
    )
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert slurm.job_states(["5", "6"]) == {"5": JobState("FAILED"), "6": JobState("RUNNING")}
    assert slurm.job_states([]) == {}


def test_no_accounting_is_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(tmp_path, sacctmgr="echo 'You are not running a supported accounting_storage plugin' >&2; exit 1")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert slurm.accounts("me") is None
    fake(tmp_path, sacctmgr="printf 'lab\\nchair\\n'")
    assert slurm.accounts("me") == {"lab", "chair"}


def test_what_slurm_would_refuse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Words of 22.05.8 for nodes that do not exist, and for a job that it would take."""
    fake(tmp_path, sbatch="echo 'allocation failure: Requested node configuration is not available' >&2; exit 1")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert slurm.would_refuse(tmp_path / "x.sh") == "allocation failure: Requested node configuration is not available"
    fake(
        tmp_path,
        sbatch="echo 'sbatch: Job 3 to start at 2026-11-21T11:53:19 using 2 processors on nodes node[1-2]' >&2",
    )
    assert slurm.would_refuse(tmp_path / "x.sh") is None


def test_a_missing_command_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not slurm.available()
    with pytest.raises(SlurmError, match="scontrol: no such command"):
        slurm.partitions()


@pytest.mark.parametrize(
    ("state", "reason", "cancelled"),
    [
        ("CANCELLED", "None", True),
        ("COMPLETING", "None", True),  # its ranks are still ending
        ("COMPLETING", "TimeLimit", False),
        ("RUNNING", "None", False),
    ],
)
def test_cancelled(state: str, reason: str, cancelled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(tmp_path, scontrol=f"echo 'JobId=1 JobState={state} Reason={reason} Dependency=(null)'")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert slurm.is_cancelled("1") is cancelled
