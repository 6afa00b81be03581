"""Wrong training labels: which, and how often. Drawn once per client from random_seed."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from fedhpc.config.section import Section


class RatedNoise(Section):
    """The base of kinds with one number."""

    rate: list[float]
    """Share of a client's training labels that are made wrong: one for all, or a list: client k has the (k mod
    length)-th."""

    @field_validator("rate", mode="before")
    @classmethod
    def _one_for_all(cls, value: Any) -> Any:
        return value if isinstance(value, list) else [value]

    @field_validator("rate")
    @classmethod
    def _is_share(cls, value: list[float]) -> list[float]:
        if not value or not all(0 <= rate <= 1 for rate in value):
            raise ValueError(f"noise.rate = {value}: each is a share; set 0 to 1, or a list of such")
        return value

    def rate_of(self, client: int) -> float:
        return self.rate[client % len(self.rate)]


class SymmetricNoise(RatedNoise):
    """A label becomes each of the other C - 1 classes with probability rate / (C - 1)."""

    kind: Literal["symmetric"]


class PairNoise(RatedNoise):
    """A label of class i becomes i + 1 (the last one: 0) with probability rate."""

    kind: Literal["pair"]


class ConfusionNoise(Section):
    """A label of one class becomes another with a probability of that pair: what readers mix up."""

    kind: Literal["confusion"]
    matrix: dict[str, dict[str, float]]
    """True class -> given class -> probability; the rest of a row stays as it is. {monocyte: {lymphocyte: 0.2}}"""
    clients: list[int] = Field(default_factory=list)
    """Only these clients' labels; empty: everyone's."""

    @model_validator(mode="after")
    def _rows_are_shares(self) -> ConfusionNoise:
        for true, row in self.matrix.items():
            total = math.fsum(row.values())
            if any(p < 0 for p in row.values()) or total > 1 + 1e-9:
                raise ValueError(f"noise.matrix.{true}: probabilities add up to {total:g}; each >= 0, together <= 1")
        return self


Noise = SymmetricNoise | PairNoise | ConfusionNoise
