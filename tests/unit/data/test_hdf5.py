"""The packed file: what goes in comes out, and what is damaged is refused."""

from __future__ import annotations

import io
import multiprocessing
import struct
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from fedhpc.data.hdf5 import PackedFile, PackWriter
from fedhpc.data.heap import endless_heap
from fedhpc.data.images import decode_image, encode_png, letterbox

N = 11


def jpeg(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG")
    return buffer.getvalue()


def pack(path: Path, *, encoded: bool = False, seed: int = 0, **options: object) -> dict[str, np.ndarray]:
    """A file with every kind of column."""
    random = np.random.default_rng(seed)
    data = {
        "image": random.integers(0, 256, (N, 8, 6, 3)).astype(np.uint8),
        "tokens": random.integers(0, 50, (N, 5)).astype(np.int32),
        "label/kind": random.integers(-1, 3, N).astype(np.int32),
        "tabular/vitals": random.normal(size=(N, 2)).astype(np.float32),
        "tabular/genes": random.normal(size=(N, 4)).astype(np.float16),
        "site": random.integers(0, 2, N).astype(np.int32),
        "split": random.integers(0, 3, N).astype(np.int8),
        "mask": random.integers(0, 2, (3, 8, 6)).astype(np.uint8),
        "mask_row": random.integers(-1, 3, N).astype(np.int64),
        "present/text": random.random(N) < 0.5,
    }
    with PackWriter(path, name="set", source="here", licence="CC0", **options) as writer:  # type: ignore[arg-type]
        for start in range(0, N, 4):
            part = data["image"][start : start + 4]
            if encoded:
                writer.add_encoded([encode_png(image) for image in part], height=8, width=6, channels=3)
            else:
                writer.add_images(part)
        writer.set_text([f"text {k} é" for k in range(N)])
        writer.set_tokens(data["tokens"], tokenizer_json='{"a": 1}', pad_token=0, vocab_size=50)
        writer.set_label("kind", data["label/kind"], ["a", "b", "c"])
        writer.set_tabular("vitals", data["tabular/vitals"], ["x", "y"])
        writer.set_tabular("genes", data["tabular/genes"], list("stuv"))
        writer.set_site(data["site"], ["north", "south"])
        writer.set_split(data["split"])
        writer.set_masks(data["mask"], data["mask_row"])
        writer.set_present("text", data["present/text"])
        writer.set_row_ids([f"r{k}" for k in range(N)])
    return data


@pytest.mark.parametrize("options", [{}, {"encoded": True}, {"gzip": True}, {"chunk_rows": 3}])
def test_what_goes_in_comes_out(tmp_path: Path, options: dict[str, object]) -> None:
    data = pack(tmp_path / "set.h5", note="a note", command="fedhpc pack", **options)  # type: ignore[arg-type]
    with PackedFile(tmp_path / "set.h5") as packed:
        for column, values in data.items():
            found = packed.read(column)
            assert found.dtype == values.dtype and np.array_equal(found, values), column
        assert (packed.num_rows, packed.name, packed.source, packed.licence) == (N, "set", "here", "CC0")
        assert (packed.note, packed.command, packed.generated) == ("a note", "fedhpc pack", False)
        assert packed.image_shape == (8, 6, 3)
        assert (packed.max_tokens, packed.vocab_size, packed.pad_token) == (5, 50, 0)
        assert packed.tokenizer_json == '{"a": 1}'
        assert packed.label_classes == {"kind": ["a", "b", "c"]}
        assert packed.tabular_columns == {"vitals": ["x", "y"], "genes": list("stuv")}
        assert packed.site_names == ["north", "south"]
        assert set(packed.modalities) == {"image", "text", "tabular/vitals", "tabular/genes"}
        assert packed.texts()[3] == "text 3 é" and packed.texts(np.array([4, 2])) == ["text 4 é", "text 2 é"]
        assert packed.row_ids().tolist() == packed.patients().tolist() == [f"r{k}" for k in range(N)]
        assert packed.read("present/image").all()
        assert packed.decoded_bytes("image") == N * 8 * 6 * 3 and packed.decoded_bytes("tokens") == N * 5 * 4
        assert packed.chunk_rows("image") >= 1
        packed.verify()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, dict[str, np.ndarray]]]:
    folder = tmp_path_factory.mktemp("packed")
    kinds: list[dict[str, object]] = [{}, {"encoded": True}, {"chunk_rows": 2}]
    return [(folder / f"{k}.h5", pack(folder / f"{k}.h5", **kind)) for k, kind in enumerate(kinds)]  # type: ignore[arg-type]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(which=st.integers(0, 2), rows=st.lists(st.integers(0, N - 1), max_size=30), column=st.sampled_from(
    ["image", "tokens", "label/kind", "tabular/genes", "present/text"]))  # fmt: skip
