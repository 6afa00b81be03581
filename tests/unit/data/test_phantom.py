"""The generated set: reproducible, plainly marked, with findings that can be seen and read."""

from __future__ import annotations

import itertools
import multiprocessing
from pathlib import Path

import numpy as np
import pytest

from fedhpc.config.schema import ColumnPartition, PhantomConfig
from fedhpc.data.hdf5 import PackedFile
from fedhpc.data.packers.phantom import ensure_phantom, phantom_path, write_phantom
from fedhpc.data.partition import partition_file
from fedhpc.data.phantom import ATTRIBUTES, FINDINGS, Scanner, draw_anatomy, draw_pictures, primary_finding

SMALL = PhantomConfig(num_patients=60, num_sites=3, image_size=32)
CLEAN = Scanner(contrast=1.0, gamma=1.0, brightness=0.0, noise=0.0, blur=0.0, vignette=0.0, field=1.0)


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ensure_phantom(PhantomConfig(num_patients=300), tmp_path_factory.mktemp("phantom") / "set.h5")


def checksum(path: Path) -> str:
    with PackedFile(path) as packed:
        packed.verify()
        return packed.checksum


def test_the_seed_alone_decides(tmp_path: Path) -> None:
    write_phantom(SMALL, tmp_path / "a.h5", command="one")
    write_phantom(SMALL, tmp_path / "b.h5", command="two")
    write_phantom(SMALL.model_copy(update={"random_seed": 1}), tmp_path / "c.h5")
    assert checksum(tmp_path / "a.h5") == checksum(tmp_path / "b.h5") != checksum(tmp_path / "c.h5")


def test_it_says_that_it_is_generated(phantom: Path) -> None:
    with PackedFile(phantom) as packed:
        assert packed.generated and "NOT real" in packed.note and "not real data" in packed.source
        assert packed.image_shape == (64, 64, 1) and packed.modalities == ("image", "text")
        assert packed.label_classes == {"finding": list(FINDINGS), **{k: list(v) for k, v in ATTRIBUTES.items()}}


def test_every_site_has_every_split_and_patients_stay_whole(phantom: Path) -> None:
    with PackedFile(phantom) as packed:
        site, split, patients = packed.read("site"), packed.read("split"), packed.patients()
        counts = np.zeros((5, 3), int)
        np.add.at(counts, (site, split), 1)
        assert counts.min() > 0
        _, rows = np.unique(patients, return_counts=True)
        assert set(rows) == {1, 2} and len(rows) == 300
        first = np.unique(patients, return_index=True)[1]
        assert np.allclose(np.bincount(split[first]) / 300, [0.7, 0.1, 0.2], atol=0.01)
        clients = partition_file(ColumnPartition(kind="column", column="site"), packed, 0)
        assert [client.site for client in clients] == [f"site-{letter}" for letter in "abcde"]


def test_no_sentence_is_cut_at_the_default_length(phantom: Path) -> None:
    with PackedFile(phantom) as packed:
        tokens = packed.read("tokens")
        assert (tokens[:, -1] == packed.pad_token).all() and packed.vocab_size <= 400
        assert not (tokens == 1).any()  # no [UNK]: every word of val and test is known


def test_sites_differ_in_look_prevalence_and_words(phantom: Path) -> None:
    with PackedFile(phantom) as packed:
        site, image, finding = packed.read("site"), packed.read("image"), packed.read("label/finding")
        texts = np.array(packed.texts())
    brightness = [image[site == k].mean() for k in range(5)]
    assert np.ptp(brightness) > 15
    share = np.array([np.bincount(finding[site == k], minlength=6) / (site == k).sum() for k in range(5)])
    assert np.ptp(share, axis=0).max() > 0.1
    words = [{word for text in texts[site == k] for word in text.split()} for k in range(5)]
    assert all(a != b for i, a in enumerate(words) for b in words[:i])


def test_sentences_say_what_the_labels_say(phantom: Path) -> None:
    with PackedFile(phantom) as packed:
        labels = {name: packed.read(f"label/{name}") for name in ATTRIBUTES}
        texts = packed.texts()
    for row, text in enumerate(texts):
        shown = [name for name in ATTRIBUTES if labels[name][row] > 0]
        sides = {side for name in shown for side in ("left", "right") if side in name}
        assert {word for word in ("left", "right") if word in text.split()} == sides, (text, shown)
        device = "pacing" in text or "pacemaker" in text
        assert device == ("device" in shown)
        assert any(w in text for w in ("cardiomegaly", "enlarged", "heart size")) == ("cardiomegaly" in shown)


