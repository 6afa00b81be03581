import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from fedhpc.algorithms.local_alignment import LOW, TEXTS_AT_ONCE, local_contrastive_loss, local_similarity
from fedhpc.algorithms.objectives import (
    build_loss,
    contrastive_loss,
    cross_entropy,
    cross_entropy_loss,
    image_text_alignment,
    sigmoid_alignment,
    sigmoid_loss,
    weighted_alignment,
    weighted_contrastive_loss,
    word_region_alignment,
)
from fedhpc.config.load import load_config
from fedhpc.interfaces import Loss
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
    assert build_loss(load_config(smoke / "fedavg.yaml", ["objective={name: clip}"])) is image_text_alignment


# ---------------------------------------------------------------------------- all objectives, beside slow ones in loops
Rows = list[list[float]]


def dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def softmax(x: list[float]) -> list[float]:
    total = sum(math.exp(v) for v in x)
    return [math.exp(v) / total for v in x]


def slow_directions(similarity: Rows) -> tuple[float, float]:
    """Mean -log p(text i | picture i), and mean -log p(picture i | text i)."""
    n = len(similarity)
    forth = sum(-math.log(softmax(similarity[i])[i]) for i in range(n)) / n
    back = sum(-math.log(softmax([similarity[j][i] for j in range(n)])[i]) for i in range(n)) / n
    return forth, back


def slow_similarity(image: Rows, text: Rows, temperature: float) -> Rows:
    return [[dot(x, y) / temperature for y in text] for x in image]


def slow_clip(out: dict[str, Tensor]) -> float:
    return sum(slow_directions(slow_similarity(out["image"].tolist(), out["text"].tolist(), 0.1)))


def slow_convirt(out: dict[str, Tensor]) -> float:
    forth, back = slow_directions(slow_similarity(out["image"].tolist(), out["text"].tolist(), 0.1))
    return 0.75 * forth + 0.25 * back


def slow_siglip(out: dict[str, Tensor]) -> float:
    logits = slow_similarity(out["image"].tolist(), out["text"].tolist(), 0.1)
    total = 0.0
    for i, row in enumerate(logits):
        for j, logit in enumerate(row):
            right = 1 / (1 + math.exp(-(logit - 10.0)))
            total -= math.log(right if i == j else 1 - right)
    return total / len(logits)


def slow_word_similarity(regions: Rows, words: Rows) -> float:
    """Of one picture and one text without padding."""
    per_region = [softmax([dot(region, word) for word in words]) for region in regions]
    total = 0.0
    for j, word in enumerate(words):
        weights = softmax([4.0 * shares[j] for shares in per_region])
        context = [dot(weights, [region[e] for region in regions]) for e in range(len(word))]
        cosine = dot(context, word) / math.sqrt(dot(context, context) * dot(word, word))
        total += math.exp(5.0 * cosine)
    return math.log(total)


def slow_gloria(out: dict[str, Tensor]) -> float:
    texts = [w[m[1:]].tolist() for w, m in zip(out["text_words"], out["text_mask"], strict=True)]
    scores = [[slow_word_similarity(r, words) / 0.1 for words in texts] for r in out["image_regions"].tolist()]
    return slow_clip(out) + sum(slow_directions(scores))


LOSSES: dict[str, tuple[Loss, Callable[[dict[str, Tensor]], float]]] = {
    "clip": (image_text_alignment, slow_clip),
    "convirt": (partial(weighted_alignment, image_weight=0.75), slow_convirt),
    "siglip": (sigmoid_alignment, slow_siglip),
    "gloria": (partial(word_region_alignment, attention_scale=4.0, word_scale=5.0, local_weight=1.0), slow_gloria),
}
OBJECTIVES = pytest.mark.parametrize("name", sorted(LOSSES))


