"""FedMVP on several ranks: features and completed rows that they make together, missing rows, what is refused."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from tests.dist.runs import SMOKE, run
from tests.ranks import RankFailed

CONFIG = SMOKE / "fedmvp.yaml"
FEW = ("rounds=1", "evaluation.every=null")


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"data.path={tmp_path_factory.mktemp('phantom') / 'phantom.h5'}"


def sidecar(folder: Path, what: str) -> Path:
    [path] = folder.glob(f"*.{what}-*.h5")
    return path


def test_ranks_make_the_same_sidecars_and_only_sums_leave_a_client(phantom: str, tmp_path: Path) -> None:
    shas, made = set(), []
    for world in (1, 3):
        folder = tmp_path / f"side-{world}"
        options = (phantom, *FEW, f"data.sidecar_dir={folder}", "completion={method: generator, epochs: 2}")
        shas.add(run(CONFIG, world, tmp_path / str(world), *options)["sha256"])
        with h5py.File(sidecar(folder, "completed")) as file:
            made.append({k: file[k][()] for k in ("text/row", "text/text_tokens", "image/image_tokens")})
        assert not list(folder.glob("*.parts"))
    assert len(shas) == 1
    for other in made[1:]:
        for key, values in made[0].items():
            np.testing.assert_array_equal(values, other[key])
    text = (tmp_path / "3" / "ledger.jsonl").read_text()
    assert '"gather"' not in text
    assert json.loads(text.splitlines()[0])


def test_neighbours_of_the_same_class_lend_and_the_same_stand_ins_are_hidden_on_any_rank(
    phantom: str, tmp_path: Path
) -> None:
    keys = ("completion={method: neighbour, same_label: true}", "model.hide_completed=0.5")
    options = (phantom, *FEW, *keys, f"data.sidecar_dir={tmp_path / 'side'}")
    assert len({run(CONFIG, world, tmp_path / str(world), *options)["sha256"] for world in (1, 3)}) == 1
    with h5py.File(sidecar(tmp_path / "side", "completed")) as made, h5py.File(phantom.partition("=")[2]) as data:
        label = data["label/finding"][()]
        for name in ("image", "text"):
            rows, donors = made[f"{name}/row"][()], made[f"{name}/donor"][()]
            assert len(rows) and (rows != donors).all() and np.array_equal(label[rows], label[donors])


def test_missing_rows_are_written_down_and_never_seen(phantom: str, tmp_path: Path) -> None:
    """Another content of what was withheld changes nothing: rows are dropped, or zeros stand for them."""
    folder = tmp_path / "side"
    plain = (phantom, *FEW, "completion=null", "model.missing=zeros", f"data.sidecar_dir={folder}")
    first = run(CONFIG, 1, tmp_path / "zeros", *plain)
    with (tmp_path / "zeros" / "missing.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert {line["missing"] for line in lines} == {"image", "text"}
    assert all(line["completed"] == "0" and line["used"] == "1" for line in lines)
    with h5py.File(sidecar(folder, "features"), "r+") as file:
        for line in lines:
            file[f"{line['missing']}_tokens"][int(line["row"])] = 7.0
    assert run(CONFIG, 1, tmp_path / "again", *plain)["sha256"] == first["sha256"]
    dropped = run(CONFIG, 1, tmp_path / "drop", *plain, "model.missing=drop")
    assert sum(c["train_rows"] for c in dropped["clients"]) == sum(c["train_rows"] for c in first["clients"]) - len(
        lines
    )


def test_features_computed_anew_give_the_same_losses(phantom: str, tmp_path: Path) -> None:
    options = (phantom, *FEW, "completion=null", "model.missing=zeros")
    losses = []
    for cache in ("true", "false"):
        run(CONFIG, 1, tmp_path / cache, *options, f"model.cache={cache}")
        losses.append(json.loads((tmp_path / cache / "metrics.jsonl").read_text().splitlines()[0])["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_a_client_without_any_pair(phantom: str, tmp_path: Path) -> None:
    """Client 2 loses something of every row: nothing completes it. Refused, or zeros."""
    options = (phantom, *FEW, "missing.ratio=[0.5, 0.5, 1.0, 0.5]")
    with pytest.raises(RankFailed, match=r"client 2 \(client-2\) has no training row .* set model.missing: zeros"):
        run(CONFIG, 1, tmp_path / "refused", *options)
    one, two = (run(CONFIG, w, tmp_path / str(w), *options, "model.missing=zeros") for w in (1, 2))
    assert one["sha256"] == two["sha256"]


def test_every_row_of_everybody_lacks_something(phantom: str, tmp_path: Path) -> None:
    with pytest.raises(RankFailed, match=r"no training row with image and text left at missing.ratio: 1"):
        run(CONFIG, 1, tmp_path / "refused", phantom, *FEW, "missing.ratio=1")
    result = run(CONFIG, 1, tmp_path / "zeros", phantom, *FEW, "missing.ratio=1", "model.missing=zeros")
    assert all(np.isfinite(c["metrics"]["accuracy_image"]) for c in result["clients"])


@pytest.mark.parametrize(
    "options",
    [
        ("algorithm={name: fedavg}", "objective={name: fedmvp}"),
        ("algorithm={name: fedprox}", "model.missing=zeros", "completion=null"),
        ("algorithm={name: fedavg}", "completion=null", "model.image=null"),
        ("algorithm={name: fedavg}", "completion=null", "model.text=null"),
        ("objective={name: fedmvp, mcm: 0.0}", "algorithm={name: fedmvp, representation: all, power: 2}"),
    ],
    ids=["plain_averaging", "fedprox_zeros", "text_only", "image_only", "without_mcm"],
)
def test_what_it_is_compared_with_runs(options: tuple[str, ...], phantom: str, tmp_path: Path) -> None:
    single = any("=null" in o and o.startswith("model.") for o in options)
    shape = ("~model.pictures", "~model.concat", "~model.cross_heads", "~model.joint_heads", "~model.joint_layers")
    result = run(CONFIG, 1, tmp_path / "run", phantom, *FEW, *options, *(shape if single else ()))
    assert all(0 <= c["metrics"]["accuracy"] <= 1 for c in result["clients"])


def test_a_public_set_of_other_words_is_refused(phantom: str, tmp_path: Path) -> None:
    public = "public={phantom: {num_patients: 40, num_sites: 2, image_size: 32, random_seed: 1}, size: 20}"
    with pytest.raises(RankFailed, match=r"another tokenizer .* set public.size alone to take training rows"):
        run(CONFIG, 1, tmp_path / "run", phantom, *FEW, public, f"public.path={tmp_path / 'public.h5'}")


def test_missing_rows_with_another_model(phantom: str, tmp_path: Path) -> None:
    """A dual encoder needs both: what lost something is left out."""
    plain, less = (
        run(SMOKE / "fedavg.yaml", 1, tmp_path / name, phantom, *FEW, *options)
        for name, options in (("all", ()), ("half", ("missing={ratio: 0.5, rule: site, strength: 0.5}",)))
    )
    rows = [sum(c["train_rows"] for c in r["clients"]) for r in (plain, less)]
    assert rows[1] == rows[0] - round(0.5 * rows[0])
