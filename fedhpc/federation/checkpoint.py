"""Checkpoints: safetensors and JSON only, written to a temporary name and renamed, so that a torn one is never read.

RUN_DIR/checkpoints/round_000012/
    shared.safetensors      shared blocks, "block//tensor"
    algorithm.{json,safetensors}
    clients_SLOT.{json,safetensors}   state of the clients that lived in that slot
    loop.json               what the loop needs besides: rounds done, versions

All ranks call `save` and `load`; any number of ranks can load what any other number saved.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from fedhpc.comm.collectives import Collectives
from fedhpc.interfaces import Block, Blocks, ClientId, ClientState, Layout, TensorSpec

PREFIX = "round_"


# ------------------------------------------------------------------------------------------- trees of tensors on disk
def encode_tree(value: Any, tensors: dict[str, Tensor], path: str = "") -> Any:
    """JSON that mirrors `value`, with its tensors moved into `tensors` under their path.

    Raises:
        TypeError: something that is neither tensor, block, mapping, list nor JSON value.
    """
    if isinstance(value, Block):
        tensors[path] = value.flat.detach().cpu().clone()
        specs = [[s.name, s.shape, s.stride, s.offset, s.trainable] for s in value.layout.specs]
        return {"#block": path, "numel": value.layout.numel, "trainable": value.layout.trainable_numel, "specs": specs}
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
    """What `encode_tree` was given."""
    if isinstance(node, list):
        return [decode_tree(item, tensors) for item in node]
    if not isinstance(node, dict):
        return node
    if "#map" in node:
        return {key: decode_tree(item, tensors) for key, item in node["#map"].items()}
    if "#tensor" in node:
        return tensors[node["#tensor"]]
    specs = tuple(TensorSpec(n, tuple(sh), tuple(st), o, t) for n, sh, st, o, t in node["specs"])
    return Block(tensors[node["#block"]], Layout(specs, node["numel"], node["trainable"]))


def _write_tree(folder: Path, name: str, value: Any) -> None:
    tensors: dict[str, Tensor] = {}
    tree = encode_tree(value, tensors)
    save_file(tensors, folder / f"{name}.safetensors")
    (folder / f"{name}.json").write_text(json.dumps(tree))


def _read_tree(folder: Path, name: str) -> Any:
    return decode_tree(json.loads((folder / f"{name}.json").read_text()), load_file(folder / f"{name}.safetensors"))


def save_blocks(path: Path, blocks: Blocks) -> None:
    """One safetensors file, a tensor under "block//name", in row-major order: readable without fedhpc."""
    save_file(
        {
            f"{b}//{name}": tensor.detach().cpu().contiguous().clone()
            for b, block in blocks.items()
            for name, tensor in block.items()
        },
        path,
    )


def load_blocks(path: Path, like: Blocks) -> dict[str, Block]:
    """Blocks laid out as `like`.

    Raises:
        ValueError: the file's tensors are not those of `like`.
    """
    result = {}
    with safe_open(path, framework="pt") as file:
        expected = {f"{b}//{name}": tuple(t.shape) for b, block in like.items() for name, t in block.items()}
        found = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
        if expected != found:
            odd = sorted(set(expected.items()) ^ set(found.items()))[:3]
            raise ValueError(f"{path} holds another model than the config describes; the first differences are {odd}")
        for b, block in like.items():
            result[b] = block.new_zeros()
            for name in block:
                result[b][name].copy_(file.get_tensor(f"{b}//{name}"))
    return result


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
        if states:
            _write_tree(temporary, f"clients_{self._collectives.mesh.slot:05d}", {str(c): s for c, s in states.items()})
        self._collectives.barrier()
        if not first:
            return
        save_blocks(temporary / "shared.safetensors", shared)
        _write_tree(temporary, "algorithm", algorithm)
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
        return load_blocks(path / "shared.safetensors", like)

    def load_algorithm(self, path: Path) -> dict[str, Any]:
        state: dict[str, Any] = _read_tree(path, "algorithm")
        return state

    def load_states(self, path: Path, clients: Collection[ClientId]) -> dict[ClientId, ClientState]:
        """State of `clients`, whichever slots saved it."""
        states: dict[ClientId, ClientState] = {}
        for file in sorted(path.glob("clients_*.json")):
            tree = json.loads(file.read_text())["#map"]
            with safe_open(file.with_suffix(".safetensors"), framework="pt") as tensors:
                lazily = _Lazily(tensors)
                states |= {int(c): decode_tree(node, lazily) for c, node in tree.items() if int(c) in clients}
        return states

    def load_loop(self, path: Path) -> dict[str, Any]:
        loop: dict[str, Any] = json.loads((path / "loop.json").read_text())
        return loop

    def _path(self, rounds_done: int) -> Path:
        return self._folder / f"{PREFIX}{rounds_done:06d}"

    def _complete(self) -> list[Path]:
        return [p for p in self._folder.glob(f"{PREFIX}*") if p.suffix != ".partial" and (p / "loop.json").exists()]


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
