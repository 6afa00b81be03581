"""A small set of pictures for `fedhpc pack table`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

ROWS = 70


def write_pictures(folder: Path) -> list[str]:
    """A folder of pictures with its table; the options of the command."""
    random = np.random.default_rng(0)
    lines = ["file,kind,set"]
    for k in range(ROWS):
        pixels = random.integers(0, 256, (24, 16), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{k}.png")
        lines.append(f"{k}.png,{'ab'[k % 2]},{('train', 'val', 'test')[k % 3]}")
    (folder / "rows.csv").write_text("\n".join(lines))
    return [
        "pack", "table", "rows.csv", "--name", "rows", "--source", "a test", "--licence", "CC0", "--image-column",
        "file", "--label", "kind", "--split-column", "set",
    ]  # fmt: skip
