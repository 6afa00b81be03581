"""cxr-sites --and cxr_text: three hospitals and the literature in one file."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedhpc.data.hdf5 import PackedFile
from fedhpc.data.packers.cli_shared import small_sites

from .trees import Cells, assert_patients_whole, by_id, label, pack, picture, refused, save, sites, without
from .trees import write_table as write

TEMPLATE, FIELDS = "template_from_labels", "template_from_structured_fields"


def site_rows() -> Cells:
    return [
        {
            "index": str(k), "site": "nih_clinical_center" if k < 6 else "guangzhou_wcmc",
            "country": "USA" if k < 6 else "China", "label": ["normal", "pneumonia"][k % 2],
            "findings": ["No Finding", "Pneumonia"][k % 2], "view": "PA", "sex": "M" if k < 6 else "",
            "age": "50" if k < 6 else "", "patient_id": f"s{k // 2}", "text": "PA chest radiograph.",
            "text_kind": TEMPLATE, "license": "CC BY 4.0", "source_file": f"{k}.png", "mask_row": str(max(k - 8, -1)),
        }
        for k in range(10)
    ]  # fmt: skip


def text_rows() -> Cells:
    reviewers = ["lungVAE model-generated CC BY-SA", "v7labs human-reviewed CC BY 4.0"]
    labels = ["COVID-19", "", "No Finding", "COVID-19", "ARDS", "Pneumocystis"]
    return [
        {
            "image_id": f"t{k}", "image": f"images/t{k}.png", "mask": f"masks/t{k}.png" if k > 3 else "",
            "mask_source": reviewers[k % 2] if k > 3 else "",
            "patient_id": f"h{k // 2}", "text": "AP projection, day 3." if k < 4 else "Severe ARDS.",
            "text_kind": FIELDS if k < 4 else "clinical_note", "label": labels[k], "view": "AP",
            "sex": "F" if k < 4 else "", "age": "", "offset_days": "3", "survival": "", "went_icu": "Y",
            "site": "hannover" if k < 4 else "en.wikipedia.org", "location": "", "country": "Germany" if k < 4 else "",
            "license": "CC BY 3.0", "source_url": "", "doi": "", "source_file": "", "origin_repo": "",
        }
        for k in range(6)
    ]  # fmt: skip


def archive(path: Path, key: str, pictures: list[np.ndarray]) -> None:
    parts = []
    for array in pictures:
        buffer = io.BytesIO()
        Image.fromarray(array).save(buffer, "PNG")
        parts.append(buffer.getvalue())
    offsets = np.concatenate([[0], np.cumsum([len(part) for part in parts])])
    np.savez(path, **{key: np.frombuffer(b"".join(parts), np.uint8), "offsets": offsets})


def mask(number: int) -> np.ndarray:
    return (picture(number) > 128).astype(np.uint8) * 255


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    write(tmp_path / "sites/metadata.csv", site_rows())
    archive(tmp_path / "sites/cxr128_jpeg.npz", "jpeg", [picture(k) for k in range(10)])
    archive(tmp_path / "sites/lungmask128_png.npz", "png", [mask(50), mask(51)])
    write(tmp_path / "text/metadata.csv", text_rows())
    for k in range(6):
        save(tmp_path / f"text/images/t{k}.png", picture(20 + k))
        if k > 3:
            save(tmp_path / f"text/masks/t{k}.png", mask(60 + k))
    return tmp_path


def given(tree: Path) -> tuple[object, ...]:
    return ("cxr-sites", tree / "sites", "--and", tree / "text", "-o", tree / "out.h5", "--image-size", 32,
            "--split", "0.5,0.25,0.25")  # fmt: skip


def test_both_folders_in_one_file(tree: Path) -> None:
    pack(*given(tree))
    with PackedFile(tree / "out.h5") as packed:
        packed.verify()
        assert packed.row_ids().tolist() == [f"sites-{k}" for k in range(10)] + [f"text-t{k}" for k in range(6)]
        assert sites(packed) == (
            ["nih_clinical_center"] * 6 + ["guangzhou_wcmc"] * 4 + ["hannover"] * 4 + ["literature"] * 2
        )
        for row, number in ((0, 0), (9, 9), (10, 20), (15, 25)):
            assert np.array_equal(packed.read("image", np.array([row]))[0, :, :, 0], picture(number))
        mask_row = packed.read("mask_row")
        assert np.flatnonzero(mask_row >= 0).tolist() == [8, 9, 14, 15]
        for row, number in ((8, 50), (9, 51), (14, 64), (15, 65)):
            assert np.array_equal(packed.read("mask", mask_row[[row]])[0] * 255, mask(number))
        assert by_id(packed, label(packed, "mask_source"))["text-t4"] == "lungvae_model_generated"
        assert label(packed, "mask_source")[7:10] == ["", *["v7labs_human_reviewed"] * 2]
        assert label(packed, "label")[10:] == ["pneumonia", "", "normal", "pneumonia", "", "pneumonia"]
        assert label(packed, "findings")[8:12] == ["No Finding", "Pneumonia", "COVID-19", ""]
        assert label(packed, "text_kind") == [TEMPLATE] * 10 + [FIELDS] * 4 + ["clinical_note"] * 2
        assert packed.texts()[10] == "AP projection, day 3." and "TEMPLATE TEXT" in packed.note
        assert packed.read("tabular/demographics")[0].tolist() == [1.0, 50.0]
        assert packed.read("present/tabular/demographics").sum() == 6
        assert "CC BY 3.0" in packed.licence and "NIH" in packed.source
        assert_patients_whole(packed)


def test_sites_that_robust_weights_would_refuse_are_named(tree: Path) -> None:
    result = pack(*given(tree))
    for part in (
        "sites with fewer than 2 training or validation rows: ", "literature (2 train, 0 val, 0 test)",
        "set partition.leave_out: [", "or pack again with --hospitals-only",
    ):  # fmt: skip
        assert part in result.output, result.output
    with PackedFile(tree / "out.h5") as packed:
        split, site = packed.read("split"), packed.read("site")
        for name, *counts in small_sites(tree / "out.h5"):
            here = site == packed.site_names.index(name)
            assert counts == [int((here & (split == k)).sum()) for k in range(3)] and min(counts[:2]) < 2


def test_hospitals_only(tree: Path) -> None:
    pack(*given(tree), "--hospitals-only")
    with PackedFile(tree / "out.h5") as packed:
        assert packed.num_rows == 14 and packed.site_names == ["guangzhou_wcmc", "hannover", "nih_clinical_center"]
    refused("--hospitals-only has no effect without --and", "cxr-sites", tree / "sites", "-o", tree / "x.h5",
            "--hospitals-only")  # fmt: skip


def test_bad_rows_are_named_or_dropped(tree: Path) -> None:
    (tree / "text/images/t1.png").write_bytes(b"torn")
    refused("line 3: picture text:images/t1.png: not a readable picture", *given(tree))
    rows = text_rows()
    rows[2]["label"] = "todo"
    write(tree / "text/metadata.csv", rows)
    refused("line 4: label is 'todo': No Finding, COVID-19, Pneumocystis, ARDS or empty", *given(tree))
    (tree / "text/masks/t4.png").unlink()
    result = pack(*given(tree), "--skip-bad")
    assert "missing picture 1, unknown label 1, unreadable picture 1" in result.output


def test_missing_files_and_columns_are_refused(tree: Path) -> None:
    write(tree / "text/metadata.csv", without(text_rows(), "mask_source"))
    refused("has no column 'mask_source' (cxr-sites --and)", *given(tree))
    (tree / "text/metadata.csv").unlink()
    refused("metadata.csv does not exist", *given(tree))
