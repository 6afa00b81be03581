"""What `fedhpc check` says about differential privacy."""

from __future__ import annotations

import pytest

from fedhpc.algorithms.registry import ALGORITHMS
from fedhpc.config.checks_privacy import CLIENT_LEVEL, RECORD_LEVEL, WHY_NOT

from .conftest import CLASSIFIER, Load, Problems

CLIENT = ["privacy={unit: client, clip: 1.0, noise_multiplier: 1.0}", "algorithm.weight=uniform"]
RECORD = [
    "privacy={unit: record, clip: 1.0, noise_multiplier: 1.0}",
    CLASSIFIER,
    "data.label=finding",
]
SECRET = "privacy.secret_file=key"


def test_both_units_are_accepted(load: Load) -> None:
    assert load().privacy is None
    load(*CLIENT, "aggregation.secure=true", "privacy.adaptive={count_noise: 2.0}")
    load(*RECORD)
    load(*CLIENT, SECRET, "privacy.amplification=true", "cohort.size=2")


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["algorithm.weight=examples"], "algorithm.weight = examples: a client's weight would tell of its rows"),
        (["aggregation.arithmetic=float32"], "noise is added to exact sums only; set arithmetic: fixed_point"),
        (["aggregation.compression={kind: bf16}"], "privacy.unit = client with aggregation.compression, which reads"),
        (["mesh.shard=2"], "privacy.unit = client with sharded clients"),
        (["privacy.delta=0.25"], "privacy.delta = 0.25 with 4 clients: publishing one of them in the clear has"),
        (["cohort.dropout={probability: 0.1, when: after}"], "cohort.dropout without privacy.noise_shares"),
        (["privacy.noise_shares=5"], "privacy.noise_shares = 5 but 4 clients take part in a round; set noise_sh"),
        (["privacy.noise_shares=3", "cohort.size=2"], "privacy.noise_shares = 3 but 2 clients take part"),
        (["privacy.adaptive={count_noise: 0.5}"], "the count alone costs as much as that allows; set count_noise a"),
        (["privacy.amplification=true", "cohort.size=2"], "amplification = true without secret_file"),
        (["privacy.amplification=true", SECRET], "there is nothing to amplify; set cohort.size"),
        (["privacy.amplification=true", SECRET, "cohort.size=2", "privacy.accountant=pld"], "set accountant: rdp"),
        (["privacy.clip=0"], "privacy.clip = 0: not accepted; set"),
        (["privacy.unit=patient"], "unknown; did you mean client?; set one of client, record"),
    ],
)  # fmt: skip
def test_client_level_against_the_rest(load: Load, problems: Problems, overrides: list[str], line: str) -> None:
    found = problems(*CLIENT, *overrides)
    assert len(found) == 1, found
    assert line in found[0]


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["fit.accumulate=2"], "fit.accumulate = 2 with privacy.unit = record, which takes the gradient of each row"),
        (["fit.clip_norm=1.0"], "fit.clip_norm = 1.0 with privacy.unit = record"),
        (["fit.precision=bfloat16"], "set fit.precision: float32"),
        (["fit.compile=true"], "set fit.compile: false"),
        (["fit.drop_last=true"], "fit.drop_last = true: has no effect with privacy.unit: record"),
        (["privacy.adaptive={}"], "privacy.adaptive"),
    ],
)  # fmt: skip
def test_record_level_against_the_rest(load: Load, problems: Problems, overrides: list[str], line: str) -> None:
    found = problems(*RECORD, *overrides)
    assert len(found) == 1, found
    assert line in found[0]


def test_a_contrastive_loss_has_no_gradient_of_one_row(problems: Problems) -> None:
    (line,) = problems(RECORD[0])
    assert "A contrastive loss compares the rows of a batch with each other" in line


def test_robust_rules_read_updates_one_by_one(problems: Problems) -> None:
    found = "\n".join(problems(CLIENT[0], "aggregation.robust={rule: median}"))
    assert "privacy.unit = client with aggregation.robust, which reads updates one by one" in found


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
@pytest.mark.parametrize(("unit", "allowed"), [("client", CLIENT_LEVEL), ("record", RECORD_LEVEL)])
def test_every_algorithm_is_allowed_or_refused_with_its_reason(
    name: str, unit: str, allowed: tuple[str, ...], problems: Problems
) -> None:
    found = problems(*(CLIENT[:1] if unit == "client" else RECORD[:1]), f"algorithm={{name: {name}}}")
    refused = [line for line in found if f"privacy.unit = {unit} with algorithm.name = {name}, " in line]
    assert len(refused) == (name not in allowed)
    assert not refused or WHY_NOT[name] in refused[0]
