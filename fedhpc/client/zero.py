"""How a client steps on several ranks: one model over a DeepSpeed ZeRO group, turned over from client to client.

Every rank of a slot makes the same calls as on one device (engine.py). Rows of a batch are dealt to the ranks
(zero_rows.py), weights and optimizer are sharded by DeepSpeed, and a rank's Blocks are its own shards (zero_shards.py):
no rank reads or sends the whole model.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from torch import Tensor, nn

from fedhpc.client.engine import build_optimizer, freeze_twin, groups_of, known_blocks, seed_generators
from fedhpc.client.private_rows import RowGradients
from fedhpc.client.zero_build import build_together, partition
from fedhpc.client.zero_config import GroupOfSlot, deepspeed_config
from fedhpc.client.zero_rows import Ranks, SplitModel, split_batch_norms
from fedhpc.client.zero_shards import Present, Shards, exchanged
from fedhpc.comm.mesh import Mesh
from fedhpc.config.schema import FitConfig, ShardingConfig
from fedhpc.interfaces import Batch, Block, BlockName, Blocks, GradientTerm, Loss, Objective
from fedhpc.models.stowing import Stowing
from fedhpc.models.towers import Tower


class ShardedWeights:
    """What engine.weights is where one rank has it all: the exchange's view of the model."""

    def __init__(self, shards: Shards) -> None:
        self._shards = shards
        self.local: Blocks = {}

    @property
    def shared(self) -> Blocks:
        """Present shards; each access of a block makes a copy."""
        return Present(self._shards)

    def load(self, blocks: Blocks) -> None:
        self._shards.load(blocks)


