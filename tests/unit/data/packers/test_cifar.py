"""CIFAR: the python batches are read without running what a pickle names."""

from __future__ import annotations

import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedhpc.data.hdf5 import PackedFile
from fedhpc.data.packers.cifar_batches import read_batch
from fedhpc.data.packers.official import hash_split

from .trees import label, pack, refused, split_names

N = 12
NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def python2(value: Any) -> bytes:
    """The opcodes that Python 2 wrote for the official files (protocol 2): text as BINSTRING, the array by three names
    of NumPy."""
    if isinstance(value, dict):
        return b"}(" + b"".join(python2(k) + python2(v) for k, v in value.items()) + b"u"
    if isinstance(value, list):
        return b"](" + b"".join(python2(v) for v in value) + b"e"
    if isinstance(value, tuple):
        return b"(" + b"".join(python2(v) for v in value) + b"t"
    if isinstance(value, str):
        return python2(value.encode())
    if isinstance(value, bytes):
        return b"T" + struct.pack("<i", len(value)) + value
    if isinstance(value, bool):
        return b"\x89" if not value else b"\x88"
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    assert isinstance(value, np.ndarray)
    empty = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n" + python2((0,)) + python2("b") + b"tR"
    kind = b"cnumpy\ndtype\n" + python2(("u1", 0, 1)) + b"R"
    kind += b"(" + python2(3) + python2("|") + b"NNN" + python2(-1) + python2(-1) + python2(0) + b"tb"
    return empty + b"(" + python2(1) + python2(value.shape) + kind + python2(False) + python2(value.tobytes()) + b"tb"


