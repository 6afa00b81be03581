"""Clients over several ranks: as good as on one, the same bits however many slots, and no rank has the whole model."""

from __future__ import annotations

import importlib.util
import json
import shutil
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.dist.runs import SMOKE, run
from tests.e2e import command
from tests.ranks import on_ranks

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed; `make install` does it"
)

CONFIG = SMOKE / "sharded.yaml"
FEDAVG = "algorithm={name: fedavg}"
FEDDRA = "algorithm={name: feddra, stage1: {steps: 2}, constraint: sum, dro: {rho: 0.1, step_size: 1.0}}"
ALGORITHMS = {
    "fedavg": FEDAVG,
    "feddra": FEDDRA,
    "fedprox": "algorithm={name: fedprox, mu: 0.1}",
    "fedopt": "algorithm={name: fedopt, server_learning_rate: 0.001}",
    "scaffold": "algorithm={name: scaffold}",
    "moon": "algorithm={name: moon}",
}
SGD = "fit.optimizer={name: sgd, learning_rate: 0.05}"  # as scaffold demands, and steps that follow gradients
WHOLE = ("mesh.shard=1", "sharding=null")


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"data.path={tmp_path_factory.mktemp('phantom') / 'phantom.h5'}"


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def pages(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]


def elements(folder: Path, shard: str) -> tuple[int, int]:
    """How many numbers a file of the newest checkpoint has, and of how many blocks."""
    from safetensors.torch import load_file

    tensors = load_file(max(folder.glob("checkpoints/round_*")) / f"shared{shard}.safetensors")
    return sum(tensor.numel() for tensor in tensors.values()), len({key.split("//")[0] for key in tensors})


def check_streamed(folder: Path, scratch: Path) -> None:
    """What is read tensor by tensor from the shards of a checkpoint is what the whole model has."""
    import torch

    from fedhpc.downstream.loading import load_run
    from fedhpc.downstream.streamed import stream_run

    whole = load_run(folder).module.state_dict()
    with stream_run(folder, None, scratch) as streamed:
        assert streamed.read is not None
        for name, tensor in whole.items():
            assert torch.equal(streamed.value(name), tensor), name


@pytest.mark.parametrize("slots", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_clients_with_different_blocks(slots: int, tmp_path: Path) -> None:
    """DGB + PCW over tables, seven combinations."""
    tables = (
        "{labs: {widths: [8], dropout: 0}, words: {words: true, widths: [8], dropout: 0}, "
        "pixels: {thumbnail: 4, widths: [8], dropout: 0}}"
    )
    model = f"model={{kind: fusion, dropout: 0, tabular: {tables}}}"
    options = (f"data.path={tmp_path / 'own.h5'}", model, "evaluation.every=null", "rounds=3")
    two = run(SMOKE / "dgb_pcw.yaml", 2, tmp_path / "2", *options, "mesh.shard=2")
    if slots == 2:
        four = run(SMOKE / "dgb_pcw.yaml", 4, tmp_path / "4", *options, "mesh.shard=2")
        assert two["sha256"] == four["sha256"] and two["clients"] == four["clients"]
        return
    run(SMOKE / "dgb_pcw.yaml", 1, tmp_path / "whole", *options)
    expected, found = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("whole", "2")
    )
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.keys() == theirs.keys()
        kept = {name for name in ours if name.startswith(("loss", "train_", "val_"))}
        assert {n: ours[n] for n in kept} == pytest.approx({n: theirs[n] for n in kept}, rel=1e-4)


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("name", "zero"),
    [
        ("fedavg", 3),
        ("feddra", 3),
        ("fedavg", 2),
        pytest.param("fedavg", 1, marks=SLOW),
        pytest.param("feddra", 2, marks=SLOW),
        pytest.param("feddra", 1, marks=SLOW),
    ],
)
def test_losses_are_the_unsharded_ones(name: str, zero: int, phantom: str, tmp_path: Path) -> None:
    """2 slots x 2 shards, five rounds."""
    # FedDRA with SGD: where gradients are small, Adam makes much of how ranks round.
    options = (phantom, ALGORITHMS[name], *([SGD] if name == "feddra" else []))
    run(CONFIG, 1, tmp_path / "whole", *options, *WHOLE)
    four = run(CONFIG, 4, tmp_path / "four", *options, f"sharding.zero={zero}")
    expected = losses(tmp_path / "whole")
    assert losses(tmp_path / "four") == pytest.approx(expected, rel=1e-5)
    assert len(expected) == 5 and max(expected) - min(expected) > 0.01, "weights that stand would agree too"
    if zero == 3:
        two = run(CONFIG, 2, tmp_path / "two", *options)
        assert two["sha256"] == four["sha256"], "the number of slots must not matter"
        assert two["clients"] == four["clients"]
        check_bytes(tmp_path, name)


