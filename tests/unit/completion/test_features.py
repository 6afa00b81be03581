"""Parts that outlive a stop, features by row, stand-ins, neighbours and the generator."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedhpc.completion.features import FeatureFile
from fedhpc.completion.generator import generate
from fedhpc.completion.neighbour import nearest, nearest_of_class
from fedhpc.completion.parts import Part, Ranks, in_parts
from fedhpc.completion.reader import JointReader, Made
from fedhpc.config.completion import GeneratorConfig


# --------------------------------------------------------------------------------------------------------------- parts
def test_work_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    path, done = tmp_path / "side.h5", []

    def make(number: int) -> Part:
        if number == 2 and done.count(2) == 0:
            done.append(2)
            raise KeyboardInterrupt
        done.append(number)
        return {"a.x": np.full((number, 2), number), "name": np.asarray([f"part {number}"])}

    names = ["0", "1", "2", "3"]
    with pytest.raises(KeyboardInterrupt):
        in_parts(path, names, make, Ranks(), {})
    assert not path.exists()
    in_parts(path, names, make, Ranks(), {"k": "v"})
    assert done == [0, 1, 2, 2, 3], "parts 0 and 1 were made once"
    with h5py.File(path) as file:
        np.testing.assert_array_equal(file["a/x"][()], np.repeat([1, 2, 3], [1, 2, 3])[:, None].repeat(2, 1))
        assert list(file["name"].asstr()[()]) == [f"part {k}" for k in range(4)]
        assert file.attrs["k"] == "v"
    assert [p.name for p in tmp_path.iterdir()] == ["side.h5"]
    in_parts(path, names, make, Ranks(), {})
    assert len(done) == 5, "what is there is not made again"


# -------------------------------------------------------------------------------------------------------------- reader
class Packed:
    num_rows, pad_token = 10, 0

    def read(self, column: str, rows: np.ndarray | None = None) -> np.ndarray:
        values = {"image": np.arange(1, 11, dtype=np.uint8), "tokens": np.arange(11, 21), "label/x": np.arange(10)}
        return values[column].copy() if rows is None else values[column][rows]


@settings(max_examples=20)
@given(st.lists(st.integers(0, 199), min_size=0, max_size=40))
def test_features_come_in_the_order_of_rows(rows: list[int]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "f.h5"
        values = np.random.default_rng(0).normal(size=(200, 3)).astype(np.float32)
        with h5py.File(path, "w") as file:
            file.create_dataset("image_tokens", data=values, chunks=(16, 3))
        features = FeatureFile(path)
        np.testing.assert_array_equal(features.read("image_tokens", np.array(rows, dtype=np.int64)), values[rows])
        np.testing.assert_array_equal(features.read("image_tokens"), values)
        assert features.decoded_bytes("image_tokens") == 200 * 3 * 4
        features.close()


def test_stand_ins_take_the_place_of_what_is_missing() -> None:
    has = {"image": np.ones(10, bool), "text": np.ones(10, bool)}
    has["image"][[2, 3]] = False
    made = {
        "image": Made(np.array([5, 7]), donor=np.array([0, 1])),
        "text": Made(np.array([4, 9]), columns={"tokens": np.array([400, 900])}),
    }
    reader = JointReader(Packed(), None, has, made)  # type: ignore[arg-type]
    assert reader.read("image").tolist() == [1, 2, 0, 0, 5, 1, 7, 2, 9, 10]
    assert reader.read("tokens", np.array([9, 0, 4])).tolist() == [900, 11, 400]
    assert reader.read("label/x", np.array([2])).tolist() == [2]


# ---------------------------------------------------------------------------------------------------------- neighbours
def test_nearest_by_centred_cosine() -> None:
    random = np.random.default_rng(0)
    pairs, query = random.normal(size=(30, 5)) + 20, random.normal(size=(12, 5)) + 20  # a large common part
    centred, asked = pairs - pairs.mean(0), query - pairs.mean(0)
    cosine = (asked @ centred.T) / np.linalg.norm(asked, axis=1)[:, None] / np.linalg.norm(centred, axis=1)
    np.testing.assert_array_equal(nearest(torch.tensor(query), torch.tensor(pairs)).numpy(), cosine.argmax(1))
    assert nearest(torch.tensor(pairs), torch.tensor(pairs)).tolist() == list(range(30))
    assert nearest(torch.tensor(query[:0]), torch.tensor(pairs)).tolist() == []
    assert nearest(torch.tensor(query), torch.tensor(pairs[:1])).tolist() == [0] * 12


def test_nearest_of_the_same_class() -> None:
    random = np.random.default_rng(1)
    pairs, query = torch.tensor(random.normal(size=(30, 5))), torch.tensor(random.normal(size=(40, 5)))
    classes, pair_classes = torch.tensor(random.integers(0, 4, 40)), torch.tensor(random.integers(0, 3, 30))
    found = nearest_of_class(query, pairs, classes, pair_classes)
    assert ((found == -1) == (classes == 3)).all(), "nobody has a pair of class 3"
    mean, lent = pairs.mean(0), found >= 0
    cosine = torch.nn.functional.cosine_similarity(query[:, None] - mean, pairs[None] - mean, dim=2)
    cosine[classes[:, None] != pair_classes] = -2
    assert torch.equal(found[lent], cosine.argmax(1)[lent])
    one = torch.zeros(30, dtype=torch.long)
    assert torch.equal(nearest_of_class(query, pairs, torch.zeros(40), one), nearest(query, pairs))


# ----------------------------------------------------------------------------------------------------------- generator
def test_the_generator_learns_what_depends_on_the_condition() -> None:
    """Tokens are a linear function of the condition: far closer than their mean."""
    generator = torch.Generator().manual_seed(0)
    condition, matrix = torch.randn(200, 4, generator=generator), torch.randn(4, 12, generator=generator)
    target = (condition @ matrix).view(200, 3, 4) * 5 + 7
    mask = torch.ones(200, 3, dtype=torch.bool)
    config = GeneratorConfig(method="generator", hidden=64, epochs=60, learning_rate=3e-3)
    before = torch.random.get_rng_state()
    made = generate(config, condition[:150], target[:150], mask[:150], condition[150:], 1)
    assert torch.equal(before, torch.random.get_rng_state())
    error = (made - target[150:]).square().mean() / target.var()
    assert float(error) < 0.3
    again = generate(config, condition[:150], target[:150], mask[:150], condition[150:], 1)
    assert torch.equal(made, again)
    assert not torch.equal(made, generate(config, condition[:150], target[:150], mask[:150], condition[150:], 2))


def test_padding_teaches_nothing() -> None:
    condition, target = torch.randn(20, 3), torch.randn(20, 4, 5)
    mask = torch.arange(4).expand(20, 4) < 2
    other = torch.where(mask[:, :, None], target, torch.full_like(target, 1e3))
    config = GeneratorConfig(method="generator", hidden=8, epochs=2)
    one, two = (generate(config, condition, t, mask, condition, 0)[:, :2] for t in (target, other))
    torch.testing.assert_close(one, two)
