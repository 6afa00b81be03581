"""Lost clients: drawn from the seed alone, and refused in time where too few are left."""

from __future__ import annotations

import pytest

from fedhpc.config.schema import CohortConfig, DropoutConfig
from fedhpc.federation.cohort import dropped, refuse_short_rounds

CLIENTS = tuple(range(20))


def losing(probability: float, when: str = "after", **more: int) -> CohortConfig:
    return CohortConfig(dropout=DropoutConfig.model_validate({"probability": probability, "when": when}), **more)


def test_losses_are_a_function_of_seed_and_round() -> None:
    config = losing(0.3)
    draws = [dropped(CLIENTS, config, 1, index) for index in range(200)]
    assert draws == [dropped(CLIENTS, losing(0.3, "before"), 1, index) for index in range(200)]
    assert draws != [dropped(CLIENTS, config, 2, index) for index in range(200)]
    assert 0.27 < sum(map(len, draws)) / (200 * len(CLIENTS)) < 0.33  # 4 standard deviations are 0.029
    assert dropped(CLIENTS, CohortConfig(), 1, 0) == frozenset()


def test_rounds_that_cannot_end_are_refused_before_the_first() -> None:
    refuse_short_rounds(CLIENTS, CohortConfig(), 0, 10**6, 3, True)
    refuse_short_rounds(CLIENTS, losing(0.1), 0, 100, 3, True)
    with pytest.raises(ValueError, match=r"0\.9 leaves \d of 20 clients in round \d+, 11 are needed; agg"):
        refuse_short_rounds(CLIENTS, losing(0.9), 0, 100, 3, True)
    with pytest.raises(ValueError, match=r"leaves [012] of 4 clients in round \d+, 3 are needed\. Set a lower"):
        refuse_short_rounds(CLIENTS, losing(0.4, "before", size=4), 0, 100, 3, True)
    refuse_short_rounds(CLIENTS, losing(0.5), 0, 20, 1, False)
