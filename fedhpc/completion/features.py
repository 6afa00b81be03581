"""What frozen encoders make of a packed file, computed once and kept beside it: local steps then touch only layers that
train."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from fedhpc.client.engine import ClientEngine, Engine
from fedhpc.completion.parts import Part, Ranks, in_parts
from fedhpc.config.joint import JointConfig
from fedhpc.config.schema import RunConfig
from fedhpc.data.batches import BatchMaker, Source
from fedhpc.data.hdf5 import PackedFile
from fedhpc.interfaces import Batch
from fedhpc.models.joint import JointModel

Array = np.ndarray
ROWS = 64  # that go through the encoders at a time: always the same ones together, whoever computes them
PART = 16 * ROWS
COLUMN_OF = {"image": ("image_tokens",), "text": ("text_tokens", "text_mask")}
RAW = {"image": "image", "text": "tokens"}
_VERSION = 1


def features_key(model: JointModel, packed: PackedFile, config: RunConfig, device: torch.device) -> str:
    """12 hex digits of all that features depend on, weights included."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if name.startswith(("image_encoder.", "text_encoder.")):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    assert isinstance(config.model, JointConfig)
    told = {
        "version": _VERSION,
        "data": packed.checksum,
        "encoders": [encoder.model_dump(mode="json") for encoder in config.model.encoders],
        "modalities": config.model.modalities,
        "whole": model.has_joint and config.model.pictures == "tokens",
        "mean": config.data.image_mean,
        "std": config.data.image_std,
        "max_tokens": config.data.max_tokens,
        "precision": config.fit.precision,
        "device": device.type,
    }
    digest.update(json.dumps(told, sort_keys=True).encode())
    return digest.hexdigest()[:12]


def sidecar_path(packed: PackedFile, config: RunConfig, what: str, key: str) -> Path:
    """Of something computed from a packed file."""
    folder = config.data.sidecar_dir or packed.path.parent
    return folder / f"{packed.path.stem}.{what}-{key}.h5"


def encode(model: JointModel, batch: Batch, config: RunConfig) -> dict[str, Tensor]:
    """`JointModel.features` in eval mode, without gradients, as training would compute them."""
    device = next(iter(batch.values())).device
    model.eval()
    lower = config.fit.precision == "bfloat16"
    with torch.no_grad(), torch.autocast(device.type, dtype=torch.bfloat16) if lower else nullcontext():
        found = model.features(batch)
    return {name: x if x.dtype == torch.bool else x.float() for name, x in found.items()}


def with_features(engine: ClientEngine, batches: list[Batch], config: RunConfig) -> list[Batch]:
    """Batches with features in place of what they were made from, with pixels where the joint encoder reads them; as
    they are where nothing is cached."""
    if not isinstance(config.model, JointConfig) or not config.model.cache:
        return batches
    assert isinstance(engine, Engine) and isinstance(engine.module, JointModel), "config.checks refuses shards"
    model = engine.module
    dropped = {"tokens"} if model.has_joint and config.model.pictures == "patches" else {"tokens", "image"}
    return [
        {**{name: x for name, x in batch.items() if name not in dropped}, **encode(model, batch, config)}
        for batch in batches
    ]


def ensure_features(
    model: JointModel, packed: PackedFile, config: RunConfig, device: torch.device, ranks: Ranks
) -> FeatureFile:
    """The features of all rows of a packed file, computed where they are not there yet. Every rank calls this."""
    assert isinstance(config.model, JointConfig)
    columns = {RAW[name]: RAW[name] for name in config.model.modalities}
    model = model.to(device)
    path = sidecar_path(packed, config, "features", features_key(model, packed, config, device))
    path.parent.mkdir(parents=True, exist_ok=True)
    maker = BatchMaker(Source(packed, columns, 0), config.data, device, config.fit.channels_last)
    starts = range(0, packed.num_rows, PART)

    def make(number: int) -> Part:
        rows = torch.arange(starts[number], min(starts[number] + PART, packed.num_rows))
        parts = [encode(model, batch, config) for batch in maker.ordered(rows, ROWS)]
        return {name: torch.cat([part[name] for part in parts]).cpu().numpy() for name in parts[0]}

    names = [f"{number:06d}" for number in range(len(starts))]
    in_parts(path, names, make, ranks, {"checksum": packed.checksum}, what="frozen features", unit=f"x {PART} rows")
    return FeatureFile(path)


class FeatureFile:
    """Features by row of the packed file, as `JointModel.features` names them. A column is read as a packed file's."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = h5py.File(path, "r", locking=False)

    def close(self) -> None:
        self._file.close()

    def read(self, column: str, rows: Array | None = None) -> Array:
        """[len(rows), ...] in the order of `rows`, or all."""
        dataset = self._file[column]
        if rows is None:
            return np.asarray(dataset[()])
        out = np.empty((len(rows), *dataset.shape[1:]), dataset.dtype)
        for where, start, stop in _runs(rows, self.chunk_rows(column)):
            out[where] = dataset[start:stop][rows[where] - start]
        return out

    def decoded_bytes(self, column: str) -> int:
        dataset = self._file[column]
        return int(dataset.size) * dataset.dtype.itemsize

    def chunk_rows(self, column: str) -> int:
        return int(self._file[column].chunks[0])


def _runs(rows: Array, chunk: int) -> Iterator[tuple[Array, int, int]]:
    """Places in `rows`, first row and end of each chunk that is touched."""
    order = np.argsort(rows, kind="stable")
    for part in np.split(order, np.flatnonzero(np.diff(rows[order] // chunk)) + 1):
        if len(part):
            first = int(rows[part[0]]) // chunk * chunk
            yield part, first, first + chunk


def features_of(model: JointModel, config: RunConfig, made: dict[str, Any], device: torch.device) -> dict[str, Array]:
    """Features of rows that are in no file yet. made: "image" uint8 [n,H,W,C] or "tokens" [n,L]."""
    maker = BatchMaker(_Arrays(made), config.data, device, config.fit.channels_last)  # type: ignore[arg-type]
    count = len(next(iter(made.values())))
    parts = [encode(model.to(device), batch, config) for batch in maker.ordered(torch.arange(count), ROWS)]
    return {name: torch.cat([part[name] for part in parts]).cpu().numpy() for name in parts[0]}


class _Arrays:
    """A source over arrays."""

    chunk_rows = 0

    def __init__(self, arrays: dict[str, Any]) -> None:
        self._arrays = arrays

    def take(self, rows: Tensor, names: object = None) -> dict[str, Tensor]:
        return {name: torch.from_numpy(array[rows.numpy()]) for name, array in self._arrays.items()}
