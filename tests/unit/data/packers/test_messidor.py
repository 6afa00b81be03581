"""MESSIDOR: spreadsheets a base, hospitals as sites, pairs and copies. MESSIDOR-2: adjudicated grades."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import openpyxl
import pytest

from fedhpc.data.hdf5 import PackedFile

from .trees import Cells, assert_patients_whole, by_id, label, pack, picture, refused, save, sites, split_names, without
from .trees import write_table as write

XLS = Path(__file__).with_name("Annotation_Base11.xls")
BASE11 = ("20051020_43808_0100_PP.tif", "20051020_43832_0100_PP.tif", "20051020_43882_0100_PP.tif")
COLUMNS = ("Image name", "Ophthalmologic department", "Retinopathy grade", "Risk of macular edema ")


def base_rows(base: int, department: str, count: int = 6) -> Cells:
    return [
        dict(zip(COLUMNS, (f"2006_{base}{k:03d}_PP.tif", department, str(k % 4), str(k % 3)), strict=True))
        for k in range(count)
    ]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    folder = tmp_path / "messidor"
    folder.mkdir()
    shutil.copy(XLS, folder)
    for k, name in enumerate(BASE11):
        save(folder / "Base11" / name, picture(k, 3, (24, 32)))
    book = openpyxl.Workbook()
    rows = base_rows(21, "CHU de St Etienne")
    for row in [COLUMNS, *((a, b, int(c), int(d)) for a, b, c, d in (r.values() for r in rows))]:
        book.active.append(row)
    book.save(folder / "Annotation_Base21.xlsx")
    write(folder / "Annotation_Base31.csv", base_rows(31, "LaTIM - CHU de BREST"))
    for base in (21, 31):
        for k, row in enumerate(base_rows(base, "")):
            save(folder / f"Base{base}" / row["Image name"], picture(100 * base + k, 3))
    shutil.copy(folder / "Base31/2006_31001_PP.tif", folder / "Base31/2006_31002_PP.tif")  # as in the real Base33
    return folder


def second_rows() -> Cells:
    names = [f"2005_{k:03d}_PP.png" for k in range(8)] + [f"IM{k:06d}.jpg" for k in range(8)]
    return [
        {"image_id": name, "adjudicated_dr_grade": "" if k == 3 else str(k % 5), "adjudicated_dme": "" if k == 3 else
         str(k % 2), "adjudicated_gradable": str(int(k != 3))}
        for k, name in enumerate(names)
    ]  # fmt: skip


@pytest.fixture
def second(tmp_path: Path) -> Path:
    folder = tmp_path / "messidor2"
    rows = second_rows()
    write(folder / "messidor_data.csv", rows)
    pairs = [{"left": a["image_id"], "right": b["image_id"]} for a, b in zip(rows[::2], rows[1::2], strict=True)]
    pairs[4]["right"] = pairs[4]["right"].replace(".jpg", ".JPG")
    write(folder / "messidor-2.csv", pairs, ";")
    for k, row in enumerate(rows):
        save(folder / "IMAGES" / row["image_id"], picture(k, 3))
    return folder


def given(tree: Path) -> tuple[object, ...]:
    return ("messidor", tree, "-o", tree.parent / "out.h5", "--image-size", 32)


def test_three_kinds_of_tables(tree: Path) -> None:
    pack(*given(tree))
    with PackedFile(tree.parent / "out.h5") as packed:
        packed.verify()
        assert packed.num_rows == 15 and packed.image_shape == (32, 32, 3)
        assert packed.site_names == ["chu_saint_etienne", "lariboisiere_paris", "latim_chu_brest"]
        assert sites(packed) == ["lariboisiere_paris"] * 3 + ["chu_saint_etienne"] * 6 + ["latim_chu_brest"] * 6
        assert label(packed, "dr_grade") == ["0", "3", "1", *"012301", *"012301"]
        assert label(packed, "edema_risk") == ["0", "2", "0", *"012012", *"012012"]
        assert np.array_equal(packed.read("image", np.array([0]))[0, 4:28], picture(0, 3, (24, 32)))
        assert np.array_equal(packed.read("image", np.array([9]))[0], picture(3100, 3))
        patient = by_id(packed, packed.patients())
        assert patient["2006_31001_PP.tif"] == patient["2006_31002_PP.tif"] and len(set(patient.values())) == 14
        assert "1 pictures are copies" in packed.note and "Patients are unknown" in packed.note
        assert packed.name == "messidor"
        assert_patients_whole(packed)


def test_pairs_join_eyes_and_chain_with_copies(tree: Path) -> None:
    pairs = tree.parent / "messidor-2.csv"
    write(pairs, [{"left": "2006_31002_PP.png", "right": "2006_31003_PP.png"}], ";")
    pack(*given(tree), "--pairs", pairs)
    with PackedFile(tree.parent / "out.h5") as packed:
        patient = by_id(packed, packed.patients())
        assert len({patient[f"2006_3100{k}_PP.tif"] for k in (1, 2, 3)}) == 1
        assert_patients_whole(packed)


def test_messidor_2(second: Path) -> None:
    pack(*given(second))
    with PackedFile(second.parent / "out.h5") as packed:
        packed.verify()
        assert packed.name == "messidor-2" and packed.num_rows == 16
        assert packed.site_names == ["brest_extension", "messidor_original"]
        assert label(packed, "dr_grade")[:6] == ["0", "1", "2", "", "4", "0"]
        assert label(packed, "gradable")[2:5] == ["yes", "no", "yes"]
        assert label(packed, "macular_edema")[:4] == ["absent", "present", "absent", ""]
        patients = packed.patients().tolist()
        assert patients[::2] == patients[1::2] and len(set(patients)) == 8
        assert packed.label_classes["dr_grade"] == list("01234")
        assert len(set(split_names(packed))) > 1
        assert_patients_whole(packed)


def test_messidor_2_needs_its_pairs(second: Path) -> None:
    (second / "messidor-2.csv").unlink()
    refused("holds no messidor-2.csv: add it", *given(second))
    refused("--pairs takes messidor-2.csv", *given(second), "--pairs", second / "none.csv")
    refused("--pairs and --unpaired are both set", *given(second), "--pairs", second / "none.csv", "--unpaired")
    pack(*given(second), "--unpaired", "--limit", 9)
    with PackedFile(second.parent / "out.h5") as packed:
        assert packed.num_rows == len(set(packed.patients())) == 9


def test_bad_rows_are_named_or_dropped(tree: Path) -> None:
    (tree / "Base11" / BASE11[1]).write_bytes(b"torn")
    refused(f"Annotation_Base11.xls, line 3: picture Base11/{BASE11[1]}: not a readable picture", *given(tree))
    rows = base_rows(31, "LaTIM - CHU de BREST")
    rows[3]["Retinopathy grade"] = "9"
    write(tree / "Annotation_Base31.csv", rows)
    refused("Annotation_Base31.csv, line 5: Retinopathy grade is '9': 0 to 3 or nothing", *given(tree))
    (tree / "Base31/2006_31005_PP.tif").unlink()
    save(tree / "Base31/2006_31004_PP.png", picture(1, 3))  # beside the .tif of the same name
    result = pack(*given(tree), "--skip-bad")
    assert "dropped 4 bad rows: bad grade 1, missing picture 1, two pictures 1, unreadable picture 1" in result.output
    with PackedFile(tree.parent / "out.h5") as packed:
        packed.verify()
        assert packed.num_rows == 11


def test_missing_files_and_columns_are_refused(tree: Path, second: Path) -> None:
    write(tree / "Annotation_Base31.csv", without(base_rows(31, "x"), "Retinopathy grade"))
    refused("Annotation_Base31.csv has no column 'Retinopathy grade' (messidor)", *given(tree))
    shutil.copy(XLS, tree / "Base11")
    refused("holds Annotation_Base11 twice", *given(tree))
    write(second / "messidor_data.csv", without(second_rows(), "adjudicated_dme"))
    refused("messidor_data.csv has no column 'adjudicated_dme'", *given(second))
    empty = tree.parent / "empty"
    empty.mkdir()
    refused("empty holds no pictures", *given(empty))
    save(empty / "x.tif", picture(0, 3))
    refused("holds no Annotation_Base*.xls: give the folder", *given(empty))
