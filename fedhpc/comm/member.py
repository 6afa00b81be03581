"""One client's part in one masked exchange: keys, shares, mask streams, what it reveals at the end.

The protocol is SecAgg+ (Bonawitz et al. 2017, CCS; Bell et al. 2020, CCS), with the bulletin that all ranks read in the
place of a server. What client u sends of its values x_u is

    y_u = x_u + PRG(b_u) + sum_{v in N(u), v > u} PRG(s_uv) - sum_{v in N(u), v < u} PRG(s_uv)    modulo 2^64 or 2^32

s_uv comes from an X25519 agreement, b_u is a seed of its own. The clients that stay leave shares of b_u and of the
agreement's private key with their neighbours; later a neighbour reveals its share of b_u when y_u arrived, or that of
the key when it did not, never both. This module knows no ranks and no collectives.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from fedhpc.comm.graph import neighbours, threshold
from fedhpc.comm.keys import KEY_BYTES, SEAL_BYTES, KeyPair, derive, seal, unseal
from fedhpc.comm.shamir import SHARE_BYTES, Random, join, split
from fedhpc.interfaces import ClientId

ANNOUNCEMENT_BYTES = 3 * KEY_BYTES
SEALED_BYTES = 2 * SHARE_BYTES + SEAL_BYTES


class ProtocolError(ValueError):
    """An exchange that is not finished, so that no sum of it becomes known."""


class Announcement(NamedTuple):
    """What a client shows to all at the start."""

    mask_key: bytes  # public keys of both pairs
    seal_key: bytes
    commitment: bytes  # hash of its self-mask's seed: a seed put together from wrong shares is found out

    @classmethod
    def parse(cls, row: bytes) -> Announcement:
        return cls(*(row[i : i + KEY_BYTES] for i in range(0, ANNOUNCEMENT_BYTES, KEY_BYTES)))


@dataclass(frozen=True)
class Roster:
    """Who takes part in an exchange, the same on every rank."""

    tag: bytes  # of the exchange; no two exchanges of a run have the same
    members: Mapping[ClientId, Announcement]
    neighbours: Mapping[ClientId, tuple[ClientId, ...]]
    points: Mapping[ClientId, int] = field(default_factory=dict)  # where the polynomials of shares are evaluated
    hosts: Mapping[ClientId, int] = field(default_factory=dict)  # the rank that hosts a client, where that matters

    @classmethod
    def of(
        cls,
        tag: bytes,
        members: Mapping[ClientId, Announcement],
        seed: bytes,
        hosts: Mapping[ClientId, int] | None = None,
    ) -> Roster:
        clients = sorted(members)
        return cls(tag, members, neighbours(clients, seed), {c: i + 1 for i, c in enumerate(clients)}, hosts or {})

    def holders(self, client: ClientId) -> tuple[ClientId, ...]:
        """Who holds shares of its secrets: its neighbours and itself."""
        return (*self.neighbours[client], client)

    def threshold(self, client: ClientId) -> int:
        """Shares that give its secrets back: more than half of them, and more than any other rank holds by itself."""
        elsewhere = Counter(self.hosts[c] for c in self.neighbours[client] if c in self.hosts)
        elsewhere.pop(self.hosts.get(client, -1), None)
        return max(threshold(len(self.neighbours[client]) + 1), 1 + max(elsewhere.values(), default=0))

    def speakers(self, owner: ClientId, delivered: frozenset[ClientId]) -> tuple[ClientId, ...]:
        """The holders that reveal their shares of the owner's secret: as many as are needed, of those still there.

        Raises:
            ProtocolError: too few are left.
        """
        left = [c for c in self.holders(owner) if c in delivered]
        needed = self.threshold(owner)
        if len(left) < needed:
            lost = sorted(set(self.members) - delivered)
            raise ProtocolError(
                f"the masked sum {self.tag.decode()} cannot be unmasked: {needed} of the {len(self.holders(owner))} "
                f"holders of client {owner}'s shares are needed, {len(left)} are left after clients "
                f"{', '.join(map(str, lost[:10]))}{' and others' if len(lost) > 10 else ''} were lost; "
                "set a lower cohort.dropout.probability, a larger cohort, or more ranks: none may hold enough alone"
            )
        return tuple(left[:needed])


class Member:
    """A client in one exchange, on the rank that hosts it.

    Args:
        random: makes secret bytes; `os.urandom` but in tests.
    """

    def __init__(self, client: ClientId, random: Random) -> None:
        self.client = client
        self._random = random
        self._mask, self._seal = KeyPair.new(random), KeyPair.new(random)
        self._self_seed = random(KEY_BYTES)
        self._bundles: dict[ClientId, bytes] = {}  # shares of others that it holds
        self._revealed: frozenset[ClientId] | None = None
        self._roster: Roster | None = None

    def announce(self, tag: bytes) -> bytes:
        """ANNOUNCEMENT_BYTES for all to read."""
        return self._mask.public + self._seal.public + commitment(self._self_seed, tag)

    def deal(self, roster: Roster) -> dict[ClientId, bytes]:
        """A bundle of two shares for each holder; its own is kept. They leave the client sealed only."""
        if commitment(self._self_seed, roster.tag) != roster.members[self.client].commitment:
            raise ProtocolError(
                f"client {self.client} announced itself for another exchange than {roster.tag.decode()}"
            )
        self._roster = roster
        holders = roster.holders(self.client)
        points = [roster.points[c] for c in holders]
        needed = roster.threshold(self.client)
        seeds = split(self._self_seed, needed, points, self._random)
        keys = split(self._mask.private, needed, points, self._random)
        bundles = {c: seeds[p] + keys[p] for c, p in zip(holders, points, strict=True)}
        self._bundles[self.client] = bundles.pop(self.client)
        return bundles

    def seal(self, holder: ClientId, bundle: bytes) -> bytes:
        """SEALED_BYTES that `holder` alone can read."""
        roster = self._roster
        assert roster is not None, "deal first"
        header = _header(roster.tag, self.client, holder)
        return seal(self._seal.agree(roster.members[holder].seal_key, b"seal" + header), bundle, header)

    def accept(self, sender: ClientId, bundle: bytes) -> None:
        """Keep shares of a neighbour."""
        assert self._roster is not None, "deal first"
        if sender not in self._roster.neighbours[self.client] or len(bundle) != 2 * SHARE_BYTES:
            raise ProtocolError(f"client {self.client} was handed shares by {sender}, which is no neighbour of it")
        self._bundles[sender] = bundle

    def open(self, sender: ClientId, sealed: bytes) -> None:
        """The same of a sealed bundle. Raises ProtocolError when it is not the sender's for this client, now."""
        roster = self._roster
        assert roster is not None, "deal first"
        header = _header(roster.tag, sender, self.client)
        try:
            key = self._seal.agree(roster.members[sender].seal_key, b"seal" + header)
            bundle = unseal(key, sealed, header)
        except (KeyError, ValueError) as error:
            raise ProtocolError(
                f"client {self.client} cannot open the shares of client {sender} in {roster.tag.decode()}: {error}"
            ) from error
        self.accept(sender, bundle)

    def streams(self, others: Iterable[ClientId]) -> list[tuple[bytes, int]]:
        """(key, sign) of what hides its values: its own stream, and those shared with `others` of its neighbours."""
        roster = self._roster
        assert roster is not None, "deal first"
        pairs = [pair_stream(roster, self._mask, self.client, other) for other in others]
        return [self_stream(self._self_seed, roster.tag), *pairs]

    def reveal(self, delivered: frozenset[ClientId], owners: Sequence[ClientId]) -> dict[ClientId, bytes]:
        """Its share of the self-mask of each of `owners` whose values arrived, of the private key of the others.

        Raises:
            ProtocolError: it was asked before, and something else: both shares of a client would bare its values.
        """
        if self._revealed not in (None, delivered):
            raise ProtocolError(
                f"client {self.client} was asked twice for shares, about different clients that arrived"
            )
        self._revealed = delivered
        first = slice(0, SHARE_BYTES)
        second = slice(SHARE_BYTES, None)
        return {owner: self._bundles[owner][first if owner in delivered else second] for owner in owners}


