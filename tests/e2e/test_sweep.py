"""`fedhpc sweep --cluster local`, status and collect as users call them; `submit --dry-run` without Slurm."""

from __future__ import annotations

import csv
import json
import signal
from pathlib import Path

from fedhpc.exit_codes import EXIT_PREEMPTED
from tests.conftest import ROOT
from tests.e2e.command import SMOKE, fedhpc, finish, sha_of, start, wait_for_rounds

CONFIG = str(SMOKE / "fedavg.yaml")
QUIET = ("data.path=phantom.h5", "report.tensorboard=false", "report.plots=false")
SITE = ("--cluster", str(ROOT / "configs" / "cluster" / "site.yaml"))
SHORT = ("rounds=1", "fit.steps=2", "evaluation.every=null")
GOOD, BAD = "{name: sgd, learning_rate: 0.01}", "{name: sgd, learning_rate: 1e38}"  # the latter diverges


def test_a_sweep_survives_a_failing_run_and_goes_on_with_what_is_left(tmp_path: Path) -> None:
    arguments = ("sweep", CONFIG, *QUIET, *SHORT, f"fit.optimizer={GOOD},{BAD}", "--sweep-dir", "s")
    good, bad = "optimizer=name-sgd-learning_rate-0.01", "optimizer=name-sgd-learning_rate-1e38"
    code, out, err = fedhpc(tmp_path, *arguments)
    assert code == 1, err
    assert f"{good}: finished" in out
    assert f"{bad}: failed: " in out
    assert "1 of 2 runs failed" in err
    assert "fit.optimizer.learning_rate" in out, "why it failed"
    assert "Traceback" not in err + out
    assert set(json.loads((tmp_path / "s" / "sweep.json").read_text())["runs"]) == {good, bad}

    written = (tmp_path / "s" / good / "results.json").stat().st_mtime_ns
    code, out, err = fedhpc(tmp_path, *arguments)
    assert code == 1
    assert "1 finished, 0 queued or running, 1 to start" in out
    assert (tmp_path / "s" / good / "results.json").stat().st_mtime_ns == written, "not made again"

    code, out, err = fedhpc(tmp_path, "status", "s")
    assert code == 0, err
    assert "1 finished, 1 failed" in out
    code, out, err = fedhpc(tmp_path, "collect", "s", "--to", "all.csv")
    assert code == 0, err
    assert f"not finished: s/{bad}" in out
    (row,) = csv.DictReader((tmp_path / "all.csv").open())
    code, out, err = fedhpc(tmp_path, "run", CONFIG, *QUIET, *SHORT, f"fit.optimizer={GOOD}", "--run-dir", "alone")
    assert code == 0, err
    assert row["sha256"] == sha_of(out)
    assert float(row["recall_at_1:worst"]) <= float(row["recall_at_1:mean"])


def test_a_sweep_that_is_asked_to_stop_checkpoints_and_goes_on(tmp_path: Path) -> None:
    rounds = ("rounds=12", "fit.steps=6", "evaluation.every=null", "checkpoint.every=100")
    arguments = ("sweep", CONFIG, *QUIET, *rounds, "random_seed=5,6", "cluster.max_runs_at_once=1", "--sweep-dir", "s")
    process = start(tmp_path, *arguments)
    wait_for_rounds(tmp_path / "s" / "random_seed=5", 2, process)
    process.send_signal(signal.SIGTERM)
    code, out, err = finish(process)
    assert code == EXIT_PREEMPTED, err
    assert "random_seed=5: stopped at a checkpoint" in out
    assert "random_seed=6: started" not in out
    checkpoints = [path.name for path in (tmp_path / "s" / "random_seed=5" / "checkpoints").iterdir()]
    assert len(checkpoints) == 1
    code, out, err = fedhpc(tmp_path, "status", "s")
    assert code == 0, err
    assert "1 stopped, 1 not started" in out
    code, out, err = fedhpc(tmp_path, *arguments[:2], *QUIET, *rounds, "random_seed=5", "--sweep-dir", "s")
    assert code == 0, err
    assert "random_seed=5: finished" in out, "the same folder, though the sweep is another"
    log = (tmp_path / "s" / "random_seed=5" / "logs" / "run.log").read_text()
    assert f"resuming after round {int(checkpoints[0].removeprefix('round_'))} of 12" in log


def test_mistakes_are_told_before_anything_is_started(tmp_path: Path) -> None:
    code, _, err = fedhpc(tmp_path, "sweep", CONFIG, "fit.stepz=1,2", "random_seed=0,1")
    assert code == 2
    assert "did you mean steps" in err
    code, _, err = fedhpc(tmp_path, "sweep", CONFIG, "data.phantom=null", "data.path=a.h5,b.h5")
    assert code == 2
    assert "a.h5" in err and "b.h5" in err
    code, _, err = fedhpc(tmp_path, "submit", CONFIG, "--cluster", "local")
    assert code == 2
    assert "fedhpc run" in err
    code, _, err = fedhpc(tmp_path, "status", "nowhere")
    assert code == 2
    assert "no such folder" in err
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_needs_no_slurm_and_leaves_nothing(tmp_path: Path) -> None:
    nothing = {"PATH": str(tmp_path)}
    code, out, err = fedhpc(tmp_path, "submit", CONFIG, *SITE, "--dry-run", "cluster.time=02:00:00", extra=nothing)
    assert code == 0, err
    assert out.startswith("#!/bin/bash")
    for line in ("--nodes=2", "--ntasks-per-node=4", "--time=120", "--signal=USR2@300", "--requeue"):
        assert f"#SBATCH {line}\n" in out
    assert "no Slurm" in err
    code, out, err = fedhpc(tmp_path, "sweep", CONFIG, "random_seed=0,1,2", *SITE, "--dry-run", extra=nothing)
    assert code == 0, err
    assert "#SBATCH --array=0-2%3\n" in out
    assert "3 to start" in err
    code, _, err = fedhpc(tmp_path, "submit", CONFIG, *SITE, extra=nothing)
    assert code == 2
    assert "--dry-run" in err
    assert list(tmp_path.iterdir()) == []
