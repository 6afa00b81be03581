"""From rows of a packed file to batches on a device.

Columns that fit the budget are held in memory and indexed a window of many batches at a time, never item by item.
Larger ones are read in chunk order: chunks are shuffled, then rows within a buffer of some chunks.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from fedhpc.config.schema import DataConfig
from fedhpc.interfaces import Batch

WINDOW_BYTES = 32 << 20  # decoded float32 pictures prepared at a time


class RowReader(Protocol):
    """What is needed of a packed file."""

    def read(self, column: str, rows: np.ndarray | None = None) -> np.ndarray: ...

    def decoded_bytes(self, column: str) -> int: ...

    def chunk_rows(self, column: str) -> int: ...


class Source:
    """The columns that a run uses, all rows of the file, shared by all clients of a rank.

    Args:
        reader: the open file.
        columns: batch name -> column of the file.
        memory_mib: columns are loaded while they fit, small ones first.
        given: columns that stand in for the file's, by batch name [rows of the file, ...].
    """

    def __init__(
        self,
        reader: RowReader,
        columns: Mapping[str, str],
        memory_mib: int,
        given: Mapping[str, Tensor] | None = None,
    ) -> None:
        self._reader = reader
        self._columns = dict(columns)
        self._memory: dict[str, Tensor] = dict(given or {})
        columns = {name: column for name, column in columns.items() if name not in self._memory}
        left = memory_mib << 20
        for name, column in sorted(columns.items(), key=lambda item: reader.decoded_bytes(item[1])):
            size = reader.decoded_bytes(column)
            if size <= left:
                self._memory[name] = torch.from_numpy(reader.read(column))
                left -= size
        streamed = [column for name, column in columns.items() if name not in self._memory]
        self.chunk_rows = max((reader.chunk_rows(column) for column in streamed), default=0)  # 0: all in memory

    def take(self, rows: Tensor, names: Collection[str] | None = None) -> dict[str, Tensor]:
        """Raw columns of `rows` (int64 [n]), in their order, on the CPU: all, or those of these names."""
        taken = {}
        for name, column in self._columns.items():
            if names is not None and name not in names:
                continue
            if name in self._memory:
                taken[name] = self._memory[name].index_select(0, rows)
            else:
                taken[name] = torch.from_numpy(self._reader.read(column, rows.numpy()))
        return taken


def shuffled(rows: Tensor, chunk_rows: int, generator: torch.Generator, buffer_chunks: int = 16) -> Tensor:
    """One epoch's order of `rows`. With chunk_rows = 0 a uniform permutation; else chunks in random order, and rows
    shuffled within buffers of `buffer_chunks` chunks, so that each chunk is read once an epoch."""
    if not chunk_rows:
        return rows[torch.randperm(len(rows), generator=generator)]
    chunk = torch.div(rows, chunk_rows, rounding_mode="floor")
    _, place = torch.unique(chunk, return_inverse=True)
    rank = torch.randperm(int(place.max()) + 1, generator=generator)[place]  # random place of each row's chunk
    group = torch.div(rank, buffer_chunks, rounding_mode="floor")
    noise = torch.randperm(len(rows), generator=generator)
    return rows[torch.argsort(group * len(rows) + noise)]


class BatchMaker:
    """Turns rows into batches: decode, augment, normalise, move to the device.

    Args:
        names: columns of a batch; all of the source's when not given.
    """

    def __init__(
        self,
        source: Source,
        config: DataConfig,
        device: torch.device,
        channels_last: bool,
        names: frozenset[str] | None = None,
    ) -> None:
        self._names = names
        self._parts: dict[frozenset[str], BatchMaker] = {}
        self._source = source
        self._config = config
        self._device = device
        self._channels_last = channels_last
        self._scale: Tensor | None = None
        self._shift: Tensor | None = None

    def only(self, names: frozenset[str]) -> BatchMaker:
        """One whose batches have only these columns (and "row"): for a client that lacks the others."""
        if names not in self._parts:
            self._parts[names] = BatchMaker(self._source, self._config, self._device, self._channels_last, names)
        return self._parts[names]

    def training(
        self, rows: Tensor, batch_size: int, num_batches: int, drop_last: bool, generator: torch.Generator
    ) -> Iterator[Batch]:
        """`num_batches` batches over as many reshuffled epochs as it takes.

        Args:
            rows: int64 [n], the client's training rows.
            drop_last: leave out an epoch's last, smaller batch, unless it is the only one.
        """
        made = 0
        while made < num_batches:
            order = shuffled(rows, self._source.chunk_rows, generator)
            sizes = batch_sizes(len(order), batch_size, drop_last)[: num_batches - made]
            made += len(sizes)
            yield from self._windows(order[: sum(sizes)], sizes, generator)

    def drawn(self, parts: Sequence[Tensor], generator: torch.Generator) -> Iterator[Batch]:
        """A training batch of each part (rows, int64 [n]); of no rows just an empty "row"."""
        order = torch.cat(list(parts))
        full = self._windows(order, [len(part) for part in parts if len(part)], generator)
        for part in parts:
            yield next(full) if len(part) else {"row": part}

    def ordered(self, rows: Tensor, batch_size: int) -> Iterator[Batch]:
        """All rows in order, no augmentation, the last batch may be smaller."""
        yield from self._windows(rows, batch_sizes(len(rows), batch_size, drop_last=False), None)

    def _windows(self, order: Tensor, sizes: Sequence[int], generator: torch.Generator | None) -> Iterator[Batch]:
        start = 0
        while start < len(sizes):
            first = sum(sizes[:start])
            per_window = max(1, WINDOW_BYTES // max(self._row_bytes(order) * sizes[start], 1))
            window = sizes[start : start + per_window]
            rows = order[first : first + sum(window)]
            columns = self._prepare(self._source.take(rows, self._names), generator)
            columns["row"] = rows
            parts = {name: column.split(list(window)) for name, column in columns.items()}
            for index in range(len(window)):
                yield {name: part[index] for name, part in parts.items()}
            start += len(window)

    def _row_bytes(self, order: Tensor) -> int:
        if not hasattr(self, "_row_bytes_known"):
            one = self._source.take(order[:1], self._names)
            self._row_bytes_known = 4 * sum(column.numel() for column in one.values())
        return self._row_bytes_known

    def _prepare(self, raw: dict[str, Tensor], generator: torch.Generator | None) -> dict[str, Tensor]:
        if "image" in raw:
            image = raw["image"]  # [n,H,W,C] uint8, or float32 that is normalised already
            if generator is not None and self._config.random_crop:
                image = _random_crop(image, self._config.random_crop, generator)
            if generator is not None and self._config.random_flip:
                mirror = torch.rand(len(image), generator=generator) < 0.5
                image = torch.where(mirror[:, None, None, None], image.flip(2), image)
            image = image.to(self._device, non_blocking=True)
            if not image.is_floating_point():
                image = self._normalise(image)
            # [n,H,W,C] seen as [n,C,H,W] is channels_last already: no copy.
            image = image.permute(0, 3, 1, 2)
            raw["image"] = image if self._channels_last else image.contiguous()
        if "tokens" in raw:
            raw["tokens"] = raw["tokens"][:, : self._config.max_tokens].to(torch.int64)
        if "label" in raw:
            raw["label"] = raw["label"].to(torch.int64)
        return {name: column.to(self._device, non_blocking=True) for name, column in raw.items()}

    def _normalise(self, image: Tensor) -> Tensor:
        if self._scale is None or self._shift is None:
            std = torch.tensor(self._config.image_std, device=self._device)
            mean = torch.tensor(self._config.image_mean, device=self._device)
            self._scale, self._shift = 1 / (255 * std), -mean / std
        return image.to(torch.float32).mul_(self._scale).add_(self._shift)


def batch_sizes(num_rows: int, batch_size: int, drop_last: bool) -> list[int]:
    """Sizes of an epoch's batches.

    >>> batch_sizes(10, 4, drop_last=True), batch_sizes(10, 4, drop_last=False), batch_sizes(3, 4, drop_last=True)
    ([4, 4], [4, 4, 2], [3])
    """
    full, rest = divmod(num_rows, batch_size)
    return [batch_size] * full + ([rest] if rest and (not drop_last or not full) else [])


def _random_crop(image: Tensor, padding: int, generator: torch.Generator) -> Tensor:
    """Shift each picture by up to `padding` pixels each way; edge values fill the border. [n,H,W,C] -> [n,H,W,C]."""
    n, height, width, _ = image.shape
    shift = torch.randint(-padding, padding + 1, (2, n, 1), generator=generator)
    y = (torch.arange(height) + shift[0]).clamp_(0, height - 1)
    x = (torch.arange(width) + shift[1]).clamp_(0, width - 1)
    return image[torch.arange(n)[:, None, None], y[:, :, None], x[:, None, :]]
