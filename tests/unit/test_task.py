"""A run that goes on: on the data that it began with."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from fedhpc.config.load import load_config
from fedhpc.config.schema import PhantomConfig
from fedhpc.data.content import content_checksum
from fedhpc.data.packers.phantom import ensure_phantom
from fedhpc.task import RunTask
from tests.conftest import ROOT

QUICK = ("rounds=1", "fit.steps=1", "evaluation.every=null", "report={tensorboard: false, plots: false}")


def test_a_run_does_not_go_on_when_the_content_of_its_file_has_changed(tmp_path: Path) -> None:
    data = ensure_phantom(PhantomConfig(num_patients=200, num_sites=5, image_size=32), tmp_path / "data.h5")
    config = load_config(ROOT / "configs" / "smoke" / "fedavg.yaml", [*QUICK, "~data.phantom", f"data.path={data}"])
    first = RunTask(config, tmp_path / "run")()
    again = RunTask(config, tmp_path / "run")()
    assert again["sha256"] == first["sha256"]

    with h5py.File(data, "r+") as file:  # validation and test rows change places
        file["split"][...] = np.array([0, 2, 1], np.int8)[file["split"][...]]
        file.attrs["checksum"] = content_checksum(file)
    told = rf"the content of data\.path has changed since \(checksum {first['data']['checksum'][:12]}, .*--fresh"
    with pytest.raises(ValueError, match=told):
        RunTask(config, tmp_path / "run")()
    loop = tmp_path / "run" / "checkpoints" / "round_000001" / "loop.json"
    RunTask(config, tmp_path / "run", accept_changes=True)()

    # A checkpoint of before they were written down names no data.
    state = json.loads(loop.read_text())
    del state["data"]
    loop.write_text(json.dumps(state))
    RunTask(config, tmp_path / "run")()
