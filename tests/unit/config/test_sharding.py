"""What sharded clients can be told: defaults, and what is refused with its reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedhpc.config import ConfigError, load_config

ROOT = Path(__file__).resolve().parents[3]
FEDAVG = ROOT / "configs" / "smoke" / "fedavg.yaml"


def test_shards_mean_zero_3_and_none_means_none() -> None:
    assert load_config(FEDAVG).sharding is None
    sharding = load_config(FEDAVG, ["mesh.shard=2"]).sharding
    assert sharding is not None and sharding.zero == 3
    sharding = load_config(FEDAVG, ["mesh.shard=2", "sharding.zero=1"]).sharding
    assert sharding is not None and sharding.zero == 1
    assert load_config(FEDAVG, ["sharding={zero: 2, offload_optimizer: true}"]).mesh.shard == 1


@pytest.mark.parametrize("name", ["fedavg", "fedprox", "fedopt", "moon", "feddra"])
def test_these_work(name: str) -> None:
    load_config(ROOT / "configs" / "smoke" / f"{name}.yaml", ["mesh.shard=4"])


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["algorithm={name: local}", "cohort={}"], "algorithm.name = local but mesh.shard = 2: it exchanges nothing"),
        (["algorithm={name: afl}"], "algorithm.name = afl but mesh.shard = 2: it averages"),
        (["algorithm={name: feddra, variant: upstream}"], "algorithm.variant = upstream but mesh.shard = 2"),
        (["aggregation.local_blocks=[norm]"], "aggregation.local_blocks is set but mesh.shard = 2"),
        (["fit.optimizer.keep_state=true"], "fit.optimizer.keep_state = true but mesh.shard = 2"),
        (["fit.compile=true"], "fit.compile = true but mesh.shard = 2"),
        (["fit.batch_size=2", "mesh.shard=4"], "fit.batch_size = 2 cannot be dealt to mesh.shard = 4 ranks"),
        (["sharding={zero: 2, offload_parameters: true}"], "sharding.offload_parameters = true but sharding.zero = 2"),
        (
            ["sharding={zero: 1, offload_optimizer: true}", "fit.clip_norm=1", "algorithm={name: fedprox}"],
            "fit.clip_norm = 1 with sharding.offload_optimizer = true and sharding.zero = 1",
        ),
    ],
)
def test_the_rest_is_refused_with_the_reason(overrides: list[str], line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(FEDAVG, ["mesh.shard=2", *overrides])
    assert any(problem.startswith(line) for problem in caught.value.problems), caught.value.problems


def test_clients_with_different_blocks() -> None:
    path = ROOT / "configs" / "smoke" / "dgb_pcw.yaml"
    load_config(path, ["mesh.shard=2"])
    load_config(path, ["mesh.shard=2", "algorithm={name: fedavg}"])
    for keys, words in (
        (["algorithm={name: hgb}"], "algorithm.name = hgb but mesh.shard = 2"),
        (["modalities.min_contributors=3"], "modalities.min_contributors = 3 but mesh.shard = 2: blocks of fewer"),
        (["fit.precision=bfloat16"], "fit.precision = bfloat16 with model.kind = fusion but mesh.shard = 2"),
    ):
        with pytest.raises(ConfigError, match=words):
            load_config(path, ["mesh.shard=2", *keys])
