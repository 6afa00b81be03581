"""What the packers of published archives share: files of an official layout, limits, and splits that keep."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from fedhpc.data.packers.source import BadRow, Row, Skipped
from fedhpc.data.packers.split import check_fractions

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options that every packer of a published archive has."""

    image_size: int | None  # None: kept
    limit: int | None = None
    skip_bad: bool = False
    overwrite: bool = False
    random_seed: int = 0
    command: str = ""

    def plan(self) -> dict[str, Any]:
        """The fields of TablePlan that they set."""
        return {
            "image_size": self.image_size, "skip_bad": self.skip_bad, "overwrite": self.overwrite,
            "command": self.command,
        }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TextOptions:
    """How text becomes tokens; the fields are those of TablePlan."""

    vocab_size: int
    max_tokens: int
    tokenizer: str | None = None

    def plan(self, column: str) -> dict[str, Any]:
        return {
            "text_column": column, "vocab_size": self.vocab_size, "max_tokens": self.max_tokens,
            "tokenizer": self.tokenizer,
        }  # fmt: skip


def find_file(folder: Path, names: Sequence[str], cure: str) -> Path:
    """The first of `names` (patterns allowed) below `folder`. Raises FileNotFoundError that ends with `cure`."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder: {cure}")
    for name in names:
        found = sorted(folder.glob(name))
        if len(found) > 1:
            raise ValueError(f"{folder} holds {', '.join(path.name for path in found)}: keep the one that is meant")
        if found:
            return found[0]
    raise FileNotFoundError(f"{folder} holds no {' or '.join(names)}: {cure}")


def thin(rows: Sequence[T], limit: int | None) -> list[T]:
    """At most `limit` rows, spread evenly over the table, so that every part of it is there."""
    if limit is not None and limit < 1:
        raise ValueError(f"--limit is {limit}: set 1 or more, or leave it out")
    if limit is None or limit >= len(rows):
        return list(rows)
    return [rows[i * len(rows) // limit] for i in range(limit)]


def converted(rows: Iterable[T], convert: Callable[[T], Row], skipped: Skipped) -> list[Row]:
    """`convert` of every row; those for which it raises BadRow are dropped and counted, or end the packing."""
    out: list[Row] = []
    for row in rows:
        try:
            out.append(convert(row))
        except BadRow as error:
            skipped.take(error)
    return out


def with_values(row: Row, values: Mapping[str, str]) -> Row:
    """The row with further cells, or other values of those it has."""
    return replace(row, values={**row.values, **values})


def hash_split(patient: str, fractions: tuple[float, float, float], random_seed: int) -> str:
    """train, val or test, drawn by a hash of the patient alone (SHA-256).

    A patient's split depends on no other row: it stays with --limit, --skip-bad and a later release of the dataset.
    The fractions are met on average.
    """
    check_fractions(fractions)
    digest = hashlib.sha256(f"fedhpc split {random_seed} {patient}".encode()).digest()
    drawn = int.from_bytes(digest[:8], "big") / 2**64
    return "train" if drawn < fractions[0] else "val" if drawn < fractions[0] + fractions[1] else "test"


def carve_val(split: str, patient: str, fraction: float, random_seed: int) -> str:
    """`split`, but val for a `fraction` of the training patients: for archives that publish train and test only."""
    if not 0 <= fraction < 1:
        raise ValueError(f"--val-fraction is {fraction}: set 0 (no validation split) or more, and less than 1")
    return hash_split(patient, (1 - fraction, fraction, 0.0), random_seed) if split == "train" else split


def code_of(cell: str, names: Mapping[str, str]) -> str | None:
    """Name of a coded cell, where 1, 1.0 and " 1 " are the same and case does not count; None for an unknown code."""
    text = cell.strip().lower()
    if text.endswith(".0"):
        text = text[:-2]
    return names.get(text)
