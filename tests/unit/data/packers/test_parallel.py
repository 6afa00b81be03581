"""Any number of ranks packs the same file, and an interrupted pack goes on where it was."""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedhpc.data.hdf5 import PackedFile
from fedhpc.data.packers import spool
from fedhpc.data.packers.crew import Processes, run
from fedhpc.data.packers.decode import CHUNK_ROWS, Decoder
from fedhpc.data.packers.progress import Bar
from fedhpc.data.packers.table import PackReport, TablePlan, pack_table
from tests.unit.data.packers.trees import picture, save, write_table

N = 5 * CHUNK_ROWS + 3


def cells() -> list[dict[str, str]]:
    return [
        {"file": f"{k}.png", "mask": f"m{k % 7}.png" if k % 3 == 0 else "", "kind": "ab"[k % 2],
         "set": ("train", "val", "test")[k % 3]}
        for k in range(N)
    ]  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_table(tmp_path / "rows.csv", cells())
    for k in range(N):
        save(tmp_path / f"{k}.png", picture(k, size=(9, 12)))
    for k in range(7):
        save(tmp_path / f"m{k}.png", (picture(100 + k, size=(9, 12)) > 128).astype(np.uint8) * 255)
    return tmp_path


def pack(folder: Path, ranks: int = 1, **changes: Any) -> PackReport:
    plan: dict[str, Any] = {
        "table": folder / "rows.csv", "out": folder / "out.h5", "name": "rows", "source": "a test", "licence": "CC0",
        "image_column": "file", "image_root": folder, "labels": ("kind",), "split_column": "set",
        "mask_column": "mask", "mask_root": folder, "crew": Processes(ranks), "overwrite": True, **changes,
    }  # fmt: skip
    return pack_table(TablePlan(**plan))


def checksum(folder: Path, *arguments: Any, **changes: Any) -> str:
    pack(folder, *arguments, **changes)
    with PackedFile(folder / "out.h5") as packed:
        packed.verify()
        return packed.checksum


def spoil(folder: Path) -> None:
    """Rows of several chunks that are bad in several ways, the first of them the last to be looked at."""
    (folder / "70.png").write_bytes(b"no picture")
    save(folder / "40.png", picture(1, size=(9, 9)))
    (folder / "20.png").unlink()
    (folder / "m6.png").write_bytes(b"")


# ------------------------------------------------------------------------------------------------------- any ranks
@pytest.mark.parametrize("changes", [{}, {"keep_encoded": True}, {"image_size": 16}], ids=str)
def test_any_number_of_ranks_gives_the_same_file(folder: Path, changes: dict[str, Any]) -> None:
    assert checksum(folder, 1, **changes) == checksum(folder, 3, **changes)
    assert sorted(path.name for path in folder.glob("*out*")) == ["out.h5"]


def test_pixels_and_masks_are_those_of_their_rows(folder: Path) -> None:
    pack(folder, 3)
    with PackedFile(folder / "out.h5") as packed:
        images, mask_row = packed.read("image"), packed.read("mask_row")
        for k in range(N):
            assert np.array_equal(images[k, :, :, 0], picture(k, size=(9, 12)))
            assert (mask_row[k] >= 0) == (k % 3 == 0)
        assert len(packed.read("mask", np.unique(mask_row[mask_row >= 0]))) == 7  # shared by rows of several chunks
        for k in range(0, N, 3):
            found = packed.read("mask", mask_row[[k]])[0]
            assert np.array_equal(found, picture(100 + k % 7, size=(9, 12)) > 128)


def test_bad_rows_are_dropped_and_counted_alike(folder: Path) -> None:
    spoil(folder)
    reports = [pack(folder, ranks, skip_bad=True) for ranks in (1, 3)]
    assert reports[0].skipped == reports[1].skipped
    assert reports[0].skipped == {"unreadable picture": 1, "other size": 1, "missing picture": 1, "unreadable mask": 4}
    assert reports[0].rows == reports[1].rows == N - 7


def test_the_first_bad_row_in_the_table_is_named(folder: Path) -> None:
    spoil(folder)
    messages = set()
    for ranks in (1, 3):
        with pytest.raises(ValueError, match=r"rows.csv, line 8: mask m6.png: the picture has no bytes") as caught:
            pack(folder, ranks)
        messages.add(str(caught.value))
    assert len(messages) == 1
    assert not list(folder.glob("*out.h5*"))


def test_a_rank_that_is_killed_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leader = os.getpid()

    def decode(self: Decoder, index: int, *arguments: Any) -> Any:
        if os.getpid() != leader:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.2)  # rank 0 must not be done before anybody else began
        return original(self, index, *arguments)

    monkeypatch.setattr(Decoder, "decode", decode)
    with pytest.raises(ChildProcessError, match="rank 1 of 2 was killed by SIGKILL"):
        pack(folder, 2)


original = Decoder.decode


class FakeCrew:
    """Ranks that answer in an order that a test chooses."""

    rank = 0

    def __init__(self, size: int, order: list[int]) -> None:
        self.size, self._order = size, deque(order)
        self.given: dict[int, deque[int]] = {rank: deque() for rank in range(1, size)}

    def give(self, rank: int, task: int) -> None:
        self.given[rank].append(task)

    def take(self, wait_s: float) -> list[tuple[int, int]]:
        self._order.rotate()
        busy = [rank for rank, tasks in self.given.items() if tasks]
        count = self._order[0] % 3 if wait_s == 0 else 1
        return [(rank, self.given[rank].popleft()) for rank in busy[:count]]