def test_any_selection_in_any_order(
    files: list[tuple[Path, dict[str, np.ndarray]]], which: int, rows: list[int], column: str
) -> None:
    path, data = files[which]
    with PackedFile(path) as packed:
        assert np.array_equal(packed.read(column, np.array(rows, np.int64)), data[column][np.array(rows, np.int64)])


def test_checksum_is_of_the_rows_alone(tmp_path: Path) -> None:
    def checksum(name: str, **options: object) -> str:
        pack(tmp_path / name, **options)  # type: ignore[arg-type]
        with PackedFile(tmp_path / name) as packed:
            return packed.checksum

    first = checksum("a.h5")
    assert checksum("b.h5", chunk_rows=2, gzip=True, command="another", note="other") == first
    assert checksum("c.h5", seed=1) != first


def test_verify_finds_one_changed_value(tmp_path: Path) -> None:
    for column, change in (("image", (0, 0, 0, 0)), ("tokens", (2, 2)), ("split", 1)):
        pack(tmp_path / "set.h5", overwrite=True)
        with h5py.File(tmp_path / "set.h5", "r+") as file:
            file[column][change] = (int(file[column][change]) + 1) % 3
        with PackedFile(tmp_path / "set.h5") as packed, pytest.raises(ValueError, match="changed or damaged"):
            packed.verify()
    pack(tmp_path / "set.h5", overwrite=True)
    with h5py.File(tmp_path / "set.h5", "r+") as file:
        file["label/kind"].attrs["classes"] = '["a", "c", "b"]'
    with PackedFile(tmp_path / "set.h5") as packed, pytest.raises(ValueError, match="changed or damaged"):
        packed.verify()


def test_damaged_and_foreign_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "set.h5"
    with pytest.raises(FileNotFoundError, match="fedhpc pack"):
        PackedFile(path)
    pack(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="truncated"):
        PackedFile(path)
    path.write_bytes(b"no HDF5 at all" * 100)
    with pytest.raises(ValueError, match="not an HDF5 file"):
        PackedFile(path)
    path.write_bytes(whole)
    with h5py.File(path, "r+") as file:
        file.attrs["fedhpc_schema"] = 2
    with pytest.raises(ValueError, match="schema version 2, this fedhpc reads 1: pack it again"):
        PackedFile(path)
    with h5py.File(path, "w") as file:
        file["x"] = [1]
    with pytest.raises(ValueError, match="not a packed dataset"):
        PackedFile(path)


def _replace(file: h5py.File, path: str, data: object) -> None:
    attrs = dict(file[path].attrs)
    del file[path]
    file[path] = data
    if isinstance(file.get(path, getlink=True), h5py.HardLink):
        file[path].attrs.update(attrs)


def _huge(file: h5py.File) -> None:
    del file["image"]
    file.create_dataset("image", (N, 1 << 20, 1 << 20, 3), "u1", chunks=(1, 64, 64, 3))


def _many(file: h5py.File) -> None:
    del file["mask"]
    file.create_dataset("mask", (1 << 20, 8, 6), "u1", chunks=(4, 4, 4))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.attrs.__delitem__("num_rows"), "num_rows is no number of rows"),
        (lambda f: f.attrs.__setitem__("fedhpc_schema", h5py.Empty("f")), "schema version"),
        (lambda f: f["label/kind"].attrs.__delitem__("classes"), "label/kind lacks its classes"),
        (lambda f: f["site"].attrs.__setitem__("names", "[" * 5000), "site lacks its names"),
        (lambda f: f["tabular/vitals"].attrs.__setitem__("columns", '["x"]'), "has 2 columns and 1 names"),
        (lambda f: _replace(f, "tabular", np.zeros(3)), r"tabular is no column of a packed file"),
        (lambda f: _replace(f, "row_id", h5py.SoftLink("/row_id")), "row_id is a link to elsewhere"),
        (lambda f: _replace(f, "text", h5py.ExternalLink("/etc/passwd", "/")), "text is a link to elsewhere"),
        (lambda f: _replace(f, "split", np.zeros((N, 2), np.int8)), r"split is int8 \[11, 2\]"),
        (lambda f: _replace(f, "patient", np.zeros(N)), r"patient is float64 \[11\]"),
        (lambda f: _replace(f, "mask_row", np.zeros(N - 1, np.int64)), "mask_row has 10 rows, not 11"),
        (lambda f: f["tokens"].attrs.__setitem__("vocab_size", -1), "tokens lacks vocab_size"),
        (lambda f: (f.__delitem__("tokens"), f.create_group("tokens")), "tokens is a group, not a column"),
        (lambda f: f.create_group("label/other"), "label/other is a group, not a column"),
        (_many, r"mask of \[1048576, 8, 6\] in chunks of \[4, 4, 4\] has more of them than the file can hold"),
        (_huge, "image of .* is larger than the file can hold"),
    ],
    ids=range(16),
)
def test_what_the_fuzzer_found_is_refused_at_once(tmp_path: Path, change: object, message: str) -> None:
    pack(tmp_path / "set.h5")
    with h5py.File(tmp_path / "set.h5", "r+") as file:
        change(file)  # type: ignore[operator]
    with pytest.raises(ValueError, match=rf"set.h5.*{message}.*pack it again"):
        PackedFile(tmp_path / "set.h5")


