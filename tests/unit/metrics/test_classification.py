import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedhpc.metrics.classification import classification_metrics


def by_hand(logits: torch.Tensor, label: torch.Tensor) -> dict[str, float]:
    scores = logits.double().softmax(dim=1)
    rows = [(int(s.argmax()), s.tolist(), int(y)) for s, y in zip(scores, label, strict=True) if y >= 0]
    classes = sorted({y for _, _, y in rows})
    recalls, f1s, areas = [], [], []
    for c in classes:
        true = sum(p == c == y for p, _, y in rows)
        recalls.append(true / sum(y == c for _, _, y in rows))
        f1s.append(2 * true / (sum(p == c for p, _, _ in rows) + sum(y == c for _, _, y in rows)))
        inside = [s[c] for _, s, y in rows if y == c]
        outside = [s[c] for _, s, y in rows if y != c]
        if outside:
            pairs = [1.0 if a > b else 0.5 if a == b else 0.0 for a in inside for b in outside]
            areas.append(sum(pairs) / len(pairs))
    return {
        "accuracy": sum(p == y for p, _, y in rows) / len(rows),
        "balanced_accuracy": sum(recalls) / len(classes),
        "macro_f1": sum(f1s) / len(classes),
        "auroc": sum(areas) / len(classes) if areas else math.nan,
    }


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 15), st.integers(2, 5))
def test_against_counting(seed: int, rows: int, num_classes: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    kinds = torch.randn(6, num_classes, generator=generator)
    logits = kinds[torch.randint(0, 6, (rows,), generator=generator)]  # rows repeat: ties
    label = torch.randint(-1, num_classes, (rows,), generator=generator)  # classes and labels may be missing
    label[0] = 0
    assert classification_metrics(logits, label) == pytest.approx(by_hand(logits, label), abs=1e-5, nan_ok=True)


def test_missing_class_is_left_out_of_the_means() -> None:
    logits = torch.tensor([[3.0, 0.0, 0.0], [0.0, 3.0, 0.0], [0.0, 0.0, 3.0]])
    found = classification_metrics(logits, torch.tensor([0, 1, 0]))  # class 2 is predicted once, but never true
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert found["balanced_accuracy"] == pytest.approx((1 / 2 + 1) / 2)
    assert found["macro_f1"] == pytest.approx((2 / 3 + 1) / 2)


def test_one_class_has_no_area() -> None:
    found = classification_metrics(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([1, 1]))
    assert math.isnan(found["auroc"])
    assert found["balanced_accuracy"] == 0.5


def test_confident_scores_keep_their_order() -> None:
    # After a float32 softmax all of these would be 1.0; the area still tells them apart.
    logits = torch.tensor([[100.0, 0.0], [200.0, 0.0], [300.0, 0.0], [400.0, 0.0]])
    assert classification_metrics(logits, torch.tensor([1, 1, 0, 0]))["auroc"] == 1.0


@pytest.mark.parametrize(
    ("logits", "label", "match"),
    [
        (torch.zeros(3), torch.zeros(3), r"got \(3,\)"),
        (torch.zeros(3, 2), torch.zeros(2), r"\(2,\)"),
        (torch.zeros(2, 2), torch.tensor([-1, -1]), "no row has a label"),
        (torch.zeros(2, 2), torch.tensor([0, 2]), "labels reach from 0 to 2, the model scores 2 classes"),
    ],
)
def test_user_mistakes_are_named(logits: torch.Tensor, label: torch.Tensor, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        classification_metrics(logits, label)


def test_diverged_model_has_no_score() -> None:
    with pytest.raises(FloatingPointError, match="not finite"):
        classification_metrics(torch.tensor([[math.nan, 0.0]]), torch.tensor([0]))
