"""MIMIC-CXR-JPG: its tree, its tables, its reports."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest

from fedhpc.data.hdf5 import PackedFile
from fedhpc.data.packers.labeler import LABELS
from fedhpc.data.packers.reports import report_text, sections

from .trees import Cells, assert_patients_whole, by_id, label, pack, picture, refused, save, split_names, without
from .trees import write_table as write

REPORT = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)

 INDICATION:  ___ year old woman with ?pleural effusion.

 FINDINGS:

 Heart size is 2.5 cm above normal.  Clear.  There is a small right
 pleural effusion.

 IMPRESSION:

 1. Small effusion.
 2. No pneumonia.
"""
TEXT = "Small effusion. No pneumonia. Heart size is 2.5 cm above normal. There is a small right pleural effusion."
# dicom, patient, study, view, split, Pleural Effusion, Pneumonia
PICTURES = [
    ("a1", "10000032", "50000001", "PA", "train", "1.0", "-1.0"),
    ("a2", "10000032", "50000001", "LATERAL", "train", "1.0", "-1.0"),
    ("b1", "10000045", "50000002", "AP", "validate", "", "0.0"),
    ("c1", "11000001", "50000003", "AP", "test", "0.0", "1.0"),
    ("c2", "11000001", "50000004", "PA", "test", "", ""),
    ("d1", "12000001", "50000005", "AP", "train", "-1.0", ""),
]


def tables() -> dict[str, Cells]:
    metadata, split, labels = [], [], {}
    for dicom, patient, study, view, part, effusion, pneumonia in PICTURES:
        ids = {"dicom_id": dicom, "subject_id": patient, "study_id": study}
        metadata.append({**ids, "PerformedProcedureStepDescription": "CHEST, PA", "ViewPosition": view, "Rows": "32",
                         "Columns": "24", "StudyDate": "21800506", "StudyTime": "213014.531"})  # fmt: skip
        split.append({"dicom_id": dicom, "study_id": study, "subject_id": patient, "split": part})
        cells = dict.fromkeys(LABELS, "") | {"Pleural Effusion": effusion, "Pneumonia": pneumonia}
        labels[study] = {"subject_id": patient, "study_id": study, **cells}
    labels["50000004"]["No Finding"] = "1.0"
    return {"metadata": metadata, "split": split, "chexpert": list(labels.values())}


def study_path(patient: str, study: str) -> str:
    return f"files/p{patient[:2]}/p{patient}/s{study}"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    folder = tmp_path / "mimic-cxr-jpg"
    for kind, rows in tables().items():
        write(folder / f"mimic-cxr-2.0.0-{kind}.csv.gz", rows)
    for number, (dicom, patient, study, *_) in enumerate(PICTURES):
        save(folder / f"{study_path(patient, study)}/{dicom}.jpg", picture(number, size=(32, 24)))
        text = REPORT if dicom != "d1" else "FINAL REPORT\n INDICATION: ___.\n\n IMPRESSION:\n\n Normal.\n"
        report = tmp_path / f"reports/{study_path(patient, study)}.txt"
        report.parent.mkdir(parents=True, exist_ok=True)
        report.write_text(text)
    return folder


def given(tree: Path) -> tuple[object, ...]:
    return ("mimic-cxr", tree, "-o", tree.parent / "out.h5", "--image-size", 16, "--vocab-size", 200)


def test_a_report_is_impression_then_findings() -> None:
    assert list(sections(REPORT)) == ["EXAMINATION", "INDICATION", "FINDINGS", "IMPRESSION"]
    assert report_text(REPORT) == TEXT
    assert report_text("IMPRESSION: Normal.") == ""
    assert report_text("INDICATION: a long story of many words.\n FINDINGS:\n") == ""
    assert report_text("Findings: No effusion seen.") == "No effusion seen."
    assert report_text("FINDINGS AND IMPRESSION:  (1) No effusion. (2) Rib 5. No fracture.") == (
        "No effusion. Rib 5. No fracture."
    )


def test_frontal_views_with_reports(tree: Path) -> None:
    result = pack(*given(tree), "--reports", tree.parent / "reports")
    assert "4 rows" in result.output
    with PackedFile(tree.parent / "out.h5") as packed:
        packed.verify()
        assert packed.row_ids().tolist() == ["a1", "b1", "c1", "c2"]  # a2 is lateral, d1 has no text
        assert packed.patients().tolist() == ["10000032", "10000045", "11000001", "11000001"]
        assert split_names(packed) == ["train", "val", "test", "test"]
        assert packed.texts() == [TEXT] * 4 and label(packed, "text_kind") == ["report"] * 4
        assert label(packed, "pleural_effusion") == ["present", "", "absent", ""]
        assert label(packed, "pneumonia") == ["", "absent", "present", ""]
        assert label(packed, "primary_finding") == ["Pleural Effusion", "", "Pneumonia", "No Finding"]
        assert label(packed, "view") == ["PA", "AP", "AP", "PA"]
        assert packed.site_names == ["beth_israel_deaconess"] and packed.image_shape == (16, 16, 1)
        assert packed.label_classes["fracture"] == ["absent", "present"]
        assert packed.attribute("dataset_version") == "2.0.0" and "Credentialed" in packed.licence
        assert "1 pictures whose report has neither were left out" in packed.note
        assert packed.command and "doi:10.13026" in packed.source
        assert_patients_whole(packed)
        first = packed.read("image", np.array([0]))[0, :, :, 0]
        assert not first[:, :2].any() and not first[:, -2:].any() and first[:, 2:-2].any()  # letterboxed: 32 x 24


