"""What a config's rounds will cost of differential privacy, for `fedhpc check`: before any data is read."""

from __future__ import annotations

from fedhpc.config.checks_robust import known_clients
from fedhpc.config.privacy import ClientPrivacyConfig
from fedhpc.config.schema import RunConfig
from fedhpc.federation.cohort import cohort_size, dropped, sample_cohort
from fedhpc.privacy.accountant import dp_accounting
from fedhpc.privacy.budget import Spending


def privacy_plan(config: RunConfig) -> str:
    """One line; of a config with a privacy section.

    Raises:
        ValueError: the rounds do not fit the budget, or dp-accounting is not installed.
    """
    assert config.privacy is not None, "asked of private runs only"
    dp_accounting()
    count = known_clients(config)
    if not isinstance(config.privacy, ClientPrivacyConfig) or count is None:
        needed = "clients' rows" if config.privacy.unit == "record" else "number of clients"
        return f"privacy: epsilon is told at the start of the run, which knows the {needed}"
    clients = range(count)
    spending = Spending(config.privacy, clients, cohort_size(config.cohort, count), {}, {}, 1)
    cohorts = []
    for index in range(config.rounds):
        cohort = sample_cohort(clients, config.cohort, config.random_seed, index)
        lost = dropped(cohort, config.cohort, config.random_seed, index)
        after = config.cohort.dropout is not None and config.cohort.dropout.when == "after"
        cohorts.append(cohort if after else tuple(c for c in cohort if c not in lost))
    epsilon, allowed = spending.planned(cohorts)
    if allowed < config.rounds:
        cure = f"set rounds: {allowed}, " if allowed else "set "
        raise ValueError(
            f"privacy.epsilon = {config.privacy.epsilon:g} at delta = {spending.delta:.2g} is enough for {allowed} of "
            f"{config.rounds} rounds, which all together have epsilon = {epsilon:.4g}; {cure}a larger "
            "noise_multiplier, more clients with smaller cohorts, or a larger epsilon"
        )
    return (
        f"privacy: epsilon = {epsilon:.4g} at delta = {spending.delta:.2g} after {config.rounds} rounds "
        f"({config.privacy.unit}-level, {count} clients)"
    )
