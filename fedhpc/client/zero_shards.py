"""What a rank holds of a client's model under DeepSpeed ZeRO: stretches of its tensors, read and written in place.

ZeRO-3 deals every parameter to all ranks in equal stretches; ZeRO-1 and 2 lay the parameters of a block end to end and
deal that. Running statistics, which DeepSpeed leaves whole on every rank, are dealt as ZeRO-3 deals parameters.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import Any, NamedTuple

import torch
from deepspeed.utils import (
    safe_get_local_fp32_param,
    safe_get_local_grad,
    safe_set_local_fp32_param,
    safe_set_local_grad,
)
from torch import Tensor, nn

from fedhpc.client.zero_rows import Ranks
from fedhpc.interfaces import Block, BlockName, Blocks, Layout, Piece, TensorSpec
from fedhpc.models.blocks import block_of


class Member(NamedTuple):
    """A tensor of the model and the stretch of it that is this rank's."""

    name: str
    tensor: Tensor  # an nn.Parameter, or a buffer
    piece: Piece
    numel: int


def dealt(numel: int, ranks: Ranks) -> tuple[int, int]:
    """(start, length) of this rank's stretch: equal ones of ceil(numel / ranks), the last ones shorter, or empty."""
    each = -(-numel // ranks.count)
    start = min(ranks.index * each, numel)
    return start, min(each, numel - start)


def exchanged(module: nn.Module) -> dict[BlockName, dict[str, Tensor]]:
    """Trainable parameters and persistent float buffers of the blocks that learn, in the module's own order."""
    prefixes: Any = module.block_prefixes
    persistent = _buffer_names(module)
    named: list[tuple[str, Tensor]] = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
    learns = {block_of(n, prefixes) for n, _ in named}
    named += [
        (n, b)
        for n, b in module.named_buffers()
        if b.is_floating_point() and n in persistent and block_of(n, prefixes) in learns
    ]
    groups: dict[BlockName, dict[str, Tensor]] = {}
    for name, tensor in named:
        groups.setdefault(block_of(name, prefixes), {})[name] = tensor
    return groups


def _buffer_names(module: nn.Module) -> set[str]:
    """Persistent ones."""
    return {
        f"{prefix}.{name}" if prefix else name
        for prefix, layer in module.named_modules()
        for name in layer._buffers
        if name not in layer._non_persistent_buffers_set
    }


def shape_of(parameter: Tensor) -> tuple[int, ...]:
    """The whole parameter's; ZeRO-3 keeps it apart, as the tensor itself is empty most of the time."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


class Shards:
    """This rank's part of a model's exchangeable tensors, whatever the stage.

    Args:
        module: as DeepSpeed knows it.
        optimizer: DeepSpeed's; None for a model that is only loaded and run (ZeRO-3).
        device: of the slot's ranks, where blocks are. What is offloaded comes there when it is read.
    """

    def __init__(
        self,
        module: nn.Module,
        optimizer: Any,
        stage: int,
        ranks: Ranks,
        device: torch.device,
        trained: bool = True,
    ) -> None:
        self._optimizer = optimizer
        self._device = device
        self._stage = stage
        self._ranks = ranks
        self._trained = trained
        self.members: dict[BlockName, list[Member]] = {}
        for block, tensors in exchanged(module).items():
            ordered = sorted(tensors.items(), key=lambda item: not isinstance(item[1], nn.Parameter))
            self.members[block] = [self._member(name, tensor) for name, tensor in ordered]
        self.layouts = {block: _layout(members) for block, members in self.members.items()}
        self._counters = {n: (b, b.clone()) for n, b in module.named_buffers() if not b.is_floating_point()}

    def _member(self, name: str, tensor: Tensor) -> Member:
        shape = shape_of(tensor)
        if self._stage == 3 or not isinstance(tensor, nn.Parameter):
            start, numel = dealt(prod(shape), self._ranks)
        else:
            fragment = tensor._hp_mapping  # type: ignore[attr-defined]
            start, numel = (0, 0) if fragment is None else _address(fragment)
        return Member(name, tensor, Piece(shape, start), numel)

    @property
    def ranges(self) -> dict[str, tuple[int, int]]:
        """Tensor name -> (start, stop) in its row-major elements."""
        return {m.name: (m.piece.start, m.piece.start + m.numel) for members in self.members.values() for m in members}

    # ------------------------------------------------------------------------------------------- read and write
    def read(self, block: BlockName) -> Block:
        """A copy of present weights."""
        layout = self.layouts[block]
        out = Block(torch.empty(layout.numel, dtype=torch.float32, device=self._device), layout)
        for member, spec in zip(self.members[block], layout.specs, strict=True):
            if member.numel:
                out.view(spec).copy_(self._master(member))
        return out

    def difference(self, block: BlockName, since: Block, out: Block) -> None:
        """out = present weights - since."""
        assert since.layout == self.layouts[block], f"{block}: shards of another layout"
        for member, spec in zip(self.members[block], out.layout.specs, strict=True):
            if member.numel:
                torch.sub(self._master(member).to(self._device), since.view(spec), out=out.view(spec))

    @torch.no_grad()
    def load(self, blocks: Blocks) -> None:
        """Take over the blocks that the model has; integer counters go back to their first values."""
        released = self._stage == 3
        if released:
            self._offload().partition_all_parameters()
        for name, block in blocks.items():
            if name not in self.members:
                continue
            assert block.layout == self.layouts[name], f"{name}: shards of another layout"
            for member, spec in zip(self.members[name], block.layout.specs, strict=True):
                self._write(member, block.view(spec))
        if released:
            persistent = self._offload().persistent_parameters
            if persistent:
                persistent[0].all_gather(persistent)
        else:
            self._optimizer.update_lp_params()
        for buffer, first in self._counters.values():
            buffer.copy_(first)

    def _master(self, member: Member) -> Tensor:
        """This rank's stretch [numel] in float32."""
        tensor = member.tensor
        if not isinstance(tensor, nn.Parameter):
            return tensor.reshape(-1)[member.piece.start : member.piece.start + member.numel]
        if self._stage < 3:
            fragment: Tensor = tensor._hp_mapping.hp_fragment  # type: ignore[attr-defined]
            return fragment.detach()
        stretch: Tensor = safe_get_local_fp32_param(tensor)
        return stretch.detach()[: member.numel]

    def _write(self, member: Member, value: Tensor) -> None:
        tensor = member.tensor
        if not isinstance(tensor, nn.Parameter):
            self._write_buffer(member, value)
        elif self._stage < 3:
            if member.numel:
                tensor._hp_mapping.hp_fragment.data.copy_(value)  # type: ignore[attr-defined]
        else:
            partition: Tensor = tensor.ds_tensor  # type: ignore[attr-defined]
            padded = value
            if member.numel < partition.numel():
                padded = value.new_zeros(partition.numel())
                padded[: member.numel] = value
            if self._trained:
                safe_set_local_fp32_param(tensor, padded)
            partition.data.copy_(padded)  # what the model computes with: the same memory, or of lower precision

    def _write_buffer(self, member: Member, value: Tensor) -> None:
        """Whole on every rank, so the ranks put their stretches together."""
        start, numel = member.piece.start, member.numel
        if self._ranks.count == 1:
            member.tensor.copy_(value.view(member.tensor.shape))
            return
        whole = torch.zeros(prod(member.piece.shape), dtype=torch.float32, device=self._device)
        whole[start : start + numel] = value
        self._ranks.sum(whole.view(torch.int32))
        member.tensor.copy_(whole.view(member.tensor.shape))

    def _offload(self) -> Any:
        """DeepSpeed's keeper of ZeRO-3 parameters."""
        return getattr(self._optimizer, "parameter_offload", self._optimizer)

    # ------------------------------------------------------------------------------------------------ gradients
    def correct(self, moving: Sequence[BlockName], pull: float, toward: Blocks | None, offset: Blocks | None) -> None:
        """grad += pull * (w - toward) + offset, between the backward pass and the step."""
        with torch.no_grad():
            for name in moving:
                for member, spec in zip(self.members[name], self.layouts[name].specs, strict=True):
                    if not spec.trainable or not member.numel:
                        continue
                    change = torch.zeros(member.numel, device=self._device)
                    if toward is not None and name in toward:
                        change.add_(self._master(member).to(self._device) - toward[name].view(spec), alpha=pull)
                    if offset is not None and name in offset:
                        change.add_(offset[name][member.name])
                    self._add_to_gradient(member, change)

    def _add_to_gradient(self, member: Member, change: Tensor) -> None:
        parameter: Any = member.tensor
        if self._stage == 3:
            gradient = safe_get_local_grad(parameter).clone()
            gradient[: member.numel].add_(change)
            safe_set_local_grad(parameter, gradient)
            return
        gradient = parameter._hp_mapping.get_lp_grad_fragment(parameter._index_in_param_group)
        flat = gradient.view(-1)
        if flat.numel() != member.numel:  # a gradient that was not cut to this rank's stretch
            flat = flat[member.piece.start : member.piece.start + member.numel]
        flat.add_(change.to(flat.device))

    # ------------------------------------------------------------------------------------------------- accounts
    def numel(self) -> int:
        """Elements that this rank holds."""
        return sum(layout.numel for layout in self.layouts.values())


class Present(Mapping[BlockName, Block]):
    """Present weights, block by block; each access makes a copy."""

    def __init__(self, shards: Shards) -> None:
        self._shards = shards

    def __getitem__(self, name: BlockName) -> Block:
        return self._shards.read(name)

    def __iter__(self) -> Iterator[BlockName]:
        return iter(self._shards.members)

    def __len__(self) -> int:
        return len(self._shards.members)


def _address(fragment: Any) -> tuple[int, int]:
    return fragment.lp_fragment_address.start, fragment.lp_fragment_address.numel


def _layout(members: Sequence[Member]) -> Layout:
    """One stretch behind the other, without gaps: padding would be sent for nothing."""
    specs: list[TensorSpec] = []
    offset = trainable = 0
    for member in members:
        is_trainable = isinstance(member.tensor, nn.Parameter)
        specs.append(TensorSpec(member.name, (member.numel,), (1,), offset, is_trainable))
        offset += member.numel
        trainable = offset if is_trainable else trainable
    return Layout(tuple(specs), offset, trainable, tuple(member.piece for member in members))
