"""One data owner: its rows, its state, and the turn that it takes on a slot's engine."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fedhpc.client.engine import Engine, learning_rate_at
from fedhpc.client.residence import OWN_MODEL, Residence
from fedhpc.config.schema import FitConfig
from fedhpc.data.batches import BatchMaker, batch_sizes
from fedhpc.interfaces import (
    Batch,
    Block,
    BlockName,
    Blocks,
    Budget,
    ClientId,
    ClientState,
    EvalReport,
    FitReport,
    GradientTerm,
    Loss,
    Objective,
    Split,
)
from fedhpc.models.fusion import FusionModel

LOCAL_STATE = "fedhpc/local"  # its local blocks (aggregation.local_blocks)
OPTIMIZER_STATE = "fedhpc/optimizer"
SPLITS: tuple[Split, ...] = ("train", "val", "test")


def derived_seed(*parts: int | str) -> int:
    """A seed from (random_seed, round, client, ...): never from the rank. 63 bits."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


@dataclass(frozen=True)
class Rows:
    """Row numbers of one client, int64, by split."""

    train: Tensor
    val: Tensor
    test: Tensor

    def of(self, split: Split) -> Tensor:
        rows: Tensor = getattr(self, split)
        return rows


@dataclass(frozen=True)
class ClientRecord:
    """What is known of a client everywhere: small, and the same on every rank."""

    id: ClientId
    site: str
    rows: Rows
    modalities: frozenset[str]


def pool_size(records: Iterable[ClientRecord], split: Split, batch_size: int) -> int:
    """Rows of a batch on which losses are compared between clients: contrastive losses grow with it, so it is the same
    for all, at most `batch_size` and the smallest client's rows."""
    return min([batch_size, *(n for record in records if (n := len(record.rows.of(split))) >= 2)])


@dataclass
class Turn:
    """Where the run stands while a client has its turn; randomness comes from here."""

    random_seed: int
    round: int
    rounds: int
    fits: int = field(default=0)  # calls of `fit` so far in this turn
    steps: int = field(default=0)  # single steps so far in this round


