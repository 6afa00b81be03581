"""CUB-200-2011 and Oxford 102 Flowers: official layouts, several captions a picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat
from tokenizers import Tokenizer

from fedhpc.data.describe import describe
from fedhpc.data.hdf5 import PackedFile, PackWriter
from fedhpc.data.packers.official import hash_split

from .trees import by_id, label, pack, picture, refused, save, split_names

SPECIES = ("001.Black_footed_Albatross", "002.Laysan_Albatross", "200.Common_Yellowthroat")
NUM_BIRDS, NUM_FLOWERS, EACH = 24, 12, 10


def bird(k: int) -> str:
    return f"{SPECIES[k % 3]}/{SPECIES[k % 3][4:]}_{k:04d}_{7000 + k}.jpg"


def captions(k: int, train: bool = True) -> list[str]:
    word = "bird" if train else "secretive"
    return [f"a {word} with {k} spots and {n} stripes ." for n in range(EACH)]


@pytest.fixture
def cub(tmp_path: Path) -> Path:
    """As CUB_200_2011.tgz and cvpr2016_cub unpack side by side."""
    root = tmp_path / "data" / "CUB_200_2011"
    for k in range(NUM_BIRDS):
        save(root / "images" / bird(k), picture(k, 1 if k == 5 else 3, (20 + k, 30)))  # some of CUB are grey
        text = tmp_path / "data" / "cvpr2016_cub" / "text_c10" / Path(bird(k)).with_suffix(".txt")
        text.parent.mkdir(parents=True, exist_ok=True)
        text.write_text("\n".join(captions(k, k % 2 == 0)) + "\n")
    ids = range(1, NUM_BIRDS + 1)
    (root / "images.txt").write_text("".join(f"{i} {bird(i - 1)}\n" for i in ids))
    (root / "classes.txt").write_text("".join(f"{n} {name}\n" for n, name in zip((1, 2, 200), SPECIES, strict=True)))
    (root / "image_class_labels.txt").write_text("".join(f"{i} {(1, 2, 200)[(i - 1) % 3]}\n" for i in ids))
    (root / "train_test_split.txt").write_text("".join(f"{i} {i % 2}\n" for i in ids))
    return root


@pytest.fixture
def flowers(tmp_path: Path) -> Path:
    root = tmp_path / "flowers-102"
    labels = [1, 77, 102] * (NUM_FLOWERS // 3)
    for k, number in enumerate(labels, 1):
        save(root / "jpg" / f"image_{k:05d}.jpg", picture(k, 3, (24, 18)))
        text = root / "text_c10" / f"class_{number:05d}" / f"image_{k:05d}.txt"
        text.parent.mkdir(parents=True, exist_ok=True)
        text.write_text("\n".join(captions(k)) + "\n")
    savemat(root / "imagelabels.mat", {"labels": np.asarray([labels], np.uint8)})
    sets = {"trnid": [1, 2, 3], "valid": [4, 6, 5], "tstid": [12, 11, 10, 9, 8, 7]}
    savemat(root / "setid.mat", {name: np.asarray([ids], np.uint16) for name, ids in sets.items()})
    return root


def given(name: str, tree: Path) -> tuple[object, ...]:
    return (name, tree, "-o", tree.parent / "out.h5", "--image-size", 16, "--vocab-size", 120)


def test_cub(cub: Path) -> None:
    pack(*given("cub-200", cub), "--val-fraction", 0.3)
    with PackedFile(cub.parent / "out.h5") as packed:
        packed.verify()
        assert packed.num_rows == NUM_BIRDS and packed.image_shape == (16, 16, 3)
        assert packed.row_ids().tolist() == [bird(k) for k in range(NUM_BIRDS)]
        names = ["Black footed Albatross", "Laysan Albatross", "Common Yellowthroat"]
        assert packed.label_classes["species"] == names and label(packed, "species") == names * 8
        splits = split_names(packed)
        assert splits[1::2] == ["test"] * 12
        assert splits[::2] == [hash_split(bird(k), (0.7, 0.3, 0.0), 0) for k in range(0, NUM_BIRDS, 2)]
        assert {"train", "val"} <= set(splits) and "secretive" not in str(packed.tokenizer_json)
        assert packed.texts() == [captions(k, k % 2 == 0)[0] for k in range(NUM_BIRDS)]
        assert "text is caption 1 of each picture" in packed.note and "Reed et al." in packed.source


def test_all_captions_lie_beside_the_text(cub: Path) -> None:
    pack(*given("cub-200", cub), "--caption", 4)
    with PackedFile(cub.parent / "out.h5") as packed:
        every = [captions(k, k % 2 == 0) for k in range(NUM_BIRDS)]
        assert packed.captions() == every and packed.texts() == [own[3] for own in every]
        assert (
            packed.captions(np.array([7, 0, 7])) == [every[7], every[0], every[7]]
            and packed.captions(np.arange(0)) == []
        )
        offsets, tokens = packed.caption_offsets, packed.read("captions/tokens")
        assert offsets is not None and offsets.tolist() == list(range(0, NUM_BIRDS * EACH + 1, EACH))
        assert tokens.shape == (NUM_BIRDS * EACH, packed.max_tokens) and tokens.dtype == np.int32
        assert np.array_equal(tokens[offsets[:-1] + 3], packed.read("tokens"))
        assert packed.tokenizer_json is not None
        decoded = Tokenizer.from_str(packed.tokenizer_json).decode(tokens[offsets[6] + 9].tolist())
        assert decoded == "a bird with 6 spots and 9 stripes ."
        assert packed.modalities == ("image", "text") and "captions/text" not in packed.columns
        assert len(describe(cub.parent / "out.h5").renderables) > 3


def test_joined_captions_own_split_and_no_text(cub: Path) -> None:
    pack(*given("cub-200", cub.parent), "--caption", "joined", "--max-tokens", 150, "--split", "0.6,0,0.4")
    with PackedFile(cub.parent.parent / "out.h5") as packed:
        assert packed.texts()[2] == " ".join(captions(2)) and len(packed.captions()[2]) == EACH
        assert split_names(packed) == [hash_split(bird(k), (0.6, 0, 0.4), 0) for k in range(NUM_BIRDS)]
        assert "not the official" in packed.note
    pack(*given("cub-200", cub), "--no-text")
    with PackedFile(cub.parent / "out.h5") as packed:
        assert packed.modalities == ("image",) and packed.caption_offsets is None and "Reed" not in packed.source
        with pytest.raises(ValueError, match="has no captions"):
            packed.captions()


def test_flowers(flowers: Path) -> None:
    pack(*given("flowers-102", flowers))
    with PackedFile(flowers.parent / "out.h5") as packed:
        packed.verify()
        assert packed.num_rows == NUM_FLOWERS and packed.image_shape == (16, 16, 3)
        assert label(packed, "species")[:3] == ["pink primrose", "passion flower", "blackberry lily"]
        assert len(packed.label_classes["species"]) == 102
        assert split_names(packed) == ["train"] * 3 + ["val"] * 3 + ["test"] * 6
        assert by_id(packed, packed.captions())["image_00012.jpg"] == captions(12)
        whole = packed.checksum
    pack(*given("flowers-102", flowers), "--overwrite", "--captions", flowers / "text_c10")
    with PackedFile(flowers.parent / "out.h5") as packed:
        assert packed.checksum == whole


def test_odd_caption_files(cub: Path) -> None:
    folder = cub.parent / "cvpr2016_cub" / "text_c10"
    odd = folder / Path(bird(0)).with_suffix(".txt")
    odd.write_bytes("a bird\ufffd\ufffdwith  a caf\u00e9 .\n\n".encode() + b"\xff one\n")
    (folder / Path(bird(2)).with_suffix(".txt")).unlink()
    (folder / Path(bird(4)).with_suffix(".txt")).write_text("\n")
    refused(f"picture 3: {folder / Path(bird(2)).with_suffix('.txt')} cannot be read", *given("cub-200", cub))
    result = pack(*given("cub-200", cub), "--skip-bad")
    assert "dropped 2 bad rows: missing captions 1, no captions 1" in result.output
    with PackedFile(cub.parent / "out.h5") as packed:
        assert packed.captions()[0] == ["a bird with a caf\u00e9 .", "one"]
    refused("has 2 captions: set --caption to 2 or less", *given("cub-200", cub)[:3], cub / "x.h5", "--caption", 3)


def test_captions_must_fit_the_rows(tmp_path: Path) -> None:
    def write(own: list[list[str]], tokens: np.ndarray) -> None:
        with PackWriter(tmp_path / "x.h5", name="x", source="x", licence="x") as writer:
            writer.set_row_ids(["a", "b"])
            writer.set_split(np.zeros(2, int))
            writer.set_captions(own, tokens)

    write([["one", "two"], []], np.zeros((2, 3), int))
    with PackedFile(tmp_path / "x.h5") as packed:
        packed.verify()
        assert packed.captions() == [["one", "two"], []]
    (tmp_path / "x.h5").unlink()
    with pytest.raises(ValueError, match=r"must be \[2, L\]"):
        write([["one", "two"], []], np.zeros((3, 3), int))
    with pytest.raises(ValueError, match="other lengths: {'captions': 3}"):
        write([["one"], ["two"], ["three"]], np.zeros((3, 3), int))
    assert not list(tmp_path.iterdir())


def test_bad_options_are_refused(cub: Path, flowers: Path) -> None:
    refused("--caption is 'all'", *given("cub-200", cub), "--caption", "all")
    refused("choose one", *given("cub-200", cub), "--split", "0.8,0.1,0.1", "--val-fraction", 0.1)
    refused("--caption has no effect with --no-text", *given("cub-200", cub), "--no-text", "--caption", 2)
    refused("--captions has no effect with --no-text", *given("flowers-102", flowers), "--no-text", "--captions", cub)
    refused("no folder text_c10 or text with 001.Black", *given("cub-200", cub), "--captions", flowers)
    refused("https://github.com/reedscot/cvpr2016", *given("flowers-102", flowers), "--captions", cub)


def test_other_layouts_of_cub_are_refused(cub: Path) -> None:
    (cub / "train_test_split.txt").write_text("1 1\n2 0\n")
    refused("picture 3: train_test_split.txt gives None", *given("cub-200", cub))
    (cub / "image_class_labels.txt").write_text("1 1\n2 9\n")
    refused("picture 2: image_class_labels.txt gives the class 9", *given("cub-200", cub))
    (cub / "classes.txt").write_text("Albatross\n")
    refused("classes.txt, line 1: 'Albatross'", *given("cub-200", cub))
    (cub / "classes.txt").unlink()
    refused("lacks classes.txt: give the folder CUB_200_2011", *given("cub-200", cub))
    (cub / "images.txt").unlink()
    refused("holds no images.txt", *given("cub-200", cub))


def test_other_layouts_of_flowers_are_refused(flowers: Path) -> None:
    savemat(flowers / "setid.mat", {"trnid": [1, 2], "valid": [2], "tstid": [3]})
    refused("must name each of the 12 pictures", *given("flowers-102", flowers))
    savemat(flowers / "setid.mat", {"trnid": [1, 2], "valid": [2]})
    refused("setid.mat lacks the numbers tstid", *given("flowers-102", flowers))
    (flowers / "setid.mat").write_bytes(b"torn")
    refused("is not a readable MATLAB file", *given("flowers-102", flowers))
    savemat(flowers / "imagelabels.mat", {"labels": [103]})
    (flowers / "jpg").rename(flowers / "jpeg")
    refused("lacks jpg: give the folder with jpg/", *given("flowers-102", flowers))
    refused("is no folder", *given("flowers-102", flowers / "none"))
