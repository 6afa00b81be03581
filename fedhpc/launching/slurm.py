"""What Slurm says of itself and of jobs, from the text output of its commands (older versions have no JSON)."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fedhpc.config.cluster import time_s

PATIENCE_S = 60.0  # a busy slurmctld takes its time
SINFO_FORMAT = "%N|%c|%m|%G|%f|%T"
SQUEUE_FORMAT = "%i|%T|%r"
SACCT_FORMAT = "JobID,State,Reason"
# States in which a job will run, or goes on running.
WAITING = frozenset({"PENDING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT", "SUSPENDED", "STOPPED"})
ACTIVE = frozenset({"CONFIGURING", "RUNNING", "COMPLETING", "STAGE_OUT", "SIGNALING", "RESIZING", "PREEMPTED"})
_UNLIMITED = ("UNLIMITED", "INFINITE", "NONE", "(null)", "N/A", "")


class SlurmError(ValueError):
    """A command of Slurm failed; the message is what it said."""


@dataclass(frozen=True)
class Partition:
    """Limits of a partition; None where there is none."""

    name: str
    state: str = "UP"
    is_default: bool = False
    max_time_s: int | None = None
    max_nodes: int | None = None
    min_nodes: int = 0
    max_cpus_per_node: int | None = None
    max_memory_mb_per_node: int | None = None
    allow_accounts: frozenset[str] | None = None
    deny_accounts: frozenset[str] = frozenset()
    allow_qos: frozenset[str] | None = None


@dataclass(frozen=True)
class Node:
    """One node; gpus: number by type ("" where the site names none)."""

    name: str
    cpus: int
    memory_mb: int
    gpus: Mapping[str, int] = field(default_factory=dict)
    features: frozenset[str] = frozenset()
    state: str = "idle"

    @property
    def is_up(self) -> bool:
        word = re.match(r"[a-z]*", self.state.lower())
        return word is not None and word[0] not in ("down", "drained", "draining", "drng", "fail", "failing", "unknown")


def available() -> bool:
    """Whether this machine can submit jobs."""
    return all(shutil.which(name) is not None for name in ("sbatch", "squeue", "scontrol", "srun"))


def call(*command: str) -> str:
    """Standard output of a command. Raises SlurmError when it fails or does not answer."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, stdin=subprocess.DEVNULL)
    except FileNotFoundError as error:
        raise SlurmError(f"{command[0]}: no such command on this machine") from error
    except subprocess.TimeoutExpired as error:
        raise SlurmError(f"{' '.join(command)}: no answer within {PATIENCE_S:.0f} s") from error
    if done.returncode:
        raise SlurmError(done.stderr.strip() or done.stdout.strip() or f"{command[0]} failed ({done.returncode})")
    return done.stdout


# ---------------------------------------------------------------------------------------------------- what there is
def partitions() -> list[Partition]:
    return parse_partitions(call("scontrol", "show", "partition", "--oneliner"))


def nodes(partition: str) -> list[Node]:
    return parse_nodes(call("sinfo", "--noheader", "--Node", f"--partition={partition}", f"--format={SINFO_FORMAT}"))


def accounts(user: str) -> frozenset[str] | None:
    """The user's accounts; None where the site keeps no accounting or does not answer."""
    return _accounting("associations", f"user={user}", "format=Account")


def all_qos() -> frozenset[str] | None:
    """Every QOS of the site; None where it keeps no accounting or does not answer."""
    return _accounting("qos", "format=Name")


def _accounting(what: str, *arguments: str) -> frozenset[str] | None:
    try:
        text = call("sacctmgr", "--noheader", "--parsable2", "--readonly", "show", what, *arguments)
    except SlurmError:
        return None
    return frozenset(line.strip() for line in text.splitlines() if line.strip()) or None


def would_refuse(script: Path) -> str | None:
    """What Slurm has against an sbatch file, without queueing it; None when it would take it."""
    try:
        call("sbatch", "--test-only", str(script))
    except SlurmError as error:
        lines = [line.removeprefix("sbatch: error: ").strip() for line in str(error).splitlines()]
        return "; ".join(line for line in lines if line and not line.startswith("sbatch:")) or str(error)
    return None


def parse_partitions(text: str) -> list[Partition]:
    """From `scontrol show partition --oneliner`."""
    found = []
    for line in text.splitlines():
        keys = dict(re.findall(r"(\S+?)=(\S*)", line))
        if "PartitionName" not in keys:
            continue
        found.append(
            Partition(
                name=keys["PartitionName"],
                state=keys.get("State", "UP"),
                is_default=keys.get("Default") == "YES",
                max_time_s=_limit(keys.get("MaxTime", ""), time_s),
                max_nodes=_limit(keys.get("MaxNodes", ""), int),
                min_nodes=_limit(keys.get("MinNodes", ""), int) or 0,
                max_cpus_per_node=_limit(keys.get("MaxCPUsPerNode", ""), int),
                max_memory_mb_per_node=_limit(keys.get("MaxMemPerNode", ""), int),
                allow_accounts=_names(keys.get("AllowAccounts", "ALL")),
                deny_accounts=_names(keys.get("DenyAccounts", "")) or frozenset(),
                allow_qos=_names(keys.get("AllowQos", "ALL")),
            )
        )
    return found