@pytest.mark.slow
@pytest.mark.parametrize("zero", [3, 2])
def test_learned_temperatures_and_biases(zero: int, phantom: str, tmp_path: Path) -> None:
    """They are outputs without rows, and their gradient is whole on every rank."""
    common = (phantom, "rounds=2", "objective={name: siglip}", SGD.replace("0.05", "0.005"))
    run(CONFIG, 1, tmp_path / "whole", *common, *WHOLE)
    run(CONFIG, 2, tmp_path / "two", *common, f"sharding.zero={zero}")
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "whole"), rel=1e-5)


def check_bytes(folder: Path, name: str) -> None:
    """A rank sends its shards; blocks that stand are not sent."""
    first = {run: pages(folder / run)[0]["entries"] for run in ("four", "whole")}
    four, whole = ([e for e in entries if e["operation"] == "reduce"] for entries in first.values())
    assert [e["what"] for e in four] == [e["what"] for e in whole]
    for sharded, plain in zip(four, whole, strict=True):
        assert sharded["num_bytes"] == pytest.approx(plain["num_bytes"] / 2, rel=0.05)
    if name == "fedavg":  # to the byte: 8 of each element in fixed point, and a weight a block, the whole one, the loss
        (shard, blocks), (parameters, _) = elements(folder / "four", ".shard_00000"), elements(folder / "whole", "")
        assert four[0]["num_bytes"] == 8 * (shard + blocks + 2)
        assert shard + elements(folder / "four", ".shard_00001")[0] == parameters
    if name == "feddra":
        assert "encoder" not in four[0]["what"] and "encoder" in four[1]["what"]


@pytest.mark.slow
@pytest.mark.parametrize("tower", ["clip_vision_model", "siglip_vision_model", "blip_2_vision_model"])
def test_vision_towers_of_transformers(tower: str, phantom: str, tmp_path: Path) -> None:
    """timm's ViT is in all other tests."""
    options = "{hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2, num_attention_heads: 2, patch_size: 8}"
    common = (phantom, "rounds=2", SGD, FEDDRA, f"model.image={{name: {tower}, options: {options}}}")
    run(CONFIG, 1, tmp_path / "whole", *common, *WHOLE)
    run(CONFIG, 2, tmp_path / "two", *common)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "whole"), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fedprox", "fedopt", "scaffold", "moon"])
def test_other_algorithms_too(name: str, phantom: str, tmp_path: Path) -> None:
    options = (phantom, "rounds=3", SGD, ALGORITHMS[name])
    run(CONFIG, 1, tmp_path / "whole", *options, *WHOLE)
    four, two = (run(CONFIG, world, tmp_path / str(world), *options) for world in (4, 2))
    assert losses(tmp_path / "4") == pytest.approx(losses(tmp_path / "whole"), rel=1e-5)
    assert two["sha256"] == four["sha256"]


