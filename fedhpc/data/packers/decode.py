"""From rows to checked pixels, in chunks of rows: what any rank can do alone.

What needs the rows before (do pictures agree in size?) is left to :mod:`fedhpc.data.packers.pictures`, which sees the
chunks in order. So a chunk is the same whoever decodes it, and whenever.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from fedhpc.data.images import decode_image, letterbox
from fedhpc.data.packers.dicom import decode_dicom, is_dicom, require_pydicom
from fedhpc.data.packers.source import BadRow, PictureSource, Row

if TYPE_CHECKING:
    from fedhpc.data.packers.table import TablePlan

CHUNK_ROWS = 16

Flaw = tuple[str, str]  # reason and message of a BadRow


@dataclass
class RowResult:
    """What became of one row's picture and mask."""

    shape: tuple[int, int, int] | None = None  # [H, W, C] in the file; None: no picture
    size: int = 0  # bytes in the chunk's blob: pixels, or the encoded picture
    mask: int = -1  # place among the chunk's masks
    unread: Flaw | None = None  # there is nothing to look at
    unfit: Flaw | None = None  # found after the checks against earlier rows, which are told first


@dataclass
class MaskResult:
    """A mask; rows of one chunk that name the same one share it."""

    key: str | int
    shape: tuple[int, int]
    size: int  # bytes in the blob, zlib
    has_classes: bool  # holds values other than 0 and 255


@dataclass
class Chunk:
    """The rows index * CHUNK_ROWS and following; the blob is their pictures, then their masks."""

    index: int
    stamp: str  # changes with the rows' cells and the pictures' files
    rows: list[RowResult] = field(default_factory=list)
    masks: list[MaskResult] = field(default_factory=list)
    blob: bytes = b""


class Decoder:
    """Reads, decodes and resizes the pictures and masks of chunks of `rows`."""

    def __init__(
        self, plan: TablePlan, rows: Sequence[Row], images: PictureSource, masks: PictureSource | None
    ) -> None:
        self._plan, self._rows, self._images, self._masks = plan, rows, images, masks
        self.num_chunks = -(-len(rows) // CHUNK_ROWS)

    def rows(self, index: int) -> Sequence[Row]:
        return self._rows[index * CHUNK_ROWS : (index + 1) * CHUNK_ROWS]

    def decode(self, index: int, between: Callable[[], None] = lambda: None) -> Chunk:
        """One chunk; `between` is called after each row. Raises ValueError for what no row is to blame for."""
        chunk = Chunk(index, self.stamp(index))  # before reading: a picture that changes meanwhile changes the stamp
        pictures: list[bytes] = []
        masks: list[bytes] = []
        places: dict[str | int, int] = {}
        for row in self.rows(index):
            result = RowResult()
            try:
                data, image = self._picture(row)
            except BadRow as error:
                result.unread = (error.reason, str(error))
            else:
                if image is not None:
                    result.shape = image.shape
                    pictures.append(data if self._plan.keep_encoded else image.tobytes())
                    result.size = len(pictures[-1])
                try:
                    self._check_encoding(row, data)
                    result.mask = self._mask(row, image, chunk.masks, masks, places)
                except BadRow as error:
                    result.unfit = (error.reason, str(error))
            chunk.rows.append(result)
            between()
        chunk.blob = b"".join([*pictures, *masks])
        return chunk

    def stamp(self, index: int) -> str:
        """Where the rows of a chunk stand, what they name, and size and time of those files."""
        digest = hashlib.sha256()
        for row in self.rows(index):
            parts = [row.where]
            for source in (self._images, self._masks):
                try:
                    key = source.key(row) if source is not None else None
                    parts += [str(key), source.stamp(key, row) if source is not None and key is not None else ""]
                except BadRow as error:
                    parts.append(str(error))
            digest.update("\0".join([*parts, ""]).encode())
        return digest.hexdigest()[:32]

    def _picture(self, row: Row) -> tuple[bytes, np.ndarray | None]:
        key = self._images.key(row)
        if key is None:
            if self._plan.allow_missing:
                return b"", None
            raise BadRow("no picture", f"{row.where}: the row names no picture: fill it in, or set --allow-missing "
                         "where rows may lack one")  # fmt: skip
        data = self._images.read(key, row)
        if is_dicom(data):
            require_pydicom()
        try:
            image = _decode(data, self._plan.channels)
        except ValueError as error:
            raise BadRow("unreadable picture", f"{row.where}: picture {key}: {error}") from error
        return data, letterbox(image, self._plan.image_size) if self._plan.image_size else image

    def _check_encoding(self, row: Row, data: bytes) -> None:
        if self._plan.keep_encoded and data and not data.startswith((b"\xff\xd8\xff", b"\x89PNG")):
            raise BadRow("not JPEG or PNG", f"{row.where}: picture {self._images.key(row)} is neither JPEG nor PNG: "
                         "pack without --keep-encoded")  # fmt: skip

    def _mask(
        self, row: Row, image: np.ndarray | None, found: list[MaskResult], packed: list[bytes],
        places: dict[str | int, int],
    ) -> int:  # fmt: skip
        """Place of the row's mask among the chunk's, -1 for none."""
        key = self._masks.key(row) if self._masks else None
        if self._masks is None or key is None:
            return -1
        if image is None:
            raise BadRow("mask without picture", f"{row.where}: the row has a mask but no picture: remove the mask")
        if key not in places:
            try:
                mask = decode_image(self._masks.read(key, row), 1)
            except BadRow:
                raise
            except ValueError as error:
                raise BadRow("unreadable mask", f"{row.where}: mask {key}: {error}") from error
            if self._plan.image_size:
                mask = letterbox(mask, self._plan.image_size, nearest=True)
            packed.append(zlib.compress(mask.tobytes(), 1))
            values = np.unique(mask)
            classes = bool(((values > 0) & (values < 255)).any())
            found.append(MaskResult(key, mask.shape[:2], len(packed[-1]), classes))
            places[key] = len(found) - 1
        height, width = found[places[key]].shape
        if (height, width) != image.shape[:2]:
            raise BadRow("mask of other size", f"{row.where}: mask {key} is {width}x{height}, its "
                         f"picture {image.shape[1]}x{image.shape[0]}: set --image-size, or mend the mask")  # fmt: skip
        return places[key]


def _decode(data: bytes, channels: int | None) -> np.ndarray:
    if not is_dicom(data):
        return decode_image(data, channels)
    image = decode_dicom(data)
    if channels is None or image.shape[2] == channels:
        return image
    if channels == 1:
        raise ValueError("a colour DICOM picture: set --channels 3")
    return np.repeat(image, 3, axis=2)
