"""CreamFL on several ranks where a client has texts only, masked, with a client that is lost on the way."""

from __future__ import annotations

import json
from pathlib import Path

from tests.dist.runs import SMOKE, run

CONFIG = SMOKE / "creamfl.yaml"


def test_texts_alone_masks_and_losses_keep_the_bits(tmp_path: Path) -> None:
    """Client 2 has no picture left. Whoever is lost is gone before the server, one of the others, is played."""
    phantom = f"data.path={tmp_path / 'phantom.h5'}"
    options = (
        phantom, "rounds=1", "evaluation.every=null", "partition.num_clients=5", "random_seed=11",
        "missing={ratio: [0.5, 0.5, 1.0, 0.5, 0.5], image_share: 1.0}", "evaluation.clients=shown",
        "cohort.dropout={probability: 0.3, when: after}",
    )  # fmt: skip
    plain = run(CONFIG, 1, tmp_path / "plain", *options)
    masked = run(CONFIG, 2, tmp_path / "masked", *options, "aggregation.secure=true")
    assert (masked["sha256"], masked["clients"]) == (plain["sha256"], plain["clients"])
    pages = [json.loads(line) for line in (tmp_path / "masked" / "ledger.jsonl").read_text().splitlines()]
    entries = [e for page in pages for e in page["entries"] if e["operation"] in ("sum", "reduce", "gather")]
    assert any(e["lost"] for e in entries), "nobody was lost, and the test shows less than it says"
    assert all(e["masked"] for e in entries) and not any(e["operation"] == "gather" for e in entries)
