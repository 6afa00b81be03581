"""Ranks that meet by a file: stale files, other jobs' stores, latecomers."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from fedhpc.comm import rendezvous
from fedhpc.comm.rendezvous import (
    Meeting,
    NoRendezvous,
    host_store,
    interface_towards,
    interfaces,
    join_store,
    meet_by_file,
    own_addresses,
)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendezvous, "KNOCK_S", 1.0)


def others(folder: Path, job: str, world: int) -> tuple[list[threading.Thread], dict[int, Any]]:
    """Ranks 1.. that look for rank 0."""
    found: dict[int, Any] = {}

    def look(rank: int) -> None:
        met = meet_by_file(folder, job, rank, world, 20.0)
        found[rank] = (met.store.get("greeting"), met.address)

    threads = [threading.Thread(target=look, args=(rank,)) for rank in range(1, world)]
    for thread in threads:
        thread.start()
    return threads, found


def test_ranks_that_come_before_rank_0_find_it(tmp_path: Path) -> None:
    threads, found = others(tmp_path, "job", 3)
    time.sleep(0.2)
    met = meet_by_file(tmp_path, "job", 0, 3, 20.0)
    met.store.set("greeting", "hello")
    for thread in threads:
        thread.join()
    assert found == dict.fromkeys((1, 2), (b"hello", met.address))
    met.done()
    assert list(tmp_path.iterdir()) == []


def test_a_stale_file_is_not_believed(tmp_path: Path) -> None:
    """Its port is dead, or another job's door is there by now, or something else, which says nothing."""
    _, other, other_door = host_store(2, 20.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        dead = server.getsockname()[1]
    mute = socket.create_server(("127.0.0.1", 0))
    for door in (dead, other.door, mute.getsockname()[1]):
        path = tmp_path / rendezvous.FOLDER / "job.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(Meeting(other.node, ("127.0.0.1",), other.port, door, "an older token").to_json())
        threads, found = others(tmp_path, "job", 2)
        time.sleep(0.5)
        assert not found
        met = meet_by_file(tmp_path, "job", 0, 2, 20.0)
        met.store.set("greeting", "hello")
        for thread in threads:
            thread.join()
        assert found[1][0] == b"hello"
        met.done()
    other_door.shut()
    mute.close()


def test_nobody_opens_the_door() -> None:
    store, meeting, door = host_store(2, 20.0)
    door.shut()
    with pytest.raises(NoRendezvous, match="refused"):
        join_store(meeting, 2, 20.0)
    del store


def test_two_jobs_meet_apart(tmp_path: Path) -> None:
    first, second = (meet_by_file(tmp_path, job, 0, 2, 20.0) for job in ("job-0", "job-1"))
    first.store.set("greeting", "first")
    second.store.set("greeting", "second")
    assert meet_by_file(tmp_path, "job-1", 1, 2, 20.0).store.get("greeting") == b"second"
    first.done()
    second.done()


def test_nobody_comes(tmp_path: Path) -> None:
    with pytest.raises(NoRendezvous, match=r"rank 1 of 2 did not find rank 0 within 0 s .*same run folder"):
        meet_by_file(tmp_path, "job", 1, 2, 0.3)


def test_a_torn_meeting_is_a_value_error() -> None:
    for text in ("", "{", "{}", "[]", '{"node": "a", "addresses": ["b"], "port": "c", "door": 1, "token": "d"}'):
        with pytest.raises(ValueError):
            Meeting.from_json(text)
    meeting = Meeting("node1", ("10.0.0.1", "10.0.0.2"), 4321, 4322, "token")
    assert Meeting.from_json(meeting.to_json()) == meeting


def test_addresses_and_interfaces_of_this_machine() -> None:
    known = dict(interfaces())
    assert "127.0.0.1" in known.values()
    for address in own_addresses():
        name = interface_towards(address)
        assert name is None or known[name] == address
