"""All pictures and masks of a table into the packed file: decoded by a crew of ranks, checked and written in order."""

from __future__ import annotations

import importlib.metadata
import itertools
import zlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fedhpc.data.hdf5 import PackWriter
from fedhpc.data.packers.crew import Crew, run
from fedhpc.data.packers.decode import CHUNK_ROWS, Chunk, Decoder, RowResult
from fedhpc.data.packers.progress import Bar
from fedhpc.data.packers.source import BadRow, PictureSource, Row, Skipped
from fedhpc.data.packers.spool import Spool, Stored, say

if TYPE_CHECKING:
    from fedhpc.data.packers.table import TablePlan

_BATCH = 64
_VERSION = 1  # raise it whenever the same picture and options give other pixels

Task = tuple[int, Stored | None]  # a chunk, and what is known of it from an earlier, interrupted pack


def worker(decoder: Decoder, spool: Spool) -> Callable[[Task, Callable[[], None]], Chunk | int]:
    """What every rank does with a task: the decoded chunk, or its number where the stored one is still good."""

    def work(task: Task, between: Callable[[], None]) -> Chunk | int:
        index, stored = task
        if stored is not None and decoder.stamp(index) == stored.stamp and stored.is_whole(spool.blobs):
            return index
        return decoder.decode(index, between)

    return work


