"""What `fedhpc check` says about clients with their own networks."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedhpc.config import ConfigError, load_config
from fedhpc.config.schema import ClassifierConfig

ROOT = Path(__file__).resolve().parents[3]
SMOKE = ROOT / "configs" / "smoke" / "mdhfl.yaml"


def problems(*overrides: str) -> list[str]:
    try:
        load_config(SMOKE, overrides)
    except ConfigError as error:
        return list(error.problems)
    return []


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("partition.num_clients=2", "of a sum over two each knows the other's part; set 3 or more"),
        ("cohort.size=2", "cohort.size = 2: algorithm.name = mdhfl sums over clients"),
        ("public=null", "compares models on public data; set public: {size: 1000} or public.path"),
        ("public={batch_size: 8}", "set public.size, the training rows to take from the clients"),
        ("public.classes=any", "has no effect where public rows are taken from the clients' own file"),
        ("algorithm={name: fedavg}", "model.networks with algorithm.name = fedavg, which needs one network for all"),
        ("algorithm={name: fedproto}", "set model.embed_dim: 128"),
        ("model={kind: classifier}", "set exactly one of model.image"),
        ("model={kind: classifier, image: {name: cnn}, networks: [cnn]}", "set exactly one of model.image"),
        ("model.networks=[{name: resnet10t, options: {num_classes: 3}}]", "networks[0].options.num_classes = 3"),
        ("noise={kind: pair, rate: 2}", "each is a share"),
        ("noise={kind: confusion, matrix: {a: {b: 0.9, c: 0.2}}}", "probabilities add up to 1.1"),
        ("algorithm={name: mdhfl, ccr: none, eta: 1}", "algorithm.eta = 1.0: has no effect with ccr: none"),
        ("algorithm={name: mdhfl, variant: upstream, ccr: none}", 'algorithm.ccr = "none": has no effect with variant'),
        ("algorithm={name: mdhfl, variant: upstream, last: alignment}", 'algorithm.last = "alignment": has no effect'),
        ("algorithm={name: rhfl, variant: upstream, targets: round}", 'algorithm.targets = "round": has no effect'),
        ("aggregation.local_blocks=[batch_norm]", "which exchanges no weights"),
    ],
)
def test_one_problem_and_its_cure(override: str, complaint: str) -> None:
    found = problems(override)
    assert len(found) == 1, found
    assert complaint in found[0]


def test_public_data_of_a_file_is_idle_under_other_algorithms_and_held_out_rows_are_not() -> None:
    assert not problems("algorithm={name: local}")
    [line] = problems("algorithm={name: local}", "public.path=x.h5")
    assert "algorithm.name = local never looks at public data" in line


def test_noise_needs_labels() -> None:
    with pytest.raises(
        ConfigError, match=r"noise is for model.kind: classifier, fusion or joint, and model.kind = dual_encoder"
    ):
        load_config(ROOT / "configs" / "smoke" / "fedavg.yaml", ["noise={kind: symmetric, rate: 0.1}"])


def test_clients_cycle_through_networks_and_bare_names_will_do() -> None:
    model = load_config(SMOKE, ["model.networks=[cnn, {name: resnet10t, options: {stem_width: 8}}]"]).model
    assert isinstance(model, ClassifierConfig)
    assert [model.of(k).encoders[0].name for k in range(5)] == ["cnn", "resnet10t", "cnn", "resnet10t", "cnn"]
    assert model.of(3).networks is None


def test_rates_are_one_for_all_or_a_list() -> None:
    noise = load_config(SMOKE, ["noise={kind: symmetric, rate: [0.1, 0.5]}"]).noise
    assert noise is not None and noise.kind == "symmetric"
    assert [noise.rate_of(k) for k in range(3)] == [0.1, 0.5, 0.1]
