"""Where runs are started: configs/cluster/*.yaml. Slurm's words where it has one.

`fedhpc submit CONFIG --cluster FILE cluster.partition=debug` changes a key of the file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, cast

from pydantic import Field, field_validator

from fedhpc.config.draft import told
from fedhpc.config.fields import closest, shown
from fedhpc.config.load import ConfigError, read_validated
from fedhpc.config.schema import RunConfig
from fedhpc.config.section import Section

PREFIX = "cluster."  # of overrides that are meant for the cluster file
FOLDER = Path("configs") / "cluster"  # where a name without .yaml is looked for

# sbatch options that another key, or fedhpc itself, sets -> what to do instead.
TAKEN = {
    **{key: f"set {key} outside of sbatch" for key in ("partition", "account", "qos", "constraint", "nodes", "time")},
    "ntasks": "set nodes and ranks_per_node",
    "ntasks-per-node": "set ranks_per_node",
    "cpus-per-task": "set cpus_per_rank",
    "gpus-per-node": "set gpus_per_rank",
    "mem": "set memory_gb_per_rank",
    "array": "the sweep makes it; set max_runs_at_once to limit it",
    "signal": "set stop_before_s",
    "requeue": "it is always set",
    **dict.fromkeys(("output", "error", "open-mode", "wckey", "job-name", "wrap"), "fedhpc needs its own"),
}
_OPTION = re.compile(r"^[a-z][a-z0-9-]*$")
_TIME = re.compile(r"^(?:(?P<days>\d+)-)?(?P<fields>\d+(?::\d+){0,2})$")
TIME_FORMS = 'days-hours:minutes:seconds or hours:minutes:seconds, in quotes, such as "1-12:00:00" or "24:00:00"'


class LocalCluster(Section):
    """This machine: a sweep's runs as processes."""

    kind: Literal["local"]
    max_runs_at_once: int = Field(2, ge=1)
    """Runs of a sweep that are under way at once."""
    ranks: int = Field(1, ge=1)
    """Processes of each run, as in `fedhpc run --ranks`."""


class SlurmCluster(Section):
    """A Slurm cluster, and the part of it that one run gets."""

    kind: Literal["slurm"]
    partition: str | None = None
    """Default: the site's."""
    account: str | None = None
    """Who pays. Default: yours."""
    qos: str | None = None
    constraint: str | None = None
    """Features that nodes must have, in sbatch's syntax: "a100", "ib&a100"."""
    nodes: int = Field(1, ge=1)
    ranks_per_node: int = Field(1, ge=1)
    """Processes on each node; with GPUs one for each is usual."""
    cpus_per_rank: int = Field(1, ge=1)
    gpus_per_rank: int = Field(0, ge=0)
    gpu_type: str | None = None
    """Only where the site tells kinds apart: "a100"."""
    memory_gb_per_rank: float | None = Field(None, gt=0)
    """Main memory. Default: the site's."""
    time: str
    """Limit of one job. A run that needs longer goes on in the same job, which queues itself again."""
    stop_before_s: int = Field(120, ge=10)
    """Seconds before the time limit at which a run is asked to write a checkpoint. More than the longest round."""
    max_restarts: int = Field(3, ge=0)
    """Times that a job goes on after it lost a rank, or was stopped before it had come one checkpoint further. Stops
    that follow a new checkpoint (time limit, preemption) do not count."""
    max_runs_at_once: int = Field(16, ge=1)
    """Jobs of a sweep's array that may run at once."""
    sbatch: dict[str, str | int | bool] = Field(default_factory=dict)
    """Further options of sbatch: {reservation: maintenance, exclusive: true}."""
    srun: list[str] = Field(default_factory=list)
    """Further options of srun: ["--mpi=none"]."""
    setup: list[str] = Field(default_factory=list)
    """Shell lines on the first node before the ranks start: "module load cuda", "source .venv/bin/activate"."""
    python: str | None = None
    """Interpreter on the nodes. Default: the one that runs `fedhpc submit`."""
    shared_folders: list[Path] = Field(default_factory=list)
    """Folders that all nodes see. Run folder and data must lie in one of them. Default: anything but what is known to
    belong to one machine (/tmp, tmpfs)."""

    @field_validator("time", mode="before")
    @classmethod
    def _is_a_time(cls, value: Any) -> Any:
        if not isinstance(value, str):
            raise ValueError(f"{shown(value)} is a number (YAML reads 24:00:00 as 86400); write {TIME_FORMS}")
        if time_s(value) is None:
            raise ValueError(f"{shown(value)} is no time; write {TIME_FORMS}")
        return value

    @property
    def ranks(self) -> int:
        return self.nodes * self.ranks_per_node

    @property
    def time_s(self) -> int:
        seconds = time_s(self.time)
        assert seconds is not None, "validated above"
        return seconds


AnyCluster = LocalCluster | SlurmCluster
KINDS: dict[str, type[Section]] = {"local": LocalCluster, "slurm": SlurmCluster}


