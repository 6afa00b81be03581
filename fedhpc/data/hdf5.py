"""Reading a packed file. Its format: :mod:`fedhpc.data.content`; writing it: :mod:`fedhpc.data.writer`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np

from fedhpc.data.content import BLOCK_BYTES, SCHEMA_VERSION, SPLITS, column_paths, content_checksum, row_bytes
from fedhpc.data.heap import MOST_BYTES, endless_heap
from fedhpc.data.images import decode_image
from fedhpc.data.structure import problems
from fedhpc.data.writer import PackWriter

__all__ = ["SCHEMA_VERSION", "SPLITS", "PackWriter", "PackedFile"]

Array = np.ndarray
CONTIGUOUS_BYTES = 1 << 16  # read together where a column is not chunked


class PackedFile:
    """One packed dataset, opened read-only and without locks: any number of ranks may read it at the same time.

    Nothing but attributes is read before it is asked for. Raises FileNotFoundError, or ValueError for a file that is
    truncated, not HDF5, not packed by fedhpc, or of another schema version.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._file = _open(self.path)
        try:
            self._check_heaps(MOST_BYTES)
            with self._reading("its head"):
                self._check()
        except BaseException:
            self._file.close()
            raise
        self._offsets: Array | None = None

    def _check_heaps(self, most_bytes: int | None) -> None:
        """Raises ValueError for strings whose reading would not end."""
        where = endless_heap(self.path, most_bytes)
        if where is not None:
            raise ValueError(f"{self.path} has a damaged string heap at byte {where}: copy or pack it again")

    def _check(self) -> None:
        """Raises ValueError for what is no packed file."""
        version = self._file.attrs.get("fedhpc_schema")
        if version is None:
            raise ValueError(f"{self.path} is HDF5 but not a packed dataset (no attribute fedhpc_schema): "
                             "make one with `fedhpc pack`")  # fmt: skip
        if not np.isscalar(version) or version != SCHEMA_VERSION:
            raise ValueError(f"{self.path} has schema version {str(version)[:20]}, this fedhpc reads {SCHEMA_VERSION}: "
                             "pack it again with this version")  # fmt: skip
        problem = next(problems(self._file), None)
        if problem is not None:
            raise ValueError(f"{self.path} is no whole packed file ({problem}): copy or pack it again")

    def __enter__(self) -> PackedFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()

    @contextmanager
    def _reading(self, what: str) -> Iterator[None]:
        """What HDF5 stumbles over is the user's to know: ValueError. Our own errors pass as they are."""
        try:
            yield
        except UnicodeDecodeError as error:
            raise ValueError(f"{self.path}: {what} is not UTF-8 ({error.reason}): copy or pack it again") from error
        except (OSError, RuntimeError, KeyError, TypeError, OverflowError) as error:
            raise ValueError(f"{self.path}: {what} cannot be read ({error}): copy or pack it again") from error

    # ------------------------------------------------------------------------------------------------- what it is
    def _text_attr(self, key: str) -> str:
        with self._reading(f"the attribute {key}"):
            return str(self._file.attrs.get(key, ""))

    @property
    def num_rows(self) -> int:
        return int(self._file.attrs["num_rows"])

    @property
    def name(self) -> str:
        return self._text_attr("name")

    @property
    def source(self) -> str:
        return self._text_attr("source")

    @property
    def licence(self) -> str:
        return self._text_attr("licence")

    @property
    def command(self) -> str:
        return self._text_attr("command")

    @property
    def created(self) -> str:
        return self._text_attr("created")

    @property
    def note(self) -> str:
        return self._text_attr("note")

    @property
    def checksum(self) -> str:
        return self._text_attr("checksum")

    @property
    def generated(self) -> bool:
        """True: made by a program, not real data."""
        with self._reading("the attribute generated"):
            return bool(np.any(self._file.attrs.get("generated", False)))

    def attribute(self, key: str) -> str | None:
        """A further root attribute (the writer's `extra`)."""
        with self._reading(f"the attribute {key}"):
            value = self._file.attrs.get(key)
            return None if value is None else str(value)

    @property
    def image_shape(self) -> tuple[int, int, int] | None:
        """Height, width, channels of the decoded pictures; None where the set has none."""
        if "image" in self._file:
            height, width, channels = self._file["image"].shape[1:]
            return int(height), int(width), int(channels)
        if "image_bytes" in self._file:
            attrs = self._file["image_bytes"].attrs
            return int(attrs["height"]), int(attrs["width"]), int(attrs["channels"])
        return None

    @property
    def max_tokens(self) -> int:
        """Length of the token rows; 0 where the set has no text."""
        return int(self._file["tokens"].shape[1]) if "tokens" in self._file else 0

    @property
    def vocab_size(self) -> int:
        return int(self._file["tokens"].attrs["vocab_size"]) if "tokens" in self._file else 0

    @property
    def pad_token(self) -> int:
        return int(self._file["tokens"].attrs["pad_token"]) if "tokens" in self._file else 0

    @property
    def tokenizer_json(self) -> str | None:
        """For ``tokenizers.Tokenizer.from_str``."""
        with self._reading("tokenizer"):
            return str(self._file["tokenizer"].asstr()[()]) if "tokenizer" in self._file else None

    @property
    def label_classes(self) -> dict[str, list[str]]:
        """Names of the classes of each label column."""
        return {name: json.loads(column.attrs["classes"]) for name, column in self._file.get("label", {}).items()}

    @property
    def tabular_columns(self) -> dict[str, list[str]]:
        """Names of the columns of each tabular modality."""
        return {name: json.loads(column.attrs["columns"]) for name, column in self._file.get("tabular", {}).items()}

    @property
    def site_names(self) -> list[str]:
        names: list[str] = json.loads(self._file["site"].attrs["names"])
        return names

    @property
    def modalities(self) -> tuple[str, ...]:
        """Of ``image``, ``text`` and ``tabular/<name>``, those that the set has."""
        plain = [key for key, has in (("image", self.image_shape), ("text", "text" in self._file)) if has]
        return (*plain, *(f"tabular/{name}" for name in self.tabular_columns))

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Everything that `read` knows."""
        strings = {"text", "patient", "row_id", "tokenizer", "captions/text"}
        with self._reading("the list of columns"):
            paths = column_paths(self._file)
        paths = [p for p in paths if p not in strings and not p.startswith("image_bytes/")]
        return tuple(sorted({*paths, *(["image"] if self.image_shape else [])}))

    # ----------------------------------------------------------------------------------------------------- reading
    def read(self, column: str, rows: Array | None = None) -> Array:
        """Values of one column: [len(rows), ...] in the order of `rows` (int [n], repeats allowed), or all rows.

        ``image`` uint8 [n, H, W, C] (decoded where stored encoded), ``tokens`` int32 [n, L], ``label/<name>`` int32
        [n], ``tabular/<name>`` float [n, D], ``site`` int32, ``split`` int8, ``mask_row`` int64, ``present/<modality>``
        bool. ``mask`` uint8 [n, H, W] counts its own rows: those that ``mask_row`` points to; ``captions/tokens`` int32
        [n, L] too: see `caption_offsets`.
        Raises ValueError for an unknown column or rows out of range.
        """
        if column == "image" and "image_bytes" in self._file:
            return self._read_encoded(self._rows(rows, self.num_rows))
        dataset = self._dataset(column)
        with self._reading(f"the column {column}"):
            if rows is None:
                return np.asarray(dataset[()])
            rows = self._rows(rows, dataset.shape[0])
            out = np.empty((len(rows), *dataset.shape[1:]), dataset.dtype)
            for where, start, stop in _spans(rows, self.chunk_rows(column), row_bytes(dataset)):
                out[where] = dataset[start:stop][rows[where] - start]
            return out

    def texts(self, rows: Array | None = None) -> list[str]:
        """Text of the rows, in their order; "" where a row has none."""
        if "text" not in self._file:
            raise ValueError(f"{self.path} has no text")
        return list(self._read_strings("text", rows))

    @cached_property
    def caption_offsets(self) -> Array | None:
        """int64 [N+1]: row i has the captions offsets[i]:offsets[i+1], which is how ``captions/tokens`` counts. None
        where the set has one text a row."""
        if "captions" not in self._file:
            return None
        return self._offsets_of("captions/offsets", int(self._file["captions/text"].shape[0]))

    def captions(self, rows: Array | None = None) -> list[list[str]]:
        """All texts of the rows, in their order; one of them is the row's text in `texts`."""
        offsets = self.caption_offsets
        if offsets is None:
            raise ValueError(f"{self.path} has no captions beside its text")
        rows = self._rows(rows, self.num_rows)
        places = [np.arange(offsets[row], offsets[row + 1]) for row in rows]
        flat = self._read_strings("captions/text", np.concatenate([np.arange(0), *places]))
        ends = np.cumsum([len(own) for own in places])
        return [list(own) for own in np.split(flat, ends[:-1])] if len(rows) else []

    def patients(self, rows: Array | None = None) -> Array:
        """Patient of the rows: array of str."""
        return np.asarray(self._read_strings("patient", rows), dtype=str)

    def row_ids(self, rows: Array | None = None) -> Array:
        """Name of the rows in the raw dataset: array of str, unique."""
        return np.asarray(self._read_strings("row_id", rows), dtype=str)

    def chunk_rows(self, column: str) -> int:
        """Rows that lie together on disk: reading whole chunks in order is fastest."""
        if column == "image" and "image_bytes" in self._file:
            data = self._file["image_bytes/data"]
            together = data.chunks[0] if data.chunks else CONTIGUOUS_BYTES
            return max(1, int(together * self.num_rows // max(1, data.shape[0])))
        dataset = self._dataset(column)
        if dataset.chunks:
            return int(dataset.chunks[0])
        return max(1, int(CONTIGUOUS_BYTES // row_bytes(dataset)))

    def decoded_bytes(self, column: str) -> int:
        """Bytes that the whole column takes in memory."""
        if column == "image" and self.image_shape:
            return self.num_rows * int(np.prod(self.image_shape))
        dataset = self._dataset(column)
        return int(dataset.shape[0]) * row_bytes(dataset)

    def verify(self) -> None:
        """Read everything and compare with the checksum that was written. Raises ValueError when it differs."""
        self._check_heaps(None)
        try:
            found = content_checksum(self._file)
        except (OSError, RuntimeError, KeyError, TypeError, UnicodeDecodeError) as error:
            raise ValueError(f"{self.path} cannot be read to its end ({error}): copy or pack it again") from error
        if found != self.checksum:
            raise ValueError(f"{self.path} was changed or damaged: its checksum is {found[:12]}, {self.checksum[:12]} "
                             "was written: copy or pack it again")  # fmt: skip

    # ---------------------------------------------------------------------------------------------------- inside
    def _dataset(self, column: str) -> h5py.Dataset:
        if column not in self.columns:
            raise ValueError(f"{self.path} has no column {column!r}; it has {', '.join(self.columns)}")
        return self._file[column]

    def _rows(self, rows: Array | None, length: int) -> Array:
        if rows is None:
            return np.arange(length)
        rows = np.asarray(rows)
        if rows.ndim != 1 or (rows.size and rows.dtype.kind not in "iu"):
            raise ValueError(f"rows must be integers [n], not {rows.dtype} {list(rows.shape)}")
        rows = rows.astype(np.int64)
        if rows.size and not 0 <= int(rows.min()) <= int(rows.max()) < length:
            raise ValueError(
                f"{self.path} has rows 0..{length - 1}; {int(rows.min())}..{int(rows.max())} were asked for"
            )
        return rows

    def _read_strings(self, column: str, rows: Array | None) -> Any:
        with self._reading(f"the column {column}"):
            dataset = self._file[column].asstr()
            if rows is None:
                return dataset[()]
            rows = self._rows(rows, dataset.shape[0])
            out = np.empty(len(rows), object)
            for where, start, stop in _spans(rows, 1024, 256):
                out[where] = dataset[start:stop][rows[where] - start]
            return out

    def _offsets_of(self, column: str, end: int) -> Array:
        """int64 [N+1]: where each row begins in a column of `end` items."""
        with self._reading(f"the column {column}"):
            offsets = np.asarray(self._file[column][()], np.int64)
        if offsets[0] != 0 or offsets[-1] != end or np.any(offsets[1:] < offsets[:-1]):
            raise ValueError(f"{self.path}: {column} does not run from 0 to {end}: copy or pack it again")
        return offsets

    def _read_encoded(self, rows: Array) -> Array:
        data, shape = self._file["image_bytes/data"], self.image_shape
        if self._offsets is None:
            self._offsets = self._offsets_of("image_bytes/offsets", int(data.shape[0]))
        offsets = self._offsets
        assert shape is not None
        out = np.zeros((len(rows), *shape), np.uint8)
        mean_bytes = max(1, int(data.shape[0]) // max(1, self.num_rows))
        for where, start, stop in _spans(rows, self.chunk_rows("image"), mean_bytes):
            base = int(offsets[start])
            with self._reading("the column image_bytes/data"):
                packed = data[base : int(offsets[stop])].tobytes()
            for place in where:
                row = int(rows[place])
                picture = packed[int(offsets[row]) - base : int(offsets[row + 1]) - base]
                if picture:
                    out[place] = _decoded(picture, row, self.path, shape)
        return out


def _decoded(picture: bytes, row: int, path: Path, shape: tuple[int, int, int]) -> Array:
    try:
        image = decode_image(picture, shape[2])
    except ValueError as error:
        raise ValueError(f"{path}, row {row}: {error}; copy or pack the file again") from error
    if image.shape != shape:
        raise ValueError(f"{path}, row {row}: a picture of {image.shape}, the file says {shape}: pack it again")
    return image


def _spans(rows: Array, chunk: int, size: int) -> Iterator[tuple[Array, int, int]]:
    """Cut a selection into contiguous reads. Yields (places in `rows`, first row, end) for each run of touched chunks,
    at most BLOCK_BYTES long: HDF5's own point selections take seconds where this takes milliseconds."""
    if not len(rows):
        return
    order = np.argsort(rows, kind="stable")
    ordered = rows[order]
    chunks = ordered // chunk
    longest = max(1, BLOCK_BYTES // (chunk * size))
    cut = np.flatnonzero(np.diff(chunks) > 1) + 1  # a chunk between them is untouched
    for run in np.split(np.arange(len(rows)), cut):
        block = (chunks[run] - chunks[run[0]]) // longest
        for part in np.split(run, np.flatnonzero(np.diff(block)) + 1):
            yield order[part], int(ordered[part[0]]), int(ordered[part[-1]]) + 1


def _open(path: Path) -> h5py.File:
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: make it with `fedhpc pack`, or correct data.path")
    try:
        return h5py.File(path, "r", locking=False)
    except OSError as error:
        if "truncated" in str(error):
            raise ValueError(
                f"{path} is truncated ({error}): the copy or the pack was cut short; do it again"
            ) from error
        if "signature" in str(error):
            raise ValueError(f"{path} is not an HDF5 file: data.path must name a file made by `fedhpc pack`") from error
        raise ValueError(f"{path} cannot be opened: {error}") from error
    except (RuntimeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} cannot be opened, its head is damaged ({error}): copy or pack it again") from error
