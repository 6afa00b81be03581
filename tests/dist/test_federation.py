"""Collectives and the federation's own rules, on two and three ranks."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from fedhpc.config.load import load_config
from fedhpc.config.schema import MeshConfig, RuntimeConfig
from tests.dist.runs import QUIET, SMOKE
from tests.ranks import RankFailed, on_ranks

RUNTIME = RuntimeConfig(device="cpu", timeout_s=20)


def federation(reveals: frozenset[str] = frozenset()) -> tuple[Any, Any]:
    """(runtime, federation) of the smoke config over the phantom in the working directory."""
    from fedhpc.build import build
    from fedhpc.data.hdf5 import PackedFile
    from fedhpc.runtime import Runtime
    from fedhpc.task import data_path

    config = load_config(SMOKE / "fedavg.yaml", [*QUIET, "data.path=phantom.h5"])
    runtime = Runtime.start(RUNTIME, MeshConfig())
    run, _, _ = build(config, PackedFile(data_path(config)), runtime, Path("run"))
    run.fed._reveals = reveals
    return runtime, run.fed


def exchange(folder: str) -> dict[str, Any]:
    os.chdir(folder)
    runtime, fed = federation(frozenset({"loss"}))
    with runtime:
        fed.begin(1)
        ids = fed.each(lambda client: client.id)
        values = fed.each(lambda client, i: torch.tensor([i, 0.1 * i], dtype=torch.float64), ids)
        total = fed.sum(values, shape=(2,))
        rows = fed.gather("loss", values, shape=(2,))
        like = fed.initial
        kept = fed.each(lambda client: {name: b.clone() for name, b in like.items()})
        for i, blocks in kept.items():
            for b in blocks.values():
                b.flat.fill_(float(i))
        mean = fed.mean(kept, {i: float(i + 1) for i in kept}, like=like)
        try:
            fed.gather("gradient", values, shape=(2,))
            refused = ""
        except ValueError as error:
            refused = str(error)
        page = fed.collectives.ledger.close_round(1)
        return {
            "cohort": fed.cohort,
            "here": sorted(ids),
            "sum": total.tolist(),
            "rows": rows.tolist(),
            "mean": sorted({round(float(x), 5) for b in mean.values() for x in b.flat.unique()}),
            "refused": refused,
            "revealed": page["revealed"],
        }


def test_sum_mean_and_gather_over_ranks(tmp_path: Path) -> None:
    alone = on_ranks(1, exchange, str(tmp_path))[0]
    for world in (2, 3):
        results = on_ranks(world, exchange, str(tmp_path))
        cohort = list(results[0]["cohort"])
        assert sorted(c for r in results for c in r["here"]) == cohort, "every client once, on one rank"
        for result in results:
            for key in ("cohort", "sum", "rows", "mean", "revealed"):
                assert result[key] == alone[key], key
        assert alone["rows"] == [[i, pytest.approx(0.1 * i)] for i in cohort]
        assert alone["sum"] == [sum(cohort), pytest.approx(0.1 * sum(cohort))]
        mean = sum(i * (i + 1) for i in cohort) / sum(i + 1 for i in cohort)
        assert alone["mean"] == [pytest.approx(mean, abs=1e-4)]
        assert "reveals are ['loss']" in alone["refused"]
        assert alone["revealed"] == ["loss"]


def die_in_round(folder: str, victim: int) -> dict[str, Any]:
    """The smoke run, in which one rank kills itself in the middle of round 1's local training."""
    from fedhpc.client.client import DataClient
    from fedhpc.task import RunTask

    os.chdir(folder)
    fit = DataClient.fit

    def deadly(self: DataClient, *args: Any, **options: Any) -> Any:
        if self._turn.round == 1 and int(os.environ["RANK"]) == victim:
            os.kill(os.getpid(), signal.SIGKILL)
        return fit(self, *args, **options)

    DataClient.fit = deadly  # type: ignore[method-assign]
    config = load_config(
        SMOKE / "fedavg.yaml", [*QUIET, "data.path=phantom.h5", "runtime.timeout_s=20", "cohort.size=5"]
    )
    return RunTask(config, Path("run"))()


@pytest.mark.parametrize("victim", [0, 2])
def test_survivors_name_the_dead_rank(victim: int, tmp_path: Path) -> None:
    with pytest.raises(RankFailed) as error:
        on_ranks(3, die_in_round, str(tmp_path), victim)
    failures = error.value.failures
    assert f"exit code -{int(signal.SIGKILL)}" in failures[victim]
    survivors = [text for rank, text in failures.items() if rank != victim]
    assert len(survivors) == 2
    # Either the error of the failed collective says it, or the process was ended by the liveness thread with code 70.
    named = f"rank {victim} of 3 died or stopped answering in round 1"
    assert all(named in text or "exit code 70" in text for text in survivors), survivors
