"""What clients over several ranks cannot do, and why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from fedhpc.config.algorithms import FedDRAConfig, FedProxConfig, ScaffoldConfig
from fedhpc.config.schema import FusionConfig, RunConfig, ShardingConfig

SHARDED = ("fedavg", "fedprox", "fedopt", "scaffold", "moon", "feddra", "dgb_pcw")
REASONS: Mapping[str, str] = {
    "local": "it exchanges nothing, and keeps every client's whole model and moments between rounds",
    "centralised": "its one client goes on with its moments from round to round, and shards keep none",
    "qffl": "its weights need the norm of each whole update, which no rank of a sharded client has",
    "afl": "it averages models on the way at steps that clients reach apart, one more copy of every shard",
}


def sharding_problems(config: RunConfig) -> Iterator[str]:
    """One line each."""
    sharding, shard = config.sharding, config.mesh.shard
    if sharding is None:
        return
    algorithm, fit = config.algorithm, config.fit
    told = f"mesh.shard = {shard}" if shard > 1 else "sharding is set"
    if algorithm.name not in SHARDED:
        why = REASONS.get(algorithm.name, "it has not been made to work on shards")
        yield (
            f"algorithm.name = {algorithm.name} but {told}: {why}; set mesh.shard: 1 and sharding: null, or one of "
            f"{', '.join(SHARDED)}"
        )
    if isinstance(algorithm, FedDRAConfig) and algorithm.variant == "upstream":
        yield f"algorithm.variant = upstream but {told}: its first anchor mixes whole tensors; set variant: sound"
    if isinstance(config.model, FusionConfig) and config.fewest_owners is not None:
        yield (
            f"modalities.min_contributors = {config.fewest_owners} but {told}: blocks of fewer owners stay at home, "
            "and clients keep no shards of their own; set it to null"
        )
    if isinstance(config.model, FusionConfig) and fit.precision == "bfloat16":
        yield (
            f"fit.precision = bfloat16 with model.kind = fusion but {told}: features meet classifiers in float32; set "
            "precision: float32"
        )
    if config.aggregation.local_blocks:
        yield f"aggregation.local_blocks is set but {told}, and clients keep no shards of their own; set it to []"
    if fit.optimizer.keep_state:
        yield f"fit.optimizer.keep_state = true but {told}, and clients keep no shards of moments; set it to false"
    if fit.compile:
        yield f"fit.compile = true but {told}: DeepSpeed's hooks are not compiled; set it to false"
    if fit.batch_size < shard:
        yield f"fit.batch_size = {fit.batch_size} cannot be dealt to mesh.shard = {shard} ranks; set {shard} or more"
    if sharding.offload_parameters and sharding.zero < 3:
        yield (
            f"sharding.offload_parameters = true but sharding.zero = {sharding.zero}: only ZeRO-3 has parts to put "
            "away; set zero: 3"
        )
    yield from _clipping(config, sharding)


def _clipping(config: RunConfig, sharding: ShardingConfig) -> Iterator[str]:
    """DeepSpeed takes the norm of offloaded gradients as they arrive, before a method adds to them."""
    adds = isinstance(config.algorithm, FedProxConfig | ScaffoldConfig)
    if adds and sharding.offload_optimizer and sharding.zero < 3 and config.fit.clip_norm is not None:
        yield (
            f"fit.clip_norm = {config.fit.clip_norm:g} with sharding.offload_optimizer = true and sharding.zero = "
            f"{sharding.zero}: the norm would miss what algorithm.name = {config.algorithm.name} adds to gradients; "
            "set zero: 3, or clip_norm: null"
        )
