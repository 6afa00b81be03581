"""`fedhpc check` tells what privacy will cost, and refuses rounds past the budget."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from fedhpc.cli import app
from fedhpc.config.load import load_config
from fedhpc.federation.cohort import sample_cohort
from fedhpc.federation.privacy_plan import privacy_plan
from fedhpc.privacy.accountant import Mechanism, epsilon
from tests.conftest import ROOT

SMOKE = ROOT / "configs" / "smoke" / "dp_fedavg.yaml"


def plan(*overrides: str) -> str:
    return privacy_plan(load_config(SMOKE, overrides))


def test_the_plan_counts_each_clients_own_rounds() -> None:
    config = load_config(SMOKE, ["rounds=6", "privacy.epsilon=null", "privacy.delta=1e-3"])
    rounds = [sample_cohort(range(24), config.cohort, 0, index) for index in range(6)]
    most = max(sum(c in cohort for cohort in rounds) for c in range(24))
    assert 3 < most <= 6
    expected = epsilon({Mechanism(1.0): most}, 1e-3, "rdp")
    assert privacy_plan(config).startswith(f"privacy: epsilon = {expected:.4g} at delta = 0.001 after 6 rounds")


def test_rounds_past_the_budget_are_refused_with_the_number_that_fits() -> None:
    two = epsilon({Mechanism(1.0): 2}, 1e-3, "rdp")
    everyone = ("cohort.size=null", "privacy.delta=1e-3", f"privacy.epsilon={two}")
    with pytest.raises(ValueError, match=r"is enough for 2 of 3 rounds, .* set rounds: 2, a larger noise_multiplier"):
        plan(*everyone)
    assert "after 2 rounds" in plan(*everyone, "rounds=2")
    shown = CliRunner().invoke(app, ["check", str(SMOKE), *everyone])
    assert shown.exit_code == 2 and "is enough for 2 of 3 rounds" in shown.output
    assert "at the start of the run" in plan("partition={kind: groups}")
