"""Files written tensor by tensor are those that safetensors writes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from fedhpc.federation.tensor_file import DTYPES, write_tensors

SHAPES = st.lists(st.integers(0, 4), max_size=3).map(tuple)
NAMES = st.text('ab.é/"', min_size=1, max_size=5)


@given(st.dictionaries(NAMES, st.tuples(st.sampled_from(list(DTYPES)), SHAPES), max_size=6))
def test_the_same_bytes(tmp_path_factory: pytest.TempPathFactory, described: dict) -> None:
    folder = tmp_path_factory.mktemp("files")
    tensors = {name: torch.arange(1000)[: max(1, torch.Size(s).numel())] for name, (_, s) in described.items()}
    tensors = {n: t[: torch.Size(described[n][1]).numel()].to(described[n][0]) for n, t in tensors.items()}
    tensors = {n: t.reshape(described[n][1]).clone() for n, t in tensors.items()}
    save_file(tensors, folder / "theirs", metadata={"format": "pt"})
    write_tensors(folder / "ours", described, tensors.__getitem__, {"format": "pt"})
    assert (folder / "ours").read_bytes() == (folder / "theirs").read_bytes()


def test_another_tensor_than_announced_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a is torch.float32 \(3,\), announced was"):
        write_tensors(tmp_path / "f", {"a": (torch.float32, (2,))}, lambda name: torch.zeros(3), {})