# --------------------------------------------------------------------------------------------- what the shares give
def recover_self_stream(roster: Roster, owner: ClientId, shares: Mapping[ClientId, bytes]) -> tuple[bytes, int]:
    """The stream of a client's self-mask, to be taken off. shares: holder -> share, as many as the threshold.

    Raises:
        ProtocolError: the shares are not its own.
    """
    seed = _join(roster, owner, shares)
    if commitment(seed, roster.tag) != roster.members[owner].commitment:
        raise ProtocolError(_wrong(roster, owner, shares))
    return flipped(self_stream(seed, roster.tag))


def recover_pair_streams(
    roster: Roster, owner: ClientId, shares: Mapping[ClientId, bytes], others: Iterable[ClientId]
) -> list[tuple[bytes, int]]:
    """The streams that `others` put into the sum against a client whose values never came, to be taken off.

    Raises:
        ProtocolError: the shares are not its own.
    """
    key = KeyPair(_join(roster, owner, shares))
    if key.public != roster.members[owner].mask_key:
        raise ProtocolError(_wrong(roster, owner, shares))
    return [pair_stream(roster, key, owner, other) for other in others]  # what it would have added cancels theirs


def commitment(seed: bytes, tag: bytes) -> bytes:
    return hashlib.sha256(b"fedhpc self-mask" + tag + seed).digest()


def self_stream(seed: bytes, tag: bytes) -> tuple[bytes, int]:
    return derive(seed, b"self-mask" + tag), 1


def pair_stream(roster: Roster, key: KeyPair, client: ClientId, other: ClientId) -> tuple[bytes, int]:
    """What `client` adds against `other`: the same stream that `other` adds with the opposite sign."""
    low, high = sorted((client, other))
    purpose = b"pair-mask" + _header(roster.tag, low, high)
    try:
        shared = key.agree(roster.members[other].mask_key, purpose)
    except ValueError as error:
        raise ProtocolError(f"client {other} announced no X25519 key in {roster.tag.decode()}") from error
    return shared, 1 if client == low else -1


def flipped(stream: tuple[bytes, int]) -> tuple[bytes, int]:
    return stream[0], -stream[1]


def _header(tag: bytes, sender: ClientId, receiver: ClientId) -> bytes:
    return b"|" + tag + b"|" + sender.to_bytes(8) + receiver.to_bytes(8)


def _join(roster: Roster, owner: ClientId, shares: Mapping[ClientId, bytes]) -> bytes:
    try:
        return join({roster.points[holder]: share for holder, share in shares.items()})
    except ValueError as error:
        raise ProtocolError(_wrong(roster, owner, shares)) from error


def _wrong(roster: Roster, owner: ClientId, shares: Mapping[ClientId, bytes]) -> str:
    return (
        f"the shares that clients {sorted(shares)} revealed are not those of client {owner} in {roster.tag.decode()}: "
        "one of them is another client's, another exchange's, or changed"
    )
