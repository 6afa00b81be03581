"""What one process sees without others: packages, devices, memory, Slurm, MPI, DeepSpeed."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

from fedhpc.doctor.finding import Finding
from fedhpc.runtime import usable_cpus

SHM_MIB = 64  # a container's default; NCCL and loaders of others fail on it in odd ways
COMMAND_S = 20.0


def examine() -> Iterator[Finding]:
    """Rank 0's own machine."""
    yield python()
    yield from packages()
    yield devices()
    yield memory()
    yield slurm()
    yield mpi()
    yield deepspeed()


def python() -> Finding:
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    if platform.system() != "Linux":
        return Finding("WARN", "python", found, "fedhpc is developed and tested on Linux only")
    return Finding("PASS", "python", found)


def packages() -> Iterator[Finding]:
    """Every package that fedhpc needs, against the version that it asks for."""
    try:
        wanted = [Requirement(text) for text in importlib.metadata.requires("fedhpc") or ()]
    except importlib.metadata.PackageNotFoundError:
        yield Finding("WARN", "packages", "fedhpc runs from its sources", "pip install -c constraints.txt -e .")
        return
    needed = [one for one in wanted if one.marker is None or one.marker.evaluate({"extra": ""})]
    wrong = [text for one in needed if (text := unmet(one))]
    if wrong:
        yield Finding("FAIL", "packages", ", ".join(wrong), "pip install -c constraints.txt -e .")
        return
    named = ("torch", "h5py", "numpy", "timm", "transformers")
    yield Finding("PASS", "packages", ", ".join(f"{name} {importlib.metadata.version(name)}" for name in named))


def unmet(wanted: Requirement) -> str:
    """What is wrong with a package; empty when nothing is."""
    try:
        version = importlib.metadata.version(wanted.name)
    except importlib.metadata.PackageNotFoundError:
        return f"{wanted.name} is missing"
    if wanted.specifier.contains(Version(version), prereleases=True):
        return ""
    return f"{wanted.name} is {version}, {wanted.specifier} is needed"


def devices() -> Finding:
    import torch

    cpus = f"{usable_cpus()} CPUs"
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    if gpus:
        return Finding("PASS", "devices", f"{cpus}, {len(gpus)} GPUs ({gpus[0]}), CUDA {torch.version.cuda}")
    if Path("/proc/driver/nvidia/gpus").is_dir():
        return Finding(
            "FAIL", "devices", f"{cpus}; the driver has GPUs, but torch {torch.__version__} sees none",
            "install a torch with CUDA for this driver; ask Slurm for GPUs (--gres=gpu:1); see CUDA_VISIBLE_DEVICES",
        )  # fmt: skip
    return Finding("PASS", "devices", f"{cpus}, no GPU")


def memory() -> Finding:
    """Of the node, and of /dev/shm."""
    lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    available = int(lines["MemAvailable"].split()[0]) >> 10
    total = int(lines["MemTotal"].split()[0]) >> 10
    shm = shutil.disk_usage("/dev/shm").total >> 20 if Path("/dev/shm").is_dir() else 0
    found = f"{available / 1024:.1f} of {total / 1024:.1f} GiB free, /dev/shm {shm} MiB"
    if available < 2048:
        return Finding("WARN", "memory", found, "a rank takes 1 GiB or more (fedhpc plan says how much): free some")
    if shm <= SHM_MIB:
        return Finding("WARN", "memory", found, "give a container more: --shm-size 8g, or --ipc host")
    return Finding("PASS", "memory", found)


def slurm() -> Finding:
    found = _says("sinfo", "--version")
    if found is None:
        return Finding(
            "WARN", "Slurm", "no sinfo here", "on a cluster, load its Slurm module; without one use fedhpc run "
            "--ranks, or torchrun",
        )  # fmt: skip
    partitions = _says("sinfo", "--noheader", "--format=%P")
    if not partitions:
        return Finding(
            "WARN", "Slurm", f"{found or 'sinfo'} is installed, but no controller answers", "scontrol ping tells more; "
            "on a login node ask the site; SLURM_CONF may name the cluster's file",
        )  # fmt: skip
    kinds = ", ".join(partitions.split())
    submitit = "" if _has("submitit") else "; no submitit, which fedhpc submit needs"
    if submitit:
        return Finding("WARN", "Slurm", f"{found}, partitions {kinds}{submitit}", "pip install -e '.[slurm]'")
    return Finding("PASS", "Slurm", f"{found}, partitions {kinds}, submitit {importlib.metadata.version('submitit')}")


def mpi() -> Finding:
    said = _says("mpirun", "--version")
    found = said.splitlines()[0] if said else "no mpirun"
    if said and not _has("mpi4py"):
        return Finding("WARN", "MPI", f"{found}, no mpi4py", "to start ranks with mpirun: pip install -e '.[mpi]'")
    return Finding("PASS", "MPI", f"{found}, mpi4py {importlib.metadata.version('mpi4py')}" if said else found)


def deepspeed() -> Finding:
    if _has("deepspeed"):
        return Finding("PASS", "DeepSpeed", importlib.metadata.version("deepspeed"))
    return Finding(
        "WARN", "DeepSpeed", "not installed", "only clients that several ranks train together need it: "
        "pip install -e '.[sharded]'",
    )  # fmt: skip


def _has(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def _says(*command: str) -> str | None:
    """Standard output; None where there is no such program, empty where it fails."""
    if shutil.which(command[0]) is None:
        return None
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return run.stdout.strip() if run.returncode == 0 else ""
