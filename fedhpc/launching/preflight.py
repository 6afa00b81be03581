"""Everything that can be refused before a job is queued: what is wrong, and the cure."""

from __future__ import annotations

import getpass
import math
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fedhpc.config.cluster import SlurmCluster
from fedhpc.config.fields import closest, shown
from fedhpc.config.schema import RunConfig
from fedhpc.launching import slurm
from fedhpc.launching.slurm import Node, Partition

# Every machine has its own of these.
OWN_FOLDERS = (Path("/tmp"), Path("/var/tmp"), Path("/dev/shm"), Path("/run"))
OWN_FILE_SYSTEMS = frozenset({"tmpfs", "ramfs", "devtmpfs", "proc", "sysfs"})
MOUNTS = Path("/proc/mounts")


@dataclass
class Findings:
    """problems: nothing is queued. notes: worth saying."""

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def run_problems(config: RunConfig, cluster: SlurmCluster) -> Iterator[str]:
    """What a run asks of its ranks against what they get."""
    threads = config.runtime.threads_per_rank
    if threads > cluster.cpus_per_rank:
        yield (
            f"runtime.threads_per_rank = {threads} but cpus_per_rank = {cluster.cpus_per_rank}; "
            f"set cluster.cpus_per_rank={threads} (or more)"
        )
    if config.runtime.device == "cuda" and not cluster.gpus_per_rank:
        yield "runtime.device = cuda but gpus_per_rank = 0; set cluster.gpus_per_rank=1"
    if config.runtime.device == "cpu" and cluster.gpus_per_rank:
        yield (
            f"gpus_per_rank = {cluster.gpus_per_rank} but runtime.device = cpu, which would leave them idle; "
            "set cluster.gpus_per_rank=0, or runtime.device: auto"
        )


# ---------------------------------------------------------------------------------------------------------- folders
def unwritable(folder: Path, option: str) -> str | None:
    """Why a folder that may not exist yet cannot be written; None when it can. Leaves nothing behind."""
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    try:
        with tempfile.TemporaryFile(dir=there):
            return None
    except OSError as error:
        why = error.strerror or str(error)
        return f"the run folder {folder} cannot be written ({there}: {why}); set {option} to a folder of yours"


def unseen_by_nodes(cluster: SlurmCluster, what: str, path: Path, cure: str) -> str | None:
    """Why nodes would not see a path; None when they should."""
    real = path.absolute().resolve()
    if cluster.shared_folders:
        if any(real.is_relative_to(folder.resolve()) for folder in cluster.shared_folders):
            return None
        known = ", ".join(map(str, cluster.shared_folders))
        return f"{what} {real} lies in none of the folders that all nodes see ({known}); {cure}"
    own = next((folder for folder in OWN_FOLDERS if real.is_relative_to(folder)), None)
    kind = file_system(real)
    if own is None and kind not in OWN_FILE_SYSTEMS:
        return None
    where = f"in {own}" if own else f"on a {kind}"
    return (
        f"{what} {real} lies {where}, of which every machine has its own; {cure}, or list it under shared_folders "
        "of the cluster file if all nodes do see it"
    )


def file_system(path: Path, mounts: str | None = None) -> str:
    """Type of the file system that holds a path: "nfs4", "lustre", "ext4"; "" when not known."""
    if mounts is None:
        mounts = MOUNTS.read_text() if MOUNTS.is_file() else ""
    best, kind = -1, ""
    for line in mounts.splitlines():
        _, point, fs, *_ = [*line.split(), "", "", ""]
        point = point.replace("\\040", " ")
        if path.is_relative_to(point or "\0") and len(point) >= best:
            best, kind = len(point), fs
    return kind


def folder_problems(configs: Sequence[RunConfig], run_dir: Path, cluster: SlurmCluster, option: str) -> list[str]:
    """Run folder, data, working folder and interpreter, as the nodes will look for them."""
    found = [
        unwritable(run_dir, option),
        unseen_by_nodes(cluster, "the run folder", run_dir, f"set {option}"),
        unseen_by_nodes(cluster, "the working folder", Path.cwd(), "submit from another folder"),
    ]
    for path in {config.data.path for config in configs if config.data.path is not None}:
        found.append(unseen_by_nodes(cluster, "data.path =", path, "move the file"))
    if cluster.python is None and cluster.shared_folders:
        found.append(
            unseen_by_nodes(cluster, "the Python environment", Path(sys.prefix), "install there, or set python")
        )
    return [problem for problem in found if problem]


