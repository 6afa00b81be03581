"""The real datasets of ../shared/data are packed as their PROVENANCE.md says."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from fedhpc.config.schema import ColumnPartition, DirichletPartition
from fedhpc.data.hdf5 import PackedFile
from fedhpc.data.packers.bccd_cells import PBC_CLASSES
from fedhpc.data.packers.cli import pack_app
from fedhpc.data.packers.pbc_wbcatt import ATTRIBUTES
from fedhpc.data.partition import partition_file

pytestmark = pytest.mark.real


def pack(data: Path, folder: Path, dataset: str, *options: str) -> Path:
    out = folder / f"{dataset}.h5"
    source = data / dataset.replace("-", "_")
    result = CliRunner().invoke(pack_app, [dataset, str(source), "-o", str(out), *options])
    assert result.exit_code == 0, result.output
    return out


def metadata(data: Path, dataset: str) -> list[dict[str, str]]:
    return metadata_of(data / dataset / "metadata.csv")


def metadata_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def pbc(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack(shared_data, tmp_path_factory.mktemp("pbc"), "pbc-wbcatt")


@pytest.fixture(scope="module")
def cxr(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack(shared_data, tmp_path_factory.mktemp("cxr"), "cxr-sites")


def test_pbc_has_the_counts_of_its_provenance(pbc: Path) -> None:
    with PackedFile(pbc) as packed:
        packed.verify()
        assert packed.num_rows == 12_098 and packed.image_shape == (64, 64, 3) and not packed.generated
        assert packed.licence.startswith("CC BY 4.0")
        classes = packed.label_classes
        assert set(classes) == {"cell_type", *ATTRIBUTES} and len(classes["cell_type"]) == 8
        cells = dict(zip(classes["cell_type"], np.bincount(packed.read("label/cell_type")).tolist(), strict=True))
        assert cells == {
            "basophil": 1218, "eosinophil": 3117, "erythroblast": 600, "ig": 600, "lymphocyte": 1214, "monocyte": 1420,
            "neutrophil": 3329, "platelet": 600,
        }  # fmt: skip
        captioned = packed.read("present/text")
        assert captioned.sum() == 10_298 and len(set(packed.texts(np.flatnonzero(captioned)))) == 363
        for name in ATTRIBUTES:
            assert np.array_equal(packed.read(f"label/{name}") >= 0, captioned)
        split = packed.read("split")
        assert np.bincount(split[captioned]).tolist() == [6169, 1030, 3099]  # official
        assert np.bincount(split[~captioned]).tolist() == [1260, 180, 360]


def test_pbc_rows_are_those_of_the_table(pbc: Path, shared_data: Path) -> None:
    rows = metadata(shared_data, "pbc_wbcatt")
    with PackedFile(pbc) as packed:
        assert packed.row_ids().tolist() == [row["index"] for row in rows]
        assert packed.texts() == [row["caption"] for row in rows]
        for name in ("cell_type", "granule_type", "cytoplasm_colour"):
            names = [*packed.label_classes[name], ""]  # -1: the empty cell
            key = "label" if name == "cell_type" else name
            assert [names[code] for code in packed.read(f"label/{name}")] == [row[key] for row in rows]
        tokens = packed.read("tokens")
        assert packed.max_tokens == 64 and (tokens[:, -1] == packed.pad_token).all()  # no caption is cut
        clients = partition_file(
            DirichletPartition(kind="dirichlet", label="cell_type", num_clients=8, alpha=0.5, min_examples=100),
            packed,
            0,
        )
        assert sum(client.num_rows for client in clients) == 12_098


def test_pbc_encoded_and_captioned_only(pbc: Path, shared_data: Path, tmp_path: Path) -> None:
    small = pack(shared_data, tmp_path, "pbc-wbcatt", "--captioned-only", "--keep-encoded")
    with PackedFile(small) as packed, PackedFile(pbc) as whole:
        packed.verify()
        assert packed.num_rows == 10_298 and packed.read("present/text").all()
        rows = np.random.default_rng(0).permutation(10_298)[:200]
        there = np.flatnonzero(np.isin(whole.row_ids(), packed.row_ids(np.sort(rows))))
        assert np.array_equal(packed.read("image", np.sort(rows)), whole.read("image", there))
        assert small.stat().st_size < pbc.stat().st_size / 3


def test_pbc_captions_that_do_not_give_the_type_away(shared_data: Path, tmp_path: Path) -> None:
    path = pack(shared_data, tmp_path, "pbc-wbcatt", "--captioned-only", "--hide-type", "--hide-granules")
    rows = [row for row in metadata(shared_data, "pbc_wbcatt") if row["caption"]]
    with PackedFile(path) as packed:
        texts = packed.texts()
        assert not any(word in text for text in set(texts) for word in (*packed.label_classes["cell_type"], "granules"))
        assert packed.label_classes["granule_type"], "the attributes are kept as labels"
    for row, text in list(zip(rows, texts, strict=True))[::500]:
        assert text == row["caption"].replace(f" {row['label']} ", " cell ").rsplit(";", 1)[0] + "."


def test_cxr_has_the_counts_of_its_provenance(cxr: Path) -> None:
    with PackedFile(cxr) as packed:
        packed.verify()
        assert packed.num_rows == 1960 and packed.image_shape == (128, 128, 1)
        assert packed.site_names == ["guangzhou_wcmc", "nih_clinical_center"]
        site = packed.read("site")
        assert np.bincount(site).tolist() == [960, 1000]
        assert packed.label_classes["label"] == ["normal", "pneumonia"]
        label = packed.read("label/label")
        assert [int((label[site == k] == 0).sum()) for k in (0, 1)] == [320, 500]
        assert len(set(packed.patients()[site == 1])) == 682
        assert packed.label_classes["text_kind"] == ["template_from_labels"] and "TEMPLATE TEXT" in packed.note
        mask_row, masks = packed.read("mask_row"), packed.read("mask")
        assert (mask_row >= 0).sum() == len(set(mask_row[mask_row >= 0])) == len(masks) == 724
        assert (site[mask_row >= 0] == 0).all() and set(np.unique(masks)) == {0, 1}
        assert 0.05 < masks.mean() < 0.6
        demographics = packed.read("tabular/demographics")
        assert packed.tabular_columns == {"demographics": ["sex_male", "age"]}
        assert np.array_equal(packed.read("present/tabular/demographics"), site == 1)
        assert np.nansum(demographics[:, 0]) == 523 and np.isnan(demographics[site == 0]).all()


def raw(path: Path, index: int) -> np.ndarray:
    """Picture `index` of an npz archive, as uint8 [H, W]."""
    with np.load(path, allow_pickle=False) as archive:
        data, offsets = archive["jpeg" if "jpeg" in archive else "png"], archive["offsets"]
    return np.asarray(Image.open(io.BytesIO(data[offsets[index] : offsets[index + 1]].tobytes())))


def test_cxr_pictures_and_masks_are_those_of_the_archives(cxr: Path, shared_data: Path) -> None:
    folder = shared_data / "cxr_sites"
    rows = metadata(shared_data, "cxr_sites")
    masked = [k for k, row in enumerate(rows) if int(row["mask_row"]) >= 0]
    with PackedFile(cxr) as packed:
        mask_row = packed.read("mask_row")
        assert np.flatnonzero(mask_row >= 0).tolist() == masked
        for k in (masked[0], masked[100], masked[-1]):
            image = packed.read("image", np.array([k]))[0, :, :, 0]
            assert np.array_equal(image, raw(folder / "cxr128_jpeg.npz", int(rows[k]["index"])))
            mask = packed.read("mask", mask_row[[k]])[0]
            assert np.array_equal(mask * 255, raw(folder / "lungmask128_png.npz", int(rows[k]["mask_row"])))


def test_cxr_sites_are_clients_and_patients_stay_whole(cxr: Path) -> None:
    with PackedFile(cxr) as packed:
        clients = partition_file(ColumnPartition(kind="column", column="site"), packed, 0)
        assert [client.site for client in clients] == packed.site_names
        patients, split = packed.patients(), packed.read("split")
        assert len(set(zip(patients.tolist(), split.tolist(), strict=True))) == len(set(patients)) == 1423
        share = np.bincount(split) / len(split)
        assert np.abs(share - [0.7, 0.1, 0.2]).max() < 0.03


def test_cxr_at_64_pixels(shared_data: Path, tmp_path: Path) -> None:
    with PackedFile(pack(shared_data, tmp_path, "cxr-sites", "--image-size", "64")) as packed:
        assert packed.image_shape == (64, 64, 1) and packed.read("mask").shape == (724, 64, 64)


def test_cxr_of_four_sites(shared_data: Path, tmp_path: Path) -> None:
    given = ("--and", str(shared_data / "cxr_text"), "--max-tokens", "96")
    with PackedFile(pack(shared_data, tmp_path, "cxr-sites", *given)) as packed:
        packed.verify()
        assert packed.site_names == ["guangzhou_wcmc", "hannover", "literature", "nih_clinical_center"]
        site = packed.read("site")
        assert np.bincount(site).tolist() == [960, 243, 8, 1000] and packed.image_shape == (128, 128, 1)
        kinds = packed.label_classes["text_kind"]
        assert dict(zip(kinds, np.bincount(packed.read("label/text_kind")).tolist(), strict=True)) == {
            "clinical_note": 8, "template_from_labels": 1960, "template_from_structured_fields": 243,
        }  # fmt: skip
        label = packed.read("label/label")
        assert packed.label_classes["label"] == ["normal", "pneumonia"]
        assert [[int((label[site == k] == c).sum()) for c in (0, 1, -1)] for k in range(4)] == [
            [320, 640, 0], [5, 77, 161], [0, 7, 1], [500, 500, 0],
        ]  # fmt: skip
        mask_row = packed.read("mask_row")
        assert [int((mask_row[site == k] >= 0).sum()) for k in range(4)] == [724, 0, 4, 0]
        assert set(np.unique(packed.read("mask"))) == {0, 1}
        patients, split = packed.patients(), packed.read("split")
        assert len(set(zip(patients.tolist(), split.tolist(), strict=True))) == len(set(patients)) == 1501
        rows = metadata(shared_data, "cxr_text")
        first = np.asarray(Image.open(shared_data / "cxr_text" / rows[0]["image"]))
        assert packed.row_ids()[1960] == f"text-{rows[0]['image_id']}" and packed.texts()[1960] == rows[0]["text"]
        assert np.array_equal(packed.read("image", np.array([1960]))[0, :, :, 0], first)
        assert (packed.read("tokens")[site == 1][:, -1] == packed.pad_token).all()  # no template is cut


def test_bccd_has_the_counts_of_its_provenance(shared_data: Path, tmp_path: Path) -> None:
    with PackedFile(pack(shared_data, tmp_path, "bccd-cells")) as packed:
        packed.verify()
        assert packed.num_rows == 1333 and packed.image_shape == (64, 64, 3)
        kinds = dict(zip(packed.label_classes["kind"], np.bincount(packed.read("label/kind")).tolist(), strict=True))
        assert kinds == {"white cell": 372, "red cell": 600, "platelet": 361}
        code = packed.read("label/cell_type")
        assert packed.label_classes["cell_type"] == list(PBC_CLASSES) and (code >= 0).sum() == 341 + 361
        rows = metadata(shared_data, "bccd_cells")
        assert packed.patients().tolist() == [row["smear"] for row in rows]
        smears = set(zip(packed.patients().tolist(), packed.read("split").tolist(), strict=True))
        assert len(smears) == len({row["smear"] for row in rows})
        with np.load(shared_data / "bccd_cells" / "bccd64_jpeg.npz", allow_pickle=False) as archive:
            data = archive["jpeg"][archive["offsets"][7] : archive["offsets"][8]].tobytes()
        assert np.array_equal(packed.read("image", np.array([7]))[0], np.asarray(Image.open(io.BytesIO(data))))


@pytest.fixture(scope="module")
def tcga(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack(shared_data, tmp_path_factory.mktemp("tcga"), "tcga-stage")


def test_tcga_has_the_counts_of_its_provenance(tcga: Path, shared_data: Path) -> None:
    rows = metadata_of(shared_data / "tcga_stage" / "clinical.csv")
    with PackedFile(tcga) as packed:
        packed.verify()
        assert packed.num_rows == 1739 and packed.patients().tolist() == [row["case_id"] for row in rows]
        cohorts = packed.label_classes["cohort"]
        cohort = np.asarray(cohorts)[packed.read("label/cohort")]
        assert {name: int((cohort == name).sum()) for name in cohorts} == {"BRCA": 956, "LIHC": 333, "LUSC": 450}
        names = [*packed.label_classes["stage"], ""]
        assert [names[code] for code in packed.read("label/stage")] == [row["stage"] for row in rows]
        assert np.bincount(packed.read("label/stage_1_2") + 1).tolist() == [431, 539, 769]
        assert np.bincount(packed.read("label/early_late") + 1).tolist() == [46, 1308, 385]
        sites = [packed.site_names[code] for code in packed.read("site")]
        assert sites == [row["tss_site"] for row in rows] and len(packed.site_names) == 103
        shapes = {name: packed.read(f"tabular/{name}").shape[1] for name in packed.tabular_columns}
        assert shapes == {"mrna": 1526, "cnv": 894, "mutation": 863, "clinical": 7, "oncotree": 15}
        present = packed.read("present/tabular/cnv")
        assert np.array_equal(present, cohort != "LUSC")
        with np.load(shared_data / "tcga_stage" / "cnv_common.npz", allow_pickle=False) as archive:
            assert np.array_equal(packed.read("tabular/cnv")[present], archive["cnv"])
        with np.load(shared_data / "tcga_stage" / "mut_lusc.npz", allow_pickle=False) as archive:
            mut, genes = archive["mut"], archive["genes"].tolist()
        assert np.array_equal(packed.read("label/tp53")[cohort == "LUSC"], mut[:, genes.index("TP53")])
        columns, table = packed.tabular_columns["mutation"], packed.read("tabular/mutation")[cohort == "LUSC"]
        assert "TP53" not in columns and np.array_equal(table[:, columns.index("TTN")], mut[:, genes.index("TTN")])
        assert (~np.isnan(table)).all(axis=0).sum() == 849


def test_tcga_groups_are_nine_clients_of_whole_hospitals(tcga: Path) -> None:
    with PackedFile(tcga) as packed:
        clients = partition_file(ColumnPartition(kind="column", column="hospital_group"), packed, 0)
        assert [client.num_rows for client in clients] == [319, 319, 318, 140, 97, 96, 150, 150, 150]
        site, stage = packed.read("site"), packed.read("label/stage_1_2")
        held = [{int(code) for split in ("train", "val", "test") for code in site[c.rows(split)]} for c in clients]
        assert sum(len(codes) for codes in held) == 103
        share = np.stack([[np.isin(stage[c.rows(s)], (0, 1)).sum() for s in ("train", "val", "test")] for c in clients])
        assert (share.min(axis=0) >= (30, 10, 10)).all()
