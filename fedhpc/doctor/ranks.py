"""What only several ranks can tell: a sum, how fast it is, clocks, and who is slower than the others.

Every rank calls `examine`; all get the same findings.
"""

from __future__ import annotations

import importlib.metadata
import math
import platform
import statistics
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fedhpc.comm.collectives import Collectives
from fedhpc.comm.ledger import Ledger
from fedhpc.doctor.finding import Finding
from fedhpc.runtime import Runtime

SUM_BYTES = 32 << 20
COPY_BYTES = 64 << 20
REPEATS = 5
MEASURE_S = 0.3  # many times what a CPU gives one process before the next has its turn
SLOW = 1.5  # times the median of the other ranks
SKEW_S = 0.5
NAME_BYTES = 64
SLOW_SUM = 50  # a sum that is this many times slower than memory is not limited by memory


@dataclass(frozen=True)
class Report:
    """One rank about itself."""

    rank: int
    node: str
    software: int  # checksum of the versions that must agree
    data: bool  # sees the data path
    clock: float  # seconds against rank 0's
    multiply: float  # mean seconds of a fixed piece of arithmetic
    copy: float  # bytes a second that memory moves

    def __str__(self) -> str:
        return f"rank {self.rank} on {self.node}"


def examine(runtime: Runtime, data: Path | None) -> Iterator[Finding]:
    collectives = Collectives(runtime.mesh, Ledger(), 256 << 20)
    world, device = runtime.mesh.world, runtime.device
    backend = "nccl" if device.type == "cuda" else "gloo"
    if world == 1:
        yield Finding("WARN", "collectives", "one rank sums nothing", "fedhpc doctor --ranks 2, or srun, or torchrun")
        return
    yield correct(collectives, device, backend)
    collectives.barrier()
    mine = measure(collectives, runtime, data)
    reports = gather(collectives, mine, device)
    yield bandwidth(collectives, device, backend, statistics.median(r.copy for r in reports))
    yield speed(reports)
    yield clocks(reports, uncertainty(collectives, device))
    yield agreement(reports)
    if data is not None:
        yield sight(reports, data)


