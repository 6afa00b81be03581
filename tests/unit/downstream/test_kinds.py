"""Each kind of task, on what can be worked out beside it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from fedhpc.config.downstream import (
    AnyTask,
    FineTuneTask,
    LinearProbeTask,
    RetrievalTask,
    SegmentationTask,
    TuneConfig,
    ZeroShotTask,
)
from fedhpc.data.hdf5 import PackedFile
from fedhpc.downstream.linear_probe import UNSEEN, Probe
from fedhpc.downstream.loading import load_run
from fedhpc.downstream.rows import Rows
from fedhpc.downstream.run import evaluate
from fedhpc.downstream.scoring import classification_records, one_class_notes
from fedhpc.downstream.segmentation import Decoder, overlap_loss, token_grid
from fedhpc.downstream.tuning import fit_with_patience
from fedhpc.downstream.zero_shot import run_zero_shot

from .conftest import Trained

TEMPLATE = "a box on the {}"
FIT = TuneConfig(max_epochs=12, patience=4, learning_rate=3e-3, encoder_learning_rate=3e-3)


def on_boxes(task: type[AnyTask], boxes: Path, **keys: object) -> AnyTask:
    return task.model_validate({"name": "t", "data": {"path": boxes}, "bootstrap": 50, **keys})


def values(found: dict, scope: str = "all", setting: str | None = None) -> dict[str, float]:
    (record,) = [r for r in found["results"] if r["scope"] == scope and setting in (None, r["setting"])]
    return {name: one["value"] for name, one in record["metrics"].items()}


# ------------------------------------------------------------------------------------------------------- zero-shot
def test_zero_shot_is_the_cosine_with_the_mean_prompt(trained: Trained, boxes: Path) -> None:
    run = load_run(trained("fedavg"))
    prompts = {"left": ["opacity on the left", "left nodule"], "right": ["right effusion"]}
    task = on_boxes(ZeroShotTask, boxes, kind="zero_shot", label="side", prompts=prompts)
    assert isinstance(task, ZeroShotTask)
    with PackedFile(boxes) as packed:
        rows = Rows(run, task, packed)
        outcome = run_zero_shot(rows, task)
        chosen = np.flatnonzero(packed.read("split") == 2)
        images = torch.from_numpy(packed.read("image", chosen)).permute(0, 3, 1, 2).float() / 127.5 - 1
        label = packed.read("label/side", chosen)
        with torch.no_grad():
            picture = run.module({"image": images})["image"].double()
            words = [run.module({"tokens": rows.encode(prompts[c])[0]})["text"].double() for c in ("left", "right")]
    scores = torch.stack([F.cosine_similarity(picture, w.mean(0), dim=-1) for w in words], dim=1)
    recall = [float((scores.argmax(1).numpy()[label == c] == c).mean()) for c in (0, 1)]
    (everything,) = [r for r in outcome.records if r.scope == "all"]
    assert everything.metrics["balanced_accuracy"].value == pytest.approx(np.mean(recall))
    # Two classes: one against the rest is the order of the difference of cosines, whatever the temperature.
    gap = (scores[:, 1] - scores[:, 0]).numpy()
    pairs = gap[label == 1][:, None] - gap[label == 0][None, :]
    assert everything.metrics["auroc"].value == pytest.approx(((pairs > 0) + (pairs == 0) / 2).mean(), abs=1e-3)
    assert everything.rows == len(chosen) and everything.patients == len(chosen) // 2
    assert any("does not know" in note for note in outcome.notes) is False


def test_zero_shot_refuses_other_classes_and_runs_without_text(trained: Trained, boxes: Path) -> None:
    folder = trained("fedavg")
    task = on_boxes(ZeroShotTask, boxes, kind="zero_shot", label="side", prompts={"left": ["a"], "up": ["b"]})
    with pytest.raises(ValueError, match="lacks right and has up"):
        evaluate(folder, task)
    with pytest.raises(ValueError, match="did you mean side"):
        evaluate(folder, on_boxes(ZeroShotTask, boxes, kind="zero_shot", label="sid", template=TEMPLATE))
    classifier = trained("classifier")
    with pytest.raises(ValueError, match="model.kind: classifier, which reads none"):
        evaluate(classifier, on_boxes(RetrievalTask, boxes, kind="retrieval"))


# -------------------------------------------------------------------------------------------------------- retrieval
def test_retrieval_of_another_file_takes_the_runs_tokenizer(trained: Trained, boxes: Path) -> None:
    found = evaluate(trained("fedavg"), on_boxes(RetrievalTask, boxes, kind="retrieval", match=["side"]))
    assert found["data"]["is_run_data"] is False and found["rows"] == {"test": 24}
    assert any("tokenised anew with the run's tokenizer" in note for note in found["notes"])
    assert any("words that the run's tokenizer does not know" in note for note in found["notes"])
    assert found["detail"]["groups"] == 2
    metrics = values(found)
    # Two texts are all there is: a row of either way finds its side in the first k, or a tie of the other side first.
    assert set(values(found, "north")) == set(metrics)
    assert metrics["recall_at_1"] == pytest.approx(
        (metrics["image_to_text_recall_at_1"] + metrics["text_to_image_recall_at_1"]) / 2
    )
    with pytest.raises(ValueError, match="match: colour not in"):
        evaluate(trained("fedavg"), on_boxes(RetrievalTask, boxes, kind="retrieval", match=["colour"]))


def test_rows_without_a_label_of_match_are_left_out(trained: Trained, boxes: Path) -> None:
    found = evaluate(trained("fedavg"), on_boxes(RetrievalTask, boxes, kind="retrieval", match=["rare"]))
    assert found["rows"] == {"test": 20} and found["left_out"] == {"test": 4}
    assert (
        "4 of 24 rows in split test are left out: they do not have a picture and text and the labels of match"
        in (found["notes"])
    )


def test_one_class_and_rows_without_a_label_are_noted(trained: Trained, boxes: Path) -> None:
    """boxes: the last 20 rows, 4 of them in test, have no label `rare`."""
    folder = trained("fedavg")
    task = on_boxes(ZeroShotTask, boxes, kind="zero_shot", label="rare", template=TEMPLATE)
    found = evaluate(folder, task)
    assert found["left_out"] == {"test": 4}
    assert any(
        "4 of 24 rows in split test are left out: they do not have a picture and a label" in n for n in found["notes"]
    )
    assert [r["classes"] for r in found["results"]] == [2, 2, 2]
    assert not any("are of class" in note for note in found["notes"])
    with PackedFile(boxes) as packed:
        site, side = packed.read("site"), packed.read("label/side")
        test = np.flatnonzero((packed.read("split") == 2) & ((site == 0) | (side == 1)))
        rows = Rows(load_run(folder), task, packed)
        label = torch.from_numpy(side.astype(np.int64))
        label[site == 1] = 1
        notes = one_class_notes(rows, torch.from_numpy(test), label[test], ["left", "right"])
        records = classification_records(rows, torch.from_numpy(test), [torch.randn(len(test), 2)], label[test])
    assert len(notes) == 1 and notes[0].startswith("south: all test rows are of class right, so balanced accuracy")
    assert {r.scope: r.classes for r in records} == {"all": 2, "north": 2, "south": 1}


# ----------------------------------------------------------------------------------------------------- linear probe
@pytest.mark.parametrize("num_classes", [2, 3])
def test_probe_is_scikit_learns_at_the_strength_that_is_best_on_val(num_classes: int) -> None:
    random = np.random.default_rng(num_classes)
    x = random.normal(size=(90, 4)) * [1, 10, 100, 0] + [0, 5, 0, 7]  # one feature is constant
    y = (x[:, 0] + random.normal(0, 0.7, 90) > 0).astype(np.int64) + (num_classes == 3) * (x[:, 1] > 8)
    train, val, test = np.split(np.arange(90), [40, 65])
    strengths = [100.0, 1e-4, 1.0]
    probe = Probe(x[train], y[train], x[val], y[val], strengths, num_classes)
    mean, sd = x[train].mean(0), np.where(x[train].std(0) > 0, x[train].std(0), 1)
    scaled = (x - mean) / sd
    best = {}
    for strength in sorted(strengths):
        model = LogisticRegression(C=strength, max_iter=2000).fit(scaled[train], y[train])
        predicted = model.predict(scaled[val])
        score = np.mean([(predicted[y[val] == c] == c).mean() for c in np.unique(y[val])])
        best.setdefault(score, (strength, model.predict_proba(scaled[test])))
    strength, expected = best[max(best)]
    assert probe.strength == strength and probe.score == max(best)
    assert np.allclose(torch.softmax(torch.from_numpy(probe.logits(x[test])), 1).numpy(), expected, atol=1e-6)


def test_a_class_without_training_rows_is_never_predicted() -> None:
    x = np.random.default_rng(0).normal(size=(30, 3))
    y = np.tile([0, 2], 15)
    logits = Probe(x, y, x, y, [1.0], 4).logits(x)
    odds = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    assert set(logits.argmax(1)) <= {0, 2} and np.allclose(odds[:, [1, 3]], -UNSEEN)
    with pytest.raises(ValueError, match="all of one class"):
        Probe(x, np.zeros(30, np.int64), x, y, [1.0], 2)


def test_linear_probe_learns_the_shade_and_holds_a_site_out(trained: Trained, boxes: Path) -> None:
    folder = trained("fedavg")
    keys = {"kind": "linear_probe", "label": "shade", "fractions": [0.2, 1.0], "num_seeds": 2}
    found = evaluate(folder, on_boxes(LinearProbeTask, boxes, **keys))
    assert found["rows"] == {"train": 72, "val": 24, "test": 24}
    assert values(found, setting="100 % labels")["balanced_accuracy"] > 0.9
    (few,) = [r for r in found["results"] if r["setting"] == "20 % labels" and r["scope"] == "all"]
    assert len(few["metrics"]["auroc"]["seeds"]) == 2
    out = evaluate(folder, on_boxes(LinearProbeTask, boxes, **{**keys, "fractions": [1.0]}, hold_out_site="south"))
    assert out["rows"] == {"train": 36, "val": 12, "test": 12}
    assert {r["scope"] for r in out["results"]} == {"all", "south"}
    assert any("cannot be told" in note for note in out["notes"])
    embedded = evaluate(folder, on_boxes(LinearProbeTask, boxes, **keys, features="embedding"))
    assert embedded["detail"]["features"] == "image" and embedded["detail"]["width"] == 32


def test_a_held_out_site_that_the_run_trained_on_is_said_to_be_so(trained: Trained) -> None:
    task = LinearProbeTask(
        name="t", kind="linear_probe", label="finding", fractions=[1.0], hold_out_site="site-c", bootstrap=0
    )
    notes = evaluate(trained("fedavg"), task)["notes"]
    assert any("training rows of site-c: its encoder has seen the site" in note for note in notes)


def test_embeddings_of_a_classifier_are_refused(trained: Trained) -> None:
    task = LinearProbeTask(name="t", kind="linear_probe", label="finding", features="embedding")
    with pytest.raises(ValueError, match="set features: encoder"):
        evaluate(trained("classifier"), task)


# -------------------------------------------------------------------------------------------------------- training
def test_fine_tuning_learns_from_a_few_rows_and_leaves_the_run_alone(trained: Trained, boxes: Path) -> None:
    folder = trained("fedavg", "model.image.freeze=true", "model.text.freeze=true", "cohort.size=null")
    before = (folder / "checkpoints" / "round_000002" / "shared.safetensors").read_bytes()
    task = on_boxes(FineTuneTask, boxes, kind="fine_tune", label="shade", shots=12, num_seeds=2, fit=FIT)
    found = evaluate(folder, task)
    assert values(found)["balanced_accuracy"] > 0.8
    assert [one["rows"] for one in found["detail"]["trained"]] == [24, 24]
    assert (folder / "checkpoints" / "round_000002" / "shared.safetensors").read_bytes() == before
    rare = on_boxes(
        FineTuneTask, boxes, kind="fine_tune", label="rare", shots=2, num_seeds=1, fit=TuneConfig(max_epochs=1)
    )
    assert any("no training row is of class never" in note for note in evaluate(folder, rare)["notes"])


@pytest.mark.parametrize("tune", [False, True])
def test_segmentation_finds_the_box(tune: bool, trained: Trained, boxes: Path) -> None:
    fit = FIT.model_copy(update={"max_epochs": 15}) if tune else FIT
    task = on_boxes(SegmentationTask, boxes, kind="segmentation", tune=tune, decoder_width=16, fit=fit)
    found = evaluate(trained("fedavg"), task)
    assert found["rows"] == {"train": 60, "val": 20, "test": 20} and found["detail"]["grid"] == [4, 4]
    metrics = values(found)
    assert metrics["dice"] > max(0.6, metrics["mean_mask_dice"] + 0.15)
    assert [r["setting"] for r in found["results"]] == ["tuned" if tune else "frozen"] * 3


def test_segmentation_says_what_is_missing(trained: Trained) -> None:
    with pytest.raises(ValueError, match="has no masks"):
        evaluate(trained("fedavg"), SegmentationTask(name="t", kind="segmentation"))


def test_decoder_and_grids() -> None:
    for grid, size in (((4, 4), (32, 32)), ((3, 2), (50, 31)), ((8, 8), (8, 8))):
        decoder = Decoder(6, 8, grid, size)
        tokens = torch.randn(2, grid[0] * grid[1], 6)
        assert decoder(tokens).shape == (2, *size)
    # Tokens are rows of the picture, from the top: a lit first row stays at the top.
    tokens = torch.zeros(1, 16, 6)
    lit = tokens.clone()
    lit[0, :4] = 5.0
    decoder = Decoder(6, 8, (4, 4), (32, 32))
    for layer in decoder.modules():
        if isinstance(layer, nn.GroupNorm):  # statistics over the whole picture would spread the change
            layer.forward = lambda x: x  # type: ignore[method-assign]
    change = (decoder(lit) - decoder(tokens)).abs()[0]
    assert change[:8].mean() > 0 and change[24:].max() == 0
    with pytest.raises(ValueError, match="gives 0 regions"):
        token_grid(nn.Linear(2, 2), (8, 8))


def test_overlap_loss_by_hand() -> None:
    logits = torch.tensor([[[0.0, 0.0]], [[0.0, 0.0]]])
    target = torch.tensor([[[1.0, 0.0]], [[0.0, 0.0]]])
    # Every probability is 1/2: cross-entropy ln 2; soft Dice (2 * 0.5 + 1) / (1 + 1 + 1) and (0 + 1) / (1 + 0 + 1).
    expected = np.log(2) + (1 - 2 / 3 + 1 - 1 / 2) / 2
    assert float(overlap_loss(logits, target)) == pytest.approx(expected)


def test_the_best_epoch_is_kept_and_patience_ends() -> None:
    module = nn.Linear(1, 1, bias=False)
    seen: list[float] = []
    script = iter([0.1, 0.5, 0.3, 0.5, 0.2, 9.0])

    def losses(epoch: int) -> Iterator[Tensor]:
        yield module.weight.sum()

    def score() -> float:
        assert not module.training
        seen.append(float(module.weight.detach()))
        return next(script)

    groups = [{"params": module.parameters(), "lr": 0.1}]
    assert fit_with_patience(module, groups, losses, score, TuneConfig(max_epochs=10, patience=3)) == (2, 0.5)
    assert len(seen) == 5 and float(module.weight.detach()) == seen[1] != seen[4]
    with pytest.raises(FloatingPointError, match="fit.learning_rate"):
        fit_with_patience(module, groups, lambda _: [module.weight.sum() * torch.nan], score, TuneConfig())
