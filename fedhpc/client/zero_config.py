"""What DeepSpeed is told: its settings for a model of a given size, and the ranks of a slot as its only group."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import torch.distributed as dist
from torch import nn

from fedhpc.client.zero_rows import Ranks
from fedhpc.client.zero_shards import shape_of
from fedhpc.config.schema import FitConfig, ShardingConfig

PERSISTENT_SHARE = 0.01  # of a rank's part of the weights: small parameters that stay whole on every rank
SMALLEST_BUCKET, LARGEST_BUCKET = 1 << 16, 50_000_000  # elements


@dataclass(frozen=True)
class GroupOfSlot:
    """What DeepSpeed calls a model parallelism unit: the slot's ranks are its data-parallel group, and there is no
    model parallelism. Data-parallel means that they train one client together."""

    ranks: Ranks

    def get_data_parallel_rank(self) -> int:
        return self.ranks.index

    def get_data_parallel_world_size(self) -> int:
        return self.ranks.count

    def get_data_parallel_group(self) -> dist.ProcessGroup | None:
        return self.ranks.group or dist.group.WORLD

    def get_model_parallel_rank(self) -> int:
        return 0

    def get_model_parallel_world_size(self) -> int:
        return 1

    def get_model_parallel_group(self) -> None:
        return None


def deepspeed_config(config: FitConfig, sharding: ShardingConfig, module: nn.Module, ranks: int) -> dict[str, Any]:
    """Settings that fit the model: buckets a fraction of a rank's part, few small parameters kept whole."""
    sizes = sorted(prod(shape_of(p)) for p in module.parameters())
    total, largest = sum(sizes), sizes[-1]
    part = total // ranks
    bucket = min(max(part // 10, SMALLEST_BUCKET), LARGEST_BUCKET)
    zero: dict[str, Any] = {
        "stage": sharding.zero,
        "contiguous_gradients": True,
        "overlap_comm": False,
        "reduce_bucket_size": bucket,
        "allgather_bucket_size": bucket - bucket % 2,
    }
    if sharding.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": False}
    if sharding.zero == 3:
        zero |= {
            "stage3_param_persistence_threshold": persistence_threshold(sizes, part),
            "stage3_prefetch_bucket_size": bucket,
            # Weights are given back as soon as a layer is done, unless they are needed again at once.
            "stage3_max_live_parameters": max(2 * largest, total // 10),
            "stage3_max_reuse_distance": max(2 * largest, total // 10),
        }
        if sharding.offload_parameters:
            zero["offload_param"] = {"device": "cpu", "pin_memory": False}
    return {
        "train_micro_batch_size_per_gpu": 1,  # told, not used: rows are dealt by zero_rows
        "gradient_accumulation_steps": 1,  # the engine marks boundaries itself
        "gradient_clipping": config.clip_norm or 0.0,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # torch's fused kernels; DeepSpeed's would be compiled at the first run
        "zero_optimization": zero,
        "bf16": {"enabled": config.precision == "bfloat16"},
        "steps_per_print": 1 << 40,
    }


def persistence_threshold(sizes: list[int], part: int) -> int:
    """Parameters of up to this many elements stay whole: as many of the smallest as make up PERSISTENT_SHARE of a
    rank's part, and always a temperature, which is read outside of the model's forward pass."""
    threshold, held = 1, 0
    for size in sizes:
        held += size
        if held > PERSISTENT_SHARE * part:
            break
        threshold = size
    return threshold