class DataClient:
    """Implements interfaces.Client for a client whose slot is one rank or several; see its engine."""

    def __init__(
        self,
        record: ClientRecord,
        residence: Residence,
        batch_maker: BatchMaker,
        state: ClientState,
        turn: Turn,
        keep_optimizer: bool,
        pools: Mapping[Split, int],
        score: Callable[[DataClient, Split], EvalReport],
    ) -> None:
        self.id = record.id
        self.site = record.site
        self.modalities = record.modalities
        self.num_examples = len(record.rows.train)
        engine = residence.engine
        self.blocks = owned_blocks(engine, record.modalities)
        columns = held_columns(engine, record.modalities)
        self.state = state
        self.loss: Loss = engine.loss
        self._rows = record.rows
        self._residence = residence
        self._engine = engine
        self._batch_maker = batch_maker if columns is None else batch_maker.only(columns)
        self._turn = turn
        self._keep_optimizer = keep_optimizer
        self._pools = pools
        self._score = score
        engine.seed(derived_seed(turn.random_seed, turn.round, record.id, "turn"))

    def load(self, shared: Blocks) -> None:
        self._residence.leave()
        self._engine.restore_stepper({})
        weights = self._engine.weights
        weights.load(self._held(shared))
        if weights.local:
            weights.load(self.state.get(LOCAL_STATE) or self._engine.first_local)

    @property
    def own(self) -> Blocks:
        if self._residence.client == self.id:
            return self._engine.weights.shared
        blocks: Blocks = self.state.get(OWN_MODEL, self._residence.start)
        return blocks

    def resume(self) -> None:
        self._residence.enter(self.id)

    def read(self) -> Blocks:
        return self._held(self._engine.weights.shared)

    def update(self, since: Blocks) -> Blocks:
        return self._engine.difference(self._held(since))

    def _held(self, blocks: Blocks) -> Blocks:
        """Those of `blocks` that the client owns; the mapping itself, whose items may be copies, where it owns all."""
        if blocks.keys() <= self.blocks:
            return blocks
        return {name: block for name, block in blocks.items() if name in self.blocks}

    def fit(
        self,
        budget: Budget | None = None,
        objective: Objective | None = None,
        *,
        batches: Iterable[Batch] | None = None,
        train: Sequence[BlockName] | None = None,
        lr_scale: Mapping[BlockName, float] | None = None,
        gradient: GradientTerm | None = None,
        after_step: Callable[[int, int], None] | None = None,
    ) -> FitReport:
        start = time.perf_counter()
        self._residence.forget_response()
        self._turn.fits += 1
        turn, config = self._turn, self._engine.config
        seed = derived_seed(turn.random_seed, turn.round, self.id, "fit", turn.fits)
        self._engine.seed(seed)
        if batches is not None and budget is not None:
            raise ValueError("fit got batches and a budget; batches are gone through once, so leave the budget out")
        generator = torch.Generator().manual_seed(seed)
        private = self._engine.rows
        if private is not None:
            self._refuse_unaccounted(batches, budget, objective, train)
            steps = self.steps()
            purpose = f"round {turn.round}, client {self.id}"
            batches = private.batches(self._batch_maker, self._rows.train, config.batch_size, steps, purpose, generator)
        elif batches is None:
            steps = self.steps(budget)
            batches = self._batch_maker.training(
                self._rows.train, config.batch_size, steps * config.accumulate, config.drop_last, generator
            )
        else:
            batches = list(batches)
            steps = -(-len(batches) // config.accumulate)

        def learning_rate(step: int) -> float:
            return learning_rate_at(config.optimizer, turn.round + (step + 0.5) / max(steps, 1), turn.rounds)

        loss, done, examples = self._engine.fit(
            batches,
            learning_rate,
            objective,
            train,
            lr_scale,
            gradient,
            self.state.get(OPTIMIZER_STATE) if self._keep_optimizer else None,
            None if after_step is None else lambda done: after_step(done, steps),
        )
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"client {self.id} ({self.site}): the loss became {loss} in round {turn.round}. Lower "
                f"fit.optimizer.learning_rate ({config.optimizer.learning_rate:g}), set fit.clip_norm, "
                "or use fit.precision: float32"
            )
        if self._keep_optimizer:
            self.state[OPTIMIZER_STATE] = self._engine.optimizer_state()
        if self._engine.weights.local:
            self.state[LOCAL_STATE] = {name: block.clone() for name, block in self._engine.weights.local.items()}
        rate_sum = math.fsum(learning_rate(step) for step in range(done))
        return FitReport(loss, done, examples, time.perf_counter() - start, rate_sum)

    def _refuse_unaccounted(self, *own: Any) -> None:
        """Raises ValueError for a fit whose steps are not those that the accountant of row privacy counts."""
        if self._turn.fits > 1 or any(value is not None for value in own):
            raise ValueError(
                "privacy.unit: record accounts for one fit a round, with the config's budget and objective; the "
                "algorithm makes another"
            )

    def respond(self, batch: Batch, output: str) -> Tensor:
        self._seed_step()
        return self._output(self._residence.respond(batch), output).detach()

    def step(self, batch: Batch, loss: Loss, *, rate: float | None = None, fresh: bool = False) -> float:
        outputs = self._residence.take_response(batch)
        if outputs is None:
            self._seed_step()
            outputs = self._engine.respond(batch)
        if fresh:
            self._engine.restore_stepper({})
        turn, optimizer = self._turn, self._engine.config.optimizer
        value = loss(outputs, batch)
        self._engine.step(value, learning_rate_at(optimizer, turn.round + 0.5, turn.rounds) if rate is None else rate)
        turn.steps += 1
        result = float(value.detach())
        if not math.isfinite(result):
            raise FloatingPointError(
                f"client {self.id} ({self.site}): the loss on public data became {result} in round {turn.round}. Lower "
                "algorithm.public_learning_rate or fit.optimizer.learning_rate, or set fit.clip_norm"
            )
        return result

    def _seed_step(self) -> None:
        """The same dropout in both halves of a step, however often its forward pass is made."""
        turn = self._turn
        self._engine.seed(derived_seed(turn.random_seed, turn.round, self.id, "step", turn.steps))

    def steps(self, budget: Budget | None = None) -> int:
        """Optimizer steps that a budget (the config's when not given) comes to for this client's rows."""
        return num_steps(self._engine.config, self.num_examples, budget)

    def batches(self, split: Split) -> Iterator[Batch]:
        return self._batch_maker.ordered(self._rows.of(split), self._engine.config.batch_size)

    def evaluate(self, split: Split) -> EvalReport:
        return self._score(self, split)

    def measure(self, split: Split, loss: Loss | None = None, *, fraction: float = 1.0) -> float:
        rows = self._rows.of(split)
        if len(rows) < 2:
            raise ValueError(
                f"client {self.id} ({self.site}) has {len(rows)} rows in {split}, and its loss there is asked for; "
                "set partition.min_examples, or take the loss on train"
            )
        seed = derived_seed(self._turn.random_seed, "measure", split, self.id)  # the same rows in every round
        rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))]
        rows = rows[: max(2, round(fraction * len(rows)))]
        size = min(self._pools[split], len(rows))
        sizes = batch_sizes(len(rows), size, drop_last=True)
        loss = loss or self.loss
        total = 0.0
        for batch in self._batch_maker.ordered(rows[: sum(sizes)], size):
            with torch.no_grad():
                total += float(loss(self.outputs(batch), batch)) * len(batch["row"])
        return total / sum(sizes)

    def forward(self, batch: Batch, output: str) -> Tensor:
        return self._output(self.outputs(batch), output)

    @staticmethod
    def _output(outputs: Mapping[str, Tensor], name: str) -> Tensor:
        if name not in outputs:
            raise ValueError(f"the model has no output {name!r}; it has {', '.join(sorted(outputs))}")
        return outputs[name]

    def outputs(self, batch: Batch) -> Mapping[str, Tensor]:
        """All outputs of the model in eval mode, without gradients."""
        return self._engine.forward(batch)

    def reference(self, blocks: Blocks, name: str = "anchor") -> Callable[[Batch], Mapping[str, Tensor]]:
        return self._engine.reference(blocks, name)

    def dot(self, a: Blocks, b: Blocks) -> float:
        # float64: thousands of small products lose digits in float32.
        return self._engine.total(
            sum(
                float(torch.dot(a[name].trainable.double(), b[name].trainable.double()))
                for name in sorted(a)
                if name in b
            )
        )


