"""Rows with gaps of the file's own: which a joint model can use, which can be public."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fedhpc.completion.prepare import Prepared
from fedhpc.config.load import load_config
from fedhpc.config.schema import RunConfig
from fedhpc.data.hdf5 import PackedFile, PackWriter
from fedhpc.data.known import check_packed
from fedhpc.data.select import client_rows, public_rows, usable_rows
from fedhpc.data.text import encode_texts, train_wordpiece
from fedhpc.examples import examples_of
from fedhpc.federation.evaluate import JointScorer
from fedhpc.population import Population
from tests.conftest import ROOT

# 60 training, 10 validation, 20 test rows; every fifth has no text, every seventh no picture, row 1 no label.
NUM = 90
TEXT, IMAGE = np.arange(NUM) % 5 != 0, np.arange(NUM) % 7 != 0
SPLIT = np.repeat([0, 1, 2], [60, 10, 20]).astype(np.int8)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("gaps") / "gaps.h5"
    texts = [f"word {k % 9}" if TEXT[k] else "" for k in range(NUM)]
    tokenizer = train_wordpiece(texts, 60)
    tokens, _ = encode_texts(tokenizer, texts, 6)
    label = np.arange(NUM) % 3
    label[1] = -1
    with PackWriter(target, name="gaps", source="made up", licence="CC0-1.0") as pack:
        pack.add_images(np.random.default_rng(0).integers(0, 256, (NUM, 32, 32, 1), np.uint8))
        pack.set_text(texts)
        pack.set_tokens(tokens, tokenizer_json=tokenizer.to_str(), pad_token=0, vocab_size=tokenizer.get_vocab_size())
        pack.set_label("finding", label, ["a", "b", "c"])
        pack.set_site(np.arange(NUM) % 2, ["x", "y"])
        pack.set_patients([str(k) for k in range(NUM)])
        pack.set_row_ids([str(k) for k in range(NUM)])
        pack.set_split(SPLIT)
        pack.set_present("image", IMAGE)
        pack.set_present("text", TEXT)
    return target


def config(path: Path, *overrides: str) -> RunConfig:
    options = (f"data.path={path}", "data.phantom=null", "missing=null", "public={size: 10}", *overrides)
    return load_config(ROOT / "configs" / "smoke" / "fedmvp.yaml", options)


def test_incomplete_rows_train_where_something_stands_in(path: Path) -> None:
    labelled, train = np.arange(NUM) != 1, SPLIT == 0
    both, some = TEXT & IMAGE & labelled, (TEXT | IMAGE) & labelled
    with PackedFile(path) as packed:
        for overrides, expected in (
            (("completion=null",), both),
            (("completion=null", "model.missing=zeros"), both | (some & train)),
            ((), both | (some & train)),
        ):
            np.testing.assert_array_equal(usable_rows(packed, config(path, *overrides)), np.flatnonzero(expected))
        public = public_rows(packed, config(path))
        assert len(public) == 10
        assert both[public].all()
        assert train[public].all()
        held = np.concatenate([client.train for client in client_rows(packed, config(path))])
        assert not set(held) & set(public)


def test_check_counts_them_alike(path: Path) -> None:
    """57 of 60 training rows have something and a label; 40 have both."""
    by_site = ("partition={kind: column, column: site, min_examples: 25}", "algorithm={name: fedavg}", "public=null")
    assert not check_packed(config(path, *by_site))
    assert "2 of 2 clients have fewer" in check_packed(config(path, *by_site, "completion=null"))[0]


def test_wrong_labels_are_trained_on_and_not_scored(path: Path, tmp_path: Path) -> None:
    """noise with a joint model: of client 1 alone, and of training rows alone."""
    told = config(path, "noise={kind: symmetric, rate: [0.0, 1.0]}", "completion=null")
    with PackedFile(path) as packed:
        dealt = client_rows(packed, told)
        given = {"has_image": torch.from_numpy(IMAGE)}
        prepared = Prepared(dealt, packed, {"label": "label/finding"}, given, {})  # type: ignore[arg-type]
        people = Population(dealt, {}, {}, (), frozenset(), (), None, prepared)
        found = examples_of(told, packed, people, None, torch.device("cpu"), tmp_path)  # type: ignore[arg-type]
        labels = packed.read("label/finding")
    moved = np.flatnonzero(found.given["label"].numpy() != labels)
    assert set(moved) == {row for c in dealt if c.id % 2 for row in c.train if labels[row] >= 0} and len(moved)
    assert torch.equal(found.given["has_image"], given["has_image"])
    assert isinstance(found.scorer, JointScorer)
    np.testing.assert_array_equal(found.scorer._label.numpy(), labels)
    assert (tmp_path / "noisy_labels.csv").is_file()
