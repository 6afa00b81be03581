"""Clients that send what they should not: rules that bear them (`aggregation.robust`), attacks for studies (`attack`).

Not to be mixed up with distributionally robust client weights (algorithm.dro of FedDRA, AFL).
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from fedhpc.config.section import Section


class MedianRule(Section):
    """The median of every coordinate (Yin et al. 2018, Definition 1)."""

    rule: Literal["median"]


class TrimmedMeanRule(Section):
    """The mean of every coordinate without its largest and smallest values (Yin et al. 2018, Definition 2)."""

    rule: Literal["trimmed_mean"]
    num_byzantine: int = Field(ge=1)
    """f: this many values are left out at either end."""


class KrumRule(Section):
    """The one update that is nearest to the others (Blanchard et al. 2017)."""

    rule: Literal["krum"]
    num_byzantine: int = Field(ge=1)
    """f: a client is judged by its distances to the n - f - 2 nearest others."""


class MultiKrumRule(Section):
    """The mean of the updates that Krum scores best (Blanchard et al. 2017)."""

    rule: Literal["multi_krum"]
    num_byzantine: int = Field(ge=1)
    num_kept: int | None = Field(None, ge=1)
    """m: how many are averaged. Default: n - f."""


class NormFilterRule(Section):
    """The mean without the updates of the largest norm (Gupta, Liu, Vaidya 2021, comparative gradient elimination)."""

    rule: Literal["norm_filter"]
    num_byzantine: int = Field(ge=1)
    """f: this many are left out. An attack that keeps its norm passes."""


class CentredClippingRule(Section):
    """The last aggregate, moved towards the updates by no more than `radius` each (Karimireddy et al. 2021, Eq. 10)."""

    rule: Literal["centred_clipping"]
    radius: float | None = Field(None, gt=0)
    """tau. Default: the median of the clients' distances to the centre, which is not in the paper."""
    iterations: int = Field(1, ge=1)
    """Steps from the last aggregate; the first round starts from zero."""


RobustRule = MedianRule | TrimmedMeanRule | KrumRule | MultiKrumRule | NormFilterRule | CentredClippingRule


def least_clients(rule: RobustRule) -> tuple[int, str]:
    """Clients that an exchange needs for the rule to mean something, and the arithmetic."""
    if isinstance(rule, (KrumRule, MultiKrumRule)):
        f = rule.num_byzantine
        least = 2 * f + 3
        if isinstance(rule, MultiKrumRule) and (rule.num_kept or 0) + f > least:
            assert rule.num_kept is not None
            return rule.num_kept + f, f"num_kept({rule.num_kept}) + num_byzantine({f}) = {rule.num_kept + f}"
        return least, f"2 * num_byzantine({f}) + 3 = {least}"
    if isinstance(rule, (TrimmedMeanRule, NormFilterRule)):
        least = 2 * rule.num_byzantine + 1
        return least, f"2 * num_byzantine({rule.num_byzantine}) + 1 = {least}"
    return 3, "3"


class Attackers(Section):
    """The base of attacks: who makes them."""

    clients: list[int] | None = Field(None, min_length=1)
    """Their numbers. Set this or `fraction`."""
    fraction: float | None = Field(None, gt=0, lt=1)
    """Share of the clients that train, drawn once from random_seed (rounded, at least one)."""

    @model_validator(mode="after")
    def _one_way(self) -> Attackers:
        if (self.clients is None) == (self.fraction is None):
            raise ValueError("set exactly one of attack.clients and attack.fraction")
        return self


class SignFlipAttack(Attackers):
    """Sends the update with the opposite sign."""

    kind: Literal["sign_flip"]
    scale: float = Field(1.0, gt=0)
    """What is sent is -scale times the update. 20 % of equal clients undo the mean from scale 4 on."""


class ScalingAttack(Attackers):
    """Sends a multiple of the update, to outweigh the others."""

    kind: Literal["scaling"]
    scale: float = Field(10.0, gt=0)


class NoiseAttack(Attackers):
    """Sends Gaussian noise in place of the update."""

    kind: Literal["noise"]
    std: float = Field(gt=0)


class LabelFlipAttack(Attackers):
    """Trains honestly on wrong labels: class i of C becomes C - 1 - i."""

    kind: Literal["label_flip"]


Attack = SignFlipAttack | ScalingAttack | NoiseAttack | LabelFlipAttack
