"""The study's config on real blood cells: same bits on any number of ranks, and after a rank was killed."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.e2e.command import child_of_rank, fedhpc, finish, send, sha_of, start, wait_for_rounds

pytestmark = pytest.mark.real

CONFIG = str(ROOT / "configs" / "study" / "pbc_fedavg.yaml")
SHORT = ("data.path=pbc.h5", "rounds=3", "evaluation={match: [cell_size, granularity]}", "report.tensorboard=false")
BUDGET = ("fit={steps: 4, batch_size: 16, optimizer: {name: adamw, learning_rate: 1e-3}}", "report.plots=false")


@pytest.fixture(scope="module")
def folder(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("pbc")
    code, _, err = fedhpc(made, "pack", "pbc-wbcatt", str(shared_data / "pbc_wbcatt"), "-o", "pbc.h5")
    assert code == 0, err
    return made


def test_same_bits_on_1_2_and_4_ranks_and_after_a_kill(folder: Path) -> None:
    shas = set()
    for ranks in (1, 2, 4):
        code, out, err = fedhpc(
            folder, "run", CONFIG, *SHORT, *BUDGET, "--run-dir", f"ranks_{ranks}", "--ranks", str(ranks)
        )
        assert code == 0, err
        shas.add(sha_of(out))
    process = start(folder, "run", CONFIG, *SHORT, *BUDGET, "--run-dir", "killed", "--ranks", "2")
    wait_for_rounds(folder / "killed", 1, process)
    send(child_of_rank(process.pid, 0), signal.SIGKILL)
    code, _, err = finish(process)
    assert code == 70, err
    assert "rank 0 of 2 was killed by SIGKILL" in err
    code, out, err = fedhpc(folder, "run", CONFIG, *SHORT, *BUDGET, "--run-dir", "killed", "--ranks", "2")
    assert code == 0, err
    shas.add(sha_of(out))
    assert len(shas) == 1


def test_describe_shows_the_clients_of_the_study(folder: Path) -> None:
    code, out, err = fedhpc(folder, "describe", "pbc.h5", "--config", CONFIG)
    assert code == 0, err
    for part in ("CC BY 4.0", "client-4", "cell_type", "12098"):
        assert part in out, part
