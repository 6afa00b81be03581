"""Pictures that all clients hold alike: the same batches on every rank, made once."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch

from fedhpc.config.schema import JointConfig, PublicConfig, RunConfig
from fedhpc.data.batches import BatchMaker, Source, batch_sizes
from fedhpc.data.hdf5 import SPLITS, PackedFile
from fedhpc.data.packers.phantom import ensure_phantom
from fedhpc.interfaces import Batch, DataSpec

COLUMN_OF = {"image": "image", "text": "tokens"}
WORD_OF = {"image": "picture", "text": "text"}
_PURPOSE = 0x9B11C  # keeps these draws apart from others of the same random seed


def held_out_rows(packed: PackedFile, config: RunConfig, rows: np.ndarray) -> np.ndarray:
    """Of `rows` (int64, sorted) the training rows that become public: whole patients, drawn from random_seed, until
    public.size is reached. int64, sorted; empty where the public set is another.

    Raises:
        ValueError: there are fewer training rows.
    """
    public = config.public
    if public is None or not public.held_out:
        return np.empty(0, np.int64)
    assert public.size is not None, "the schema demands it"
    train = rows[packed.read("split")[rows] == SPLITS.index("train")]
    if len(train) <= public.size:
        raise ValueError(
            f"public.size: {public.size}, but data.path has {len(train)} training rows, and the clients need some; "
            "lower public.size, or set public.path to another packed file"
        )
    _, patient = np.unique(packed.patients(train), return_inverse=True)
    order = np.random.default_rng([config.random_seed, _PURPOSE]).permutation(int(patient.max()) + 1)
    held = np.cumsum(np.bincount(patient)[order])
    chosen = order[: int(np.searchsorted(held, public.size)) + 1]
    return np.sort(train[np.isin(patient, chosen)])


def public_batches(
    packed: PackedFile, config: RunConfig, spec: DataSpec, held_out: np.ndarray, device: torch.device
) -> list[Batch]:
    """All batches of config.public, "image" (of a joint model "tokens" too) and "row", on the device; [] without such a
    section.

    packed: the clients' file. held_out: rows of it that are public. The order is drawn from random_seed.

    Raises:
        ValueError: pictures of another shape, another number of classes, or fewer rows than public.size.
    """
    public = config.public
    if public is None:
        return []
    path = public_path(public)
    with nullcontext(packed) if path is None else PackedFile(path) as file:
        if path is not None:
            _check(file, packed, config, spec)
        reads = config.model.modalities if isinstance(config.model, JointConfig) else ("image",)
        rows = held_out if path is None else _with_all(file, reads)
        if public.size is not None and len(rows) < public.size:
            raise ValueError(
                f"public.size: {public.size}, but {file.path} has {len(rows)} rows with "
                f"{' and '.join(f'a {WORD_OF[name]}' for name in reads)}; lower it, or remove it for all of them"
            )
        order = np.random.default_rng([config.random_seed, _PURPOSE, 1]).permutation(rows)[: public.size]
        size = public.batch_size or config.fit.batch_size
        sizes = batch_sizes(len(order), size, drop_last=True)
        columns = {COLUMN_OF[name]: COLUMN_OF[name] for name in reads}
        source = Source(file, columns, memory_mib=0)  # read once: not all of a large file
        maker = BatchMaker(source, config.data, device, config.fit.channels_last)
        return list(maker.ordered(torch.from_numpy(order[: sum(sizes)]), size))


def public_path(public: PublicConfig) -> Path | None:
    """The public file, generated first where the config says so; None where rows of the clients' file are public."""
    if public.phantom is not None:
        return ensure_phantom(public.phantom, public.path)
    return public.path


def _with_all(file: PackedFile, modalities: Sequence[str]) -> np.ndarray:
    """Rows of a file that have all of these: int64, sorted."""
    if lacking := [name for name in modalities if name not in file.modalities]:
        raise ValueError(
            f"public: {file.path} has no {lacking[0]}, which the model reads; pack it with one, or leave "
            "public.path out and set public.size"
        )
    return np.flatnonzero(np.all([file.read(f"present/{name}") for name in modalities], axis=0))


def _check(file: PackedFile, packed: PackedFile, config: RunConfig, spec: DataSpec) -> None:
    if file.checksum == packed.checksum:
        raise ValueError(
            f"public: {file.path} is what the clients hold, val and test rows included; leave public.path out and set "
            "public.size to take training rows from them"
        )
    reads = config.model.modalities if isinstance(config.model, JointConfig) else ("image",)
    if "text" in reads and (file.tokenizer_json, file.max_tokens) != (packed.tokenizer_json, packed.max_tokens):
        raise ValueError(
            f"public: {file.path} has tokens of another tokenizer or length than the clients'; pack it with their "
            "tokenizer and --max-tokens, or set public.size alone to take training rows of the clients"
        )
    if "image" in reads and (file.image_shape is None or (file.image_shape[2], *file.image_shape[:2]) != (
        spec.image_channels, *spec.image_size,
    )):  # fmt: skip
        raise ValueError(
            f"public: {file.path} has pictures of height, width, channels {file.image_shape}, the clients' are "
            f"{(*spec.image_size, spec.image_channels)}; pack it with the same --image-size and channels"
        )
    label, classes = config.data.label, file.label_classes
    if config.public is not None and config.public.classes == "same" and label in classes:
        own = len(packed.label_classes[label])
        if len(classes[label]) != own:
            raise ValueError(
                f"public: {file.path} has {len(classes[label])} classes of {label}, the clients have {own}: its "
                "pictures show other things; pack one with the same classes, or set public.classes: any (labels are "
                "never read)"
            )
