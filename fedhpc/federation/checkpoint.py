"""Checkpoints: safetensors and JSON only, written to a temporary name and renamed, so that a torn one is never read.

RUN_DIR/checkpoints/round_000012/
    shared.safetensors      shared blocks, "block//tensor"
    algorithm.{json,safetensors}
    clients_SLOT.{json,safetensors}   state of the clients that lived in that slot
    loop.json               what the loop needs besides: rounds done, versions

Sharded clients write one file a shard, NAME.shard_00000.safetensors and so on (pieces.py).
All ranks call `save` and `load`; any number of ranks, slots and shards can load what any other number saved.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from fedhpc.comm.collectives import Collectives
from fedhpc.federation.pieces import Stored, files_of, fill, merge_trees, opened, piece_metadata, whole_shapes
from fedhpc.interfaces import Block, Blocks, ClientId, ClientState, Layout, TensorSpec

PREFIX = "round_"
NAME = re.compile(PREFIX + r"[0-9]{6,9}")
SHARED = "shared"
NOTHING: Blocks = {}


class OtherModel(ValueError):
    """A whole checkpoint, of something else."""


@contextmanager
def reading(folder: Path) -> Iterator[None]:
    """Whatever a parser stumbles over in a checkpoint is one error, which says what to do."""
    try:
        yield
    except OtherModel:
        raise
    except (
        SafetensorError,
        FileNotFoundError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        RuntimeError,
    ) as error:
        raise ValueError(
            f"the checkpoint {folder} is damaged ({type(error).__name__}: {error}); delete that folder to resume from "
            "the one before it"
        ) from error


# ------------------------------------------------------------------------------------------- trees of tensors on disk
def encode_tree(value: Any, tensors: dict[str, Tensor], path: str = "") -> Any:
    """JSON that mirrors `value`, with its tensors moved into `tensors` under their path.

    Raises:
        TypeError: something that is neither tensor, block, mapping, list nor JSON value.
    """
    if isinstance(value, Block):
        tensors[path] = value.flat.detach().cpu().clone()
        specs = [[s.name, s.shape, s.stride, s.offset, s.trainable] for s in value.layout.specs]
        node = {"#block": path, "numel": value.layout.numel, "trainable": value.layout.trainable_numel, "specs": specs}
        return node if value.layout.pieces is None else {**node, "pieces": [[*piece] for piece in value.layout.pieces]}
    if isinstance(value, Tensor):
        tensors[path] = value.detach().cpu().contiguous().clone()
        return {"#tensor": path}
    if isinstance(value, Mapping):
        return {"#map": {str(k): encode_tree(v, tensors, f"{path}|{k}") for k, v in value.items()}}
    if isinstance(value, list | tuple):
        return [encode_tree(v, tensors, f"{path}|{i}") for i, v in enumerate(value)]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{path or 'state'}: {type(value).__name__} cannot be saved; keep tensors, blocks or JSON values")


def decode_tree(node: Any, tensors: Mapping[str, Tensor]) -> Any:
    """What `encode_tree` was given.

    Raises:
        ValueError, KeyError, TypeError, RuntimeError: the tree is not one of its, or names tensors that are not there.
    """
    if isinstance(node, list):
        return [decode_tree(item, tensors) for item in node]
    if not isinstance(node, dict):
        return node
    if "#map" in node:
        return {key: decode_tree(item, tensors) for key, item in node["#map"].items()}
    if "#tensor" in node:
        return tensors[node["#tensor"]]
    specs = tuple(TensorSpec(n, tuple(sh), tuple(st), o, t) for n, sh, st, o, t in node["specs"])
    flat = tensors[node["#block"]]
    if tuple(flat.shape) != (node["numel"],) or not 0 <= node["trainable"] <= node["numel"]:
        raise ValueError(f"a block of {list(flat.shape)} is said to have {node['numel']} elements")
    block = Block(flat, Layout(specs, node["numel"], node["trainable"]))
    for spec in specs:  # a view beyond the buffer is refused by torch
        block.view(spec)
    return block


def _write_tree(folder: Path, name: str, value: Any) -> None:
    tensors: dict[str, Tensor] = {}
    tree = encode_tree(value, tensors)
    save_file(tensors, folder / f"{name}.safetensors")
    (folder / f"{name}.json").write_text(json.dumps(tree))


def _read_tree(folder: Path, name: str, like: Blocks) -> Any:
    """A tree that one rank wrote, or the ranks of a slot each its shard of."""
    with reading(folder):
        trees = [json.loads(path.read_text()) for path in files_of(folder, name, "json")]
        if len(trees) == 1 and not _sharded(like):
            return decode_tree(trees[0], load_file(folder / f"{name}.safetensors"))
        with opened(files_of(folder, name, "safetensors")) as files:
            return merge_trees(trees, files, like)


def _sharded(blocks: Blocks) -> bool:
    return any(block.layout.pieces is not None for block in blocks.values())


def save_blocks(path: Path, blocks: Blocks) -> None:
    """One safetensors file, a tensor under "block//name", in row-major order: readable without fedhpc. Of shards, flat
    pieces of tensors; the file's metadata say of which."""
    save_file(
        {
            f"{b}//{name}": tensor.detach().cpu().contiguous().clone()
            for b, block in blocks.items()
            for name, tensor in block.items()
        },
        path,
        metadata=piece_metadata({f"{b}//": block for b, block in blocks.items()}) or None,
    )