def test_choices_of_views_labels_and_text(tree: Path) -> None:
    pack(*given(tree), "--reports", tree.parent / "reports", "--keep-textless", "--views", "PA,AP,LATERAL",
         "--uncertain", "class", "--blank", "absent")  # fmt: skip
    with PackedFile(tree.parent / "out.h5") as packed:
        assert packed.num_rows == 6
        assert by_id(packed, packed.read("present/text"))["d1"].item() is False
        assert by_id(packed, label(packed, "text_kind"))["d1"] == ""
        assert label(packed, "pleural_effusion") == ["present", "present", "absent", "absent", "absent", "uncertain"]
    pack(*given(tree), "--overwrite", "--uncertain", "present")
    with PackedFile(tree.parent / "out.h5") as packed:
        assert packed.num_rows == 5 and "text" not in packed.modalities
        assert label(packed, "pneumonia") == ["present", "absent", "present", "", ""]


def test_zip_of_reports_and_plain_tables_give_the_same(tree: Path) -> None:
    pack(*given(tree), "--reports", tree.parent / "reports")
    with PackedFile(tree.parent / "out.h5") as packed:
        before = packed.checksum
    archive = tree.parent / "mimic-cxr-reports.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in (tree.parent / "reports").rglob("*.txt"):
            file.write(path, path.relative_to(tree.parent / "reports"))
    for kind, rows in tables().items():
        (tree / f"mimic-cxr-2.0.0-{kind}.csv.gz").unlink()
        write(tree / f"mimic-cxr-2.0.0-{kind}.csv", rows)
    pack(*given(tree), "--overwrite", "--reports", archive)
    with PackedFile(tree.parent / "out.h5") as packed:
        assert packed.checksum == before


def test_limit_is_spread_over_the_table(tree: Path) -> None:
    pack(*given(tree), "--limit", 2)
    with PackedFile(tree.parent / "out.h5") as packed:
        assert packed.row_ids().tolist() == ["a1", "c1"]


def test_bad_rows_are_named_or_dropped(tree: Path) -> None:
    (tree / f"{study_path('10000045', '50000002')}/b1.jpg").write_bytes(b"\xff\xd8\xff torn")
    refused("metadata.csv.gz, line 4: picture files/p10/p10000045/s50000002/b1.jpg: not a readable", *given(tree))
    (tree.parent / f"reports/{study_path('11000001', '50000004')}.txt").unlink()
    refused("s50000004.txt: complete the reports", *given(tree), "--reports", tree.parent / "reports")
    result = pack(*given(tree), "--reports", tree.parent / "reports", "--skip-bad")
    assert "dropped 2 bad rows: missing report 1, unreadable picture 1" in result.output
    with PackedFile(tree.parent / "out.h5") as packed:
        packed.verify()
        assert packed.row_ids().tolist() == ["a1", "c1"] and len(packed.read("image")) == 2


def test_bad_tables_are_refused(tree: Path) -> None:
    whole = tables()
    write(tree / "mimic-cxr-2.0.0-metadata.csv.gz", without(whole["metadata"], "ViewPosition"))
    refused("has no column 'ViewPosition' (mimic-cxr)", *given(tree))
    write(tree / "mimic-cxr-2.0.0-metadata.csv.gz", whole["metadata"])
    write(tree / "mimic-cxr-2.0.0-chexpert.csv.gz", without(whole["chexpert"], "Edema"))
    refused("has no column 'Edema'", *given(tree))
    whole["chexpert"][0]["Edema"] = "yes"
    write(tree / "mimic-cxr-2.0.0-chexpert.csv.gz", whole["chexpert"])
    refused("line 2: Edema is 'yes': 1.0, 0.0, -1.0 or blank", *given(tree))
    write(tree / "mimic-cxr-2.0.0-chexpert.csv.gz", tables()["chexpert"])
    write(tree / "mimic-cxr-2.0.0-split.csv.gz", whole["split"][:-1])
    refused("line 7: picture d1 has the split None", *given(tree))
    (tree / "mimic-cxr-2.0.0-split.csv.gz").write_bytes(b"\x1f\x8b torn")
    refused("is truncated or no gzip file", *given(tree))
    (tree / "mimic-cxr-2.0.0-split.csv.gz").unlink()
    refused("holds no mimic-cxr-2.0.0-split.csv.gz or mimic-cxr-2.0.0-split.csv: give the folder", *given(tree))


def test_bad_options_are_refused(tree: Path) -> None:
    refused("--views has XX, but ViewPosition", *given(tree), "--views", "PA,XX")
    refused("--reports takes mimic-cxr-reports.zip", *given(tree), "--reports", tree.parent / "nowhere")
    refused("give the folder above files/p10", *given(tree), "--reports", tree.parent)
    refused("no zip archive", *given(tree), "--reports", tree / "mimic-cxr-2.0.0-split.csv.gz")
    refused("--keep-textless has no effect without --reports", *given(tree), "--keep-textless")
    refused("holds no mimic-cxr-2.0.0-negbio", *given(tree), "--labeler", "negbio")