class ZeroEngine:
    """A model, its optimizer and the loop over batches, on all ranks of a slot.

    Args:
        build: makes the model on the CPU, the same one on every rank, whatever the number of ranks.
        loss: what is minimised where a client gives no objective of its own; sees the whole batch.

    Raises:
        ValueError: the model cannot be sharded.
    """

    def __init__(
        self,
        build: Callable[[], nn.Module],
        loss: Loss,
        config: FitConfig,
        sharding: ShardingConfig,
        device: torch.device,
        mesh: Mesh,
    ) -> None:
        self._ranks = Ranks(mesh.shard_index, mesh.shard, mesh.shard_group)
        start_deepspeed(self._ranks, device)
        self.device = device
        self.config = config
        self.loss = loss
        self.rows: RowGradients | None = None  # refused with sharding
        self.first_local: Blocks = {}  # config.checks refuses local blocks
        self._build = build
        self._sharding = sharding
        self._mpu = GroupOfSlot(self._ranks)
        self._dtype = torch.bfloat16 if config.precision == "bfloat16" else torch.float32
        module, stowing = self._prepared()
        groups = [
            {"params": [p for p in tensors.values() if isinstance(p, nn.Parameter)], "block": name}
            for name, tensors in exchanged(module).items()
        ]
        self._settings = deepspeed_config(config, sharding, module, self._ranks.count)
        optimizer = build_optimizer(config.optimizer, groups)
        if stowing is not None:
            partition(module, stowing, self._settings, self._mpu, self._dtype)
        self._deepspeed, *_ = deepspeed.initialize(
            model=module,
            optimizer=optimizer,
            config=self._settings,
            mpu=self._mpu,
            dist_init_required=False,
        )
        if sharding.zero == 3 and not sharding.offload_optimizer:
            share_master_weights(self._deepspeed.optimizer)
        self.module = module
        self._shards = Shards(module, self._deepspeed.optimizer, sharding.zero, self._ranks, device)
        self.weights = ShardedWeights(self._shards)
        self._model = SplitModel(self._deepspeed, self._ranks, self._dtype)
        self._twins: dict[str, Twin] = {}
        self._difference: dict[BlockName, Block] = {}

    def _prepared(self) -> tuple[nn.Module, Stowing | None]:
        """A new model. Under ZeRO-3 no rank has it whole: it is to be dealt out by `partition`."""
        stowing: Stowing | None = None
        if self._sharding.zero == 3 and self._ranks.count > 1:
            module, stowing = build_together(self._build, self._ranks, self.device)
            for layer in module.modules():  # parameters follow; DeepSpeed leaves buffers of such a model where they are
                layer._buffers.update({n: None if b is None else b.to(self.device) for n, b in layer._buffers.items()})
        else:
            module = self._build()
        if self._sharding.activation_checkpointing:
            checkpoint_activations(module, reentrant=self._sharding.zero == 3)
        split_batch_norms(module, self._ranks)
        return module, stowing

    @property
    def ranges(self) -> dict[str, tuple[int, int]]:
        """Tensor name -> the stretch [start, stop) that is this rank's."""
        return self._shards.ranges

    def seed(self, seed: int) -> None:
        """Ranks of a slot draw apart: they have different rows."""
        seed = (seed + 0x9E3779B97F4A7C15 * self._ranks.index) % 2**63
        seed_generators(seed, self.device)

    # ------------------------------------------------------------------------------------------------- weights
    def difference(self, since: Blocks) -> dict[BlockName, Block]:
        """Present weights minus `since`; overwritten by the next call."""
        result = {}
        for name, block in since.items():
            if name in self._shards.members:
                if name not in self._difference:
                    self._difference[name] = block.new_zeros()
                self._shards.difference(name, block, self._difference[name])
                result[name] = self._difference[name]
        return result

    def total(self, value: float) -> float:
        """The sum of what every rank has of a number."""
        return float(self._ranks.sum(torch.tensor([value], dtype=torch.float64, device=self.device)))

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
        """As Engine.fit. Batches are whole ones, the same on every rank."""
        assert optimizer_state is None, "config.checks refuses fit.optimizer.keep_state"
        moving = self._moving(train)
        lr_scale = self._known(lr_scale or {}, "lr_scale")
        objective = objective or (lambda model, batch: self.loss(model(batch), batch))
        engine, model, total = self._deepspeed, self._model, torch.zeros((), device=self.device)
        num_batches = steps = examples = 0
        self._reset_optimizer()
        with self._training(moving):
            for group in groups_of(batches, self.config.accumulate):
                for number, batch in enumerate(group, start=1):
                    self._check_rows(batch)
                    engine.set_gradient_accumulation_boundary(number == len(group))
                    loss = objective(model, batch)  # type: ignore[arg-type]  # called, and no more
                    engine.backward(loss / len(group), scale_wrt_gas=False)
                    total += loss.detach().float()
                    examples += len(next(iter(batch.values())))
                num_batches += len(group)
                if gradient is not None:
                    toward = gradient.toward if gradient.pull else None
                    self._shards.correct(moving, gradient.pull, toward, gradient.offset)
                rate = learning_rate(steps)
                for param_group in engine.optimizer.param_groups:
                    name = param_group["block"]
                    # A block that stands: no step, whatever its moments and weight decay.
                    param_group["lr"] = rate * lr_scale.get(name, 1.0) if name in moving else 0.0
                engine.step()
                steps += 1
                if after_step is not None:
                    after_step(steps)
        return float(total) / max(num_batches, 1), steps, examples

    def restore_stepper(self, state: Mapping[str, Any]) -> None:
        """Single steps are for clients with models of their own, which shards do not have."""
        assert not state

    def optimizer_state(self) -> dict[str, Any]:
        raise AssertionError("config.checks refuses fit.optimizer.keep_state")

    def _reset_optimizer(self) -> None:
        """Moments and step counts go back to zero in place: DeepSpeed holds views of them."""
        for moments in self._deepspeed.optimizer.optimizer.state.values():
            for value in moments.values():
                if isinstance(value, Tensor):
                    value.zero_()

    def _check_rows(self, batch: Batch) -> None:
        rows = len(next(iter(batch.values())))
        if rows < self._ranks.count:
            raise ValueError(
                f"a training batch of {rows} rows cannot be dealt to mesh.shard: {self._ranks.count} ranks; set "
                f"partition.min_examples: {self._ranks.count} and fit.drop_last: true, or a smaller mesh.shard"
            )

    def _moving(self, train: Sequence[BlockName] | None) -> tuple[BlockName, ...]:
        if train is None:
            return tuple(self._shards.members)
        wanted = self._known(dict.fromkeys(train, 1.0), "train")
        return tuple(name for name in self._shards.members if name in wanted)

    def _known(self, blocks: Mapping[BlockName, float], what: str) -> Mapping[BlockName, float]:
        return known_blocks(blocks, set(self._shards.members), what)

    @contextmanager
    def _training(self, moving: tuple[BlockName, ...]) -> Iterator[None]:
        """Train mode; blocks that do not move are frozen and in eval mode meanwhile."""
        self.module.train()
        prefixes: Any = self.module.block_prefixes
        modules = dict(self.module.named_modules())
        still = [name for name in self._shards.members if name not in moving]
        frozen = [m.tensor for name in still for m in self._shards.members[name] if isinstance(m.tensor, nn.Parameter)]
        for name in still:
            for prefix in prefixes[name]:
                if prefix.rstrip(".") in modules:
                    modules[prefix.rstrip(".")].eval()
        for parameter in frozen:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in frozen:
                parameter.requires_grad_(True)

    # ---------------------------------------------------------------------------------------------- evaluation
    @torch.no_grad()
    def forward(self, batch: Batch) -> Mapping[str, Tensor]:
        """All outputs of the model in eval mode, of the whole batch; each is gathered when asked for."""
        self.module.eval()
        return self._model(batch)

    def reference(self, blocks: Blocks, name: str) -> Callable[[Batch], Mapping[str, Tensor]]:
        """The model's outputs under `blocks`. A twin of the model a `name`, sharded as the model is."""
        if name not in self._twins:
            # Building seeds torch's generators; what the client draws must not depend on who needs the twin first.
            with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
                module, stowing = self._prepared()
            if stowing is not None:
                partition(module, stowing, self._settings, self._mpu, self._dtype)
            self._twins[name] = Twin(module, self._settings, self._sharding.zero, self._mpu, self._dtype, self.device)
        twin = self._twins[name]
        twin.load(blocks)
        return twin.outputs


