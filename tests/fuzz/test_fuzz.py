"""A short run of each fuzzer. `python -m tests.fuzz` is the long one."""

from __future__ import annotations

import ctypes
import random
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.fuzz.harness import fuzz
from tests.fuzz.targets import TARGETS

CASES = {"hdf5": 100, "checkpoint": 120, "config": 80}


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_damaged_files_end_in_declared_errors(name: str) -> None:
    outcome = fuzz(TARGETS[name], 0, cases=CASES[name])
    assert outcome.findings == []
    assert outcome.cases == CASES[name] and outcome.accepted < outcome.cases


@dataclass(frozen=True)
class Bad:
    """A reader that does what none may."""

    what: str
    name: str = "bad"
    declared: tuple[type[BaseException], ...] = (ValueError,)

    def prepare(self, folder: Path) -> None:
        pass

    def damage(self, seeds: Path, folder: Path, rng: random.Random) -> None:
        pass

    def exercise(self, folder: Path) -> None:
        if self.what == "declared":
            raise ValueError
        if self.what == "KeyError":
            raise KeyError("undeclared")
        if self.what == "MemoryError":
            bytearray(1 << 33)
        if self.what == "exit code -11":
            ctypes.string_at(0)
        while True:
            pass


@pytest.mark.parametrize(
    "what", ["declared", "KeyError", "MemoryError", "exit code -11", "more than 0.5 s of processor time"]
)
def test_the_harness_sees_crashes_hangs_and_huge_allocations(what: str) -> None:
    outcome = fuzz(Bad(what), 0, cases=2, cpu_s=0.5)
    assert [f.what.split(":")[0] for f in outcome.findings] == ([] if what == "declared" else [what] * 2)
    assert outcome.cases == 2
