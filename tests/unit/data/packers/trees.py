"""Made-up archives for the tests: small pictures, tables, and one call of the command line."""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

from fedhpc.data.hdf5 import PackedFile
from fedhpc.data.packers.cli import pack_app

Cells = list[dict[str, str]]


def picture(number: int, channels: int = 1, size: tuple[int, int] = (32, 32)) -> np.ndarray:
    """uint8 [H, W] or [H, W, 3]: another one for each number."""
    shape = size if channels == 1 else (*size, 3)
    return np.random.default_rng(number).integers(0, 256, shape, dtype=np.uint8)


def save(path: Path, array: np.ndarray) -> None:
    """Written in the format of its ending; PNG, TIFF and BMP keep every pixel."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def write_table(path: Path, rows: Cells, delimiter: str = ",") -> None:
    """A CSV file, compressed where the name ends with .gz."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    data = text.getvalue().encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def without(rows: Cells, column: str) -> Cells:
    return [{name: cell for name, cell in row.items() if name != column} for row in rows]


def call(*arguments: object) -> Result:
    return CliRunner().invoke(pack_app, [str(argument) for argument in arguments])


def pack(*arguments: object) -> Result:
    """A call that must succeed."""
    result = call(*arguments)
    assert result.exit_code == 0, result.output
    return result


def refused(message: str, *arguments: object) -> None:
    """A call that must end with one message that holds `message`, and leave no file."""
    result = call(*arguments)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    assert message in result.output, result.output
    out = Path(str(arguments[arguments.index("-o") + 1]))
    assert not list(out.parent.glob(f"*{out.name}*"))


def split_names(packed: PackedFile) -> list[str]:
    return [("train", "val", "test")[code] for code in packed.read("split")]


def label(packed: PackedFile, name: str) -> list[str]:
    """The class of every row, "" where it is missing."""
    names = [*packed.label_classes[name], ""]
    return [names[code] for code in packed.read(f"label/{name}")]


def by_id(packed: PackedFile, values: Sequence[Any]) -> dict[str, Any]:
    return dict(zip(packed.row_ids().tolist(), values, strict=True))


def sites(packed: PackedFile) -> list[str]:
    return [packed.site_names[code] for code in packed.read("site")]


def assert_patients_whole(packed: PackedFile) -> None:
    pairs = set(zip(packed.patients().tolist(), split_names(packed), strict=True))
    assert len(pairs) == len(set(packed.patients().tolist()))