# ------------------------------------------------------------------------------------------------------------ Slurm
def slurm_findings(cluster: SlurmCluster, there: Sequence[Partition]) -> Findings:
    """The request against this site's partitions, nodes and accounts."""
    found = Findings()
    partition, problem = choose_partition(cluster, there)
    if partition is None:
        found.problems += [problem] if problem else []
        return found
    user = getpass.getuser()
    found.problems += partition_problems(cluster, partition)
    found.problems += account_problems(cluster, slurm.accounts(user), slurm.all_qos(), user)
    nodes = node_findings(cluster, partition, slurm.nodes(partition.name))
    found.problems += nodes.problems
    found.notes += nodes.notes
    return found


def choose_partition(cluster: SlurmCluster, there: Sequence[Partition]) -> tuple[Partition | None, str | None]:
    """The partition that the job would go to, or what is wrong."""
    if cluster.partition is None:
        chosen = next((p for p in there if p.is_default), None)
        if chosen is None:
            return (
                None,
                f"no partition is set and the site has no default; set partition to one of {slurm.names(there)}",
            )
        return chosen, None
    if "," in cluster.partition:  # a list, of which Slurm takes the first that is free: left to Slurm
        unknown = [name for name in cluster.partition.split(",") if name not in {p.name for p in there}]
        return None, f"partition = {cluster.partition}: no {', '.join(unknown)}" if unknown else None
    chosen = next((p for p in there if p.name == cluster.partition), None)
    if chosen is None:
        meant = closest(cluster.partition, [p.name for p in there])
        hint = f"; did you mean {meant}?" if meant else ""
        return None, (
            f"partition = {cluster.partition}: this site has none of that name{hint}; set one of {slurm.names(there)}"
        )
    return chosen, None


def partition_problems(cluster: SlurmCluster, partition: Partition) -> Iterator[str]:
    name = partition.name
    if partition.state != "UP":
        yield f"partition {name} is {partition.state}: jobs there would not start; set another partition"
    if partition.max_time_s is not None and cluster.time_s > partition.max_time_s:
        most = clock(partition.max_time_s)
        yield (
            f'time = {cluster.time} but partition {name} allows {most}; set time: "{most}". A longer run queues itself '
            "again and goes on"
        )
    if partition.max_nodes is not None and cluster.nodes > partition.max_nodes:
        yield (
            f"nodes = {cluster.nodes} but partition {name} allows {partition.max_nodes} for one job; "
            f"set nodes: {partition.max_nodes}, with more ranks_per_node"
        )
    if cluster.nodes < partition.min_nodes:
        yield f"nodes = {cluster.nodes} but partition {name} wants at least {partition.min_nodes}; set that many"
    if cluster.account is not None:
        allowed = partition.allow_accounts
        if cluster.account in partition.deny_accounts or (allowed is not None and cluster.account not in allowed):
            hint = f"; it takes {', '.join(sorted(allowed))}" if allowed else ""
            yield f"account = {cluster.account} may not use partition {name}{hint}; set another account or partition"
    if cluster.qos is not None and partition.allow_qos is not None and cluster.qos not in partition.allow_qos:
        yield f"qos = {cluster.qos}: partition {name} takes {', '.join(sorted(partition.allow_qos))}; set one of them"


def account_problems(
    cluster: SlurmCluster, accounts: frozenset[str] | None, qos: frozenset[str] | None, user: str
) -> Iterator[str]:
    """accounts, qos: None where the site does not tell."""
    if cluster.account is not None and accounts is not None and cluster.account not in accounts:
        yield f"account = {cluster.account}: {user} has {', '.join(sorted(accounts))}; set one of them"
    if cluster.qos is not None and qos is not None and cluster.qos not in qos:
        yield f"qos = {cluster.qos}: this site has {', '.join(sorted(qos))}; set one of them"


