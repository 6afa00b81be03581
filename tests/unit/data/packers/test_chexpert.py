"""CheXpert: patients from paths, valid.csv as test, uncertain labels."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedhpc.data.hdf5 import PackedFile
from fedhpc.data.packers.labeler import LABELS
from fedhpc.data.packers.official import hash_split

from .trees import Cells, assert_patients_whole, call, label, pack, picture, refused, save, split_names, without
from .trees import write_table as write

ROOT = "CheXpert-v1.0-small"
NUM_TRAIN = 40  # patients; each has two studies with a frontal and a lateral picture


def rows_of(part: str, patients: range) -> Cells:
    out = []
    for k in patients:
        for study in (1, 2):
            for name, view, side in (("view1_frontal", "AP" if k % 2 else "PA", "Frontal"),
                                     ("view2_lateral", "", "Lateral")):  # fmt: skip
                cells = dict.fromkeys(LABELS, "") | {"Edema": ["1.0", "0.0", "-1.0", ""][k % 4]}
                out.append({
                    "Path": f"{ROOT}/{part}/patient{k:05d}/study{study}/{name}.jpg", "Sex": ["Male", "Female"][k % 2],
                    "Age": str(30 + k), "Frontal/Lateral": side, "AP/PA": view, **cells,
                })  # fmt: skip
    return out


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    folder = tmp_path / "chexpert"
    for part, patients in (("train", range(1, NUM_TRAIN + 1)), ("valid", range(64541, 64544))):
        rows = rows_of(part, patients)
        write(folder / f"{part}.csv", rows)
        for number, row in enumerate(rows):
            save(folder / row["Path"].removeprefix(f"{ROOT}/"), picture(number))
    return folder


def given(tree: Path) -> tuple[object, ...]:
    return ("chexpert", tree, "-o", tree.parent / "out.h5", "--image-size", 8)


def test_frontal_pictures_of_both_tables(tree: Path) -> None:
    pack(*given(tree))
    with PackedFile(tree.parent / "out.h5") as packed:
        packed.verify()
        assert packed.num_rows == 2 * (NUM_TRAIN + 3) and packed.image_shape == (8, 8, 1)
        assert packed.row_ids()[0] == "train/patient00001/study1/view1_frontal.jpg"
        assert packed.patients()[0] == "patient00001" and len(set(packed.patients())) == NUM_TRAIN + 3
        assert label(packed, "edema")[:8] == ["absent"] * 2 + [""] * 4 + ["present"] * 2
        assert label(packed, "primary_finding")[6] == "Edema" and label(packed, "view")[:3] == ["AP", "AP", "PA"]
        assert packed.read("tabular/demographics")[0].tolist() == [0.0, 31.0]
        assert packed.attribute("dataset_version") == "v1.0-small" and packed.site_names == ["stanford"]
        assert "text" not in packed.modalities
        assert_patients_whole(packed)
        for patient, split in zip(packed.patients().tolist(), split_names(packed), strict=True):
            drawn = hash_split(patient, (0.9, 0.1, 0.0), 0)
            assert split == ("test" if patient >= "patient64541" else drawn)
        assert set(split_names(packed)) == {"train", "val", "test"}


def test_lateral_views_and_valid_as_val(tree: Path) -> None:
    pack(*given(tree), "--lateral", "--valid-as", "val", "--val-fraction", 0, "--uncertain", "absent")
    with PackedFile(tree.parent / "out.h5") as packed:
        assert packed.num_rows == 4 * (NUM_TRAIN + 3) and "lateral" in packed.label_classes["view"]
        assert split_names(packed).count("val") == 12 and "test" not in split_names(packed)
        assert set(label(packed, "edema")[4:8]) == {"absent"}
    refused("set --val-fraction 0", "chexpert", tree, "-o", tree / "x.h5", "--valid-as", "val")


def test_limit_keeps_both_tables_and_splits(tree: Path) -> None:
    pack(*given(tree))
    with PackedFile(tree.parent / "out.h5") as packed:
        whole = dict(zip(packed.patients().tolist(), split_names(packed), strict=True))
    pack(*given(tree), "--overwrite", "--limit", 30)
    with PackedFile(tree.parent / "out.h5") as packed:
        assert packed.num_rows == 30 and "test" in split_names(packed)
        assert all(whole[p] == s for p, s in zip(packed.patients().tolist(), split_names(packed), strict=True))


def test_bad_rows_are_named_or_dropped(tree: Path) -> None:
    (tree / "train/patient00001/study1/view1_frontal.jpg").write_bytes(b"torn")
    refused("line 2: picture train/patient00001/study1/view1_frontal.jpg: not a readable picture", *given(tree))
    rows = rows_of("train", range(1, NUM_TRAIN + 1))
    rows[4]["Path"] = "somewhere/else.jpg"
    rows[8]["Sex"] = "F"
    rows[12]["Edema"] = "2"
    write(tree / "train.csv", rows)
    refused("line 6: Path is 'somewhere/else.jpg': .../train/patient00001/...", *given(tree))
    (tree / "valid/patient64541/study1/view1_frontal.jpg").unlink()
    result = pack(*given(tree), "--skip-bad")
    assert "dropped 5 bad rows: bad label 1, bad path 1, bad sex 1, missing picture 1, unreadable picture 1" in (
        result.output
    )
    with PackedFile(tree.parent / "out.h5") as packed:
        packed.verify()
        assert packed.num_rows == 2 * (NUM_TRAIN + 3) - 5


def test_missing_files_and_columns_are_refused(tree: Path) -> None:
    write(tree / "train.csv", without(rows_of("train", range(1, 9)), "AP/PA"))
    refused("train.csv has no column 'AP/PA' (chexpert)", *given(tree))
    (tree / "valid.csv").unlink()
    write(tree / "train.csv", rows_of("train", range(1, 9)))
    refused("holds no valid.csv: give the folder of CheXpert-v1.0", *given(tree))
    refused("is no folder", "chexpert", tree / "none", "-o", tree / "x.h5")
    assert call(*given(tree), "--val-fraction", 1).exit_code == 2
