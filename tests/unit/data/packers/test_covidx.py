"""COVIDx: lists of words, sources as sites, patients who are in both official lists."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedhpc.data.hdf5 import PackedFile

from .trees import assert_patients_whole, by_id, label, pack, picture, refused, save, sites, split_names

TRAIN = [
    "19 one-a.png normal cohen", "19 one-b.png pneumonia cohen", "ANON7 CR.1.2.840.png COVID-19 actmed",
    "COVID 5 COVID (5).png COVID-19 sirm", "ANON191 in-test-too.png normal actmed",
    *(f"image-{k} image-{k}.png normal rsna" for k in range(20)),
]  # fmt: skip
TEST = ["191 other.png COVID-19 cohen", "ANON191 tested.png COVID-19 actmed"]


def file_of(line: str) -> str:
    return "COVID (5).png" if "(5)" in line else line.split()[1]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    folder = tmp_path / "covidx"
    for part, lines in (("train", TRAIN), ("test", TEST)):
        for k, line in enumerate(lines):
            save(folder / part / file_of(line), picture(k, 3 if k % 2 else 1))
        (folder / f"{part}_COVIDx6.txt").write_text("\n".join(lines) + "\n")
    return folder


def given(tree: Path) -> tuple[object, ...]:
    return ("covidx", tree, "-o", tree.parent / "out.h5", "--image-size", 32)


def test_lists_become_rows(tree: Path) -> None:
    pack(*given(tree), "--val-fraction", 0.3)
    with PackedFile(tree.parent / "out.h5") as packed:
        packed.verify()
        assert packed.num_rows == len(TRAIN) + len(TEST) - 1 and packed.image_shape == (32, 32, 1)
        patient, split = by_id(packed, packed.patients()), by_id(packed, split_names(packed))
        assert patient["train/one-a.png"] == patient["train/one-b.png"] == "cohen:19"
        assert patient["train/COVID (5).png"] == "sirm:COVID 5" and patient["test/other.png"] == "cohen:191"
        assert "train/in-test-too.png" not in patient and "1 training rows of patients who" in packed.note
        assert split["test/tested.png"] == split["test/other.png"] == "test"
        assert {split[f"train/image-{k}.png"] for k in range(20)} == {"train", "val"}
        assert by_id(packed, sites(packed))["train/one-a.png"] == "cohen"
        assert packed.site_names == ["actmed", "cohen", "rsna", "sirm"]
        assert packed.label_classes == {"class": ["normal", "pneumonia", "COVID-19"]}
        assert by_id(packed, label(packed, "class"))["train/CR.1.2.840.png"] == "COVID-19"
        assert np.array_equal(packed.read("image", np.array([0]))[0, :, :, 0], picture(0))
        assert packed.attribute("dataset_version") == "v6" and "actmed, cohen, rsna, sirm" in packed.source
        assert_patients_whole(packed)


def test_binary_lists_no_val_and_limit(tree: Path) -> None:
    for part, lines in (("train", TRAIN), ("test", TEST)):
        text = "\n".join(lines).replace(" normal ", " negative ").replace(" pneumonia ", " negative ")
        (tree / f"{part}_COVIDx6.txt").write_text(text.replace(" COVID-19 ", " positive "))
    pack(*given(tree), "--val-fraction", 0, "--limit", 13)
    with PackedFile(tree.parent / "out.h5") as packed:
        assert packed.num_rows == 13 and packed.label_classes == {"class": ["negative", "positive"]}
        assert set(split_names(packed)) == {"train", "test"}


def test_bad_rows_are_named_or_dropped(tree: Path) -> None:
    (tree / "train/one-b.png").write_bytes(b"torn")
    refused("train_COVIDx6.txt, line 2: picture train/one-b.png: not a readable picture", *given(tree))
    (tree / "train_COVIDx6.txt").write_text("\n".join([*TRAIN, "too short", "5 x.png covid cohen"]))
    refused("train_COVIDx6.txt, line 26: 2 words: patient, filename, class and source were expected", *given(tree))
    (tree / "train/image-3.png").unlink()
    result = pack(*given(tree), "--skip-bad")
    assert "dropped 4 bad rows: bad line 1, missing picture 1, unknown class 1, unreadable picture 1" in result.output
    with PackedFile(tree.parent / "out.h5") as packed:
        packed.verify()
        assert packed.num_rows == len(TRAIN) + len(TEST) - 1 - 2


def test_missing_and_ambiguous_lists_are_refused(tree: Path) -> None:
    (tree / "train_COVIDx7A.txt").write_text("\n".join(TRAIN))
    refused("holds train_COVIDx6.txt, train_COVIDx7A.txt: keep the one", *given(tree))
    pack(*given(tree), "--train-list", tree / "train_COVIDx7A.txt")
    (tree.parent / "out.h5").unlink()
    (tree / "train_COVIDx7A.txt").unlink()
    (tree / "test_COVIDx6.txt").write_text("1 other.png sick cohen\n")
    (tree / "train_COVIDx6.txt").write_text("2 one-a.png ill cohen\n")
    refused("classes are ill, sick: normal, pneumonia, COVID-19, or negative, positive", *given(tree))
    (tree / "test_COVIDx6.txt").write_text("\n")
    refused("test_COVIDx6.txt has no lines", *given(tree))
    (tree / "test_COVIDx6.txt").unlink()
    refused("holds no test_COVIDx*.txt or test.txt: give the folder", *given(tree))
