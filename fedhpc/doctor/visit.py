"""A visit of the doctor: one process looks at its machine, then all ranks at each other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from rich.console import Console

from fedhpc.comm.collectives import RankLost
from fedhpc.config.schema import MeshConfig, RuntimeConfig
from fedhpc.doctor import machine, ranks, storage
from fedhpc.doctor.finding import Finding, table, verdict
from fedhpc.runtime import Runtime, read_launch

TIMEOUT_S = 60.0


def visit(data: Path | None, device: Literal["auto", "cpu", "cuda"], console: Console) -> bool:
    """True when nothing failed. Every rank calls this; rank 0 prints, and prints what it knows before ranks meet."""
    launch = read_launch()
    alone: list[Finding] = []
    if launch.rank == 0:
        alone += machine.examine()
        alone += storage.examine(data) if data is not None else ()
        console.print(table(alone, f"this machine ({launch.node})"))
    together = list(_together(data, device))
    if launch.rank == 0:
        console.print(table(together, f"{launch.world} rank{'s' if launch.world > 1 else ''}"))
    return verdict([*alone, *together])


def _together(data: Path | None, device: Literal["auto", "cpu", "cuda"]) -> Iterator[Finding]:
    try:
        with Runtime.start(RuntimeConfig(device=device, timeout_s=TIMEOUT_S), MeshConfig()) as runtime:
            runtime.where[0] = "the doctor's collectives"
            yield from list(ranks.examine(runtime, data))
    except (ValueError, RankLost, OSError) as error:
        yield Finding(
            "FAIL", "ranks", str(error), "docs/troubleshooting.md; fedhpc doctor --device cpu leaves GPUs out"
        )
