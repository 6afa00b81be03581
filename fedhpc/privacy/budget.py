"""What a run's rounds cost, told before each of them; refuses the one that would pass the budget."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Any

from fedhpc.config.privacy import (
    ClientPrivacyConfig,
    Privacy,
    RecordPrivacyConfig,
    default_delta,
    delta_problem,
)
from fedhpc.interfaces import ClientId
from fedhpc.privacy.accountant import Mechanism, worst

UNITS = {"client": "clients", "record": "training rows of the smallest client"}


class BudgetSpent(ValueError):
    """A round would pass privacy.epsilon; a checkpoint of what is done is there."""


class Spending:
    """Epsilon of every client's data (client-level) or rows (record-level). The same on every rank.

    Only what is known to all goes in: who took part, numbers of rows and of steps.

    Args:
        clients: all that train.
        cohort_size: clients a round.
        rows: training rows of each client.
        steps: optimizer steps that each client makes in a round.
        batch_size: rows of a step, expected.

    Raises:
        ValueError: delta does not fit the number of clients or rows.
    """

    def __init__(
        self,
        config: Privacy,
        clients: Sequence[ClientId],
        cohort_size: int,
        rows: Mapping[ClientId, int],
        steps: Mapping[ClientId, int],
        batch_size: int,
    ) -> None:
        self.config = config
        self.num_units = len(clients) if config.unit == "client" else min(rows[c] for c in clients)
        self.delta = config.delta if config.delta is not None else default_delta(self.num_units)
        if wrong := delta_problem(self.delta, self.num_units, UNITS[config.unit]):
            raise ValueError(wrong)
        self._clients = tuple(clients)
        self._cohort_size = cohort_size
        self._rows = rows
        self._steps = steps
        self._batch_size = batch_size
        self._spent: dict[ClientId, dict[Mechanism, int]] = {}

    def begin(self, cohort: Sequence[ClientId]) -> float:
        """Epsilon after a round with this cohort, which counts as made.

        Raises:
            BudgetSpent: it would pass the budget; then nothing is counted.
        """
        before = self._spent
        after = self._after(before, [cohort])
        found = self._worst(after)
        if self.config.epsilon is not None and found > self.config.epsilon:
            raise BudgetSpent(
                f"privacy.epsilon = {self.config.epsilon:g} at delta = {self.delta:.2g} does not allow another round: "
                f"epsilon is {self._worst(before):.4g} and would be {found:.4g}"
            )
        self._spent = after
        return found

    @property
    def epsilon(self) -> float:
        """So far."""
        return self._worst(self._spent)

    def planned(self, cohorts: Sequence[Sequence[ClientId]]) -> tuple[float, int]:
        """Epsilon after so many more rounds, and how many of them the budget allows. Counts nothing."""
        total, budget = self._worst(self._after(self._spent, cohorts)), self.config.epsilon
        if budget is None or total <= budget:
            return total, len(cohorts)
        allowed = bisect_right(
            range(1, len(cohorts)), budget, key=lambda n: self._worst(self._after(self._spent, cohorts[:n]))
        )
        return total, allowed

    def outlook(self, cohorts: Sequence[Sequence[ClientId]]) -> str:
        """What so many more rounds come to, in a line."""
        total, allowed = self.planned(cohorts)
        line = f"privacy: epsilon = {total:.4g} at delta = {self.delta:.2g} after {len(cohorts)} more rounds"
        if allowed == len(cohorts):
            return line
        return f"{line}; privacy.epsilon = {self.config.epsilon:g} allows {allowed} of them, then the run stops"

    def _after(
        self, spent: Mapping[ClientId, Mapping[Mechanism, int]], cohorts: Sequence[Sequence[ClientId]]
    ) -> dict[ClientId, dict[Mechanism, int]]:
        """What is spent once rounds with these cohorts are made."""
        after = {client: dict(own) for client, own in spent.items()}
        for cohort in cohorts:
            for client, mechanism, times in self._round(cohort):
                own = after.setdefault(client, {})
                own[mechanism] = own.get(mechanism, 0) + times
        return after

    def _round(self, cohort: Sequence[ClientId]) -> list[tuple[ClientId, Mechanism, int]]:
        config = self.config
        if isinstance(config, RecordPrivacyConfig):
            rates = {c: min(1.0, self._batch_size / self._rows[c]) for c in cohort}
            return [(c, Mechanism(config.noise_multiplier, rates[c]), self._steps[c]) for c in cohort]
        assert isinstance(config, ClientPrivacyConfig)
        if config.amplification:
            one = Mechanism(config.noise_multiplier, self._cohort_size, len(self._clients))
            return [(c, one, 1) for c in self._clients]
        return [(c, Mechanism(config.noise_multiplier), 1) for c in cohort]

    def _worst(self, spent: Mapping[ClientId, Mapping[Mechanism, int]]) -> float:
        return worst(spent.values(), self.delta, self.config.accountant)

    def state_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            str(client): [[m.noise_multiplier, m.sampled, m.out_of, times] for m, times in spent.items()]
            for client, spent in self._spent.items()
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._spent = {
            int(client): {Mechanism(noise, sampled, out_of): times for noise, sampled, out_of, times in spent}
            for client, spent in state.items()
        }