def write(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\x80\x02" + python2(content) + b".")


def data(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (N, 3072), dtype=np.uint8)


@pytest.fixture
def ten(tmp_path: Path) -> Path:
    folder = tmp_path / "root" / "cifar-10-batches-py"
    for seed, name in enumerate([*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]):
        write(folder / name, {
            "batch_label": name, "labels": [(k + seed) % 10 for k in range(N)], "data": data(seed),
            "filenames": [f"f{k}.png" for k in range(N)],
        })  # fmt: skip
    write(folder / "batches.meta", {"num_cases_per_batch": N, "label_names": NAMES, "num_vis": 3072})
    return folder


@pytest.fixture
def hundred(tmp_path: Path) -> Path:
    folder = tmp_path / "cifar-100-python"
    for seed, name in enumerate(("train", "test")):
        write(folder / name, {
            "filenames": [f"f{k}.png" for k in range(N)], "batch_label": name, "fine_labels": list(range(N)),
            "coarse_labels": [k // 6 for k in range(N)], "data": data(seed),
        })  # fmt: skip
    write(folder / "meta", {"fine_label_names": [f"fine{k}" for k in range(N)], "coarse_label_names": ["a", "b"]})
    return folder


def given(tree: Path) -> tuple[object, ...]:
    return ("cifar", tree, "-o", tree.parent / "out.h5")


def test_the_written_pickles_are_pickles(ten: Path) -> None:
    """The emitter above writes what pickle itself reads as the official files are read."""
    content = pickle.loads((ten / "data_batch_2").read_bytes(), encoding="latin-1")
    assert np.array_equal(content["data"], data(1)) and content["labels"][:2] == [1, 2]


def test_cifar_10(ten: Path) -> None:
    pack(*given(ten), "--val-fraction", 0.3)
    with PackedFile(ten.parent / "out.h5") as packed:
        packed.verify()
        assert packed.name == "cifar-10" and packed.num_rows == 6 * N and packed.image_shape == (32, 32, 3)
        images = packed.read("image")
        for batch in range(6):
            for channel in range(3):
                plane = data(batch)[5].reshape(3, 32, 32)[channel]
                assert np.array_equal(images[batch * N + 5, :, :, channel], plane)
        assert packed.label_classes["label"] == NAMES and label(packed, "label")[N] == "automobile"
        assert packed.row_ids()[N] == "data_batch_2/00000"
        splits = split_names(packed)
        assert splits[: 5 * N] == [hash_split(row, (0.7, 0.3, 0.0), 0) for row in packed.row_ids()[: 5 * N].tolist()]
        assert set(splits[5 * N :]) == {"test"} and set(splits) == {"train", "val", "test"}
        whole = packed.checksum
    pack(*given(ten)[:1], ten.parent, *given(ten)[2:], "--overwrite", "--val-fraction", 0.3)  # torchvision's root
    with PackedFile(ten.parent / "out.h5") as packed:
        assert packed.checksum == whole


def test_cifar_100_small_and_resized(hundred: Path) -> None:
    pack(*given(hundred), "--limit", 8, "--image-size", 16)
    with PackedFile(hundred.parent / "out.h5") as packed:
        assert packed.name == "cifar-100" and packed.num_rows == 8 and packed.image_shape == (16, 16, 3)
        assert label(packed, "label")[:3] == ["fine0", "fine3", "fine6"]
        assert label(packed, "coarse_label")[:3] == ["a", "a", "b"] and "test" in split_names(packed)


def test_batches_that_python_3_wrote_are_read_too(tmp_path: Path) -> None:
    (tmp_path / "batch").write_bytes(pickle.dumps({"data": data(0), b"labels": [1, 2]}, protocol=2))
    content = read_batch(tmp_path / "batch")
    assert np.array_equal(content["data"], data(0)) and content["labels"] == [1, 2]


class _Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_nothing_that_a_pickle_names_is_run(ten: Path, tmp_path: Path) -> None:
    trap = tmp_path / "sprung"
    evil = pickle.dumps({"data": _Evil(trap)}, protocol=2)
    pickle.loads(evil)
    assert trap.exists()  # the trap works
    trap.unlink()
    (ten / "data_batch_3").write_bytes(evil)
    refused("which no official file does, and is not run", *given(ten))
    assert not trap.exists()
    for names in (b"cos\nsystem\n", b"cbuiltins\neval\n", b"cnumpy\nload\n", b"cnumpy.core.multiarray\nfromfile\n"):
        (ten / "data_batch_3").write_bytes(b"\x80\x02" + names + python2(("x",)) + b"R.")
        refused("and is not run", *given(ten))
    for names in (b"\x8c\x02os\x8c\x06system\x93", b"(S'x'\nios\nsystem\n"):  # STACK_GLOBAL and INST
        (ten / "data_batch_3").write_bytes(b"\x80\x04" + names + b".")
        refused("os.system, which no official file does", *given(ten))


def test_arrays_that_are_not_plain_are_refused(ten: Path) -> None:
    content = {"labels": [0] * N, "data": data(0)}
    write(ten / "data_batch_1", content)
    raw = (ten / "data_batch_1").read_bytes()
    (ten / "data_batch_1").write_bytes(raw.replace(python2("u1"), python2("O8")))
    refused("its array is not plain uint8", *given(ten))
    (ten / "data_batch_1").write_bytes(raw.replace(python2((N, 3072)), python2((N + 1, 3072))))
    refused("its array is not plain uint8, or is cut short", *given(ten))
    (ten / "data_batch_1").write_bytes(raw[:-100])
    refused("is no batch of CIFAR or is damaged", *given(ten))
    write(ten / "data_batch_1", {"labels": [0] * N, "data": data(0)[:, :100]})
    refused("data must be uint8 [n, 3072]", *given(ten))
    write(ten / "data_batch_1", {"labels": [0], "data": data(0)})
    refused(f"labels must be {N} numbers", *given(ten))
    write(ten / "data_batch_1", {"labels": [10] * N, "data": data(0)})
    refused("label/label: values must lie in -1..9", *given(ten))


def test_other_layouts_are_refused(ten: Path, hundred: Path, tmp_path: Path) -> None:
    (ten / "data_batch_4").unlink()
    refused("lacks data_batch_4: give the folder that torchvision", *given(ten))
    (ten / "batches.meta").unlink()
    refused("holds neither batches.meta nor meta", *given(ten))
    refused("is no folder", *given(tmp_path / "none"))
    (hundred / "batches.meta").write_bytes(b"")
    refused("give one of them", *given(hundred))
    (hundred / "batches.meta").unlink()
    write(hundred / "meta", {"fine_label_names": [f"fine{k}" for k in range(N)]})
    refused("meta has no list coarse_label_names", *given(hundred))
