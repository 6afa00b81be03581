"""What `fedhpc status` and `fedhpc collect` make of run folders."""

from __future__ import annotations

import csv
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fedhpc.launching import collect, journal, pool, slurm, watch
from fedhpc.launching.slurm import JobState
from fedhpc.run_folder import LAUNCHES

CONFIG: dict[str, Any] = {
    "name": "x",
    "rounds": 4,
    "random_seed": 0,
    "algorithm": {"name": "fedprox", "mu": 0.1},
    "model": {"kind": "classifier"},
    "runtime": {"timeout_s": 300.0},
    "report": {"plots": True},
}


def run(folder: Path, done: int = 0, **config: Any) -> Path:
    """A folder with so many rounds of two seconds done, and an evaluation after each."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(json.dumps(CONFIG | config))  # JSON is YAML
    with (folder / "metrics.jsonl").open("w") as file:
        file.writelines(json.dumps({"round": index, "seconds": 2.0}) + "\n" for index in range(done))
    with (folder / "evaluation.jsonl").open("w") as file:
        for index in range(done):
            for client, accuracy in (("a", 0.2 + 0.1 * (index % 2)), ("b", 0.4), ("c (unseen)", 1.0)):
                line = {"round": index, "split": "val", "client": client, "accuracy": accuracy}
                file.write(json.dumps(line) + "\n")
    return folder


def finish(folder: Path, sha: str = "ab", accuracy: float = 0.5, seed: int = 0) -> None:
    results = {
        "name": "x",
        "algorithm": "fedprox",
        "rounds": 4,
        "random_seed": seed,
        "split": "test",
        "summary": {"accuracy": {"mean": accuracy, "worst": accuracy - 0.1}},
        "clients": [{"name": name, "metrics": {"accuracy": accuracy}} for name in ("a", "b")],
        "sha256": sha,
        "seconds": 8.0,
        "ranks": 2,
        "data": {"generated": True},
    }
    (folder / "results.json").write_text(json.dumps(results))


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> dict[str, JobState]:
    """What Slurm knows, to be filled in."""
    jobs: dict[str, JobState] = {}
    monkeypatch.setattr(slurm, "job_states", lambda asked: {job: jobs[job] for job in asked if job in jobs})
    return jobs


def state(folder: Path) -> watch.RunState:
    return watch.states([folder])[0]


def age(folder: Path, seconds: float) -> None:
    for path in folder.iterdir():
        os.utime(path, (time.time() - seconds,) * 2)


def test_a_run_by_itself(tmp_path: Path, queue: dict[str, JobState]) -> None:
    folder = run(tmp_path / "r")
    (folder / "metrics.jsonl").unlink()
    assert state(folder).state == "not started"
    run(folder, 3)
    now = state(folder)
    assert (now.state, now.round, now.rounds) == ("stopped", 3, 4)
    assert now.best == ("accuracy", pytest.approx(0.35), 2), "mean of a and b in round 2, without the unseen c"
    run(folder, 4)
    finish(folder)
    now = state(folder)
    assert (now.state, now.best) == ("finished", ("accuracy", 0.5, 4))
    assert now.is_over
    run(folder, 4, rounds=8)  # more are asked for
    assert state(folder).state == "stopped"


def test_a_run_that_holds_its_lock(tmp_path: Path, queue: dict[str, JobState]) -> None:
    import fcntl

    folder = run(tmp_path / "r", 2)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        now = state(folder)
        assert (now.state, now.left_s) == ("running", 4.0)
        age(folder, 1000)
        now = state(folder)
        assert now.state == "stalled"
        assert "nothing written for 17 min" in now.reason
    assert state(folder).state == "stopped"


def test_locks_of_the_kernel() -> None:
    text = "1: FLOCK  ADVISORY  WRITE 812 fd:01:4711 0 EOF\n2: POSIX  ADVISORY  READ 5 00:2f:12 0 0\n"
    assert watch.locked_inodes(text) == {4711}


@pytest.mark.parametrize(
    ("events", "now", "state_", "reason"),
    [
        (["submitted"], JobState("PENDING", "Resources"), "queued", "Resources"),
        (["submitted", "started"], JobState("RUNNING"), "running", ""),
        (
            ["submitted", "started", "requeued"],
            JobState("PENDING", "BeginTime"),
            "requeued",
            "asked to stop; BeginTime",
        ),
        (["submitted", "started", "requeued"], JobState("COMPLETING"), "requeued", "asked to stop"),
        (["submitted", "started", "requeued", "started"], JobState("RUNNING"), "running", "restarts: 1"),
        (["submitted", "started", "ended"], JobState("FAILED", "NonZeroExitCode"), "failed", "asked to stop"),
        (["submitted", "started"], JobState("OUT_OF_MEMORY"), "failed", "Slurm says OUT_OF_MEMORY"),
        (["submitted", "started"], JobState("CANCELLED"), "cancelled", ""),
        (["submitted", "started"], None, "failed", "Slurm has forgotten job 7, which never ended in order"),
    ],
)
def test_a_job(
    events: list[Any], now: JobState | None, state_: str, reason: str, tmp_path: Path, queue: dict[str, JobState]
) -> None:
    folder = run(tmp_path / "r", 2)
    for event in events:
        journal.write(
            folder, event, "7", reason="asked to stop" if event in ("requeued", "ended") else "", exit_code=70
        )
    if now is not None:
        queue["7"] = now
    found = state(folder)
    assert (found.state, found.reason, found.job) == (state_, reason, "7")


def test_a_local_failure_is_told_by_the_journal(tmp_path: Path, queue: dict[str, JobState]) -> None:
    folder = run(tmp_path / "r", 2)
    journal.write(folder, "ended", pool.JOB, exit_code=2, reason="data.path is gone")
    assert (state(folder).state, state(folder).reason) == ("failed", "data.path is gone")
    journal.write(folder, "ended", pool.JOB, exit_code=75)
    assert state(folder).state == "stopped"


def test_runs_are_found_below_and_sorted_as_numbers(tmp_path: Path) -> None:
    for name in ("s/seed=10", "s/seed=2", "t"):
        run(tmp_path / name)
    (tmp_path / "s" / "slurm").mkdir()
    assert [str(p.relative_to(tmp_path)) for p in watch.find_runs(tmp_path)] == ["s/seed=2", "s/seed=10", "t"]
    assert watch.find_runs(tmp_path / "t") == [tmp_path / "t"]
    with pytest.raises(ValueError, match="holds no run folder"):
        watch.find_runs(tmp_path / "s" / "slurm")
    with pytest.raises(ValueError, match="no such folder"):
        watch.find_runs(tmp_path / "nowhere")


def test_the_table_names_states_and_reasons(tmp_path: Path, queue: dict[str, JobState]) -> None:
    run(tmp_path / "a", 1)
    run(tmp_path / "b", 4)
    finish(tmp_path / "b")
    console = Console(width=160, record=True)
    console.print(watch.table(watch.states(watch.find_runs(tmp_path)), tmp_path))
    text = console.export_text()
    assert "1 stopped, 1 finished" in text
    assert "4/4" in text and "accuracy 0.500 (round 4)" in text


@pytest.mark.parametrize(("seconds", "text"), [(14, "14 s"), (180, "3 min"), (7500, "2 h 05 min"), (274000, "3 d 4 h")])
def test_durations(seconds: float, text: str) -> None:
    assert watch.duration(seconds) == text


def test_collect_writes_a_row_a_run_with_what_differs(tmp_path: Path) -> None:
    for mu in (0.1, 1.0):
        for seed in (0, 1):
            folder = run(tmp_path / f"mu={mu},random_seed={seed}", 4, random_seed=seed, name=f"n{seed}")
            (folder / "config.yaml").write_text(
                json.dumps(CONFIG | {"random_seed": seed, "algorithm": {"name": "fedprox", "mu": mu}, "name": f"n{mu}"})
            )
            finish(folder, sha=f"{mu}{seed}", accuracy=0.5 + 0.1 * seed, seed=seed)
    folders = watch.find_runs(tmp_path)
    rows = collect.rows(folders, tmp_path)
    collect.write_csv(tmp_path / "runs.csv", rows)
    with (tmp_path / "runs.csv").open() as file:
        read = list(csv.DictReader(file))
    assert list(read[0])[:3] == ["run", "algorithm.mu", "algorithm"]
    assert (
        read[1] | {"run": "mu=0.1,random_seed=1", "algorithm.mu": "0.1", "random_seed": "1", "sha256": "0.11"}
        == read[1]
    )
    assert (read[1]["accuracy:mean"], read[1]["accuracy:worst"], read[1]["accuracy:b"]) == ("0.6", "0.5", "0.6")
    assert "name" not in read[0], "it changes no result"
    arms = collect.arms(folders)
    assert [(arm.name, sorted(arm.runs)) for arm in arms] == [
        ("algorithm.mu=0.1", [0, 1]),
        ("algorithm.mu=1.0", [0, 1]),
    ]


def test_the_journal_is_one_of_the_runs_files(tmp_path: Path) -> None:
    from fedhpc.run_folder import delete_run

    folder = run(tmp_path / "r", 2)
    journal.write(folder, "submitted", "7")
    (folder / "mine.txt").touch()
    delete_run(folder)
    assert [path.name for path in folder.iterdir()] == ["mine.txt"]
    assert LAUNCHES == "launches.jsonl"
