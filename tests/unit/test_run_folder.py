"""Whether a config may go on in a run folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from fedhpc.config.load import load_config
from fedhpc.data import missing, noise
from fedhpc.run_folder import MISSING, NOISY_LABELS, delete_run, refuse_other_config, write_config
from tests.conftest import ROOT

CONFIG = ROOT / "configs" / "smoke" / "fedavg.yaml"


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    (tmp_path / "checkpoints").mkdir()
    write_config(tmp_path, load_config(CONFIG, ["rounds=3"]))
    return tmp_path


def test_a_change_that_matters_is_refused(begun: Path) -> None:
    refuse_other_config(begun, load_config(CONFIG, ["rounds=3", "runtime.timeout_s=77"]))
    with pytest.raises(ValueError, match="rounds was 3, is 4"):
        refuse_other_config(begun, load_config(CONFIG, ["rounds=4"]))


def test_runs_of_before_a_key_was_added_go_on(begun: Path) -> None:
    stored = yaml.safe_load((begun / "config.yaml").read_text())
    del stored["aggregation"]["fraction_bits"]
    (begun / "config.yaml").write_text(yaml.safe_dump(stored))
    refuse_other_config(begun, load_config(CONFIG, ["rounds=3"]))
    with pytest.raises(ValueError, match="fraction_bits was 32, is 30"):
        refuse_other_config(begun, load_config(CONFIG, ["rounds=3", "aggregation.fraction_bits=30"]))


def test_files_have_the_names_that_their_writers_give_them(begun: Path) -> None:
    assert (NOISY_LABELS, MISSING) == (noise.FILE, missing.FILE)
    (begun / MISSING).touch()
    (begun / "mine.txt").touch()
    delete_run(begun)
    assert [path.name for path in begun.iterdir()] == ["mine.txt"]