def test_a_stop_changes_nothing_whatever_resumes(phantom: str, tmp_path: Path) -> None:
    """On another number of slots: the same bits, client state included. With another number of shards: as good.

    One client a round, so that with two slots one stands still: DeepSpeed would have its ranks wait for the others.
    """
    options = (phantom, "rounds=3", "checkpoint.keep=3", SGD, ALGORITHMS["scaffold"], "cohort.size=1")
    whole = run(CONFIG, 2, tmp_path / "run", *options)
    expected = losses(tmp_path / "run")
    shutil.copytree(tmp_path / "run", tmp_path / "other")
    for folder in ("run", "other"):
        shutil.rmtree(tmp_path / folder / "checkpoints" / "round_000003")
    assert run(CONFIG, 4, tmp_path / "run", *options)["sha256"] == whole["sha256"]
    check_streamed(tmp_path / "run", tmp_path)
    (tmp_path / "other" / "config.yaml").unlink()  # another g is another config; --accept-changes of the command line
    run(CONFIG, 1, tmp_path / "other", *options, "mesh.shard=1", "sharding={zero: 2}")
    assert losses(tmp_path / "other")[-1] == pytest.approx(expected[-1], rel=1e-5)


def exchanges(folder: Path) -> list[dict[str, Any]]:
    return [e for page in pages(folder) for e in page["entries"] if e["operation"] == "reduce"]


LOSING = ("cohort.size=null", "random_seed=11", "cohort.dropout={probability: 0.3, when: after}")  # one client of five


def test_masks_change_no_bit_of_shards(phantom: str, tmp_path: Path) -> None:
    """2 slots x 2 shards under masks, beside one slot without: a client is lost after it was masked against. Each rank
    masks its shard, and sends no more of it than without masks."""
    short = (phantom, "rounds=1", "fit.steps=1", FEDAVG, *LOSING)
    plain = run(CONFIG, 2, tmp_path / "plain", *short)
    masked = run(CONFIG, 4, tmp_path / "masked", *short, "aggregation.secure=true", "evaluation.clients=shown")
    assert (masked["sha256"], masked["clients"]) == (plain["sha256"], plain["clients"])
    [before], [after] = exchanges(tmp_path / "plain"), exchanges(tmp_path / "masked")
    assert before["lost"] == after["lost"] and len(after["lost"]) == 1
    assert after["masked"] and after["mask_bytes"] > 0 and after["recovery_seconds"] > 0 and not before["masked"]
    assert 0 <= after["num_bytes"] - before["num_bytes"] < 8 * 8, "up to a granule of words for two slots"


@pytest.mark.slow
@pytest.mark.parametrize(("name", "zero"), [*((name, 3) for name in ALGORITHMS), ("fedavg", 2), ("scaffold", 1)])
def test_masks_change_no_bit_of_any_algorithm_on_shards(name: str, zero: int, phantom: str, tmp_path: Path) -> None:
    options = (phantom, "rounds=2", SGD, ALGORITHMS[name], f"sharding.zero={zero}", *LOSING)
    plain = run(CONFIG, 2, tmp_path / "plain", *options)
    masked = run(CONFIG, 4, tmp_path / "masked", *options, "aggregation.secure=true", "evaluation.clients=shown")
    assert (masked["sha256"], masked["clients"]) == (plain["sha256"], plain["clients"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "algorithm", [ALGORITHMS["scaffold"], "algorithm={name: feddra, stage1: {steps: 2}, dro: null}"]
)
def test_a_slot_may_stand_still(algorithm: str, phantom: str, tmp_path: Path) -> None:
    """Of two slots one has a turn, the other none: nothing in DeepSpeed may wait for the other slot. Clients of
    scaffold live in both; feddra makes a second model when it is first asked for."""
    options = (phantom, "rounds=3", SGD, algorithm, "cohort.size=1", "runtime.timeout_s=40")
    two, four = (run(CONFIG, world, tmp_path / str(world), *options) for world in (2, 4))
    assert two["sha256"] == four["sha256"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        ("sharding={zero: 3, activation_checkpointing: true}",),
        ("sharding={zero: 3, offload_optimizer: true, offload_parameters: true}", "fit.clip_norm=0.5"),
        ("sharding={zero: 1, offload_optimizer: true}",),
        ("fit.accumulate=2", "fit.clip_norm=0.5"),
    ],
    ids=["checkpointing", "offload", "offload-zero-1", "accumulate"],
)
def test_options_change_no_loss(options: tuple[str, ...], phantom: str, tmp_path: Path) -> None:
    plain = tuple(option for option in options if not option.startswith("sharding"))
    common = (phantom, "rounds=2", SGD, FEDAVG)
    run(CONFIG, 1, tmp_path / "whole", *common, *WHOLE, *plain)
    run(CONFIG, 2, tmp_path / "two", *common, *options)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "whole"), rel=1e-5)


