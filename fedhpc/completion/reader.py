"""A packed file, its frozen features and what completes its rows, read as one file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from fedhpc.completion.features import FeatureFile
from fedhpc.data.hdf5 import PackedFile

Array = np.ndarray
BOTH = ("image", "text")
MODALITY_OF = {
    "image": "image",
    "image_tokens": "image",
    "tokens": "text",
    "text_tokens": "text",
    "text_mask": "text",
}


@dataclass(frozen=True)
class Made:
    """What stands in for one modality of some rows.

    Attributes:
        rows: int64 [n] of the packed file, sorted.
        donor: int64 [n]: rows of the packed file whose modality these rows get; or
        columns: by batch name, [n, ...].
    """

    rows: Array
    donor: Array | None = None
    columns: Mapping[str, Array] = field(default_factory=dict)


class JointReader:
    """Columns of a packed file and of its features by row, with stand-ins in place of what a row lacks.

    has: by modality, bool [rows]: what is there, stand-ins included. Where it is False the column reads as zeros (and
    padding), so that what was withheld is nowhere seen.
    """

    def __init__(
        self, packed: PackedFile, features: FeatureFile | None, has: Mapping[str, Array], made: Mapping[str, Made]
    ) -> None:
        self._packed = packed
        self._features = features
        self.has = has
        self._made = made

    def read(self, column: str, rows: Array | None = None) -> Array:
        """[len(rows), ...] in the order of `rows`, or all."""
        rows = np.arange(self._packed.num_rows) if rows is None else np.asarray(rows)
        modality = MODALITY_OF.get(column)
        if modality is None:
            return self._packed.read(column, rows)
        made = self._made.get(modality)
        place = None if made is None else _places(made.rows, rows)
        source = rows
        if made is not None and place is not None and made.donor is not None:
            source = np.where(place >= 0, made.donor[place], rows)
        values = self._file_of(column).read(column, source)
        if made is not None and place is not None and column in made.columns:
            values[place >= 0] = made.columns[column][place[place >= 0]]
        if modality in self.has:
            values[~self.has[modality][rows]] = self._packed.pad_token if column == "tokens" else 0
        return values

    def decoded_bytes(self, column: str) -> int:
        return self._file_of(column).decoded_bytes(column)

    def chunk_rows(self, column: str) -> int:
        return self._file_of(column).chunk_rows(column)

    def _file_of(self, column: str) -> PackedFile | FeatureFile:
        if column in ("image_tokens", "text_tokens", "text_mask"):
            assert self._features is not None, f"{column} is a column of cached features"
            return self._features
        return self._packed


def _places(known: Array, rows: Array) -> Array:
    """Where each of `rows` stands in the sorted `known`; -1 where it does not."""
    if not len(known):
        return np.full(len(rows), -1)
    place = np.minimum(np.searchsorted(known, rows), len(known) - 1)
    return np.where(known[place] == rows, place, -1)