def time_s(text: str) -> int | None:
    """Seconds of a time in Slurm's forms (minutes, m:s, h:m:s, d-h, d-h:m, d-h:m:s); None when it is none, or 0."""
    match = _TIME.match(text)
    if match is None:
        return None
    fields = [int(field) for field in match["fields"].split(":")]
    if match["days"] is not None:
        hours, minutes, seconds = (*fields, 0, 0)[:3]
    elif len(fields) == 3:
        hours, minutes, seconds = fields
    else:
        hours, (minutes, seconds) = 0, (*fields, 0)[:2]
    return (int(match["days"] or 0) * 24 + hours) * 3600 + minutes * 60 + seconds or None


def split_overrides(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """(those of the run, those of the cluster file without their prefix).

    Raises ConfigError for a key that only cluster files have.
    """
    only_theirs = SlurmCluster.model_fields.keys() - RunConfig.model_fields.keys()
    if bare := [text for text in overrides if text.partition("=")[0] in only_theirs]:
        raise ConfigError("overrides", [f"{text}: a key of the cluster; write {PREFIX}{text}" for text in bare])
    mine = [text.removeprefix(PREFIX) for text in overrides if text.startswith(PREFIX)]
    return [text for text in overrides if not text.startswith(PREFIX)], mine


def load_cluster(given: str, overrides: Sequence[str] = ()) -> AnyCluster:
    """A cluster file, by path or - for those in configs/cluster - by name; "local" needs no file.

    Raises ConfigError with all problems at once.
    """
    path = Path(given)
    named = FOLDER / f"{given}.yaml"
    if path.suffix not in (".yaml", ".yml"):
        if not named.is_file():
            if given == "local":
                return _plain_local(overrides)
            known = sorted({"local", *(file.stem for file in FOLDER.glob("*.yaml"))})
            meant = closest(given, known)
            hint = (
                f"did you mean {meant}?"
                if meant
                else f"there are {', '.join(known)}; copy site.yaml of {FOLDER} to it and fill it in, or give a file"
            )
            raise ConfigError(f"--cluster {given}", [f"no {named}; {hint}"])
        path = named
    # YAML would read time=24:00:00 as a number, and on a command line quotes are easily lost.
    quoted = [re.sub(r"^time=([^'\"].*)$", r"time='\1'", text) for text in overrides]

    def choose(data: dict[str, Any]) -> tuple[type[Section], list[str]]:
        kind = data.get("kind")
        if kind in KINDS:
            return KINDS[kind], []
        meant = closest(kind, KINDS)
        hint = f"; did you mean {meant}?" if meant else ""
        raise ConfigError(str(path), [f"kind = {shown(kind)}: unknown{hint}; set one of {', '.join(KINDS)}"])

    return cast(AnyCluster, read_validated(path, quoted, choose, check_cluster))


def _plain_local(overrides: Sequence[str]) -> LocalCluster:
    """`--cluster local` without a file."""
    values: dict[str, int] = {}
    for text in overrides:
        key, _, value = text.partition("=")
        if key not in LocalCluster.model_fields or not value.isdigit() or int(value) < 1:
            keys = ", ".join(f"{PREFIX}{name}=N" for name in LocalCluster.model_fields if name != "kind")
            raise ConfigError("--cluster local", [f"override {shown(PREFIX + text)}: not accepted; it knows {keys}"])
        values[key] = int(value)
    return LocalCluster(kind="local", **values)


def check_cluster(cluster: Section, is_draft: bool = False) -> list[str]:
    """Problems between keys, one line each."""
    return list(told(_problems(cluster), is_draft)) if isinstance(cluster, SlurmCluster) else []


def _problems(cluster: SlurmCluster) -> Iterator[str]:
    if cluster.stop_before_s >= cluster.time_s:
        yield (
            f"stop_before_s = {cluster.stop_before_s} but time = {cluster.time} is {cluster.time_s} s: the run would "
            f"be stopped as it starts; set stop_before_s: {max(10, cluster.time_s // 10)}, or more time"
        )
    if cluster.gpu_type is not None and not cluster.gpus_per_rank:
        yield f"gpu_type = {cluster.gpu_type}: has no effect with gpus_per_rank: 0; remove it, or set gpus_per_rank"
    for key in cluster.sbatch:
        name = key.removeprefix("--").replace("_", "-")
        if name in TAKEN:
            yield f"sbatch.{key}: cannot be set there; {TAKEN[name]}"
        elif not _OPTION.match(key):
            yield f"sbatch.{key}: not the name of an option; write it as sbatch does, without dashes before it"
    for option in cluster.srun:
        if not option.startswith("-"):
            yield f"srun = {shown(cluster.srun)}: {shown(option)} is no option; write --name=value in one item"
    for folder in cluster.shared_folders:
        if not folder.is_absolute():
            yield f"shared_folders: {folder} is not absolute; write the whole path, as the nodes see it"
