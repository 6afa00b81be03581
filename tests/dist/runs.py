"""Runs of shipped smoke configs, for tests over several ranks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedhpc.config.load import load_config
from tests.conftest import ROOT
from tests.ranks import on_ranks

SMOKE = ROOT / "configs" / "smoke"
QUIET = ("report.tensorboard=false", "report.plots=false")


def data_of(name: str, phantom: str, folder: Path) -> str:
    """The generated set for an algorithm's smoke config: methods over modalities read another one than the rest."""
    return f"data.path={folder / 'own.h5'}" if name in ("dgb_pcw", "hgb", "gblend") else phantom


def play(config: str, overrides: Sequence[str], run_dir: str) -> dict[str, Any]:
    """One rank of a run, in a process of its own."""
    from fedhpc.task import RunTask

    return RunTask(load_config(Path(config), overrides), Path(run_dir))()


def run(config: Path, world: int, run_dir: Path, *overrides: str) -> dict[str, Any]:
    """Results of rank 0; all ranks must report the same sha256."""
    results = on_ranks(world, play, str(config), [*QUIET, *overrides], str(run_dir))
    assert len({r["sha256"] for r in results}) == 1, "ranks of one run ended with different weights"
    first: dict[str, Any] = results[0]
    return first
