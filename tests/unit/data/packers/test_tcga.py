"""The user's own TCGA, in the layouts of dgb-pcw-fl, Xena and Firehose."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from fedhpc.data.hdf5 import PackedFile
from fedhpc.data.packers.tcga import missing
from fedhpc.data.packers.tcga_tables import Dropped, read_numbers, read_words

from .trees import Cells, assert_patients_whole, by_id, label, pack, refused, sites
from .trees import write_table as write

BRCA = [f"TCGA-{site}-{k:04d}" for k, site in enumerate(("A1", "BH", "E2", "D8") * 3)]
LUSC = [f"TCGA-{site}-{k:04d}" for k, site in enumerate(("22", "34", "85") * 3)]
STAGES = ("stage i", "stage iib", "stage iiia", "stage iv", "stage x")


def across(path: Path, corner: str, columns: Sequence[str], rows: dict[str, Sequence[object]]) -> None:
    """A matrix of tabs with samples across, as Xena writes them."""
    lines = [[corner, *columns], *([name, *map(str, cells)] for name, cells in rows.items())]
    data = "".join("\t".join(line) + "\n" for line in lines).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def down(patients: Sequence[str], columns: Sequence[str], seed: int) -> Cells:
    random = np.random.default_rng(seed)
    return [
        {"": str(k), "pid": patient.lower(), **{name: f"{random.normal():.4f}" for name in columns}}
        for k, patient in enumerate(patients)
    ]


@pytest.fixture
def upstream(tmp_path: Path) -> Path:
    """The files that dgb-pcw-fl reads: pid and columns of numbers."""
    folder = tmp_path / "data"
    for cohort, patients in (("brca", BRCA), ("lusc", LUSC)):
        genes = ["g1", "g2", "g3"] if cohort == "brca" else ["g3", "g1", "g4"]
        write(folder / f"{cohort}_mrna.csv", down(patients, genes, 1))
        write(folder / f"{cohort}_image.csv", down(patients[:6], [f"f{k}" for k in range(150)], 2))
        write(folder / f"{cohort}_clinical.csv", down(patients[2:], ["c1", "c2", "days_to_death"], 3))
        stages = [{"": str(k), "pid": p.lower(), "stage": STAGES[k % 5]} for k, p in enumerate(patients)]
        write(folder / f"{cohort}_stages.csv", stages)
    return folder


@pytest.fixture
def xena(tmp_path: Path) -> Path:
    """Names, headers and barcodes of Xena's GDC hub (BRCA) and of its TCGA hub (LUSC)."""
    folder = tmp_path / "xena"
    folder.mkdir()
    random = np.random.default_rng(0)
    samples = [f"{patient}-01A" for patient in BRCA]
    samples[3:3] = [f"{BRCA[2]}-01B", f"{BRCA[2]}-11A", f"{BRCA[5]}-06A"]
    values = random.normal(size=(3, len(samples))).round(3)
    genes = {f"ENSG0000000000{k}.15": list(values[k]) for k in range(3)}
    genes["ENSG00000000001.15"][0] = ""
    across(folder / "TCGA-BRCA.star_fpkm.tsv.gz", "Ensembl_ID", samples, genes)
    clinical: Cells = [
        {
            "sample": sample, "id": "a-uuid", "submitter_id": sample[:12], "gender.demographic": "female",
            "race.demographic": ["white", "not reported"][k % 2], "age_at_index.demographic": str(50 + k),
            "ajcc_pathologic_stage.diagnoses": ["Stage IA", "Stage II", "", "Stage X"][k % 4],
            "days_to_death.demographic": "7",
        }
        for k, sample in enumerate(samples)
    ]  # fmt: skip
    write(folder / "TCGA-BRCA.clinical.tsv.gz", clinical, delimiter="\t")
    flags = {"TP53": [k % 2 for k in range(12)], "PIK3CA": [0, 1, 1] * 4}
    across(folder / "TCGA.BRCA.sampleMap_mutation_broad_gene.gz", "sample", [f"{p}-01" for p in BRCA], flags)
    lusc = {f"ENSG0000000000{k}.15": [float(k)] * 9 for k in (2, 1, 7)}
    across(folder / "TCGA.LUSC.sampleMap_HiSeqV2.gz", "sample", [f"{p}-01" for p in LUSC], lusc)
    old: Cells = [
        {
            "sampleID": f"{p}-01", "gender": "MALE", "age_at_initial_pathologic_diagnosis": str(60 + k),
            "pathologic_stage": ["Stage IB", "Stage IIIA", "[Discrepancy]"][k % 3],
        }
        for k, p in enumerate(LUSC)
    ]  # fmt: skip
    write(folder / "TCGA.LUSC.sampleMap_LUSC_clinicalMatrix", old, delimiter="\t")
    return folder


def given(tree: Path) -> tuple[object, ...]:
    return ("tcga", tree, "-o", tree.parent / "out.h5")


