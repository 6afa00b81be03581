"""Robust rules and compressed updates, whole runs: the same bits on any number of ranks and after a resume; attacks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.dist.runs import SMOKE, run
from tests.ranks import RankFailed

SHORT = ("rounds=2", "fit.steps=2")


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"data.path={tmp_path_factory.mktemp('phantom') / 'phantom.h5'}"


def shown(folder: Path) -> list[dict[str, Any]]:
    pages = [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]
    return [e for page in pages for e in page["entries"] if e["revealed"] == ["update"]]


CLIPPING = ("aggregation.robust={rule: centred_clipping}", "attack={kind: label_flip, fraction: 0.2}")


def test_a_robust_run_gives_the_same_bits_on_1_and_4_ranks_and_finds_the_attacker(phantom: str, tmp_path: Path) -> None:
    results = {world: run(SMOKE / "robust.yaml", world, tmp_path / str(world), phantom, *SHORT) for world in (1, 4)}
    assert results[1]["sha256"] == results[4]["sha256"]
    assert results[1]["clients"] == results[4]["clients"]
    assert results[1]["attack"] == {"kind": "sign_flip", "clients": [1]}
    assert [e["kept"] for e in shown(tmp_path / "4")] == [[0, 2, 3, 4]] * 2, "Multi-Krum, once a round"


@pytest.mark.parametrize(("name", "options"), [("robust", CLIPPING), ("compressed", ())], ids=["clipping", "top_k"])
def test_a_run_that_resumes_on_other_ranks_ends_with_the_same_bits(
    name: str, options: tuple[str, ...], phantom: str, tmp_path: Path
) -> None:
    """Centred clipping goes on from the last aggregate, error feedback from what is owed."""
    whole = run(SMOKE / f"{name}.yaml", 1, tmp_path / "run", phantom, *SHORT, *options)
    if name == "compressed":
        entries = shown(tmp_path / "run")
        assert len(entries) == 2, "once a round"
        assert all(e["num_bytes"] < 0.3 * e["exact_bytes"] and 0 < e["error"] < 1 for e in entries)
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "round_000002")
    again = run(SMOKE / f"{name}.yaml", 2, tmp_path / "run", phantom, *SHORT, *options)
    assert (again["sha256"], again["clients"]) == (whole["sha256"], whole["clients"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        ("aggregation.robust={rule: median}", "attack={kind: noise, std: 1.0, clients: [3]}", "cohort.size=4",
         "cohort.dropout={probability: 0.2, when: after}", "random_seed=4"),
        ("aggregation.robust=null", "attack=null", "aggregation.compression={kind: int8}", "algorithm={name: fedopt}"),
        ("aggregation.robust=null", "attack=null", "aggregation.compression={kind: bf16}", "algorithm={name: moon}"),
    ],
    ids=["median", "int8", "bf16"],
)  # fmt: skip
def test_options_keep_the_bits(options: tuple[str, ...], phantom: str, tmp_path: Path) -> None:
    worlds = (1, 2, 3, 4)
    shas = {run(SMOKE / "robust.yaml", w, tmp_path / str(w), phantom, *SHORT, *options)["sha256"] for w in worlds}
    assert len(shas) == 1


def test_rules_and_attacks_that_do_not_fit_the_clients_are_refused(phantom: str, tmp_path: Path) -> None:
    lossy = ("cohort.dropout={probability: 0.5}", "rounds=30")
    with pytest.raises(RankFailed, match=r"multi_krum needs 2 \* num_byzantine\(1\) \+ 3 = 5 clients a round or"):
        run(SMOKE / "robust.yaml", 1, tmp_path / "few", phantom, *lossy)
    unseen = ("partition.leave_out=[site-b]", "aggregation.robust={rule: median}")
    with pytest.raises(RankFailed, match=r"attack.clients: client 1 does not train; those that do are \[0, 2, 3, 4\]"):
        run(SMOKE / "robust.yaml", 1, tmp_path / "who", phantom, *unseen)
