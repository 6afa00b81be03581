"""A slot hosts clients one at a time, in turns on one resident model (or on one for each of several networks): memory
does not grow with their number."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import cast

from fedhpc.client.client import SPLITS, ClientRecord, DataClient, Turn, park, pool_size
from fedhpc.client.engine import ClientEngine, Engine
from fedhpc.client.residence import Residence
from fedhpc.data.batches import BatchMaker
from fedhpc.interfaces import ClientId, ClientState, EvalReport, Split


class Slot:
    """The engines of this rank, and the state of the clients that live here.

    Args:
        engines: one that all clients share, or several networks: client k has the (k mod length)-th.
    """

    def __init__(
        self,
        engine: ClientEngine | Sequence[ClientEngine],
        batch_maker: BatchMaker,
        records: Mapping[ClientId, ClientRecord],
        random_seed: int,
        rounds: int,
        keep_optimizer: bool,
        stateful: bool,
        score: Callable[[DataClient, Split], EvalReport],
    ) -> None:
        engines = engine if isinstance(engine, Sequence) else [engine]
        self.engine = engines[0]
        self.records = records
        self._states: dict[ClientId, ClientState] = {}
        # Own models need an engine on one device: config.sharding refuses the others.
        self.residences = [Residence(cast(Engine, one), self._states) for one in engines]
        self.round = 0
        self._batch_maker = batch_maker
        self._random_seed = random_seed
        self.rounds = rounds
        self._keep_optimizer = keep_optimizer
        self._stateful = stateful
        self._score = score
        self._turns: dict[ClientId, Turn] = {}
        self._pools = {split: pool_size(records.values(), split, self.engine.config.batch_size) for split in SPLITS}

    @property
    def states(self) -> dict[ClientId, ClientState]:
        """What clients keep between rounds, on the CPU; a client that keeps nothing has no entry."""
        for residence in self.residences:
            residence.leave()
        return {client: state for client, state in self._states.items() if state}

    @states.setter
    def states(self, states: Mapping[ClientId, ClientState]) -> None:
        for residence in self.residences:
            residence.forget()
        self._states.clear()
        self._states.update(states)

    def state(self, client: ClientId) -> ClientState:
        """What one client keeps, for who adds to it in its turn."""
        return self._states.setdefault(client, {})

    def residence(self, client: ClientId) -> Residence:
        """Where a client has its turns."""
        return self.residences[client % len(self.residences)]

    def begin(self, index: int) -> None:
        """A new round: every client's randomness starts from (random_seed, round, client)."""
        self.round = index
        self._turns = {}
        if not self._keep_optimizer:
            for residence in self.residences:
                residence.forget_moments()

    def turn(self, client: ClientId) -> DataClient:
        """Give the slot to a client. The one before must have been released."""
        turn = self._turns.setdefault(client, Turn(self._random_seed, self.round, self.rounds))
        return DataClient(
            self.records[client],
            self.residence(client),
            self._batch_maker,
            self.state(client),
            turn,
            self._keep_optimizer,
            self._pools,
            self._score,
        )

    def release(self, client: DataClient) -> None:
        """Park what the client keeps."""
        if client.state:
            assert self._stateful, "clients that move between slots would lose their state; declare `stateful`"
            client.state.update(park(client.state))
