"""Results are the same bits each time, stand in a file and in a table; rows are chosen as asked."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from fedhpc.config.downstream import AnyTask, LinearProbeTask, RetrievalTask, SegmentationTask, TuneConfig
from fedhpc.data.hdf5 import PackedFile, PackWriter
from fedhpc.downstream.loading import load_run
from fedhpc.downstream.rows import Rows
from fedhpc.downstream.run import evaluate, pick_device, results_table, write_results
from fedhpc.downstream.scoring import classification_records

from .conftest import Trained


@pytest.mark.parametrize("kind", ["linear_probe", "segmentation"])
def test_same_bits_each_time(kind: str, trained: Trained, boxes: Path, tmp_path: Path) -> None:
    def play(seed: int) -> bytes:
        common = {"name": kind, "data": {"path": boxes}, "bootstrap": 40, "random_seed": seed, "kind": kind}
        task: AnyTask
        if kind == "linear_probe":
            task = LinearProbeTask.model_validate({**common, "label": "side", "fractions": [0.3], "num_seeds": 2})
        else:
            fit = TuneConfig(max_epochs=2)
            task = SegmentationTask.model_validate({**common, "tune": True, "decoder_width": 8, "fit": fit})
        path = write_results(tmp_path, evaluate(trained("fedavg"), task))
        assert path == tmp_path / "downstream" / f"{kind}.json"
        return path.read_bytes()

    first = play(0)
    assert play(0) == first
    assert json.loads(play(1))["results"] != json.loads(first)["results"]


def test_table_has_every_scope_and_interval(trained: Trained) -> None:
    found = evaluate(
        trained("fedavg"), RetrievalTask(name="mine", kind="retrieval", bootstrap=30, sites=["site-a", "site-c"])
    )
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(results_table(found))
    text = console.export_text()
    for part in (
        "mine: retrieval on phantom",
        "all",
        "site-a",
        "site-c",
        "macro R@1",
        "generated, not real data",
        "95%",
    ):
        assert part in text, part
    assert "site-b" not in text
    one = found["results"][0]["metrics"]["recall_at_10"]
    assert f"{one['value']:.3f} [{one['low']:.3f}, {one['high']:.3f}]" in text
    single = evaluate(trained("fedavg"), RetrievalTask(name="mine", kind="retrieval", bootstrap=0, sites=["site-a"]))
    console.print(results_table(single))
    assert "resamples" not in console.export_text()


def test_results_json_has_no_nan(tmp_path: Path) -> None:
    path = write_results(
        tmp_path,
        {"name": "x", "run": {"client": None}, "results": [{"value": float("nan"), "seeds": (1.0, float("inf"))}]},
    )
    assert json.loads(path.read_text())["results"] == [{"value": None, "seeds": [1.0, None]}]


def test_results_of_a_clients_own_model_have_a_file_of_their_own(trained: Trained, tmp_path: Path) -> None:
    folder = trained("fedavg", "aggregation.local_blocks=[norm]", "~cohort")
    for client, name in ((None, "t.json"), ("site-b", "t@1-site-b.json"), (1, "t@1-site-b.json")):
        found = evaluate(folder, RetrievalTask(name="t", kind="retrieval", bootstrap=0, client=client))
        path = write_results(tmp_path, found)
        assert path == tmp_path / "downstream" / name
        assert json.loads(path.read_text())["run"]["client"] == (client and {"id": 1, "name": "site-b"})
    found["run"]["client"] = {"id": 1, "name": "Ward 1/2"}
    assert write_results(tmp_path, found).name == "t@1-Ward_1_2.json"


def test_rows_are_those_of_the_sites(trained: Trained, boxes: Path) -> None:
    run = load_run(trained("fedavg"))
    keys = {"name": "t", "kind": "linear_probe", "label": "side", "data": {"path": boxes}}
    with PackedFile(boxes) as packed:
        split, site = packed.read("split"), packed.read("site")
        usable = np.ones(packed.num_rows, bool)
        north = Rows(run, LinearProbeTask.model_validate({**keys, "sites": ["north"]}), packed)
        assert north.select("val", usable, "").tolist() == np.flatnonzero((split == 1) & (site == 0)).tolist()
        out = Rows(run, LinearProbeTask.model_validate({**keys, "hold_out_site": "north"}), packed)
        assert out.select("train", usable, "").tolist() == np.flatnonzero((split == 0) & (site == 1)).tolist()
        assert out.select("test", usable, "").tolist() == np.flatnonzero((split == 2) & (site == 0)).tolist()
        assert list(out.scopes(out.select("test", usable, ""))) == ["all", "north"]
        with pytest.raises(ValueError, match="no row of .* in split val at north has a star"):
            north.select("val", ~usable, "a star")
        with pytest.raises(ValueError, match="site nort is not in .* did you mean north"):
            Rows(run, LinearProbeTask.model_validate({**keys, "hold_out_site": "nort"}), packed)


def test_pictures_of_another_size_are_refused(trained: Trained, tmp_path: Path) -> None:
    path = tmp_path / "other.h5"
    with PackWriter(path, name="o", source="s", licence="l") as writer:
        writer.add_images(np.zeros((3, 16, 32, 3), np.uint8))
        writer.set_split(np.arange(3))
        writer.set_row_ids(list("abc"))
    task = RetrievalTask.model_validate({"name": "t", "kind": "retrieval", "data": {"path": path}})
    with pytest.raises(ValueError, match=r"16 x 32 with 3 channels, .* 32 x 32 with 1; pack .* --image-size 32"):
        evaluate(trained("fedavg"), task)


def test_cuda_without_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert pick_device("auto").type == "cpu"
    with pytest.raises(ValueError, match="device: cuda, but torch sees no GPU"):
        pick_device("cuda")


def test_intervals_resample_patients(trained: Trained, boxes: Path) -> None:
    """Both rows of every patient get the same scores: rows as clusters would give intervals 1/sqrt(2) as wide."""
    task = LinearProbeTask.model_validate(
        {"name": "t", "kind": "linear_probe", "label": "side", "data": {"path": boxes}, "bootstrap": 4000}
    )
    with PackedFile(boxes) as packed:
        rows = Rows(load_run(trained("fedavg")), task, packed)
        places = torch.arange(packed.num_rows)
        score = torch.randn(60, 2, generator=torch.Generator().manual_seed(0)).repeat_interleave(2, dim=0)
        label = torch.arange(60).repeat_interleave(2) % 2
        record = classification_records(rows, places, [score], label)[0]
    assert (record.rows, record.patients) == (120, 60)
    accuracy = record.metrics["accuracy"]
    expected = 2 * 1.96 * (accuracy.value * (1 - accuracy.value) / 60) ** 0.5
    assert accuracy.high - accuracy.low == pytest.approx(expected, rel=0.1)
