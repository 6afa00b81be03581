"""Cuts a model into named blocks, and moves all of a model's exchangeable tensors into one flat buffer.

A model says which parameter names belong to which block (`block_prefixes`). Trainable parameters and float buffers are
exchanged; frozen parameters and integer counters are not, and stay where they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatch
from math import prod

import torch
from torch import Tensor, nn

from fedhpc.interfaces import Block, BlockName, Blocks, Layout, TensorSpec

ALIGNMENT = 16  # elements; see TensorSpec
LOCAL = "local/"  # blocks with this prefix stay at their client
# What the words of aggregation.local_blocks stand for (NORM_WORDS of fedhpc.config.blocks).
NORM_LAYERS: Mapping[str, tuple[type[nn.Module], ...]] = {
    "batch_norm": (nn.modules.batchnorm._BatchNorm,),
    "norm": (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm),
}


def _aligned(numel: int) -> int:
    return -(-numel // ALIGNMENT) * ALIGNMENT


def _dense_stride(tensor: Tensor) -> tuple[int, ...]:
    """The tensor's stride where its elements fill memory without gaps (channels_last does), else row-major."""
    dims = sorted((d for d in range(tensor.dim()) if tensor.shape[d] > 1), key=tensor.stride)
    expected = 1
    for d in dims:
        if tensor.stride(d) != expected:
            return torch.empty(tensor.shape, device="meta").stride()
        expected *= tensor.shape[d]
    return tensor.stride()


def block_of(name: str, prefixes: Mapping[BlockName, Sequence[str]]) -> BlockName:
    """The block that a tensor belongs to: the longest matching prefix decides."""
    matches = [(len(p), block) for block, ps in prefixes.items() for p in ps if name.startswith(p)]
    assert matches, f"{name} belongs to no block; the model's block_prefixes are {dict(prefixes)}"
    return max(matches)[1]


class FlatModel:
    """A module whose exchangeable tensors are views of one contiguous float32 buffer.

    Args:
        module: on its device and in its memory format already; `module.block_prefixes` maps block names to prefixes of
            parameter names.
        local_patterns: shell patterns over tensor names and block names, or one of the words in NORM_LAYERS. What
            matches goes into the block "local/<block>", which is never exchanged.

    Raises:
        ValueError: a pattern matches nothing, or a floating-point tensor is not float32.
    """

    def __init__(self, module: nn.Module, local_patterns: Iterable[str] = ()) -> None:
        self.module = module
        self.prefixes: Mapping[BlockName, Sequence[str]] = module.block_prefixes  # type: ignore[assignment]
        groups = self._group(list(local_patterns))
        layouts = {block: _layout(tensors) for block, tensors in groups.items()}
        first = next(module.parameters())
        self.flat = torch.zeros(sum(x.numel for x in layouts.values()), dtype=torch.float32, device=first.device)
        self.blocks: dict[BlockName, Block] = {}
        self.parameters: dict[BlockName, list[nn.Parameter]] = {}
        offset = 0
        for name, layout in layouts.items():
            block = Block(self.flat[offset : offset + layout.numel], layout)
            offset += layout.numel
            tensors = groups[name]
            for spec in layout.specs:
                view = block.view(spec)
                view.copy_(tensors[spec.name].detach())
                tensors[spec.name].data = view
            self.blocks[name] = block
            self.parameters[name] = [t for t in tensors.values() if isinstance(t, nn.Parameter)]
        self._counters = {n: b.clone() for n, b in module.named_buffers() if not b.is_floating_point()}

    def _group(self, patterns: list[str]) -> dict[BlockName, dict[str, Tensor]]:
        """Exchangeable tensors by block, in the module's own order."""
        of_layers = {word: self._tensors_of(kinds) for word, kinds in NORM_LAYERS.items() if word in patterns}
        persistent = set(self.module.state_dict(keep_vars=True))
        named: list[tuple[str, Tensor]] = [(n, p) for n, p in self.module.named_parameters() if p.requires_grad]
        learns = {block_of(n, self.prefixes) for n, _ in named}
        named += [
            (n, b)
            for n, b in self.module.named_buffers()
            if b.is_floating_point() and n in persistent and block_of(n, self.prefixes) in learns
        ]
        used: set[str] = set()
        groups: dict[BlockName, dict[str, Tensor]] = {}
        for name, tensor in named:
            if tensor.dtype != torch.float32:
                raise ValueError(
                    f"{name} is {tensor.dtype}; exchanged tensors are float32 (for speed set fit.precision: bfloat16)"
                )
            block = block_of(name, self.prefixes)
            hits = {p for p in patterns if fnmatch(name, p) or fnmatch(block, p) or name in of_layers.get(p, ())}
            used |= hits
            groups.setdefault(LOCAL + block if hits else block, {})[name] = tensor
        if unused := [p for p in patterns if p not in used]:
            raise ValueError(
                f"aggregation.local_blocks: {', '.join(unused)} matches no tensor and no block. "
                f"Blocks are {', '.join(sorted(learns))}; tensors look like {named[0][0]}; the words "
                f"{' and '.join(NORM_LAYERS)} stand for all layers of that kind"
            )
        return groups

    def _tensors_of(self, kinds: tuple[type[nn.Module], ...]) -> set[str]:
        """Names of the parameters and buffers of all layers of these kinds."""
        layers = [(prefix, m) for prefix, m in self.module.named_modules() if isinstance(m, kinds)]
        return {f"{prefix}.{name}" for prefix, layer in layers for name in layer.state_dict()}

    @property
    def shared(self) -> dict[BlockName, Block]:
        """Views of the blocks that are exchanged."""
        return {name: block for name, block in self.blocks.items() if not name.startswith(LOCAL)}

    @property
    def local(self) -> dict[BlockName, Block]:
        """Views of the blocks that stay at their client."""
        return {name: block for name, block in self.blocks.items() if name.startswith(LOCAL)}

    def load(self, blocks: Blocks) -> None:
        """Copy `blocks` in, those that the model has; integer counters go back to their first values."""
        for name, block in blocks.items():
            if name in self.blocks:
                self.blocks[name].flat.copy_(block.flat)
        for name, buffer in self.module.named_buffers():
            if name in self._counters:
                buffer.copy_(self._counters[name])

    def submodules(self, block: BlockName) -> list[nn.Module]:
        """The modules whose tensors make up a block (none for a bare parameter)."""
        names = [p.rstrip(".") for p in self.prefixes[block.removeprefix(LOCAL)]]
        modules = dict(self.module.named_modules())
        return [modules[n] for n in names if n in modules]


def _layout(tensors: Mapping[str, Tensor]) -> Layout:
    specs: list[TensorSpec] = []
    offset = 0
    trainable_numel = 0
    for trainable in (True, False):
        for name, tensor in tensors.items():
            if isinstance(tensor, nn.Parameter) == trainable:
                specs.append(TensorSpec(name, tuple(tensor.shape), _dense_stride(tensor), offset, trainable))
                offset += _aligned(prod(tensor.shape))
        if trainable:
            trainable_numel = offset
    return Layout(tuple(specs), offset, trainable_numel)
