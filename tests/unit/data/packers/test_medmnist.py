"""MedMNIST: npz files under their published names, official split."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedhpc.data.hdf5 import PackedFile

from .trees import label, pack, refused, split_names

ROWS = {"train": 300, "val": 20, "test": 30}  # more than one block of train


def arrays(shape: tuple[int, ...], num_labels: int = 8, width: int = 1) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    out = {}
    for split, n in ROWS.items():
        out[f"{split}_images"] = random.integers(0, 256, (n, *shape), dtype=np.uint8)
        out[f"{split}_labels"] = random.integers(0, num_labels, (n, width)).astype(np.uint8)
    return out


def write(path: Path, **changes: Any) -> dict[str, np.ndarray]:
    content = {**arrays((28, 28, 3)), **changes}
    np.savez_compressed(path, **content)
    return content


def given(path: Path) -> tuple[object, ...]:
    return ("medmnist", path, "-o", path.parent / "out.h5")


def test_colour_set(tmp_path: Path) -> None:
    content = write(tmp_path / "bloodmnist.npz")
    pack(*given(tmp_path / "bloodmnist.npz"))
    with PackedFile(tmp_path / "out.h5") as packed:
        packed.verify()
        assert packed.num_rows == 350 and packed.image_shape == (28, 28, 3) and packed.name == "bloodmnist"
        whole = np.concatenate([content[f"{split}_images"] for split in ROWS])
        assert np.array_equal(packed.read("image"), whole)
        codes = np.concatenate([content[f"{split}_labels"] for split in ROWS])[:, 0]
        assert np.array_equal(packed.read("label/label"), codes) and packed.label_classes["label"][6] == "neutrophil"
        assert split_names(packed) == [split for split, n in ROWS.items() for _ in range(n)]
        assert packed.row_ids()[300] == "val/000000" and packed.licence == "CC BY 4.0"
        assert "300, 20, 30 rows in train, val, test; the current release has 11959, 1712, 3421" in packed.note


def test_grey_set_of_64_px_with_a_limit(tmp_path: Path) -> None:
    content = write(tmp_path / "pneumoniamnist_64.npz", **arrays((64, 64), 2))
    pack(*given(tmp_path / "pneumoniamnist_64.npz"), "--limit", 35, "--image-size", 32)
    with PackedFile(tmp_path / "out.h5") as packed:
        assert packed.num_rows == 35 and packed.image_shape == (32, 32, 1)
        assert packed.attribute("dataset_version") == "pneumoniamnist_64"
        assert packed.row_ids()[-1] == "test/000020" and split_names(packed).count("train") == 30
        taken = [
            *content["train_labels"][0::10, 0],
            *content["val_labels"][0::10, 0],
            *content["test_labels"][0::10, 0],
        ]
        assert packed.read("label/label").tolist() == [int(code) for code in taken]
    pack(*given(tmp_path / "pneumoniamnist_64.npz"), "--limit", 35, "--overwrite")
    with PackedFile(tmp_path / "out.h5") as packed:
        assert np.array_equal(packed.read("image")[29, :, :, 0], content["train_images"][290])


def test_several_findings_a_picture(tmp_path: Path) -> None:
    findings = arrays((28, 28), 2, 14)
    findings["train_labels"][:2] = 0
    findings["train_labels"][1, [3, 13]] = 1
    write(tmp_path / "chestmnist.npz", **findings)
    pack(*given(tmp_path / "chestmnist.npz"))
    with PackedFile(tmp_path / "out.h5") as packed:
        assert label(packed, "primary_finding")[:2] == ["none", "infiltration"]
        assert label(packed, "hernia")[:2] == ["absent", "present"] and len(packed.label_classes) == 15


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"val_labels": np.full((20, 1), 8, np.uint8)}, "val_labels must lie in 0..7"),
        ({"val_labels": np.zeros((20, 2), np.uint8)}, "val_labels must be integers [n, 1]"),
        ({"test_images": np.zeros((30, 28, 28, 28), np.uint8)}, "test_images must be uint8 [30, H, W]"),
        ({"test_images": np.zeros((29, 28, 28, 3), np.uint8)}, "test_images must be uint8 [30, H, W]"),
        ({"train_images": np.zeros((300, 28, 28, 3), np.float32)}, "train_images must be uint8 [300, H, W]"),
        ({"val_images": np.zeros((20, 14, 14, 3), np.uint8)}, "set --image-size"),
    ],
)
def test_other_arrays_are_refused(tmp_path: Path, changes: dict[str, np.ndarray], message: str) -> None:
    write(tmp_path / "bloodmnist.npz", **changes)
    refused(message, *given(tmp_path / "bloodmnist.npz"))


def test_other_files_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "bloodmnist.npz"
    refused("does not exist: give a file as https://medmnist.com", *given(file))
    content = write(file)
    del content["test_labels"]
    np.savez(file, **content)
    refused("lacks test_labels; it holds test_images", *given(file))
    file.write_bytes(b"torn")
    refused("is truncated or no npz file", *given(file))
    for name, message in (("organmnist3d_64.npz", "3-D sets"), ("mine.npz", "no name of MedMNIST v2")):
        (tmp_path / name).write_bytes(b"")
        refused(message, *given(tmp_path / name))
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3, object), allow_pickle=True)  # a pickle inside an npz is not loaded
    with zipfile.ZipFile(file, "w") as archive:
        for key, value in write(tmp_path / "x.npz").items():
            plain = io.BytesIO()
            np.save(plain, value)
            archive.writestr(f"{key}.npy", buffer.getvalue() if key == "val_labels" else plain.getvalue())
    refused("val_labels cannot be read", *given(file))
