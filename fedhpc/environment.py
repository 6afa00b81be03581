"""What launchers tell a process, in one table: torchrun, mpirun (Open MPI, MPICH), srun (which submitit's jobs use),
submitit's local executor. Works on the mapping that it is given: `fedhpc.runtime` alone reads the process environment.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass

Environment = Mapping[str, str]


@dataclass(frozen=True)
class Launcher:
    """Names of the variables that one launcher sets.

    Attributes:
        job: together they tell this start from all others, requeued ones included. Empty: the launcher says nothing.
        local_world: a number, or Slurm's list of tasks per node such as ``2(x3),1``.
        node: name of this machine; node_index: its place in that list.
    """

    name: str
    rank: str
    world: str
    local_rank: str
    local_world: str
    job: tuple[str, ...] = ()
    node: str = ""
    node_index: str = ""


# In the order in which they are asked: mpirun inside a Slurm job sees Slurm's variables of its own daemons too.
LAUNCHERS = (
    Launcher("torchrun", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
    Launcher(
        "Open MPI",
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
        job=("PMIX_NAMESPACE",),
    ),
    Launcher("MPICH", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    Launcher(
        "srun",
        "SLURM_PROCID",
        "SLURM_STEP_NUM_TASKS",
        "SLURM_LOCALID",
        "SLURM_STEP_TASKS_PER_NODE",
        job=("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT", "SLURM_STEP_LAUNCHER_PORT"),
        node="SLURMD_NODENAME",
        node_index="SLURM_NODEID",
    ),
    Launcher(
        "submitit",
        "SUBMITIT_LOCAL_GLOBALID",
        "SUBMITIT_LOCAL_NTASKS",
        "SUBMITIT_LOCAL_LOCALID",
        "SUBMITIT_LOCAL_NTASKS",
        job=("SUBMITIT_LOCAL_JOB_ID",),
    ),
)
MPI = ("Open MPI", "MPICH")
MPI_OF_SRUN = {"PMIX_NAMESPACE": "Open MPI", "PMI_FD": "MPICH"}  # srun --mpi=pmix, --mpi=pmi2
MASTER = ("MASTER_ADDR", "MASTER_PORT")
SLURM_JOB = "SLURM_JOB_ID"
SLURM_TASKS = "SLURM_NTASKS"  # of the allocation; also set where no srun has started them
SLURM_CPUS = "SLURM_CPUS_ON_NODE"  # that the allocation has on this node
END_TIMES = ("FEDHPC_END_TIME", "SLURM_JOB_END_TIME")  # seconds since 1970
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
GLOO_INTERFACE = "GLOO_SOCKET_IFNAME"
MPI_ABI = "MPI4PY_MPIABI"


@dataclass(frozen=True)
class Launch:
    """Who this process is, according to whoever started it.

    Attributes:
        job: names this start of the job, never an earlier one; empty when the launcher says nothing.
        node: name of this machine (of Slurm's node, which may be one of several on a machine).
        master: whether MASTER_ADDR and MASTER_PORT say where rank 0 listens.
        mpi: of the launcher, "Open MPI" or "MPICH"; empty where it does not help an MPI library to start.
    """

    launcher: str
    rank: int
    world: int
    local_rank: int
    local_world: int
    job: str = ""
    node: str = ""
    master: bool = False
    mpi: str = ""

    @property
    def spans_nodes(self) -> bool:
        return self.local_world < self.world


def parse_launch(env: Environment, *, listens: bool = False) -> Launch:
    """Without any launcher's variables the process is rank 0 of 1.

    Args:
        listens: rank 0 was handed a listening socket, so that nobody needs MASTER_ADDR and MASTER_PORT.

    Raises:
        ValueError: some of a launcher's variables are missing or make no sense.
    """
    node = platform.node()
    master = all(name in env for name in MASTER)
    for launcher in LAUNCHERS:
        if not _started_by(launcher, env):
            continue
        needed = [launcher.rank, launcher.world]
        if launcher.name == "torchrun" and not listens:
            needed += MASTER
        missing = [name for name in needed if name not in env]
        if missing:
            given = [name for name in (launcher.rank, launcher.world, launcher.local_rank) if name in env]
            raise ValueError(
                f"{launcher.name} variables are incomplete: {', '.join(missing)} not set. Start with torchrun, srun, "
                f"mpirun or `fedhpc run --ranks N`, or unset {', '.join(given)} to run alone"
            )
        rank, world = _number(env, launcher.rank), _number(env, launcher.world)
        if not 0 <= rank < world:
            raise ValueError(f"{launcher.rank}={rank} is not below {launcher.world}={world}")
        return Launch(
            launcher.name,
            rank,
            world,
            _number(env, launcher.local_rank, rank),
            _local_world(launcher, env, world),
            job=_job(launcher, env),
            node=env.get(launcher.node, node),
            master=master,
            mpi=_mpi(launcher, env),
        )
    return Launch("single", 0, 1, 0, 1, node=node)


def _started_by(launcher: Launcher, env: Environment) -> bool:
    if launcher.name == "MPICH":
        # `srun --mpi=pmi2` sets PMI_RANK too; srun then tells more.
        by_srun = env.get("SLURM_PROCID") == env.get("PMI_RANK") and env.get("SLURM_STEP_NUM_TASKS") == env.get(
            "PMI_SIZE"
        )
        return launcher.rank in env and not by_srun
    if launcher.name == "srun":
        return launcher.world in env  # a batch script has SLURM_PROCID=0 but is no step
    return launcher.rank in env or launcher.world in env


def _job(launcher: Launcher, env: Environment) -> str:
    """A file name, the same on all ranks of one start; empty when the launcher gives nothing to tell starts apart."""
    if not launcher.job or launcher.job[0] not in env:
        return ""
    words = [launcher.name, *(env.get(name, "0") for name in launcher.job)]
    return re.sub(r"[^A-Za-z0-9.]+", "-", " ".join(words)).lower()


def _mpi(launcher: Launcher, env: Environment) -> str:
    if launcher.name in MPI:
        return launcher.name
    return next((mpi for name, mpi in MPI_OF_SRUN.items() if name in env), "")


def _number(env: Environment, name: str, default: int | None = None) -> int:
    if name not in env and default is not None:
        return default
    try:
        return int(env[name])
    except ValueError:
        raise ValueError(f"{name}={env[name]} is not a whole number; who set it?") from None


def _local_world(launcher: Launcher, env: Environment, world: int) -> int:
    text = env.get(launcher.local_world)
    if text is None:
        return world
    if launcher.name != "srun":
        return _number(env, launcher.local_world)
    return tasks_per_node(text)[_number(env, launcher.node_index, 0)]


def tasks_per_node(text: str) -> list[int]:
    """Slurm's run-length list: ``2(x3),1`` -> [2, 2, 2, 1].

    Raises:
        ValueError: it is not such a list.
    """
    counts: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part.strip())
        if found is None:
            raise ValueError(f"SLURM_STEP_TASKS_PER_NODE={text} is no list of tasks per node such as 2(x3),1")
        counts += [int(found[1])] * int(found[2] or 1)
    return counts


# ----------------------------------------------------------------------------------------------------- the allocation
def forgotten_ranks(env: Environment, launch: Launch) -> int:
    """Tasks of a Slurm allocation in which only this one process runs; 0 when all is well."""
    tasks = int(env.get(SLURM_TASKS, "1")) if SLURM_JOB in env else 1
    return tasks if launch.launcher == "single" and tasks > 1 else 0


def cpus_on_node(env: Environment) -> int:
    """CPUs that this job may use on this node: Slurm's word, else those that the process is bound to."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return int(env[SLURM_CPUS]) if SLURM_CPUS in env else bound


def check_threads(env: Environment, launch: Launch, threads: int) -> str | None:
    """A warning when the ranks of this node have more threads than it has CPUs for them.

    Raises:
        ValueError: so in a Slurm allocation, by several threads a rank: neighbours' CPUs would be used.
    """
    cpus, wanted = cpus_on_node(env), launch.local_world * threads
    if wanted <= cpus:
        return None
    text = (
        f"{launch.local_world} ranks on {launch.node} * runtime.threads_per_rank({threads}) = {wanted} threads, but "
        f"this job has {cpus} CPUs there"
    )
    if SLURM_CPUS in env and threads > 1:
        raise ValueError(f"{text}; ask Slurm for --cpus-per-task={threads}, or set runtime.threads_per_rank")
    return f"{text}; the run will be slow"


def allocation_end(env: Environment) -> float | None:
    """When this allocation ends, in seconds since 1970; None outside one, or where nobody can tell."""
    for name in END_TIMES:
        if env.get(name, "").isdigit():
            return float(env[name])
    if SLURM_JOB not in env:
        return None
    try:  # Slurm before 23.02 has no SLURM_JOB_END_TIME
        answer = subprocess.run(
            ["squeue", "--noheader", "--jobs", env[SLURM_JOB], "--format=%L"],
            capture_output=True, text=True, timeout=30, check=True, env=dict(env),
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    left = slurm_seconds(answer.stdout.strip())
    return None if left is None else time.time() + left


def slurm_seconds(text: str) -> int | None:
    """``[days-][hours:]minutes:seconds`` in seconds; None for UNLIMITED and the like."""
    found = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", text)
    if found is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds
