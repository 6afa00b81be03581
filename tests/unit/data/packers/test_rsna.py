"""RSNA pneumonia: DICOM pictures, boxes as masks, NIH patients."""

from __future__ import annotations

import importlib.util
import io
import json
import warnings
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRLittleEndian, JPEGBaseline8Bit

from fedhpc.data.hdf5 import PackedFile
from fedhpc.data.packers.dicom import decode_dicom

from .trees import Cells, assert_patients_whole, by_id, label, pack, picture, refused, save, split_names, without
from .trees import write_table as write

N = 12  # the first four have boxes, the second of them two
CLASSES = ("Lung Opacity", "No Lung Opacity / Not Normal", "Normal")


def dicom(path: Path, pixels: np.ndarray, kind: str = "MONOCHROME2", jpeg: bytes = b"", **tags: str) -> None:
    """A one-frame file, with `jpeg` in place of the plain pixels."""
    file = Dataset()
    file.file_meta = FileMetaDataset()
    file.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file.file_meta.MediaStorageSOPClassUID = pydicom.uid.SecondaryCaptureImageStorage
    file.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    file.SOPClassUID, file.SOPInstanceUID = file.file_meta.MediaStorageSOPClassUID, "1.2.3"
    file.Rows, file.Columns = pixels.shape[:2]
    file.SamplesPerPixel = 1 if pixels.ndim == 2 else 3
    if pixels.ndim == 3:
        file.PlanarConfiguration = 0
    file.PhotometricInterpretation, file.PixelRepresentation = kind, 0
    file.BitsAllocated = file.BitsStored = 8 * pixels.dtype.itemsize
    file.HighBit = file.BitsStored - 1
    file.PixelData = pixels.tobytes()
    if jpeg:
        file.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
        file.PixelData = encapsulate([jpeg])
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ages as the RSNA writes them
        for name, value in tags.items():
            setattr(file, name, value)
        file.save_as(path, enforce_file_format=True)


def name_of(k: int) -> str:
    return f"{k:08x}-aaaa"


def tables() -> tuple[Cells, Cells]:
    labels, classes = [], []
    for k in range(N):
        boxes = [("256.0", "128.0", "512.0", "256.0")] if k < 4 else [("", "", "", "")]
        boxes += [("0.0", "896.0", "128.0", "128.0")] if k == 1 else []
        for box in boxes:
            labels.append({
                "patientId": name_of(k), **dict(zip(("x", "y", "width", "height"), box, strict=True)),
                "Target": str(int(k < 4)),
            })  # fmt: skip
            classes.append({"patientId": name_of(k), "class": CLASSES[0] if k < 4 else CLASSES[1 + k % 2]})
    return labels, classes


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    folder = tmp_path / "rsna"
    labels, classes = tables()
    write(folder / "stage_2_train_labels.csv", labels)
    write(folder / "stage_2_detailed_class_info.csv", classes)
    for k in range(N):
        dicom(folder / f"stage_2_train_images/{name_of(k)}.dcm", picture(k), ViewPosition="PA" if k % 3 else "AP",
              PatientSex="MF"[k % 2], PatientAge=f"{20 + k}")  # fmt: skip
    return folder


def given(tree: Path, size: int = 32) -> tuple[object, ...]:
    return ("rsna", tree, "-o", tree.parent / "out.h5", "--image-size", size)


def test_pictures_boxes_and_headers(tree: Path) -> None:
    pack(*given(tree))
    with PackedFile(tree.parent / "out.h5") as packed:
        packed.verify()
        assert packed.row_ids().tolist() == [name_of(k) for k in range(N)] and packed.image_shape == (32, 32, 1)
        for k in range(N):
            assert np.array_equal(packed.read("image", np.array([k]))[0, :, :, 0], picture(k))
        assert label(packed, "pneumonia") == ["present"] * 4 + ["absent"] * 8
        assert label(packed, "class")[:6] == [CLASSES[0]] * 4 + [CLASSES[1], CLASSES[2]]
        assert label(packed, "view")[:3] == ["AP", "PA", "PA"] and label(packed, "sex")[:2] == ["M", "F"]
        assert packed.read("tabular/demographics")[3].tolist() == [0.0, 23.0]
        assert packed.site_names == ["nih_clinical_center"] and packed.attribute("dataset_version") == "stage 2"
        mask_row = packed.read("mask_row")
        assert len(set(mask_row[4:])) == 1 and len(packed.read("mask")) == 5  # those without boxes share one
        assert not packed.read("mask", mask_row[[5]]).any()
        expected = np.zeros((32, 32), np.uint8)
        expected[4:12, 8:24] = 1
        assert np.array_equal(packed.read("mask", mask_row[[0]])[0], expected)
        expected[28:32, 0:4] = 1
        assert np.array_equal(packed.read("mask", mask_row[[1]])[0], expected)
        assert "one patient may be in two splits" in packed.note
        assert_patients_whole(packed)


