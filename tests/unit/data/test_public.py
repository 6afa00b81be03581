"""Public data: whose rows they are, and that they are the same everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedhpc.config.schema import PhantomConfig, RunConfig
from fedhpc.data.hdf5 import PackedFile, PackWriter
from fedhpc.data.packers.phantom import write_phantom
from fedhpc.data.public import held_out_rows, public_batches
from fedhpc.data.select import client_rows, data_spec, usable_rows

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("public") / "own.h5"
    write_phantom(PhantomConfig(num_patients=80, num_sites=4, image_size=16), path)
    return path


def config(own_file: Path, seed: int = 0, **public: Any) -> RunConfig:
    return RunConfig.model_validate(
        {
            "name": "x",
            "rounds": 1,
            "random_seed": seed,
            "data": {"path": own_file, "label": "finding"},
            "partition": {"kind": "iid", "num_clients": 3},
            "public": public,
            "model": {"kind": "classifier", "networks": ["resnet10"]},
            "fit": {"epochs": 1, "batch_size": 8, "optimizer": {"learning_rate": 0.001}},
            "algorithm": {"name": "mdhfl"},
        }
    )


def batches(packed: PackedFile, run: RunConfig) -> list[Any]:
    held = held_out_rows(packed, run, usable_rows(packed, run))
    return public_batches(packed, run, data_spec(packed, run), held, CPU)


def test_held_out_rows_leave_the_clients_with_their_patients(own: Path) -> None:
    with PackedFile(own) as packed:
        run = config(own, size=20)
        rows = usable_rows(packed, run)
        held = held_out_rows(packed, run, rows)
        clients = client_rows(packed, run)
        dealt = np.concatenate([np.concatenate([c.train, c.val, c.test]) for c in clients])
        assert sorted([*dealt, *held]) == sorted(rows), "every row is somewhere, once"
        assert not set(packed.patients(held)) & set(packed.patients(dealt))
        assert (packed.read("split")[held] == 0).all() and 20 <= len(held) <= 21
        found = batches(packed, run)
        seen = torch.cat([batch["row"] for batch in found])
        assert [len(batch["row"]) for batch in found] == [8, 8] and set(seen.tolist()) <= set(held.tolist())
        assert set(found[0]) == {"image", "row"}, "no labels"
        assert torch.equal(seen, torch.cat([batch["row"] for batch in batches(packed, run)]))
        other = batches(packed, config(own, seed=1, size=20))
        assert set(torch.cat([batch["row"] for batch in other]).tolist()) != set(seen.tolist())


def test_pictures_are_those_of_the_rows(own: Path) -> None:
    with PackedFile(own) as packed:
        [first, *_] = batches(packed, config(own, size=10))
        pixels = torch.from_numpy(packed.read("image", first["row"].numpy())).permute(0, 3, 1, 2)
        torch.testing.assert_close(first["image"], pixels.float() / 127.5 - 1)


def other_lab(folder: Path, side: int = 16, classes: tuple[str, ...] = ("a", "b"), label: str = "finding") -> Path:
    path = folder / "other.h5"
    with PackWriter(path, name="other", source="made up", licence="CC0-1.0") as pack:
        pack.add_images(np.random.default_rng(0).integers(0, 256, (30, side, side, 1), np.uint8))
        pack.set_label(label, np.arange(30) % len(classes), classes)
        pack.set_site(np.zeros(30, int), ["elsewhere"])
        pack.set_patients([str(k) for k in range(30)])
        pack.set_row_ids([str(k) for k in range(30)])
        pack.set_split(np.zeros(30, np.int8))
    return path


def test_another_lab(own: Path, tmp_path: Path) -> None:
    with PackedFile(own) as packed:
        run = config(own, path=other_lab(tmp_path), size=24, batch_size=12, classes="any")
        assert [len(batch["row"]) for batch in batches(packed, run)] == [12, 12]
        assert len(held_out_rows(packed, run, usable_rows(packed, run))) == 0


@pytest.mark.parametrize(
    ("made", "public", "complaint"),
    [
        ({}, {}, "has 2 classes of finding, the clients have 6.*set public.classes: any"),
        ({"side": 24}, {"classes": "any"}, "pack it with the same --image-size"),
        ({"label": "other"}, {"size": 31}, "public.size: 31, but .* has 30 rows with a picture; lower it"),
    ],
)
def test_what_does_not_fit_is_refused(
    own: Path, tmp_path: Path, made: dict[str, Any], public: dict[str, Any], complaint: str
) -> None:
    path = other_lab(tmp_path, **made)
    with PackedFile(own) as packed, pytest.raises(ValueError, match=complaint):
        batches(packed, config(own, path=path, **public))


def test_the_clients_own_file_is_refused(own: Path) -> None:
    with PackedFile(own) as packed:
        with pytest.raises(ValueError, match="is what the clients hold, val and test rows included"):
            batches(packed, config(own, path=own, size=10))
        with pytest.raises(ValueError, match="training rows, and the clients need some; lower public.size"):
            batches(packed, config(own, size=1000))
