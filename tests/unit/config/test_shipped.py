"""Every shipped config is valid and begins with the command that runs it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fedhpc.config import dump_config, load_config
from fedhpc.config.downstream import KINDS, dump_task, load_task

ROOT = Path(__file__).resolve().parents[3]
CONFIGS = ROOT / "configs"
# Other schemas: partition, GPUs per node, time limit; and downstream tasks.
OTHER = ("cluster", "downstream")
FILES = sorted(path for path in CONFIGS.rglob("*.y*ml") if path.relative_to(CONFIGS).parts[0] not in OTHER)
TASKS = sorted((CONFIGS / "downstream").rglob("*.y*ml"))
COMMAND = re.compile(r"^# *(fedhpc|torchrun|make|sbatch)\b.*")


@pytest.fixture(params=FILES, ids=lambda path: str(path.relative_to(CONFIGS)))
def shipped(request: pytest.FixtureRequest) -> Path:
    path = request.param
    assert isinstance(path, Path)
    return path


def test_there_are_configs() -> None:
    if not any(path.is_file() for path in CONFIGS.rglob("*")):
        pytest.skip("configs/ holds no file yet")
    assert FILES, "configs/ has files but no run config was found in it"


def test_shipped_config_is_valid(shipped: Path, tmp_path: Path) -> None:
    config = load_config(shipped)
    dumped = tmp_path / "dumped.yaml"
    dumped.write_text(dump_config(config), encoding="utf-8")
    assert load_config(dumped) == config


@pytest.mark.parametrize("path", TASKS, ids=lambda path: path.stem)
def test_shipped_task_is_valid_and_begins_with_its_command(path: Path, tmp_path: Path) -> None:
    task = load_task(path)
    dumped = tmp_path / "dumped.yaml"
    dumped.write_text(dump_task(task), encoding="utf-8")
    assert load_task(dumped) == task
    test_shipped_config_begins_with_its_command(path)
    assert f"--task {path.relative_to(ROOT)}" in path.read_text(encoding="utf-8").splitlines()[0]


def test_every_kind_of_task_is_shipped() -> None:
    assert {load_task(path).kind for path in TASKS} == set(KINDS)


def test_shipped_config_begins_with_its_command(shipped: Path) -> None:
    first = shipped.read_text(encoding="utf-8").splitlines()[0]
    assert COMMAND.match(first), f"{shipped.relative_to(ROOT)}: begins with {first!r}, not with # and its command"
    named = [word for word in first.split() if word.endswith((".yaml", ".yml"))]
    for word in named:
        assert (ROOT / word).is_file(), f"{shipped.relative_to(ROOT)}: its command names {word}, which is not there"
