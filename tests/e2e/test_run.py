"""`fedhpc run` as users start it: alone, with --ranks, under torchrun; what it prints and leaves behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.e2e.command import SMOKE, fedhpc, finish, sha_of, start

PHANTOM = "data.path=phantom.h5"


@pytest.mark.parametrize("config", sorted(SMOKE.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_smoke_config_runs_and_leaves_its_files(config: Path, tmp_path: Path) -> None:
    ranks = ("--ranks", "2") if config.stem == "sharded" else ()
    code, out, err = fedhpc(tmp_path, "run", str(config), *ranks)
    assert code == 0, err
    sha = sha_of(out)
    run_dir = next((tmp_path / "runs").iterdir())
    results = json.loads((run_dir / "results.json").read_text())
    assert results["sha256"] == sha
    assert results["data"]["generated"] is True
    rounds = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [line["round"] for line in rounds] == list(range(results["rounds"]))
    ledger = [json.loads(line) for line in (run_dir / "ledger.jsonl").read_text().splitlines()]
    assert all(page["bytes"] > 0 and page["entries"] for page in ledger)
    assert list((run_dir / "tensorboard").iterdir())
    curve = "epsilon.png" if results["privacy"] else "loss.png"  # losses stay with clients under privacy
    assert (run_dir / "plots" / curve).stat().st_size > 1000
    for client in results["clients"]:
        assert client["name"] in out  # the table


def test_ranks_torchrun_and_a_plain_process_agree(tmp_path: Path) -> None:
    config = str(SMOKE / "fedavg.yaml")
    quiet = ("report.tensorboard=false", "report.plots=false", PHANTOM)
    code, out, err = fedhpc(tmp_path, "run", config, *quiet, "--run-dir", "alone")
    assert code == 0, err
    alone = sha_of(out)
    code, out, err = fedhpc(tmp_path, "run", config, *quiet, "--run-dir", "two", "--ranks", "2")
    assert code == 0, err
    assert sha_of(out) == alone
    assert (tmp_path / "two" / "logs" / "rank_1.log").exists()
    train = str(SMOKE.parents[1] / "launch" / "train.py")
    torchrun = start(
        tmp_path,
        "--standalone",
        "--nproc-per-node",
        "2",
        train,
        config,
        *quiet,
        "--run-dir",
        "torchrun",
        module="torch.distributed.run",
    )
    code, out, err = finish(torchrun)
    assert code == 0, err
    assert sha_of(out) == alone


def test_a_finished_run_prints_its_result_again(tmp_path: Path) -> None:
    config = str(SMOKE / "fedavg.yaml")
    arguments = ("run", config, PHANTOM, "rounds=1", "evaluation.every=1", "report.tensorboard=false")
    _, first, _ = fedhpc(tmp_path, *arguments)
    code, second, err = fedhpc(tmp_path, *arguments)
    assert code == 0, err
    assert sha_of(first) == sha_of(second)
    lines = (tmp_path / "runs" / "smoke-fedavg" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 1, "nothing is trained twice"
    lines = (tmp_path / "runs" / "smoke-fedavg" / "evaluation.jsonl").read_text().splitlines()
    assert len(lines) == 5, "one line a client"


def test_a_changed_config_is_refused_unless_told(tmp_path: Path) -> None:
    config = str(SMOKE / "fedavg.yaml")
    arguments = ("run", config, PHANTOM, "rounds=1", "evaluation.every=1", "report.tensorboard=false")
    assert fedhpc(tmp_path, *arguments)[0] == 0
    code, _, err = fedhpc(tmp_path, *arguments, "runtime.threads_per_rank=2", "fit.steps=3")
    assert code == 2
    assert "runtime.threads_per_rank was 1, is 2" in err
    assert "fit.steps was 4, is 3" in err
    assert "--fresh" in err
    assert "Traceback" not in err
    code, out, err = fedhpc(tmp_path, *arguments, "runtime.threads_per_rank=2", "--accept-changes")
    assert code == 0, err
    code, out, err = fedhpc(tmp_path, *arguments, "fit.steps=3", "--fresh")
    assert code == 0, err
    sha_of(out)


def test_mistakes_are_named_before_any_work(tmp_path: Path) -> None:
    config = str(SMOKE / "fedavg.yaml")
    code, _, err = fedhpc(tmp_path, "check", config, "fit.stepz=3", "rounds=0", "algorithm.name=fedagv")
    assert code == 2
    for part in ("fit.stepz", "did you mean steps", "rounds", "fedagv", "did you mean fedavg"):
        assert part in err, err
    assert "3 problems" in err
    code, _, err = fedhpc(tmp_path, "run", config, "data.phantom=null", "data.path=nowhere.h5", "--ranks", "2")
    assert code == 2
    assert "nowhere.h5" in err
    assert "fedhpc pack" in err
    assert not (tmp_path / "runs").exists()
    code, _, err = fedhpc(tmp_path, "run", config, extra={"RANK": "0", "WORLD_SIZE": "2"})
    assert code == 2
    assert "MASTER_ADDR" in err
    code, _, err = fedhpc(tmp_path, "run", config, extra={"SLURM_STEP_NUM_TASKS": "4"})
    assert code == 2
    assert "srun variables are incomplete: SLURM_PROCID not set" in err


def test_a_diverging_client_is_named(tmp_path: Path) -> None:
    code, _, err = fedhpc(
        tmp_path,
        "run",
        str(SMOKE / "fedavg.yaml"),
        PHANTOM,
        "fit.optimizer={name: sgd, learning_rate: 1e38}",
        "--run-dir",
        "x",
    )
    assert code == 2
    assert "fit.optimizer.learning_rate" in err
    assert "Traceback" not in err
