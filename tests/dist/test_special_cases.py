"""Methods that become FedAvg at the end of their range do so to the last bit; a stopped run goes on with all state."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fedhpc.algorithms.registry import ALGORITHMS
from tests.dist.runs import SMOKE, data_of, run
from tests.ranks import RankFailed

NO_DROPOUT = ("model.text.options.hidden_dropout_prob=0.0", "model.text.options.attention_probs_dropout_prob=0.0")
UNIFORM = "algorithm={name: fedavg, weight: uniform}"
SGD = "fit.optimizer={name: sgd, learning_rate: 0.01}"


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"data.path={tmp_path_factory.mktemp('phantom') / 'phantom.h5'}"


@pytest.mark.parametrize(
    ("config", "algorithm", "fedavg", "shared"),
    [
        ("fedavg", "algorithm={name: moon, mu: 0}", "algorithm={name: fedavg}", ("rounds=2",)),
        ("classifier", "algorithm={name: moon, mu: 0}", "algorithm={name: fedavg}", ("rounds=2",)),
        ("fedavg", "algorithm={name: qffl, q: 0}", UNIFORM, ("rounds=2", SGD)),
        ("fedavg", "algorithm={name: scaffold}", UNIFORM, ("rounds=1", "evaluation.every=null", SGD)),
        ("fedavg", "algorithm={name: afl}", UNIFORM, ("rounds=1", "evaluation.every=null")),
        ("fedavg", "algorithm={name: feddra, schedule: joint, mu: 0, dro: null}", UNIFORM, ("rounds=2",)),
        ("fedavg", "algorithm={name: feddra, schedule: joint, mu: 0, dro: {rho: 0}}", UNIFORM, ("rounds=2",)),
        # All learning rates times 1 are as they were.
        (
            "fedavg",
            "algorithm={name: feddra, schedule: joint, mu: 0, dro: {rho: 0, apply: lr_scale}}",
            UNIFORM,
            ("rounds=2",),
        ),
    ],
    ids=["moon", "moon-classifier", "qffl", "scaffold", "afl", "feddra", "feddra-rho", "feddra-rate"],
)
def test_it_is_fedavg(
    config: str, algorithm: str, fedavg: str, shared: tuple[str, ...], phantom: str, tmp_path: Path
) -> None:
    source = () if config == "fedavg" else ("data.phantom={num_patients: 200, num_sites: 4, image_size: 32}",)
    path = phantom if config == "fedavg" else f"data.path={tmp_path / 'classes.h5'}"
    special, plain = (
        run(SMOKE / f"{config}.yaml", 1, tmp_path / name, path, *source, *shared, override)
        for name, override in (("special", algorithm), ("fedavg", fedavg))
    )
    assert special["sha256"] == plain["sha256"]
    assert special["clients"] == plain["clients"]


def test_an_anchor_that_is_an_exact_copy_pulls_at_nothing_in_the_first_step(phantom: str, tmp_path: Path) -> None:
    """Up to rounding: on some processors a layer's kernel is another one where no gradient is asked for."""
    joint = "algorithm={name: feddra, schedule: joint, mu: 100, constraint: sum, dro: null}"
    once = (phantom, "rounds=1", "fit.steps=1", "evaluation.every=null", *NO_DROPOUT, SGD)
    for name, override in (("special", joint), ("fedavg", UNIFORM)):
        run(SMOKE / "fedavg.yaml", 1, tmp_path / name, *once, override)
    special, plain = (
        load_file(tmp_path / name / "checkpoints" / "round_000001" / "shared.safetensors")
        for name in ("special", "fedavg")
    )
    assert special.keys() == plain.keys() and special
    for name, tensor in plain.items():
        torch.testing.assert_close(special[name], tensor, rtol=0, atol=1e-5, msg=name)


