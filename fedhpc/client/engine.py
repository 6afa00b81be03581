"""How a client steps on one device: one resident model, whose weights are turned over from client to client."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fedhpc.client.private_rows import RowGradients
from fedhpc.config.schema import FitConfig, OptimizerConfig
from fedhpc.interfaces import Batch, Block, BlockName, Blocks, GradientTerm, Loss, Objective
from fedhpc.models.blocks import LOCAL, NORM_LAYERS, FlatModel
from fedhpc.models.narrow import channels_last


class Weights(Protocol):
    """The exchange's view of a resident model: its present blocks, shared and local, and how to put others in."""

    @property
    def shared(self) -> Blocks: ...

    @property
    def local(self) -> Blocks: ...

    def load(self, blocks: Blocks) -> None: ...


class ClientEngine(Protocol):
    """What a client's turn needs of whatever steps for it: `Engine` on one device, `zero.ZeroEngine` on several."""

    device: torch.device
    config: FitConfig
    loss: Loss
    rows: RowGradients | None  # makes the gradients of `fit` under record-level privacy

    @property
    def first_local(self) -> Blocks: ...

    @property
    def weights(self) -> Weights: ...

    def seed(self, seed: int) -> None: ...

    def difference(self, since: Blocks) -> dict[BlockName, Block]: ...

    def total(self, value: float) -> float: ...

    def fit(
        self,
        batches: Iterable[Batch],
        learning_rate: Callable[[int], float],
        objective: Objective | None = None,
        train: Sequence[BlockName] | None = None,
        lr_scale: Mapping[BlockName, float] | None = None,
        gradient: GradientTerm | None = None,
        optimizer_state: Mapping[str, Any] | None = None,
        after_step: Callable[[int], None] | None = None,
    ) -> tuple[float, int, int]: ...

    def optimizer_state(self) -> dict[str, Any]: ...

    def restore_stepper(self, state: Mapping[str, Any]) -> None: ...

    def forward(self, batch: Batch) -> Mapping[str, Tensor]: ...

    def reference(self, blocks: Blocks, name: str) -> Callable[[Batch], Mapping[str, Tensor]]: ...


