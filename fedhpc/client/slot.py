"""A slot hosts clients one at a time, in turns on one resident model: memory does not grow with their number."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from fedhpc.client.client import SPLITS, ClientRecord, DataClient, Turn, park, pool_size
from fedhpc.client.engine import ClientEngine
from fedhpc.data.batches import BatchMaker
from fedhpc.interfaces import ClientId, ClientState, EvalReport, Split


class Slot:
    """The engine of this rank, and the state of the clients that live here.

    `states` holds what clients keep between rounds, on the CPU; a client that keeps nothing has no entry.
    """

    def __init__(
        self,
        engine: ClientEngine,
        batch_maker: BatchMaker,
        records: Mapping[ClientId, ClientRecord],
        random_seed: int,
        rounds: int,
        keep_optimizer: bool,
        stateful: bool,
        score: Callable[[DataClient, Split], EvalReport],
    ) -> None:
        self.engine = engine
        self.records = records
        self.states: dict[ClientId, ClientState] = {}
        self.round = 0
        self._batch_maker = batch_maker
        self._random_seed = random_seed
        self._rounds = rounds
        self._keep_optimizer = keep_optimizer
        self._stateful = stateful
        self._score = score
        self._turns: dict[ClientId, Turn] = {}
        self._pools = {split: pool_size(records.values(), split, engine.config.batch_size) for split in SPLITS}

    def begin(self, index: int) -> None:
        """A new round: every client's randomness starts from (random_seed, round, client)."""
        self.round = index
        self._turns = {}

    def turn(self, client: ClientId) -> DataClient:
        """Give the slot to a client. The one before must have been released."""
        turn = self._turns.setdefault(client, Turn(self._random_seed, self.round, self._rounds))
        return DataClient(
            self.records[client],
            self.engine,
            self._batch_maker,
            self.states.get(client, {}),
            turn,
            self._keep_optimizer,
            self._pools,
            self._score,
        )

    def release(self, client: DataClient) -> None:
        """Park what the client keeps."""
        if client.state:
            assert self._stateful, "clients that move between slots would lose their state; declare `stateful`"
            self.states[client.id] = park(client.state)
