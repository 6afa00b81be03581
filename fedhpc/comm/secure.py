"""Masked sums: what a rank hands to another says nothing but the sum over all clients (docs/security.md).

An exchange: (1) every client announces keys, and which blocks it puts something into; blocks of too few contributors
are refused here, before anything is sent. (2) Clients leave sealed shares of their secrets with their neighbours.
(3) Every rank masks the sum over its own clients and sends to each rank the slice that this one adds up. (4) Ranks tell
whose values are in; too few: refused. (5) Shares are revealed, each rank takes the masks off its slice of the sum, and
the slices are put together. An all_reduce too sums slices and sends them round, so masks cost no more bytes than the
keys and shares.

What two clients of one rank would add against each other cancels within the rank's sum, so it is never made; with one
rank nothing leaves, and only the rules are checked.

Where several ranks train a client together, those with the same shard of different slots make an exchange of their own:
each has keys, shares and streams of its own for its clients, and its shard is in the tag of all of them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter

import torch
from torch import Tensor

from fedhpc.comm.collectives import Collectives
from fedhpc.comm.keys import add_streams
from fedhpc.comm.ledger import Entry
from fedhpc.comm.member import (
    ANNOUNCEMENT_BYTES,
    SEALED_BYTES,
    Announcement,
    Member,
    ProtocolError,
    Roster,
    recover_pair_streams,
    recover_self_stream,
)
from fedhpc.comm.shamir import SHARE_BYTES, Random
from fedhpc.interfaces import ClientId

SLOT_BYTES = 4


@dataclass
class Contributors:
    """Who puts something into an exchange, as one rank knows it.

    Attributes:
        everyone: all that may, the same on every rank.
        parts: names of what is summed: blocks, or the value.
        mine: the clients of this rank -> for each part whether it has a weight above 0 there.
        lost: clients that are gone before their values are sent; a rank need know its own only.
    """

    everyone: Sequence[ClientId]
    parts: tuple[str, ...]
    mine: dict[ClientId, tuple[bool, ...]] = field(default_factory=dict)
    lost: frozenset[ClientId] = frozenset()


class Masks:
    """Makes masked exchanges, one after the other. The same calls on every rank.

    Args:
        min_contributors: a part that fewer clients put something into is refused.
        seed: draws the graphs of neighbours; public.
        random: makes secret bytes; another one only in tests.
    """

    def __init__(self, collectives: Collectives, min_contributors: int, seed: int, random: Random = os.urandom) -> None:
        self._collectives = collectives
        self.min_contributors = min_contributors
        self._seed = seed
        self._random = random
        self._round = "before the first round"
        self._stage = 0

    def begin(self, index: int) -> None:
        """A round begins: tags count from here."""
        self._round, self._stage = f"round {index}", 0

    def buckets(self, total: Tensor, who: Contributors, entry: Entry) -> Iterator[Tensor]:
        """Sum over slots of `total` [n], n a multiple of `Collectives.granule`; yields its buckets in order, each done.

        The entry of the ledger gets what the masks cost, and whose values were in.

        Raises:
            ProtocolError: too few contributors to a part, too few clients left to take the masks off, or messages that
                do not belong together.
        """
        mesh = self._collectives.mesh
        label = f"{self._round}, exchange {self._stage} ({entry.operation})"
        self._stage += 1
        # All shards have one graph, so that too few holders on one are too few on all, and none waits for another.
        graph = self._seed.to_bytes(8) + label.encode()
        tag = (label if mesh.shard == 1 else f"{label}, shard {mesh.shard_index} of {mesh.shard}").encode()
        exchange = _Exchange(self._collectives, self._random, tag, who, total.device, entry)
        parts = total.split(self._collectives.bucket_numel(total)) if total.numel() else ()
        start = perf_counter()
        exchange.announce(graph)
        exchange.refuse_few(self.min_contributors, exchange.roster.members)
        alone = mesh.num_slots == 1
        if not alone:
            exchange.deal()
        entry.mask_seconds += perf_counter() - start
        slices = [] if alone else [exchange.send(part, place) for place, part in _placed(parts)]
        start = perf_counter()
        exchange.call_roll()
        exchange.refuse_few(self.min_contributors, exchange.delivered)
        if not alone:
            exchange.reveal()
        else:
            exchange.check_thresholds()
        entry.mask_seconds += perf_counter() - start
        if alone:
            yield from parts
            return
        for (place, part), own in zip(_placed(parts), slices, strict=True):
            exchange.unmask(part, own, place)
            yield part


class _Exchange:
    """One exchange, on one rank."""

    def __init__(
        self,
        collectives: Collectives,
        random: Random,
        tag: bytes,
        who: Contributors,
        device: torch.device,
        entry: Entry,
    ) -> None:
        self._collectives = collectives
        self._tag = tag
        self._who = who
        self._device = device
        self._entry = entry
        self._slot = collectives.mesh.slot
        self._members = {client: Member(client, random) for client in who.mine}
        self._flags: dict[ClientId, bytes] = {}  # of each member, which parts it puts something into
        self._slots: dict[ClientId, int] = {}  # of each member, who hosts it
        self.roster: Roster
        self.delivered: frozenset[ClientId] = frozenset()
        self._masks: list[tuple[bytes, int]] = []  # what this rank adds
        self._cures: list[tuple[bytes, int]] = []  # what is to be taken off the sum: self-masks
        self._recovered: list[tuple[bytes, int]] = []  # and what others had added against lost clients

    def _post(self, rows: Mapping[int, bytes], num_rows: int, width: int) -> list[bytes]:
        """Everybody's rows; counted as cost of the masks."""
        self._entry.mask_bytes += num_rows * width
        return self._collectives.all_bytes(rows, num_rows, width, self._device)

    def announce(self, graph: bytes) -> None:
        """Keys, host and parts of every client that is there. graph: what the graph of neighbours is drawn from."""
        who = self._who
        rows = {}
        for client, member in self._members.items():
            head = member.announce(self._tag) + (self._slot + 1).to_bytes(SLOT_BYTES)
            rows[who.everyone.index(client)] = head + bytes(who.mine[client])
        found = self._post(rows, len(who.everyone), ANNOUNCEMENT_BYTES + SLOT_BYTES + len(who.parts))
        members = {}
        for client, row in zip(who.everyone, found, strict=True):
            slot = int.from_bytes(row[ANNOUNCEMENT_BYTES : ANNOUNCEMENT_BYTES + SLOT_BYTES])
            if slot:
                members[client] = Announcement.parse(row)
                self._slots[client] = slot - 1
                self._flags[client] = row[ANNOUNCEMENT_BYTES + SLOT_BYTES :]
        # Of two ranks each knows what the other's clients come to anyhow: the sum less its own.
        hosts = self._slots if self._collectives.mesh.num_slots > 2 else None
        self.roster = Roster.of(self._tag, members, graph, hosts)

    def refuse_few(self, least: int, present: Mapping[ClientId, Announcement] | frozenset[ClientId]) -> None:
        """Raises ProtocolError when a part has contributors among those present, but fewer than `least`."""
        for place, part in enumerate(self._who.parts):
            count = sum(self._flags[client][place] for client in present)
            if 0 < count < least:
                raise ProtocolError(
                    f"{self._tag.decode()}: {part} has {count} contributors, but aggregation.min_contributors = "
                    f"{least}: a sum over so few tells each much about the others. Set a larger cohort, keep the block "
                    "local (aggregation.local_blocks), or give its modalities to more clients; modalities."
                    f"min_contributors: {least} merges combinations of fewer"
                )

    def deal(self) -> None:
        """Shares for all neighbours: through the bulletin for those of other ranks."""
        roster = self.roster
        place = {client: index for index, client in enumerate(roster.members)}
        reach = max((len(n) for n in roster.neighbours.values()), default=0)
        rows = {}

        def row(sender: ClientId, holder: ClientId) -> int:
            return place[sender] * reach + roster.neighbours[sender].index(holder)

        handed: list[tuple[ClientId, ClientId, bytes]] = []
        for client, member in self._members.items():
            for holder, bundle in member.deal(roster).items():
                if holder in self._members:
                    handed.append((client, holder, bundle))
                else:
                    rows[row(client, holder)] = member.seal(holder, bundle)
        sealed = self._post(rows, len(place) * reach, SEALED_BYTES)
        for client, holder, bundle in handed:
            self._members[holder].accept(client, bundle)
        for client, member in self._members.items():
            elsewhere = [c for c in roster.neighbours[client] if c not in self._members]
            for sender in elsewhere:
                member.open(sender, sealed[row(sender, client)])
            if client not in self._who.lost:
                self._masks += member.streams(elsewhere)

    def send(self, part: Tensor, place: int) -> Tensor:
        """Mask this rank's sum, words [place, place + n) of the exchange; the sum over ranks of the own slice of it."""
        start = perf_counter()
        add_streams(part, place, self._masks)
        self._entry.mask_seconds += perf_counter() - start
        return self._collectives.sum_slices(part)

    def call_roll(self) -> None:
        """Whose values are in."""
        everyone = self._who.everyone
        mine = {everyone.index(client): b"\1" for client in self._members if client not in self._who.lost}
        found = self._post(mine, len(everyone), 1)
        self.delivered = frozenset(client for client, row in zip(everyone, found, strict=True) if row == b"\1")
        self._entry.by = tuple(sorted(self.delivered))
        self._entry.lost = tuple(sorted(set(self.roster.members) - self.delivered))

    def check_thresholds(self) -> None:
        """Raises ProtocolError when a secret could not be put together again."""
        for owner in self.roster.members:
            self.roster.speakers(owner, self.delivered)

    def reveal(self) -> None:
        """Put together the self-masks of those whose values are in, and the keys of those that are lost."""
        roster, delivered = self.roster, self.delivered
        owners = list(roster.members)
        speakers = {owner: roster.speakers(owner, delivered) for owner in owners}
        reach = max((len(s) for s in speakers.values()), default=0)
        asked: dict[ClientId, dict[ClientId, int]] = {}  # of each client of this rank, the owners, and the share's row
        for place, owner in enumerate(owners):
            for order, client in enumerate(speakers[owner]):
                if client in self._members:
                    asked.setdefault(client, {})[owner] = place * reach + order
        rows = {}
        for client, wanted in asked.items():
            for owner, share in self._members[client].reveal(delivered, list(wanted)).items():
                rows[wanted[owner]] = share
        found = self._post(rows, len(owners) * reach, SHARE_BYTES)
        for place, owner in enumerate(owners):
            shares = {speaker: found[place * reach + i] for i, speaker in enumerate(speakers[owner])}
            if owner in delivered:
                self._cures.append(recover_self_stream(roster, owner, shares))
            else:
                apart = [c for c in roster.neighbours[owner] if c in delivered and self._slots[c] != self._slots[owner]]
                start = perf_counter()
                self._recovered += recover_pair_streams(roster, owner, shares, apart)
                self._entry.recovery_seconds += perf_counter() - start

    def unmask(self, part: Tensor, own: Tensor, place: int) -> None:
        """Take the masks off the own slice; `part` becomes the sum."""
        start = perf_counter()
        first = place + self._slot * own.numel()
        add_streams(own, first, self._cures)
        if self._recovered:
            begun = perf_counter()
            add_streams(own, first, self._recovered)
            self._entry.recovery_seconds += perf_counter() - begun
        self._entry.mask_seconds += perf_counter() - start
        self._collectives.join_slices(part, own)


def _placed(parts: Sequence[Tensor]) -> Iterator[tuple[int, Tensor]]:
    """Each bucket with the words before it."""
    place = 0
    for part in parts:
        yield place, part
        place += part.numel()
