"""1 = 2 = 4 ranks, bit for bit: for every algorithm in the registry, and for options that touch the numbers."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedhpc.algorithms.registry import ALGORITHMS
from tests.dist.runs import SMOKE, data_of, run


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"data.path={tmp_path_factory.mktemp('phantom') / 'phantom.h5'}"


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_an_algorithm_gives_the_same_bits_on_1_2_and_4_ranks(name: str, phantom: str, tmp_path: Path) -> None:
    phantom = data_of(name, phantom, tmp_path)
    results = {world: run(SMOKE / f"{name}.yaml", world, tmp_path / str(world), phantom) for world in (1, 2, 4)}
    assert len({r["sha256"] for r in results.values()}) == 1
    assert results[1]["clients"] == results[2]["clients"] == results[4]["clients"], "metrics differ, weights do not"
    other = run(SMOKE / f"{name}.yaml", 1, tmp_path / "seed", phantom, "random_seed=1")
    assert other["sha256"] != results[1]["sha256"], "the seed must matter, or the test above shows nothing"


@pytest.mark.parametrize(
    "overrides",
    [
        ("fit.precision=bfloat16", "fit.accumulate=2", "fit.clip_norm=0.5"),
        ("aggregation.local_blocks=['head/*']", "fit.optimizer.schedule=cosine", "model.learn_temperature=true"),
        ("fit.optimizer.keep_state=true", "data.memory_mib=1", "data.phantom.image_size=48", "data.path=null"),
    ],
    ids=["bf16", "local_blocks", "streamed"],
)
def test_options_keep_the_bits(
    overrides: tuple[str, ...], phantom: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a phantom without path goes to ./data
    shas = {run(SMOKE / "fedavg.yaml", w, tmp_path / str(w), phantom, *overrides)["sha256"] for w in (1, 2)}
    assert len(shas) == 1


@pytest.mark.parametrize("objective", ["convirt", "siglip", "gloria"])
def test_an_objective_gives_the_same_bits_on_1_and_2_ranks(objective: str, phantom: str, tmp_path: Path) -> None:
    few = ("rounds=2", "fit.steps=2", "evaluation.every=null")
    named = (*few, f"objective={{name: {objective}}}")
    shas = {run(SMOKE / "fedavg.yaml", w, tmp_path / str(w), phantom, *named)["sha256"] for w in (1, 2)}
    assert len(shas) == 1
    other = run(SMOKE / "fedavg.yaml", 1, tmp_path / "clip", phantom, *few, "objective={name: clip}")
    assert other["sha256"] not in shas, "the objective must matter, or the test above shows nothing"


def test_float32_sums_agree_to_rounding_only(phantom: str, tmp_path: Path) -> None:
    exact = run(SMOKE / "fedavg.yaml", 2, tmp_path / "exact", phantom)
    fast = run(SMOKE / "fedavg.yaml", 2, tmp_path / "fast", phantom, "aggregation.arithmetic=float32")
    assert exact["sha256"] != fast["sha256"]
    a, b = (_losses(tmp_path / name) for name in ("exact", "fast"))
    assert a == pytest.approx(b, rel=1e-4)


def test_more_ranks_than_clients(phantom: str, tmp_path: Path) -> None:
    """Ranks without a client of the cohort join every collective."""
    few = ("cohort.size=1", "rounds=2")
    one = run(SMOKE / "fedavg.yaml", 1, tmp_path / "1", phantom, *few)
    three = run(SMOKE / "fedavg.yaml", 3, tmp_path / "3", phantom, *few)
    assert one["sha256"] == three["sha256"]


def _losses(folder: Path) -> list[float]:
    import json

    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
