"""Values of tabular modalities: read, or made of label columns or pictures."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedhpc.config.fusion import FusionConfig
from fedhpc.data.hdf5 import PackedFile

Array = np.ndarray
ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class Scaling:
    """x -> (clip(x, low, high) - mean) / deviation by column; all float64 [D]. A column without spread becomes 0."""

    low: Tensor
    high: Tensor
    mean: Tensor
    deviation: Tensor

    def apply(self, values: Array) -> Tensor:
        """float [N,D] -> float32 [N,D]; missing values (NaN) become 0, the mean."""
        scale = torch.where(self.deviation > 0, 1 / self.deviation.clamp(min=1e-300), torch.zeros_like(self.deviation))
        out = torch.empty(values.shape, dtype=torch.float32)
        for start in range(0, len(values), ROWS_AT_ONCE):
            part = torch.from_numpy(np.asarray(values[start : start + ROWS_AT_ONCE], np.float64))
            part = torch.maximum(torch.minimum(part, self.high), self.low)
            out[start : start + ROWS_AT_ONCE] = ((part - self.mean) * scale).nan_to_num_(nan=0.0).float()
        return out


def raw_values(
    packed: PackedFile, model: FusionConfig, modality: str, present: Array, tokens: Array | None = None
) -> Array:
    """float32 [rows of the file, D], NaN where a value is missing and in rows that are not `present` (bool [rows]).

    tokens: int [rows, L], where the model reads text.
    """
    config = model.tabular[modality]
    if config.labels:
        values = np.concatenate([one_hot(packed, name) for name in config.labels], axis=1)
    elif config.thumbnail is not None:
        values = thumbnails(packed, config.thumbnail)
    elif config.words:
        assert tokens is not None
        values = word_counts(tokens, packed.vocab_size, packed.pad_token)
    else:
        values = packed.read(f"tabular/{modality}").astype(np.float32)
    values[~present] = np.nan
    return values


def num_columns(packed: PackedFile, model: FusionConfig, modality: str) -> int:
    """Width of `raw_values`."""
    config = model.tabular[modality]
    if config.labels:
        return sum(len(packed.label_classes[name]) for name in config.labels)
    if config.thumbnail is not None:
        assert packed.image_shape is not None
        return config.thumbnail**2 * packed.image_shape[2]
    if config.words:
        return packed.vocab_size
    return len(packed.tabular_columns[modality])


def one_hot(packed: PackedFile, label: str) -> Array:
    """float32 [rows, classes]; zeros where a label is missing."""
    codes = packed.read(f"label/{label}")
    return (codes[:, None] == np.arange(len(packed.label_classes[label]))).astype(np.float32)


def thumbnails(packed: PackedFile, size: int) -> Array:
    """float32 [rows, size * size * channels] in 0..1: means over areas of the pictures.

    Raises ValueError for pictures smaller than that.
    """
    assert packed.image_shape is not None, "modalities.present_rows refuses it"
    height, width, channels = packed.image_shape
    if size > min(height, width):
        raise ValueError(
            f"thumbnail: {size} exceeds the pictures of {height} x {width}; set {min(height, width)} or less"
        )
    out = np.empty((packed.num_rows, size * size * channels), np.float32)
    for start in range(0, packed.num_rows, ROWS_AT_ONCE):
        rows = np.arange(start, min(start + ROWS_AT_ONCE, packed.num_rows))
        pictures = torch.from_numpy(packed.read("image", rows)).permute(0, 3, 1, 2).float() / 255
        out[rows] = torch.nn.functional.adaptive_avg_pool2d(pictures, size).flatten(1).numpy()
    return out


def word_counts(tokens: Array, vocab_size: int, pad_token: int) -> Array:
    """float32 [rows, vocab_size]: log(1 + how often a token occurs)."""
    counts = np.zeros((len(tokens), vocab_size), np.float32)
    np.add.at(counts, (np.arange(len(tokens))[:, None], tokens), (tokens != pad_token).astype(np.float32))
    return np.log1p(counts)


def corrupted_tokens(tokens: Array, share: float, vocab_size: int, pad_token: int, random_seed: int) -> Array:
    """int [N,L] with `share` of all words (neither padding nor a row's first and last token) replaced by random tokens;
    the same for the same seed."""
    random = np.random.default_rng((random_seed, 0x70C))
    words = tokens != pad_token
    words[:, 0] = False
    last = tokens.shape[1] - 1 - np.argmax((tokens != pad_token)[:, ::-1], axis=1)
    words[np.arange(len(tokens)), last] = False
    hit = words & (random.random(tokens.shape) < share)
    drawn = random.integers(5, vocab_size, tokens.shape)  # behind the special tokens
    return np.where(hit, drawn, tokens).astype(tokens.dtype)