@pytest.mark.slow
def test_bfloat16_is_near(phantom: str, tmp_path: Path) -> None:
    common = (phantom, "rounds=2", SGD, FEDAVG, "fit.precision=bfloat16")
    run(CONFIG, 1, tmp_path / "whole", *common, *WHOLE)
    two, four = (run(CONFIG, world, tmp_path / str(world), *common) for world in (2, 4))
    assert losses(tmp_path / "2") == pytest.approx(losses(tmp_path / "whole"), rel=2e-2)
    assert two["sha256"] == four["sha256"]


@pytest.mark.slow
def test_kill_9_of_a_shard_and_restart(phantom: str, tmp_path: Path) -> None:
    options = ("run", str(CONFIG), phantom, "rounds=6", "report.tensorboard=false", "report.plots=false")
    code, out, err = command.fedhpc(tmp_path, *options, "--run-dir", "whole", "--ranks", "2")
    assert code == 0, err
    sha = command.sha_of(out)
    process = command.start(tmp_path, *options, "--run-dir", "killed", "--ranks", "4")
    command.wait_for_rounds(tmp_path / "killed", 2, process)
    command.send(command.child_of_rank(process.pid, 1), signal.SIGKILL)  # shard 1 of slot 0
    code, _, err = command.finish(process)
    assert code == 70, err
    assert "rank 1 of 4 was killed by SIGKILL" in err
    code, out, err = command.fedhpc(tmp_path, *options, "--run-dir", "killed", "--ranks", "4")
    assert code == 0, err
    assert "resuming after round" in err
    assert command.sha_of(out) == sha


# ------------------------------------------------------------------------------------------------- the engine alone
def net() -> Any:
    """2.1 million parameters in eight equal layers, batch normalisation and a temperature."""
    import torch
    from torch import nn

    class Net(nn.Module):
        block_prefixes: Mapping[str, tuple[str, ...]] = {"body": ("body.",), "head": ("head.", "log_temperature")}

        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(*(nn.Sequential(nn.Linear(512, 512), nn.Tanh()) for _ in range(8)))
            self.head = nn.Sequential(nn.BatchNorm1d(512), nn.Linear(512, 3))
            self.log_temperature = nn.Parameter(torch.full((1,), 0.5))

        def forward(self, batch: Any) -> dict[str, Any]:
            return {"logits": self.head(self.body(batch["x"])), "log_temperature": self.log_temperature}

    torch.manual_seed(0)
    return Net()


def engines(zero: int) -> tuple[Any, Any, Any, list[Any]]:
    """(sharded engine, plain engine, collectives, batches) in a group of all ranks."""
    import os

    import torch
    import torch.distributed as dist
    from torch.nn.functional import cross_entropy

    from fedhpc.comm.collectives import Collectives
    from fedhpc.comm.ledger import Ledger
    from fedhpc.comm.mesh import build_mesh
    from fedhpc.config.schema import FitConfig, ShardingConfig

    os.environ["DS_ACCELERATOR"] = "cpu"
    dist.init_process_group("gloo")
    from fedhpc.client.engine import Engine
    from fedhpc.client.zero import ZeroEngine

    mesh = build_mesh(dist.get_world_size(), "cpu")
    optimizer = {"name": "adamw", "learning_rate": 1e-3, "eps": 1e-4}
    config = FitConfig.model_validate({"steps": 1, "channels_last": False, "clip_norm": 0.5, "optimizer": optimizer})

    def loss(out: Any, batch: Any) -> Any:
        return cross_entropy(out["logits"] / out["log_temperature"].exp(), batch["y"])

    cpu = torch.device("cpu")
    sharded = ZeroEngine(net, loss, config, ShardingConfig.model_validate({"zero": zero}), cpu, mesh)
    generator = torch.Generator().manual_seed(1)
    batches = [
        {"x": torch.randn(7, 512, generator=generator), "y": torch.randint(3, (7,), generator=generator)}
        for _ in range(4)
    ]
    return sharded, Engine(net(), loss, config, cpu), Collectives(mesh, Ledger(), 1 << 20), batches


