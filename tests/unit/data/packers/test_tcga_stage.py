"""tcga-stage: labels, hospitals kept whole in groups, modalities that are missing, no stage among the features."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedhpc.config.schema import ColumnPartition
from fedhpc.data.hdf5 import PackedFile
from fedhpc.data.packers.tcga import hospital_groups, stage_of
from fedhpc.data.partition import partition_file

from .trees import Cells, assert_patients_whole, by_id, label, pack, refused, sites, without
from .trees import write_table as write

COHORTS = {"BRCA": ("A1", "BH", "E2", "D8"), "LIHC": ("DD", "G3", "CC"), "LUSC": ("22", "34", "85")}
GENES = {"BRCA": ["TP53", "PIK3CA", "TTN"], "LIHC": ["TTN", "TP53", "CTNNB1"], "LUSC": ["TTN", "MUC16", "TP53"]}
EACH = 24


def rows() -> Cells:
    out = []
    for cohort, codes in COHORTS.items():
        for k in range(EACH):
            code = codes[k % len(codes)]
            out.append({
                "case_id": f"TCGA-{code}-{k:04d}", "cohort": cohort, "age": f"{40 + k}.0", "is_female": f"{k % 2}.0",
                "tss_site": code, "oncotree_code": cohort, "survival_months": "1.0", "censored": "1.0",
                "histological_grade": f"G{1 + k % 4}" if cohort == "LIHC" else "",
                "race": ["WHITE", "ASIAN", "[Not Evaluated]", ""][k % 4], "stage": ["I", "II", "III", "IV", ""][k % 5],
            })  # fmt: skip
    return out


def ids(*cohorts: str) -> list[str]:
    return [row["case_id"] for row in rows() if row["cohort"] in cohorts]


def npz(path: Path, key: str, values: np.ndarray, genes: list[str], cases: list[str]) -> None:
    content: dict[str, Any] = {key: values, "genes": np.asarray(genes), "case_id": np.asarray(cases)}
    np.savez(path, **content)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    folder, random = tmp_path / "tcga_stage", np.random.default_rng(0)
    write(folder / "clinical.csv", rows())
    every = ids(*COHORTS)
    npz(folder / "rna_common.npz", "rna", random.normal(size=(72, 5)).astype(np.float16), list("ABCDE"), every)
    cnv = random.integers(-2, 3, (48, 4)).astype(np.int8)
    npz(folder / "cnv_common.npz", "cnv", cnv, list("WXYZ"), ids("BRCA", "LIHC")[::-1])  # in another order
    for cohort, genes in GENES.items():
        mut = random.integers(0, 2, (EACH, 3)).astype(np.int8)
        npz(folder / f"mut_{cohort.lower()}.npz", "mut", mut, genes, ids(cohort))
    return folder


def given(tree: Path) -> tuple[object, ...]:
    return ("tcga-stage", tree, "-o", tree.parent / "out.h5")


def test_labels_and_sites(tree: Path) -> None:
    pack(*given(tree))
    with PackedFile(tree.parent / "out.h5") as packed:
        packed.verify()
        assert packed.num_rows == 72 and packed.patients().tolist() == [row["case_id"] for row in rows()]
        assert label(packed, "stage")[:5] == ["I", "II", "III", "IV", ""]
        assert label(packed, "stage_1_2")[:5] == ["I", "II", "", "", ""]
        assert label(packed, "early_late")[:5] == ["early", "early", "late", "late", ""]
        assert label(packed, "cohort") == [row["cohort"] for row in rows()]
        assert sites(packed) == [row["tss_site"] for row in rows()]
        assert label(packed, "race")[:4] == ["white", "asian", "", ""] and label(packed, "sex")[:2] == [
            "male",
            "female",
        ]
        with np.load(tree / "mut_lihc.npz") as archive:
            expected = [["wild_type", "mutated"][int(value)] for value in archive["mut"][:, 1]]
        assert label(packed, "tp53")[EACH : 2 * EACH] == expected
        assert_patients_whole(packed)


def test_modalities_are_aligned_and_may_be_missing(tree: Path) -> None:
    pack(*given(tree))
    with PackedFile(tree.parent / "out.h5") as packed:
        with np.load(tree / "rna_common.npz") as archive:
            assert np.array_equal(packed.read("tabular/mrna"), archive["rna"])
        assert packed.read("tabular/mrna").dtype == np.float16
        cnv, present = packed.read("tabular/cnv"), packed.read("present/tabular/cnv")
        with np.load(tree / "cnv_common.npz") as archive:
            assert np.array_equal(cnv[:48], archive["cnv"][::-1])
        assert present.tolist() == [True] * 48 + [False] * 24 and np.isnan(cnv[48:]).all()
        columns = packed.tabular_columns
        assert columns["mutation"] == ["CTNNB1", "MUC16", "PIK3CA", "TTN"]  # without TP53: it is the label
        mutation = packed.read("tabular/mutation")
        assert np.isnan(mutation[:24, :2]).all() and not np.isnan(mutation[:, 3]).any()
        with np.load(tree / "mut_brca.npz") as archive:
            assert np.array_equal(mutation[:24, 2:], archive["mut"][:, 1:])
        assert packed.read("present/tabular/mutation").all()
        assert columns["clinical"] == [
            "age", "is_female", "grade", "race_white", "race_black", "race_asian", "race_other"
        ]  # fmt: skip
        clinical = packed.read("tabular/clinical")
        assert clinical[25].tolist() == [41.0, 1.0, 2.0, 0.0, 0.0, 1.0, 0.0]
        assert np.isnan(clinical[2, 2:]).all() and packed.read("present/tabular/clinical").all()
        names = {name for each in columns.values() for name in each}
        assert not [name for name in names if any(word in name.lower() for word in ("stage", "surviv", "os_"))]


def test_common_mutation_genes(tree: Path) -> None:
    pack(*given(tree), "--mutation-genes", "common")
    with PackedFile(tree.parent / "out.h5") as packed:
        assert packed.tabular_columns["mutation"] == ["TTN"] and not np.isnan(packed.read("tabular/mutation")).any()


def test_hospital_groups_are_nine_clients_of_whole_hospitals(tree: Path) -> None:
    pack(*given(tree))
    with PackedFile(tree.parent / "out.h5") as packed:
        group = by_id(packed, label(packed, "hospital_group"))
        of_hospital = {(patient[5:7], g) for patient, g in group.items()}
        assert len(of_hospital) == 10 and len(set(group.values())) == 9
        clients = partition_file(
            ColumnPartition(kind="column", column="hospital_group", min_examples=1), packed, 0
        )  # fmt: skip
        assert [sum(len(c.rows(s)) for s in ("train", "val", "test")) for c in clients] == [12, 6, 6, *[8] * 6]
        assert np.abs(np.bincount(packed.read("split")) - [43.2, 14.4, 14.4]).max() <= 1


def test_groups_are_even_and_refuse_too_many() -> None:
    hospital = ["a"] * 5 + ["b"] * 4 + ["c"] * 3 + ["d"] * 2
    group = hospital_groups(["X"] * 14, hospital, 2)
    assert Counter(group) == {"X-1": 7, "X-2": 7}  # 5 + 2, 4 + 3
    assert len(set(zip(hospital, group, strict=True))) == 4
    with pytest.raises(ValueError, match="X has only 4 hospitals"):
        hospital_groups(["X"] * 14, hospital, 5)
    with pytest.raises(ValueError, match="--groups is 0"):
        hospital_groups(["X"] * 14, hospital, 0)


def test_stages() -> None:
    cells = (
        "Stage IIA",
        "stage iv",
        "I",
        "stage iiic",
        "Stage IA2",
        "Stage X",
        "Stage 0",
        "IIx",
        "",
        "stage tis",
        "Stage IS",
    )
    assert [stage_of(cell) for cell in cells] == ["II", "IV", "I", "III", "I", "", "", "", "", "", ""]


def test_other_layouts_are_refused(tree: Path) -> None:
    def changed(file: str, **changes: Any) -> None:
        with np.load(tree / file) as archive:
            content = {name: archive[name] for name in archive} | changes
        np.savez(tree / file, **{name: value for name, value in content.items() if value is not None})

    refused("--groups is 4, but LIHC has only 3 hospitals", *given(tree), "--groups", 4)
    changed("cnv_common.npz", genes=np.asarray(["A", "B"]))
    refused("cnv must be numbers [48, 2], not int8 [48, 4]", *given(tree))
    changed("rna_common.npz", case_id=None)
    refused("rna_common.npz lacks case_id", *given(tree))
    (tree / "rna_common.npz").write_bytes(b"torn")
    refused("rna_common.npz is truncated or no npz archive", *given(tree))
    changed("mut_lusc.npz", genes=np.asarray(["TTN", "MUC16", "KRAS"]))
    refused("mut_lusc.npz lacks TP53", *given(tree))
    changed("mut_lusc.npz", genes=np.asarray(["TTN", "TP53", "KRAS"]), mut=np.full((EACH, 3), 2, np.int8))
    refused("mut_lusc.npz: mut must be 0 or 1", *given(tree))
    (tree / "mut_lusc.npz").unlink()
    refused("holds no mut_lusc.npz: give the folder tcga_stage", *given(tree))
    write(tree / "clinical.csv", without(rows(), "stage"))
    refused("clinical.csv has no column 'stage' (tcga-stage)", *given(tree))
    (tree / "clinical.csv").unlink()
    refused("holds no clinical.csv: give the folder tcga_stage", *given(tree))


def test_bad_cells_are_named(tree: Path) -> None:
    for column, cell, message in (
        ("age", "old", "line 3: age is 'old', not a number"),
        ("race", "GREEN", "line 3: race is 'GREEN'"),
        ("histological_grade", "G7", "line 3: histological_grade is 'G7'"),
    ):
        bad = rows()
        bad[1][column] = cell
        write(tree / "clinical.csv", bad)
        refused(message, *given(tree))
    bad = rows()[:-1]
    write(tree / "clinical.csv", bad)
    refused("more patients that", *given(tree))
