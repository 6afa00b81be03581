"""The leak police themselves."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from tests import conftest


def test_new_and_changed_variables_are_found_and_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDHPC_TEST_KEPT", "1")
    monkeypatch.setenv("FEDHPC_TEST_LOST", "1")
    before = dict(os.environ)
    os.environ["FEDHPC_TEST_NEW"] = "1"
    os.environ["FEDHPC_TEST_KEPT"] = "2"
    del os.environ["FEDHPC_TEST_LOST"]
    names = ("KEPT", "LOST", "NEW")
    assert conftest.leaked_variables(before) == [f"environment variable FEDHPC_TEST_{name}" for name in names]
    assert dict(os.environ) == before
    assert conftest.leaked_variables(before) == []


def test_a_thread_that_stays_is_found() -> None:
    before = set(threading.enumerate())
    stop = threading.Event()
    stays = threading.Thread(target=stop.wait, name="stays")
    daemon = threading.Thread(target=stop.wait, name="daemon", daemon=True)
    stays.start()
    daemon.start()
    try:
        assert conftest.leaked_threads(before, patience_s=0.05) == ["thread stays"]
    finally:
        stop.set()
        stays.join()
        daemon.join()
    assert conftest.leaked_threads(before) == []


def test_a_process_group_that_stays_is_found(tmp_path: Path) -> None:
    dist = pytest.importorskip("torch.distributed")
    assert conftest.leaked_process_group() == []
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    assert conftest.leaked_process_group() == ["process group"]
    assert not dist.is_initialized()


def test_real_data_is_looked_for_beside_the_checkout(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    monkeypatch.delenv("FEDHPC_SHARED", raising=False)
    assert conftest.shared_folder() == root.parent / "shared"
    monkeypatch.setenv("FEDHPC_SHARED", "elsewhere")
    assert conftest.shared_folder() == Path("elsewhere")
