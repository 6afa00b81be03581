"""Tensors that several files hold in pieces, read for any other way of dealing them out.

A sharded run writes one file a shard: NAME.shard_00000.safetensors and so on, each tensor a flat piece of a whole one.
Who reads them may have another number of shards, or none: it takes the stretches that it needs, and no more memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

from fedhpc.interfaces import Block, Blocks, Layout

PIECES = "pieces"  # in a file's metadata: key -> [whole shape, start]


class Stretch(NamedTuple):
    """Elements [start, start + numel) of a whole tensor, as some open file has them."""

    start: int
    numel: int
    file: Any
    key: str


class Stored:
    """The whole tensors of some open safetensors files, by key."""

    def __init__(self, files: Sequence[Any]) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._stretches: dict[str, list[Stretch]] = {}
        for file in files:
            pieces = json.loads((file.metadata() or {}).get(PIECES, "{}"))
            for key in file.keys():  # noqa: SIM118
                own = tuple(file.get_slice(key).get_shape())
                shape, start = pieces.get(key, (own, 0))
                self.shapes[key] = tuple(shape)
                self._stretches.setdefault(key, []).append(Stretch(start, prod(own), file, key))

    def read(self, key: str, start: int, out: Tensor) -> None:
        """Fill the flat `out` with the elements from `start` on.

        Raises:
            ValueError: the files lack some of them.
        """
        stop, found = start + out.numel(), 0
        for stretch in self._stretches[key]:
            first, last = max(start, stretch.start), min(stop, stretch.start + stretch.numel)
            if first < last:
                part = _flat(stretch, first - stretch.start, last - stretch.start)
                out[first - start : last - start] = part
                found += last - first
        if found != out.numel():
            raise ValueError(f"{key}: the checkpoint has {found} of {out.numel()} elements; one of its shards is gone")


def _flat(stretch: Stretch, first: int, last: int) -> Tensor:
    """Elements [first, last) of a stored tensor, flat; of large ones only the rows that hold them are read."""
    rows = stretch.file.get_slice(stretch.key)
    shape = rows.get_shape()
    if not shape:
        return stretch.file.get_tensor(stretch.key).reshape(-1)
    inner = prod(shape[1:])
    top = first // inner
    part: Tensor = rows[top : -(-last // inner)]
    return part.reshape(-1)[first - top * inner : last - top * inner]


@contextmanager
def opened(paths: Sequence[Path]) -> Iterator[list[Any]]:
    """Safetensors files, read lazily."""
    with ExitStack() as stack:
        yield [stack.enter_context(safe_open(path, framework="pt")) for path in paths]


def files_of(folder: Path, name: str, suffix: str) -> list[Path]:
    """NAME.SUFFIX, or the files of its shards in order."""
    whole = folder / f"{name}.{suffix}"
    return [whole] if whole.exists() else sorted(folder.glob(f"{name}.shard_*.{suffix}"))


def piece_metadata(keyed: Mapping[str, Block]) -> dict[str, str]:
    """Metadata of a file of pieces. keyed: prefix of the keys -> block."""
    pieces = {
        f"{prefix}{spec.name}": [list(piece.shape), piece.start]
        for prefix, block in keyed.items()
        if block.layout.pieces is not None
        for spec, piece in zip(block.layout.specs, block.layout.pieces, strict=True)
    }
    return {PIECES: json.dumps(pieces)} if pieces else {}


def whole_shapes(block: Block) -> dict[str, tuple[int, ...]]:
    """Of the tensors that a block is made of, or has pieces of."""
    layout = block.layout
    if layout.pieces is None:
        return {spec.name: spec.shape for spec in layout.specs}
    return {spec.name: piece.shape for spec, piece in zip(layout.specs, layout.pieces, strict=True)}


def fill(block: Block, stored: Stored, prefix: str) -> Block:
    """Read a block's tensors, or its pieces of them, from the keys prefix + name."""
    for index, spec in enumerate(block.layout.specs):
        if block.layout.pieces is not None:
            if spec.shape[0]:
                stored.read(prefix + spec.name, block.layout.pieces[index].start, block.view(spec))
            continue
        flat = torch.empty(prod(spec.shape), dtype=block.flat.dtype)
        stored.read(prefix + spec.name, 0, flat)
        block.view(spec).copy_(flat.view(spec.shape))
    return block


# -------------------------------------------------------------------------------------------------------------- trees
def merge_trees(nodes: Sequence[Any], files: Sequence[Any], like: Blocks) -> Any:
    """What `encode_tree` was given, by ranks that each held a shard, for blocks laid out as those of `like` are.

    nodes, files: each shard's JSON and its open tensors. Whatever is no block is the same in all of them.

    Raises:
        ValueError: a block of tensors that no block of `like` has.
    """
    node = nodes[0]
    if isinstance(node, list):
        return [merge_trees(items, files, like) for items in zip(*nodes, strict=True)]
    if not isinstance(node, dict):
        return node
    if "#map" in node:
        return {key: merge_trees([n["#map"][key] for n in nodes], files, like) for key in node["#map"]}
    if "#tensor" in node:
        return files[0].get_tensor(node["#tensor"])
    return _merge_block(nodes, files, like)


def _merge_block(nodes: Sequence[Any], files: Sequence[Any], like: Blocks) -> Block:
    layout = _layout_of([spec[0] for spec in nodes[0]["specs"]], like)
    block = Block(torch.zeros(layout.numel), layout)
    for node, file in zip(nodes, files, strict=True):
        flat = file.get_tensor(node["#block"])
        pieces = node.get("pieces") or [(shape, 0) for _, shape, *_ in node["specs"]]
        for (name, shape, stride, offset, _), (whole, start) in zip(node["specs"], pieces, strict=True):
            index = next(i for i, spec in enumerate(layout.specs) if spec.name == name)
            values = flat.as_strided(shape, stride, offset).reshape(-1)
            _place(block, index, values, tuple(whole), start)
    return block


def _place(block: Block, index: int, values: Tensor, whole: tuple[int, ...], start: int) -> None:
    """Put the elements of a whole tensor from `start` on where a block has room for them."""
    spec, pieces = block.layout.specs[index], block.layout.pieces
    if pieces is None:
        flat = block.view(spec).clone(memory_format=torch.contiguous_format).reshape(-1)
        flat[start : start + values.numel()] = values
        block.view(spec).copy_(flat.view(whole))
        return
    own = pieces[index].start
    first, last = max(start, own), min(start + values.numel(), own + spec.shape[0])
    if first < last:
        block.view(spec)[first - own : last - own] = values[first - start : last - start]


def _layout_of(names: Sequence[str], like: Blocks) -> Layout:
    """Of the block of `like` that has these tensors; without its buffers where they are not among them."""
    for block in like.values():
        for layout in (block.layout, block.layout.trainable()):
            if [spec.name for spec in layout.specs] == list(names):
                return layout
    raise ValueError(f"the checkpoint has a block of {', '.join(names[:3])} ..., which the model of the config has not")