def test_the_layout_of_upstream(upstream: Path) -> None:
    pack(*given(upstream))
    with PackedFile(upstream.parent / "out.h5") as packed:
        packed.verify()
        assert packed.num_rows == 21 and packed.patients().tolist() == sorted(BRCA + LUSC)
        stage = by_id(packed, label(packed, "stage"))
        assert [stage[p] for p in BRCA[:5]] == ["I", "II", "III", "IV", ""]
        assert (
            packed.tabular_columns["mrna"] == ["g1", "g3"] and "2 features that all cohorts have, of 4" in packed.note
        )
        assert packed.tabular_columns["clinical"] == ["c1", "c2"]  # what tells the outcome is left out
        assert len(packed.tabular_columns["histology"]) == 150
        mrna = by_id(packed, packed.read("tabular/mrna"))
        row = down(LUSC, ["g3", "g1", "g4"], 1)[4]
        assert np.allclose(mrna[LUSC[4]], [float(row["g1"]), float(row["g3"])])
        has = {name: by_id(packed, packed.read(f"present/tabular/{name}")) for name in packed.tabular_columns}
        assert [sum(has[name].values()) for name in ("mrna", "histology", "clinical")] == [21, 12, 17]
        assert not has["clinical"][BRCA[0]] and np.isnan(by_id(packed, packed.read("tabular/clinical"))[BRCA[0]]).all()
        assert set(label(packed, "cohort")) == {"BRCA", "LUSC"} and len(packed.label_classes["hospital_group"]) == 6
        assert sites(packed) == [patient[5:7] for patient in packed.patients()]
        assert "tp53" not in packed.label_classes
        assert_patients_whole(packed)


def test_the_files_of_xena(xena: Path) -> None:
    pack(*given(xena))
    with PackedFile(xena.parent / "out.h5") as packed:
        packed.verify()
        assert packed.num_rows == 21 and packed.tabular_columns["mrna"] == ["ENSG00000000001.15", "ENSG00000000002.15"]
        values = np.random.default_rng(0).normal(size=(3, 15)).round(3)
        mrna = by_id(packed, packed.read("tabular/mrna"))
        assert np.allclose(mrna[BRCA[2]], values[1:, 2]) and np.allclose(mrna[BRCA[3]], values[1:, 6])  # 01A, not 01B
        assert np.allclose(mrna[BRCA[5]], values[1:, 8]) and mrna[LUSC[0]].tolist() == [1.0, 2.0]
        assert np.isnan(mrna[BRCA[0]][0]) and packed.read("present/tabular/mrna").all()
        assert "Left out: 1 further samples of a patient. Left out: 2 samples that are no primary" in packed.note
        stage = by_id(packed, label(packed, "stage"))
        assert [stage[p] for p in BRCA[:3]] == ["I", "II", ""] and [stage[p] for p in LUSC[:3]] == ["I", "III", ""]
        clinical = by_id(packed, packed.read("tabular/clinical"))
        assert clinical[BRCA[0]].tolist() == [50.0, 1.0, 1.0, 0.0, 0.0, 0.0]
        assert clinical[LUSC[1]][:2].tolist() == [61.0, 0.0] and np.isnan(clinical[LUSC[1]][2:]).all()
        assert packed.tabular_columns["clinical"][:3] == ["age", "is_female", "race_white"]
        tp53 = by_id(packed, label(packed, "tp53"))
        assert [tp53[p] for p in (*BRCA[:2], LUSC[0])] == ["wild_type", "mutated", ""]
        assert packed.tabular_columns["mutation"] == ["PIK3CA"]
        assert packed.read("present/tabular/mutation").sum() == 12 and "TCGA-BRCA.star_fpkm.tsv.gz" in packed.source


def test_options(xena: Path) -> None:
    (xena.parent / "genes.txt").write_text("ENSG00000000001.15\nTP53\n\n")
    pack(*given(xena), "--cohorts", "brca", "--genes", xena.parent / "genes.txt", "--clinical-columns",
         "age_at_index.demographic,race", "--groups", 2, "--split", "0.5,0.25,0.25")  # fmt: skip
    with PackedFile(xena.parent / "out.h5") as packed:
        assert packed.num_rows == 12 and packed.tabular_columns == {
            "mrna": ["ENSG00000000001.15"], "clinical": ["age_at_index.demographic", "race=white"]
        }  # fmt: skip
        assert packed.label_classes["tp53"] == ["wild_type", "mutated"]
        assert packed.label_classes["hospital_group"] == ["BRCA-1", "BRCA-2"]
    refused("holds no file of KIRC (--cohorts)", "tcga", xena, "-o", xena / "x.h5", "--cohorts", "KIRC")
    refused(
        "has no column 'weight' (--clinical-columns)", "tcga", xena, "-o", xena / "x.h5", "--clinical-columns", "weight"
    )
    refused("has no column grade: set --stage-column", "tcga", xena, "-o", xena / "x.h5", "--stage-column", "grade")
    refused("--genes takes a text file", "tcga", xena, "-o", xena / "x.h5", "--genes", xena / "none.txt")
    (xena.parent / "genes.txt").write_text("BRCA7\n")
    refused("has no rows of numbers of the names that --genes lists", "tcga", xena, "-o", xena / "x.h5",
            "--genes", xena.parent / "genes.txt")  # fmt: skip


