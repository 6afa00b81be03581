"""From a config to what guards sums and what counts rounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fedhpc.comm.noise import NoiseSource
from fedhpc.comm.privacy import ClientGuard
from fedhpc.config.privacy import NUM_COUNT_SHARES, ClientPrivacyConfig, split_noise
from fedhpc.config.schema import RunConfig
from fedhpc.interfaces import ClientId
from fedhpc.privacy.accountant import dp_accounting
from fedhpc.privacy.budget import Spending


def build_guard(config: RunConfig, source: NoiseSource | None, cohort_size: int) -> ClientGuard | None:
    """Of a run with client-level privacy.

    Raises:
        ValueError: shares and clients do not fit together, or a count that costs too much.
    """
    privacy = config.privacy
    if not isinstance(privacy, ClientPrivacyConfig):
        return None
    assert source is not None, "there is one wherever there is a privacy section"
    shares = cohort_size if privacy.noise_shares is None else privacy.noise_shares
    if shares > cohort_size:
        raise ValueError(
            f"privacy.noise_shares = {shares}, but {cohort_size} clients take part in a round; set noise_shares: "
            f"{cohort_size} or less"
        )
    bits = config.aggregation.fraction_bits
    adaptive = privacy.adaptive
    if adaptive is None:
        return ClientGuard(source, privacy.clip, privacy.noise_multiplier, shares, bits)
    count_noise = adaptive.count_noise or cohort_size / NUM_COUNT_SHARES
    left = split_noise(privacy.noise_multiplier, count_noise)
    step, quantile = adaptive.step_size, adaptive.quantile
    return ClientGuard(source, privacy.clip, left, shares, bits, count_noise, quantile, step)


def build_spending(
    config: RunConfig,
    clients: Sequence[ClientId],
    cohort_size: int,
    rows: Mapping[ClientId, int],
    steps: Mapping[ClientId, int],
) -> Spending | None:
    """Of a run with privacy. Raises ValueError when delta does not fit, or the accountant is not installed."""
    if config.privacy is None:
        return None
    dp_accounting()
    return Spending(config.privacy, clients, cohort_size, rows, steps, config.fit.batch_size)


def privacy_results(config: RunConfig, spending: Spending | None, guard: ClientGuard | None) -> dict[str, Any] | None:
    """What results.json tells of a run's privacy; None without any."""
    if spending is None or config.privacy is None:
        return None
    privacy = config.privacy
    client = privacy if isinstance(privacy, ClientPrivacyConfig) else None
    return {
        "unit": privacy.unit,
        "epsilon": spending.epsilon,
        "delta": spending.delta,
        "units": spending.num_units,
        "clip": privacy.clip,
        "last_clip": privacy.clip if guard is None else guard.clip,
        "noise_multiplier": privacy.noise_multiplier,
        "accountant": privacy.accountant,
        "adaptive": client is not None and client.adaptive is not None,
        "amplification": client is not None and client.amplification,
        "noise_shares": None if guard is None else guard.shares,
        "secret": privacy.secret_file is not None,
    }
