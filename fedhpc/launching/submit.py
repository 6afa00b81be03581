"""Runs -> one Slurm job, or one array of them, through submitit."""

from __future__ import annotations

import math
import shlex
import sys
import tempfile
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedhpc.config.cluster import SlurmCluster
from fedhpc.environment import THREADS
from fedhpc.launching import batch, journal, slurm
from fedhpc.launching.job import SubmittedRun
from fedhpc.launching.journal import Limits

if TYPE_CHECKING:
    from submitit import SlurmExecutor

MANY = 1_000_000  # submitit counts time limits down; how often a job may go on is ours to say (journal.verdict)
SOON_S = 60  # Slurm sends a signal up to a minute early


def limits_of(cluster: SlurmCluster) -> Limits:
    return Limits(cluster.max_restarts, max(0, cluster.time_s - cluster.stop_before_s - SOON_S))


def sbatch_text(runs: Sequence[SubmittedRun], cluster: SlurmCluster, folder: Path, name: str) -> str:
    """The file that `submit` would hand to sbatch. Needs no Slurm."""
    executor = _executor(runs, cluster, folder, name, folder / "runs_ID.json")
    if len(runs) > 1:
        executor.parameters["map_count"] = len(runs)  # as submitit does for an array
    text: str = executor._make_submission_file_text(executor._submitit_command_str, "")
    return f"{text}\n"


def would_refuse(runs: Sequence[SubmittedRun], cluster: SlurmCluster, folder: Path, name: str) -> str | None:
    """What Slurm itself has against the job; nothing is queued."""
    with tempfile.TemporaryDirectory() as scratch:
        script = Path(scratch) / "job.sh"
        script.write_text(sbatch_text(runs, cluster, folder, name))
        return slurm.would_refuse(script)


def submit(runs: Sequence[SubmittedRun], cluster: SlurmCluster, folder: Path, name: str) -> list[str]:
    """Queue the runs: one as a job, several as one array. Returns their job ids ("12", or "12_0", "12_1", ...).

    Args:
        folder: gets sbatch file, pickles and logs; must be seen by all nodes.

    Raises:
        SlurmError: sbatch refused.
    """
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    table = folder / f"runs_{uuid.uuid4().hex[:8]}.json"
    batch.write_table(table, [run.run_dir for run in runs], limits_of(cluster))
    executor = _executor(runs, cluster, folder, name, table)
    try:
        jobs = [executor.submit(runs[0])] if len(runs) == 1 else executor.submit_array(list(runs))
    except (FailedJobError, FailedSubmissionError) as error:
        table.unlink()
        raise slurm.SlurmError(f"sbatch refused the job: {error}") from error
    ids = [job.job_id for job in jobs]
    for run, job in zip(runs, ids, strict=True):
        journal.write(run.run_dir, "submitted", job, logs=str(log(folder, job, "*")), ranks=cluster.ranks)
    return ids


def log(folder: Path, job: str, rank: int | str) -> Path:
    """What a rank of a job writes."""
    return folder / f"{job}_{rank}_log.out"


def _executor(
    runs: Sequence[SubmittedRun], cluster: SlurmCluster, folder: Path, name: str, table: Path
) -> SlurmExecutor:
    try:
        from submitit import SlurmExecutor
    except ModuleNotFoundError as error:
        raise ValueError("submitting needs submitit: pip install 'fedhpc[slurm]'") from error

    class Executor(SlurmExecutor):
        """Its constructor wants srun, which --dry-run can do without."""

        job_class = SlurmExecutor.job_class

        @classmethod
        def affinity(cls) -> int:
            return max(0, SlurmExecutor.affinity()) + 1

    python = cluster.python or shlex.quote(sys.executable)
    executor = Executor(folder, max_num_timeout=MANY, python=python)
    patience = math.ceil(2 * max(run.config.runtime.timeout_s for run in runs)) + 60
    threads = max(run.config.runtime.threads_per_rank for run in runs)
    executor.update_parameters(**_parameters(cluster, name, table, python, patience, threads))
    return executor


def _parameters(
    cluster: SlurmCluster, name: str, table: Path, python: str, patience_s: int, threads: int
) -> dict[str, Any]:
    """In submitit's words. patience_s: how long ranks may go on after the first has ended."""
    around = f"{python} -m fedhpc.launching.batch"
    which = f'{shlex.quote(str(table))} "${{SLURM_ARRAY_TASK_ID:-0}}" "$fedhpc_job"'
    given: dict[str, Any] = {
        "job_name": name,
        "time": math.ceil(cluster.time_s / 60),
        "nodes": cluster.nodes,
        "ntasks_per_node": cluster.ranks_per_node,
        "cpus_per_task": cluster.cpus_per_rank,
        "partition": cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "constraint": cluster.constraint,
        "signal_delay_s": cluster.stop_before_s,
        "array_parallelism": cluster.max_runs_at_once,
        "stderr_to_stdout": True,
        # A lost rank must not take down those that write the checkpoint, or say who was lost. They wait, not for ever.
        "srun_args": [
            f"--cpus-per-task={cluster.cpus_per_rank}",  # Slurm 22.05 and later do not pass sbatch's on
            "--kill-on-bad-exit=0",
            f"--wait={patience_s}",
            "--open-mode=append",
            *cluster.srun,
        ],
        "additional_parameters": {
            "requeue": True,
            **{k.replace("_", "-"): v for k, v in cluster.sbatch.items() if v is not False},
        },
        "setup": [
            # Before NumPy is imported, which would start a thread for each CPU of the node.
            "export " + " ".join(f"{variable}={threads}" for variable in THREADS),
            *cluster.setup,
            'fedhpc_job="${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_}${SLURM_ARRAY_TASK_ID:-$SLURM_JOB_ID}"',
            f"{around} started {which} || exit 2",
        ],
        "teardown": [
            "fedhpc_code=$?",
            f'{around} ended {which} "$fedhpc_code"',
            "exit $fedhpc_code",
        ],
    }
    if cluster.gpus_per_rank:
        # For the node, not for each task: ranks of a node then see each other's GPUs, which NCCL is faster with.
        kind = f"{cluster.gpu_type}:" if cluster.gpu_type else ""
        given["gpus_per_node"] = f"{kind}{cluster.gpus_per_rank * cluster.ranks_per_node}"
    if cluster.memory_gb_per_rank is not None:
        given["mem"] = f"{math.ceil(cluster.memory_gb_per_rank * cluster.ranks_per_node * 1024)}M"
    return {"wckey": None, **{key: value for key, value in given.items() if value is not None}}
