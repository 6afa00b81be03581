"""What the packers share: splits that keep, limits that spread, spreadsheets."""

from __future__ import annotations

import hashlib
import importlib.util
from collections import Counter
from pathlib import Path

import pytest

from fedhpc.data.packers.official import carve_val, code_of, hash_split, thin
from fedhpc.data.packers.sheets import read_sheet


def test_hash_split_meets_fractions_and_keeps() -> None:
    names = [f"p{k}" for k in range(5000)]
    one = [hash_split(name, (0.7, 0.1, 0.2), 0) for name in names]
    counts = Counter(one)
    for split, share in (("train", 0.7), ("val", 0.1), ("test", 0.2)):
        assert abs(counts[split] / 5000 - share) < 0.02
    assert one == [hash_split(name, (0.7, 0.1, 0.2), 0) for name in names]
    assert one != [hash_split(name, (0.7, 0.1, 0.2), 1) for name in names]
    drawn = int(hashlib.sha256(b"fedhpc split 0 p17").hexdigest()[:16], 16) / 2.0**64
    assert hash_split("p17", (drawn + 1e-9, 1 - drawn - 1e-9, 0.0), 0) == "train"
    assert hash_split("p17", (drawn - 1e-9, 1 - drawn + 1e-9, 0.0), 0) == "val"
    with pytest.raises(ValueError, match="add up to 1"):
        hash_split("p17", (0.5, 0.1, 0.1), 0)


def test_val_is_carved_from_train_alone() -> None:
    names = [f"p{k}" for k in range(1000)]
    assert {carve_val("test", name, 0.5, 0) for name in names} == {"test"}
    assert 400 < sum(carve_val("train", name, 0.5, 0) == "val" for name in names) < 600
    assert {carve_val("train", name, 0.0, 0) for name in names} == {"train"}
    with pytest.raises(ValueError, match="--val-fraction is 1.5"):
        carve_val("train", "p", 1.5, 0)


def test_thin_spreads() -> None:
    assert thin(range(10), 3) == [0, 3, 6]
    assert thin(range(4), 9) == thin(range(4), None) == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="--limit is 0"):
        thin(range(4), 0)


def test_codes() -> None:
    names = {"1": "present", "no": "absent"}
    assert [code_of(cell, names) for cell in ("1", "1.0", " No ", "2", "bv")] == [
        "present",
        "present",
        "absent",
        None,
        None,
    ]


def test_sheets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = read_sheet(Path(__file__).with_name("Annotation_Base11.xls"))
    assert [row.values["Retinopathy grade"] for row in rows] == ["0", "3", "1"]
    assert rows[0].values["Ophthalmologic department"] == "Service Ophtalmologie Lariboisière"
    assert list(rows[0].values)[3] == "Risk of macular edema" and rows[1].where.endswith(
        "Annotation_Base11.xls, line 3"
    )
    for name in ("torn.xls", "torn.xlsx"):
        (tmp_path / name).write_bytes(b"torn")
        with pytest.raises(ValueError, match=rf"{name} is not a readable .xlsx? file"):
            read_sheet(tmp_path / name)
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "xlrd" else real(name, *a))
    with pytest.raises(ValueError, match=r"torn.xls needs xlrd: pip install .*-e .*sheets"):
        read_sheet(tmp_path / "torn.xls")
