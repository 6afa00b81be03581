"""DGB + PCW over ranks: owners of a block on one rank only, blocks that stay at home, references."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from tests.dist.runs import SMOKE, run

CONFIG = SMOKE / "dgb_pcw.yaml"
# Tabular modalities alone: seconds become a fraction of one.
TABLES = (
    "model={kind: fusion, tabular: {labs: {widths: [8]}, words: {words: true, widths: [8]}, "
    "pixels: {thumbnail: 4, network: image_features}}}",
    "evaluation.every=null",
)


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"data.path={tmp_path_factory.mktemp('phantom') / 'phantom.h5'}"


def losses(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_rank_without_any_owner_of_a_block_joins(phantom: str, tmp_path: Path) -> None:
    """Of three clients a round, some combinations come and go, and of four ranks one hosts nobody."""
    few = ("cohort.size=3", "rounds=6", *TABLES)
    results = [run(CONFIG, world, tmp_path / str(world), phantom, *few) for world in (1, 4)]
    assert results[0]["sha256"] == results[1]["sha256"]
    assert results[0]["combinations"] == results[1]["combinations"]
    rounds = losses(tmp_path / "4")
    held = [{name for name in row if name.startswith("val_")} for row in rounds]
    assert len({frozenset(names) for names in held}) > 1, "or nothing came or went"
    rates = [v for row in rounds for name, v in row.items() if name.startswith("dogr_")]
    assert rates and all(0 <= v < 1e9 for v in rates)


def test_blocks_of_too_few_owners_stay_at_home(phantom: str, tmp_path: Path) -> None:
    """Two clients hold each modality alone, three hold all: the classifiers of the twos are never summed."""
    everything = "[labs, words, pixels]"
    held = ", ".join(["[labs]", "[labs]", "[words]", "[words]", "[pixels]", "[pixels]", *[everything] * 3])
    few = f"modalities={{of_client: [{held}], min_contributors: 3, small: skip}}"
    keys = ("rounds=2", few, *TABLES)
    results = [run(CONFIG, world, tmp_path / str(world), phantom, *keys) for world in (1, 2)]
    assert results[0]["sha256"] == results[1]["sha256"]
    assert results[0]["clients"] == results[1]["clients"], "their own classifiers too"
    assert list(results[0]["combinations"]["of"]) == ["labs+words+pixels"]
    assert "val_labs" not in losses(tmp_path / "1")[-1] and "val_labs+words+pixels" in losses(tmp_path / "1")[-1]


def test_without_scales_it_is_fedavg_over_what_is_shared(phantom: str, tmp_path: Path) -> None:
    """CM-FL: rounds 0 and 1 of DGB are its own."""
    options = (phantom, "rounds=2", *TABLES)
    ours = run(CONFIG, 1, tmp_path / "dgb", *options)
    cmfl = run(CONFIG, 1, tmp_path / "cmfl", *options, "algorithm={name: fedavg}")
    assert ours["sha256"] == cmfl["sha256"]


def test_classifiers_of_single_modalities_at_all_their_holders(phantom: str, tmp_path: Path) -> None:
    options = (phantom, "rounds=3", *TABLES, "algorithm={name: dgb_pcw, probes: heads}")
    results = [run(CONFIG, world, tmp_path / str(world), *options) for world in (1, 2)]
    assert results[0]["sha256"] == results[1]["sha256"]
    rows = losses(tmp_path / "1")
    assert {f"dogr_{name}" for name in ("labs", "words", "pixels", "labs+words+pixels")} <= rows[-1].keys()
    plain = run(CONFIG, 1, tmp_path / "plain", phantom, "rounds=3", *TABLES)
    assert rows[0]["val_words"] != losses(tmp_path / "plain")[0]["val_words"], (
        "not of those alone who hold nothing else"
    )
    assert plain["sha256"] != results[0]["sha256"]


def test_wrong_labels_of_one_client(phantom: str, tmp_path: Path) -> None:
    """A client whose data mislead: its training labels alone are changed, and written down."""
    options = (phantom, "rounds=1", *TABLES)
    noisy = run(CONFIG, 1, tmp_path / "noisy", *options, "noise={kind: symmetric, rate: [0, 0, 1, 0, 0, 0, 0, 0, 0]}")
    with (tmp_path / "noisy" / "noisy_labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["client"] for row in rows if row["given"] != row["label"]} == {"2"}
    assert all(row["given"] != row["label"] for row in rows if row["client"] == "2")
    clean = run(CONFIG, 1, tmp_path / "clean", *options)
    assert noisy["sha256"] != clean["sha256"]


def test_references_and_zero_filling(phantom: str, tmp_path: Path) -> None:
    options = (phantom, "rounds=2", *TABLES)
    for name, keys in {
        "local": ("algorithm={name: local}",),
        "centralised": ("algorithm={name: centralised}",),
        "prox": ("algorithm={name: fedprox, mu: 1}",),
        "yogi": ("algorithm={name: fedopt}",),
        "zeros": ("algorithm={name: fedavg}", "model.missing=zeros"),
    }.items():
        result = run(CONFIG, 1, tmp_path / name, *options, *keys, "evaluation.num_resamples=20")
        assert len(result["clients"]) == (9 if name == "local" else 16)
        for client in result["clients"]:
            low, high = client["metrics"]["accuracy_low"], client["metrics"]["accuracy_high"]
            assert low <= client["metrics"]["accuracy"] <= high
