"""What the doctor says of what is amiss, and that a healthy machine passes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import pytest
from packaging.requirements import Requirement
from rich.console import Console

from fedhpc.doctor import machine, storage
from fedhpc.doctor.finding import Finding, table, verdict
from fedhpc.doctor.ranks import Report, agreement, clocks, sight, speed


def report(rank: int, **changes: Any) -> Report:
    given = {
        "node": f"n{rank // 2}",
        "software": 1,
        "data": True,
        "clock": 0.0,
        "multiply": 1.0,
        "copy": 8e9,
        **changes,
    }
    return Report(rank=rank, **given)


def test_the_slow_rank_is_named() -> None:
    assert speed([report(rank) for rank in range(4)]).status == "PASS"
    found = speed([report(0), report(1), report(2, multiply=3.0), report(3)])
    assert found.status == "WARN"
    assert "rank 2 on n1 (3.0 times in arithmetic)" in found.found
    assert "rank 0" not in found.found
    found = speed([report(0), report(1, copy=2e9)])
    assert "rank 1 on n0 (4.0 times in memory)" in found.found


def test_clocks_versions_and_sight() -> None:
    reports = [report(0), report(1), report(2, clock=-2.0), report(3, clock=1.0)]
    found = clocks(reports, 0.01)
    assert (found.status, found.found) == ("WARN", "rank 3 on n1 is 3.00 s ahead of rank 2 on n1")
    assert clocks(reports, 5.0).status == "PASS"  # no more than the measurement can tell
    assert agreement(reports).status == "PASS"
    assert "rank 1 on n0 has other versions" in agreement([report(0), report(1, software=2)]).found
    assert sight(reports, Path("x")).status == "PASS"
    assert "rank 1 on n0 cannot see x" in sight([report(0), report(1, data=False)], Path("x")).found


def test_packages_are_held_against_what_is_needed() -> None:
    assert unmet("numpy>=1.0") == ""
    assert unmet("numpy>=99") == f"numpy is {machine.importlib.metadata.version('numpy')}, >=99 is needed"
    assert unmet("no-such-package-anywhere") == "no-such-package-anywhere is missing"
    assert all(one.status == "PASS" for one in machine.packages())


def unmet(text: str) -> str:
    return machine.unmet(Requirement(text))


def test_slurm_that_is_missing_or_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "no sinfo here" in machine.slurm().found
    sinfo = tmp_path / "sinfo"
    sinfo.write_text('#!/bin/sh\n[ "$1" = --version ] && echo slurm 22.05 && exit 0\nexit 1\n')
    sinfo.chmod(0o755)
    silent = machine.slurm()
    assert (silent.status, "no controller answers" in silent.found) == ("WARN", True)
    sinfo.write_text('#!/bin/sh\n[ "$1" = --version ] && echo slurm 22.05 || echo "debug*\ngpu"\n')
    assert "slurm 22.05, partitions debug*, gpu" in machine.slurm().found


def test_storage(tmp_path: Path) -> None:
    assert [one.status for one in storage.examine(tmp_path / "nowhere.h5")] == ["FAIL"]
    assert storage.locking(tmp_path).status == "PASS"
    assert not list(tmp_path.iterdir())
    with h5py.File(tmp_path / "foreign.h5", "w") as file:
        file["x"] = 1
    last = list(storage.examine(tmp_path / "foreign.h5"))[-1]
    assert (last.status, "not a packed dataset" in last.found) == ("FAIL", True)


def test_a_file_system_without_locks_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = h5py.File

    def file(path: Path, mode: str, locking: bool) -> Any:
        if locking:
            raise OSError("unable to lock file, errno = 37")
        return opened(path, mode, locking=locking)

    monkeypatch.setattr(storage.h5py, "File", file)
    found = storage.locking(tmp_path)
    assert found.status == "WARN"
    assert "HDF5_USE_FILE_LOCKING" in found.cure


def test_the_longest_mount_names_the_file_system(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(f"/dev/a / ext4 rw 0 0\nhost:/x {tmp_path} nfs4 rw 0 0\nhost:/y {tmp_path}x lustre rw 0 0\n")
    assert storage.file_system(tmp_path, mounts) == "nfs4"
    assert storage.file_system(Path("/"), mounts) == "ext4"


def test_the_table_and_the_verdict() -> None:
    good, amiss, bad = Finding("PASS", "a", "b"), Finding("WARN", "c", "d", "e"), Finding("FAIL", "f", "g", "the cure")
    assert verdict([good, amiss])
    assert not verdict([good, bad])
    console = Console(width=100, record=True, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table([good, amiss, bad], "here"))
    assert "the cure" in console.export_text()
    with pytest.raises(AssertionError):
        Finding("FAIL", "a", "b")
