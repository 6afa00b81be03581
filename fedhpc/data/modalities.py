"""Which client holds which modalities, and what follows: its rows, the heads of the model, blocks that stay at home."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from fedhpc.config.algorithms import POOLED, LocalConfig
from fedhpc.config.blending import DgbPcwConfig, HgbConfig
from fedhpc.config.fusion import FusionConfig, ModalitiesConfig
from fedhpc.config.schema import RunConfig
from fedhpc.data.hdf5 import PackedFile
from fedhpc.data.partition import ClientRows
from fedhpc.data.presence import present_rows
from fedhpc.interfaces import BlockName, ClientId, FusionSpec

logger = logging.getLogger(__name__)

Combination = tuple[str, ...]


@dataclass(frozen=True)
class Holdings:
    """Who holds what, the same on every rank.

    Attributes:
        clients: rows that have all the modalities of their client.
        of_client: modalities, in the model's order.
        spec: heads and probes of the model; without `columns`.
        private: blocks that too few clients own to be summed.
        evaluated: each held combination, with all rows of the file's clients that have its modalities (no training
            rows): ids go on after the clients'.
    """

    clients: list[ClientRows]
    of_client: Mapping[ClientId, Combination]
    spec: FusionSpec
    private: tuple[BlockName, ...]
    evaluated: list[ClientRows]


def hold(packed: PackedFile, config: RunConfig, dealt: Sequence[ClientRows]) -> Holdings:
    """Gives modalities to the clients of a `model.kind: fusion`, and to each only rows that have them all.

    Raises ValueError where a client has no training row left, or a modality is held by nobody.
    """
    model = config.model
    assert isinstance(model, FusionConfig)
    present = {m: present_rows(packed, model, m) for m in model.modalities}
    of_client = _given(config.modalities, model.modalities, dealt, present)
    clients = [_with_all(client, of_client[client.id], present) for client in dealt]
    for client, before in zip(clients, dealt, strict=True):
        if not len(client.train):
            raise ValueError(
                f"client {client.id} ({client.site}) is to hold {', '.join(of_client[client.id])}, but none of its "
                f"{len(before.train)} training rows has that; set modalities.preset: natural, or of_client"
            )
        if client.num_rows < before.num_rows:
            logger.warning(
                "client %d (%s) holds %s: %d of %d rows lack some of it and are left out",
                client.id, client.site, ", ".join(of_client[client.id]), before.num_rows - client.num_rows,
                before.num_rows,
            )  # fmt: skip
    if idle := [m for m in model.modalities if not any(m in held for held in of_client.values())]:
        raise ValueError(
            f"nobody holds {', '.join(idle)}, which the model reads; remove it from the model, or set "
            "modalities.preset: upper_bound or modalities.of_client"
        )
    spec, private = _heads(config, model, of_client)
    combinations = _ordered(set(of_client.values()))
    evaluated = [
        _everybody(len(dealt) + place, combination, dealt, present)
        for place, combination in enumerate(combinations)
        if not _stays(combination, spec, private)
    ]
    if isinstance(config.algorithm, LocalConfig):  # nobody's model stands for a combination
        evaluated = []
    return Holdings(clients, of_client, spec, private, evaluated)


# ------------------------------------------------------------------------------------------------------ who holds what
def _given(
    config: ModalitiesConfig, names: Combination, dealt: Sequence[ClientRows], present: Mapping[str, np.ndarray]
) -> dict[ClientId, Combination]:
    if config.of_client is not None:
        if len(config.of_client) != len(dealt):
            raise ValueError(
                f"modalities.of_client has {len(config.of_client)} entries, but there are {len(dealt)} clients; give "
                "one entry a client"
            )
        return {
            client.id: tuple(m for m in names if m in held)
            for client, held in zip(dealt, config.of_client, strict=True)
        }
    if config.preset == "natural":
        return {client.id: _natural(client, names, present) for client in dealt}
    return {client.id: preset_of(config.preset, place, names) for place, client in enumerate(dealt)}


def _natural(client: ClientRows, names: Combination, present: Mapping[str, np.ndarray]) -> Combination:
    rows = client.train if len(client.train) else np.concatenate([client.val, client.test])
    held = tuple(m for m in names if present[m][rows].mean() >= 0.5)
    if not held:
        raise ValueError(
            f"client {client.id} ({client.site}): none of {', '.join(names)} is there in half of its training rows; "
            "set modalities.of_client, or another partition"
        )
    return held


def preset_of(preset: str, place: int, names: Combination) -> Combination:
    """Modalities of the client at a place. Clients come in groups of three (cohorts); what is left out goes round from
    group to group. For three modalities a, b, c tri_modal is abc, ab, a | abc, bc, b | abc, ac, c (C.4)."""
    group, member = divmod(place, 3)
    count = len(names)

    def single(turn: int) -> Combination:
        return (names[turn % count],)

    def all_but_one(turn: int) -> Combination:
        return tuple(m for m in names if m != names[(turn - 1) % count]) if count > 1 else names

    if preset == "upper_bound":
        return names
    if preset == "tri_modal":
        return (names, all_but_one(group), single(group))[member]
    if preset == "bi_modal":
        return (names[:2], names[:1], names[1:2])[member]
    kinds = {
        "uni_dominant": (single(group), single(group + 1), names if group % 3 == 0 else all_but_one(group)),
        "bi_dominant": (all_but_one(group), all_but_one(group + 1), names if group % 3 == 0 else single(group)),
        "tri_dominant": (names, names, all_but_one(group) if group % 2 == 0 else single(group)),
    }
    return kinds[preset][member]


def _with_all(client: ClientRows, held: Combination, present: Mapping[str, np.ndarray]) -> ClientRows:
    def kept(rows: np.ndarray) -> np.ndarray:
        return rows[np.all([present[m][rows] for m in held], axis=0)]

    return replace(client, train=kept(client.train), val=kept(client.val), test=kept(client.test))


def _everybody(
    id: ClientId, combination: Combination, dealt: Sequence[ClientRows], present: Mapping[str, np.ndarray]
) -> ClientRows:
    """Held-out rows of all clients: what a combination is worth on the same rows as the others."""
    none = np.empty(0, np.int64)
    val, test = (np.sort(np.concatenate([client.rows(split) for client in dealt])) for split in ("val", "test"))
    return _with_all(ClientRows(id, "+".join(combination), none, val, test), combination, present)


# ------------------------------------------------------------------------------------------------- heads of the model
def _heads(
    config: RunConfig, model: FusionConfig, of_client: Mapping[ClientId, Combination]
) -> tuple[FusionSpec, tuple[BlockName, ...]]:
    """What the model needs for these combinations, and blocks that are not exchanged."""
    if model.missing == "zeros":
        return FusionSpec(heads=(model.modalities,)), ()
    count = Counter(of_client.values())
    head_of: dict[Combination, Combination] = {}
    algorithm, least = config.algorithm, config.fewest_owners
    if least is not None and not isinstance(algorithm, (LocalConfig, *POOLED)):
        head_of = merged(count, least) if config.modalities.small == "merge" else {}
    used = Counter(head_of.get(c, c) for c in of_client.values())
    heads = set(used)
    if isinstance(algorithm, POOLED):
        heads |= {(m,) for m in model.modalities} | {model.modalities}
    single = isinstance(algorithm, HgbConfig) or (isinstance(algorithm, DgbPcwConfig) and algorithm.probes == "heads")
    if single:
        heads |= {(m,) for m in model.modalities}
    beside: Literal["none", "single", "all"] = "all" if isinstance(algorithm, POOLED) else "none"
    if single:
        beside = "single"
    probes = _probes(config, of_client) if isinstance(algorithm, DgbPcwConfig) else ()
    spec = FusionSpec(heads=tuple(_ordered(heads)), head_of=head_of, probes=probes, beside=beside)
    private = _private(spec, of_client, least) if least is not None and not isinstance(algorithm, LocalConfig) else ()
    if isinstance(algorithm, POOLED):
        private = ()
    for c, n in sorted(count.items()):
        if c in head_of:
            logger.warning(
                "%s is held by %d clients, modalities.min_contributors is %d: they use the classifier of %s, with "
                "zeros for what they lack", "+".join(c), n, least, "+".join(head_of[c]),
            )  # fmt: skip
    if private:
        logger.warning(
            "%s: fewer than modalities.min_contributors = %d clients own them; they stay at home, and their losses are "
            "not summed", ", ".join(private), least,
        )  # fmt: skip
    return spec, private


def merged(count: Mapping[Combination, int], least: int) -> dict[Combination, Combination]:
    """Combinations of fewer than `least` clients -> the larger combination that they join: the smallest one, of equal
    ones the most frequent. Small combinations first, as those that join count. Where none is larger: not listed."""
    number = dict(count)
    moved: dict[Combination, Combination] = {}
    for c in sorted(count, key=lambda c: (len(c), c)):
        larger = [d for d in count if set(c) < set(d)]
        if number[c] < least and larger:
            target = min(larger, key=lambda d: (len(d), -number[d], d))
            number[target] += number[c]
            moved[c] = target
    for c in moved:
        while moved[c] in moved:
            moved[c] = moved[moved[c]]
    return moved


def _probes(config: RunConfig, of_client: Mapping[ClientId, Combination]) -> Combination:
    assert isinstance(config.model, FusionConfig) and isinstance(config.algorithm, DgbPcwConfig)
    algorithm = config.algorithm
    if algorithm.probes in ("never", "heads") or algorithm.rates == "static":
        return ()
    shared = {m for held in of_client.values() if len(held) > 1 for m in held}
    alone = {held[0] for held in of_client.values() if len(held) == 1}
    wanted = shared if algorithm.probes == "always" else shared - alone
    return tuple(m for m in config.model.modalities if m in wanted)


def _private(spec: FusionSpec, of_client: Mapping[ClientId, Combination], least: int) -> tuple[BlockName, ...]:
    owners: Counter[BlockName] = Counter()
    for held in of_client.values():
        own = spec.head_of.get(held, held)
        heads = [own, *(h for h in spec.heads if h != own and spec.beside == "single" and len(h) == 1 and h[0] in held)]
        owners.update(f"head/{'+'.join(h)}" for h in heads)
        owners.update(f"encoder/{m}" for m in held)
        owners.update(f"probe/{m}" for m in held if m in spec.probes)
    return tuple(sorted(block for block, n in owners.items() if n < least))


def _stays(combination: Combination, spec: FusionSpec, private: Sequence[BlockName]) -> bool:
    """Some block that a combination needs is not exchanged."""
    head = "+".join(spec.head_of.get(combination, combination))
    return any(block in private for block in (f"head/{head}", *(f"encoder/{m}" for m in combination)))


def _ordered(combinations: set[Combination]) -> list[Combination]:
    return sorted(combinations, key=lambda c: (len(c), c))