def outputs(rows: int = TEXTS_AT_ONCE + 3) -> dict[str, Tensor]:
    """What a dual encoder might give: texts of 1 to 5 words, partners somewhat alike."""
    draw = partial(torch.randn, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    image, regions = draw(rows, 6), draw(rows, 4, 6)
    lengths = torch.arange(rows) % 5 + 2
    return {
        "image": torch.nn.functional.normalize(image, dim=1),
        "text": torch.nn.functional.normalize(image + draw(rows, 6), dim=1),
        "image_regions": regions,
        "text_words": regions[:, [0, 1, 2, 3, 0]] + 0.5 * draw(rows, 5, 6),
        "text_mask": torch.arange(6) < lengths[:, None],
        "log_temperature": torch.tensor([math.log(0.1)], dtype=torch.float64),
        "logit_bias": torch.tensor([-10.0], dtype=torch.float64),
    }


def single(out: dict[str, Tensor]) -> dict[str, Tensor]:
    """In float32, as a model gives them, and asking for gradients."""
    return {k: v if v.dtype == torch.bool else v.float().requires_grad_() for k, v in out.items()}


def leaves(out: dict[str, Tensor], name: str) -> list[str]:
    own = {"siglip": ["logit_bias"], "gloria": ["image_regions", "text_words"]}
    return ["image", "text", "log_temperature", *own.get(name, [])]


@OBJECTIVES
def test_a_loss_agrees_with_loops(name: str) -> None:
    fast, slow = LOSSES[name]
    assert fast(single(outputs()), {}).item() == pytest.approx(slow(outputs()), rel=2e-5)


@OBJECTIVES
def test_a_config_builds_that_loss_with_the_published_defaults(name: str) -> None:
    config = load_config(ROOT / "configs" / "smoke" / "fedavg.yaml", [f"objective={{name: {name}}}"])
    assert build_loss(config)(single(outputs()), {}).item() == pytest.approx(LOSSES[name][1](outputs()), rel=2e-5)


def test_own_keys_reach_the_loss() -> None:
    smoke = ROOT / "configs" / "smoke" / "fedavg.yaml"
    for section, other in (
        ("{name: convirt, image_weight: 0.5}", partial(weighted_alignment, image_weight=0.5)),
        (
            "{name: gloria, attention_scale: 2, word_scale: 3, local_weight: 0.5}",
            partial(word_region_alignment, attention_scale=2.0, word_scale=3.0, local_weight=0.5),
        ),
    ):
        built = build_loss(load_config(smoke, [f"objective={section}"]))
        assert built(single(outputs()), {}).item() == other(single(outputs()), {}).item()
        published = LOSSES[section[7:13] if "gloria" in section else "convirt"][0]
        assert built(single(outputs()), {}).item() != published(single(outputs()), {}).item()


@OBJECTIVES
def test_order_of_the_batch_does_not_matter(name: str) -> None:
    out, order = outputs(), torch.randperm(TEXTS_AT_ONCE + 3, generator=torch.Generator().manual_seed(1))
    shuffled = {k: v if v.numel() == 1 else v[order] for k, v in out.items()}
    loss = LOSSES[name][0]
    assert loss(single(shuffled), {}).item() == pytest.approx(loss(single(out), {}).item(), rel=1e-5)
    apart = {**out, "text": out["text"][order], "text_words": out["text_words"][order]}
    apart["text_mask"] = out["text_mask"][order]
    assert loss(single(apart), {}).item() > loss(single(out), {}).item(), "who belongs to whom must matter"


@OBJECTIVES
def test_gradients_are_right_and_reach_what_the_loss_reads(name: str) -> None:
    out = single(outputs())
    LOSSES[name][0](out, {}).backward()
    for key in leaves(out, name):
        gradient = out[key].grad
        assert gradient is not None
        assert gradient.isfinite().all()
        assert gradient.abs().max() > 1e-6, key
    # Along the temperature, and the bias, against a difference of the slow loss's inputs.
    step = 1e-3
    for key in {"log_temperature", "logit_bias"} & set(leaves(out, name)):
        ends = []
        for sign in (1, -1):
            moved = single(outputs())
            moved[key] = (outputs()[key] + sign * step).float()
            ends.append(LOSSES[name][0](moved, {}).item())
        gradient = out[key].grad
        assert gradient is not None
        assert gradient.item() == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=0.02)


@OBJECTIVES
def test_autocast_does_not_coarsen_a_loss(name: str) -> None:
    loss, out = LOSSES[name][0], single(outputs())
    exact = loss(out, {})
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = loss(out, {})
    assert inside.dtype == torch.float32
    assert inside.item() == exact.item()
    half = {k: v.bfloat16() if k in ("image", "text", "image_regions", "text_words") else v for k, v in out.items()}
    assert loss(half, {}).item() == pytest.approx(exact.item(), rel=0.1)


# ------------------------------------------------------------------------------------------------- one at a time
def test_convirt_golden_value() -> None:
    # Cosines / 0.1 are [[5, 4], [2, 6]]; a row's loss is log(1 + exp(other - own)).
    forth = (math.log1p(math.exp(-1)) + math.log1p(math.exp(-4))) / 2
    back = (math.log1p(math.exp(-3)) + math.log1p(math.exp(-2))) / 2
    loss = weighted_contrastive_loss(IMAGE, TEXT, 0.1, 0.75).item()
    assert loss == pytest.approx(0.75 * forth + 0.25 * back, abs=1e-6)
    assert weighted_contrastive_loss(IMAGE, TEXT, 0.07, 0.5).item() == pytest.approx(0.1438184 / 2, abs=1e-6)


