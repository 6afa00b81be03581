"""`fedhpc complete` and the run that takes what it made."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedhpc.completion.command import complete_run
from fedhpc.completion.made import Studio
from fedhpc.config.load import load_config
from fedhpc.config.schema import RunConfig
from fedhpc.task import RunTask
from tests.e2e.command import SMOKE, fedhpc

QUIET = ("rounds=1", "evaluation.every=null", "report.plots=false", "report.tensorboard=false")
PRETRAINED = "completion={method: pretrained, image_to_text: {model: ./a}, text_to_image: {model: ./b}, batch_size: 8}"


def config_of(tmp_path: Path, *overrides: str) -> RunConfig:
    options = (f"data.path={tmp_path / 'p.h5'}", *QUIET, *overrides)
    return load_config(SMOKE / "fedmvp.yaml", options)


def test_the_command_says_what_it_did(tmp_path: Path) -> None:
    code, out, err = fedhpc(tmp_path, "complete", "p.h5", "--config", str(SMOKE / "fedmvp.yaml"))
    assert code == 0, err
    assert "text: 39 training rows completed, 0 lack it still" in out
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert {name.split(".")[1].split("-")[0] for name in before} == {"h5", "features", "completed"}
    RunTask(config_of(tmp_path), tmp_path / "run")()
    assert before == {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir() if path.is_file()}
    missing = config_of(tmp_path, "completion=null")
    with pytest.raises(ValueError, match="set completion: {method: neighbour}, generator or pretrained"):
        list(complete_run(missing))


def test_made_rows_are_trained_on_and_asked_for_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their makers stand in here; test_pretrained.py has real ones."""
    config = config_of(tmp_path, PRETRAINED)
    with pytest.raises(ValueError, match="make it first with `fedhpc complete"):
        RunTask(config, tmp_path / "run")()

    def make(self: Studio, name: str, rows: np.ndarray) -> dict[str, np.ndarray]:
        filled = {"row": rows, "candidate": np.zeros(len(rows), np.int64), "score": np.zeros(len(rows))}
        if name == "image":
            return filled | {"image": np.full((len(rows), 32, 32, 1), 128, np.uint8)}
        return filled | {"tokens": np.full((len(rows), 32), 5, np.int32), "text": np.asarray(["x"] * len(rows))}

    monkeypatch.setattr(Studio, "make", make)
    assert [line.split(":")[1] for line in complete_run(config)] == [" 39 training rows completed, 0 lack it still"] * 2
    monkeypatch.undo()
    for pictures in ("tokens", "patches"):
        more = (PRETRAINED, f"model.pictures={pictures}", *(["model.patch=16"] if pictures == "patches" else []))
        result = RunTask(config_of(tmp_path, *more), tmp_path / pictures)()
        assert sum(client["train_rows"] for client in result["clients"]) == 155
