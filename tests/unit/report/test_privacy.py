"""The privacy statement tells what the ledger tells, and no more."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console
from typer.testing import CliRunner

from fedhpc.cli import app
from fedhpc.report.privacy import read_statement, sentences, size, tables


def entry(operation: str, what: str, **more: Any) -> dict[str, Any]:
    plain = {"num_bytes": 1024, "mask_bytes": 0, "mask_seconds": 0.0, "recovery_seconds": 0.0, "masked": False}
    return {"operation": operation, "what": what, "revealed": [], "by": [0, 1, 2, 3], "lost": [], **plain, **more}


def finished(folder: Path, entries: list[dict[str, Any]], secure: bool, ranks: int = 2, shard: int = 1) -> Path:
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps({"name": "run", "ranks": ranks, "rounds": 2}))
    config = {"aggregation": {"secure": secure, "ring_bits": 64, "min_contributors": 3}, "mesh": {"shard": shard}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    pages = [{"round": index, "entries": [one]} for index, one in enumerate(entries)]
    (folder / "ledger.jsonl").write_text("".join(json.dumps(page) + "\n" for page in pages))
    return folder


def page(folder: Path) -> str:
    statement = read_statement(folder)
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    for table in tables(statement):
        console.print(table)
    return console.export_text() + "\n".join(sentences(statement))


def test_a_masked_run_with_a_reveal_and_a_loss(tmp_path: Path) -> None:
    masked = {"masked": True, "mask_bytes": 512, "mask_seconds": 0.25}
    text = page(
        finished(
            tmp_path / "run",
            [
                entry("reduce", "net", **masked),
                entry("reduce", "net", **masked, by=[0, 1, 3], lost=[2], recovery_seconds=0.125),
                entry("gather", "loss", revealed=["loss"], by=[0, 1, 3]),
                entry("placement", "seconds"),
            ],
            secure=True,
        )
    )
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if line.startswith("│")]
    assert rows == [["reduce", "net", "2", "3 to 4", "3.0 KiB", "yes"], ["loss", "gather", "0, 1, 3", "1", "1.0 KiB"]]
    assert "fewer than 3 contributors" in text and "Masks cost 1.0 KiB and 0.50 s" in text
    assert "Clients were lost 1 times in an exchange" in text and "took 0.125 s" in text
    assert "NOT masked" not in text and "No client's own value" not in text


def test_a_plain_run_is_told_so(tmp_path: Path) -> None:
    text = page(finished(tmp_path / "run", [entry("reduce", "net")], secure=False))
    assert "Sums were NOT masked" in text and "No client's own value was revealed." in text
    alone = page(finished(tmp_path / "alone", [entry("reduce", "net")], secure=False, ranks=1))
    assert "nothing was sent" in alone
    slot = page(finished(tmp_path / "slot", [entry("reduce", "net")], secure=True, ranks=2, shard=2))
    assert "One slot of 2 ranks hosted all clients, so no sum was sent" in slot
    assert "The ranks of a slot train a client together" in slot and "train a client together" not in alone


def test_what_is_no_finished_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no finished run"):
        read_statement(tmp_path)
    old = entry("reduce", "net")
    del old["masked"]
    with pytest.raises(ValueError, match="an earlier fedhpc"):
        read_statement(finished(tmp_path / "old", [old], secure=False))


def test_sizes() -> None:
    assert [size(n) for n in (0, 1023, 1536, 20 << 20, 3 << 40)] == ["0 B", "1023 B", "1.5 KiB", "20 MiB", "3.0 TiB"]


def test_the_command_prints_it_and_takes_no_metric(tmp_path: Path) -> None:
    run = str(finished(tmp_path / "run", [entry("reduce", "net")], secure=False))
    shown = CliRunner().invoke(app, ["report", run, "--privacy"])
    assert shown.exit_code == 0, shown.output
    assert "run: summed over clients" in shown.output and "Sums were NOT masked" in shown.output
    assert CliRunner().invoke(app, ["report", run, "--privacy", "--metric", "R@1"]).exit_code == 2
    assert CliRunner().invoke(app, ["report", str(tmp_path), "--privacy"]).exit_code == 2


def test_updates_that_were_compared_or_rounded_are_told(tmp_path: Path) -> None:
    folder = finished(tmp_path / "run", [entry("reduce", "net", revealed=["update"])], secure=False)
    config = {"aggregation": {"secure": False, "ring_bits": 64, "min_contributors": 3, "robust": {"rule": "median"}}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    text = page(folder)
    assert "own update reached other ranks, as it is (aggregation.robust)" in text
    assert "No client's own value" not in text
    config["aggregation"]["robust"] = None
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    assert "own update reached other ranks, rounded (aggregation.compression)" in page(folder)
    alone = finished(tmp_path / "alone", [entry("reduce", "net", revealed=["update"])], secure=False, ranks=1)
    assert "reached other ranks" not in page(alone)
