"""Checkpoints: what goes in comes out, only whole ones count, and nothing is unpickled."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedhpc.comm.collectives import Collectives
from fedhpc.comm.ledger import Ledger
from fedhpc.comm.mesh import Mesh
from fedhpc.federation.checkpoint import Checkpoints, decode_tree, encode_tree
from fedhpc.interfaces import Block
from tests.unit.algorithms.fakes import block

CPU = torch.device("cpu")


def checkpoints(folder: Path, keep: int = 2) -> Checkpoints:
    return Checkpoints(folder, keep, Collectives(Mesh(0, 1, 1, None), Ledger(), 1 << 20), CPU)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(json_values)
def test_trees_of_plain_values_come_back(value: object) -> None:
    assert decode_tree(encode_tree(value, {}), {}) == value


def test_trees_of_tensors_come_back() -> None:
    tensors: dict[str, torch.Tensor] = {}
    value = {"a": [torch.arange(3), {"b": block([1.0, 2.0], [3.0])}], "|": torch.ones(1), "": {"|": torch.zeros(2)}}
    again = decode_tree(encode_tree(value, tensors), tensors)
    assert torch.equal(again["a"][0], torch.arange(3))
    assert isinstance(again["a"][1]["b"], Block)
    assert again["a"][1]["b"].buffers.tolist() == [3.0] and list(again["a"][1]["b"]) == ["w", "b"]
    assert again["|"].tolist() == [1.0] and again[""]["|"].tolist() == [0.0, 0.0]
    with pytest.raises(TypeError, match="x: set cannot be saved"):
        encode_tree({"x": {1, 2}}, {})


def save(made: Checkpoints, rounds_done: int, value: float = 1.0) -> None:
    made.save(
        rounds_done,
        {"net": block([value, 2.0], [3.0])},
        {"q": [0.5, 0.5]},
        {3: {"model": {"net": block([7.0])}}, 5: {"n": 2}},
        {"versions": {}},
    )


def test_a_checkpoint_holds_everything(tmp_path: Path) -> None:
    made = checkpoints(tmp_path)
    assert made.latest() is None
    save(made, 4)
    path = made.latest()
    assert path is not None and path.name == "round_000004"
    like = {"net": block([0.0, 0.0], [0.0])}
    assert made.load_shared(path, like)["net"].flat.tolist() == [1.0, 2.0, 3.0]
    assert made.load_algorithm(path) == {"q": [0.5, 0.5]}
    assert made.load_states(path, [5]) == {5: {"n": 2}}
    assert made.load_states(path, [3, 5])[3]["model"]["net"].flat.tolist() == [7.0]
    assert made.load_loop(path)["rounds_done"] == 4
    assert not [p for p in path.rglob("*") if p.suffix not in (".json", ".safetensors")]


def test_the_newest_are_kept_and_torn_ones_do_not_count(tmp_path: Path) -> None:
    made = checkpoints(tmp_path, keep=2)
    for rounds_done in (1, 2, 10):
        save(made, rounds_done)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["round_000002", "round_000010"]
    (tmp_path / "round_000099.partial").mkdir()
    (tmp_path / "round_000098").mkdir()  # without loop.json: a copy that was cut short
    latest = made.latest()
    assert latest is not None and latest.name == "round_000010"
    save(made, 11, value=9.0)
    assert not list(tmp_path.glob("*.partial"))
    save(made, 11, value=8.0)
    path = made.latest()
    assert path is not None
    assert made.load_shared(path, {"net": block([0.0, 0.0], [0.0])})["net"].flat[0] == 8.0


def test_another_model_is_refused(tmp_path: Path) -> None:
    made = checkpoints(tmp_path)
    save(made, 1)
    path = made.latest()
    assert path is not None
    with pytest.raises(ValueError, match="another model.*net//w"):
        made.load_shared(path, {"net": block([0.0] * 5, [0.0])})


def _change(name: str, change: object) -> object:
    def apply(folder: Path) -> None:
        tree = json.loads((folder / name).read_text())
        change(tree)  # type: ignore[operator]
        (folder / name).write_text(json.dumps(tree))

    return apply


@pytest.mark.parametrize(
    "damage",
    [
        _change("loop.json", lambda t: t.pop("rounds_done")),
        _change("loop.json", lambda t: t.update(rounds_done=-1)),
        lambda folder: (folder / "loop.json").write_text("[" * 100_000),
        lambda folder: (folder / "loop.json").write_bytes(b"\xff"),
        lambda folder: (folder / "algorithm.safetensors").unlink(),
        lambda folder: (folder / "algorithm.json").write_text("{"),
        lambda folder: (folder / "shared.safetensors").write_bytes(b"x" * 50),
        lambda folder: (folder / "clients_00000.safetensors").write_bytes(b"x" * 50),
        lambda folder: (folder / "clients_00000.json").write_text("[]"),
        _change("clients_00000.json", lambda t: t["#map"]["3"]["#map"]["model"]["#map"]["net"].update(numel=7)),
        _change("clients_00000.json", lambda t: t["#map"]["3"]["#map"]["model"]["#map"]["net"].pop("specs")),
        _change("clients_00000.json", lambda t: t["#map"]["3"]["#map"].update(model={"#tensor": "none"})),
        _change("clients_00000.json", lambda t: t["#map"]["3"]["#map"]["model"]["#map"]["net"]["specs"][0].__setitem__(
            3, 10**6)),
    ],
    ids=range(13),
)  # fmt: skip
def test_whatever_is_damaged_ends_in_one_error_that_says_what_to_do(tmp_path: Path, damage: object) -> None:
    """Found by tests/fuzz: each of these ended in another library's error, or in none."""
    made = checkpoints(tmp_path)
    save(made, 1)
    damage(tmp_path / "round_000001")  # type: ignore[operator]
    with pytest.raises(ValueError, match=r"round_000001 is damaged .*delete that folder to resume"):
        path = made.latest()
        assert path is not None
        made.load_loop(path)
        made.load_shared(path, {"net": block([0.0, 0.0], [0.0])})
        made.load_algorithm(path)
        made.load_states(path, [3])


def test_folders_that_are_no_checkpoints_do_not_count(tmp_path: Path) -> None:
    made = checkpoints(tmp_path)
    save(made, 1)
    for name in ("round_x", "round_-00001", "round_", "round_000003.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "loop.json").write_text("{}")
    latest = made.latest()
    assert latest is not None and latest.name == "round_000001"
