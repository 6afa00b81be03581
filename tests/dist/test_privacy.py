"""Runs with differential privacy: the same bits on 1, 2 and 4 ranks, budgets, and what the run folder tells."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fedhpc.privacy.accountant import Mechanism, epsilon
from fedhpc.report.privacy import read_statement, sentences
from tests.dist.runs import QUIET, SMOKE, run
from tests.ranks import RankFailed, on_ranks

CONFIG = SMOKE / "dp_fedavg.yaml"
COUNT = "privacy.adaptive={count_noise: 2.0}"
FEW = ("rounds=2", "fit.steps=1", "cohort.size=6", "partition.num_clients=8", COUNT)


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"data.path={tmp_path_factory.mktemp('phantom') / 'phantom.h5'}"


def resume(folder: str, overrides: tuple[str, ...]) -> dict[str, Any]:
    """One rank, in a process of its own."""
    from fedhpc.config.load import load_config
    from fedhpc.task import RunTask

    return RunTask(load_config(CONFIG, [*QUIET, *overrides]), Path(folder), accept_changes=True)()


def resumed(folder: Path, *overrides: str) -> dict[str, Any]:
    (result,) = on_ranks(1, resume, str(folder), overrides)
    found: dict[str, Any] = result
    return found


def rounds_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_noise_is_the_same_on_1_2_and_4_ranks_masks_on_or_off(phantom: str, tmp_path: Path) -> None:
    few = (*FEW, phantom)
    ways = {1: "aggregation.secure=true", 2: "aggregation.secure=false", 4: "aggregation.secure=true"}
    results = {world: run(CONFIG, world, tmp_path / str(world), *few, masks) for world, masks in ways.items()}
    assert len({r["sha256"] for r in results.values()}) == 1
    assert results[1]["privacy"] == results[4]["privacy"]
    lines = rounds_of(tmp_path / "4")
    assert [set(line) & {"loss", "epsilon", "clip"} for line in lines] == [{"epsilon", "clip"}] * 2
    assert lines[0]["clip"] == 0.5 != lines[1]["clip"], "the clip adapts"
    assert lines == [{**line, "seconds": lines[i]["seconds"]} for i, line in enumerate(rounds_of(tmp_path / "1"))]
    digits = "00112233445566778899aabbccddeeff"
    (tmp_path / "secret").write_text(digits)
    hidden = (f"privacy.secret_file={tmp_path / 'secret'}", "privacy.amplification=true")
    other = run(CONFIG, 1, tmp_path / "other", *few, *hidden)
    assert other["sha256"] != results[1]["sha256"], "the noise must matter, or the test above shows nothing"
    assert other["privacy"]["epsilon"] == epsilon({Mechanism(1.0, 6, 8): 2}, other["privacy"]["delta"], "rdp")
    files = [path for path in (tmp_path / "other").rglob("*") if path.is_file()]
    assert files and not any(digits.encode() in path.read_bytes() for path in files), "the secret stays where it is"
    told = "\n".join(sentences(read_statement(tmp_path / "4")))
    assert f"epsilon = {results[4]['privacy']['epsilon']:.4g}" in told and "protects nobody" in told


@pytest.mark.slow  # tests/unit/comm/test_guard.py has the sum itself
def test_lost_clients_leave_enough_noise(phantom: str, tmp_path: Path) -> None:
    losing = (*FEW, phantom, "cohort.dropout={probability: 0.3, when: after}", "random_seed=1")
    with pytest.raises(RankFailed, match=r"leaves \d of 6 clients in round \d, 6 are needed"):
        run(CONFIG, 1, tmp_path / "short", *losing, "privacy.noise_shares=6")
    enough = (*losing, "privacy.noise_shares=4")
    plain = run(CONFIG, 1, tmp_path / "plain", *enough, "aggregation.secure=false")
    masked = run(CONFIG, 2, tmp_path / "masked", *enough)
    assert masked["sha256"] == plain["sha256"]
    pages = [json.loads(line) for line in (tmp_path / "plain" / "ledger.jsonl").read_text().splitlines()]
    lost = [entry["lost"] for page in pages for entry in page["entries"] if entry["operation"] == "reduce"]
    assert any(lost), "somebody must be lost, or the test shows nothing"


def test_a_budget_ends_a_run_before_it_is_passed(phantom: str, tmp_path: Path) -> None:
    """Everyone takes part, so two rounds cost what two Gaussian mechanisms do; the checkpoint goes on."""
    delta = 1e-3
    allowed = epsilon({Mechanism(1.0): 2}, delta, "rdp")
    budget = (phantom, "fit.steps=1", "cohort.size=null", "partition.num_clients=6", f"privacy.delta={delta}", COUNT)
    folder = tmp_path / "run"
    once = (*budget, f"privacy.epsilon={allowed + 1e-6}", "checkpoint.every=5")
    with pytest.raises(RankFailed, match="A checkpoint of 2 of 3 rounds is written; resume it with rounds=2"):
        run(CONFIG, 1, folder, *once)
    assert [line["epsilon"] for line in rounds_of(folder)] == [epsilon({Mechanism(1.0): 1}, delta, "rdp"), allowed]
    assert not (folder / "results.json").exists()
    ended = resumed(folder, *once, "rounds=2")
    assert ended["privacy"]["epsilon"] == allowed
    more = resumed(folder, *budget, "privacy.epsilon=50.0")
    assert more["privacy"]["epsilon"] == epsilon({Mechanism(1.0): 3}, delta, "rdp"), "three rounds, none forgotten"
    straight = run(CONFIG, 1, tmp_path / "straight", *budget, "privacy.epsilon=50.0")
    assert more["sha256"] == straight["sha256"], "clip and noise go on where they were"
    assert more["privacy"] == straight["privacy"]


def test_row_privacy_is_the_same_on_1_and_2_ranks(phantom: str, tmp_path: Path) -> None:
    """Every client makes 2 steps a round in which each of its rows is drawn at rate 4 / rows."""
    rows = "privacy={unit: record, clip: 0.5, noise_multiplier: 1.0, delta: 1e-3}"
    few = (phantom, "partition.num_clients=4", "cohort.size=3", "rounds=2", "fit.batch_size=4", rows)
    shown = ("algorithm={name: fedprox}", "evaluation.clients=shown")
    results = {world: run(CONFIG, world, tmp_path / str(world), *few, *shown) for world in (1, 2)}
    assert results[1]["sha256"] == results[2]["sha256"]
    assert [set(line) & {"loss", "epsilon"} for line in rounds_of(tmp_path / "2")] == [{"epsilon"}] * 2
    sizes = [client["train_rows"] for client in results[1]["clients"]]
    once, twice = (max(epsilon({Mechanism(1.0, 4 / n): k}, 1e-3, "rdp") for n in sizes) for k in (2, 4))
    assert once <= results[1]["privacy"]["epsilon"] <= twice
    assert results[1]["privacy"]["units"] == min(sizes)