@pytest.mark.parametrize("size", [0, 2**64 - 16])
def test_a_string_heap_that_hdf5_would_walk_forever_is_refused(tmp_path: Path, size: int) -> None:
    """Of no size: free space of 0 bytes, or an object whose size with its header passes 2^64."""
    path = tmp_path / "set.h5"
    pack(path)
    assert endless_heap(path) is None
    data = bytearray(path.read_bytes())
    heap = data.index(b"GCOL")
    first = struct.pack("<HHIQ", 0 if size == 0 else 1, 1, 0, size)
    data[heap + 16 : heap + 32] = first
    path.write_bytes(data)
    assert endless_heap(path) == heap
    assert endless_heap(path, most_bytes=100) is None, "files of any size are searched by verify alone"
    with pytest.raises(ValueError, match=rf"set.h5 has a damaged string heap at byte {heap}: copy or pack it again"):
        PackedFile(path)


def test_a_heap_cut_off_by_the_end_of_the_file_is_left_to_hdf5(tmp_path: Path) -> None:
    path = tmp_path / "cut"
    for tail in (b"", b"\xff" * 8, struct.pack("<Q", 4096) + struct.pack("<HHIQ", 0, 0, 0, 4096)):
        path.write_bytes(b"GCOL\x01\0\0\0" + tail)
        assert endless_heap(path) is None


def test_pictures_that_are_not_chunked_are_read_all_the_same(tmp_path: Path) -> None:
    path = tmp_path / "set.h5"
    data = pack(path, encoded=True)
    with h5py.File(path, "r+") as file:
        _replace(file, "image_bytes/data", file["image_bytes/data"][()])
        assert file["image_bytes/data"].chunks is None
    with PackedFile(path) as packed:
        assert packed.chunk_rows("image") > 1
        assert np.array_equal(packed.read("image"), data["image"])


def test_a_damaged_tree_of_names_is_a_declared_error(tmp_path: Path) -> None:
    path = tmp_path / "set.h5"
    pack(path)
    whole = path.read_bytes()
    places = [at for at in range(len(whole)) if whole.startswith((b"TREE", b"SNOD"), at)]
    assert len(places) > 4
    for at in places:
        path.write_bytes(whole[:at] + b"X" + whole[at + 1 :])
        with pytest.raises(ValueError, match=r"copy or pack it again"), PackedFile(path) as packed:
            assert packed.columns
            for column in packed.columns:
                packed.read(column)
            packed.verify()


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("image_bytes", {"channels": 2**40}, "image_bytes lacks height, width or channels"),
        ("image_bytes", {"height": 2**20, "width": 2**20}, "pictures of 1048576 x 1048576 pixels"),
    ],
)
def test_pictures_that_no_memory_holds_are_refused(
    tmp_path: Path, path: str, value: dict[str, int], message: str
) -> None:
    pack(tmp_path / "set.h5", encoded=True)
    with h5py.File(tmp_path / "set.h5", "r+") as file:
        file[path].attrs.update(value)
    with pytest.raises(ValueError, match=message):
        PackedFile(tmp_path / "set.h5")


