"""The weights that a run folder gives back are those that the run ended with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from fedhpc.client.client import LOCAL_STATE
from fedhpc.config.downstream import RetrievalTask
from fedhpc.downstream.loading import TrainedRun, _checkpoints, load_run
from fedhpc.downstream.run import evaluate

from .conftest import Trained

FEDBN = "aggregation.local_blocks=[norm]"


def tensors(run: TrainedRun) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in run.module.state_dict().items()}


@pytest.mark.parametrize("overrides", [(), ("model.image.freeze=true", "model.text.freeze=true", "cohort.size=null")])
def test_scores_of_every_site_are_those_of_the_run(trained: Trained, overrides: tuple[str, ...]) -> None:
    """One client a site: retrieval within a site's test rows is what the run's last evaluation was. Frozen random
    encoders are in no checkpoint, and come back from the seed."""
    folder = trained("fedavg", *overrides)
    results = json.loads((folder / "results.json").read_text())
    found = evaluate(folder, RetrievalTask(name="x", kind="retrieval", bootstrap=0))
    by_site = {record["scope"]: record["metrics"] for record in found["results"]}
    assert len(by_site) == 6
    for client in results["clients"]:
        for name in ("recall_at_1", "recall_at_5", "macro_recall_at_1", "chance_recall_at_10"):
            assert by_site[client["name"]][name]["value"] == pytest.approx(client["metrics"][name], abs=1e-12), name


def test_shared_weights_are_the_checkpoint(trained: Trained) -> None:
    folder = trained("fedavg")
    run = load_run(folder)
    assert run.weights == "the shared model" and run.notes == () and run.rounds_done == 2 and not run.module.training
    saved = load_file(run.checkpoint / "shared.safetensors")
    mine = tensors(run)
    assert len(saved) > 20
    assert all(torch.equal(mine[key.partition("//")[2]], tensor) for key, tensor in saved.items())
    assert set(run.names.values()) == {f"site-{c}" for c in "abcde"} == run.train_sites


def test_local_layers_are_a_clients_own_or_their_mean(trained: Trained) -> None:
    folder = trained("fedavg", FEDBN, "cohort.size=null")
    run = load_run(folder)
    assert "mean of 5 clients' own layers (norm)" in run.weights and "plain mean" in run.notes[0]
    states = _checkpoints(folder).load_states(run.checkpoint, range(5))
    name = "image_head.norm1.running_mean"
    kept = [states[c][LOCAL_STATE]["local/head/image"][name] for c in range(5)]
    assert not torch.equal(kept[0], kept[1])
    assert torch.allclose(tensors(run)[name], torch.stack(kept).double().mean(0).float(), atol=1e-7)
    for client in (3, "site-d"):
        own = load_run(folder, client)
        assert own.weights == "client 3 (site-d)" and torch.equal(tensors(own)[name], kept[3])
    weight = "image_head.linear1.weight"
    assert torch.equal(tensors(own)[weight], tensors(run)[weight])


def test_local_needs_a_client(trained: Trained) -> None:
    folder = trained("local")
    with pytest.raises(
        ValueError,
        match=r"no model; name one of its clients \(evaluate: client=NAME, export: --client NAME\): .*0 \(site-a\)",
    ):
        load_run(folder)
    run = load_run(folder, "site-b")
    state = _checkpoints(folder).load_states(run.checkpoint, [1])[1]["model"]
    mine = tensors(run)
    assert all(torch.equal(mine[name], tensor) for block in state.values() for name, tensor in block.items())
    name = "image_head.linear1.weight"
    assert not torch.equal(mine[name], tensors(load_run(folder, 2))[name])


def test_a_client_that_changes_nothing_is_refused(trained: Trained) -> None:
    with pytest.raises(ValueError, match="client: site-a has no effect"):
        load_run(trained("fedavg"), 0)
    with pytest.raises(ValueError, match="client: 17 is no client of the run"):
        load_run(trained("local"), 17)


def test_a_client_that_never_took_part_is_named(trained: Trained) -> None:
    folder = trained("fedavg", FEDBN, "cohort.size=1", "rounds=1")
    run = load_run(folder)
    assert "mean of 1 clients" in run.weights
    there = _checkpoints(folder).load_states(run.checkpoint, range(5))
    (took_part,) = there
    with pytest.raises(ValueError, match="has kept nothing of its own"):
        load_run(folder, (took_part + 1) % 5)


def test_what_is_missing_is_named(trained: Trained, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no run folder"):
        load_run(tmp_path)
    whole = trained("fedavg")
    text = (whole / "config.yaml").read_text()
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match="no checkpoint yet"):
        load_run(tmp_path)
    shutil.copytree(whole / "checkpoints", tmp_path / "checkpoints")
    assert load_run(tmp_path).rounds_done == 2
    (tmp_path / "config.yaml").write_text(text.replace("rounds: 2", "rounds: 9"))
    assert "2 of 9 rounds" in load_run(tmp_path).notes[0]
    gone = yaml.safe_load(text)
    gone["data"] |= {"phantom": None, "path": "gone.h5"}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(gone))
    with pytest.raises(ValueError, match=r"own packed file gone.h5 is not there"):
        load_run(tmp_path)
