"""interfaces.Federation over slots and collectives: runs a function on every client, takes weighted sums of what it
returns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from fedhpc.client.client import DataClient, derived_seed
from fedhpc.client.slot import Slot
from fedhpc.comm.collectives import Collectives
from fedhpc.comm.sums import Sums
from fedhpc.config.schema import CohortConfig
from fedhpc.federation.cohort import cohort_size, sample_cohort
from fedhpc.federation.placement import Placement
from fedhpc.interfaces import Batch, Blocks, ClientId, Contribution, PerClient, R, Reduced


class SlotFederation:
    """One per rank. All ranks make the same calls in the same order.

    Args:
        trainers: ids of the clients that train (all records may be evaluated).
        reveals: what the algorithm may gather.
    """

    def __init__(
        self,
        slot: Slot,
        collectives: Collectives,
        sums: Sums,
        trainers: Sequence[ClientId],
        cohort: CohortConfig,
        random_seed: int,
        stateful: bool,
        reveals: frozenset[str],
        public: Sequence[Batch] = (),
    ) -> None:
        self.slot = slot
        self.collectives = collectives
        self.clients = tuple(trainers)
        self.cohort: tuple[ClientId, ...] = ()
        self.public = public
        self.rounds = slot.rounds
        self.networks: Sequence[Blocks] = [residence.start for residence in slot.residences]
        self.initial: Blocks = self.networks[0] if len(self.networks) == 1 else {}
        self._sums = sums
        self._cohort_config = cohort
        self._random_seed = random_seed
        self._reveals = reveals
        num_slots = collectives.mesh.num_slots
        examples = {c: len(slot.records[c].rows.train) for c in trainers}
        self._training = Placement(examples, num_slots, stateful)
        everyone = {c: len(record.rows.test) + len(record.rows.val) for c, record in slot.records.items()}
        # Clients with state are evaluated where it is, others anywhere.
        self._at_home = frozenset(trainers) if stateful else frozenset()
        self._evaluation_places = Placement(everyone, num_slots, stateful=True)
        self._max_terms = cohort_size(cohort, len(trainers))
        self._here: list[ClientId] = []
        self._seconds: dict[ClientId, float] = {}

    # -------------------------------------------------------------------------------------------------- rounds
    def begin(self, index: int) -> None:
        """Choose and place the cohort of round `index`."""
        self.slot.begin(index)
        self.cohort = sample_cohort(self.clients, self._cohort_config, self._random_seed, index)
        self._here = self._training.place(self.cohort)[self.collectives.mesh.slot]
        self._seconds = {}

    def end(self, stop: bool) -> bool:
        """Share what each client cost, and whether any rank was asked to stop. Every rank calls this."""
        mesh = self.collectives.mesh
        table = self.collectives.all_rows(
            {i: torch.tensor(self._seconds.get(c, 0.0)) for i, c in enumerate(self.cohort) if c in self._here},
            len(self.cohort) + mesh.world,
            (),
            self._device,
            operation="placement",
            what="seconds",
            own_rows={len(self.cohort) + mesh.rank: torch.tensor(float(stop))},
        ).tolist()
        self._training.learn(self.cohort, table[: len(self.cohort)])
        return any(table[len(self.cohort) :])

    def any_rank(self, mine: bool) -> bool:
        """Whether it holds on any rank. Every rank calls this, between rounds."""
        flag = torch.tensor([int(mine)], dtype=torch.int64, device=self._device)
        return bool(self.collectives.all_sum(flag).item())

    def clients_living_here(self) -> frozenset[ClientId]:
        """Clients whose state this slot keeps."""
        return frozenset(self._training.residents(self.collectives.mesh.slot))

    # ------------------------------------------------------------------------------------- what algorithms call
    def generator(self, what: str) -> torch.Generator:
        return torch.Generator().manual_seed(derived_seed(self._random_seed, self.slot.round, "all", what))

    def each(self, fn: Callable[..., R], *inputs: PerClient[Any]) -> PerClient[R]:
        return dict(self._turns(fn, inputs))

    def reduce(
        self, fn: Callable[..., Contribution], *inputs: PerClient[Any], like: Blocks, metrics: Sequence[str] = ()
    ) -> Reduced:
        mean = self._sums.weighted_mean(like, metrics, self._max_terms, self._device, "reduce")
        for _, contribution in self._turns(fn, inputs, mean.add):
            del contribution
        return mean.finish()

    def mean(self, values: PerClient[Blocks], weights: PerClient[float], *, like: Blocks) -> Blocks:
        mean = self._sums.weighted_mean(like, (), self._max_terms, self._device, "mean")
        self._expect(values, weights)
        for client, blocks in values.items():
            mean.add(Contribution(blocks, weights[client]))
        return mean.finish().mean

    def sum(self, values: PerClient[Tensor], *, shape: Sequence[int] = ()) -> Tensor:
        self._expect(values)
        return self._sums.total(list(values.values()), shape, self._max_terms, self._device)

    def gather(self, what: str, values: PerClient[Tensor], *, shape: Sequence[int] = ()) -> Tensor:
        if what not in self._reveals:
            raise ValueError(
                f"gather({what!r}) would show each client's own value to all, but the algorithm's reveals are "
                f"{sorted(self._reveals) or 'empty'}; add {what!r} to `reveals`, or use sum"
            )
        self._expect(values)
        rows = {self.cohort.index(client): value for client, value in values.items()}
        return self.collectives.all_rows(
            rows, len(self.cohort), shape, self._device, operation="gather", what=what, revealed=(what,)
        )

    # ---------------------------------------------------------------------------------------------- evaluation
    def evaluate(
        self, fn: Callable[[DataClient], dict[str, float]], names: Sequence[str], clients: Sequence[ClientId]
    ) -> list[dict[str, float]]:
        """fn's metrics for every one of `clients`, on every rank: an experimenter's look, written into the ledger.

        Every rank calls this. `names` are the metrics that fn returns.
        """
        at_home = self._training.place([c for c in clients if c in self._at_home])
        elsewhere = self._evaluation_places.place([c for c in clients if c not in self._at_home])
        rows = {}
        for client_id in sorted(at_home[self.collectives.mesh.slot] + elsewhere[self.collectives.mesh.slot]):
            client = self.slot.turn(client_id)
            metrics = fn(client)
            rows[list(clients).index(client_id)] = torch.tensor([metrics[n] for n in names], dtype=torch.float64)
        table = self.collectives.all_rows(
            rows,
            len(clients),
            (len(names),),
            self._device,
            operation="evaluation",
            what="metrics",
            revealed=("metrics",),
        )
        return [dict(zip(names, row, strict=True)) for row in table.tolist()]

    # ------------------------------------------------------------------------------------------------- helpers
    @property
    def _device(self) -> torch.device:
        return self.slot.engine.device

    def _turns(
        self, fn: Callable[..., R], inputs: Sequence[PerClient[Any]], sink: Callable[[R], None] | None = None
    ) -> Iterator[tuple[ClientId, R]]:
        self._expect(*inputs)
        for client_id in self._here:
            start = perf_counter()
            client = self.slot.turn(client_id)
            result = fn(client, *(values[client_id] for values in inputs))
            if sink is not None:
                sink(result)  # before the slot turns to the next client: `result` may be views of its weights
            self.slot.release(client)
            self._seconds[client_id] = self._seconds.get(client_id, 0.0) + perf_counter() - start
            yield client_id, result

    def _expect(self, *inputs: PerClient[Any]) -> None:
        for values in inputs:
            if set(values) != set(self._here):
                raise ValueError(
                    f"per-client values for clients {sorted(values)}, but this rank hosts {self._here} of the cohort"
                )