def test_nih_patients_stay_whole(tree: Path) -> None:
    mappings = tree / "pneumonia-challenge-dataset-mappings_2018.json"
    entries = [{"subset_img_id": name_of(k), "img_id": f"{k // 4:08d}_{k:03d}.png"} for k in range(N)]
    mappings.write_text(json.dumps(entries))
    pack(*given(tree), "--mappings", mappings, "--split", "0.4,0.3,0.3")
    with PackedFile(tree.parent / "out.h5") as packed:
        assert packed.patients().tolist() == [f"nih-{k // 4}" for k in range(N)]
        assert len(set(split_names(packed)[:4])) == 1
        assert_patients_whole(packed)
    mappings.write_text(json.dumps(entries[1:]))
    (tree.parent / "out.h5").unlink()
    refused(f"line 2: {name_of(0)} is not in the file of --mappings", *given(tree), "--mappings", mappings)
    mappings.write_text("{}x")
    refused("is no list of entries", *given(tree), "--mappings", mappings)


def test_png_of_the_same_names(tree: Path) -> None:
    for k in range(N):
        (tree / f"stage_2_train_images/{name_of(k)}.dcm").unlink()
        save(tree / f"stage_2_train_images/{name_of(k)}.png", picture(k, size=(16, 16)))
    pack(*given(tree, 16))
    with PackedFile(tree.parent / "out.h5") as packed:
        assert np.array_equal(packed.read("image", np.array([2]))[0, :, :, 0], picture(2, size=(16, 16)))
        assert packed.read("mask", packed.read("mask_row")[[0]])[0, 2:6, 4:12].all()
        assert label(packed, "view") == [""] * N
    (tree.parent / "out.h5").unlink()
    save(tree / f"stage_2_train_images/{name_of(3)}.png", picture(3, size=(16, 12)))
    refused("line 6: 00000003-aaaa.png is 12x16, but boxes refer to the whole", *given(tree, 16))


def test_without_pydicom_the_cure_is_told(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "pydicom" else real(name, *a))
    refused("DICOM pictures need pydicom: pip install -c constraints.txt -e '.[dicom]'", *given(tree), "--skip-bad")


def test_bad_rows_are_named_or_dropped(tree: Path) -> None:
    path = tree / f"stage_2_train_images/{name_of(6)}.dcm"
    path.write_bytes(path.read_bytes()[:400])
    refused("picture 00000006-aaaa.dcm: not a readable DICOM picture", *given(tree))
    labels, classes = tables()
    labels[0]["x"] = "900"  # beyond the picture
    labels[5]["Target"] = "2"
    write(tree / "stage_2_train_labels.csv", labels)
    write(tree / "stage_2_detailed_class_info.csv", classes[:-1])
    refused("line 2: Target 1 with the box 900,128,512,256: 1 and a box within 1024 px", *given(tree))
    (tree / f"stage_2_train_images/{name_of(7)}.dcm").unlink()
    result = pack(*given(tree), "--skip-bad")
    assert "bad box 2, missing picture 1, no class 1, unreadable picture 1" in result.output
    with PackedFile(tree.parent / "out.h5") as packed:
        packed.verify()
        assert packed.row_ids().tolist() == [name_of(k) for k in (1, 2, 3, 5, 8, 9, 10)]
        assert by_id(packed, packed.read("mask_row"))[name_of(1)] == 0


def test_missing_files_and_columns_are_refused(tree: Path) -> None:
    labels, _ = tables()
    write(tree / "stage_2_train_labels.csv", without(labels, "Target"))
    refused("has no column 'Target' (rsna)", *given(tree))
    (tree / "stage_2_train_images").rename(tree / "images")
    refused("holds no folder stage_2_train_images", *given(tree))
    (tree / "stage_2_detailed_class_info.csv").unlink()
    refused("holds no stage_2_detailed_class_info.csv", *given(tree))


def test_dicom_greys(tmp_path: Path) -> None:
    path = tmp_path / "one.dcm"
    dicom(path, picture(1), "MONOCHROME1")
    assert np.array_equal(decode_dicom(path.read_bytes())[:, :, 0], 255 - picture(1))
    deep = np.array([[0, 1000], [2000, 4000]], np.uint16)
    dicom(path, deep)
    assert decode_dicom(path.read_bytes())[:, :, 0].tolist() == [[0, 64], [128, 255]]
    dicom(path, picture(2, 3), "RGB")
    assert np.array_equal(decode_dicom(path.read_bytes()), picture(2, 3))
    buffer = io.BytesIO()
    Image.fromarray(picture(4)).save(buffer, "JPEG")  # as the challenge has them
    dicom(path, picture(4), jpeg=buffer.getvalue())
    assert np.array_equal(decode_dicom(path.read_bytes())[:, :, 0], np.asarray(Image.open(buffer)))
    with pytest.raises(ValueError, match="not a readable DICOM picture"):
        decode_dicom(path.read_bytes()[:200])
