"""What a job of several ranks means for the newer packers: pictures are shared, arrays and tables are not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedhpc import cli_machine
from fedhpc.data.hdf5 import PackedFile
from fedhpc.data.packers import cli_shared

from .test_captioned import cub, given
from .trees import pack, refused

__all__ = ["cub"]


@pytest.mark.parametrize("name", ["cifar", "medmnist", "tcga", "tcga-stage"])
def test_one_process_packs_arrays_and_tables(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_shared, "_JOB", cli_shared._Job("mpi", 4, "Open MPI"))
    monkeypatch.setattr(cli_machine, "tell_launch", lambda *_: None)  # of this process, which is alone
    refused("this job has 4 ranks, but one process packs this set", name, tmp_path, "-o", tmp_path / "x.h5")


def test_srun_that_starts_no_mpi_is_refused(cub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_shared, "_JOB", cli_shared._Job("srun", 4))
    monkeypatch.setattr(cli_machine, "tell_launch", lambda *_: None)
    refused("srun started 4 processes, but not for MPI: srun --mpi=pmix", *given("cub-200", cub))


def test_captions_are_the_same_on_two_ranks(cub: Path) -> None:
    pack(*given("cub-200", cub))
    with PackedFile(cub.parent / "out.h5") as packed:
        one, captions = packed.checksum, packed.captions()
    pack(*given("cub-200", cub), "--ranks", 2, "--overwrite")
    with PackedFile(cub.parent / "out.h5") as packed:
        packed.verify()
        assert packed.checksum == one and packed.captions() == captions
        assert np.asarray(packed.read("image")).any()