def test_offsets_and_text_that_are_damaged_are_named_when_they_are_read(tmp_path: Path) -> None:
    pack(tmp_path / "set.h5", encoded=True)
    with h5py.File(tmp_path / "set.h5", "r+") as file:
        file["image_bytes/offsets"][3] = 2**50
        file["row_id"][2] = b"\xff\xfe"
    with PackedFile(tmp_path / "set.h5") as packed:
        with pytest.raises(ValueError, match=r"image_bytes/offsets does not run from 0 to \d+: copy or pack it again"):
            packed.read("image", np.array([1]))
        with pytest.raises(ValueError, match="the column row_id is not UTF-8"):
            packed.row_ids()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_pack_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), PackWriter(tmp_path / "a.h5", name="a", source="b", licence="c") as writer:
        writer.add_images(np.zeros((2, 4, 4, 1), np.uint8))
        raise error
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_overwrite_keeps_the_old_file(tmp_path: Path) -> None:
    pack(tmp_path / "set.h5")
    before = (tmp_path / "set.h5").read_bytes()
    with pytest.raises(ValueError, match="exists already"):
        pack(tmp_path / "set.h5")
    writer = PackWriter(tmp_path / "set.h5", name="a", source="b", licence="c", overwrite=True)
    with pytest.raises(RuntimeError), writer:
        raise RuntimeError
    assert (tmp_path / "set.h5").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def finish(path: Path, **changes: object) -> None:
    values: dict[str, object] = {
        "ids": ["a", "b"],
        "patients": ["p", "q"],
        "split": [0, 1],
        "label": [0, -1],
        **changes,
    }
    with PackWriter(path, name="a", source="b", licence="c") as writer:
        writer.set_row_ids(values["ids"])  # type: ignore[arg-type]
        writer.set_patients(values["patients"])  # type: ignore[arg-type]
        writer.set_split(np.array(values["split"]))
        writer.set_label("kind", np.array(values["label"]), ["x", "y"])
        if "tokens" in values:
            writer.set_tokens(np.array(values["tokens"]), tokenizer_json="{}", pad_token=0, vocab_size=4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ids": ["a", "a"]}, "'a' occurs twice"),
        ({"patients": ["p", "p"]}, "patient 'p' is in two splits"),
        ({"split": [0, 3]}, r"split must be 0 \(train\)"),
        ({"label": [0, 2]}, "label/kind: values must lie in -1..1"),
        ({"label": [0, 1, 1]}, "other lengths"),
        ({"tokens": [[1], [4]]}, r"within 0..3"),
    ],
)
def test_columns_that_disagree_are_refused(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        finish(tmp_path / "a.h5", **changes)
    assert list(tmp_path.iterdir()) == []
    finish(tmp_path / "a.h5")  # what is left is sound without the change


def test_reader_refuses_unknown_columns_and_rows(tmp_path: Path) -> None:
    pack(tmp_path / "set.h5")
    with PackedFile(tmp_path / "set.h5") as packed:
        with pytest.raises(ValueError, match=r"no column 'label/sort'.*label/kind"):
            packed.read("label/sort")
        with pytest.raises(ValueError, match=r"rows 0..10; -1..3 were asked for"):
            packed.read("site", np.array([3, -1]))
        with pytest.raises(ValueError, match="rows must be integers"):
            packed.read("site", np.array([0.5]))


def _read_all(path: str, rows: list[int]) -> int:
    with PackedFile(path) as packed:
        return int(packed.read("image", np.array(rows)).astype(np.int64).sum())


def test_many_processes_read_at_once(tmp_path: Path) -> None:
    data = pack(tmp_path / "set.h5")
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        sums = pool.starmap(_read_all, [(str(tmp_path / "set.h5"), [k, 10 - k]) for k in range(5)])
    assert sums == [int(data["image"][[k, 10 - k]].astype(np.int64).sum()) for k in range(5)]


def test_rows_without_picture_are_black(tmp_path: Path) -> None:
    picture = np.full((4, 4, 1), 9, np.uint8)
    with PackWriter(tmp_path / "a.h5", name="a", source="b", licence="c") as writer:
        writer.add_encoded([encode_png(picture), b""], height=4, width=4, channels=1)
        writer.set_present("image", np.array([True, False]))
        writer.set_row_ids(["a", "b"])
        writer.set_split(np.array([0, 0]))
    with PackedFile(tmp_path / "a.h5") as packed:
        assert packed.read("image")[:, 0, 0, 0].tolist() == [9, 0]
        assert packed.read("present/image").tolist() == [True, False]


def test_decoding_converts_or_refuses() -> None:
    colour = np.zeros((4, 5, 3), np.uint8)
    colour[..., 0] = 200
    assert decode_image(jpeg(colour)).shape == (4, 5, 3)
    assert decode_image(jpeg(colour), 1).shape == (4, 5, 1)
    assert decode_image(encode_png(colour[..., :1])).shape == (4, 5, 1)
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 4), 60000, np.uint16)).save(buffer, "PNG")
    with pytest.raises(ValueError, match="more than 8 bits"):
        decode_image(buffer.getvalue())
    with pytest.raises(ValueError, match="not a readable picture"):
        decode_image(jpeg(colour)[:100])
    turned = Image.fromarray(colour)
    exif = turned.getexif()
    exif[0x0112] = 6  # taken with the camera on its side
    buffer = io.BytesIO()
    turned.save(buffer, "JPEG", exif=exif)
    assert decode_image(buffer.getvalue()).shape == (5, 4, 3)


def test_letterbox_keeps_proportions() -> None:
    out = letterbox(np.full((10, 20, 1), 255, np.uint8), 8)
    assert out.shape == (8, 8, 1)
    assert (out[2:6] == 255).all() and (out[:2] == 0).all() and (out[6:] == 0).all()
    mask = np.zeros((9, 9, 1), np.uint8)
    mask[3:] = 7
    assert set(np.unique(letterbox(mask, 5, nearest=True))) == {0, 7}