@given(st.integers(1, 5), st.integers(0, 40), st.lists(st.integers(0, 9), min_size=1, max_size=7))
def test_every_task_is_done_once(size: int, num_tasks: int, order: list[int]) -> None:
    def work(task: int, between: Callable[[], None]) -> int:
        between()
        return task

    assert sorted(run(FakeCrew(size, order), range(num_tasks), work)) == list(range(num_tasks))  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------------------------------- resume
@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Chunks that were decoded by this process; every chunk is worth keeping."""
    indexes: list[int] = []

    def counted(self: Decoder, index: int, *arguments: Any) -> Any:
        indexes.append(index)
        return original(self, index, *arguments)

    monkeypatch.setattr(Decoder, "decode", counted)
    monkeypatch.setattr(spool, "WORTH_KEEPING", 1)
    return indexes


def interrupted(folder: Path, at: int, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    """A pack that is interrupted before chunk `at` is decoded."""

    def decode(self: Decoder, index: int, *arguments: Any) -> Any:
        if index == at:
            raise KeyboardInterrupt
        return original(self, index, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Decoder, "decode", decode)
        with pytest.raises(KeyboardInterrupt):
            pack(folder, **changes)
    assert not (folder / "out.h5").exists()


def test_an_interrupted_pack_goes_on(
    folder: Path, decoded: list[int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(folder)
    whole = checksum(folder, skip_bad=True)
    (folder / "out.h5").unlink()
    decoded.clear()
    interrupted(folder, 3, monkeypatch, skip_bad=True)
    assert f"{3 * CHUNK_ROWS} decoded rows are kept" in capsys.readouterr().err
    assert checksum(folder, skip_bad=True) == whole
    assert decoded == [3, 4, 5]
    assert f"{3 * CHUNK_ROWS} of {N} rows were decoded before" in capsys.readouterr().err
    assert sorted(path.name for path in folder.glob("*out*")) == ["out.h5"]


def test_kill_9_in_the_middle_costs_nothing_but_the_chunk(folder: Path, decoded: list[int]) -> None:
    def killed() -> None:
        def decode(self: Decoder, index: int, *arguments: Any) -> Any:
            if index == 4:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(self, index, *arguments)

        Decoder.decode = decode  # type: ignore[method-assign]
        pack(folder)

    process = multiprocessing.get_context("fork").Process(target=killed)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    kept = checksum(folder, 2)  # on another number of ranks
    decoded.clear()
    assert checksum(folder) == kept
    assert decoded == [0, 1, 2, 3, 4, 5]  # nothing is left of a pack that has ended


def test_changed_sources_and_damage_are_decoded_again(
    folder: Path, decoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(folder, 5, monkeypatch)
    save(folder / "20.png", picture(999, size=(9, 12)))  # chunk 1
    os.utime(folder / "20.png", ns=(1, 1))
    blobs = folder / ".out.h5.partial" / "chunks.bin"
    data = bytearray(blobs.read_bytes())
    data[-1] ^= 1  # chunk 4
    blobs.write_bytes(data)
    with open(folder / ".out.h5.partial" / "journal.jsonl", "a") as journal:
        journal.write('{"index": 5, "stamp": "torn')
    decoded.clear()
    resumed = checksum(folder)
    assert decoded == [1, 4, 5]
    with PackedFile(folder / "out.h5") as packed:
        assert np.array_equal(packed.read("image", np.array([20]))[0, :, :, 0], picture(999, size=(9, 12)))
    assert checksum(folder) == resumed


def test_other_options_start_anew(
    folder: Path, decoded: list[int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupted(folder, 5, monkeypatch)
    capsys.readouterr()
    decoded.clear()
    pack(folder, image_size=8)
    assert "image_size was None, is 8: starting anew" in capsys.readouterr().err
    assert decoded == [0, 1, 2, 3, 4, 5]


def test_a_mistake_late_in_the_table_keeps_what_is_decoded(folder: Path, decoded: list[int]) -> None:
    (folder / "80.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"line 82: .*no bytes"):
        pack(folder)
    decoded.clear()
    assert pack(folder, skip_bad=True).skipped == {"unreadable picture": 1}
    assert decoded == []


def test_two_packs_of_one_file_at_once_are_refused(folder: Path) -> None:
    first = spool.Spool(folder / "out.h5")
    first.open({}, 1)
    with pytest.raises(ValueError, match=r"another process is packing to .*out.h5: wait for it"):
        pack(folder)
    assert first.folder.exists()
    first.close(done=True)


# -------------------------------------------------------------------------------------------------------- progress
def test_the_pace_counts_what_was_decoded_now(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("fedhpc.data.packers.progress.time.monotonic", lambda: now[0])
    monkeypatch.setattr("fedhpc.data.packers.progress.sys.stderr", io.StringIO())
    with Bar(1000, "pictures") as bar:
        bar.advance(500, counts=False)
        assert bar.pace() == ""
        now[0] += 10
        bar.advance(100)
        assert bar.pace() == "10 images/s, 0:00:40 left"
