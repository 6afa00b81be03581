"""Pack pictures that are arrays already (CIFAR, MedMNIST): no decoding, blocks of rows at a time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fedhpc.data.hdf5 import SPLITS, PackWriter
from fedhpc.data.images import letterbox
from fedhpc.data.packers.table import PackReport

Array = np.ndarray
BLOCK = 256  # rows at a time


@dataclass(frozen=True, kw_only=True)
class ArrayPlan:
    """What is written beside the pictures; N rows, in the order of the blocks."""

    out: Path
    name: str
    source: str
    licence: str
    note: str
    command: str
    version: str = ""
    row_ids: Sequence[str]
    splits: Sequence[str]
    """train, val or test of each row."""
    labels: Mapping[str, tuple[Array, Sequence[str]]] = field(default_factory=dict)
    """Name -> codes int [N] (-1: missing) and the names of the classes."""
    image_size: int | None = None
    """Letterbox to this many pixels; None keeps the size."""
    overwrite: bool = False


def pack_arrays(blocks: Iterable[Array], plan: ArrayPlan) -> PackReport:
    """Write the pictures, blocks of uint8 [n, H, W, 1 or 3], and the columns of `plan`. Raises ValueError."""
    note = plan.note
    if plan.image_size:
        note += f" Pictures: longer side scaled to {plan.image_size} px (bicubic), centred on black."
    with PackWriter(
        plan.out, name=plan.name, source=plan.source, licence=plan.licence, command=plan.command, note=note.strip(),
        overwrite=plan.overwrite, extra={"dataset_version": plan.version} if plan.version else None,
    ) as pack:  # fmt: skip
        for block in blocks:
            pack.add_images(_sized(block, plan.image_size))
        pack.set_row_ids(plan.row_ids)
        pack.set_split(np.asarray([SPLITS.index(split) for split in plan.splits], np.int8))
        for name, (codes, classes) in plan.labels.items():
            pack.set_label(name, codes, classes)
    return PackReport(plan.out, len(plan.row_ids), {}, 0)


def _sized(block: Array, size: int | None) -> Array:
    if size is None or block.shape[1:3] == (size, size):
        return block
    return np.stack([letterbox(image, size) for image in block])
