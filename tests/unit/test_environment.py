"""What launchers say, as recorded from Open MPI 4.1, MPICH 4.0, Slurm 22.05 and torchrun."""

from __future__ import annotations

import os
import platform
import stat
import time
from dataclasses import replace
from pathlib import Path

import pytest

from fedhpc.environment import (
    Launch,
    allocation_end,
    check_threads,
    cpus_on_node,
    forgotten_ranks,
    parse_launch,
    slurm_seconds,
    tasks_per_node,
)

HERE = platform.node()
BATCH = {  # what Slurm's batch script sees, and what srun's tasks see too
    "SLURM_JOB_ID": "7",
    "SLURM_NTASKS": "3",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
    "SLURM_CPUS_ON_NODE": "4",
    "SLURM_TASKS_PER_NODE": "2,1",
}
STEP = BATCH | {
    "SLURM_PROCID": "2",
    "SLURM_NODEID": "1",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "3",
    "SLURM_STEP_TASKS_PER_NODE": "2,1",
    "SLURM_STEP_LAUNCHER_PORT": "44083",
    "SLURMD_NODENAME": "node2",
}
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "PMIX_NAMESPACE": "prterun-vm-10006@1",
}
MPICH = {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}
PMIX = STEP | {"PMIX_NAMESPACE": "slurm.pmix.7.0", "PMIX_RANK": "2"}  # srun --mpi=pmix
PMI2 = STEP | {"PMI_FD": "11", "PMI_RANK": "2", "PMI_SIZE": "3"}  # srun --mpi=pmi2
TORCHRUN = {
    "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "node1", "MASTER_PORT": "29500",
}  # fmt: skip
SUBMITIT = {
    "SUBMITIT_LOCAL_JOB_ID": "911",
    "SUBMITIT_LOCAL_GLOBALID": "1",
    "SUBMITIT_LOCAL_LOCALID": "1",
    "SUBMITIT_LOCAL_NTASKS": "2",
}


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({}, Launch("single", 0, 1, 0, 1, node=HERE)),
        (BATCH, Launch("single", 0, 1, 0, 1, node=HERE)),
        (TORCHRUN, Launch("torchrun", 3, 4, 1, 2, node=HERE, master=True)),
        (STEP, Launch("srun", 2, 3, 0, 1, job="srun-7-0-0-44083", node="node2")),
        (OPEN_MPI, Launch("Open MPI", 1, 4, 1, 2, job="open-mpi-prterun-vm-10006-1", node=HERE, mpi="Open MPI")),
        (MPICH, Launch("MPICH", 1, 2, 1, 2, node=HERE, mpi="MPICH")),
        (SUBMITIT, Launch("submitit", 1, 2, 1, 2, job="submitit-911", node=HERE)),
        # one inside the other: who started last decides
        (STEP | TORCHRUN, Launch("torchrun", 3, 4, 1, 2, node=HERE, master=True)),
        (STEP | OPEN_MPI, Launch("Open MPI", 1, 4, 1, 2, job="open-mpi-prterun-vm-10006-1", node=HERE, mpi="Open MPI")),
        (STEP | {"SLURM_PROCID": "0"} | MPICH, Launch("MPICH", 1, 2, 1, 2, node=HERE, mpi="MPICH")),
        # srun --mpi=pmi2 speaks for itself
        (PMI2, Launch("srun", 2, 3, 0, 1, job="srun-7-0-0-44083", node="node2", mpi="MPICH")),
    ],
    ids=["none", "batch", "torchrun", "srun", "openmpi", "mpich", "submitit", "torchrun in srun", "openmpi in srun",
         "mpich in srun", "srun pmi2"],
)  # fmt: skip
def test_who_this_process_is(env: dict[str, str], expected: Launch) -> None:
    assert parse_launch(env) == expected


def test_a_requeued_job_and_another_step_are_other_starts() -> None:
    changes = ({}, {"SLURM_RESTART_COUNT": "1"}, {"SLURM_STEP_ID": "1"}, {"SLURM_STEP_LAUNCHER_PORT": "4"})
    names = {parse_launch(STEP | change).job for change in changes}
    assert len(names) == 4


