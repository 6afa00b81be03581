"""BCCD cells: PBC's classes, smears kept whole, unknown words named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedhpc.data.hdf5 import PackedFile
from fedhpc.data.packers.bccd_cells import PBC_CLASSES

from .trees import Cells, assert_patients_whole, label, pack, picture, refused, without
from .trees import write_table as write

N = 24


def rows() -> Cells:
    kinds = [("WBC", "NEUTROPHIL"), ("WBC", ""), ("RBC", ""), ("Platelets", "")]
    return [
        {
            "index": str(k), "smear": f"BloodImage_{k // 3:05d}", "label": kinds[k % 4][0],
            "wbc_type": kinds[k % 4][1], "xmin": "1", "ymin": "1", "xmax": "9", "ymax": "9",
        }
        for k in range(N)
    ]  # fmt: skip


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    folder = tmp_path / "bccd_cells"
    write(folder / "metadata.csv", rows())
    parts = []
    for k in range(N):
        Image.fromarray(picture(k, 3, (16, 16))).save(folder / "one.jpg")
        parts.append((folder / "one.jpg").read_bytes())
    (folder / "one.jpg").unlink()
    offsets = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64)
    np.savez(folder / "bccd64_jpeg.npz", jpeg=np.frombuffer(b"".join(parts), np.uint8), offsets=offsets)
    return folder


def given(tree: Path) -> tuple[object, ...]:
    return ("bccd-cells", tree, "-o", tree.parent / "out.h5")


def test_cells_get_the_classes_of_pbc(tree: Path) -> None:
    pack(*given(tree), "--split", "0.5,0.25,0.25")
    with PackedFile(tree.parent / "out.h5") as packed:
        packed.verify()
        assert packed.num_rows == N and packed.image_shape == (16, 16, 3)
        assert packed.label_classes["cell_type"] == list(PBC_CLASSES)
        assert label(packed, "cell_type")[:4] == ["neutrophil", "", "", "platelet"]
        assert label(packed, "kind")[:4] == ["white cell", "white cell", "red cell", "platelet"]
        assert packed.patients()[2:4].tolist() == ["BloodImage_00000", "BloodImage_00001"]
        assert_patients_whole(packed)
        assert np.bincount(packed.read("split")).tolist() == [12, 6, 6]


def test_typed_only_and_resized(tree: Path) -> None:
    pack(*given(tree), "--typed-only", "--image-size", 32)
    with PackedFile(tree.parent / "out.h5") as packed:
        assert packed.image_shape == (32, 32, 3) and set(label(packed, "cell_type")) == {"neutrophil", "platelet"}
        assert packed.row_ids()[:2].tolist() == ["0", "3"]


def test_bad_tables_are_named(tree: Path) -> None:
    refused("--split is '1'", *given(tree), "--split", "1")
    bad = rows()
    bad[4]["wbc_type"] = "BLAST"
    write(tree / "metadata.csv", bad)
    refused("metadata.csv, line 6: label is 'WBC' and wbc_type 'BLAST'", *given(tree))
    write(tree / "metadata.csv", without(rows(), "smear"))
    refused("metadata.csv has no column 'smear' (bccd-cells)", *given(tree))
    write(tree / "metadata.csv", bad)
    assert "dropped 1 bad rows: unknown class 1" in pack(*given(tree), "--skip-bad").output