class Engine:
    """A model, its optimizer and the loop over batches.

    Args:
        module: built and initialised, on the CPU. Moves to `device`.
        loss: what is minimised where a client gives no objective of its own.
    """

    def __init__(
        self,
        module: nn.Module,
        loss: Loss,
        config: FitConfig,
        device: torch.device,
        local_patterns: Iterable[str] = (),
    ) -> None:
        module = module.to(device)
        if config.channels_last:
            module = channels_last(module)
        self.device = device
        self.config = config
        self.loss = loss
        self._local_patterns = tuple(local_patterns)
        self.weights = FlatModel(module, self._local_patterns)
        self._twins: dict[str, FlatModel] = {}
        self.module = module
        self._run: nn.Module = torch.compile(module) if config.compile else module  # type: ignore[assignment]
        self._difference: dict[BlockName, Block] = {
            name: block.new_zeros() for name, block in self.weights.shared.items()
        }
        # What a client's local blocks are before its first turn.
        self.first_local: Blocks = {name: block.clone() for name, block in self.weights.local.items()}
        self._optimizers: dict[tuple[tuple[BlockName, ...], bool], torch.optim.Optimizer] = {}
        self._stepper: torch.optim.Optimizer | None = None
        # The first one is slow: pay before the first round.
        self._last = self._optimizer(tuple(self.weights.blocks), False)
        self.rows: RowGradients | None = None

    def seed(self, seed: int) -> None:
        """Start the generators that models draw from."""
        seed_generators(seed, self.device)

    # ------------------------------------------------------------------------------------------------- weights
    def difference(self, since: Blocks) -> dict[BlockName, Block]:
        """Present weights minus `since`; overwritten by the next call."""
        result = {}
        for name, block in since.items():
            if name in self._difference:
                torch.sub(self.weights.blocks[name].flat, block.flat, out=self._difference[name].flat)
                result[name] = self._difference[name]
        return result

    def total(self, value: float) -> float:
        """The sum of what each of the client's ranks has of a number: here there is one."""
        return value

    # ------------------------------------------------------------------------------------------------ training
    def fit(
        self,
        batches: Iterable[Batch],
        learning_rate: Callable[[int], float],
        objective: Objective | None = None,
        train: Sequence[BlockName] | None = None,
        lr_scale: Mapping[BlockName, float] | None = None,
        gradient: GradientTerm | None = None,
        optimizer_state: Mapping[str, Any] | None = None,
        after_step: Callable[[int], None] | None = None,
    ) -> tuple[float, int, int]:
        """One optimizer step per `config.accumulate` batches.

        Args:
            learning_rate: step -> learning rate, before lr_scale.
            optimizer_state: moments to go on with; without it they start from zero.
            after_step: called with the number of steps done, after each.

        Returns:
            Mean loss over batches (nan is possible: the caller knows whose it is), steps, examples.
        """
        moving = self._moving(train)
        objective = objective or (lambda model, batch: self.loss(model(batch), batch))
        config = self.config
        with self._training(moving):
            lr_scale = self._known(lr_scale or {}, "lr_scale")
            optimizer = self._last = self._optimizer(moving, bool(lr_scale))
            optimizer.state.clear()
            if optimizer_state is not None:
                self._restore_optimizer(optimizer, optimizer_state)
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            correction = Correction(self.weights, moving, gradient) if gradient is not None else None
            scales = [lr_scale.get(group["block"].removeprefix(LOCAL), 1.0) for group in optimizer.param_groups]
            total = torch.zeros((), device=self.device)
            num_batches = steps = examples = 0
            for group in groups_of(batches, config.accumulate):
                for batch in group:
                    if self.rows is not None:
                        loss = self.rows.backward(batch)
                    else:
                        with self._autocast():
                            loss = objective(self._run, batch)
                        (loss if len(group) == 1 else loss / len(group)).backward()
                    total += loss.detach()
                    examples += len(next(iter(batch.values())))
                num_batches += len(group)
                if correction is not None:
                    correction.apply()
                if config.clip_norm is not None:
                    torch.nn.utils.clip_grad_norm_(parameters, config.clip_norm)
                rate = learning_rate(steps)
                for param_group, scale in zip(optimizer.param_groups, scales, strict=True):
                    param_group["lr"] = rate * scale
                optimizer.step()
                for parameter in parameters:
                    parameter.grad = None
                steps += 1
                if after_step is not None:
                    after_step(steps)
        return float(total) / max(num_batches, 1), steps, examples

    # ---------------------------------------------------------------------------- single steps, beside those of `fit`
    def respond(self, batch: Batch) -> Mapping[str, Tensor]:
        """All outputs of the model in train mode, with the graph that a `step` goes back through."""
        self.module.train()
        with self._autocast():
            outputs: Mapping[str, Tensor] = self._run(batch)
        return outputs

    def step(self, loss: Tensor, rate: float) -> None:
        """One optimizer step of everything, with moments of its own that stay from step to step."""
        loss.backward()
        parameters = [p for group in self.stepper.param_groups for p in group["params"]]
        if self.config.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(parameters, self.config.clip_norm)
        for group in self.stepper.param_groups:
            group["lr"] = rate
        self.stepper.step()
        for parameter in parameters:
            parameter.grad = None

    @property
    def stepper(self) -> torch.optim.Optimizer:
        """The optimizer of single steps; made when first asked for."""
        if self._stepper is None:
            parameters = [p for block in self.weights.parameters.values() for p in block]
            self._stepper = build_optimizer(self.config.optimizer, [{"params": parameters, "block": ""}])
        return self._stepper

    def stepper_state(self) -> dict[str, Any]:
        """Moments of single steps, by parameter name, on the CPU."""
        return self.optimizer_state(self.stepper)

    def restore_stepper(self, state: Mapping[str, Any]) -> None:
        """Moments of single steps; empty: from zero."""
        if self._stepper is not None or state:
            self.stepper.state.clear()
            self._restore_optimizer(self.stepper, state)

    def optimizer_state(self, optimizer: torch.optim.Optimizer | None = None) -> dict[str, Any]:
        """Moments (of the last fit's optimizer when none is given), by parameter name, on the CPU."""
        names = {id(p): n for n, p in self.module.named_parameters()}
        return {
            names[id(parameter)]: {key: value.cpu().clone() for key, value in state.items() if value is not None}
            for parameter, state in (optimizer or self._last).state.items()
        }

    def _restore_optimizer(self, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
        parameters = dict(self.module.named_parameters())
        for name, moments in state.items():
            parameter = parameters[name]
            optimizer.state[parameter] = {
                # A step counter stays as it is; moments take the parameter's memory format, as the kernels demand.
                key: value.to(self.device) if value.dim() == 0 else torch.empty_like(parameter).copy_(value)
                for key, value in moments.items()
            }

    def _moving(self, train: Sequence[BlockName] | None) -> tuple[BlockName, ...]:
        """Blocks that move, their local parts included."""
        if train is None:
            return tuple(self.weights.blocks)
        wanted = self._known(dict.fromkeys(train, 1.0), "train")
        return tuple(name for name in self.weights.blocks if name.removeprefix(LOCAL) in wanted)

    def _known(self, blocks: Mapping[BlockName, float], what: str) -> Mapping[BlockName, float]:
        return known_blocks(blocks, {name.removeprefix(LOCAL) for name in self.weights.blocks}, what)

    def _optimizer(self, moving: tuple[BlockName, ...], by_block: bool) -> torch.optim.Optimizer:
        """Kept from fit to fit. A group a block where their learning rates differ, else one: a kernel call a group."""
        key = (moving, by_block)
        if key not in self._optimizers:
            groups = [{"params": self.weights.parameters[b], "block": b} for b in moving if self.weights.parameters[b]]
            if not by_block:
                groups = [{"params": [p for group in groups for p in group["params"]], "block": ""}]
            self._optimizers[key] = build_optimizer(self.config.optimizer, groups)
        return self._optimizers[key]

    @contextmanager
    def _training(self, moving: tuple[BlockName, ...]) -> Iterator[None]:
        """Train mode; blocks that do not move are frozen and in eval mode meanwhile."""
        self.module.train()
        still = [name for name in self.weights.blocks if name not in moving]
        for name in still:
            for module in self.weights.submodules(name):
                module.eval()
            for parameter in self.weights.parameters[name]:
                parameter.requires_grad_(False)
        try:
            yield
        finally:
            for name in still:
                for parameter in self.weights.parameters[name]:
                    parameter.requires_grad_(True)

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.config.precision == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    # ---------------------------------------------------------------------------------------------- evaluation
    @torch.no_grad()  # not inference_mode: algorithms use outputs as targets of later losses
    def forward(self, batch: Batch) -> Mapping[str, Tensor]:
        """All outputs of the model in eval mode."""
        self.module.eval()
        with self._autocast():
            outputs: Mapping[str, Tensor] = self._run(batch)
        return outputs

    def reference(self, blocks: Blocks, name: str) -> Callable[[Batch], Mapping[str, Tensor]]:
        """The model's outputs under `blocks`; local blocks are the present client's. A twin of the model a `name`."""
        if name not in self._twins:
            twin = self._twins[name] = FlatModel(copy.deepcopy(self.module), self._local_patterns)
            freeze_twin(twin.module)
        twin = self._twins[name]
        twin.load({**blocks, **self.weights.local})

        @torch.no_grad()
        def outputs(batch: Batch) -> Mapping[str, Tensor]:
            with self._autocast():
                result: Mapping[str, Tensor] = twin.module(batch)
            return result

        return outputs


class Correction:
    """Applies a GradientTerm."""

    def __init__(self, weights: FlatModel, moving: Sequence[BlockName], term: GradientTerm) -> None:
        self._pull = term.pull
        self._pulled: list[nn.Parameter] = []
        self._targets: list[Tensor] = []
        self._shifted: list[nn.Parameter] = []
        self._offsets: list[Tensor] = []
        for name in moving:
            by_name = dict(
                zip([s.name for s in weights.blocks[name].layout.specs], weights.parameters[name], strict=False)
            )
            for blocks, owners, tensors in (
                (term.toward if term.pull else None, self._pulled, self._targets),
                (term.offset, self._shifted, self._offsets),
            ):
                if blocks is not None and name in blocks:
                    owners += by_name.values()
                    tensors += [blocks[name][tensor] for tensor in by_name]

    def apply(self) -> None:
        """grad += pull * (w - toward) + offset. A parameter without gradient in this step is left alone."""
        with torch.no_grad():
            for w, target in zip(self._pulled, self._targets, strict=True):
                if w.grad is not None:
                    w.grad.add_(w - target, alpha=self._pull)
            for w, offset in zip(self._shifted, self._offsets, strict=True):
                if w.grad is not None:
                    w.grad.add_(offset)


def seed_generators(seed: int, device: torch.device) -> None:
    """torch.manual_seed would ask every backend, which takes a millisecond without a GPU: as long as some steps."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def known_blocks(blocks: Mapping[BlockName, float], have: Set[BlockName], what: str) -> Mapping[BlockName, float]:
    """`blocks`, when all are among those that learn, else a ValueError. what: the argument that names them."""
    if unknown := sorted(set(blocks) - have):
        raise ValueError(f"{what} names {', '.join(unknown)}; the blocks that learn are {', '.join(sorted(have))}")
    return blocks


def freeze_twin(module: nn.Module) -> None:
    """Without gradients, in eval mode, but normalised by the batch as the training model is."""
    module.requires_grad_(False).eval()
    for layer in module.modules():
        if isinstance(layer, NORM_LAYERS["batch_norm"]):
            layer.train()  # its running statistics come anew with every `load`


def build_optimizer(config: OptimizerConfig, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """Fused kernels of torch.optim."""
    common: dict[str, Any] = {"lr": config.learning_rate, "weight_decay": config.weight_decay, "fused": True}
    if config.name == "sgd":
        return torch.optim.SGD(groups, momentum=config.momentum, **common)
    kind = torch.optim.AdamW if config.name == "adamw" else torch.optim.Adam
    return kind(groups, betas=config.betas, eps=config.eps, **common)


def groups_of(batches: Iterable[Batch], size: int) -> Iterator[list[Batch]]:
    """Lists of `size` batches; the last may be shorter."""
    group: list[Batch] = []
    for batch in batches:
        group.append(batch)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def learning_rate_at(config: OptimizerConfig, round_progress: float, rounds: int) -> float:
    """Learning rate when `round_progress` rounds (a fraction counts) of `rounds` are behind. Callers pass the middle
    of a step, so that neither the first nor the last rate is zero."""
    rate = config.learning_rate
    if config.warmup_rounds and round_progress < config.warmup_rounds:
        return rate * round_progress / config.warmup_rounds
    if config.schedule == "constant":
        return rate
    done = (round_progress - config.warmup_rounds) / max(rounds - config.warmup_rounds, 1e-9)
    return rate * (0.5 * (1 + math.cos(math.pi * done)) if config.schedule == "cosine" else 1 - done)
