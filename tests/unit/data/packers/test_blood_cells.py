"""INT_20 and Matek_19: folders of classes become 13 shared cell types; cases of INT_20 stay whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedhpc.data.hdf5 import PackedFile
from fedhpc.data.packers.blood_cells import CELL_TYPES
from fedhpc.data.packers.official import hash_split

from .trees import assert_patients_whole, by_id, label, pack, picture, refused, save, split_names

# Names as in the lists that MDH-FL publishes: case, slide, range of cells.
INT_FILES = {
    "01-NORMO": ("10-025377.PB.PAP~C.1-213.TIF", "10-025377.PB.PAP~C.214-807.TIF", "15-48904.PB.PAP-B~A.1002-1002.TIF"),
    "05-MONO": ("15-48904.PB.PAP~B.12-12.TIF", "13-13095.PB.PAP~B.150-174.TIF"),
    "13-MYBL": ("14-40735.PB.PAP~B.1-52.TIF", "12-37354.PB.PAP~B.1-2000.TIF"),
    "16-PLZ": ("12-37354.PB.PAP~B.7-7.TIF",),
}
MATEK_FILES = {
    "BAS": ("BAS_0001.tiff", "BAS_0003.tiff"), "MOB": ("MOB_0001.tiff",), "MYO": ("MYO_0001.tiff", "MYO_0002.tiff"),
    "PMB": ("PMB_0001.tiff",),
}  # fmt: skip


@pytest.fixture
def int_20(tmp_path: Path) -> Path:
    number = 0
    for folder, files in INT_FILES.items():
        for file in files:
            save(tmp_path / "int20" / folder / file, picture(number, 3, (40, 40)))
            number += 1
    return tmp_path / "int20"


@pytest.fixture
def matek(tmp_path: Path) -> Path:
    """As TCIA unpacks it: the class folders two levels down; TIFF with an alpha channel."""
    root = tmp_path / "PKG - AML-Cytomorphology_LMU" / "AML-Cytomorphology_LMU"
    for folder, files in MATEK_FILES.items():
        for number, file in enumerate(files):
            alpha = np.full((48, 48, 1), 255, np.uint8)
            save(root / folder / file, np.concatenate([picture(number, 3, (48, 48)), alpha], axis=2))
    (root / "annotations.dat").write_text("BAS/BAS_0001.tiff BAS nan nan\n")
    return tmp_path / "PKG - AML-Cytomorphology_LMU"


def given(name: str, tree: Path) -> tuple[object, ...]:
    return (name, tree, "-o", tree.parent / "out.h5", "--image-size", 16)


def test_int_20(int_20: Path) -> None:
    pack(*given("int-20", int_20), "--crop", 16)
    with PackedFile(int_20.parent / "out.h5") as packed:
        packed.verify()
        assert packed.num_rows == 7 and packed.image_shape == (16, 16, 3)
        assert packed.label_classes["cell_type"] == list(CELL_TYPES)
        assert label(packed, "cell_type") == ["erythroblast"] * 3 + ["monocyte"] * 2 + ["myeloblast"] * 2
        assert label(packed, "class")[3] == "05-MONO" and "16-PLZ 1" in packed.note
        patient = by_id(packed, packed.patients())
        assert patient["01-NORMO/15-48904.PB.PAP-B~A.1002-1002.TIF"] == "15-48904"
        assert patient["05-MONO/15-48904.PB.PAP~B.12-12.TIF"] == "15-48904"
        assert_patients_whole(packed)
        assert split_names(packed) == [hash_split(p, (0.7, 0.1, 0.2), 0) for p in packed.patients().tolist()]
        assert np.array_equal(packed.read("image")[0], picture(0, 3, (40, 40))[12:28, 12:28])  # the centre, unscaled


def test_classes_that_are_none_of_the_13_are_kept_when_asked(int_20: Path) -> None:
    pack(*given("int-20", int_20), "--keep-unknown", "--crop", 0)
    with PackedFile(int_20.parent / "out.h5") as packed:
        assert packed.num_rows == 8 and label(packed, "cell_type")[-1] == "" and label(packed, "class")[-1] == "16-PLZ"
        assert "kept without cell_type: 16-PLZ 1" in packed.note and "central" not in packed.note


def test_matek_19(matek: Path) -> None:
    pack(*given("matek-19", matek))  # pictures smaller than the crop stay whole
    with PackedFile(matek.parent / "out.h5") as packed:
        packed.verify()
        assert label(packed, "cell_type") == ["basophil"] * 2 + ["monocyte"] + ["myeloblast"] * 2
        assert packed.row_ids()[0] == packed.patients()[0] == "BAS/BAS_0001.tiff" and packed.image_shape == (16, 16, 3)
        assert "does not say which patient" in packed.note and "CC BY 3.0" in packed.licence


def test_bad_pictures_are_named_or_dropped(int_20: Path) -> None:
    (int_20 / "05-MONO/15-48904.PB.PAP~B.12-12.TIF").write_bytes(b"torn")
    refused("15-48904.PB.PAP~B.12-12.TIF: not a readable picture", *given("int-20", int_20))
    refused("15-48904.PB.PAP~B.12-12.TIF", *given("int-20", int_20), "--crop", 0)
    save(int_20 / "13-MYBL/cell.TIF", picture(0, 3))
    refused("cell.TIF: its name does not begin with a case", *given("int-20", int_20))
    result = pack(*given("int-20", int_20), "--skip-bad")
    assert "dropped 2 bad rows: no case 1, unreadable picture 1" in result.output


def test_other_layouts_are_refused(int_20: Path, matek: Path, tmp_path: Path) -> None:
    refused("holds none of the class folders BAS, EBO", *given("matek-19", int_20))
    refused("give the folder that holds 01-NORMO/", *given("int-20", matek))
    refused("is no folder: give the folder that holds BAS/", *given("matek-19", tmp_path / "none"))
    save(int_20 / "23-NEU/10-1.TIF", picture(0, 3))
    refused("23-NEU holds pictures, but is none of the classes", *given("int-20", int_20))
    for folder in (tmp_path / "two/a/BAS", tmp_path / "two/b/BAS"):
        folder.mkdir(parents=True)
    refused("hold class folders: give the one that is meant", *given("matek-19", tmp_path / "two"))
    refused("its class folders hold no pictures", *given("matek-19", tmp_path / "two/a"))