def pixel_options(plan: TablePlan) -> dict[str, Any]:
    """What shapes pixels, for the journal of an interrupted pack; the rows themselves are stamped chunk by chunk."""
    names = (
        "table", "image_column", "image_root", "image_npz", "npz_index_column", "mask_column", "mask_root", "mask_npz",
        "mask_index_column", "image_size", "channels", "keep_encoded", "allow_missing",
    )  # fmt: skip
    options: dict[str, Any] = {"version": _VERSION, "chunk_rows": CHUNK_ROWS}
    for name in names:
        value = getattr(plan, name)
        options[name] = value if value is None or isinstance(value, bool | int) else str(value)
    for library in ("pillow", "pydicom"):
        try:
            options[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            options[library] = None
    return options


def write_pictures(
    rows: Sequence[Row], writer: PictureWriter, decoder: Decoder, spool: Spool, crew: Crew, skipped: Skipped
) -> list[Row]:
    """Rank 0: decode all chunks, and write them in order as they come. Returns the rows that were kept."""
    if spool.num_rows:
        say(f"going on where an earlier pack ended: {spool.num_rows} of {len(rows)} rows were decoded before")
    tasks = [(index, spool.known.get(index)) for index in range(decoder.num_chunks)]
    arrived: set[int] = set()
    kept: list[Row] = []
    done = 0
    with Bar(len(rows), "pictures") as bar:
        for result in run(crew, tasks, worker(decoder, spool)):
            fresh = isinstance(result, Chunk)
            if isinstance(result, Chunk):
                index = result.index
                spool.add(result)
            else:
                index = result
            bar.advance(len(decoder.rows(index)), counts=fresh)
            arrived.add(index)
            while done in arrived:
                for row, error in writer.add(decoder.rows(done), spool.take(done)):
                    if error is None:
                        kept.append(row)
                    else:
                        skipped.take(error)
                arrived.remove(done)
                done += 1
    return kept


class PictureWriter:
    """Adds chunks in order; nothing of a bad row is kept."""

    def __init__(self, plan: TablePlan, pack: PackWriter, images: PictureSource, has_masks: bool) -> None:
        self._plan, self._pack, self._images, self._has_masks = plan, pack, images, has_masks
        self._shape: tuple[int, int, int] | None = None
        self._channels = plan.channels
        self._absent = 0  # rows without a picture before the first with one: the shape is not known yet
        self._present: list[bool] = []
        self._batch: list[np.ndarray] = []
        self._encoded: list[bytes] = []
        self._masks: list[bytes] = []  # zlib: thousands take little; all must be seen before the first is written
        self._has_classes = False
        self._mask_rows: list[int] = []
        self._mask_of: dict[str | int, int] = {}

    def add(self, rows: Sequence[Row], chunk: Chunk) -> list[tuple[Row, BadRow | None]]:
        """Each row with what is wrong with it."""
        sizes = [*(result.size for result in chunk.rows), *(mask.size for mask in chunk.masks)]
        edges = np.cumsum([0, *sizes]).tolist()
        parts = [memoryview(chunk.blob)[a:b] for a, b in itertools.pairwise(edges)]
        masks = parts[len(chunk.rows) :]
        outcome: list[tuple[Row, BadRow | None]] = []
        for row, result, picture in zip(rows, chunk.rows, parts, strict=False):
            try:
                self._check(row, result)
            except BadRow as error:
                outcome.append((row, error))
                continue
            outcome.append((row, None))
            self._mask_rows.append(-1 if result.mask < 0 else self._mask(chunk, result.mask, masks))
            self._present.append(result.shape is not None)
            self._place(result, picture)
        return outcome

    def _check(self, row: Row, result: RowResult) -> None:
        """Against the rows before."""
        if result.unread is not None:
            raise BadRow(*result.unread)
        shape = result.shape
        if shape is not None:
            if self._channels is not None and shape[2] != self._channels:
                raise BadRow("other channels", f"{row.where}: picture {self._images.key(row)} has {shape[2]} channels, "
                             f"earlier ones {self._channels}: set --channels 1 or 3 to convert")  # fmt: skip
            if self._shape is not None and shape != self._shape:
                raise BadRow("other size", f"{row.where}: picture {self._images.key(row)} is {shape[1]}x{shape[0]}, "
                             f"earlier ones {self._shape[1]}x{self._shape[0]}: set --image-size")  # fmt: skip
        if result.unfit is not None:
            raise BadRow(*result.unfit)

    def _mask(self, chunk: Chunk, place: int, parts: Sequence[memoryview]) -> int:
        """Its number in the file; a mask that several rows name is kept once."""
        mask = chunk.masks[place]
        if mask.key not in self._mask_of:
            self._has_classes |= mask.has_classes
            self._masks.append(bytes(parts[place]))
            self._mask_of[mask.key] = len(self._masks) - 1
        return self._mask_of[mask.key]

    def _place(self, result: RowResult, picture: memoryview) -> None:
        if self._shape is None:
            if result.shape is None:
                self._absent += 1
                return
            self._shape = result.shape
            self._channels = result.shape[2]
            for _ in range(self._absent):
                self._push(RowResult(), memoryview(b""))
        self._push(result, picture)

    def _push(self, result: RowResult, picture: memoryview) -> None:
        assert self._shape is not None
        if self._plan.keep_encoded:
            self._encoded.append(bytes(picture))
        elif result.shape is None:
            self._batch.append(np.zeros(self._shape, np.uint8))
        else:
            self._batch.append(np.frombuffer(picture, np.uint8).reshape(self._shape))
        if max(len(self._batch), len(self._encoded)) >= _BATCH:
            self._flush()

    def _flush(self) -> None:
        if self._batch:
            self._pack.add_images(np.stack(self._batch))
        if self._encoded:
            assert self._shape is not None
            height, width, channels = self._shape
            self._pack.add_encoded(self._encoded, height=height, width=width, channels=channels)
        self._batch, self._encoded = [], []

    def finish(self) -> None:
        """Write what is left. Masks of only 0 and 255 become 0 and 1; other values are classes and stay."""
        if not self._present:
            return
        if self._shape is None:
            raise ValueError(f"{self._plan.table}: no row has a picture: remove --image-column / --image-npz")
        self._flush()
        self._pack.set_present("image", np.asarray(self._present))
        if self._has_masks:
            if not self._masks:
                raise ValueError(f"{self._plan.table}: no row has a mask: remove --mask-column / --mask-npz")
            for start in range(0, len(self._masks), _BATCH):
                raw = b"".join(zlib.decompress(mask) for mask in self._masks[start : start + _BATCH])
                masks = np.frombuffer(raw, np.uint8).reshape(-1, *self._shape[:2])
                self._pack.add_masks(masks if self._has_classes else (masks > 0).astype(np.uint8))
            self._pack.set_mask_rows(np.asarray(self._mask_rows, np.int64))
