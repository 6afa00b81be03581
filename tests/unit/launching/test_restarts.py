"""Who queues a job again, how often, and what the journal says of it."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from fedhpc.config.load import load_config
from fedhpc.exit_codes import EXIT_PREEMPTED, EXIT_RANK_LOST, EXIT_USER_ERROR
from fedhpc.launching import batch, job, journal, logs, slurm
from fedhpc.launching.journal import Limits

SMOKE = Path(__file__).resolve().parents[3] / "configs" / "smoke" / "fedavg.yaml"
LIMITS = Limits(max_restarts=2, soon_s=1000)
KILLED = 137


@pytest.fixture
def requeued(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Jobs that Slurm was told to queue again; nobody cancelled any."""
    jobs: list[str] = []
    monkeypatch.setattr(slurm, "requeue", jobs.append)
    monkeypatch.setattr(slurm, "is_cancelled", lambda job: False)
    return jobs


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, as a list of one."""
    now = [0.0]
    monkeypatch.setattr(journal.time, "time", lambda: now[0])
    return now


def checkpoint(folder: Path, rounds: int) -> None:
    path = folder / "checkpoints" / f"round_{rounds:06d}"
    path.mkdir(parents=True)
    (path / "loop.json").write_text("{}")


def test_losses_are_bounded_for_each_job(tmp_path: Path, requeued: list[str]) -> None:
    for _ in range(2):
        batch.started(tmp_path, "7")
        assert batch.ended(tmp_path, "7", KILLED, LIMITS)
    batch.started(tmp_path, "7")
    assert not batch.ended(tmp_path, "7", EXIT_RANK_LOST, LIMITS)
    assert requeued == ["7", "7"]
    last = journal.read(tmp_path)[-1]
    assert (last.event, last.exit_code) == ("ended", EXIT_RANK_LOST)
    assert "max_restarts: 2" in last.reason
    batch.started(tmp_path, "8")  # submitted anew
    assert batch.ended(tmp_path, "8", KILLED, LIMITS)


@pytest.mark.parametrize("code", [0, 1, EXIT_USER_ERROR, EXIT_PREEMPTED])
def test_only_losses_are_queued_again_by_the_script(code: int, tmp_path: Path, requeued: list[str]) -> None:
    batch.started(tmp_path, "7")
    assert not batch.ended(tmp_path, "7", code, LIMITS)
    assert requeued == []
    assert journal.read(tmp_path)[-1].exit_code == code


def test_what_was_cancelled_is_not_queued_again(
    tmp_path: Path, requeued: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm, "is_cancelled", lambda job: True)
    batch.started(tmp_path, "7")
    assert not batch.ended(tmp_path, "7", KILLED, LIMITS)
    assert requeued == []


def test_a_requeue_that_slurm_refuses_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(job: str) -> None:
        raise slurm.SlurmError("Requested operation is presently disabled")

    monkeypatch.setattr(slurm, "requeue", refuse)
    monkeypatch.setattr(slurm, "is_cancelled", lambda job: False)
    batch.started(tmp_path, "7")
    assert not batch.ended(tmp_path, "7", KILLED, LIMITS)
    assert "presently disabled" in journal.read(tmp_path)[-1].reason


def test_a_job_that_queued_itself_is_left_alone(tmp_path: Path, requeued: list[str]) -> None:
    batch.started(tmp_path, "7")
    journal.write(tmp_path, "requeued", "7")
    assert not batch.ended(tmp_path, "7", KILLED, LIMITS), "its ranks are killed as Slurm takes it back"
    assert requeued == []
    assert journal.read(tmp_path)[-1].event == "requeued"


def test_time_limits_count_only_without_a_new_checkpoint(tmp_path: Path, clock: list[float]) -> None:
    for rounds, minutes in itertools.product([0], [10, 20]):  # preempted early: nobody's fault
        batch.started(tmp_path, "7")
        clock[0] += minutes * 10
        assert not journal.verdict(tmp_path, "7", rounds, LIMITS, failed=False).counts
    batch.started(tmp_path, "7")
    clock[0] += 2000
    assert not journal.verdict(tmp_path, "7", 4, LIMITS, failed=False).counts, "four rounds further"
    for expected in (True, True, False):
        batch.started(tmp_path, "7")
        clock[0] += 2000
        verdict = journal.verdict(tmp_path, "7", 0, LIMITS, failed=False)
        assert verdict.counts
        assert verdict.again is expected
        if verdict.again:
            journal.write(tmp_path, "requeued", "7", counts=True)


def test_submitit_is_told_what_to_call_again(
    tmp_path: Path, requeued: list[str], clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("submitit")
    monkeypatch.setattr(job, "_job_id", lambda: "7_3")
    run = job.SubmittedRun(load_config(SMOKE), tmp_path, Limits(0, 1000))
    batch.started(tmp_path, "7_3")
    checkpoint(tmp_path, 5)
    assert run.checkpoint().function is run
    last = journal.read(tmp_path)[-1]
    assert (last.event, last.job, last.rounds_done, last.counts) == ("requeued", "7_3", 5, False)
    batch.started(tmp_path, "7_3")
    clock[0] += 2000
    with pytest.raises(job.NotAgain, match="max_restarts: 0"):
        run.checkpoint()
    monkeypatch.setattr(slurm, "is_cancelled", lambda job: True)
    with pytest.raises(job.NotAgain, match="cancelled"):
        run.checkpoint()


def test_a_torn_line_of_the_journal_is_left_out(tmp_path: Path) -> None:
    journal.write(tmp_path, "submitted", "7", logs="x")
    with (tmp_path / "launches.jsonl").open("a") as file:
        file.write('{"event": "star')
    assert [launch.event for launch in journal.read(tmp_path)] == ["submitted"]
    assert journal.read(tmp_path / "nowhere") == []


def test_the_table_of_an_array(tmp_path: Path) -> None:
    batch.write_table(tmp_path / "t.json", [Path("/a"), Path("/b")], LIMITS)
    assert batch.read_table(tmp_path / "t.json", 1) == (Path("/b"), LIMITS)
    batch.write_table(tmp_path / "t.json", [tmp_path], LIMITS)
    batch.main(["started", str(tmp_path / "t.json"), "0", "5"])
    batch.main(["ended", str(tmp_path / "t.json"), "0", "5", "0"])
    assert [launch.event for launch in journal.read(tmp_path)] == ["started", "ended"]


def test_last_words_are_those_of_the_cause(tmp_path: Path) -> None:
    said = {
        0: "round 1/3\nfedhpc: rank 0: rank 1 of 2 died or stopped answering in round 2\nsrun: error",
        1: "fedhpc: rank 1: the loss of client 4 is not finite\n",
        2: "noise\n",
    }
    for rank, text in said.items():
        (tmp_path / f"7_{rank}_log.out").write_text(text)
    journal.write(tmp_path, "submitted", "7", logs=str(tmp_path / "7_*_log.out"))
    assert logs.last_words(tmp_path, "7") == "rank 1: the loss of client 4 is not finite"
    assert logs.last_words(tmp_path, "8") == ""
    (tmp_path / "7_1_log.out").unlink()
    assert "rank 1 of 2 died" in logs.last_words(tmp_path, "7")
    (tmp_path / "7_0_log.out").write_text("fedhpc: my.yaml: 2 problems\n  a = 1: wrong\n  b = 2: wrong\n")
    assert logs.last_words(tmp_path, "7") == "my.yaml: 2 problems a = 1: wrong b = 2: wrong"