def node_findings(cluster: SlurmCluster, partition: Partition, nodes: Sequence[Node]) -> Findings:
    """Whether enough nodes of the partition are large enough."""
    found, where = Findings(), f"partition {partition.name}"
    if cluster.constraint and re.fullmatch(r"[\w.-]+(&[\w.-]+)*", cluster.constraint):  # others are left to Slurm
        wanted = frozenset(cluster.constraint.split("&"))
        fitting = [node for node in nodes if wanted <= node.features]
        if not fitting:
            features = ", ".join(sorted(frozenset().union(*(node.features for node in nodes)))) or "none"
            found.problems.append(
                f"constraint = {cluster.constraint}: no node of {where} has it; the features there are {features}"
            )
            return found
        nodes, where = fitting, f"{where} with {cluster.constraint}"
    if cluster.nodes > len(nodes):
        ranks = math.ceil(cluster.ranks / max(1, len(nodes)))
        found.problems.append(
            f"nodes = {cluster.nodes} but {where} has {len(nodes)}; set nodes: {len(nodes)} "
            f"(with ranks_per_node: {ranks} for as many ranks), or another partition"
        )
        return found
    need = _Need.of(cluster)
    for asked, most, cure in need.compare(nodes, partition, cluster):
        found.problems.append(f"{asked} but {most}; {cure}")
    fitting = [node for node in nodes if need.fits(node, cluster.gpu_type)]
    if not found.problems and len(fitting) < cluster.nodes:
        found.problems.append(
            f"nodes = {cluster.nodes}, but {len(fitting)} of the {len(nodes)} nodes of {where} have what "
            f"{shown(cluster.ranks_per_node)} ranks ask for; set nodes: {max(1, len(fitting))}, or ask for less a node"
        )
    up = sum(node.is_up for node in fitting)
    if not found.problems and up < cluster.nodes:
        found.notes.append(
            f"{len(fitting) - up} of the {len(fitting)} fitting nodes of {where} are down or drained now: the job "
            "waits for them"
        )
    return found


@dataclass(frozen=True)
class _Need:
    """What one node must have for its ranks."""

    cpus: int
    memory_mb: int
    gpus: int

    @classmethod
    def of(cls, cluster: SlurmCluster) -> _Need:
        per_rank = cluster.memory_gb_per_rank or 0
        return cls(
            cluster.ranks_per_node * cluster.cpus_per_rank,
            math.ceil(cluster.ranks_per_node * per_rank * 1024),
            cluster.ranks_per_node * cluster.gpus_per_rank,
        )

    def fits(self, node: Node, gpu_type: str | None) -> bool:
        return node.cpus >= self.cpus and node.memory_mb >= self.memory_mb and _gpus(node, gpu_type) >= self.gpus

    def compare(
        self, nodes: Sequence[Node], partition: Partition, cluster: SlurmCluster
    ) -> Iterator[tuple[str, str, str]]:
        """(what was asked, the most there is, the cure) for each excess."""
        ranks, largest = cluster.ranks_per_node, f"the largest node of partition {partition.name} has"
        cpus = max(node.cpus for node in nodes)
        limit = partition.max_cpus_per_node
        if self.cpus > min(cpus, limit or cpus):
            most = min(cpus, limit or cpus)
            told = f"partition {partition.name} allows {most} a node" if most < cpus else f"{largest} {cpus}"
            fit = max(1, most // cluster.cpus_per_rank)
            cure = f"set ranks_per_node: {fit}" if cluster.cpus_per_rank <= most else f"set cpus_per_rank: {most}"
            asked = f"ranks_per_node({ranks}) * cpus_per_rank({cluster.cpus_per_rank}) = {self.cpus} CPUs a node"
            yield asked, told, cure
        memory = max(node.memory_mb for node in nodes)
        limit = partition.max_memory_mb_per_node
        if self.memory_mb > min(memory, limit or memory):
            most = min(memory, limit or memory)
            told = f"partition {partition.name} allows {most} MB a node" if most < memory else f"{largest} {memory} MB"
            product = f"ranks_per_node({ranks}) * memory_gb_per_rank({cluster.memory_gb_per_rank:g})"
            asked = f"{product} = {self.memory_mb} MB a node"
            cure = f"set memory_gb_per_rank: {math.floor(10 * most / 1024 / ranks) / 10:g}, or fewer ranks_per_node"
            yield asked, told, cure
        gpus = max(_gpus(node, cluster.gpu_type) for node in nodes)
        if self.gpus > gpus:
            kind = f" {cluster.gpu_type}" if cluster.gpu_type else ""
            asked = f"ranks_per_node({ranks}) * gpus_per_rank({cluster.gpus_per_rank}) = {self.gpus}{kind} GPUs a node"
            types = sorted({kind for node in nodes for kind in node.gpus if kind})
            there = f" ({', '.join(types)})" if types and not gpus else ""
            fit = gpus // cluster.gpus_per_rank
            cure = f"set ranks_per_node: {fit}" if fit else "set another partition or gpu_type, or gpus_per_rank: 0"
            yield asked, f"{largest} {gpus}{there}", cure


def _gpus(node: Node, kind: str | None) -> int:
    return sum(node.gpus.values()) if kind is None else node.gpus.get(kind, 0)


def clock(seconds: int) -> str:
    """In Slurm's form: 1-12:00:00."""
    days, rest = divmod(seconds, 86400)
    text = f"{rest // 3600:02d}:{rest % 3600 // 60:02d}:{rest % 60:02d}"
    return f"{days}-{text}" if days else text
