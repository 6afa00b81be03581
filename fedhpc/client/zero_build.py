"""A model built by the ranks of a slot together: ZeRO-3's partition is made without any rank having the whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.runtime.zero.partition_parameters import Init
from torch import Tensor, nn

from fedhpc.client.zero_rows import Ranks
from fedhpc.client.zero_shards import dealt
from fedhpc.models.stowing import Stowing


class SlotKeeper:
    """Each rank keeps its stretch of a parameter; all together have it."""

    def __init__(self, ranks: Ranks, device: torch.device) -> None:
        self._ranks = ranks
        self._device = device  # where the ranks' group can talk
        self._parts: dict[int, Tensor] = {}

    def put(self, key: int, flat: Tensor) -> None:
        start, numel = dealt(flat.numel(), self._ranks)
        if key not in self._parts:
            self._parts[key] = flat.new_zeros(-(-flat.numel() // self._ranks.count))
        self._parts[key][:numel] = flat[start : start + numel]

    def get(self, key: int, flat: Tensor) -> None:
        part = self._parts[key].to(self._device)
        even = part.numel() * self._ranks.count == flat.numel() and self._device == flat.device
        whole = flat if even else part.new_empty(part.numel() * self._ranks.count)
        dist.all_gather_into_tensor(whole, part, group=self._ranks.group)
        if not even:
            flat.copy_(whole[: flat.numel()])

    def drop(self, key: int) -> None:
        self._parts.pop(key, None)


def build_together(build: Callable[[], nn.Module], ranks: Ranks, device: torch.device) -> tuple[nn.Module, Stowing]:
    """`build`, on all ranks of a slot in step; to the bit what each would build alone.

    Large parameters of the module have no values until `partition`, or in `Stowing.present`.
    """
    with Stowing(SlotKeeper(ranks, device)) as stowing:
        module = build()
    return module, stowing


def partition(module: nn.Module, stowing: Stowing, settings: Mapping[str, Any], mpu: Any, dtype: torch.dtype) -> None:
    """Have ZeRO-3 deal the parameters to the ranks, one after the other: what `deepspeed.initialize` would do with a
    whole model. settings: what it will be given."""
    offload = settings["zero_optimization"].get("offload_param")
    Init(
        module=_OneByOne(module, stowing, dtype),
        data_parallel_group=mpu.get_data_parallel_group(),
        dtype=dtype,
        config_dict_or_path={**settings},
        remote_device=None if offload is None else offload["device"],
        mpu=mpu,
    )


class _OneByOne(nn.Module):
    """A model as `Init` asks for it: each parameter is whole from when it is handed over until the next is."""

    def __init__(self, module: nn.Module, stowing: Stowing, dtype: torch.dtype) -> None:
        super().__init__()
        self._of = (module, stowing, dtype)  # a tuple: not a submodule

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        module, stowing, dtype = self._of
        for parameter in module.parameters(recurse):
            with stowing.present(parameter):
                storage = parameter.detach()  # what `release` knows it by: partitioned, it has another
                parameter.data = parameter.data.to(dtype)
                yield parameter
                stowing.release(storage)
