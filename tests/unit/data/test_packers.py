"""Packing a CSV table: every column arrives, and every bad input names file, row and cure."""

from __future__ import annotations

import csv
import io
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from fedhpc.config.schema import RunConfig
from fedhpc.data.describe import describe
from fedhpc.data.hdf5 import PackedFile
from fedhpc.data.packers.cli import pack_app
from fedhpc.data.packers.split import split_by_patient
from fedhpc.data.packers.table import TablePlan, pack_table

N = 30
Cells = list[dict[str, str]]


def png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def cells() -> Cells:
    return [
        {
            "id": f"x{k}", "file": f"{k}.png", "report": f"text of number {k % 7}", "kind": "ab"[k % 2],
            "hospital": "north" if k < 20 else "south", "patient": f"p{k // 2}", "age": str(20 + k),
            "weight": "" if k == 4 else "70.5", "set": ["train", "train", "val", "test"][k // 2 % 4],
            "mask": f"m{k}.png" if k % 3 == 0 else "",
        }
        for k in range(N)
    ]  # fmt: skip


def write(path: Path, rows: Cells) -> None:
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    write(tmp_path / "rows.csv", cells())
    for k in range(N):
        image = random.integers(0, 256, (12, 8), dtype=np.uint8)
        (tmp_path / f"{k}.png").write_bytes(png(image))
        if k % 3 == 0:
            (tmp_path / f"m{k}.png").write_bytes(png((image > 128).astype(np.uint8) * 255))
    return tmp_path


def plan(folder: Path, **changes: Any) -> TablePlan:
    whole = TablePlan(
        table=folder / "rows.csv", out=folder / "out.h5", name="rows", source="a test", licence="CC0",
        image_column="file", image_root=folder, text_column="report", vocab_size=100, max_tokens=8, labels=("kind",),
        tabular={"vitals": ("age", "weight")}, site_column="hospital", patient_column="patient", id_column="id",
        split_column="set", mask_column="mask", mask_root=folder,
    )  # fmt: skip
    return replace(whole, **changes)


def test_every_column_arrives(folder: Path) -> None:
    report = pack_table(plan(folder))
    assert (report.rows, report.skipped, report.cut_texts) == (N, {}, 0)
    rows = cells()
    with PackedFile(folder / "out.h5") as packed:
        packed.verify()
        for k in range(N):
            assert np.array_equal(packed.read("image")[k, :, :, 0], np.asarray(Image.open(folder / f"{k}.png")))
        assert packed.texts() == [row["report"] for row in rows]
        assert packed.row_ids().tolist() == [row["id"] for row in rows]
        assert packed.patients().tolist() == [row["patient"] for row in rows]
        assert packed.site_names == ["north", "south"] and np.bincount(packed.read("site")).tolist() == [20, 10]
        assert packed.label_classes == {"kind": ["a", "b"]}
        assert packed.read("split").tolist() == [["train", "val", "test"].index(row["set"]) for row in rows]
        vitals = packed.read("tabular/vitals")
        assert vitals[3].tolist() == [23.0, 70.5] and np.isnan(vitals[4, 1])
        assert np.flatnonzero(~packed.read("present/tabular/vitals")).tolist() == [4]
        mask_row = packed.read("mask_row")
        assert np.flatnonzero(mask_row >= 0).tolist() == list(range(0, N, 3))
        mask = packed.read("mask", mask_row[[6]])[0]
        assert np.array_equal(mask, (packed.read("image", np.array([6]))[0, :, :, 0] > 128))


def test_sizes_encodings_and_archives(folder: Path) -> None:
    pack_table(plan(folder))
    pack_table(plan(folder, out=folder / "kept.h5", keep_encoded=True))
    pack_table(plan(folder, out=folder / "resized.h5", image_size=16, channels=3))
    parts = [(folder / f"{k}.png").read_bytes() for k in range(N)]
    offsets = np.concatenate([[0], np.cumsum([len(part) for part in parts])])
    np.savez(folder / "all.npz", png=np.frombuffer(b"".join(parts), np.uint8), offsets=offsets)
    pack_table(plan(folder, out=folder / "npz.h5", image_column=None, image_root=None, image_npz=folder / "all.npz"))
    opened = {name: PackedFile(folder / f"{name}.h5") for name in ("out", "kept", "resized", "npz")}
    assert np.array_equal(opened["kept"].read("image"), opened["out"].read("image"))
    assert opened["npz"].checksum == opened["out"].checksum
    assert opened["kept"].image_shape == (12, 8, 1) and "encoded" in opened["kept"].note
    assert opened["resized"].image_shape == (16, 16, 3) and "centred on black" in opened["resized"].note
    assert opened["resized"].read("mask").shape == (10, 16, 16)
    for packed in opened.values():
        packed.close()


def test_tokenizer_sees_training_text_alone(folder: Path) -> None:
    rows = cells()
    for row in rows:
        row["report"] = "known words" if row["set"] == "train" else "secretive"
    write(folder / "rows.csv", rows)
    pack_table(plan(folder))
    with PackedFile(folder / "out.h5") as packed:
        assert packed.tokenizer_json is not None and "secretive" not in packed.tokenizer_json


def test_drawn_split_is_by_patient_and_seeded(folder: Path) -> None:
    def split(name: str, seed: int) -> list[int]:
        pack_table(plan(folder, out=folder / name, split_column=None, split=(0.6, 0.2, 0.2), random_seed=seed))
        with PackedFile(folder / name) as packed:
            return packed.read("split").tolist()

    one = split("a.h5", 0)
    assert one == split("b.h5", 0) != split("c.h5", 1)
    assert all(one[k] == one[k + 1] for k in range(0, N, 2))
    assert np.bincount(one).tolist() == [18, 6, 6]


def test_split_counts_are_exact_over_strata() -> None:
    patients = [f"p{k}" for k in range(100)]
    codes = split_by_patient(patients, np.arange(100) // 4, (0.7, 0.1, 0.2), 0)  # 25 strata of 4
    assert np.abs(np.bincount(codes) - [70, 10, 20]).max() <= 1
    assert all((codes[k : k + 4] == 0).any() for k in range(0, 100, 4))
    with pytest.raises(ValueError, match="add up to 1"):
        split_by_patient(patients, np.zeros(100, int), (0.7, 0.1, 0.1), 0)


def break_row(k: int, **changes: str) -> Any:
    def change(folder: Path) -> None:
        rows = cells()
        rows[k].update(changes)
        write(folder / "rows.csv", rows)

    return change


def write_bytes(name: str, data: bytes) -> Any:
    return lambda folder: (folder / name).write_bytes(data)


BAD_ROWS = [
    (break_row(5, id="x2"), "duplicate id", r"rows.csv, line 7: id 'x2' is already that of .*line 4: make ids unique"),
    (break_row(5, report=" "), "empty text", r"rows.csv, line 7: report is empty: .*--allow-missing"),
    (break_row(5, age="old"), "not a number", r"rows.csv, line 7: age is 'old', not a number"),
    (break_row(5, age="1e99"), "not a number", r"beyond float32"),
    (break_row(5, set="tran"), "bad split", r"rows.csv, line 7: set is 'tran': use train, val or test"),
    (break_row(5, set="test"), "patient in two splits", r"line 7: patient 'p2' is in test, but in val at .*line 6"),
    (break_row(5, patient=""), "empty patient", r"line 7: patient is empty"),
    (break_row(5, file="none.png"), "missing picture", r"line 7: .*none.png cannot be read"),
    (break_row(5, file=""), "no picture", r"line 7: the row names no picture"),
    (write_bytes("5.png", b"not a picture"), "unreadable picture", r"line 7: picture 5.png: not a readable picture"),
    (
        write_bytes("5.png", png(np.zeros((9, 9), np.uint8))),
        "other size",
        r"is 9x9, earlier ones 8x12: set --image-size",
    ),
    (write_bytes("5.png", png(np.zeros((12, 8, 3), np.uint8))), "other channels", r"3 channels.*set --channels 1 or 3"),
    (write_bytes("m6.png", png(np.zeros((3, 3), np.uint8))), "mask of other size", r"line 8: mask m6.png is 3x3"),
    (write_bytes("m6.png", b""), "unreadable mask", r"line 8: mask m6.png: the picture has no bytes"),
]


@pytest.mark.parametrize(
    ("spoil", "reason", "message"), BAD_ROWS, ids=[f"{r}-{i}" for i, (_, r, _) in enumerate(BAD_ROWS)]
)
def test_a_bad_row_is_named_or_dropped(folder: Path, spoil: Any, reason: str, message: str) -> None:
    spoil(folder)
    with pytest.raises(ValueError, match=message):
        pack_table(plan(folder))
    assert not list(folder.glob("*out.h5*"))
    report = pack_table(plan(folder, skip_bad=True))
    assert report.skipped == {reason: 1} and report.rows == N - 1
    with PackedFile(folder / "out.h5") as packed:
        packed.verify()
        assert packed.read("image").shape[0] == N - 1
        rows = packed.row_ids().tolist()
        where = rows.index("x20")  # rows behind the dropped one keep their own picture
        assert np.array_equal(packed.read("image")[where, :, :, 0], np.asarray(Image.open(folder / "20.png")))


BAD_PLANS = [
    ({"labels": ("Kinds",)}, r"no column 'Kinds' \(--label\). Did you mean 'kind'\? It has: id, file"),
    ({"tabular": {"vitals": ("agee",)}}, r"'agee' \(--tabular vitals\). Did you mean 'age'"),
    ({"split_column": None}, "no split: set --split-column"),
    ({"split": (0.7, 0.1, 0.2)}, "--split and --split-column are both set"),
    ({"keep_encoded": True, "image_size": 8}, "--keep-encoded keeps pictures"),
    ({"channels": 2}, "--channels is 2: set 1"),
    ({"image_npz": Path("x.npz")}, "choose one"),
    ({"npz_index_column": "id"}, "no effect without --image-npz"),
    ({"name": " "}, "set --name"),
    ({"vocab_size": 7}, "vocab_size 7 cannot hold"),
    ({"image_column": None, "image_root": None}, "masks without pictures"),
]


@pytest.mark.parametrize(("changes", "message"), BAD_PLANS)
def test_conflicting_options_are_refused(folder: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pack_table(plan(folder, **changes))
    assert not list(folder.glob("*out.h5*"))


def test_bad_tables_and_archives_are_refused(folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.csv"):
        pack_table(plan(folder, table=folder / "nowhere.csv"))
    for text, message in (
        ("", "has no rows"),
        ("id,id\n1,2\n", "occurs twice in the header"),
        ("id,file\n1\n", "line 2: 1 cells, but the header has 2"),
    ):
        (folder / "bad.csv").write_text(text)
        with pytest.raises(ValueError, match=message):
            pack_table(plan(folder, table=folder / "bad.csv"))
    (folder / "bad.csv").write_bytes("id,naïve\n1,2\n".encode("latin-1"))
    with pytest.raises(ValueError, match="not UTF-8"):
        pack_table(plan(folder, table=folder / "bad.csv"))
    npz = {"image_column": None, "image_root": None, "image_npz": folder / "bad.npz"}
    (folder / "bad.npz").write_bytes(b"PK torn")
    with pytest.raises(ValueError, match=r"bad.npz is truncated or no npz"):
        pack_table(plan(folder, **npz))
    np.savez(folder / "bad.npz", jpeg=np.zeros(9, np.uint8), offsets=np.array([0, 5, 3, 9]))
    with pytest.raises(ValueError, match="offsets must be integers that rise"):
        pack_table(plan(folder, **npz))
    np.savez(folder / "bad.npz", jpeg=np.zeros(9, np.uint8), offsets=np.array([0, 5, 9]))
    with pytest.raises(ValueError, match="holds 2 pictures"):
        pack_table(plan(folder, **npz))
    np.savez(folder / "bad.npz", jpeg=np.array([{}], object), offsets=np.array([0, 1]))
    with pytest.raises(ValueError, match="its arrays cannot be read"):
        pack_table(plan(folder, **npz))
    np.savez(folder / "bad.npz", gif=np.zeros(9, np.uint8), offsets=np.array([0, 9]))
    with pytest.raises(ValueError, match="must hold one of jpeg and png, and offsets; it holds gif, offsets"):
        pack_table(plan(folder, **npz))


def test_allowed_gaps_are_marked_absent(folder: Path) -> None:
    rows = cells()
    rows[0].update(file="", mask="")
    rows[7].update(report="")
    rows[9].update(kind="")
    write(folder / "rows.csv", rows)
    pack_table(plan(folder, allow_missing=True))
    with PackedFile(folder / "out.h5") as packed:
        assert np.flatnonzero(~packed.read("present/image")).tolist() == [0]
        assert not packed.read("image")[0].any() and packed.read("image")[1].any()
        assert np.flatnonzero(~packed.read("present/text")).tolist() == [7]
        assert (packed.read("tokens")[7] == packed.pad_token).all()
        assert np.flatnonzero(packed.read("label/kind") == -1).tolist() == [9]


# ------------------------------------------------------------------------------------------------- commands
def call(*arguments: object) -> Any:
    return CliRunner().invoke(pack_app, [str(argument) for argument in arguments])


def test_pack_table_command(folder: Path) -> None:
    given = (
        "table", folder / "rows.csv", "-o", folder / "out.h5", "--name", "rows", "--source", "a test",
        "--licence", "CC0", "--image-column", "file", "--text-column", "report", "--label", "kind",
        "--tabular", "vitals=age,weight", "--patient-column", "patient", "--split", "0.6,0.2,0.2",
    )  # fmt: skip
    result = call(*given)
    assert result.exit_code == 0, result.output
    assert f"{N} rows" in result.output
    again = call(*given)
    assert again.exit_code == 2 and "exists already" in again.output and "Traceback" not in again.output
    wrong = call(*given, "--overwrite", "--label", "kinds")
    assert wrong.exit_code == 2 and "Did you mean 'kind'" in wrong.output
    (folder / "3.png").write_bytes(b"")
    dropped = call(*given, "--overwrite", "--skip-bad")
    assert dropped.exit_code == 0 and "dropped 1 bad rows: unreadable picture 1" in dropped.output
    for option, value, message in (("--split", "a,b", "three fractions"), ("--tabular", "vitals", "name=column1")):
        refused = call(*given, "--overwrite", option, value)
        assert refused.exit_code == 2 and message in refused.output


def test_pack_phantom_command(tmp_path: Path) -> None:
    given = ("phantom", "-o", tmp_path / "p.h5", "--num-patients", 24, "--num-sites", 2, "--image-size", 16)
    assert call(*given).exit_code == 0
    assert call(*given).exit_code == 0
    other = call(*given, "--random-seed", 1)
    assert other.exit_code == 2 and "random_seed: 0 there, 1 now" in other.output
    invalid = call("phantom", "--num-patients", 1)
    assert invalid.exit_code == 2 and "num_patients" in invalid.output and "Traceback" not in invalid.output


def test_missing_folder_is_one_message(tmp_path: Path) -> None:
    for command in ("pbc-wbcatt", "cxr-sites"):
        result = call(command, tmp_path, "-o", tmp_path / "x.h5")
        assert result.exit_code == 2 and "metadata.csv does not exist" in result.output


def test_commands_import_nothing_heavy() -> None:
    """The command line answers at once: heavy modules wait for the command that needs them."""
    script = (
        "import sys, time, typer, pathlib; before = time.perf_counter(); import fedhpc.data.packers.cli;"
        "print(time.perf_counter() - before, [m for m in ('h5py', 'numpy', 'PIL', 'tokenizers', 'torch', 'pydantic')"
        " if m in sys.modules])"
    )
    best = 1.0
    for _ in range(3):  # another process may hold the CPU
        run = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[3]
        )
        seconds, modules = run.stdout.split(" ", 1)
        assert modules.strip() == "[]"
        best = min(best, float(seconds))
        time.sleep(0.05)
    assert best < 0.05


def test_no_torch_is_needed_to_pack() -> None:
    script = (
        "import sys; import fedhpc.data.describe, fedhpc.data.packers.pbc_wbcatt, fedhpc.data.packers.cxr_sites,"
        "fedhpc.data.packers.phantom;"
        "from fedhpc.data.packers import mimic_cxr, chexpert, rsna, covidx, brset, messidor;"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parents[3], check=False).returncode == 0


def text_of(renderable: object) -> str:
    console = Console(width=160, file=io.StringIO(), record=True)
    console.print(renderable)
    return console.export_text()


def test_describe_counts_and_deals(folder: Path) -> None:
    pack_table(plan(folder, note="about these rows"))
    text = text_of(describe(folder / "out.h5", verify=True))
    for part in ("a test", "CC0", "(verified)", "30 of 15 patients at 2 sites", "12x8 px, grey", "about these rows"):
        assert part in text, part
    assert "GENERATED" not in text
    lines = [[cell.strip() for cell in line.strip("│┃ ").replace("┃", "│").split("│")] for line in text.splitlines()]
    splits = [row["set"] for row in cells()]
    counts = [str(splits.count(name)) for name in ("train", "val", "test")]
    assert ["all", *counts, "30"] in lines
    assert any(line[:2] == ["kind", "a"] and line[-1] == "15" for line in lines)
    assert any(line[0] == "mask" and line[4] == "10" for line in lines)
    config = RunConfig.model_validate(
        {
            "name": "x",
            "random_seed": 3,
            "rounds": 1,
            "data": {"path": str(folder / "out.h5"), "label": "kind"},
            "partition": {"kind": "dirichlet", "label": "kind", "num_clients": 2, "alpha": 5.0},
            "model": {"kind": "classifier", "image": {"name": "cnn"}},
            "fit": {"steps": 1, "optimizer": {"learning_rate": 0.1}},
        }
    )
    dealt = text_of(describe(folder / "out.h5", config))
    assert "2 clients; training rows by kind" in dealt and "client-1" in dealt


def test_describe_warns_of_numbers_that_begin_anew_at_each_site(folder: Path) -> None:
    pack_table(plan(folder))
    assert "WARNING" not in text_of(describe(folder / "out.h5"))
    write(folder / "rows.csv", [{**row, "patient": f"p{k % 20}", "set": ""} for k, row in enumerate(cells())])
    pack_table(plan(folder, split_column=None, split=(0.6, 0.2, 0.2), out=folder / "anew.h5"))
    assert "10 patients have rows at several sites" in text_of(describe(folder / "anew.h5"))
