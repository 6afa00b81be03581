"""Who takes part in a run: clients, what each holds, who trains and who is only evaluated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from fedhpc.client.client import ClientRecord, Rows
from fedhpc.comm.mesh import Mesh
from fedhpc.completion.parts import Ranks
from fedhpc.completion.prepare import Prepared, prepare
from fedhpc.config.algorithms import POOLED
from fedhpc.config.schema import FusionConfig, JointConfig, RunConfig
from fedhpc.data.hdf5 import PackedFile
from fedhpc.data.missing import FILE as MISSING
from fedhpc.data.missing import draw_lost, without_lost, write_missing
from fedhpc.data.modalities import Holdings, hold
from fedhpc.data.partition import ClientRows
from fedhpc.data.select import client_rows, unseen_clients
from fedhpc.interfaces import Algorithm, ClientId, DataSpec
from fedhpc.report.shown import UNSEEN

COMBINATION = "all rows, "  # begins the names of what is evaluated on the rows of all clients


@dataclass(frozen=True)
class Population:
    """The same on every rank.

    Attributes:
        dealt: rows by client, as they were dealt and after some were withheld.
        records: of everybody that trains or is evaluated.
        sites: names of those that are evaluated.
        evaluated: in the order of the tables.
        aside: evaluated, but not among those that train: unseen sites, and combinations of modalities.
        trainers: who may be in a cohort; the one that has all rows, where algorithms pool them.
        holdings: who holds which modality, where that differs.
        prepared: frozen features and what stands in for missing rows, where the model is a joint one.
    """

    dealt: Sequence[ClientRows]
    records: Mapping[ClientId, ClientRecord]
    sites: Mapping[ClientId, str]
    evaluated: tuple[ClientId, ...]
    aside: frozenset[ClientId]
    trainers: Sequence[ClientId]
    holdings: Holdings | None = None
    prepared: Prepared | None = None

    @property
    def owners(self) -> dict[ClientId, ClientRecord]:
        """The clients that rows belong to, without those set aside."""
        return {c: self.records[c] for c in self.evaluated if c not in self.aside}


def populate(
    config: RunConfig,
    packed: PackedFile,
    spec: DataSpec,
    device: torch.device,
    ranks: Ranks,
    run_dir: Path | None,
) -> Population:
    """Every rank calls this: ranks share the work of frozen features. run_dir: gets the list of missing rows.

    Raises:
        ValueError: data and config do not fit together.
    """
    whole = client_rows(packed, config)
    lost = draw_lost(config, packed, whole)
    dealt, holdings, prepared = whole, None, None
    if isinstance(config.model, JointConfig):
        prepared = prepare(config, packed, spec, whole, lost, device, ranks)
        dealt = prepared.clients
    elif lost:
        dealt = without_lost(config, whole, lost)
    if lost and run_dir is not None:
        write_missing(run_dir / MISSING, whole, lost, {} if prepared is None else prepared.completed, dealt)
    if isinstance(config.model, FusionConfig):
        holdings = hold(packed, config, dealt)
        dealt = holdings.clients

    modalities = frozenset(packed.modalities)
    records = {c.id: client_record(c, modalities) for c in dealt}
    if prepared is not None:
        has = prepared.reader.has
        records = {c.id: replace(records[c.id], modalities=held_modalities(c, has)) for c in dealt}
    unseen = unseen_clients(config, dealt)
    sites = {c.id: f"{c.site}{UNSEEN if c.id in unseen else ''}" for c in dealt}
    combinations: Sequence[ClientId] = ()
    if holdings is not None:
        for c in dealt:
            records[c.id] = replace(records[c.id], modalities=frozenset(holdings.of_client[c.id]))
            held = f"{c.site} ({'+'.join(holdings.of_client[c.id])})"
            sites[c.id] = f"{held}{UNSEEN if c.id in unseen else ''}"
        combinations = tuple(c.id for c in holdings.evaluated)
        records |= {c.id: client_record(c, frozenset(c.site.split("+"))) for c in holdings.evaluated}
        sites |= {c.id: f"{COMBINATION}{c.site}" for c in holdings.evaluated}
    evaluated, aside = tuple(records), unseen | frozenset(combinations)
    trainers: Sequence[ClientId] = tuple(c for c in evaluated if c not in aside)
    if isinstance(config.algorithm, POOLED):
        everybody = pooled([records[c] for c in trainers], len(records), config, modalities)
        records[everybody.id] = everybody
        trainers = (everybody.id,)
    return Population(dealt, records, sites, evaluated, aside, trainers, holdings, prepared)


def client_record(client: ClientRows, modalities: frozenset[str]) -> ClientRecord:
    rows = Rows(*(torch.from_numpy(r) for r in (client.train, client.val, client.test)))
    return ClientRecord(client.id, client.site, rows, modalities)


def held_modalities(client: ClientRows, has: Mapping[str, np.ndarray]) -> frozenset[str]:
    """Those that at least one of a client's training rows has, completed or not. has: bool [rows of the file] each."""
    return frozenset(m for m, rows in has.items() if rows[client.train].any())


def pooled(
    owners: Sequence[ClientRecord], client: ClientId, config: RunConfig, modalities: frozenset[str]
) -> ClientRecord:
    """One client with everybody's training rows; with validation rows where the algorithm blends by them."""
    fusion = isinstance(config.model, FusionConfig)
    train, val = (torch.cat([r.rows.of(split) for r in owners]).sort().values for split in ("train", "val"))
    none = torch.empty(0, dtype=torch.int64)
    held = frozenset(config.model.modalities) if isinstance(config.model, FusionConfig) else modalities
    return ClientRecord(client, "all", Rows(train, val if fusion else none, none), held)


def check_losses(algorithm: Algorithm, name: str, trainers: Sequence[ClientRecord]) -> None:
    """Raises ValueError when the algorithm measures every client's loss on a split where one has fewer than 2 rows."""
    split = algorithm.losses_on
    if split is None:
        return
    counts = [(record, len(record.rows.of(split))) for record in trainers]
    short = [f"client {record.id} ({record.site}) has {rows}" for record, rows in counts if rows < 2]
    if short:
        other = "" if split == "train" else "set loss_split: train in the algorithm's section, "
        sites = ", ".join(record.site for record, rows in counts if rows < 2)
        raise ValueError(
            f"algorithm.name: {name} measures the loss of every client on its {split} rows, 2 at least, but "
            f"{', '.join(short[:5])}{f' and {len(short) - 5} more' if len(short) > 5 else ''}; "
            f"{other}set a partition of fewer, larger clients, or - where clients are sites - "
            f"partition.leave_out: [{sites}]"
        )


def idle_ranks(mesh: Mesh, cohort: int) -> str | None:
    """A warning where more slots were started than clients train in a round (`cohort`): a client trains on one slot."""
    idle, fit = (mesh.num_slots - cohort) * mesh.shard, cohort * mesh.shard
    if idle <= 0:
        return None
    clients = "1 client trains" if cohort == 1 else f"{cohort} clients train"
    ranks = "1 rank" if fit == 1 else f"{fit} ranks"
    return f"{idle} of {mesh.world} ranks have nothing to train: {clients} in a round; {ranks} would train as fast"