def correct(collectives: Collectives, device: torch.device, backend: str) -> Finding:
    """An exact sum of what each rank knows."""
    world, rank = collectives.mesh.world, collectives.mesh.rank
    total = collectives.all_sum(torch.arange(1000, dtype=torch.int64, device=device) * (rank + 1))
    expected = torch.arange(1000, dtype=torch.int64, device=device) * (world * (world + 1) // 2)
    if not torch.equal(total, expected):
        return Finding("FAIL", "collectives", f"{backend} adds wrongly over {world} ranks",
                       "update the driver and torch; try runtime.device: cpu")  # fmt: skip
    return Finding("PASS", "collectives", f"{backend} adds exactly over {world} ranks")


def bandwidth(collectives: Collectives, device: torch.device, backend: str, memory: float) -> Finding:
    """Bytes that a rank's link moves during a sum, 2 (p - 1) / p of the sum's, beside what memory moves."""
    world = collectives.mesh.world
    tensor = torch.zeros(SUM_BYTES // 8, dtype=torch.int64, device=device)
    seconds = []
    for _ in range(REPEATS + 1):
        collectives.barrier()
        start = time.perf_counter()
        collectives.all_sum(tensor)
        _wait(device)
        seconds.append(time.perf_counter() - start)
    # The slowest rank's clock: all must say the same.
    slowest = collectives.all_rows(
        {collectives.mesh.rank: torch.tensor(statistics.median(seconds[1:]))}, world, (), device,
        operation="placement", what="seconds",
    ).max().item()  # fmt: skip
    moved = 2 * (world - 1) / world * SUM_BYTES / max(slowest, 1e-9)
    found = f"{moved / 1e9:.2f} GB/s a rank in a sum of {SUM_BYTES >> 20} MiB; memory copies {memory / 1e9:.1f} GB/s"
    if moved * SLOW_SUM < memory:
        interface = "NCCL_SOCKET_IFNAME and NCCL_IB_HCA" if backend == "nccl" else "GLOO_SOCKET_IFNAME"
        return Finding("WARN", "bandwidth", found, f"sums may go over the slow network: set {interface} to the fast "
                       "one (ip addr lists them); more CPUs a rank help too")  # fmt: skip
    return Finding("PASS", "bandwidth", found)


def measure(collectives: Collectives, runtime: Runtime, data: Path | None) -> Report:
    """This rank's own numbers, taken while all others take theirs."""
    versions = [platform.python_version(), *(_version(name) for name in ("fedhpc", "torch", "numpy", "h5py", "timm"))]
    copied, multiplied = _copy(runtime.device), _multiply(runtime.device)
    collectives.barrier()
    now = time.time()
    zero = collectives.all_rows(
        {0: torch.tensor(now, dtype=torch.float64)} if collectives.mesh.rank == 0 else {}, 1, (), runtime.device,
        operation="placement", what="clock",
    )  # fmt: skip
    sees = data is None or data.exists()
    return Report(
        collectives.mesh.rank, runtime.launch.node, zlib.crc32(" ".join(versions).encode()), sees,
        now - float(zero[0]), multiplied, copied,
    )  # fmt: skip


def gather(collectives: Collectives, mine: Report, device: torch.device) -> list[Report]:
    """Every rank's report, on every rank."""
    name = mine.node.encode()[:NAME_BYTES].ljust(NAME_BYTES, b"\0")
    numbers = [mine.software, mine.data, mine.clock, mine.multiply, mine.copy, *name]
    rows = collectives.all_rows(
        {mine.rank: torch.tensor(numbers, dtype=torch.float64)}, collectives.mesh.world, (len(numbers),), device,
        operation="placement", what="reports",
    ).tolist()  # fmt: skip
    reports = []
    for rank, (software, data, clock, multiply, copy, *letters) in enumerate(rows):
        node = bytes(map(int, letters)).rstrip(b"\0").decode(errors="replace")
        reports.append(Report(rank, node, int(software), bool(data), clock, multiply, copy))
    return reports


def speed(reports: Sequence[Report]) -> Finding:
    """Who computes, or moves memory, much slower than the others do."""
    slow = []
    for report in reports:
        others = [other for other in reports if other.rank != report.rank]
        arithmetic = report.multiply / statistics.median(other.multiply for other in others)
        copies = statistics.median(other.copy for other in others) / report.copy
        worst = max(arithmetic, copies)
        if worst > SLOW:
            kind = "arithmetic" if arithmetic >= copies else "memory"
            slow.append((worst, f"{report} ({worst:.1f} times in {kind})"))
    if slow:
        names = ", ".join(text for _, text in sorted(slow, reverse=True)[:4])
        return Finding(
            "WARN", "slow ranks", f"{names} slower than the others", "every round waits for it: look for other jobs on "
            "its node, too few CPUs (--cpus-per-task), throttling (nvidia-smi -q -d PERFORMANCE), or exclude the node",
        )  # fmt: skip
    slowest = max(reports, key=lambda report: report.multiply)
    ratio = slowest.multiply / statistics.median(report.multiply for report in reports)
    return Finding("PASS", "slow ranks", f"none; the slowest, {slowest}, takes {ratio:.2f} times the median")


def clocks(reports: Sequence[Report], unsure: float) -> Finding:
    """How far clocks are apart. Nothing in a run depends on it, but logs and file times do."""
    first, last = min(reports, key=lambda r: r.clock), max(reports, key=lambda r: r.clock)
    skew = last.clock - first.clock
    found = f"{skew * 1e3:.1f} ms apart at most (known to {unsure * 1e3:.1f} ms)"
    if skew > SKEW_S + unsure:
        return Finding("WARN", "clocks", f"{last} is {skew:.2f} s ahead of {first}",
                       "logs of nodes cannot be compared, and caches go wrong: ask for chrony or ntp")  # fmt: skip
    return Finding("PASS", "clocks", found)


def uncertainty(collectives: Collectives, device: torch.device) -> float:
    """Seconds by which ranks may leave a barrier apart."""
    taken = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        collectives.barrier()
        taken.append(time.perf_counter() - start)
    rows = collectives.all_rows(
        {collectives.mesh.rank: torch.tensor(max(taken))}, collectives.mesh.world, (), device,
        operation="placement", what="seconds",
    )  # fmt: skip
    return float(rows.max())


def agreement(reports: Sequence[Report]) -> Finding:
    nodes = sorted({report.node for report in reports})
    odd = [report for report in reports if report.software != reports[0].software]
    if odd:
        return Finding("FAIL", "versions", f"{odd[0]} has other versions of Python, fedhpc or torch than {reports[0]}",
                       "start all ranks from one environment that every node sees")  # fmt: skip
    return Finding("PASS", "versions", f"the same on {len(reports)} ranks, {len(nodes)} node{'s' if nodes[1:] else ''}")


def sight(reports: Sequence[Report], data: Path) -> Finding:
    blind = [str(report) for report in reports if not report.data]
    if blind:
        return Finding("FAIL", "data path", f"{', '.join(blind[:4])} cannot see {data}",
                       "put it on a file system that every node mounts, under the same path")  # fmt: skip
    return Finding("PASS", "data path", f"seen by all {len(reports)} ranks")


def _copy(device: torch.device) -> float:
    """Bytes a second read and written."""
    source = torch.ones(COPY_BYTES // 4, device=device)
    target = torch.empty_like(source)
    return 2 * COPY_BYTES / _mean_seconds(lambda: target.copy_(source), device)


def _multiply(device: torch.device) -> float:
    matrix = torch.ones(384, 384, device=device)
    return _mean_seconds(lambda: torch.mm(matrix, matrix), device)


def _mean_seconds(work: Callable[[], Tensor], device: torch.device) -> float:
    """The mean: a rank that shares its CPU does most pieces of work at full speed, and waits in between."""
    assert math.isfinite(float(work().flatten()[0]))
    _wait(device)
    count, start = 0, time.perf_counter()
    while (taken := time.perf_counter() - start) < MEASURE_S or count < REPEATS:
        work()
        _wait(device)
        count += 1
    return taken / count


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "none"