def play_turns(zero: int) -> dict[str, Any]:
    """Clients take turns on one engine; frozen blocks, learning rates, gradient terms, twins."""
    import torch

    from fedhpc.interfaces import GradientTerm

    sharded, plain, collectives, batches = engines(zero)
    gap: dict[str, float] = {}

    def compare(what: str) -> None:
        worst = 0.0
        for name, block in sharded.weights.shared.items():
            for spec in block.layout.specs:
                other = plain.weights.blocks[name][spec.name]
                worst = max(worst, float((collectives.whole(block, spec) - other).abs().max()))
        gap[what] = worst

    starts = [{n: b.clone() for n, b in e.weights.shared.items()} for e in (sharded, plain)]
    for what, options in {
        "plain": {},
        "frozen": {"train": ("head",)},
        "rates": {"lr_scale": {"body": 0.5}},
        "after": {},
    }.items():
        seen = []
        for engine, start in zip((sharded, plain), starts, strict=True):
            engine.weights.load(start)
            seen.append(engine.fit(batches, lambda step: 1e-3, **options)[0])
        gap[f"loss {what}"] = abs(seen[0] - seen[1])
        compare(what)
        if what == "frozen":
            body = sharded.weights.shared["body"].flat
            gap["frozen block"] = float((body - starts[0]["body"].flat).abs().max())
    for engine, start in zip((sharded, plain), starts, strict=True):
        engine.weights.load(start)
        term = GradientTerm(pull=0.1, toward={n: b.new_zeros() for n, b in start.items()}, offset=start)
        engine.fit(batches, lambda step: 1e-3, gradient=term)
    compare("gradient term")
    update = sharded.difference(starts[0])
    gap["dot"] = abs(
        sharded.total(sum(float(u.trainable.double().square().sum()) for u in update.values()))
        / sum(float(u.trainable.double().square().sum()) for u in plain.difference(starts[1]).values())
        - 1
    )
    twins = [
        e.reference(start, "anchor")(batches[0])["logits"] for e, start in zip((sharded, plain), starts, strict=True)
    ]
    gap["twin"] = float((twins[0] - twins[1]).abs().max())
    with torch.no_grad():
        seen_by = [e.forward({k: v[:1] for k, v in batches[0].items()})["logits"] for e in (sharded, plain)]
    gap["one row for two ranks"] = float((seen_by[0] - seen_by[1]).abs().max())
    return gap


@pytest.mark.parametrize("zero", [3, pytest.param(2, marks=SLOW), pytest.param(1, marks=SLOW)])
def test_turns_on_one_engine(zero: int) -> None:
    for gap in on_ranks(2, play_turns, zero):
        assert gap.pop("frozen block") == 0
        assert max(gap.values()) < 2e-5, gap


