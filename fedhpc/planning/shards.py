"""Memory of a rank for a model that one process may have no room for: worked out from shapes, nothing is measured.

What is counted are tensors that grow with the model. Activations, layers that are gathered while they run, DeepSpeed's
buckets (a few tenths of a rank's weights) and the process itself come on top.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from fedhpc.config.algorithms import FedDRAConfig, FedOptConfig, MoonConfig, ScaffoldConfig
from fedhpc.config.blocks import encoders
from fedhpc.config.schema import DualEncoderConfig, EncoderConfig, FusionConfig, RunConfig
from fedhpc.data.hdf5 import PackedFile
from fedhpc.data.select import data_spec
from fedhpc.interfaces import DataSpec
from fedhpc.models.blocks import block_of
from fedhpc.models.shapes import Shapes
from fedhpc.models.zoo import build_model
from fedhpc.task import data_path

MEMINFO = Path("/proc/meminfo")
STEPPING = "a block's gradients in its step"
MODEL_STATES = ("weights", "float32 copies", "gradients", "moments")


@dataclass(frozen=True)
class Elements:
    """Numbers that a model has."""

    learned: int  # parameters that train
    frozen: int  # parameters that do not
    statistics: int = 0  # float buffers of what trains: exchanged with it
    outside: int = 0  # of the learned ones, those outside of encoders
    largest: int = 0  # of the learned ones, those of the largest block

    @property
    def parameters(self) -> int:
        return self.learned + self.frozen


@dataclass(frozen=True)
class RankMemory:
    """Bytes of one rank, by what they are for. host: what is not on the rank's device, where that is a GPU."""

    elements: Elements
    device: Mapping[str, int]
    host: Mapping[str, int] = field(default_factory=dict)

    @property
    def model_states(self) -> int:
        """Weights, gradients and what the optimizer keeps, on the device."""
        return sum(self.device.get(name, 0) for name in MODEL_STATES)

    @property
    def total(self) -> int:
        return sum(self.device.values())


def spec_of(config: RunConfig) -> DataSpec:
    """What the packed file says; generated first where the config says so."""
    with PackedFile(data_path(config)) as packed:
        return data_spec(packed, config)


def assumed_spec(config: RunConfig, pictures: tuple[int, int, int], vocabulary: int) -> DataSpec:
    """What the packed file would say of data that are elsewhere. pictures: channels, height, width.

    Raises:
        ValueError: the config leaves open what only the data tell.
    """
    if not isinstance(config.model, DualEncoderConfig):
        raise ValueError(
            f"--pictures and --vocabulary with model.kind: {config.model.kind}, which learns classes that only "
            "the data tell; leave them out, and plan where the packed file is"
        )
    if config.data.max_tokens is None:
        raise ValueError("--vocabulary without data.max_tokens, which the packed file would tell; set data.max_tokens")
    channels, *size = pictures
    return DataSpec(channels, (size[0], size[1]), vocabulary, config.data.max_tokens)


def count(config: RunConfig, spec: DataSpec) -> Elements:
    """Of the config's model, of which only shapes are made.

    Weights of `pretrained` are not read: an encoder is taken to be as its description says, with the packed
    vocabulary. Raises ValueError as building the model would, and for models that are not one for all clients.
    """
    if isinstance(config.model, FusionConfig) or getattr(config.model, "networks", None):
        raise ValueError(
            "--memory counts one model for all clients, not model.networks or model.kind: fusion; leave it out"
        )
    noisy = logging.getLogger("fedhpc.models")
    level = noisy.level
    noisy.setLevel(logging.ERROR)  # that only architectures are taken is known here
    try:
        with Shapes():
            module = build_model(_described(config).model, spec, config.objective)
    finally:
        noisy.setLevel(level)
    return elements_of(module)


def elements_of(module: nn.Module) -> Elements:
    """Of a module with `block_prefixes`."""
    prefixes: Mapping[str, tuple[str, ...]] = module.block_prefixes  # type: ignore[assignment]
    learned = {name: p.numel() for name, p in module.named_parameters() if p.requires_grad}
    blocks = {name: block_of(name, prefixes) for name in learned}
    persistent = set(module.state_dict(keep_vars=True))
    statistics = sum(
        buffer.numel()
        for name, buffer in module.named_buffers()
        if name in persistent and buffer.is_floating_point() and block_of(name, prefixes) in set(blocks.values())
    )
    frozen = sum(p.numel() for p in module.parameters() if not p.requires_grad)
    outside = sum(size for name, size in learned.items() if not blocks[name].startswith("encoder/"))
    by_block = Counter[str]()
    for name, size in learned.items():
        by_block[blocks[name]] += size
    return Elements(sum(learned.values()), frozen, statistics, outside, max(by_block.values(), default=0))


def _described(config: RunConfig) -> RunConfig:
    """The same networks without their weights."""
    changed: dict[str, EncoderConfig] = {}
    for name, encoder in encoders(config.model).items():
        if encoder.pretrained is not None:
            folder = Path(encoder.pretrained).expanduser().is_dir() or "/" in encoder.pretrained
            bare = encoder.pretrained.endswith(".safetensors")
            source = encoder.pretrained if folder and not bare else encoder.name
            changed[name] = encoder.model_copy(update={"name": source, "pretrained": None})
    return config.model_copy(update={"model": config.model.model_copy(update=changed)})


