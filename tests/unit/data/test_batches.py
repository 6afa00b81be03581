"""Rows to batches: every row once an epoch, the right pixels, and the same from memory and from disk."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedhpc.config.schema import DataConfig
from fedhpc.data.batches import BatchMaker, Source, batch_sizes, shuffled

N = 60
CPU = torch.device("cpu")


class Reader:
    """Stands for a packed file; remembers which rows were read."""

    def __init__(self) -> None:
        random = np.random.default_rng(0)
        self.columns = {
            "image": random.integers(0, 256, (N, 6, 5, 3), dtype=np.uint8),
            "tokens": random.integers(0, 50, (N, 7), dtype=np.int32),
        }
        self.asked: list[np.ndarray | None] = []

    def read(self, column: str, rows: np.ndarray | None = None) -> np.ndarray:
        self.asked.append(rows)
        return self.columns[column] if rows is None else self.columns[column][rows]

    def decoded_bytes(self, column: str) -> int:
        return 3 << 20 if column == "image" else 1000

    def chunk_rows(self, column: str) -> int:
        return 4


def maker(memory_mib: int = 64, channels_last: bool = True, **config: Any) -> tuple[BatchMaker, Reader]:
    reader = Reader()
    source = Source(reader, {"image": "image", "tokens": "tokens"}, memory_mib)
    return BatchMaker(source, DataConfig.model_validate({"phantom": {}, **config}), CPU, channels_last), reader


@pytest.mark.parametrize("memory_mib", [64, 1], ids=["memory", "streamed"])
def test_an_epoch_has_every_row_once_with_its_own_pixels(memory_mib: int) -> None:
    made, reader = maker(memory_mib, image_mean=[0.5, 0.4, 0.3], image_std=[0.5, 0.2, 0.1], max_tokens=5)
    rows = torch.arange(3, 43)
    seen = []
    for batch in made.training(rows, 7, 6, False, torch.Generator().manual_seed(0)):
        index = batch["row"].numpy()
        pixels = reader.columns["image"][index].astype(np.float64) / 255
        expected = (pixels - [0.5, 0.4, 0.3]) / [0.5, 0.2, 0.1]
        np.testing.assert_allclose(batch["image"].permute(0, 2, 3, 1).numpy(), expected, atol=1e-5)
        assert batch["image"].is_contiguous(memory_format=torch.channels_last)
        assert np.array_equal(batch["tokens"].numpy(), reader.columns["tokens"][index][:, :5])
        seen += index.tolist()
    assert sorted(seen) == rows.tolist()
    assert seen != rows.tolist()


def test_streaming_reads_each_chunk_in_few_stretches() -> None:
    order = shuffled(torch.arange(N), 4, torch.Generator().manual_seed(0), buffer_chunks=3).tolist()
    assert sorted(order) == list(range(N))
    buffers = [order[start : start + 12] for start in range(0, N, 12)]
    for buffer in buffers:
        assert len({row // 4 for row in buffer}) == 3, "a buffer holds whole chunks"
    assert [row // 4 for row in order] != sorted(row // 4 for row in order)


@given(st.integers(1, 100), st.integers(1, 40), st.booleans())
def test_batch_sizes_cover_the_epoch(rows: int, size: int, drop_last: bool) -> None:
    sizes = batch_sizes(rows, size, drop_last)
    assert all(0 < s <= size for s in sizes) and sizes
    assert sum(sizes) == rows or (drop_last and sum(sizes) == rows - rows % size)


def test_steps_go_over_as_many_epochs_as_they_need() -> None:
    made, _ = maker()
    rows = torch.arange(10)
    batches = list(made.training(rows, 4, 5, True, torch.Generator().manual_seed(0)))
    assert [len(b["row"]) for b in batches] == [4] * 5
    again = list(made.training(rows, 4, 5, True, torch.Generator().manual_seed(0)))
    assert all(torch.equal(a["row"], b["row"]) for a, b in zip(batches, again, strict=True))
    other = list(made.training(rows, 4, 5, True, torch.Generator().manual_seed(1)))
    assert any(not torch.equal(a["row"], b["row"]) for a, b in zip(batches, other, strict=True))


def test_crops_shift_and_flips_mirror_training_pictures_only() -> None:
    made, reader = maker(random_crop=1, image_mean=[0.0], image_std=[1.0])
    rows = torch.arange(20)
    shifts = set()
    for batch in made.training(rows, 20, 1, True, torch.Generator().manual_seed(0)):
        for row, image in zip(batch["row"].tolist(), batch["image"], strict=True):
            original = reader.columns["image"][row].astype(np.float32) / 255
            padded = np.pad(original, ((1, 1), (1, 1), (0, 0)), mode="edge")
            picture = image.permute(1, 2, 0).numpy()
            fits = [
                (y, x)
                for y in range(3)
                for x in range(3)
                if np.allclose(padded[y : y + 6, x : x + 5], picture, atol=1e-6)
            ]
            assert fits, "each picture is a crop of itself"
            shifts |= set(fits)
    assert len(shifts) > 3
    plain = next(iter(made.ordered(rows, 20)))
    pixels = plain["image"].permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(pixels, reader.columns["image"][:20] / 255.0, atol=1e-6)
    flipping, reader = maker(random_flip=True, image_mean=[0.0], image_std=[1.0])
    mirrored = 0
    for batch in flipping.training(rows, 20, 1, True, torch.Generator().manual_seed(0)):
        for row, image in zip(batch["row"].tolist(), batch["image"], strict=True):
            original = reader.columns["image"][row] / 255.0
            picture = image.permute(1, 2, 0).numpy()
            is_mirrored = np.allclose(picture, original[:, ::-1], atol=1e-6)
            assert is_mirrored or np.allclose(picture, original, atol=1e-6)
            mirrored += is_mirrored
    assert 3 < mirrored < 17


def test_windows_are_invisible(monkeypatch: pytest.MonkeyPatch) -> None:
    made, _ = maker()
    whole = list(made.training(torch.arange(N), 4, 15, True, torch.Generator().manual_seed(0)))
    monkeypatch.setattr("fedhpc.data.batches.WINDOW_BYTES", 4 * 97 * 9)
    parts = list(made.training(torch.arange(N), 4, 15, True, torch.Generator().manual_seed(0)))
    assert all(torch.equal(a["image"], b["image"]) for a, b in zip(whole, parts, strict=True))
