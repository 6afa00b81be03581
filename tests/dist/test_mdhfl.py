"""Clients that own different networks: public data, shared engines, and a kill in the middle of the alignment."""

from __future__ import annotations

import csv
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.dist.runs import QUIET, SMOKE, run
from tests.ranks import RankFailed, on_ranks

CONFIG = SMOKE / "mdhfl.yaml"


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"data.path={tmp_path_factory.mktemp('phantom') / 'phantom.h5'}"


def killed_in_alignment(config: str, overrides: list[str], run_dir: str, sums: int) -> None:
    """A rank of a run that dies, without a word, when it is asked for the `sums`-th sum over clients."""
    from fedhpc.config.load import load_config
    from fedhpc.federation.federation import SlotFederation
    from fedhpc.task import RunTask

    plain, left = SlotFederation.sum, [sums]

    def dying(self: SlotFederation, *args: Any, **keys: Any) -> torch.Tensor:
        left[0] -= 1
        if not left[0]:
            os._exit(9)
        return plain(self, *args, **keys)

    SlotFederation.sum = dying  # type: ignore[method-assign]
    RunTask(load_config(Path(config), overrides), Path(run_dir))()


def test_a_kill_in_the_middle_of_the_alignment_changes_nothing(phantom: str, tmp_path: Path) -> None:
    """Round 2 of 3 (counted from 0) begins anew from its start, with every client's own model and moments."""
    options = (phantom, "evaluation.every=null", "public.batch_size=12")
    whole = run(CONFIG, 1, tmp_path / "whole", *options)
    # A round has three sums of confidence (none is known in the first: one), 4 public batches and one of their mean.
    in_alignment = (1 + 5) + (2 + 5) + 2 + 2
    with pytest.raises(RankFailed, match="died with exit code 9"):
        on_ranks(1, killed_in_alignment, str(CONFIG), [*QUIET, *options], str(tmp_path / "run"), in_alignment)
    assert sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir()) == ["round_000001", "round_000002"]
    rounds = [json.loads(line)["round"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rounds == [0, 1], "it died in round 2"
    resumed = run(CONFIG, 2, tmp_path / "run", *options)
    assert resumed["sha256"] == whole["sha256"]
    assert resumed["clients"] == whole["clients"]


@pytest.mark.parametrize(
    "option",
    [
        "algorithm={name: mdhfl, ccr: rhfl_plus, refinement: {}, fresh_adam: true}",
        "algorithm={name: mdhfl, variant: upstream}",
        "algorithm={name: mdhfl, last: alignment, targets: round}",
        # Six clients on two engines: on one rank three clients share an engine, on four some have it alone.
        "model.head_dropout=0.5",
    ],
    ids=["rhfl_plus", "upstream", "targets_of_the_round", "shared_engines"],
)
def test_options_keep_the_bits(option: str, phantom: str, tmp_path: Path) -> None:
    few = ("rounds=2", "evaluation.every=null", "partition.num_clients=6")
    networks = "model.networks=[test_resnet, {name: resnet10, options: {width: 0.0625, stride: 16}}]"
    shas = {run(CONFIG, w, tmp_path / str(w), phantom, *few, networks, option)["sha256"] for w in (1, 4)}
    assert len(shas) == 1


def test_of_one_public_batch_targets_of_the_round_are_those_of_the_batch(phantom: str, tmp_path: Path) -> None:
    """With a network that does in eval mode what it does in train mode."""
    one = (phantom, "rounds=2", "evaluation.every=null", "public.size=24", "public.batch_size=24")
    shas = {
        run(CONFIG, 1, tmp_path / targets, *one, "model.networks=[test_convnext]", f"algorithm.targets={targets}")[
            "sha256"
        ]
        for targets in ("batch", "round")
    }
    assert len(shas) == 1


def test_public_data_of_another_file(phantom: str, tmp_path: Path) -> None:
    public = "{phantom: {num_patients: 40, num_sites: 2, image_size: 32, random_seed: 1}, size: 30, batch_size: 10}"
    other = (phantom, "rounds=1", "evaluation.every=null", f"public={public}", f"public.path={tmp_path / 'public.h5'}")
    one, two = (run(CONFIG, world, tmp_path / str(world), *other) for world in (1, 2))
    assert one["sha256"] == two["sha256"]
    ledger = json.loads((tmp_path / "1" / "ledger.jsonl").read_text().splitlines()[0])
    text = json.dumps(ledger)
    assert "10x6" in text, "sums of class scores of a batch"
    assert '"gather"' not in text


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("partition={kind: column, column: site}", "data.phantom.num_sites=2", "data.phantom.num_patients=60"),
         "the sum over 2 clients would show one of them what the other put in"),
        (("public={phantom: {num_patients: 40, num_sites: 2, image_size: 48}}",), "pack it with the same --image-size"),
        (("public={size: 300}",), "public.size: 300, but data.path has .* training rows"),
        (("model.networks=[resnet10, {name: mobilenet_v2}]",), r"model.networks\[1\].name: timm has no network"),
        (("model.networks=[{name: resnet10, options: {depth: 3}}]",), r"depth unknown; it knows width and stride"),
    ],
    ids=["two_clients", "public_size", "public_rows", "unknown", "option"],
)  # fmt: skip
def test_what_cannot_run_is_refused_with_its_cure(
    options: tuple[str, ...], complaint: str, phantom: str, tmp_path: Path
) -> None:
    path = phantom if "data.phantom.num_sites=2" not in options else f"data.path={tmp_path / 'two.h5'}"
    files = (path, f"public.path={tmp_path / 'p.h5'}") if "phantom" in options[0] else (path,)
    with pytest.raises(RankFailed, match=complaint):
        run(CONFIG, 1, tmp_path / "run", *options, *files)


def test_noise_is_written_down_and_meets_training_labels_only(phantom: str, tmp_path: Path) -> None:
    from fedhpc.data.hdf5 import PackedFile

    few = (phantom, "rounds=1", "evaluation.every=null")
    run(CONFIG, 1, tmp_path / "noise", *few)
    with (tmp_path / "noise" / "noisy_labels.csv").open() as file:
        rows = list(csv.DictReader(file))
    with PackedFile(Path(phantom.partition("=")[2])) as packed:
        split, label = packed.read("split"), packed.read("label/finding")
        classes = packed.label_classes["finding"]
    assert all(split[int(r["row"])] == 0 and classes[label[int(r["row"])]] == r["label"] for r in rows)
    assert 0.1 < sum(r["label"] != r["given"] for r in rows) / len(rows) < 0.3
    again = (tmp_path / "noise" / "noisy_labels.csv").read_bytes()
    shutil.rmtree(tmp_path / "noise" / "checkpoints")
    run(CONFIG, 2, tmp_path / "noise", *few)
    assert (tmp_path / "noise" / "noisy_labels.csv").read_bytes() == again
    clean = run(CONFIG, 1, tmp_path / "clean", *few, "noise=null")
    assert not (tmp_path / "clean" / "noisy_labels.csv").exists()
    none = run(CONFIG, 1, tmp_path / "none", *few, "noise.rate=0")
    assert clean["sha256"] == none["sha256"]