def test_firehose_tables(tmp_path: Path) -> None:
    """Two header lines in the expression table; fields down and patients across in the clinical one."""
    path = tmp_path / "BRCA.rnaseqv2.txt"
    across(path, "Hybridization REF", [f"{p}-01A-11R" for p in BRCA[:2]], {
        "gene_id": ["normalized_count"] * 2, "?|100": [1, 2], "TP53|7157": [3, "NA"],
    })  # fmt: skip
    table = read_numbers(path, Dropped())
    assert list(table.columns) == ["?|100", "TP53|7157"] and list(table.patients) == BRCA[:2]
    assert table.values[0].tolist() == [1.0, 3.0] and np.isnan(table.values[1, 1])
    path = tmp_path / "BRCA.clin.merged.picked.txt"
    across(path, "Hybridization REF", [p.lower() for p in BRCA[:2]], {
        "years_to_birth": [50, "NA"], "pathologic_stage": ["stage iia", "stage x"],
    })  # fmt: skip
    assert read_words(path) == (BRCA[:2], {"years_to_birth": ["50", ""], "pathologic_stage": ["stage iia", "stage x"]})


def test_rows_of_one_patient_become_one(tmp_path: Path) -> None:
    """clinical.tsv of the GDC has one row a treatment."""
    write(tmp_path / "clinical.tsv", [
        {"cases.submitter_id": BRCA[0], "project.project_id": "TCGA-BRCA", "demographic.race": "'--",
         "diagnoses.ajcc_pathologic_stage": "Stage I"},
        {"cases.submitter_id": BRCA[0], "project.project_id": "TCGA-BRCA", "demographic.race": "asian",
         "diagnoses.ajcc_pathologic_stage": "Stage II"},
    ], delimiter="\t")  # fmt: skip
    patients, columns = read_words(tmp_path / "clinical.tsv")
    assert patients == BRCA[:1] and columns["demographic.race"] == ["asian"]
    assert columns["diagnoses.ajcc_pathologic_stage"] == ["Stage I"]
    assert all(missing(cell) for cell in ("", "[Not Available]", "not reported", "'--", "NA")) and not missing("white")


def test_bad_tables_are_named(xena: Path, upstream: Path) -> None:
    def broken(text: str, name: str = "brca_mrna.csv") -> None:
        (upstream / name).write_text(text)

    broken("pid,g1,g3\ntcga-a1-0000,1\n")
    refused("brca_mrna.csv, line 2: 2 cells, but the header has 3", *given(upstream))
    broken("pid,g1,g3\ntcga-a1-0000,1,high\n")
    refused("brca_mrna.csv, line 2: 'high' is not a number", *given(upstream))
    broken("pid,g1,g1\ntcga-a1-0000,1,2\n")
    refused("the column 'g1' occurs twice", *given(upstream))
    broken("pid,g1,g3\npatient7,1,2\n")
    refused("a barcode such as TCGA-BH-A0B3", *given(upstream))
    broken("pid,g1,g3\nTCGA-A1-0000-11A,1,2\n")
    refused("has no sample of a primary tumour", *given(upstream))
    broken("pid,g1,g3\n")
    refused("brca_mrna.csv has no rows below its header", *given(upstream))
    broken("pid,h1,h3\ntcga-a1-0000,1,2\n")
    refused("mrna: the tables of BRCA, LUSC share no feature", *given(upstream))
    broken(f"pid,g1,g3\n{LUSC[0]},1,2\n")
    refused(f"has {LUSC[0]}, who is in a table of", *given(upstream))
    broken("pid,g1,g3\ntcga-a1-0000,1,2\n", "brca_mrna.tsv")
    refused("are both mrna of BRCA: keep the one", *given(upstream))
    (upstream / "brca_mrna.tsv").unlink()
    (upstream / "brca_mrna.csv").unlink()
    (upstream / "brca_stages.csv").unlink()
    refused("has no column of stages, and there is no brca_stages", *given(upstream))
    (xena / "TCGA-BRCA.star_fpkm.tsv.gz").write_bytes(b"\x1f\x8b torn")
    refused("is truncated or no text table", *given(xena))


def test_other_folders_are_refused(tmp_path: Path) -> None:
    refused("holds no table of TCGA: give a folder that holds for each cohort", *given(tmp_path))
    refused("is no folder: give a folder that holds", "tcga", tmp_path / "none", "-o", tmp_path / "x.h5")
    folder = tmp_path / "only"
    write(folder / "brca_stages.csv", [{"pid": BRCA[0], "stage": "stage i"}])
    refused("of BRCA, but no modality", *given(folder))
    write(folder / "brca_mrna.csv", down(BRCA, ["g1"], 0))
    write(folder / "brca_stages.csv", [{"pid": BRCA[0], "stage": "stage x"}])
    refused("no patient has a stage I to IV", *given(folder))