def rank_memory(config: RunConfig, elements: Elements) -> RankMemory:
    """Of one of the ranks that train a client together, or of the one that does."""
    sharding, shard = config.sharding, config.mesh.shard
    stage = 0 if sharding is None else sharding.zero
    low = config.fit.precision == "bfloat16" and sharding is not None  # unsharded it is autocast over float32
    width = 2 if low else 4
    learned, exchanged = -(-elements.learned // shard), -(-(elements.learned + elements.statistics) // shard)
    held = -(-elements.parameters // shard) if stage == 3 else elements.parameters
    optimizer = config.fit.optimizer
    moments = 4 * bool(optimizer.momentum) if optimizer.name == "sgd" else 8
    device = {
        "weights": width * held,
        # ZeRO-1 and 2 step on copies of their stretches, ZeRO-3 on the weights themselves where these are float32.
        "float32 copies": 4 * learned if low or stage in (1, 2) else 0,
        "gradients": width * (learned if stage > 1 else elements.learned),
        "moments": moments * learned,
        # DeepSpeed lays the gradients of an optimizer's group end to end, then turns them into float32.
        STEPPING: (6 if low else 4) * -(-elements.largest // shard) if sharding else 0,
        "shared model, initial model, update": 12 * exchanged,
        "an exchange": _exchange(config) * exchanged,
        "models beside it": width * held * _twins(config) + _beside(config, learned, -(-elements.outside // shard)),
    }
    host: dict[str, int] = {}
    if sharding is not None and sharding.offload_optimizer:
        host = {"float32 copies": 4 * learned, "moments": device.pop("moments"), "gradients": 4 * learned}
        device |= {"float32 copies": 0, STEPPING: 0}
        if stage > 1:  # as they arrive
            host["gradients"] += device.pop("gradients") if stage == 3 else 0
            device["gradients"] = 0
    if sharding is not None and sharding.offload_parameters:
        host["weights"] = device.pop("weights")
    return RankMemory(elements, {k: v for k, v in device.items() if v}, {k: v for k, v in host.items() if v})


def _exchange(config: RunConfig) -> int:
    """Bytes an element while contributions are summed: the buffer of the sum, and the mean that comes out."""
    how = config.aggregation
    sum_bytes = 8 if how.arithmetic == "fixed_point" and how.ring_bits == 64 else 4
    return (sum_bytes + 4) * (2 if isinstance(config.algorithm, ScaffoldConfig) else 1)  # variates travel too


def _twins(config: RunConfig) -> int:
    """Whole models beside the one that trains, for their outputs."""
    algorithm = config.algorithm
    if isinstance(algorithm, FedDRAConfig):
        return 1 if algorithm.mu else 0
    return 2 if isinstance(algorithm, MoonConfig) else 0


def _beside(config: RunConfig, learned: int, outside: int) -> int:
    """What a method keeps besides, on the device."""
    algorithm = config.algorithm
    if isinstance(algorithm, FedDRAConfig):  # what stage 1 moved, and the mean that it came from
        return 8 * outside
    if isinstance(algorithm, ScaffoldConfig):  # the shared variate, and the correction of a turn
        return 8 * learned
    if isinstance(algorithm, FedOptConfig):
        return (4 if algorithm.server_optimizer == "momentum" else 8) * learned
    return 0


def whole(config: RunConfig) -> RunConfig:
    """The same run with one rank a client."""
    return config.model_copy(update={"mesh": config.mesh.model_copy(update={"shard": 1}), "sharding": None})


def refuse_too_large(config: RunConfig, elements: Elements, on_cpu: bool) -> None:
    """Raises ValueError when the run cannot be measured here, which one process does with the whole model.

    on_cpu: even where the config wants a GPU.
    """
    needed, free = rank_memory(whole(config), elements).total, None
    if not on_cpu and config.runtime.device != "cpu" and torch.cuda.is_available():
        free = torch.cuda.mem_get_info()[0]
    elif MEMINFO.exists():
        found = re.search(r"^MemAvailable: +(\d+) kB", MEMINFO.read_text(), re.MULTILINE)
        free = None if found is None else int(found[1]) << 10
    if free is not None and needed > free:
        raise ValueError(
            f"the rest of a plan is measured with the whole model in one process: {needed / 2**30:.1f} GiB, and "
            f"{free / 2**30:.1f} GiB are free; plan on a larger machine, or ask with --memory for memory alone"
        )


def lines(memory: RankMemory) -> Iterator[tuple[str, int, int]]:
    """(what, bytes of the device, bytes of the host), model states first and added up, all added up last."""
    names = [*dict.fromkeys([*MODEL_STATES, *memory.device])]
    for name in names:
        if name in memory.device or name in memory.host:
            yield name, memory.device.get(name, 0), memory.host.get(name, 0)
        if name == MODEL_STATES[-1]:
            yield "model states", memory.model_states, sum(memory.host.values())
    yield "in all", memory.total, sum(memory.host.values())