def load_blocks(folder: Path, like: Blocks) -> dict[str, Block]:
    """Shared blocks of a checkpoint, laid out as `like`, whoever wrote them: all or pieces, from one file or many.

    Raises:
        ValueError: the files' tensors are not those of `like`.
    """
    paths = files_of(folder, SHARED, "safetensors")
    if not paths:
        raise ValueError(f"{folder} has no {SHARED}.safetensors; delete that folder to resume from the one before it")
    with reading(folder), opened(paths) as files:
        stored = Stored(files)
        expected = {f"{b}//{name}": shape for b, block in like.items() for name, shape in whole_shapes(block).items()}
        if expected != stored.shapes:
            odd = sorted(set(expected.items()) ^ set(stored.shapes.items()))[:3]
            raise OtherModel(
                f"{folder} holds another model than the config describes; the first differences are {odd}. Set the "
                "model that it was trained with, use another --run-dir, or start anew with --fresh"
            )
        blocks = {b: Block(torch.zeros(block.layout.numel), block.layout) for b, block in like.items()}
        return {b: fill(block, stored, f"{b}//") for b, block in blocks.items()}


# ------------------------------------------------------------------------------------------------------- checkpoints
class Checkpoints:
    """The folder of a run's checkpoints; keeps the newest `keep`."""

    def __init__(self, folder: Path, keep: int, collectives: Collectives, device: torch.device) -> None:
        self._device = device
        self._folder = folder
        self._keep = keep
        self._collectives = collectives

    def latest(self) -> Path | None:
        """The newest complete checkpoint, as rank 0 sees it: all ranks get the same answer. Every rank calls this."""
        newest = max((int(p.name.removeprefix(PREFIX)) for p in self._complete()), default=-1)
        table = self._collectives.all_rows(
            {0: torch.tensor(float(newest))} if self._collectives.mesh.rank == 0 else {},
            1,
            (),
            self._device,
            operation="placement",
            what="checkpoint",
        )
        return self._path(int(table[0])) if table[0] >= 0 else None

    def save(
        self,
        rounds_done: int,
        shared: Blocks,
        algorithm: Mapping[str, Any],
        states: Mapping[ClientId, ClientState],
        loop: Mapping[str, Any],
    ) -> None:
        """Every rank calls this."""
        final = self._path(rounds_done)
        temporary = final.with_name(final.name + ".partial")
        first = self._collectives.mesh.rank == 0
        if first:
            for leftover in self._folder.glob("*.partial"):
                shutil.rmtree(leftover)
            temporary.mkdir(parents=True)
        self._collectives.barrier()
        mesh = self._collectives.mesh
        shard = f".shard_{mesh.shard_index:05d}" if _sharded(shared) else ""
        if states:
            _write_tree(temporary, f"clients_{mesh.slot:05d}{shard}", {str(c): s for c, s in states.items()})
        if mesh.slot == 0:  # others hold the same
            save_blocks(temporary / f"{SHARED}{shard}.safetensors", shared)
            _write_tree(temporary, f"algorithm{shard}", algorithm)
        self._collectives.barrier()
        if not first:
            return
        (temporary / "loop.json").write_text(json.dumps({**loop, "rounds_done": rounds_done}, indent=1))
        for path in temporary.iterdir():
            _sync(path)
        if final.exists():  # written by an earlier run of the same round; ours is the same or was asked for
            shutil.rmtree(final)
        os.replace(temporary, final)
        _sync(self._folder)
        for old in sorted(self._complete())[: -self._keep]:
            shutil.rmtree(old)

    def load_shared(self, path: Path, like: Blocks) -> dict[str, Block]:
        return load_blocks(path, like)

    def load_algorithm(self, path: Path, like: Blocks = NOTHING) -> dict[str, Any]:
        """Its state. like: the model's blocks, for the layout of those that shards wrote."""
        state: dict[str, Any] = _read_tree(path, "algorithm", like)
        return state

    def load_states(
        self, path: Path, clients: Collection[ClientId], like: Blocks = NOTHING
    ) -> dict[ClientId, ClientState]:
        """State of `clients`, whichever slots saved it. like: as in `load_algorithm`."""
        states: dict[ClientId, ClientState] = {}
        for slot in sorted({file.name.split(".")[0] for file in path.glob("clients_*.json")}):
            with reading(path), opened(files_of(path, slot, "safetensors")) as files:
                trees = [json.loads(file.read_text())["#map"] for file in files_of(path, slot, "json")]
                for c in [c for c in trees[0] if int(c) in clients]:
                    if len(trees) == 1 and not _sharded(like):
                        states[int(c)] = decode_tree(trees[0][c], _Lazily(files[0]))
                    else:
                        states[int(c)] = merge_trees([tree[c] for tree in trees], files, like)
        return states

    def load_loop(self, path: Path) -> dict[str, Any]:
        with reading(path):
            loop: dict[str, Any] = json.loads((path / "loop.json").read_text())
            done = loop["rounds_done"]
            if not isinstance(done, int) or done < 0:
                raise ValueError(f"rounds_done is {str(done)[:20]}")
        return loop

    def _path(self, rounds_done: int) -> Path:
        return self._folder / f"{PREFIX}{rounds_done:06d}"

    def _complete(self) -> list[Path]:
        return [p for p in self._folder.glob(f"{PREFIX}*") if NAME.fullmatch(p.name) and (p / "loop.json").exists()]


class _Lazily(Mapping[str, Tensor]):
    """Tensors of a safetensors file, read when asked for."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def __getitem__(self, key: str) -> Tensor:
        tensor: Tensor = self._file.get_tensor(key)
        return tensor

    def __iter__(self) -> Any:
        return iter(self._file.keys())

    def __len__(self) -> int:
        return len(self._file.keys())


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def refuse_other_data(checkpoint: Path, stored: Mapping[str, str], now: Mapping[str, str]) -> None:
    """stored, now: config key of a packed file -> checksum of its content; of the checkpoint, and of this run.

    Raises ValueError when a file's content is not what the first rounds saw: another split would put rows to the test
    that have been trained on.
    """
    other = [key for key in now if key in stored and stored[key] != now[key]]
    if other:
        raise ValueError(
            f"{checkpoint} was trained on other data: the content of {' and of '.join(other)} has changed since "
            f"(checksum {stored[other[0]][:12]}, now {now[other[0]][:12]}). Bring the file back, start anew with "
            "--fresh or in another --run-dir, or resume all the same with --accept-changes"
        )
