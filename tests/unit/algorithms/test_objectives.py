import math

import pytest
import torch

from fedhpc.algorithms.objectives import (
    build_loss,
    contrastive_loss,
    cross_entropy,
    cross_entropy_loss,
    image_text_alignment,
)
from fedhpc.config.load import load_config
from tests.conftest import ROOT

# Unit vectors whose cosines are [[.5, .4], [.2, .6]] (ALGORITHMS.md A.3).
IMAGE = torch.eye(2, 4)
TEXT = torch.tensor([[0.5, 0.2, math.sqrt(0.71), 0.0], [0.4, 0.6, 0.0, math.sqrt(0.48)]])


def test_contrastive_loss_golden_value() -> None:
    assert (IMAGE @ TEXT.T).tolist() == [[0.5, pytest.approx(0.4)], [pytest.approx(0.2), pytest.approx(0.6)]]
    assert contrastive_loss(IMAGE, TEXT, 0.07).item() == pytest.approx(0.1438184, abs=1e-6)
    assert contrastive_loss(IMAGE, TEXT, torch.tensor([0.07])).shape == ()


def test_contrastive_loss_is_the_sum_of_both_directions() -> None:
    s = IMAGE @ TEXT.T / 0.07
    forth = -(s.diag() - s.logsumexp(1)).mean()
    back = -(s.diag() - s.logsumexp(0)).mean()
    assert contrastive_loss(IMAGE, TEXT, 0.07).item() == pytest.approx((forth + back).item(), abs=1e-6)
    assert contrastive_loss(TEXT, IMAGE, 0.07).item() == pytest.approx((forth + back).item(), abs=1e-6)


def test_contrastive_loss_of_a_collapsed_model_is_two_log_n() -> None:
    same = torch.ones(8, 4) / 2
    assert contrastive_loss(same, same, 0.07).item() == pytest.approx(2 * math.log(8), abs=1e-5)


def test_image_text_alignment_reads_the_models_outputs() -> None:
    out = {"image": IMAGE.bfloat16(), "text": TEXT.bfloat16(), "log_temperature": torch.tensor([math.log(0.07)])}
    loss = image_text_alignment(out, {"image": torch.zeros(2, 1, 2, 2)})
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(0.1438184, abs=0.01)


def test_cross_entropy_ignores_rows_without_label() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0], [9.0, -3.0, 4.0]], requires_grad=True)
    loss = cross_entropy_loss(logits, torch.tensor([0, -1], dtype=torch.int16))
    assert loss.item() == pytest.approx(0.4076060, abs=1e-6)  # ALGORITHMS.md B.1
    loss.backward()
    assert logits.grad is not None
    assert logits.grad[1].abs().max() == 0
    assert logits.grad[0].abs().max() > 0


def test_cross_entropy_without_any_label_is_zero_with_zero_gradient() -> None:
    logits = torch.randn(3, 2, requires_grad=True)
    loss = cross_entropy({"logits": logits}, {"label": torch.full((3,), -1)})
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert logits.grad.abs().max() == 0


def test_the_loss_follows_the_model() -> None:
    smoke = ROOT / "configs" / "smoke"
    assert build_loss(load_config(smoke / "classifier.yaml")) is cross_entropy
    assert build_loss(load_config(smoke / "fedavg.yaml")) is image_text_alignment
