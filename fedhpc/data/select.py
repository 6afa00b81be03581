"""Which rows of a packed file a run can use, which client holds them, and what a model must know of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fedhpc.config.schema import ColumnPartition, DualEncoderConfig, FusionConfig, JointConfig, RunConfig
from fedhpc.data.hdf5 import SPLITS, PackedFile
from fedhpc.data.partition import ClientRows, partition_file
from fedhpc.data.presence import present_rows
from fedhpc.data.public import held_out_rows
from fedhpc.interfaces import ClientId, DataSpec

TOKENIZER_FILES = ("tokenizer.json", "vocab.txt")


def usable_rows(packed: PackedFile, config: RunConfig) -> np.ndarray:
    """Rows that have all that the model needs (fusion: a label and one modality at least): int64, sorted.

    Raises:
        ValueError: the file lacks a modality or the label column, or no row has everything.
    """
    if isinstance(config.model, FusionConfig):
        model = config.model
        some = np.any([present_rows(packed, model, m) for m in model.modalities], axis=0)
        usable = some & (packed.read(f"label/{label_column(packed, config)}") >= 0)
        if not usable.any():
            raise ValueError(f"no row of {config.data.path} has a label and {' or '.join(model.modalities)}")
        return np.flatnonzero(usable)
    if isinstance(config.model, JointConfig):
        return _usable_pairs(packed, config, config.model)
    usable = np.ones(packed.num_rows, dtype=bool)
    needs = ["image", "text"] if isinstance(config.model, DualEncoderConfig) else ["image"]
    for modality in needs:
        if modality not in packed.modalities:
            raise ValueError(
                f"model.kind: {config.model.kind} needs {' and '.join(needs)}, but {config.data.path} has only "
                f"{', '.join(packed.modalities)}; pack it with --{modality}-column, or choose another model"
            )
        usable &= packed.read(f"present/{modality}").astype(bool)
    if needs == ["image"]:
        usable &= packed.read(f"label/{label_column(packed, config)}") >= 0
    if not usable.any():
        raise ValueError(f"no row of {config.data.path} has {' and '.join(needs)}; see `fedhpc describe`")
    return np.flatnonzero(usable)


def _usable_pairs(packed: PackedFile, config: RunConfig, model: JointConfig) -> np.ndarray:
    """Of a joint model: rows with a label and all modalities; training rows also with one of them, where something
    stands in for the other."""
    complete = _complete_pairs(packed, config, model)
    some = np.any([packed.read(f"present/{m}") for m in model.modalities], axis=0)
    train = packed.read("split") == SPLITS.index("train")
    fills = model.missing == "zeros" or config.completion is not None
    labelled = packed.read(f"label/{label_column(packed, config)}") >= 0
    usable = complete | (some & train & labelled & fills)
    if not usable.any():
        raise ValueError(f"no row of {config.data.path} has a label and {' and '.join(model.modalities)}")
    return np.flatnonzero(usable)


def _complete_pairs(packed: PackedFile, config: RunConfig, model: JointConfig) -> np.ndarray:
    """bool [rows]."""
    for modality in model.modalities:
        if modality not in packed.modalities:
            raise ValueError(
                f"the model reads {modality}, but {packed.path} has only {', '.join(packed.modalities)}; pack it with "
                f"--{modality}-column, or remove model.{modality}"
            )
    labelled = packed.read(f"label/{label_column(packed, config)}") >= 0
    return np.all([labelled, *(packed.read(f"present/{m}").astype(bool) for m in model.modalities)], axis=0)


def public_rows(packed: PackedFile, config: RunConfig) -> np.ndarray:
    """Training rows that config.public takes from the clients: int64, sorted; those of a joint model are complete."""
    rows = usable_rows(packed, config)
    if isinstance(config.model, JointConfig):
        rows = rows[_complete_pairs(packed, config, config.model)[rows]]
    return held_out_rows(packed, config, rows)


def label_column(packed: PackedFile, config: RunConfig) -> str:
    """data.label, checked against the file."""
    label = config.data.label
    if label is None or label not in packed.label_classes:
        raise ValueError(
            f"data.label: {label}, but the file's label columns are {', '.join(packed.label_classes) or 'none'}; "
            "set data.label to one of them"
        )
    return label


def client_rows(packed: PackedFile, config: RunConfig) -> list[ClientRows]:
    """The usable rows, without those that are public, dealt to clients by config.partition: the same on every rank. Row
    numbers are the file's."""
    rows = usable_rows(packed, config)
    rows = np.setdiff1d(rows, public_rows(packed, config), assume_unique=True)
    return partition_file(config.partition, packed, config.random_seed, rows)


