"""Masks on or off, with and without lost clients, on any number of ranks: the same bits; and what stays unseen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fedhpc.algorithms.registry import ALGORITHMS
from tests.dist.runs import SMOKE, data_of, run
from tests.ranks import RankFailed

SHOWN = "evaluation.clients=shown"
LOSING = "cohort.dropout={probability: 0.3, when: after}"  # with seed 11: one client of 4 or 5 in both rounds
FEW = ("rounds=2", "evaluation.every=null", "random_seed=11", "cohort.size=null")
ALONE = ("centralised", "gblend")  # one client that holds all rows: refused


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"data.path={tmp_path_factory.mktemp('phantom') / 'phantom.h5'}"


def exchanges(folder: Path) -> list[dict[str, Any]]:
    pages = [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]
    return [entry for page in pages for entry in page["entries"] if entry["operation"] != "placement"]


def test_masks_change_no_bit_of_what_is_left_after_losses(phantom: str, tmp_path: Path) -> None:
    """FedDRA: two sums and a gather a round, over cohorts that shrink on the way."""
    plain = run(SMOKE / "feddra.yaml", 1, tmp_path / "plain", phantom, *FEW, LOSING)
    masked = run(SMOKE / "feddra.yaml", 2, tmp_path / "masked", phantom, *FEW, LOSING, "aggregation.secure=true")
    assert masked["sha256"] == plain["sha256"]
    before, after = exchanges(tmp_path / "plain"), exchanges(tmp_path / "masked")
    sums = [e for e in after if e["operation"] == "reduce"]
    assert sums and all(e["masked"] and e["mask_bytes"] > 0 and e["mask_seconds"] > 0 for e in sums)
    assert not any(e["masked"] for e in before)
    assert [len(e["lost"]) for e in sums] == [1, 0, 1, 0], "the second stage goes on without who was lost in the first"
    assert all((e["recovery_seconds"] > 0) == bool(e["lost"]) for e in sums)
    # Of rounds: an evaluation under masks has one sum more, of how many clients have each metric.
    lost = [[e["lost"] for e in page if e["operation"] != "evaluation"] for page in (before, after)]
    assert lost[0] == lost[1] and not any(e["lost"] for e in (*before, *after) if e["operation"] == "evaluation")
    assert [e["by"] for e in before if e["operation"] == "reduce"] == [e["by"] for e in sums]
    # No client's metrics are shown, and the mean over clients is that of the plain run.
    assert masked["clients"] == [] and len(plain["clients"]) == 5
    for name, over in masked["summary"].items():
        assert over["mean"] == pytest.approx(plain["summary"][name]["mean"], abs=1e-8)
        assert over["worst"] != over["worst"]
    revealed = {(e["operation"], name) for e in after for name in e["revealed"]}
    assert revealed == {("gather", "loss")}


def test_a_ring_of_32_bits_halves_the_bytes(phantom: str, tmp_path: Path) -> None:
    small = (*FEW, "aggregation.ring_bits=32", "aggregation.fraction_bits=14")
    plain = run(SMOKE / "fedavg.yaml", 1, tmp_path / "plain", phantom, *small)
    masked = run(SMOKE / "fedavg.yaml", 2, tmp_path / "masked", phantom, *small, "aggregation.secure=true", SHOWN)
    assert masked["sha256"] == plain["sha256"]
    assert masked["clients"] == plain["clients"]
    wide = run(SMOKE / "fedavg.yaml", 1, tmp_path / "wide", phantom, *FEW)
    assert wide["sha256"] != plain["sha256"]
    sizes = [exchanges(tmp_path / name)[0]["num_bytes"] for name in ("plain", "wide")]
    assert 2 * sizes[0] == sizes[1]


def test_a_round_that_would_lose_too_many_is_refused_before_the_first(phantom: str, tmp_path: Path) -> None:
    many = (*FEW, "rounds=40", "cohort.dropout={probability: 0.5, when: after}")
    with pytest.raises(RankFailed, match=r"leaves \d of 5 clients in round \d+, 3 are needed"):
        run(SMOKE / "fedavg.yaml", 1, tmp_path / "masked", phantom, *many, "aggregation.secure=true")
    assert not (tmp_path / "masked" / "metrics.jsonl").exists()


MATRIX = [
    (name, when)
    for name in sorted(set(ALGORITHMS) - set(ALONE))
    for when in ("nobody", "before", "after")
    if name != "local" or when == "nobody"  # nobody is lost where nothing is exchanged: refused
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "when"), MATRIX)
def test_every_algorithm_gives_the_same_bits_under_masks(name: str, when: str, phantom: str, tmp_path: Path) -> None:
    options = [data_of(name, phantom, tmp_path), *FEW, SHOWN]
    if "own.h5" in options[0]:  # several modalities: three owners of every block, also without who is lost
        several = "{preset: tri_modal, min_contributors: 3}" if when == "nobody" else "{preset: upper_bound}"
        options.append(f"modalities={several}")
    if name == "feddf":  # whose means are over the clients of one network
        options.append("model.networks=[test_resnet]")
    if when != "nobody":
        options.append(f"cohort.dropout={{probability: 0.3, when: {when}}}")
    plain = run(SMOKE / f"{name}.yaml", 1, tmp_path / "plain", *options)
    for world in (1, 2, 4):
        masked = run(SMOKE / f"{name}.yaml", world, tmp_path / str(world), *options, "aggregation.secure=true")
        assert (masked["sha256"], masked["clients"]) == (plain["sha256"], plain["clients"]), world
