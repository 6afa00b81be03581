"""FedDRA's parts by hand: the constraint, the schedules, what its config refuses."""

from __future__ import annotations

import math

import pytest
import torch

from fedhpc.algorithms.feddra import constraint_loss
from fedhpc.algorithms.objectives import image_text_alignment
from fedhpc.algorithms.robust import excess_loss, trimmed
from fedhpc.algorithms.stages import Stages
from fedhpc.config.algorithms import FedDRAConfig
from fedhpc.config.checks import check
from fedhpc.config.load import ConfigError, load_config
from tests.conftest import ROOT

SMOKE = ROOT / "configs" / "smoke" / "feddra.yaml"


def test_the_constraint_is_the_sum_of_two_mean_squared_errors() -> None:
    out = {"image": torch.tensor([[1.0, 0.0], [0.0, 1.0]]), "text": torch.tensor([[0.6, 0.8], [1.0, 0.0]])}
    anchor = {"image": torch.tensor([[0.0, 1.0], [0.0, 1.0]]), "text": torch.tensor([[0.6, 0.8], [0.0, -1.0]])}
    # Squared distances: image 2 and 0, text 0 and 2; over 2 rows and 2 dimensions.
    assert constraint_loss(out, anchor, "mean").item() == pytest.approx(2 / 4 + 2 / 4)
    assert constraint_loss(out, anchor, "sum").item() == pytest.approx(2 / 2 + 2 / 2)
    assert constraint_loss(out, out, "sum").item() == 0


def test_unit_vectors_bound_the_mean_form() -> None:
    """ALGORITHMS.md A.3: at most 4/128 for each of the two."""
    out = {name: torch.nn.functional.normalize(torch.randn(8, 128), dim=1) for name in ("image", "text")}
    opposite = {name: -value for name, value in out.items()}
    assert constraint_loss(out, opposite, "mean").item() == pytest.approx(8 / 128, rel=1e-5)


def stages(**options: object) -> Stages:
    return Stages(FedDRAConfig.model_validate({"name": "feddra", **options}))


def test_fixed_schedules() -> None:
    assert [stages().of(i) for i in range(2)] == [(True, True)] * 2
    assert [stages(schedule="joint").of(i) for i in range(2)] == [(False, True)] * 2
    sequential = stages(schedule="sequential", stage1_rounds=2)
    assert [sequential.of(i) for i in range(4)] == [(True, False)] * 2 + [(False, True)] * 2


def test_a_plateau_thaws_the_encoders_for_good() -> None:
    made = stages(schedule="plateau", plateau_patience=2, plateau_min_delta=0.1)
    seen = []
    for loss in (10.0, 8.0, 7.5, 6.9, 6.5, 6.4):  # 7.5 is no improvement by a tenth on 8, 6.9 is, then none
        seen.append(made.of(len(seen)))
        made.watch(loss)
    assert seen == [(True, False)] * 6
    assert made.of(6) == (False, True)
    again = stages(schedule="plateau", plateau_patience=2, plateau_min_delta=0.1)
    again.load_state_dict(made.state_dict())
    assert again.of(7) == (False, True)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["algorithm.dro.apply=loss_scale"], "its step does not change with a scaled loss"),
        (["algorithm.schedule=sequential"], "set algorithm.stage1_rounds: 1"),
        (["algorithm.schedule=sequential", "algorithm.stage1_rounds=3"], "stage1_rounds = 3 and rounds = 3"),
        (["algorithm.stage1_rounds=1"], "has no effect with schedule: alternate"),
        (["algorithm.plateau_patience=1"], "has no effect with schedule: alternate"),
        (["algorithm.schedule=joint"], "algorithm.stage1"),
        (["algorithm.mu=0"], "has no effect with mu: 0"),
        (["algorithm.weight=examples"], "set dro: null"),
        (["algorithm.dro.set=simplex"], "algorithm.dro.rho = 0.1: has no effect with set: simplex"),
        (["algorithm.dro.update=exact"], "algorithm.dro.step_size = 1"),
        (["algorithm.variant=upstream", "algorithm.dro.loss_split=train"], "which fixes it"),
        (["algorithm.schedule=joint", "algorithm.stage2_start=shared"], "algorithm.stage2_start"),
        (["algorithm={name: feddra, mu: 0, dro: null, variant: upstream}"], "with mu: 0 and dro: null"),
        (["algorithm.dro.loss_baseline=duplicates", "objective={name: siglip}"], "set loss_baseline: first"),
    ],
)
def test_what_fights_or_does_nothing_is_refused(overrides: list[str], words: str) -> None:
    try:
        problems = check(load_config(SMOKE, overrides))
    except ConfigError as error:
        problems = [str(error)]
    assert any(words in problem for problem in problems), problems


def test_a_classifier_has_nothing_to_align() -> None:
    with pytest.raises(ConfigError, match="model.kind: dual_encoder"):
        load_config(ROOT / "configs" / "smoke" / "classifier.yaml", ["algorithm={name: feddra}"])


def test_duplicates_cost_a_perfect_model_nothing_in_excess() -> None:
    """Three texts, the first of them twice: both directions of its rows cost log 2 whatever the model does."""
    tokens = torch.tensor([[1, 2], [3, 4], [1, 2], [5, 6]])
    perfect = torch.eye(4)[[0, 1, 0, 2]]
    out = {"image": perfect, "text": perfect, "log_temperature": torch.tensor([math.log(0.01)])}
    assert image_text_alignment(out, {"tokens": tokens}).item() == pytest.approx(2 * 2 * math.log(2) / 4, abs=1e-5)
    assert excess_loss(image_text_alignment)(out, {"tokens": tokens}).item() == pytest.approx(0, abs=1e-5)
    collapsed = {**out, "image": torch.ones(4, 4) / 2, "text": torch.ones(4, 4) / 2}
    expected = 2 * math.log(4) - 2 * 2 * math.log(2) / 4
    assert excess_loss(image_text_alignment)(collapsed, {"tokens": tokens}).item() == pytest.approx(expected, abs=1e-5)


def test_trimmed_losses_do_not_lead() -> None:
    losses = torch.tensor([1.0, 9.0, 3.0, 2.0], dtype=torch.float64)
    assert trimmed(losses, 0) is losses
    assert trimmed(losses, 1).tolist() == [1.0, 2.0, 3.0, 2.0]
    assert trimmed(losses, 2).tolist() == [1.0, 1.5, 1.5, 2.0]
