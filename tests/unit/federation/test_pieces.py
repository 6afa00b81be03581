"""Whatever number of shards wrote a checkpoint, any other number reads it."""

from __future__ import annotations

from math import prod
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedhpc.federation.checkpoint import encode_tree, load_blocks, save_blocks
from fedhpc.federation.pieces import _place, merge_trees
from fedhpc.interfaces import Block, Layout, Piece, TensorSpec

SHAPES = {"w": (3, 5), "b": (1,), "v": (7,), "mean": (4,)}  # mean: a buffer
WHOLE = {name: torch.randn(shape, generator=torch.Generator().manual_seed(1)) for name, shape in SHAPES.items()}


def shard(index: int, count: int) -> Block:
    """What rank `index` of `count` holds."""
    specs, pieces, values, offset = [], [], [], 0
    for name, shape in SHAPES.items():
        each = -(-prod(shape) // count)
        start = min(index * each, prod(shape))
        part = WHOLE[name].reshape(-1)[start : start + each]
        specs.append(TensorSpec(name, (len(part),), (1,), offset, name != "mean"))
        pieces.append(Piece(shape, start))
        values.append(part)
        offset += len(part)
    trainable = offset - len(values[-1])
    return Block(torch.cat(values), Layout(tuple(specs), offset, trainable, tuple(pieces)))


def whole() -> Block:
    """The same tensors on one rank: padded, and `w` column-major."""
    strides = {"w": (1, 3), "b": (1,), "v": (1,), "mean": (1,)}
    specs = [TensorSpec(n, s, strides[n], 16 * i, n != "mean") for i, (n, s) in enumerate(SHAPES.items())]
    block = Block(torch.zeros(64), Layout(tuple(specs), 64, 48))
    for name, value in WHOLE.items():
        block[name].copy_(value)
    return block


def write(folder: Path, count: int) -> None:
    if not count:
        save_blocks(folder / "shared.safetensors", {"net": whole()})
    for index in range(count):
        save_blocks(folder / f"shared.shard_{index:05d}.safetensors", {"net": shard(index, count)})


@pytest.mark.parametrize("writers", [0, 1, 2, 5, 16])
@pytest.mark.parametrize("readers", [0, 1, 3, 4])
def test_shared_blocks(writers: int, readers: int, tmp_path: Path) -> None:
    """0: not sharded."""
    write(tmp_path, writers)
    for index in range(readers or 1):
        expected = shard(index, readers) if readers else whole()
        read = load_blocks(tmp_path, {"net": expected.new_zeros()})["net"]
        assert read.layout == expected.layout
        assert torch.equal(read.flat, expected.flat)


def test_a_missing_shard_or_another_model_is_named(tmp_path: Path) -> None:
    write(tmp_path, 3)
    other = Block(torch.zeros(2), Layout((TensorSpec("w", (2,), (1,), 0, True),), 2, 2))
    with pytest.raises(ValueError, match="another model"):
        load_blocks(tmp_path, {"net": other})
    (tmp_path / "shared.shard_00001.safetensors").unlink()
    with pytest.raises(ValueError, match="one of its shards is gone"):
        load_blocks(tmp_path, {"net": whole()})
    with pytest.raises(ValueError, match="has no shared.safetensors"):
        load_blocks(tmp_path / "nothing", {"net": whole()})


class File:
    """As much of an open safetensors file as trees ask for."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        self.get_tensor = tensors.__getitem__


@given(writers=st.integers(1, 6), readers=st.integers(0, 6))
def test_trees(writers: int, readers: int) -> None:
    """Moments have a block's layout, variates that of its trainable part; weights of clients are no blocks."""
    nodes, files = [], []
    for index in range(writers):
        block, tensors = shard(index, writers), dict[str, torch.Tensor]()
        variate = Block(block.trainable.clone(), block.layout.trainable())
        nodes.append(encode_tree({"m": {"net": block}, "c": {"net": variate}, "q": torch.ones(2), "n": [1]}, tensors))
        files.append(File(tensors))
    for index in range(readers or 1):
        like = shard(index, readers) if readers else whole()
        tree = merge_trees(nodes, files, {"net": like.new_zeros()})
        assert torch.equal(tree["m"]["net"].flat, like.flat) and tree["m"]["net"].layout == like.layout
        assert torch.equal(tree["c"]["net"].flat, like.trainable)
        assert tree["q"].tolist() == [1.0, 1.0] and tree["n"] == [1]


def test_a_whole_tensor_in_another_memory_order() -> None:
    """A convolution of one channel in channels_last: contiguous as torch sees it, though of other strides."""
    spec = TensorSpec("patches", (4, 1, 3, 3), (9, 1, 3, 1), 0, True)
    block = Block(torch.zeros(36), Layout((spec,), 36, 36))
    values = torch.arange(36.0)
    for first, last in ((0, 20), (20, 36)):
        _place(block, 0, values[first:last], spec.shape, first)
    assert torch.equal(block.view(spec).reshape(-1), values)