def num_steps(config: FitConfig, num_examples: int, budget: Budget | None = None) -> int:
    """Optimizer steps that a budget (the config's when not given) comes to for so many rows."""
    budget = budget or Budget(config.steps, config.epochs)
    if budget.steps is not None:
        return budget.steps
    assert budget.epochs is not None, "a budget has steps or epochs"
    per_epoch = len(batch_sizes(num_examples, config.batch_size, config.drop_last))
    return max(1, math.ceil(budget.epochs * per_epoch / config.accumulate))


def owned_blocks(engine: Engine, modalities: frozenset[str]) -> frozenset[BlockName]:
    """The exchanged blocks of a client with these modalities: all, unless the model tells clients apart."""
    shared = frozenset(engine.weights.shared)
    return shared & engine.module.blocks_of(modalities) if isinstance(engine.module, FusionModel) else shared


def held_columns(engine: Engine, modalities: frozenset[str]) -> frozenset[str] | None:
    """Columns of a client's batches; None: all that there are."""
    if not isinstance(engine.module, FusionModel):
        return None
    return engine.module.columns_of(modalities) | {"label"}


def park(value: Any) -> Any:
    """State moved to the CPU, for the time until the client's next turn."""
    if isinstance(value, Block):
        return Block(value.flat.cpu(), value.layout)
    if isinstance(value, Tensor):
        return value.cpu()
    if isinstance(value, Mapping):
        return {key: park(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [park(item) for item in value]
    return value