class Twin:
    """The same model under other weights, without gradients, normalised by the batch as the training model is.

    Under ZeRO-3 its parameters are sharded too; under ZeRO-1 and 2 every rank has them all, as it has the model's.
    """

    def __init__(
        self,
        module: nn.Module,
        settings: Mapping[str, Any],
        stage: int,
        mpu: GroupOfSlot,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._stage = stage
        self._ranks = mpu.ranks
        self._names = {name for tensors in exchanged(module).values() for name in tensors}
        self._module = module
        run: Any = module
        if stage == 3:
            run, *_ = deepspeed.initialize(model=module, config={**settings}, mpu=mpu, dist_init_required=False)
            self._shards = Shards(module, run.optimizer, stage, self._ranks, device, trained=False)
        else:
            module.to(device, dtype)
        freeze_twin(module)
        self._model = SplitModel(run, self._ranks, dtype)

    @torch.no_grad()
    def load(self, blocks: Blocks) -> None:
        if self._stage == 3:
            self._shards.load(blocks)
            return
        own = {**dict(self._module.named_parameters()), **dict(self._module.named_buffers())}
        for block in blocks.values():
            assert block.layout.pieces is not None
            for spec, piece in zip(block.layout.specs, block.layout.pieces, strict=True):
                whole = torch.zeros(own[spec.name].numel(), device=own[spec.name].device)
                whole[piece.start : piece.start + spec.shape[0]] = block.view(spec)
                self._ranks.sum(whole.view(torch.int32))
                own[spec.name].copy_(whole.view(piece.shape))

    @torch.no_grad()
    def outputs(self, batch: Batch) -> Mapping[str, Tensor]:
        return self._model(batch)


def checkpoint_activations(module: nn.Module, *, reentrant: bool) -> None:
    """Have encoders recompute their activations in the backward pass.

    reentrant: torch's older way, the only one in which ZeRO-3's record of which layer comes when holds (DeepSpeed
    0.19.8 ends with a "tracing error" in the other).

    Raises:
        ValueError: an encoder has no such option.
    """
    from timm.layers import set_reentrant_ckpt

    set_reentrant_ckpt(reentrant)
    for name, encoder in module.named_children():
        net: Any = getattr(encoder, "net", None)
        if net is None:
            continue
        net = net.net if isinstance(net, Tower) else net
        if hasattr(net, "set_grad_checkpointing"):
            net.set_grad_checkpointing(True)
        elif getattr(net, "supports_gradient_checkpointing", False):
            net.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
        else:
            raise ValueError(
                f"sharding.activation_checkpointing: true, but the {name.replace('_', ' ')} ({type(net).__name__}) "
                "cannot recompute its activations; set it to false, or choose another network"
            )


def share_master_weights(optimizer: Any) -> None:
    """Have ZeRO-3 keep float32 weights once: what the model computes with is what the optimizer steps on.

    DeepSpeed means to (stage3.py, _create_fp32_partitions: "we don't need another copy"), but compares a device with a
    device's name, which never agree: a fifth of all model states would be a copy.
    """
    for computed, master in zip(
        optimizer.fp16_partitioned_groups_flat, optimizer.fp32_partitioned_groups_flat, strict=True
    ):
        if computed is not None and computed.dtype == master.dtype and computed.device == master.device:
            master.data = computed.data


def start_deepspeed(ranks: Ranks, device: torch.device) -> None:
    """Before anything else is asked of DeepSpeed."""
    deepspeed.utils.logger.setLevel(logging.WARNING)
    _compare_within(ranks, device)
    # Would be compiled at the first start on a CPU, for minutes, and serves inference only.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if not dist.is_initialized():  # DeepSpeed asks for a group even where there is nobody to talk to
        backend = "gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)


def _compare_within(ranks: Ranks, device: torch.device) -> None:
    """ZeRO-3 asks, whenever it has learned in which order layers come, whether all ranks of the *world* have seen the
    same. Slots are at steps of their own, one may even stand still for a round: they would wait for each other until
    the timeout. So only the ranks of a slot are asked."""
    from deepspeed.runtime.zero import partitioned_param_coordinator as coordinator

    def same(ints: list[int]) -> None:
        seen = zlib.crc32(str(ints).encode())
        total = int(ranks.sum(torch.tensor([seen], device=device)))  # nccl adds on the GPU only
        if total != seen * ranks.count:
            raise RuntimeError(f"the {ranks.count} ranks of a slot ran other layers than each other: {ints} here")

    coordinator.assert_ints_same_as_other_ranks = same
