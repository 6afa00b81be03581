"""Writing a packed file: all or nothing, pictures streamed by rows. Its format: :mod:`fedhpc.data.content`."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

import h5py
import numpy as np

from fedhpc.data.content import SCHEMA_VERSION, content_checksum

Array = np.ndarray
_CHUNK_BYTES = 1 << 20


class PackWriter:
    """Context manager that writes one packed file.

    Everything goes to a temporary name in the same folder. At a clean end the file is checked, synced to disk and
    renamed; after any exception, KeyboardInterrupt included, it is removed: an interrupted pack leaves nothing at the
    final name.

    Pictures are added in row order by `add_images` or `add_encoded`, in as many calls as one likes; every other column
    is set once, whole. `row_id` and `split` are required; `patient` defaults to `row_id`, `site` to one site with the
    set's name. Raises ValueError where columns disagree, and when `path` exists and `overwrite` is False.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        name: str,
        source: str,
        licence: str,
        command: str = "",
        generated: bool = False,
        note: str = "",
        extra: Mapping[str, str] | None = None,
        gzip: bool = False,
        chunk_rows: int | None = None,
        overwrite: bool = False,
    ) -> None:
        self.path = Path(path)
        for key, value in (("name", name), ("source", source), ("licence", licence)):
            if not value.strip():
                raise ValueError(f"a packed file needs a {key}: set --{key}")
        if self.path.exists() and not overwrite:
            raise ValueError(f"{self.path} exists already: choose another name, delete it, or set --overwrite")
        self._attrs: dict[str, str | int | bool] = {
            **(extra or {}),
            "fedhpc_schema": SCHEMA_VERSION,
            "name": name,
            "source": source,
            "licence": licence,
            "command": command,
            "note": note,
            "generated": generated,
        }
        self._compression = "gzip" if gzip else None
        self._chunk_rows = chunk_rows
        self._temporary = self.path.with_name(f".{self.path.name}.{uuid.uuid4().hex}.partial")
        self._lengths: dict[str, int] = {}
        self._digests: dict[str, hashlib._Hash] = {}
        self._offsets: list[int] = [0]
        self._patients: list[str] | None = None
        self._row_ids: list[str] | None = None
        self._split: Array | None = None
        self._image_rows = 0
        self._tokenizer_set = False

    # ---------------------------------------------------------------------------------------------- all or nothing
    def __enter__(self) -> PackWriter:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = h5py.File(self._temporary, "w-")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._finish()
                self._file.close()
                with open(self._temporary, "rb+") as written:
                    os.fsync(written.fileno())
                os.replace(self._temporary, self.path)
                _sync_folder(self.path.parent)
        finally:
            self._file.close()
            self._temporary.unlink(missing_ok=True)

    # ------------------------------------------------------------------------------------------------------ images
    def add_images(self, images: Array) -> None:
        """Append uint8 [n, H, W, C] decoded pictures. A row without a picture is zeros, and absent in `set_present`."""
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3):
            raise ValueError(f"images must be uint8 [n, H, W, 1 or 3], not {images.dtype} {list(images.shape)}")
        if "image_bytes/data" in self._file:
            raise ValueError("a packed file holds decoded or encoded pictures, not both")
        if "image" not in self._file:
            self._create("image", images.shape[1:], np.uint8)
        dataset = self._file["image"]
        if dataset.shape[1:] != images.shape[1:]:
            raise ValueError(f"pictures of shape {images.shape[1:]} after {dataset.shape[1:]}: set --image-size")
        self._append("image", images)
        self._image_rows += len(images)

    def add_encoded(self, pictures: Sequence[bytes], *, height: int, width: int, channels: int) -> None:
        """Append JPEG or PNG bytes as they are; all decode to [height, width, channels]. Empty bytes: no picture."""
        if "image" in self._file:
            raise ValueError("a packed file holds decoded or encoded pictures, not both")
        if "image_bytes/data" not in self._file:
            self._create("image_bytes/data", (), np.uint8)
            self._file["image_bytes"].attrs.update(height=height, width=width, channels=channels)
            # The size belongs to the content: kept on the dataset too, whose attributes the checksum covers.
            self._file["image_bytes/data"].attrs.update(height=height, width=width, channels=channels)
        attrs = self._file["image_bytes"].attrs
        if (attrs["height"], attrs["width"], attrs["channels"]) != (height, width, channels):
            raise ValueError("encoded pictures differ in size: pack without --keep-encoded, with --image-size")
        self._append("image_bytes/data", np.frombuffer(b"".join(pictures), np.uint8))
        for picture in pictures:
            self._offsets.append(self._offsets[-1] + len(picture))
        self._image_rows += len(pictures)

    def _create(self, path: str, shape: tuple[int, ...], dtype: type) -> None:
        size = int(np.prod(shape, dtype=np.int64)) or 1
        rows = self._chunk_rows if self._chunk_rows and shape else max(1, _CHUNK_BYTES // size)
        self._file.create_dataset(
            path, (0, *shape), dtype, maxshape=(None, *shape), chunks=(rows, *shape), compression=self._compression
        )
        self._digests[path] = hashlib.sha256()

    def _append(self, path: str, values: Array) -> None:
        dataset, start = self._file[path], self._file[path].shape[0]
        dataset.resize(start + len(values), axis=0)
        dataset[start:] = values
        self._digests[path].update(np.ascontiguousarray(values).tobytes())

    # --------------------------------------------------------------------------------------------- all other columns
    def set_text(self, texts: Sequence[str]) -> None:
        """UTF-8 text of every row; "" where there is none (say so in `set_present`)."""
        self._strings("text", texts)

    def set_tokens(self, tokens: Array, *, tokenizer_json: str, pad_token: int, vocab_size: int) -> None:
        """int32 [N, L] token ids, and the tokenizer that made them."""
        if tokens.ndim != 2 or (tokens.size and not 0 <= int(tokens.min()) <= int(tokens.max()) < vocab_size):
            raise ValueError(f"tokens must be [N, L] within 0..{vocab_size - 1}")
        self._column("tokens", tokens.astype(np.int32)).attrs.update(pad_token=pad_token, vocab_size=vocab_size)
        self._file.create_dataset("tokenizer", data=tokenizer_json, dtype=h5py.string_dtype())

    def set_captions(self, captions: Sequence[Sequence[str]], tokens: Array) -> None:
        """All texts of each row, where it has several, and their token ids int32 [M, L], made by the tokenizer of
        `set_tokens`: row after row. `set_text` keeps one text a row, which readers that know no captions see."""
        counts = [len(own) for own in captions]
        flat = [text for own in captions for text in own]
        if tokens.ndim != 2 or len(tokens) != len(flat):
            raise ValueError(f"tokens of {len(flat)} captions must be [{len(flat)}, L], not {list(tokens.shape)}")
        if "captions" in self._file:
            raise ValueError("column captions is set twice")
        self._lengths["captions"] = len(counts)
        self._file.create_dataset("captions/text", data=flat, shape=(len(flat),), dtype=h5py.string_dtype())
        self._column("captions/tokens", tokens.astype(np.int32), counted=False)
        self._column("captions/offsets", np.cumsum([0, *counts]).astype(np.int64), counted=False)

    def set_label(self, name: str, codes: Array, classes: Sequence[str]) -> None:
        """int [N] class indices, -1 where missing."""
        self._coded(f"label/{_plain(name)}", codes, "classes", classes, lowest=-1)

    def set_site(self, codes: Array, names: Sequence[str]) -> None:
        """int [N] site indices; every row has a site."""
        self._coded("site", codes, "names", names, lowest=0)

    def set_tabular(self, name: str, values: Array, columns: Sequence[str]) -> None:
        """float32 or float16 [N, D], with the names of its D columns. Missing values are NaN."""
        if values.dtype not in (np.float32, np.float16) or values.ndim != 2 or values.shape[1] != len(columns):
            raise ValueError(f"tabular/{name} must be float32 or float16 [N, {len(columns)}], not "
                             f"{values.dtype} {list(values.shape)}")  # fmt: skip
        self._column(f"tabular/{_plain(name)}", values).attrs["columns"] = json.dumps(list(columns))

    def set_masks(self, masks: Array, mask_row: Array) -> None:
        """uint8 [M, H, W] masks, and int [N]: each row's mask, -1 for none."""
        self.add_masks(masks)
        self.set_mask_rows(mask_row)

    def add_masks(self, masks: Array) -> None:
        """Append uint8 [m, H, W] masks; `set_mask_rows` says whose they are."""
        if masks.dtype != np.uint8 or masks.ndim != 3:
            raise ValueError(f"masks must be uint8 [M, H, W], not {masks.dtype} {list(masks.shape)}")
        if "mask" not in self._file:
            self._create("mask", masks.shape[1:], np.uint8)
        self._append("mask", masks)

    def set_mask_rows(self, mask_row: Array) -> None:
        """int [N]: each row's mask among those added, -1 for none."""
        count = len(self._file["mask"]) if "mask" in self._file else 0
        if mask_row.size and not -1 <= int(mask_row.min()) <= int(mask_row.max()) < count:
            raise ValueError(f"mask_row must lie in -1..{count - 1}")
        self._column("mask_row", mask_row.astype(np.int64))

    def set_patients(self, patients: Sequence[str]) -> None:
        """Patient of every row: what splits and clients never cut in two."""
        self._strings("patient", patients)
        self._patients = list(patients)

    def set_row_ids(self, row_ids: Sequence[str]) -> None:
        """Unique name of every row in the raw dataset."""
        seen: set[str] = set()
        for row_id in row_ids:
            if row_id in seen:
                raise ValueError(f"row id {row_id!r} occurs twice: row ids must be unique")
            seen.add(row_id)
        self._strings("row_id", row_ids)
        self._row_ids = list(row_ids)

    def set_split(self, codes: Array) -> None:
        """int [N]: 0 train, 1 val, 2 test."""
        if codes.size and not 0 <= int(codes.min()) <= int(codes.max()) <= 2:
            raise ValueError("split must be 0 (train), 1 (val) or 2 (test)")
        self._split = codes.astype(np.int8)
        self._column("split", self._split)

    def set_present(self, modality: str, present: Array) -> None:
        """bool [N]: which rows have ``image``, ``text`` or ``tabular/<name>``. All rows, when not set."""
        self._column(f"present/{modality}", present.astype(bool))

    def _coded(self, path: str, codes: Array, key: str, names: Sequence[str], *, lowest: int) -> None:
        if len(set(names)) != len(names):
            raise ValueError(f"{path}: {key} occur twice: {sorted(names)}")
        if codes.size and not lowest <= int(codes.min()) <= int(codes.max()) < len(names):
            raise ValueError(f"{path}: values must lie in {lowest}..{len(names) - 1}, they span "
                             f"{int(codes.min())}..{int(codes.max())}")  # fmt: skip
        self._column(path, codes.astype(np.int32)).attrs[key] = json.dumps(list(names))

    def _column(self, path: str, values: Array, *, counted: bool = True) -> h5py.Dataset:
        if path in self._file:
            raise ValueError(f"column {path} is set twice")
        if counted:
            self._lengths[path] = len(values)
        size = int(np.prod(values.shape[1:], dtype=np.int64)) * values.dtype.itemsize
        rows = min(max(1, len(values)), self._chunk_rows or max(1, _CHUNK_BYTES // max(1, size)))
        if not values.size:
            return self._file.create_dataset(path, data=values)
        return self._file.create_dataset(
            path, data=values, chunks=(rows, *values.shape[1:]), compression=self._compression
        )

    def _strings(self, path: str, values: Sequence[str]) -> None:
        if path in self._file:
            raise ValueError(f"column {path} is set twice")
        self._lengths[path] = len(values)
        self._file.create_dataset(path, data=list(values), shape=(len(values),), dtype=h5py.string_dtype())

    # -------------------------------------------------------------------------------------------------- the end
    def _finish(self) -> None:
        if self._row_ids is None or self._split is None:
            raise ValueError("row ids and a split are required: call set_row_ids and set_split")
        num_rows = len(self._row_ids)
        if num_rows == 0:
            raise ValueError(f"no rows are left to write to {self.path}")
        if self._patients is None:
            self.set_patients(self._row_ids)
        if "site" not in self._file:
            self.set_site(np.zeros(num_rows, np.int32), [str(self._attrs["name"])])
        if "image_bytes/data" in self._file:
            self._file.create_dataset("image_bytes/offsets", data=np.asarray(self._offsets, np.int64))
        has_image = "image" in self._file or "image_bytes/data" in self._file
        if has_image:
            self._lengths["image"] = self._image_rows
        tabular = [f"tabular/{name}" for name in self._file.get("tabular", ())]
        modalities = (["image"] if has_image else []) + (["text"] if "text" in self._file else []) + tabular
        for modality in modalities:
            if f"present/{modality}" not in self._file:
                self.set_present(modality, np.ones(num_rows, bool))
        wrong = {path: length for path, length in self._lengths.items() if length != num_rows}
        if wrong:
            raise ValueError(f"{num_rows} row ids, but these columns have other lengths: {wrong}")
        self._refuse_cut_patients()
        self._file.attrs.update(self._attrs)
        self._file.attrs["num_rows"] = num_rows
        self._file.attrs["created"] = datetime.now(UTC).isoformat(timespec="seconds")
        known = {path: digest.digest() for path, digest in self._digests.items()}
        self._file.attrs["checksum"] = content_checksum(self._file, known)

    def _refuse_cut_patients(self) -> None:
        assert self._patients is not None and self._split is not None
        first: dict[str, int] = {}
        for patient, split in zip(self._patients, self._split.tolist(), strict=True):
            if first.setdefault(patient, split) != split:
                raise ValueError(f"patient {patient!r} is in two splits: split by patient")


def _plain(name: str) -> str:
    if not name or "/" in name or name.startswith("."):
        raise ValueError(f"{name!r} cannot name a column: use letters, digits, '_' and '-'")
    return name


def _sync_folder(folder: Path) -> None:
    """Make the rename itself survive a power cut, where the system can (POSIX)."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass  # some parallel file systems refuse to sync folders; the data itself is synced
    finally:
        os.close(handle)
