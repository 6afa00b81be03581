"""What the probe of `fedhpc plan` counts is what a run does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.dist.runs import QUIET, SMOKE, run
from tests.ranks import on_ranks


def play(config: str, overrides: list[str], limit: int | None) -> Any:
    from fedhpc.config.load import load_config
    from fedhpc.planning.probe import probe

    return probe(load_config(Path(config), overrides), limit)


def test_exchanges_and_steps_are_those_of_a_run(tmp_path: Path) -> None:
    config = SMOKE / "feddra.yaml"
    data = f"data.path={tmp_path / 'phantom.h5'}"
    results = run(config, 1, tmp_path / "run", data)
    page = json.loads((tmp_path / "run" / "ledger.jsonl").read_text().splitlines()[0])
    costs = on_ranks(1, play, str(config), [*QUIET, data], 2)[0]["costs"]
    # Besides the round's own sums, a run asks once for its newest checkpoint.
    assert list(costs["exchanges"]) == [e["num_bytes"] for e in page["entries"] if e["what"] != "checkpoint"]
    assert len(costs["rows"]) == len(results["clients"])
    fits = [call for phase in costs["phases"] for call in phase["calls"] if call["kind"] == "fit"]
    from fedhpc.config.load import load_config

    loaded = load_config(config)
    planned = [set(call["planned"].values()) for call in fits]
    assert planned == [{loaded.algorithm.stage1.steps}, {loaded.fit.steps}]  # type: ignore[union-attr]
    assert any(call["kind"] == "pass" for phase in costs["phases"] for call in phase["calls"])  # the losses for q
    assert all(call["rate"] > 0 for call in fits)
    assert costs["memory"]["model_state"] > 0


def test_ranks_side_by_side_measure_their_link(tmp_path: Path) -> None:
    data = f"data.path={tmp_path / 'phantom.h5'}"
    on_ranks(1, play, str(SMOKE / "classifier.yaml"), [*QUIET, data], 1)
    answers = on_ranks(2, play, str(SMOKE / "classifier.yaml"), [*QUIET, data], 1)
    assert answers[1] is None
    assert answers[0]["link"]["latency"] > 0
    assert answers[0]["link"]["bandwidth"] > 0
