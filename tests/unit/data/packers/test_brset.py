"""BRSET and mBRSET: codes become classes, text is a template and says so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedhpc.data.hdf5 import PackedFile
from fedhpc.data.packers.brset import DISEASES
from fedhpc.data.packers.official import hash_split

from .trees import Cells, assert_patients_whole, by_id, label, pack, picture, refused, save, sites, split_names, without
from .trees import write_table as write

N = 30


def brset_rows() -> Cells:
    return [
        {
            "image_id": f"img{k:05d}", "patient_id": str(k // 2 + 1),
            "camera": ["Canon CR", "NIKON NF5050"][k // 2 % 2], "patient_age": "" if k == 4 else f"{40 + k}.0",
            "comorbidities": "diabetes1, hypertension",
            "diabetes_time_y": "", "insuline": "", "patient_sex": str(1 + k // 2 % 2), "exam_eye": str(1 + k % 2),
            "diabetes": ["yes", "No"][k % 2], "nationality": "Brazil", "optic_disc": "bv" if k == 7 else "1",
            "vessels": "1", "macula": "2", "DR_SDRG": "0", "DR_ICDR": str(k % 5), "focus": "1", "Illuminaton": "1",
            "image_field": "1", "artifacts": "2", "quality": ["Adequate", "Inadequate"][k % 2],
            **{name: "1" if name in ("drusens", "amd") and k % 3 == 0 else "0" for name in DISEASES},
        }
        for k in range(N)
    ]  # fmt: skip


def mbrset_rows() -> Cells:
    return [
        {
            "patient": str(k // 4 + 1), "age": "61", "sex": str(k // 4 % 2), "dm_time": "10", "insulin": "0",
            "insulin_time": "", "oraltreatment_dm": "1", "systemic_hypertension": "1", "insurance": "0",
            "educational_level": "3", "alcohol_consumption": "0", "smoking": "0", "obesity": "0",
            "vascular_disease": "0", "acute_myocardial_infarction": "0", "nephropathy": "0", "neuropathy": "0",
            "diabetic_foot": "0", "file": f"{k // 4 + 1}.{k % 4 + 1}.jpg", "laterality": ["right", "left"][k // 2 % 2],
            "final_artifacts": "no", "final_quality": "yes", "final_icdr": "" if k == 5 else f"{k % 5}.0",
            "final_edema": ["no", "yes"][k % 2],
        }
        for k in range(N)
    ]  # fmt: skip


@pytest.fixture
def brset(tmp_path: Path) -> Path:
    rows = brset_rows()
    write(tmp_path / "brset/labels_brset.csv", rows)
    for k, row in enumerate(rows):
        save(tmp_path / f"brset/fundus_photos/{row['image_id']}.jpg", picture(k, 3, (24, 32)))
    (tmp_path / "brset/fundus_photos/index.html").write_text("not data")
    return tmp_path / "brset"


@pytest.fixture
def mbrset(tmp_path: Path) -> Path:
    rows = mbrset_rows()
    write(tmp_path / "mbrset/labels_mbrset.csv", rows)
    for k, row in enumerate(rows):
        save(tmp_path / f"mbrset/images/{row['file']}", picture(k, 3))
    return tmp_path / "mbrset"


def given(tree: Path) -> tuple[object, ...]:
    return (tree.name, tree, "-o", tree.parent / "out.h5", "--image-size", 16, "--vocab-size", 150)


def test_brset_rows(brset: Path) -> None:
    pack(*given(brset))
    with PackedFile(brset.parent / "out.h5") as packed:
        packed.verify()
        assert packed.num_rows == N and packed.image_shape == (16, 16, 3)
        assert packed.read("image", np.array([0]))[0, 6:10].any()
        assert packed.patients()[:4].tolist() == ["1", "1", "2", "2"]
        assert packed.site_names == ["Canon CR", "NIKON NF5050"] and sites(packed)[:3] == ["Canon CR"] * 2 + [
            "NIKON NF5050"
        ]
        assert label(packed, "dr_icdr")[:6] == ["none", "mild", "moderate", "severe", "proliferative", "none"]
        assert label(packed, "drusens")[:4] == ["present", "absent", "absent", "present"]
        assert label(packed, "macula")[0] == "abnormal" and label(packed, "quality")[:2] == ["adequate", "inadequate"]
        assert label(packed, "sex")[:4] == ["M", "M", "F", "F"] and label(packed, "eye")[:2] == ["right", "left"]
        assert label(packed, "optic_disc")[6:8] == ["normal", ""] and "optic_disc 'bv' (1)" in packed.note
        assert packed.label_classes["nevus"] == ["absent", "present"]
        texts = packed.texts()
        assert texts[0] == ("Fundus photograph of the right eye of a 40 year old male patient. Findings: amd, drusens.")
        assert texts[1].endswith("Findings: mild diabetic retinopathy.")
        assert texts[4].startswith("Fundus photograph of the right eye of a male patient.")
        assert texts[5].endswith("Findings: no listed disease.")
        assert set(label(packed, "text_kind")) == {"template_from_labels"} and "TEMPLATE TEXT" in packed.note
        assert np.isnan(packed.read("tabular/demographics")[4, 1])
        drawn = [hash_split(p, (0.7, 0.1, 0.2), 0) for p in packed.patients().tolist()]
        assert split_names(packed) == drawn and len(set(drawn)) > 1
        assert_patients_whole(packed)


def test_brset_without_text_and_later_column_names(brset: Path) -> None:
    pack(*given(brset), "--no-text")
    with PackedFile(brset.parent / "out.h5") as packed:
        before = packed.checksum
        assert "text" not in packed.modalities and "text_kind" not in packed.label_classes
    later = {"Illuminaton": "illumination", "drusens": "drusen", "insuline": "insulin"}  # of release 1.0.2
    write(brset / "labels_brset.csv", [{later.get(k, k): v for k, v in row.items()} for row in brset_rows()])
    pack(*given(brset), "--no-text", "--overwrite")
    with PackedFile(brset.parent / "out.h5") as packed:
        assert packed.checksum == before


def test_mbrset_rows(mbrset: Path) -> None:
    pack(*given(mbrset))
    with PackedFile(mbrset.parent / "out.h5") as packed:
        packed.verify()
        assert packed.num_rows == N and packed.row_ids()[:2].tolist() == ["1.1.jpg", "1.2.jpg"]
        assert packed.patients()[3:5].tolist() == ["1", "2"] and packed.site_names == ["mbrset_handheld"]
        assert label(packed, "dr_icdr")[4:7] == ["proliferative", "", "mild"]
        assert label(packed, "macular_edema")[:2] == ["absent", "present"] and label(packed, "eye")[1:3] == [
            "right", "left"
        ]  # fmt: skip
        texts = packed.texts()
        assert texts[3].endswith("Findings: severe diabetic retinopathy, macular edema.")
        assert texts[0].endswith("female patient. Findings: no listed disease.")
        assert texts[5].endswith("Findings: macular edema.")
        assert_patients_whole(packed)


def test_bad_rows_are_named_or_dropped(brset: Path) -> None:
    (brset / "fundus_photos/img00003.jpg").write_bytes(b"torn")
    refused("labels_brset.csv, line 5: picture img00003.jpg: not a readable picture", *given(brset))
    rows = brset_rows()
    rows[8]["image_id"] = ""
    rows[9]["patient_id"] = ""
    rows[10]["patient_age"] = "old"
    write(brset / "labels_brset.csv", rows)
    refused("line 10: image_id is empty", *given(brset))
    (brset / "fundus_photos/img00011.jpg").unlink()  # the release names seven pictures that it does not hold
    result = pack(*given(brset), "--skip-bad", "--limit", N)
    assert (
        "dropped 5 bad rows: empty patient 1, missing picture 1, no picture 1, not a number 1, unreadable picture 1"
    ) in result.output
    with PackedFile(brset.parent / "out.h5") as packed:
        packed.verify()
        assert packed.num_rows == N - 5 and by_id(packed, packed.texts())["img00012"].startswith("Fundus")


def test_missing_files_and_columns_are_refused(brset: Path, mbrset: Path) -> None:
    write(brset / "labels_brset.csv", without(brset_rows(), "DR_ICDR"))
    refused("labels_brset.csv has no column 'DR_ICDR' (brset)", *given(brset))
    write(mbrset / "labels_mbrset.csv", without(mbrset_rows(), "final_edema"))
    refused("labels_mbrset.csv has no column 'final_edema' (mbrset)", *given(mbrset))
    (mbrset / "images").rename(mbrset / "pictures")
    refused("holds no folder images", *given(mbrset))
    (brset / "labels_brset.csv").unlink()
    refused("holds no labels_brset.csv: give the folder of brset", *given(brset))
    refused("--tokenizer has no effect with --no-text", *given(brset), "--no-text", "--tokenizer", "x")
