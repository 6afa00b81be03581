"""interfaces.Federation over slots and collectives: runs a function on every client, takes weighted sums of what it
returns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from fedhpc.client.client import DataClient, derived_seed
from fedhpc.client.slot import Slot
from fedhpc.comm.collectives import Collectives
from fedhpc.comm.ledger import Operation
from fedhpc.comm.privacy import ClientGuard
from fedhpc.comm.secure import Contributors
from fedhpc.comm.sums import Sums, WeightedMean
from fedhpc.comm.updates import Announced, Posting, UpdateExchange
from fedhpc.config.schema import CohortConfig
from fedhpc.federation.aggregation import UpdateAggregation
from fedhpc.federation.attack import UpdateAttack
from fedhpc.federation.cohort import cohort_size, dropped, sample_cohort
from fedhpc.federation.placement import Placement
from fedhpc.interfaces import Batch, Blocks, ClientId, Contribution, PerClient, R, Reduced


class SlotFederation:
    """One per rank. All ranks make the same calls in the same order.

    Args:
        trainers: ids of the clients that train (all records may be evaluated).
        reveals: what the algorithm may gather.
        cohort_seed: draws cohorts, in place of random_seed.
        aggregation: how `reduce` puts updates together, where it is no sum.
        attack: for studies: what some clients send in their place.
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
        cohort_seed: int | None = None,
        aggregation: UpdateAggregation | None = None,
        attack: UpdateAttack | None = None,
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
        self._cohort_seed = random_seed if cohort_seed is None else cohort_seed
        self._reveals = reveals
        self._aggregation = aggregation
        self._attack = attack
        num_slots = collectives.mesh.num_slots
        examples = {c: len(slot.records[c].rows.train) for c in trainers}
        self._training = Placement(examples, num_slots, stateful)
        everyone = {c: len(record.rows.test) + len(record.rows.val) for c, record in slot.records.items()}
        # Clients with state are evaluated where it is, others anywhere.
        self._at_home = frozenset(trainers) if stateful else frozenset()
        self._evaluation_places = Placement(everyone, num_slots, stateful=True)
        self._max_terms = cohort_size(cohort, len(trainers))
        self._placed: list[list[ClientId]] = []  # the cohort, slot by slot
        self._here: list[ClientId] = []
        self._leaving: frozenset[ClientId] = frozenset()  # lost in this round's first exchange
        self._gone: frozenset[ClientId] = frozenset()  # lost in it already
        self._seconds: dict[ClientId, float] = {}

    # -------------------------------------------------------------------------------------------------- rounds
    def begin(self, index: int) -> None:
        """Choose and place the cohort of round `index`."""
        self.slot.begin(index)
        if self._sums.masks is not None:
            self._sums.masks.begin(index)
        if self._sums.guard is not None:
            self._sums.guard.begin(index)
        cohort = self.cohort_of(index)
        lost = dropped(cohort, self._cohort_config, self._cohort_seed, index)
        dropout = self._cohort_config.dropout
        self._leaving = lost if dropout is not None and dropout.when == "after" else frozenset()
        self._gone = frozenset()
        self.cohort = tuple(c for c in cohort if c not in lost or c in self._leaving)
        self._placed = self._training.place(self.cohort)
        self._here = self._placed[self.collectives.mesh.slot]
        self._seconds = {}

    def cohort_of(self, index: int) -> tuple[ClientId, ...]:
        """The clients that a round begins with, before any is lost."""
        return sample_cohort(self.clients, self._cohort_config, self._cohort_seed, index)

    def end(self, stop: bool) -> bool:
        """Share what each client cost, and whether any rank was asked to stop. Every rank calls this.

        Under masks, and under differential privacy, nobody learns what a client cost, which tells of its rows:
        placement then goes by their number."""
        mesh = self.collectives.mesh
        hidden = self._sums.masks is not None or self._sums.withhold
        shown = () if hidden else tuple(enumerate(self.cohort))
        table = self.collectives.all_rows(
            {i: torch.tensor(self._seconds.get(c, 0.0)) for i, c in shown if c in self._here},
            len(self.cohort) + mesh.world,
            (),
            self._device,
            operation="placement",
            what="seconds",
            revealed=("seconds",) if shown else (),
            by=self.cohort if shown else (),
            own_rows={len(self.cohort) + mesh.rank: torch.tensor(float(stop))},
        ).tolist()
        if shown:
            self._training.learn(self.cohort, table[: len(self.cohort)])
        return any(table[len(self.cohort) :])

    @property
    def guard(self) -> ClientGuard | None:
        """What updates pass on their way into sums, under client-level differential privacy."""
        return self._sums.guard

    def any_rank(self, mine: bool) -> bool:
        """Whether it holds on any rank. Every rank calls this, between rounds."""
        flag = torch.tensor([int(mine)], dtype=torch.int64, device=self._device)
        return bool(self.collectives.all_ranks_sum(flag).item())

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
        exchange = self._exchange(like, metrics)

        def send(contribution: Contribution, client: ClientId) -> None:
            if self._attack is not None:
                contribution = self._attack.sent(contribution, client, self.slot.round)
            exchange.add(contribution, client)

        for _, contribution in self._turns(fn, inputs, send):
            del contribution
        reduced = self._finish(exchange) if isinstance(exchange, WeightedMean) else exchange.finish()
        self._let_go()
        if self._aggregation is not None:
            self._aggregation.learn(reduced.mean)
        return reduced

    def mean(self, values: PerClient[Blocks], weights: PerClient[float], *, like: Blocks) -> Blocks:
        mean = self._weighted_mean(like, (), "mean")
        self._expect(values, weights)
        for client in self._here:
            mean.add(Contribution(values[client], weights[client]), client)
        reduced = self._finish(mean)
        self._let_go()
        return reduced.mean

    def sum(self, values: PerClient[Tensor], *, shape: Sequence[int] = ()) -> Tensor:
        self._refuse_plain("sum")
        self._expect(values)
        who = Contributors(self.cohort, ("the sum",), dict.fromkeys(self._here, (True,)), self._leaving)
        staying = [values[c] for c in self._here if c not in self._leaving]
        total = self._sums.total(staying, shape, self._max_terms, self._device, who)
        self._let_go()
        return total

    def gather(self, what: str, values: PerClient[Tensor], *, shape: Sequence[int] = ()) -> Tensor:
        if what not in self._reveals:
            raise ValueError(
                f"gather({what!r}) would show each client's own value to all, but the algorithm's reveals are "
                f"{sorted(self._reveals) or 'empty'}; add {what!r} to `reveals`, or use sum"
            )
        self._refuse_plain("gather")
        self._expect(values)
        self._let_go()
        rows = {self.cohort.index(client): values[client] for client in self._here}
        return self.collectives.all_rows(
            rows, len(self.cohort), shape, self._device, operation="gather", what=what, revealed=(what,), by=self.cohort
        )

    # ---------------------------------------------------------------------------------------------- evaluation
    def evaluate(
        self,
        fn: Callable[[DataClient], dict[str, float]],
        names: Sequence[str],
        clients: Sequence[ClientId],
        what: str = "metrics",
    ) -> list[dict[str, float]]:
        """fn's metrics for every one of `clients`, on every rank: an experimenter's look, written into the ledger.

        Every rank calls this. `names` are the metrics that fn returns.
        """
        rows = {clients.index(client): row for client, row in self._scores(fn, names, clients).items()}
        table = self.collectives.all_rows(
            rows,
            len(clients),
            (len(names),),
            self._device,
            operation="evaluation",
            what=what,
            revealed=(what,),
            by=tuple(clients),
        )
        return [dict(zip(names, row, strict=True)) for row in table.tolist()]

    def evaluate_mean(
        self, fn: Callable[[DataClient], dict[str, float]], names: Sequence[str], clients: Sequence[ClientId]
    ) -> dict[str, float]:
        """Means of fn's metrics over those of `clients` that have them; only sums leave a client. nan where nobody has
        one, and, under masks, where fewer than aggregation.min_contributors do.

        Every rank calls this.
        """
        scores = self._scores(fn, names, clients)
        known = {client: ~row.isnan() for client, row in scores.items()}
        who = Contributors(tuple(clients), ("the evaluation",), dict.fromkeys(scores, (True,)))

        def total(values: list[Tensor], what: str) -> Tensor:
            shape = (len(names),)
            return self._sums.total(
                values, shape, len(clients), self._device, who, operation="evaluation", what=what
            ).cpu()

        counts = total([has.double() for has in known.values()], "how many clients have each metric")
        least = 1 if self._sums.masks is None else self._sums.masks.min_contributors
        enough = counts >= least
        summed = total([torch.where(known[c] & enough, row, 0.0) for c, row in scores.items()], "metrics")
        means = torch.where(enough, summed / counts, torch.nan)
        return dict(zip(names, means.tolist(), strict=True))

    def _scores(
        self, fn: Callable[[DataClient], dict[str, float]], names: Sequence[str], clients: Sequence[ClientId]
    ) -> dict[ClientId, Tensor]:
        """float64 [len(names)] of each of `clients` that this slot evaluates."""
        at_home = self._training.place([c for c in clients if c in self._at_home])
        elsewhere = self._evaluation_places.place([c for c in clients if c not in self._at_home])
        rows = {}
        for client_id in sorted(at_home[self.collectives.mesh.slot] + elsewhere[self.collectives.mesh.slot]):
            client = self.slot.turn(client_id)
            metrics = fn(client)
            rows[client_id] = torch.tensor([metrics[n] for n in names], dtype=torch.float64)
        return rows

    # ---------------------------------------------------------------------------------------------- checkpoints
    def state_dict(self) -> dict[str, Any]:
        """What `reduce` needs of earlier rounds; identical on every rank."""
        return {} if self._aggregation is None else self._aggregation.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """state: of `state_dict`, or more."""
        if self._aggregation is not None:
            self._aggregation.load_state_dict(state, self._device)

    # ------------------------------------------------------------------------------------------------- helpers
    @property
    def _device(self) -> torch.device:
        return self.slot.engine.device

    def _weighted_mean(self, like: Blocks, metrics: Sequence[str], operation: Operation) -> WeightedMean:
        return self._sums.weighted_mean(
            like, metrics, self._max_terms, self._device, operation, self.cohort, self._leaving
        )

    def _finish(self, mean: WeightedMean) -> Reduced:
        reduced, guard = mean.finish(), self._sums.guard
        if guard is None:
            return reduced
        guard.learn(reduced.metrics)
        return replace(reduced, metrics={})

    def _refuse_plain(self, operation: str) -> None:
        if self._sums.withhold:
            raise ValueError(
                f"an algorithm calls {operation}, whose values have neither clip nor noise: under `privacy` only "
                "weighted means of updates may leave a client"
            )

    def _exchange(self, like: Blocks, metrics: Sequence[str]) -> WeightedMean | UpdateExchange:
        if self._aggregation is None:
            return self._weighted_mean(like, metrics, "reduce")
        posting = Posting(self._placed, self._leaving)
        announced = Announced(like, metrics, self._max_terms, self._device, "reduce", posting)
        return self._aggregation.exchange(announced, self.slot.state, self.slot.round)

    def _let_go(self) -> None:
        """After an exchange: the cohort goes on without those that were lost in it."""
        self._gone |= self._leaving
        self._placed = [[c for c in here if c not in self._leaving] for here in self._placed]
        self.cohort = tuple(c for c in self.cohort if c not in self._leaving)
        self._here = [c for c in self._here if c not in self._leaving]
        self._leaving = frozenset()

    def _turns(
        self, fn: Callable[..., R], inputs: Sequence[PerClient[Any]], sink: Callable[[R, ClientId], None] | None = None
    ) -> Iterator[tuple[ClientId, R]]:
        self._expect(*inputs)
        for client_id in self._here:
            start = perf_counter()
            client = self.slot.turn(client_id)
            result = fn(client, *(values[client_id] for values in inputs))
            if sink is not None:
                # Before the slot turns to the next client: `result` may be views of its weights.
                sink(result, client_id)
            self.slot.release(client)
            self._seconds[client_id] = self._seconds.get(client_id, 0.0) + perf_counter() - start
            yield client_id, result

    def _expect(self, *inputs: PerClient[Any]) -> None:
        for values in inputs:
            if set(values) - self._gone != set(self._here):
                raise ValueError(
                    f"per-client values for clients {sorted(values)}, but this rank hosts {self._here} of the cohort"
                )
