"""How `reduce` puts updates together where it is no plain sum: robust rules and compression, from a config."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from fedhpc.client.client import derived_seed
from fedhpc.comm.codecs import Bf16, Int8, TopK
from fedhpc.comm.compressed import Codec, CompressedMean
from fedhpc.comm.robust_rules import Rule, centred_clipping, krum, median, norm_filter, trimmed_mean
from fedhpc.comm.sums import Sums
from fedhpc.comm.updates import Announced, RobustMean
from fedhpc.config.byzantine import (
    CentredClippingRule,
    KrumRule,
    MedianRule,
    MultiKrumRule,
    NormFilterRule,
    RobustRule,
    TrimmedMeanRule,
    least_clients,
)
from fedhpc.config.compression import Bf16Compression, CompressionConfig, Int8Compression, TopKCompression
from fedhpc.config.schema import AggregationConfig, CohortConfig
from fedhpc.federation.cohort import dropped, sample_cohort
from fedhpc.interfaces import Block, Blocks, ClientId, ClientState

CENTRE = "fedhpc/centre"  # in the algorithm's part of a checkpoint: the last aggregate, where a rule starts from it
StateOf = Callable[[ClientId], ClientState]


@dataclass
class UpdateAggregation:
    """One of a rule and a codec."""

    sums: Sums
    random_seed: int
    rule: Rule | None = None
    from_last: bool = False  # the rule starts from the last aggregate
    codec: Codec | None = None
    keeps_residuals: bool = False
    centre: dict[str, Block] = field(default_factory=dict)

    def exchange(self, announced: Announced, state_of: StateOf, index: int) -> RobustMean | CompressedMean:
        """index: of the round."""
        if self.rule is not None:
            return RobustMean(self.rule, self.centre or None, self.sums, announced)
        assert self.codec is not None

        def generator(client: ClientId) -> torch.Generator:
            return torch.Generator().manual_seed(derived_seed(self.random_seed, index, client, "compression"))

        keeper = state_of if self.keeps_residuals else None
        return CompressedMean(self.codec, generator, keeper, self.sums, announced)

    def learn(self, mean: Blocks) -> None:
        """An exchange has ended."""
        if self.from_last:
            self.centre = dict(mean)

    def state_dict(self) -> dict[str, Any]:
        return {CENTRE: self.centre} if self.centre else {}

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        stored: Blocks = state.get(CENTRE, {})
        self.centre = {name: Block(block.flat.to(device), block.layout) for name, block in stored.items()}


def build_aggregation(config: AggregationConfig, sums: Sums, random_seed: int) -> UpdateAggregation | None:
    """None: contributions are summed."""
    if config.robust is not None:
        from_last = isinstance(config.robust, CentredClippingRule)
        return UpdateAggregation(sums, random_seed, rule=build_rule(config.robust), from_last=from_last)
    if config.compression is not None:
        keeps = isinstance(config.compression, TopKCompression) and config.compression.error_feedback
        codec = build_codec(config.compression)
        return UpdateAggregation(sums, random_seed, codec=codec, keeps_residuals=keeps)
    return None


def build_rule(config: RobustRule) -> Rule:
    if isinstance(config, MedianRule):
        return median
    if isinstance(config, TrimmedMeanRule):
        return trimmed_mean(config.num_byzantine)
    if isinstance(config, KrumRule):
        return krum(config.num_byzantine)
    if isinstance(config, MultiKrumRule):
        return krum(config.num_byzantine, config.num_kept)
    if isinstance(config, NormFilterRule):
        return norm_filter(config.num_byzantine)
    return centred_clipping(config.radius, config.iterations)


def build_codec(config: CompressionConfig) -> Codec:
    if isinstance(config, Bf16Compression):
        return Bf16()
    if isinstance(config, Int8Compression):
        return Int8(config.block)
    return TopK(config.ratio)


def refuse_small_rounds(
    rule: RobustRule | None, clients: Sequence[ClientId], cohort: CohortConfig, random_seed: int, rounds: int
) -> None:
    """Raises ValueError when a round would have fewer clients than the rule needs; cohorts and lost clients are drawn
    from the seed, so all rounds are known before the first one."""
    if rule is None:
        return
    least, arithmetic = least_clients(rule)
    for index in range(rounds if cohort.dropout is not None else 1):
        chosen = sample_cohort(clients, cohort, random_seed, index)
        left = len(chosen) - len(dropped(chosen, cohort, random_seed, index))
        if left < least:
            raise ValueError(
                f"aggregation.robust.rule = {rule.rule} needs {arithmetic} clients a round or more, but round {index} "
                f"has {left} of {len(clients)}; set a lower num_byzantine, more clients, a larger cohort or, where "
                "clients are lost, a lower cohort.dropout.probability"
            )
