"""Ranks on two axes: "client" (slots) and "shard" (the ranks of one slot). One process is a mesh of 1 x 1."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh


class Axis(str, Enum):
    client = "client"
    shard = "shard"


@dataclass(frozen=True)
class Mesh:
    """Where this rank stands. `group` is None when one process plays all."""

    rank: int
    world: int
    shard: int  # ranks of a slot
    group: dist.ProcessGroup | None  # of axis client: what exchanges run on
    shard_group: dist.ProcessGroup | None = None  # of axis shard: the ranks of this slot

    @property
    def num_slots(self) -> int:
        return self.world // self.shard

    @property
    def slot(self) -> int:
        return self.rank // self.shard

    @property
    def shard_index(self) -> int:
        """Which shard of its slot's client this rank holds; shard 0 speaks for the slot."""
        return self.rank % self.shard


def build_mesh(shard: int, device_type: str) -> Mesh:
    """Every rank calls this, after the process group is up (or without one: a single process).

    Raises:
        ValueError: `shard` does not divide the number of ranks.
    """
    if not dist.is_initialized():
        rank, world = 0, 1
    else:
        rank, world = dist.get_rank(), dist.get_world_size()
    if world % shard:
        raise ValueError(
            f"client({world // shard}) * shard({shard}) = {world // shard * shard} but WORLD_SIZE = {world}; "
            f"set mesh.shard: 1, or start {(world // shard + 1) * shard} ranks"
        )
    if world == 1:
        return Mesh(rank=0, world=1, shard=1, group=None)
    mesh = init_device_mesh(device_type, (world // shard, shard), mesh_dim_names=(Axis.client.value, Axis.shard.value))
    groups = {axis: mesh.get_group(axis.value) for axis in Axis}
    return Mesh(rank=rank, world=world, shard=shard, group=groups[Axis.client], shard_group=groups[Axis.shard])