def unseen_clients(config: RunConfig, dealt: Sequence[ClientRows]) -> frozenset[ClientId]:
    """Clients of the sites in partition.leave_out. Raises ValueError for unknown sites, and when nobody is left."""
    left_out = config.partition.leave_out if isinstance(config.partition, ColumnPartition) else []
    sites = [client.site for client in dealt]
    if unknown := sorted(set(left_out) - set(sites)):
        raise ValueError(
            f"partition.leave_out: {', '.join(unknown)}, but the sites are {', '.join(sites)}; name some of these"
        )
    unseen = frozenset(client.id for client in dealt if client.site in left_out)
    if len(unseen) == len(sites):
        raise ValueError("partition.leave_out names every site; leave one to train")
    return unseen


def data_spec(packed: PackedFile, config: RunConfig) -> DataSpec:
    """Sizes and counts that models are built from.

    Raises:
        ValueError: longer texts than the file's, or a pretrained text encoder with another vocabulary.
    """
    height, width, channels = packed.image_shape or (0, 0, 0)
    if config.data.max_tokens is not None and config.data.max_tokens > packed.max_tokens:
        raise ValueError(
            f"data.max_tokens: {config.data.max_tokens}, but the file has {packed.max_tokens} tokens a row; "
            "leave the key out, or pack again with --max-tokens"
        )
    text = config.model.text if isinstance(config.model, DualEncoderConfig | JointConfig) else None
    if text is not None and text.pretrained is not None:
        check_vocabulary(packed, text.pretrained)
    learned = not isinstance(config.model, DualEncoderConfig)
    return DataSpec(
        image_channels=channels,
        image_size=(height, width),
        vocab_size=packed.vocab_size,
        max_tokens=config.data.max_tokens or packed.max_tokens,
        pad_token=packed.pad_token,
        num_classes=len(packed.label_classes[label_column(packed, config)]) if learned else 0,
    )


def check_vocabulary(packed: PackedFile, pretrained: str) -> None:
    """Raises ValueError where a text encoder's folder has a tokenizer that numbers words otherwise than the packed
    file's: a vocabulary of the same size would be read as if it were the same, and every word as another."""
    if packed.tokenizer_json is None or not any((Path(pretrained) / name).is_file() for name in TOKENIZER_FILES):
        return
    from tokenizers import Tokenizer

    from fedhpc.data.text import load_tokenizer

    own, other = Tokenizer.from_str(packed.tokenizer_json).get_vocab(), load_tokenizer(pretrained).get_vocab()
    if own != other:
        word = min(own.items() ^ other.items())[0]
        raise ValueError(
            f"model.text.pretrained: {pretrained} has the number {other.get(word, 'none')} for {word!r}, the packed "
            f"set {own.get(word, 'none')}; pack the set with --tokenizer {pretrained}"
        )


def match_groups(packed: PackedFile, columns: list[str] | None) -> np.ndarray:
    """int64 [rows]: rows of one number are right answers to each other in retrieval: equal in all label `columns`, or
    of identical text when `columns` is None.

    Raises:
        ValueError: a column that the file lacks.
    """
    if columns is None:
        _, group = np.unique(np.asarray(packed.texts(), dtype=object).astype(str), return_inverse=True)
        return group.astype(np.int64)
    if missing := [c for c in columns if c not in packed.label_classes]:
        raise ValueError(
            f"evaluation.match: {', '.join(missing)} not in the file; its label columns are "
            f"{', '.join(packed.label_classes)}"
        )
    codes = np.stack([packed.read(f"label/{c}") for c in columns], axis=1)
    _, group = np.unique(codes, axis=0, return_inverse=True)
    return group.reshape(-1).astype(np.int64)
