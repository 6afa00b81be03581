"""Copies the table of pbc_wbcatt with fewer training rows; validation and test rows stay. --rest: the other training
rows too, into a folder of their own, and nothing else.

python benchmarks/dgb/fewer_rows.py ../shared/data/pbc_wbcatt data/pbc_1000 --train 1000
fedhpc pack pbc-wbcatt data/pbc_1000 -o data/pbc_1000.h5 --image-size 32 --captioned-only
"""

from __future__ import annotations

import argparse
import csv
import random
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("to", type=Path)
    parser.add_argument("--train", type=int, required=True, help="training rows to keep, drawn at random")
    parser.add_argument("--rest", type=Path)
    parser.add_argument("--random-seed", type=int, default=0)
    given = parser.parse_args()
    with (given.source / "metadata.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["caption"]]
    train = [place for place, row in enumerate(rows) if row["split"] == "train"]
    kept = set(random.Random(given.random_seed).sample(train, given.train))
    write(given.to, [row for place, row in enumerate(rows) if row["split"] != "train" or place in kept], given.source)
    if given.rest is not None:
        others = [row for place, row in enumerate(rows) if row["split"] == "train" and place not in kept]
        write(given.rest, others, given.source)


def write(folder: Path, rows: list[dict[str, str]], source: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    pictures = folder / "pbc64_jpeg.npz"
    if not pictures.exists():
        pictures.symlink_to((source / pictures.name).resolve())


if __name__ == "__main__":
    main()
