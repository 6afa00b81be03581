"""Copies the table of pbc_wbcatt with fewer training rows; validation and test rows stay.

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
    parser.add_argument("--random-seed", type=int, default=0)
    given = parser.parse_args()
    with (given.source / "metadata.csv").open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        names = list(reader.fieldnames or ())
        rows = [row for row in reader if row["caption"]]
    train = [place for place, row in enumerate(rows) if row["split"] == "train"]
    kept = set(random.Random(given.random_seed).sample(train, given.train))
    given.to.mkdir(parents=True, exist_ok=True)
    with (given.to / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(row for place, row in enumerate(rows) if row["split"] != "train" or place in kept)
    pictures = given.to / "pbc64_jpeg.npz"
    if not pictures.exists():
        pictures.symlink_to((given.source / pictures.name).resolve())


if __name__ == "__main__":
    main()
