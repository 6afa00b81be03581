"""Memory and processor time of a process and all its descendants, from outside (Linux)."""

from __future__ import annotations

import os
from pathlib import Path

PROC = Path("/proc")


def process_tree(root: int) -> list[int]:
    """The process ids of `root` and its living descendants; empty when `root` has ended."""
    parents: dict[int, int] = {}
    for entry in PROC.iterdir():
        if not entry.name.isdigit():
            continue
        try:
            status = (entry / "stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue  # ended while we looked
        # The name in brackets may hold spaces and brackets; the parent is the second field after the last one.
        parents[int(entry.name)] = int(status.rpartition(")")[2].split()[1])
    tree = [root] if root in parents else []
    for process in tree:
        tree.extend(child for child, parent in parents.items() if parent == process)
    return tree


def pss_kib(smaps_rollup: str) -> int:
    """Pss in KiB of the text of /proc/PID/smaps_rollup (pages shared by n processes count 1/n in each).

    Raises: ValueError when the text has no Pss line.
    """
    for line in smaps_rollup.splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1])
    raise ValueError("smaps_rollup has no line 'Pss:'; it needs Linux 4.14 or newer")


def tree_pss_mib(root: int) -> tuple[float, int]:
    """Sum of Pss over the process tree of `root` in MiB, and the number of processes counted."""
    total = count = 0
    for process in process_tree(root):
        try:
            text = (PROC / str(process) / "smaps_rollup").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if text:  # empty for a process that has exited but was not waited for
            total += pss_kib(text)
            count += 1
    return total / 1024, count


def cpu_seconds(stat: str, ticks_per_second: int) -> float:
    """Seconds of user and system time in the text of /proc/PID/stat (fields 14 and 15 of proc(5))."""
    fields = stat.rpartition(")")[2].split()  # begins with field 3
    return (int(fields[11]) + int(fields[12])) / ticks_per_second


def tree_cpu_seconds(root: int) -> float:
    """Processor seconds that the living process tree of `root` has used so far, in steps of a clock tick (10 ms)."""
    ticks = os.sysconf("SC_CLK_TCK")
    total = 0.0
    for process in process_tree(root):
        try:
            total += cpu_seconds((PROC / str(process) / "stat").read_text(), ticks)
        except (FileNotFoundError, ProcessLookupError):
            continue
    return total