def parse_nodes(text: str) -> list[Node]:
    """From sinfo with SINFO_FORMAT, one line a node."""
    found = []
    for line in text.splitlines():
        fields = line.strip().split("|")
        if len(fields) != SINFO_FORMAT.count("|") + 1:
            continue
        name, cpus, memory, gres, features, state = (value.strip() for value in fields)
        named = frozenset() if features in _UNLIMITED else frozenset(features.split(","))
        found.append(Node(name, _whole(cpus), _whole(memory), parse_gpus(gres), named, state))
    return list({node.name: node for node in found}.values())


def parse_gpus(gres: str) -> dict[str, int]:
    """Number of GPUs by type in a node's gres: "gpu:a100:4(S:0-1),nvme:1" is {"a100": 4}."""
    gpus: dict[str, int] = {}
    for item in re.sub(r"\([^)]*\)", "", gres).split(","):
        name, *rest = item.strip().split(":")
        if name != "gpu":
            continue
        kind = rest[0] if rest and not rest[0].isdigit() else ""
        count = int(rest[-1]) if rest and rest[-1].isdigit() else 1
        gpus[kind] = gpus.get(kind, 0) + count
    return gpus


def _whole(text: str) -> int:
    """The number that a field begins with ("515000+" of nodes that differ); 0 without one."""
    match = re.match(r"\d+", text)
    return int(match[0]) if match else 0


def _limit(text: str, read: Callable[[str], int | None]) -> int | None:
    return None if text in _UNLIMITED else read(text)


def _names(text: str) -> frozenset[str] | None:
    return None if text in ("ALL", *_UNLIMITED) else frozenset(text.split(","))


# ------------------------------------------------------------------------------------------------------------- jobs
@dataclass(frozen=True)
class JobState:
    """Of one job or one task of an array. reason: why it waits, or Slurm's own word for how it ended."""

    state: str
    reason: str = ""


def job_states(jobs: Iterable[str]) -> dict[str, JobState]:
    """By job id ("12" or "12_3"). From squeue; what it has forgotten from sacct, else from scontrol. Jobs that nobody
    remembers are left out."""
    wanted = sorted(set(jobs))
    if not wanted or not available():
        return {}
    whole = sorted({job.partition("_")[0] for job in wanted})
    found = _squeue(whole)
    if found is None:  # it fails as a whole when it has forgotten one of them
        found = {job: state for one in whole for job, state in (_squeue([one]) or {}).items()}
    missing = [job for job in wanted if job not in found]
    if missing:
        found |= _sacct(missing)
    return {job: found[job] for job in wanted if job in found}


def _squeue(jobs: Sequence[str]) -> dict[str, JobState] | None:
    """None when it knows not all of them."""
    listed = f"--jobs={','.join(jobs)}"
    try:
        return parse_squeue(
            call("squeue", "--noheader", "--array", "--states=all", f"--format={SQUEUE_FORMAT}", listed)
        )
    except SlurmError:
        return None


def _sacct(jobs: Sequence[str]) -> dict[str, JobState]:
    """Nothing where the site keeps no accounting."""
    options = ("--noheader", "--parsable2", "--allocations", "--array", f"--format={SACCT_FORMAT}")
    try:
        return parse_sacct(call("sacct", *options, f"--jobs={','.join(jobs)}"))
    except SlurmError:
        return {}


def parse_squeue(text: str) -> dict[str, JobState]:
    """From squeue with SQUEUE_FORMAT."""
    found = {}
    for line in text.splitlines():
        job, state, reason = (value.strip() for value in (*line.split("|"), "", "")[:3])
        if job and state:
            found[job] = JobState(state.upper(), "" if reason == "None" else reason)
    return found


def parse_sacct(text: str) -> dict[str, JobState]:
    """From `sacct --parsable2` with SACCT_FORMAT. A requeued job has several lines, the last one counts."""
    found = {}
    for line in text.splitlines():
        job, state, reason = (value.strip() for value in (*line.split("|"), "", "")[:3])
        if job and state and "." not in job and "[" not in job:
            found[job] = JobState(state.split()[0].rstrip("+").upper(), "" if reason == "None" else reason)
    return found


def is_cancelled(job: str) -> bool:
    """Whether somebody is ending the job: `scontrol requeue` would bring it back to life.

    A job whose ranks are still ending is COMPLETING, whatever ends it; Slurm tells its own time limit by the reason.
    """
    try:
        text = call("scontrol", "show", "job", job, "--oneliner")
    except SlurmError:
        return False
    found = dict(re.findall(r"\b(JobState|Reason)=(\S+)", text))
    state, reason = found.get("JobState", ""), found.get("Reason", "")
    return state == "CANCELLED" or (state == "COMPLETING" and reason != "TimeLimit")


def requeue(job: str) -> None:
    """Ends the job and queues it again under its id. Raises SlurmError."""
    call("scontrol", "requeue", job)


def names(items: Sequence[Partition]) -> str:
    return ", ".join(item.name for item in items)