@pytest.mark.parametrize("name", list(ATTRIBUTES))
def test_findings_are_visible_at_64_pixels(name: str) -> None:
    """Drawn into the same chest, a finding changes enough pixels by more than the noisiest scanner's 11 levels."""
    anatomy = draw_anatomy(8, np.random.default_rng(0))
    plain = np.zeros((8, len(ATTRIBUTES)), np.int32)
    place = list(ATTRIBUTES).index(name)
    pictures = []
    for grade in range(len(ATTRIBUTES[name])):
        shown = plain.copy()
        shown[:, place] = grade
        pictures.append(draw_pictures(shown, anatomy, CLEAN, 64, np.random.default_rng(1)).astype(int)[..., 0])
    for less, more in itertools.pairwise(pictures):
        changed = np.abs(more - less) > 11
        assert changed.sum((1, 2)).min() >= 8
        if "_" in name:  # the patient's left is on the right
            across = np.nonzero(changed)[2].mean()
            assert (across > 32) == ("left" in name)


def test_a_linear_probe_reads_findings_from_pixels(phantom: Path) -> None:
    """Ridge regression on pixels, fitted on train, tells devices and effusions in val + test far above chance."""
    with PackedFile(phantom) as packed:
        x = packed.read("image").reshape(packed.num_rows, 64, 64)[:, ::2, ::2].reshape(packed.num_rows, -1) / 255.0
        train = packed.read("split") == 0
        x = np.c_[(x - x.mean(1, keepdims=True)) / x.std(1, keepdims=True), np.ones(len(x))]
        for name in ("device", "effusion_left", "opacity_right_upper"):
            y = (packed.read(f"label/{name}") > 0) * 2.0 - 1
            gram = x[train] @ x[train].T + 30 * np.eye(train.sum())
            score = x[~train] @ x[train].T @ np.linalg.solve(gram, y[train])
            truth = y[~train] > 0
            auc = (score[truth][:, None] > score[~truth][None]).mean()
            assert auc > 0.85, (name, auc)


def test_primary_finding_is_the_first_that_shows() -> None:
    attributes = np.zeros((3, len(ATTRIBUTES)), np.int32)
    names = list(ATTRIBUTES)
    attributes[1, [names.index("device"), names.index("effusion_right")]] = 1
    attributes[2, names.index("opacity_left_upper")] = 2
    assert [FINDINGS[k] for k in primary_finding(attributes)] == ["none", "effusion", "opacity"]


def test_ensure_generates_once_and_refuses_another_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = ensure_phantom(SMALL)
    assert path == phantom_path(SMALL) and path.parent == Path("data") and path.exists()
    written = path.stat().st_mtime_ns
    assert ensure_phantom(SMALL) == path and path.stat().st_mtime_ns == written
    other = SMALL.model_copy(update={"num_sites": 2})
    assert phantom_path(other) != path
    with pytest.raises(ValueError, match="num_sites: 3 there, 2 now"):
        ensure_phantom(other, path)
    with pytest.raises(ValueError, match=r"num_patients\(10\) is less than 4 \* num_sites\(5\)"):
        ensure_phantom(PhantomConfig(num_patients=10), tmp_path / "x.h5")
    assert not (tmp_path / "x.h5").exists()


def test_two_processes_may_generate_at_once(tmp_path: Path) -> None:
    path = tmp_path / "set.h5"
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        assert pool.starmap(ensure_phantom, [(SMALL, path)] * 2) == [path, path]
    assert list(tmp_path.iterdir()) == [path]
    checksum(path)


def test_hard_sites_write_german_on_an_old_scanner_and_leave_the_others_alone(tmp_path: Path) -> None:
    plain = PhantomConfig(num_patients=60, num_sites=3, image_size=16)
    hard = PhantomConfig(num_patients=60, num_sites=3, image_size=16, hard_sites=1)
    with (
        PackedFile(ensure_phantom(plain, tmp_path / "a.h5")) as a,
        PackedFile(ensure_phantom(hard, tmp_path / "b.h5")) as b,
    ):
        site, text = b.read("site"), np.array(b.texts())
        last = site == 2
        assert (a.read("site") == site).all()
        assert (a.read("label/finding") == b.read("label/finding")).all(), "findings stay, only words and looks change"
        assert (a.read("image")[~last] == b.read("image")[~last]).all()
        assert (np.array(a.texts())[~last] == text[~last]).all()
        words = set(" ".join(text[last]).split())
        assert words & {"verschattung", "infiltrat", "pleuraerguss", "rundherd", "kardiomegalie", "schrittmacher"}
        assert not words & {"the", "lung", "side", "sided", "left", "right"}
        assert b.read("image")[last][:, 0].mean() > 128 > a.read("image")[last][:, 0].mean(), "air is white"


def test_noise_sites_show_nothing(tmp_path: Path) -> None:
    config = PhantomConfig(num_patients=60, num_sites=3, image_size=16, noise_sites=1)
    with PackedFile(ensure_phantom(config, tmp_path / "n.h5")) as packed:
        noise = packed.read("image")[packed.read("site") == 0].astype(float)
    neighbours = np.corrcoef(noise[:, :, :-1].ravel(), noise[:, :, 1:].ravel())[0, 1]
    assert abs(neighbours) < 0.05, "pixels of a picture would be alike"


def test_more_odd_sites_than_sites_are_refused() -> None:
    with pytest.raises(ValueError, match="raise num_sites"):
        PhantomConfig(num_sites=2, hard_sites=1, noise_sites=2)
