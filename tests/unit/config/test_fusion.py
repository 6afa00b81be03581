"""Classifiers over several modalities in a config: what is refused, and with which words."""

from __future__ import annotations

import pytest

from fedhpc.config.blocks import encoders
from tests.unit.config.conftest import Load, Problems

FUSION = (
    "model={kind: fusion, tabular: {rna: {network: mrna}, clinical: {network: clinical}}}",
    "data={path: x.h5, label: stage}",
    "algorithm={name: dgb_pcw}",
)


def test_published_networks(load: Load) -> None:
    model = load(*FUSION).model
    assert model.modalities == ("rna", "clinical")  # type: ignore[union-attr]
    assert model.tabular["rna"].hidden == (2048, 1024, 64) and model.tabular["rna"].rate == 0.6  # type: ignore[union-attr]
    assert model.tabular["clinical"].hidden == () and model.tabular["clinical"].rate == 0.2  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("data.label=null",), "data.label is not set but model.kind is fusion"),
        (("model.tabular.rna={}",), "model.tabular.rna: set exactly one of network"),
        (("model.tabular.rna={netwrk: mrna}",), 'model.tabular.rna.netwrk = "mrna": unknown key; did you mean'),
        (("model.tabular={}",), "model: no modality"),
        (("model.tabular={rna: {network: mrna}}",), "the model has one modality, rna: nothing to blend"),
        (("model.missing=zeros",), "set missing: heads, or algorithm.name: fedavg for zero-filling"),
        (("algorithm={name: scaffold}", "fit.optimizer.name=sgd"), "whose clients own different blocks"),
        (("modalities={preset: tri_modal}",), "modalities.preset = tri_modal but the model has 2 modalities"),
        (("modalities={of_client: [[rna], [image]]}",), "modalities.of_client names image"),
        (("modalities={of_client: [[rna]]}",), "has 1 entries but partition.num_clients = 4"),
        (("modalities={preset: bi_modal, of_client: [[rna], [rna], [rna], [rna]]}",), "not both"),
        (
            ("modalities={min_contributors: 2}", "aggregation.secure=true", "evaluation.clients=shown"),
            "refuses sums over fewer than aggregation.min_contributors = 3; set it to 3 or more, or leave it out",
        ),
        (("modalities={small: skip}",), "has no effect without modalities.min_contributors"),
        (("algorithm={name: dgb_pcw, rates: static}",), "rates: static needs static_rates"),
        (("algorithm={name: dgb_pcw, clip: [2, 3]}",), "must hold 1, the mean"),
        (("algorithm={name: dgb_pcw, variant: upstream_hook, clip: [0.5, 2]}",), "with variant: upstream_hook"),
        (("algorithm={name: dgb_pcw, static_rates: {encoder/rna: 2}}",), "has no effect with rates: blended"),
        (("algorithm={name: dgb_pcw, rates: static, static_rates: {encoder/mri: 2}}",), "names encoder/mri"),
        (("data={path: x.h5, label: stage, corrupt_text: 0.5}",), "the model reads no text"),
        (("objective={name: clip}",), "which learns classes; set objective.name: cross_entropy"),
    ],
)  # fmt: skip
def test_what_is_refused(overrides: tuple[str, ...], words: str, problems: Problems) -> None:
    found = problems(*FUSION, *overrides)
    assert any(words in line for line in found), found


def test_masks_bring_a_limit_of_owners(load: Load, problems: Problems) -> None:
    masks = ("aggregation.secure=true", "evaluation.clients=shown")
    assert load(*FUSION).fewest_owners is None
    assert load(*FUSION, *masks).fewest_owners == 3
    assert load(*FUSION, *masks, "modalities={min_contributors: 4}").fewest_owners == 4
    assert problems(*FUSION, *masks, "modalities={small: skip}") == [], "it has an effect"


def test_blending_needs_modalities(problems: Problems) -> None:
    for name in ("dgb_pcw", "hgb", "gblend"):
        (line,) = problems(f"algorithm={{name: {name}}}")
        assert "it blends modalities; set model.kind: fusion" in line


def test_fusion_keys_are_idle_elsewhere(problems: Problems) -> None:
    found = problems("modalities={preset: tri_modal}", "data.corrupt_text=0.5")
    assert len(found) == 2 and all("has no effect" in line for line in found)


def test_only_the_encoders_that_are_set(load: Load) -> None:
    """The others are None, and have no name to look up."""
    assert encoders(load(*FUSION).model) == {}
    assert list(encoders(load(*FUSION, "model.text={name: bert}").model)) == ["text"]
