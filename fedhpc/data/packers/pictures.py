"""Read, check, resize and write pictures (and masks) row by row."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import numpy as np

from fedhpc.data.hdf5 import PackWriter
from fedhpc.data.images import decode_image, letterbox
from fedhpc.data.packers.dicom import decode_dicom, is_dicom, require_pydicom
from fedhpc.data.packers.source import BadRow, PictureSource, Row

if TYPE_CHECKING:
    from fedhpc.data.packers.table import TablePlan

_BATCH = 64


class PictureWriter:
    """Adds one row's picture (and mask) at a time; nothing of a row is kept when `add` raises BadRow."""

    def __init__(self, plan: TablePlan, pack: PackWriter, images: PictureSource, masks: PictureSource | None) -> None:
        self._plan, self._pack, self._images, self._mask_source = plan, pack, images, masks
        self._shape: tuple[int, int, int] | None = None
        self._channels = plan.channels
        self._absent = 0  # rows without a picture before the first with one: the shape is not known yet
        self._present: list[bool] = []
        self._batch: list[np.ndarray] = []
        self._encoded: list[bytes] = []
        self._masks: list[bytes] = []  # zlib: thousands take little; all must be seen before the first is written
        self._mask_values = np.zeros(256, bool)
        self._mask_rows: list[int] = []
        self._mask_of: dict[str | int, int] = {}

    def add(self, row: Row) -> None:
        key = self._images.key(row)
        if key is None and not self._plan.allow_missing:
            raise BadRow("no picture", f"{row.where}: the row names no picture: fill it in, or set --allow-missing "
                         "where rows may lack one")  # fmt: skip
        data, image = self._load(key, row) if key is not None else (b"", None)
        mask = self._mask(row, image)
        self._present.append(image is not None)
        self._mask_rows.append(mask)
        if self._shape is None and image is None:
            self._absent += 1
            return
        if image is not None and self._shape is None:
            self._shape = image.shape
            self._channels = image.shape[2]
            for _ in range(self._absent):
                self._push(b"", None)
        self._push(data, image)

    def _load(self, key: str | int, row: Row) -> tuple[bytes, np.ndarray]:
        data = self._images.read(key, row)
        if is_dicom(data):
            require_pydicom()
        try:
            image = _decode(data, self._plan.channels)
        except ValueError as error:
            raise BadRow("unreadable picture", f"{row.where}: picture {key}: {error}") from error
        if self._channels is not None and image.shape[2] != self._channels:
            raise BadRow("other channels", f"{row.where}: picture {key} has {image.shape[2]} channels, earlier ones "
                         f"{self._channels}: set --channels 1 or 3 to convert")  # fmt: skip
        if self._plan.image_size:
            image = letterbox(image, self._plan.image_size)
        if self._shape is not None and image.shape != self._shape:
            raise BadRow("other size", f"{row.where}: picture {key} is {image.shape[1]}x{image.shape[0]}, earlier ones "
                         f"{self._shape[1]}x{self._shape[0]}: set --image-size")  # fmt: skip
        if self._plan.keep_encoded and not data.startswith((b"\xff\xd8\xff", b"\x89PNG")):
            raise BadRow("not JPEG or PNG", f"{row.where}: picture {key} is neither JPEG nor PNG: pack without "
                         "--keep-encoded")  # fmt: skip
        return data, image

    def _mask(self, row: Row, image: np.ndarray | None) -> int:
        """Index of the row's mask, -1 for none; a mask that several rows name is kept once."""
        key = self._mask_source.key(row) if self._mask_source else None
        if self._mask_source is None or key is None:
            return -1
        if image is None:
            raise BadRow("mask without picture", f"{row.where}: the row has a mask but no picture: remove the mask")
        if key in self._mask_of:
            return self._mask_of[key]
        try:
            mask = decode_image(self._mask_source.read(key, row), 1)
        except BadRow:
            raise
        except ValueError as error:
            raise BadRow("unreadable mask", f"{row.where}: mask {key}: {error}") from error
        if self._plan.image_size:
            mask = letterbox(mask, self._plan.image_size, nearest=True)
        if mask.shape[:2] != image.shape[:2]:
            raise BadRow("mask of other size", f"{row.where}: mask {key} is {mask.shape[1]}x{mask.shape[0]}, its "
                         f"picture {image.shape[1]}x{image.shape[0]}: set --image-size, or mend the mask")  # fmt: skip
        self._mask_values[np.unique(mask)] = True
        self._masks.append(zlib.compress(mask.tobytes(), 1))
        self._mask_of[key] = len(self._masks) - 1
        return self._mask_of[key]

    def _push(self, data: bytes, image: np.ndarray | None) -> None:
        assert self._shape is not None
        if self._plan.keep_encoded:
            self._encoded.append(data)
        else:
            self._batch.append(np.zeros(self._shape, np.uint8) if image is None else image)
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
        if self._mask_source is not None:
            if not self._masks:
                raise ValueError(f"{self._plan.table}: no row has a mask: remove --mask-column / --mask-npz")
            binary = not self._mask_values[1:255].any()
            for start in range(0, len(self._masks), _BATCH):
                raw = b"".join(zlib.decompress(mask) for mask in self._masks[start : start + _BATCH])
                masks = np.frombuffer(raw, np.uint8).reshape(-1, *self._shape[:2])
                self._pack.add_masks((masks > 0).astype(np.uint8) if binary else masks)
            self._pack.set_mask_rows(np.asarray(self._mask_rows, np.int64))


def _decode(data: bytes, channels: int | None) -> np.ndarray:
    if not is_dicom(data):
        return decode_image(data, channels)
    image = decode_dicom(data)
    if channels is None or image.shape[2] == channels:
        return image
    if channels == 1:
        raise ValueError("a colour DICOM picture: set --channels 3")
    return np.repeat(image, 3, axis=2)