@pytest.mark.parametrize(
    "algorithm",
    [
        "{name: moon, mu: 1}",
        "{name: qffl, q: 2}",
        "{name: afl, step_size: 5}",
        "{name: feddra, schedule: joint, mu: 1, dro: null}",
        "{name: feddra, mu: 0, dro: null}",
        "{name: feddra, schedule: joint, mu: 0, dro: {step_size: 5}}",
        "{name: feddra, schedule: joint, mu: 0, dro: {step_size: 5, apply: loss_scale}}",
        "{name: feddra, schedule: joint, mu: 0, dro: {step_size: 5, apply: lr_scale}}",
    ],
)
def test_elsewhere_it_is_not(algorithm: str, phantom: str, tmp_path: Path) -> None:
    special, plain = (
        run(SMOKE / "fedavg.yaml", 1, tmp_path / name, phantom, "rounds=2", SGD, override)
        for name, override in (("special", f"algorithm={algorithm}"), ("fedavg", UNIFORM))
    )
    assert special["sha256"] != plain["sha256"]


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_a_stopped_run_goes_on_to_the_same_bits(name: str, phantom: str, tmp_path: Path) -> None:
    """After 2 of 4 rounds, on another number of ranks."""
    options = (data_of(name, phantom, tmp_path), "rounds=4", "checkpoint.keep=4", "evaluation.every=null")
    whole = run(SMOKE / f"{name}.yaml", 1, tmp_path / "run", *options)
    checkpoints = tmp_path / "run" / "checkpoints"
    for later in ("round_000003", "round_000004"):
        shutil.rmtree(checkpoints / later)
    written = (checkpoints / "round_000002" / "loop.json").stat().st_mtime_ns
    resumed = run(SMOKE / f"{name}.yaml", 2, tmp_path / "run", *options)
    assert (checkpoints / "round_000004").is_dir()
    assert (checkpoints / "round_000002" / "loop.json").stat().st_mtime_ns == written, "began anew instead"
    assert resumed["sha256"] == whole["sha256"]
    assert resumed["clients"] == whole["clients"]


def test_a_client_without_rows_for_its_loss_is_named_at_the_start(phantom: str, tmp_path: Path) -> None:
    with pytest.raises(RankFailed, match=r"measures the loss of every client on its val rows.*set loss_split: train"):
        run(SMOKE / "afl.yaml", 1, tmp_path / "run", phantom, "partition={kind: iid, num_clients: 60}")
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_site_that_is_left_out_changes_nothing_and_is_evaluated(phantom: str, tmp_path: Path) -> None:
    out = ("partition.leave_out=[site-c]", "cohort.size=3")
    one, two = (run(SMOKE / "fedavg.yaml", world, tmp_path / str(world), phantom, *out) for world in (1, 2))
    assert one["sha256"] == two["sha256"]
    names = [client["name"] for client in one["clients"]]
    assert names == ["site-a", "site-b", "site-c (unseen)", "site-d", "site-e"]
    assert one["clients"][2]["metrics"]["examples"] > 0
    seen = [client["metrics"]["recall_at_5"] for client in one["clients"] if "unseen" not in client["name"]]
    assert one["summary"]["recall_at_5"]["mean"] == pytest.approx(sum(seen) / 4), "the unseen site has its own row only"
    for name in ("site-a", "site-b"):  # whoever else is left out, the cohorts are others, and so is the model
        others = run(
            SMOKE / "fedavg.yaml", 1, tmp_path / name, phantom, f"partition.leave_out=[{name}]", "cohort.size=3"
        )
        assert others["sha256"] != one["sha256"]
    with pytest.raises(RankFailed, match=r"the sites are site-a, .*; name some of these"):
        run(SMOKE / "fedavg.yaml", 1, tmp_path / "typo", phantom, "partition.leave_out=[site-z]")


def test_a_damaged_checkpoint_is_named_with_its_cure(phantom: str, tmp_path: Path) -> None:
    run(SMOKE / "fedavg.yaml", 1, tmp_path, phantom, "rounds=2")
    broken = tmp_path / "checkpoints" / "round_000002"
    data = (broken / "shared.safetensors").read_bytes()
    (broken / "shared.safetensors").write_bytes(data[:100])
    with pytest.raises(RankFailed, match=r"round_000002 is damaged .*delete that folder"):
        run(SMOKE / "fedavg.yaml", 1, tmp_path, phantom, "rounds=2")
    shutil.rmtree(broken)
    assert run(SMOKE / "fedavg.yaml", 1, tmp_path, phantom, "rounds=2")["rounds"] == 2


def test_means_of_other_channels_are_refused(phantom: str, tmp_path: Path) -> None:
    with pytest.raises(RankFailed, match="data.image_mean has 3 values, the pictures have 1 channels"):
        run(SMOKE / "fedavg.yaml", 1, tmp_path, phantom, "data.image_mean=[0.5, 0.5, 0.5]")
