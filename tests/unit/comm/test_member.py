"""One client's protocol: what is not its own, of this exchange, from whom it says, is rejected."""

from __future__ import annotations

import os

import pytest

from fedhpc.comm.member import Announcement, Member, ProtocolError, Roster, recover_pair_streams, recover_self_stream

TAG = b"round 3, exchange 0: reduce of net"


def roster(members: dict[int, Member], tag: bytes = TAG) -> Roster:
    return Roster.of(tag, {c: Announcement.parse(m.announce(tag)) for c, m in members.items()}, b"graph")


def dealt(clients: int = 5) -> tuple[dict[int, Member], Roster, dict[tuple[int, int], bytes]]:
    """Members that hold each other's shares, and the sealed bundles: (sender, receiver) -> bytes."""
    members = {c: Member(c, os.urandom) for c in range(clients)}
    everyone = roster(members)
    plain = {c: m.deal(everyone) for c, m in members.items()}
    sealed = {(c, h): members[c].seal(h, bundle) for c, bundles in plain.items() for h, bundle in bundles.items()}
    for (sender, receiver), bundle in sealed.items():
        members[receiver].open(sender, bundle)
    return members, everyone, sealed


def revealed(members: dict[int, Member], everyone: Roster, owner: int, delivered: frozenset[int]) -> dict[int, bytes]:
    return {c: members[c].reveal(delivered, [owner])[owner] for c in everyone.speakers(owner, delivered)}


def test_streams_of_two_clients_cancel() -> None:
    members, _, _ = dealt()
    own, against = members[1].streams([3])
    other, back = members[3].streams([1])
    assert against[0] == back[0] and against[1] == -back[1]
    assert own != other


def test_shares_give_back_what_is_to_be_taken_off_and_no_more() -> None:
    members, everyone, _ = dealt()
    delivered = frozenset({0, 1, 2, 3})
    own, against_4 = members[1].streams([4])
    key, sign = recover_self_stream(everyone, 1, revealed(members, everyone, 1, delivered))
    assert (key, -sign) == own
    ((key, sign),) = recover_pair_streams(everyone, 4, revealed(members, everyone, 4, delivered), [1])
    assert (key, -sign) == against_4
    with pytest.raises(ProtocolError, match="not those of client 4"):  # of one who is lost, the self-mask stays hidden
        recover_self_stream(everyone, 4, revealed(members, everyone, 4, delivered))


def test_sealed_shares_open_for_their_receiver_in_their_exchange_alone() -> None:
    members, _, sealed = dealt()
    with pytest.raises(ProtocolError, match="client 2 cannot open the shares of client 0"):
        members[2].open(0, sealed[0, 1])  # another's
    with pytest.raises(ProtocolError, match="client 2 cannot open the shares of client 1"):
        members[2].open(1, sealed[0, 2])  # not from whom it says
    with pytest.raises(ProtocolError, match="client 2 cannot open"):
        members[2].open(0, bytes([sealed[0, 2][0] ^ 1]) + sealed[0, 2][1:])  # changed
    with pytest.raises(ProtocolError, match="client 2 cannot open the shares of client 9"):
        members[2].open(9, sealed[0, 2])  # of nobody


def test_a_replayed_exchange_is_rejected() -> None:
    members, _, sealed = dealt()
    later = b"round 4, exchange 0: reduce of net"
    old = Announcement.parse(members[0].announce(TAG))
    new = {c: Member(c, os.urandom) if c else members[0] for c in members}
    again = Roster.of(later, {c: old if c == 0 else Announcement.parse(m.announce(later)) for c, m in new.items()}, b"")
    with pytest.raises(ProtocolError, match="client 0 announced itself for another exchange"):
        new[0].deal(again)
    new[2].deal(again)
    with pytest.raises(ProtocolError, match="client 2 cannot open the shares of client 0 in round 4"):
        new[2].open(0, sealed[0, 2])
    # Even the same keys under a new tag do not open it.
    same = Member(2, os.urandom)
    same.__dict__.update(members[2].__dict__)
    same._roster = Roster.of(later, again.members, b"")
    with pytest.raises(ProtocolError, match="cannot open"):
        same.open(0, sealed[0, 2])


def test_a_wrong_key_is_rejected() -> None:
    members, everyone, _ = dealt()
    announced = dict(everyone.members)
    announced[3] = announced[3]._replace(mask_key=bytes(32))  # a point of small order: the secret would be known
    for c, member in members.items():
        if c != 3:
            member._roster = Roster.of(TAG, announced, b"graph")
    with pytest.raises(ProtocolError, match="client 3 announced no X25519 key"):
        members[1].streams([3])
    announced[3] = announced[3]._replace(mask_key=Member(3, os.urandom).announce(TAG)[:32])  # not its own
    with pytest.raises(ProtocolError, match="not those of client 3"):
        recover_pair_streams(
            Roster.of(TAG, announced, b"graph"), 3, revealed(members, everyone, 3, frozenset({0, 1, 2})), [1]
        )


def test_a_share_of_another_client_or_exchange_is_found_out() -> None:
    members, everyone, _ = dealt()
    others, _, _ = dealt()
    all_in = frozenset(members)
    shares = revealed(members, everyone, 1, all_in)
    first = next(iter(shares))
    for wrong in (members[first].reveal(all_in, [2])[2], others[first].reveal(all_in, [1])[1], bytes(33), b"\xff" * 33):
        with pytest.raises(ProtocolError, match="are not those of client 1 in round 3, exchange 0"):
            recover_self_stream(everyone, 1, shares | {first: wrong})


def test_nobody_reveals_both_shares_of_a_client() -> None:
    members, _, _ = dealt()
    members[0].reveal(frozenset({0, 1, 2}), [1, 4])
    with pytest.raises(ProtocolError, match="asked twice"):
        members[0].reveal(frozenset({0, 2, 4}), [1])


def test_shares_are_for_neighbours() -> None:
    members, _, _ = dealt()
    with pytest.raises(ProtocolError, match="no neighbour"):
        members[0].accept(0, bytes(66))
