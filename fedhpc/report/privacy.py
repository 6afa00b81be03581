"""What left each client in a finished run, on one page, from config and ledger: `fedhpc report RUN --privacy`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from rich.table import Table

from fedhpc.report.noise import noise_sentences

UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
FEW = 12  # clients that are listed by number


@dataclass
class Kind:
    """Exchanges of one operation over one thing, all rounds together."""

    times: int = 0
    num_bytes: int = 0
    contributors: list[int] = field(default_factory=list)
    clients: set[int] = field(default_factory=set)
    masked: bool = True

    def add(self, entry: Mapping[str, Any]) -> None:
        self.times += 1
        self.num_bytes += entry["num_bytes"] + entry["mask_bytes"]
        self.contributors.append(len(entry["by"]))
        self.clients |= set(entry["by"])
        self.masked &= entry["masked"]


@dataclass
class Statement:
    """What the ledger of a run comes to. Bytes are what one rank handed to collectives."""

    name: str
    aggregation: Mapping[str, Any]
    ranks: int
    rounds: int
    sums: dict[tuple[str, str], Kind] = field(default_factory=dict)  # (operation, what)
    reveals: dict[tuple[str, str], Kind] = field(default_factory=dict)  # (operation, name)
    losses: int = 0  # clients that were lost in an exchange, counted every time
    mask_bytes: int = 0
    mask_seconds: float = 0.0
    recovery_seconds: float = 0.0
    shard: int = 1  # ranks that host a client together
    privacy: Mapping[str, Any] | None = None  # differential privacy, as results.json tells it

    @property
    def slots(self) -> int:
        return self.ranks // self.shard

    @property
    def secure(self) -> bool:
        return bool(self.aggregation.get("secure"))


def read_statement(folder: Path) -> Statement:
    """Of a finished run.

    Raises:
        ValueError: the folder holds no finished run, or one of an fedhpc whose ledger told less.
    """
    files = [folder / name for name in ("results.json", "config.yaml", "ledger.jsonl")]
    if not all(file.is_file() for file in files):
        raise ValueError(f"{folder} holds no finished run (results.json, config.yaml, ledger.jsonl); run it to its end")
    results, config = json.loads(files[0].read_text()), yaml.safe_load(files[1].read_text())
    statement = Statement(results["name"], config["aggregation"], results["ranks"], results["rounds"])
    statement.shard = config.get("mesh", {}).get("shard", 1)
    statement.privacy = results.get("privacy")
    for line in files[2].read_text().splitlines():
        for entry in json.loads(line)["entries"]:
            if "masked" not in entry:
                raise ValueError(f"{folder} is of an earlier fedhpc, whose ledger did not tell whose values went in")
            _add(statement, entry)
    return statement


def _add(statement: Statement, entry: Mapping[str, Any]) -> None:
    statement.losses += len(entry["lost"])
    statement.mask_bytes += entry["mask_bytes"]
    statement.mask_seconds += entry["mask_seconds"]
    statement.recovery_seconds += entry["recovery_seconds"]
    operation = entry["operation"]
    for name in entry["revealed"]:
        statement.reveals.setdefault((operation, name), Kind()).add(entry)
    if not entry["revealed"] and operation != "placement":
        statement.sums.setdefault((operation, entry["what"]), Kind()).add(entry)


def tables(statement: Statement) -> Iterator[Table]:
    """What was summed, and what was revealed."""
    summed = Table(title=f"{statement.name}: summed over clients ({statement.rounds} rounds, {statement.ranks} ranks)")
    for name in ("exchange", "of", "times", "contributors", "bytes a rank", "masked"):
        summed.add_column(name, justify="left" if name in ("exchange", "of") else "right")
    for (operation, what), kind in statement.sums.items():
        fewest, most = min(kind.contributors), max(kind.contributors)
        count = str(most) if fewest == most else f"{fewest} to {most}"
        summed.add_row(operation, _short(what), str(kind.times), count, size(kind.num_bytes), _yes(kind.masked))
    yield summed
    shown = Table(title="revealed: each client's own value, to all ranks")
    for name in ("value", "by", "of clients", "times", "bytes a rank"):
        shown.add_column(name, justify="right" if name in ("times", "bytes a rank") else "left")
    for (operation, name), kind in statement.reveals.items():
        shown.add_row(name, operation, _clients(kind.clients), str(kind.times), size(kind.num_bytes))
    if statement.reveals:
        yield shown


def sentences(statement: Statement) -> Iterator[str]:
    """What the tables mean, and what they cannot show."""
    how = statement.aggregation
    host, sent = ("rank", "nothing") if statement.shard == 1 else (f"slot of {statement.shard} ranks", "no sum")
    if statement.secure:
        yield (
            f"Sums were masked in the ring of 2^{how['ring_bits']}; one with fewer than {how['min_contributors']} "
            f"contributors to a block would have been refused. Masks cost {size(statement.mask_bytes)} and "
            f"{statement.mask_seconds:.2f} s on rank 0."
        )
        if statement.slots == 1:
            yield f"One {host} hosted all clients, so {sent} was sent, and nothing had to be masked."
    elif statement.slots == 1:
        yield f"One {host} hosted all clients, so {sent} was sent. Sums were not masked (aggregation.secure: false)."
    else:
        yield (
            "Sums were NOT masked (aggregation.secure: false): other ranks could see the sum over the clients of one "
            f"{host}, which is a client's own contribution where it hosts one."
        )
    if statement.shard > 1:
        yield (
            "The ranks of a slot train a client together: weights, gradients and embeddings went between them, and are "
            "not in these tables."
        )
    if statement.losses:
        recovered = f"; taking off the masks against them took {statement.recovery_seconds:.3f} s on rank 0"
        yield (
            f"Clients were lost {statement.losses} times in an exchange, and their values are in no sum after that"
            f"{recovered if statement.secure else ''}."
        )
    if statement.ranks > 1 and any(name == "update" for _, name in statement.reveals):
        why = "as it is (aggregation.robust)" if how.get("robust") else "rounded (aggregation.compression)"
        yield (
            f"Each client's own update reached other ranks, {why}: some of its coordinates each, or all of them. Ranks "
            "that work together hold whole updates."
        )
    if not statement.reveals:
        yield "No client's own value was revealed."
    yield from noise_sentences(statement.privacy)
    yield "Known to all besides: who took part in which exchange, which blocks each client contributes to, every sum."
    rows = "no differential privacy was applied" if statement.privacy is None else "but for what epsilon bounds"
    yield (
        "Not hidden by masks: a rank's clients from that rank; what the sums and the final model themselves tell of "
        f"the training rows ({rows}); what ranks that work together take off a sum. See docs/security.md."
    )


def size(num_bytes: float) -> str:
    """In binary units."""
    unit = 0
    while num_bytes >= 1024 and unit + 1 < len(UNITS):
        num_bytes /= 1024
        unit += 1
    return f"{num_bytes:.0f} {UNITS[unit]}" if unit == 0 or num_bytes >= 10 else f"{num_bytes:.1f} {UNITS[unit]}"


def _clients(clients: set[int]) -> str:
    found: Sequence[int] = sorted(clients)
    return ", ".join(map(str, found)) if len(found) <= FEW else f"{len(found)} clients"


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."


def _yes(value: bool) -> str:
    return "yes" if value else "no"
