"""Keys that fight each other, and keys without effect."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedhpc.config import ConfigError, check, check_files
from fedhpc.config.checks import idle_keys
from fedhpc.config.schema import MeshConfig

from .conftest import CLASSIFIER, Load, Problems

FEDDRA = "algorithm={name: feddra, stage1: {steps: 1}%s}"


def test_a_sound_config_has_no_problem(load: Load) -> None:
    assert check(load(), world_size=2) == []
    assert check(load(CLASSIFIER, "data.label=finding"), world_size=1) == []


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["cohort.size=5"], "cohort.size = 5 but partition.num_clients = 4; set cohort.size: 4 or less"),
        (
            ["partition={kind: column}", "cohort.size=6"],
            "cohort.size = 6 but data.phantom.num_sites = 5; set cohort.size: 5 or less",
        ),
        (["partition.num_clients=601"], "partition.num_clients = 601 but data.phantom.num_patients = 600"),
        ([CLASSIFIER], "data.label is not set but model.kind is classifier; set data.label"),
        (
            ["fit.batch_size=1"],
            "fit.batch_size = 1: a single pair cannot be told apart from others, and",
        ),
        (["fit.batch_size=1", "model.head_norm=layer"], "fit.batch_size = 1: a single pair cannot be told apart"),
        (
            ["model.align_heads=5", "model.text.options.hidden_size=40"],
            "model.align_heads = 5 does not divide model.image.options.embed_dim = 48; set model.align_heads: 4",
        ),
        (
            ["model.text.options.hidden_size=30"],
            "model.align_heads = 4 does not divide model.text.options.hidden_size = 30; set model.align_heads: 3",
        ),
        (
            [CLASSIFIER, "data.label=x", "objective={name: gloria}"],
            "objective.name = gloria but model.kind = classifier, which reads no text; set objective.name: cross_",
        ),
        (
            ["objective={name: cross_entropy}"],
            "objective.name = cross_entropy but model.kind = dual_encoder, which knows no classes; set objective.name:",
        ),
        (
            ["objective={name: siglip, temperature: 0.1}"],
            "objective.temperature = 0.1: unknown key; temperature",
        ),
        (
            ["objective={name: clip, image_weight: 1}"],
            "objective.image_weight = 1: unknown key; image_weight",
        ),
        (["objective={name: convirt, image_weight: 2}"], "objective.image_weight = 2: not accepted; set a number >= 0"),
        (["objective={}"], "objective.name: missing; set it to one of clip, convirt, siglip, gloria, cross_entropy"),
        (["evaluation.match=[]"], "evaluation.match = []: every item would count as correct"),
        (
            ["data.image_mean=[1, 2]", "data.image_std=[1, 2, 3]"],
            "data.image_mean has 2 values but data.image_std",
        ),
        (["data.image_mean=[]"], "data.image_mean = []: no value"),
        (["data.image_std=[0]"], "data.image_std = [0.0]: pictures are divided by it"),
        (["data.max_tokens=33"], "data.max_tokens = 33 cuts nothing, data.phantom.max_tokens = 32"),
        (["fit.optimizer.warmup_rounds=5"], "fit.optimizer.warmup_rounds = 5 but rounds = 4"),
        (["evaluation.every=5"], "evaluation.every = 5 but rounds = 4"),
        (["algorithm={name: scaffold}"], "fit.optimizer.name = adamw but algorithm.name = scaffold"),
        (
            ["algorithm={name: scaffold}", "fit.optimizer.name=sgd", "fit.optimizer.momentum=0.9"],
            "fit.optimizer.momentum = 0.9 but algorithm.name = scaffold",
        ),
        (["algorithm={name: qffl}"], "fit.optimizer.name = adamw but algorithm.name = qffl"),
        (
            ["aggregation.local_blocks=[heads/image]"],
            "aggregation.local_blocks: heads/image matches no tensor and no block; did you mean head/image?; blocks",
        ),
        (
            ["aggregation.local_blocks=[batchnorm]"],
            "aggregation.local_blocks: batchnorm matches no tensor and no block; d",
        ),
        (["aggregation.local_blocks=['encoder.*']"], "aggregation.local_blocks: encoder.* matches no tensor and no"),
        (["aggregation.local_blocks=[temperature]"], "aggregation.local_blocks: temperature matches no tensor"),
        (
            ["aggregation.local_blocks=[encoder/text]", "model.text.freeze=true"],
            "aggregation.local_blocks: encoder/text matches no tensor",
        ),
        (["aggregation.local_blocks=['align/*']", "model.align=false"], "aggregation.local_blocks: align/* matches no"),
        (
            [CLASSIFIER, "data.label=x", "aggregation.local_blocks=[norm]"],
            "aggregation.local_blocks: norm, but model.image.name = cnn_tiny has no such layer; remove it",
        ),
        (
            ["partition={kind: column, leave_out: [site-a]}", "algorithm={name: local}"],
            'partition.leave_out = ["site-a"] with algorithm.name = local: a site that never trains has no weights of '
            "its own to be evaluated with; set another algorithm.name, or remove leave_out",
        ),
        (
            ["partition={kind: column, leave_out: [site-a]}", "aggregation.local_blocks=[norm]"],
            'partition.leave_out = ["site-a"] with aggregation.local_blocks = ["norm"]: a site that never trains has '
            "no weights of its own to be evaluated with; set aggregation.local_blocks: []",
        ),
        (["fit.optimizer.betas=[0.9, 1]"], "fit.optimizer.betas = [0.9, 1.0]: each must be >= 0 and < 1"),
    ],
)
def test_conflict(problems: Problems, overrides: list[str], line: str) -> None:
    found = problems(*overrides)
    assert len(found) == 1, found
    assert found[0].startswith(line)


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["algorithm={name: local}", "cohort.size=2"], "cohort.size = 2: has no effect with algorithm.name: local"),
        (["algorithm={name: centralised}", "cohort.fraction=0.5"], "cohort.fraction = 0.5: has no effect with"),
        (
            ["algorithm={name: local}", "aggregation.local_blocks=[a]"],
            'aggregation.local_blocks = ["a"]: has no',
        ),
        (["algorithm={name: qffl, q: 0, lipschitz: 2}"], "algorithm.lipschitz = 2.0: has no effect with q: 0"),
        (["algorithm={name: qffl, q: 0, loss_fraction: 0.5}"], "algorithm.loss_fraction = 0.5: has no effect with q"),
        (["algorithm={name: fedopt, server_optimizer: momentum, tau: 1}"], "algorithm.tau = 1.0: has no effect with"),
        (["algorithm={name: fedopt, server_optimizer: momentum, beta2: 0.9}"], "algorithm.beta2 = 0.9: has no effect"),
        (
            ["aggregation={arithmetic: float32, fraction_bits: 30}"],
            "aggregation.fraction_bits = 30: has no effect",
        ),
        (
            [CLASSIFIER, "data.label=x", "evaluation.match=[x]"],
            'evaluation.match = ["x"]: has no effect with',
        ),
        ([CLASSIFIER, "data.label=x", "data.max_tokens=9"], "data.max_tokens = 9: has no effect with model.kind"),
        (["data.label=x"], 'data.label = "x": has no effect with model.kind: dual_encoder'),
        (["model.align=false", "model.align_heads=2"], "model.align_heads = 2: has no effect with align: false"),
        (
            [CLASSIFIER, "data.label=x", "model.image.options={depth: 2}"],
            'model.image.options = {"depth": 2}: has no effect with name: cnn_tiny',
        ),
        ([FEDDRA % ", schedule: joint"], 'algorithm.stage1 = {"steps": 1}: has no effect with schedule: joint'),
        (["evaluation.split=test"], 'evaluation.split = "test": has no effect without evaluation.every'),
    ],
)
def test_key_without_effect(problems: Problems, overrides: list[str], line: str) -> None:
    found = problems(*overrides)
    assert len(found) == 1, found
    assert found[0].startswith(line)
    assert found[0].endswith("; remove it")


def test_null_and_empty_are_not_taken_as_set(problems: Problems) -> None:
    assert problems("algorithm={name: local}", "cohort.size=null", "aggregation.local_blocks=[]") == []
    assert problems("data.label=null") == []
    assert problems(CLASSIFIER, "data.label=x", "model.image.options={}", "model.image.freeze=false") == []


@pytest.mark.parametrize(
    "overrides",
    [
        ["data.path=x.h5"],  # generated at path
        ["cohort.size=4"],
        ["fit.optimizer.keep_state=true"],
        ["fit.optimizer.warmup_rounds=4", "evaluation={every: 4, split: val}"],
        ["data.image_mean=[1, 2, 3]"],  # one std serves all channels
        ["model.align=false", "model.text.options.hidden_size=30"],
        ["objective=null", "model.temperature=null"],
        ["objective={name: siglip, bias: -5}", "model.temperature=0.2", "model.learn_temperature=false"],
        ["objective={name: gloria}", "model.align=false"],
        [CLASSIFIER, "data.label=x", "objective={name: cross_entropy}"],
        ["algorithm={name: scaffold}", "fit.optimizer.name=sgd"],
        ["algorithm={name: qffl, q: 2}", "fit.optimizer.name=sgd"],
        ["algorithm={name: qffl, q: 2, lipschitz: 10}"],
        ["algorithm={name: qffl, q: 0}"],
        ["partition={kind: column, column: finding}", "cohort.size=40"],  # only the file knows how many values
    ],
)
def test_allowed(problems: Problems, overrides: list[str]) -> None:
    assert problems(*overrides) == []


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (
            [FEDDRA % ", schedule: plateau"],
            "algorithm.schedule = plateau with plateau_patience = 3 and rounds = 4: stage 2 begins in round 5 at the "
            "earliest; set algorithm.plateau_patience: 2 or less, or rounds: 5 or more",
        ),
        (
            [FEDDRA % ", schedule: plateau, plateau_patience: 1", "rounds=2"],
            "algorithm.schedule = plateau with plateau_patience = 1 and rounds = 2: stage 2 begins in round 3 at the "
            "earliest; set rounds: 3 or more",
        ),
        (
            [FEDDRA % ", dro: {loss_baseline: first}", "rounds=2"],
            "algorithm.dro.loss_baseline = first but rounds = 2: losses are compared with the first round's",
        ),
        (
            [FEDDRA % ", dro: {trim: 4}"],
            "algorithm.dro.trim = 4 leaves nobody to lead: there are 4 clients that train; set trim: 3 or less",
        ),
        (
            [FEDDRA % ", dro: {trim: 4}", "partition={kind: column, leave_out: [site-b]}"],
            "algorithm.dro.trim = 4 leaves nobody to lead: there are 4 clients that train; set trim: 3 or less",
        ),
        (
            [FEDDRA % "", "cohort.size=1"],
            "cohort.size = 1 with algorithm.dro: in a round of one client there is nothing to weigh, so robust weights "
            "would do nothing; set cohort.size: 2 or more, or algorithm.dro: null",
        ),
        (["algorithm={name: afl}", "cohort.size=1"], "cohort.size = 1 with algorithm.name = afl: in a round of one"),
        ([FEDDRA % "", "cohort.fraction=0.3"], "cohort.fraction = 0.3 of 4 clients with algorithm.dro: in a round of"),
        ([FEDDRA % "", "partition.num_clients=1"], "one client that trains with algorithm.dro: in a round of one"),
    ],
)
def test_robust_weights_and_stages_that_would_never_act(problems: Problems, overrides: list[str], line: str) -> None:
    found = problems(*overrides)
    assert len(found) == 1, found
    assert found[0].startswith(line)


@pytest.mark.parametrize(
    "overrides",
    [
        [FEDDRA % ", schedule: plateau", "rounds=5"],
        [FEDDRA % ", dro: {loss_baseline: first}", "rounds=3"],
        [FEDDRA % ", dro: {trim: 3}"],
        [FEDDRA % ", dro: null", "cohort.size=1"],
        [FEDDRA % ", dro: {update: exact, apply: lr_scale}", "cohort.size=1"],
        [FEDDRA % "", "cohort.fraction=0.5"],
        ["aggregation.local_blocks=['*.norm*', 'head/i*', image_align.norm1.weight, '[it]*_head.*']"],
        ["aggregation.local_blocks=[temperature]", "objective={name: siglip}"],
        [CLASSIFIER, "data.label=x", "aggregation.local_blocks=['encoder.conv1.*', head/image]"],
    ],
)
def test_robust_weights_and_local_blocks_that_act(problems: Problems, overrides: list[str]) -> None:
    assert problems(*overrides) == []


def test_idle_keys_exist_in_the_schema(load: Load) -> None:
    for overrides in ([], ["algorithm={name: local}", "model.align=false"], [CLASSIFIER, "data.label=x"]):
        config = load(*overrides)
        for dotted in idle_keys(config):
            section: object = config
            for part in dotted.split("."):
                assert hasattr(section, part), dotted
                section = getattr(section, part)


@pytest.mark.parametrize(("shard", "world"), [(1, 1), (1, 7), (2, 8), (4, 4)])
def test_ranks_that_fit(load: Load, shard: int, world: int) -> None:
    config = load().model_copy(update={"mesh": MeshConfig.model_construct(shard=shard)})
    assert check(config, world) == []


@pytest.mark.parametrize(
    ("shard", "world", "line"),
    [
        (2, 7, "client(4) * shard(2) = 8 but WORLD_SIZE = 7; set mesh.shard: 1, or start 8 ranks"),
        (4, 6, "client(2) * shard(4) = 8 but WORLD_SIZE = 6; set mesh.shard: 1, or start 8 ranks"),
        (4, 2, "client(1) * shard(4) = 4 but WORLD_SIZE = 2; set mesh.shard: 1, or start 4 ranks"),
        (1, 0, "WORLD_SIZE = 0; start at least 1 rank"),
    ],
)
def test_ranks_that_do_not_fit(load: Load, shard: int, world: int, line: str) -> None:
    config = load().model_copy(update={"mesh": MeshConfig.model_construct(shard=shard)})
    assert check(config, world) == [line]


def test_missing_data_file_names_the_cure(load: Load, tmp_path: Path) -> None:
    wanted, typo = tmp_path / "cells.h5", tmp_path / "cell.h5"
    config = load(f"data={{path: {wanted}}}")
    [line] = check_files(config)
    assert line.startswith(f"data.path = {wanted}: no such file; write it with `fedhpc pack DATASET ... -o {wanted}`")
    assert "or set data.phantom: {}" in line
    typo.touch()
    assert f"did you mean {typo}?" in check_files(config)[0]
    wanted.touch()
    assert check_files(config) == []
    assert check_files(load(f"data.path={tmp_path / 'new.h5'}")) == []  # phantom: generated there


def test_a_missing_data_file_is_named_beside_a_mistake_that_nothing_mends(load: Load, tmp_path: Path) -> None:
    """`rounds` has no default: what is checked further is a draft, without it."""
    with pytest.raises(ConfigError, match='rounds = "many"') as refused:
        load("rounds=many", f"data={{path: {tmp_path / 'cells.h5'}}}")
    assert refused.value.is_draft and refused.value.config is not None
    [line] = check_files(refused.value.config, is_draft=True)
    assert "cells.h5: no such file" in line


def test_missing_local_weights(load: Load, tmp_path: Path) -> None:
    assert check_files(load("model.text.pretrained=org/name")) == []  # a hub id
    assert check_files(load(f"model.text.pretrained={tmp_path}")) == []
    [line] = check_files(load(f"model.text.pretrained={tmp_path / 'none'}"))
    assert line.startswith(f"model.text.pretrained = {tmp_path / 'none'}: no such folder; ")