def test_siglip_golden_value() -> None:
    # Cosines / 0.1 - 10 are [[-5, -6], [-8, -4]].
    expected = sum(math.log1p(math.exp(x)) for x in (5, 4, -6, -8)) / 2
    assert sigmoid_loss(IMAGE, TEXT, 0.1, -10.0).item() == pytest.approx(expected, abs=1e-5)
    apart = torch.eye(8)
    start = math.log1p(math.exp(10)) + 3 * math.log1p(math.exp(-10))  # similarities of 0
    assert sigmoid_loss(apart[:4], apart[4:], 0.1, -10.0).item() == pytest.approx(start, abs=1e-5)


def test_alike_regions_leave_attention_no_choice() -> None:
    regions = torch.tensor([3.0, 4.0]).expand(1, 7, 2)
    words = torch.tensor([[[1.0, 0.0], [0.0, 2.0], [9.0, 9.0]]])
    similarity = local_similarity(regions, words, torch.tensor([[True, True, False]]), 4.0, 5.0)
    assert similarity.item() == pytest.approx(math.log(math.exp(5 * 0.6) + math.exp(5 * 0.8)), abs=1e-5)


def test_padded_tokens_do_not_matter() -> None:
    loss, out = LOSSES["gloria"][0], outputs()
    padded = ~out["text_mask"][:, 1:]
    other = {**out, "text_words": out["text_words"].masked_fill(padded[..., None], 1e4)}
    assert loss(single(other), {}).item() == loss(single(out), {}).item()
    longer = {
        **out,
        "text_words": torch.cat([out["text_words"], torch.full((len(padded), 3, 6), 7.0)], dim=1),
        "text_mask": torch.nn.functional.pad(out["text_mask"], (0, 3), value=False),
    }
    assert loss(single(longer), {}).item() == pytest.approx(loss(single(out), {}).item(), rel=1e-6)
    leaf = single(out)
    loss(leaf, {}).backward()
    assert leaf["text_words"].grad is not None
    assert leaf["text_words"].grad[padded].abs().max() == 0


def test_texts_without_words_are_left_out_of_the_local_part() -> None:
    out = outputs(5)
    out["text_mask"][[1, 3], 1:] = False
    leaf = single(out)
    loss = LOSSES["gloria"][0](leaf, {})
    texts = [w[m[1:]].tolist() for w, m in zip(out["text_words"], out["text_mask"], strict=True)]
    worded = [0, 2, 4]
    scores = [[slow_word_similarity(r, texts[j]) / 0.1 for j in worded] for r in out["image_regions"].tolist()]
    forth = sum(-math.log(softmax(scores[i])[k]) for k, i in enumerate(worded)) / 3
    back = sum(-math.log(softmax([row[k] for row in scores])[i]) for k, i in enumerate(worded)) / 3  # all 5 pictures
    assert loss.item() == pytest.approx(slow_clip(out) + forth + back, rel=2e-5)
    loss.backward()
    for key in leaves(leaf, "gloria"):
        gradient = leaf[key].grad
        assert gradient is not None
        assert gradient.isfinite().all()


def test_a_batch_without_any_word_has_the_global_part_only() -> None:
    out = outputs(4)
    out["text_mask"][:, 1:] = False
    leaf = single(out)
    loss = LOSSES["gloria"][0](leaf, {})
    assert loss.item() == pytest.approx(slow_clip(out), rel=2e-5)
    loss.backward()
    for key in ("image_regions", "text_words"):
        gradient = leaf[key].grad
        assert gradient is not None
        assert gradient.abs().max() == 0


def test_local_gradients_by_differences() -> None:
    out = outputs(4)
    mask = out["text_mask"][:, 1:].clone()
    mask[1] = False

    def local(regions: Tensor, words: Tensor, temperature: Tensor) -> Tensor:
        similarity = local_similarity(regions, words, mask, 4.0, 5.0)
        assert (similarity[:, 1] < LOW / 2).all()
        return local_contrastive_loss(similarity, mask.any(dim=1), temperature)

    inputs = [out["image_regions"], out["text_words"], torch.tensor([0.5], dtype=torch.float64)]
    assert torch.autograd.gradcheck(local, [i.clone().requires_grad_() for i in inputs])
