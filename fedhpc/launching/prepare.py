"""From a command line to jobs that may be queued: everything is checked first, all problems are told at once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fedhpc.config.checks import check, check_files
from fedhpc.config.cluster import SlurmCluster
from fedhpc.config.load import ConfigError
from fedhpc.config.schema import RunConfig
from fedhpc.launching import journal, preflight, slurm, submit
from fedhpc.launching.job import SubmittedRun
from fedhpc.launching.slurm import ACTIVE, WAITING
from fedhpc.launching.watch import last_job


def config_problems(config: RunConfig, ranks: int, cluster: SlurmCluster | None) -> list[str]:
    """What a config lacks to be started on so many ranks here."""
    found = [*check(config, ranks), *check_files(config)]
    return [*found, *preflight.run_problems(config, cluster)] if cluster is not None else found


def check_slurm(
    source: str, configs: Sequence[RunConfig], run_dir: Path, cluster: SlurmCluster, option: str, *, dry_run: bool
) -> list[str]:
    """Notes worth telling. Raises ConfigError with every reason not to queue the runs.

    Args:
        source: what the problems are problems of.
        run_dir: the run folder, or the sweep's.
        option: that sets run_dir.
        dry_run: a machine without Slurm will do; what only Slurm knows is left out then.
    """
    problems = list(dict.fromkeys(line for c in configs for line in config_problems(c, cluster.ranks, cluster)))
    folders = preflight.folder_problems(configs, run_dir, cluster, option)
    notes: list[str] = []
    there = _partitions()
    if isinstance(there, str) and dry_run:
        notes += [f"{there}. Partition, nodes, time limit, account and QOS were not checked", *folders]
    elif isinstance(there, str):
        problems += [f"{there}; submit from a login node, or use --dry-run", *folders]
    else:
        found = preflight.slurm_findings(cluster, there)
        problems += [*folders, *found.problems]
        notes += found.notes
    if problems:
        raise ConfigError(source, problems)
    return notes


def _partitions() -> list[slurm.Partition] | str:
    """Of this site; or why it does not tell."""
    if not slurm.available():
        return "this machine has no Slurm (sbatch, squeue, scontrol, srun)"
    try:
        return slurm.partitions()
    except slurm.SlurmError as error:
        return f"Slurm does not answer ({str(error).splitlines()[0]})"


def ask_slurm(source: str, runs: Sequence[SubmittedRun], cluster: SlurmCluster, folder: Path, name: str) -> None:
    """The last check is Slurm's own, for what no other could know. Raises ConfigError."""
    if (refusal := submit.would_refuse(runs, cluster, folder, name)) is not None:
        raise ConfigError(source, [f"Slurm would refuse this job: {refusal}; change what it names in the cluster file"])


def job_under_way(folder: Path) -> str | None:
    """The job that is queued or runs for a run folder, with its state: "12 (PENDING)"."""
    job = last_job(journal.read(folder))
    now = slurm.job_states([job]).get(job) if job else None
    return f"{job} ({now.state})" if now is not None and now.state in WAITING | ACTIVE else None
