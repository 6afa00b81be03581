"""One line of the doctor's table."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from rich.table import Table
from rich.text import Text

Status = Literal["PASS", "WARN", "FAIL"]
_STYLE = {"PASS": "green", "WARN": "yellow", "FAIL": "bold red"}


@dataclass(frozen=True)
class Finding:
    """What was looked at, what was found, and the cure where something is amiss."""

    status: Status
    what: str
    found: str
    cure: str = ""

    def __post_init__(self) -> None:
        assert bool(self.cure) == (self.status != "PASS"), f"{self.what}: a cure for what is amiss, none for the rest"


def verdict(findings: Iterable[Finding]) -> bool:
    """Nothing failed."""
    return all(finding.status != "FAIL" for finding in findings)


def table(findings: Iterable[Finding], title: str) -> Table:
    view = Table(title=title, show_lines=False)
    for name in ("", "what", "found", "cure"):
        view.add_column(name, overflow="fold")
    for one in findings:
        view.add_row(Text(one.status, style=_STYLE[one.status]), Text(one.what), Text(one.found), Text(one.cure))
    return view
