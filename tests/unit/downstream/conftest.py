"""Finished runs on generated data, trained once a session, and packed files for tasks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from fedhpc.config.load import load_config
from fedhpc.data.hdf5 import PackWriter
from fedhpc.data.text import encode_texts, train_wordpiece
from fedhpc.task import RunTask
from tests.conftest import ROOT

Trained = Callable[..., Path]
QUICK = ("rounds=2", "fit.steps=3", "evaluation.every=null", "report={tensorboard: false, plots: false}")


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """trained("fedavg", *overrides) -> the folder of a finished run of that smoke config. Leave it as it is."""
    torch.set_num_threads(1)
    home = tmp_path_factory.mktemp("runs")
    made: dict[tuple[str, ...], Path] = {}

    def train(name: str, *overrides: str) -> Path:
        key = (name, *overrides)
        if key not in made:
            by_epochs = name in ("classifier", "fedmd", "feddf")
            quick = [one for one in QUICK if not by_epochs or not one.startswith("fit.")]
            data = f"data.path={home / ('four_sites.h5' if name == 'classifier' else 'five_sites.h5')}"
            config = load_config(ROOT / "configs" / "smoke" / f"{name}.yaml", [*quick, data, *overrides])
            folder = home / f"run_{len(made)}"
            RunTask(config, folder)()
            made[key] = folder
        return made[key]

    return train


@pytest.fixture(scope="session")
def boxes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """32 x 32 grey pictures with a bright or dim box left or right (its mask), two pictures a patient, two sites, other
    words than the phantom's."""
    random = np.random.default_rng(0)
    count = 120
    image = random.integers(0, 60, (count, 32, 32, 1)).astype(np.uint8)
    mask = np.zeros((count, 32, 32), np.uint8)
    side = random.integers(0, 2, count)
    bright = random.integers(0, 2, count).astype(np.uint8)
    for row in range(count):
        top, left = random.integers(2, 14), 2 + 16 * side[row]
        mask[row, top : top + 14, left : left + 12] = 255
        image[row, mask[row] > 0] += 40 + 150 * bright[row]
    texts = [f"a box on the {('left', 'right →')[s]}" for s in side]
    tokenizer = train_wordpiece(texts, 60)
    tokens, _ = encode_texts(tokenizer, texts, 20)
    patient = np.arange(count) // 2
    path = tmp_path_factory.mktemp("boxes") / "boxes.h5"
    with PackWriter(path, name="boxes", source="drawn by a test", licence="CC0", generated=True) as writer:
        writer.add_images(image)
        writer.set_text(texts)
        writer.set_tokens(tokens, tokenizer_json=tokenizer.to_str(), pad_token=0, vocab_size=tokenizer.get_vocab_size())
        writer.set_label("side", side, ["left", "right"])
        writer.set_label("shade", bright, ["dim", "bright"])
        rare = np.where(np.arange(count) < 100, side, -1)
        writer.set_label("rare", rare, ["left", "right", "never"])
        writer.set_site((patient % 2).astype(np.int32), ["north", "south"])
        writer.set_split(np.asarray([0, 0, 0, 1, 2])[(patient // 2) % 5])
        writer.set_patients([f"p{p}" for p in patient])
        writer.set_masks(mask[: count - 20], np.where(np.arange(count) < count - 20, np.arange(count), -1))
        writer.set_row_ids([f"r{row}" for row in range(count)])
    return path