def play_memory() -> dict[str, int]:
    """Bytes of model states after a turn, and elements of the largest tensor that any operation made."""
    from fedhpc.comm.sums import Sums
    from fedhpc.interfaces import Contribution
    from tests.allocations import largest_tensor, model_state_bytes

    sharded, plain, collectives, batches = engines(3)

    def turn() -> None:
        start = {n: b.clone() for n, b in sharded.weights.shared.items()}
        sharded.weights.load(start)
        sharded.fit(batches, lambda step: 1e-3)
        mean = Sums(collectives, "fixed_point", 32).weighted_mean(start, (), 1, sharded.device, "reduce")
        mean.add(Contribution(sharded.difference(start), 1.0))
        mean.finish()
        sharded.forward(batches[0])["logits"]
        sharded.weights.load(start)  # gives back what the last forward pass gathered

    largest = largest_tensor(turn)
    del plain
    return {
        "parameters": sum(p.ds_numel for p in sharded.module.parameters()),
        "alive": model_state_bytes(sharded),
        "largest": largest,
    }


def test_a_rank_has_its_share_of_the_model_and_never_the_whole() -> None:
    """Weights, gradients and two moments: 16 bytes a parameter, over two ranks."""
    for seen in on_ranks(2, play_memory):
        assert seen["alive"] <= 1.15 * 16 * seen["parameters"] / 2, seen
        assert seen["parameters"] / 8 <= seen["largest"] <= 0.6 * seen["parameters"], seen


def play_build(whole: bool) -> dict[str, float]:
    """Most memory while a model is built and dealt out, and memory afterwards, as parts of the model's size."""
    import os

    import torch
    import torch.distributed as dist
    from torch import nn

    os.environ["DS_ACCELERATOR"] = "cpu"
    dist.init_process_group("gloo")
    from fedhpc.client import zero_build
    from fedhpc.client.zero import start_deepspeed
    from fedhpc.client.zero_config import GroupOfSlot, deepspeed_config
    from fedhpc.client.zero_rows import Ranks
    from fedhpc.config.schema import FitConfig, ShardingConfig
    from fedhpc.models.stowing import Stowing
    from tests.allocations import allocations

    ranks = Ranks(dist.get_rank(), 2, dist.group.WORLD)
    start_deepspeed(ranks, torch.device("cpu"))

    def make() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(*(nn.Linear(1000, 1000) for _ in range(24)))

    def make_together() -> nn.Module:
        window = 1 << 40 if whole else 1 << 23
        with Stowing(zero_build.SlotKeeper(ranks, torch.device("cpu")), window=window) as stowing:
            module = make()
        optimizer = {"name": "sgd", "learning_rate": 0.1}
        config = FitConfig.model_validate({"steps": 1, "optimizer": optimizer})
        settings = deepspeed_config(config, ShardingConfig.model_validate({"zero": 3}), module, 2)
        zero_build.partition(module, stowing, settings, GroupOfSlot(ranks), torch.float32)
        return module

    module, seen = allocations(make_together)
    size = sum(4 * p.ds_numel for p in module.parameters())
    expected = torch.cat([p.detach().reshape(-1) for p in make()[5].parameters()])
    own = torch.cat([p.ds_tensor for p in module[5].parameters()])
    other = [torch.empty_like(own) for _ in range(2)]
    dist.all_gather(other, own)
    halves = [torch.cat([part[:500000] for part in other]), torch.cat([part[500000:] for part in other])]
    assert torch.equal(torch.cat(halves), expected), "dealt out as it would be if it were built whole"
    return {"peak": seen.peak / size, "after": seen.after / size, "largest": seen.largest / size}


def test_a_model_is_built_without_any_rank_having_it_whole() -> None:
    for seen in on_ranks(2, play_build, False):
        assert seen["peak"] < 0.75, "its half, the window, a layer or two"
        assert seen["after"] < 0.6
        assert seen["largest"] < 0.1
    assert max(seen["peak"] for seen in on_ranks(2, play_build, True)) > 1.0, "this is what it would be"


def test_shards_that_do_not_divide_the_ranks_are_refused() -> None:
    from fedhpc.config import load_config
    from fedhpc.config.checks import check

    assert check(load_config(CONFIG), 3) == [
        "client(2) * shard(2) = 4 but WORLD_SIZE = 3; set mesh.shard: 1, or start 4 ranks"
    ]
