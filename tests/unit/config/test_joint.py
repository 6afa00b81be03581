"""What is said of a joint model's config before anything runs, each with its cure."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedhpc.config.load import ConfigError, dump_config, load_config
from tests.conftest import ROOT

CONFIG = ROOT / "configs" / "smoke" / "fedmvp.yaml"


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        (["public.size=3"], "public.size = 3: of fewer than 4 rows .* set 4 or more, better 512"),
        (["public.batch_size=3"], "public.batch_size = 3 but algorithm.cka = unbiased_minibatch needs 4 rows"),
        (["public=null"], "fedmvp compares models on public data; set public"),
        (["partition.num_clients=2"], "of a sum over two each knows the other's part"),
        (["model.image.freeze=false"], "model.cache = true but model.image trains; set freeze: true there"),
        (["data.random_flip=true"], "data.random_flip is set but model.cache = true .* set model.cache: false"),
        (["model.cache=false"], "completion works in the space of cached frozen features; set model.cache: true"),
        (["completion={method: generator}", "model.pictures=patches"], "set model.pictures: tokens"),
        (["completion=null", "model.hide_completed=0.5"], "model.hide_completed is set but nothing is completed"),
        (
            ["completion={method: neighbour, same_label: true}", "noise={kind: symmetric, rate: 0.1}"],
            "completion.same_label goes by the labels of the file, which noise changes",
        ),
        (["model.image=null"], "fedmvp but the model reads text only; add the other encoder, or set fedavg"),
        (["model.joint_heads=3"], "joint_heads = 3 does not divide .*, 32; set model.joint_heads: 2"),
        (["model.concat=features", "model.cross_heads=3"], "cross_heads = 3 does not divide .*, 16"),
        (["algorithm={name: moon}"], "moon but model.kind = joint; set fedmvp, creamfl, fedavg"),
        (["algorithm={name: mdhfl}"], "mdhfl but model.kind = joint"),
        (["objective={name: clip}"], "objective.name = clip but model.kind = joint; set fedmvp or cross_entropy"),
        (["missing.ratio=1.5"], "each is a share; set 0 to 1"),
        (["missing={ratio: [0.1, 0.2], rule: site}"], "set a single missing.ratio"),
        (["missing.strength=2.0"], "missing.strength = 2.0: has no effect with missing.rule: random"),
        (["model.patch=8"], "model.patch = 8: has no effect with pictures: tokens"),
        (["mesh.shard=2"], "set mesh.shard: 1"),
        (["data.label=null"], "data.label is not set but model.kind is joint"),
    ],
)
def test_refused(overrides: list[str], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        load_config(CONFIG, overrides)


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        (["public=null"], "creamfl compares models on public data; set public"),
        (["public.batch_size=null", "fit.batch_size=1"], "fit.batch_size = 1 but .* set public.batch_size: 32"),
        (["partition.num_clients=2"], "of a sum over two each knows the other's part"),
        (["model.text=null"], "creamfl but the model reads image only; add the other encoder"),
        (
            ["algorithm.inter=0", "algorithm.intra=0", "algorithm.temperature=0.1"],
            "no effect with inter: 0 and intra: 0",
        ),
        (["algorithm.server_epochs=0", "algorithm.server_temperature=0.1"], "no effect with server_epochs: 0"),
        (["algorithm.score_temperature=0.1"], "greater than or equal to 0.2|at least 0.2|>= 0.2"),
        (["aggregation.local_blocks=[classifier]"], "creamfl, which exchanges no weights"),
    ],
)
def test_creamfl_refused(overrides: list[str], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        load_config(ROOT / "configs" / "smoke" / "creamfl.yaml", overrides)


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        (["algorithm={name: creamfl}"], "creamfl but model.kind = dual_encoder, .* set model.kind: joint"),
        (["algorithm={name: fedmvp}"], "fedmvp but model.kind = dual_encoder, .* set model.kind: joint"),
        (["objective={name: fedmvp}"], "objective.name = fedmvp but model.kind = dual_encoder"),
        (["completion={method: neighbour}"], "completion is set but model.kind = dual_encoder"),
        (["data.sidecar_dir=x"], "data.sidecar_dir = .x.: has no effect with model.kind: dual_encoder"),
    ],
)
def test_refused_with_other_models(overrides: list[str], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        load_config(ROOT / "configs" / "smoke" / "fedavg.yaml", overrides)


def test_a_dumped_config_reads_back(tmp_path: Path) -> None:
    config = load_config(CONFIG, ["missing={ratio: 0.3, rule: label}"])
    (tmp_path / "again.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "again.yaml") == config