@pytest.mark.parametrize(
    ("env", "told"),
    [
        ({"RANK": "0", "WORLD_SIZE": "2"}, ("MASTER_ADDR, MASTER_PORT not set", "unset RANK, WORLD_SIZE to run alone")),
        ({"WORLD_SIZE": "2"}, ("RANK, MASTER_ADDR",)),
        (OPEN_MPI | {"OMPI_COMM_WORLD_RANK": "4"}, ("OMPI_COMM_WORLD_RANK=4 is not below OMPI_COMM_WORLD_SIZE=4",)),
        (MPICH | {"PMI_SIZE": "two"}, ("PMI_SIZE=two is not a whole number",)),
        ({"PMI_RANK": "0"}, ("MPICH variables are incomplete: PMI_SIZE",)),
        (STEP | {"SLURM_STEP_TASKS_PER_NODE": "2 each"}, ("2 each is no list of tasks per node",)),
    ],
)
def test_nonsense_is_named(env: dict[str, str], told: tuple[str, ...]) -> None:
    with pytest.raises(ValueError) as error:
        parse_launch(env)
    for part in told:
        assert part in str(error.value)


def test_rank_0_with_a_socket_needs_no_address() -> None:
    assert parse_launch({"RANK": "1", "WORLD_SIZE": "2"}, listens=True).world == 2


def test_tasks_per_node() -> None:
    assert tasks_per_node("2(x3),1") == [2, 2, 2, 1]
    assert tasks_per_node("4") == [4]


# ----------------------------------------------------------------------------------------------------- the allocation
def test_a_forgotten_srun_is_noticed() -> None:
    assert forgotten_ranks(BATCH, parse_launch(BATCH)) == 3
    assert forgotten_ranks(STEP, parse_launch(STEP)) == 0
    assert forgotten_ranks({"SLURM_NTASKS": "3"}, parse_launch({})) == 0, "left over, outside any job"


def test_threads_beyond_the_allocation() -> None:
    launch = Launch("srun", 0, 4, 0, 2, node="node1")
    assert check_threads(BATCH, launch, 2) is None
    with pytest.raises(ValueError, match=r"2 ranks on node1 \* runtime.threads_per_rank\(3\) = 6 .* has 4 CPUs there"):
        check_threads(BATCH, launch, 3)
    crowded = Launch("srun", 0, 8, 0, 8, node="node1")  # srun --overcommit: somebody meant it
    assert "8 threads" in str(check_threads(BATCH, crowded, 1))


def test_without_slurm_the_cpus_are_those_that_the_process_is_bound_to() -> None:
    assert cpus_on_node({}) == len(os.sched_getaffinity(0))
    alone = Launch("single", 0, 1, 0, 1, node=HERE)
    assert check_threads({}, alone, 10_000) is not None, "a warning: nobody else is harmed"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("59:59", 3599), ("1:00:00", 3600), ("2-03:04:05", 183845), ("0:30", 30), ("UNLIMITED", None), ("", None)],
)
def test_slurm_seconds(text: str, seconds: int | None) -> None:
    assert slurm_seconds(text) == seconds


def test_the_end_of_an_allocation(tmp_path: Path) -> None:
    assert allocation_end({}) is None
    assert allocation_end({"SLURM_JOB_ID": "7", "SLURM_JOB_END_TIME": "1700000000"}) == 1700000000.0
    squeue = tmp_path / "squeue"
    squeue.write_text('#!/bin/sh\n[ "$1 $2 $3 $4" = "--noheader --jobs 7 --format=%L" ] && echo 1:00:00\n')
    squeue.chmod(squeue.stat().st_mode | stat.S_IXUSR)
    env = {"SLURM_JOB_ID": "7", "PATH": f"{tmp_path}:/bin:/usr/bin"}
    before = time.time()
    end = allocation_end(env)
    assert end is not None and before + 3600 <= end <= time.time() + 3600
    assert allocation_end(env | {"SLURM_JOB_ID": "8"}) is None, "squeue failed"


def test_which_mpi_a_launcher_starts() -> None:
    assert [parse_launch(env).mpi for env in (OPEN_MPI, MPICH, PMIX, PMI2)] == [
        "Open MPI",
        "MPICH",
        "Open MPI",
        "MPICH",
    ]
    assert [parse_launch(env).mpi for env in (STEP, TORCHRUN, {})] == ["", "", ""]
    assert parse_launch(PMIX) == replace(parse_launch(STEP), mpi="Open MPI")
