"""Differential privacy: what is hidden in noise, and how much of it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from fedhpc.config.section import Section

NUM_COUNT_SHARES = 20  # default noise of a count: a twentieth of the clients (Andrew et al. 2021)


class _PrivacyConfig(Section):
    """What both units have."""

    noise_multiplier: float = Field(gt=0)
    """Standard deviation of the noise on a sum, as a multiple of `clip`."""
    epsilon: float | None = Field(None, gt=0)
    """The budget: a round that would pass it is not begun, and the run ends with an error at a checkpoint. Not set:
    epsilon is told, not bounded."""
    delta: float | None = Field(None, gt=0, lt=1)
    """Default: n^-1.1, n the number of clients, or the training rows of the smallest client. 1/n or more is refused:
    publishing one of n in the clear would satisfy it."""
    accountant: Literal["rdp", "pld"] = "rdp"
    """rdp: Renyi divergences, fast. pld: privacy loss distributions, a smaller epsilon for the same noise."""
    secret_file: Path | None = None
    """File of 32 or more hexadecimal digits that noise is drawn from, as of `openssl rand -hex 32`; never copied.
    Not set: noise is drawn from random_seed, so whoever reads config.yaml can take it off. For simulation only."""


class AdaptiveClipConfig(Section):
    """The clip follows a quantile of the clients' norms (Andrew et al. 2021)."""

    quantile: float = Field(0.5, gt=0, lt=1)
    """Share of the clients whose updates stay as they are."""
    step_size: float = Field(0.2, gt=0)
    """The clip is multiplied by exp(-step_size * (share of updates within it - quantile)) after each round."""
    count_noise: float | None = Field(None, gt=0)
    """Standard deviation of the noise on the number of updates within the clip. Default: a twentieth of the cohort."""


class ClientPrivacyConfig(_PrivacyConfig):
    """Client-level: the model tells little of whether a client's data were there at all."""

    unit: Literal["client"]
    clip: float = Field(gt=0)
    """L2 norm that a client's update is scaled down to; the first one, where it is adaptive."""
    adaptive: AdaptiveClipConfig | None = None
    """null: the clip stays. The noisy count is paid for by a little more noise on the update, so that
    `noise_multiplier` holds for both together."""
    noise_shares: int | None = Field(None, ge=1)
    """Every client adds its share of the noise, so large that this many shares make up the whole; a sum of fewer is
    refused. Fewer shares than clients stand losses after masking, and clients that tell their own shares. Default: all
    clients of the cohort."""
    amplification: bool = False
    """Account for cohorts that nobody knows, which needs `secret_file`: they are then drawn from it. False: everyone
    may know who took part in which round, and a client pays for its own rounds only."""


class RecordPrivacyConfig(_PrivacyConfig):
    """Record-level: DP-SGD at every client (Abadi et al. 2016). The model tells little of any one training row."""

    unit: Literal["record"]
    clip: float = Field(gt=0)
    """L2 norm that a row's gradient is scaled down to."""


Privacy = ClientPrivacyConfig | RecordPrivacyConfig


def split_noise(noise_multiplier: float, count_noise: float) -> float:
    """The noise multiplier on updates, such that these and a count with noise `count_noise` and sensitivity 1/2 cost
    together what `noise_multiplier` does: (z^-2 - (2 b)^-2)^-1/2 (Andrew et al. 2021, Theorem 1).

    Raises:
        ValueError: the count alone costs as much.
    """
    left = noise_multiplier**-2 - (2 * count_noise) ** -2
    if left <= 0:
        raise ValueError(
            f"privacy.adaptive.count_noise = {count_noise:g} with noise_multiplier = {noise_multiplier:g}: the count "
            f"alone costs as much as that allows; set count_noise above {noise_multiplier / 2:g}, or a smaller "
            "noise_multiplier"
        )
    return float(left**-0.5)


def default_delta(num_units: int) -> float:
    """n^-1.1; of one unit, where nothing can be hidden, 1/2."""
    return num_units**-1.1 if num_units > 1 else 0.5


def delta_problem(delta: float, num_units: int, units: str) -> str | None:
    """What is wrong with a given delta; None when nothing is."""
    if delta < 1 / num_units:
        return None
    return (
        f"privacy.delta = {delta:g} with {num_units} {units}: publishing one of them in the clear has delta = "
        f"{1 / num_units:.3g}; set delta: {default_delta(num_units):.2g} or less, or remove it"
    )
