"""How rows are dealt, on one rank's view; what several make of it is in tests/dist/test_sharded.py."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fedhpc.client.zero_rows import PASSED_ON, Ranks, Rows, SplitModel, split_batch_norms


def ranks(index: int, count: int) -> Ranks:
    return Ranks(index, count, None)


@pytest.mark.parametrize(("total", "count", "counts"), [(7, 2, [4, 3]), (8, 4, [2] * 4), (1, 3, [1, 0, 0])])
def test_rows_are_dealt_evenly_and_in_order(total: int, count: int, counts: list[int]) -> None:
    column = torch.arange(total)
    parts = [Rows(total, ranks(index, count)) for index in range(count)]
    assert parts[0].counts == counts
    dealt = [part.own(column) for part, n in zip(parts, counts, strict=True) if n]
    assert torch.equal(torch.cat(dealt), column)
    for part, n in zip(parts, counts, strict=True):
        assert len(part.own(column)) == max(n, 1), "a rank without rows takes one, and joins"


def test_outputs_are_gathered_but_for_parameters_and_what_is_handed_on() -> None:
    scale = nn.Parameter(torch.ones(1))

    def run(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        given = batch.get("image_tokens", batch["x"])
        return {"y": 2 * given, "image_tokens": given + 1, "log_temperature": scale}

    model = SplitModel(run, ranks(0, 1), torch.bfloat16)
    out = model({"x": torch.ones(3, 2), "n": torch.arange(3)})
    assert out["y"].dtype == torch.bfloat16 and out["log_temperature"] is scale
    assert "image_tokens" in PASSED_ON and not isinstance(out["image_tokens"], torch.Tensor)
    again = model({"x": torch.ones(3, 2), "image_tokens": out["image_tokens"]})
    assert again["y"].tolist() == [[4.0, 4.0]] * 3


def test_batch_norms_that_cannot_be_split_are_refused() -> None:
    from timm.layers import BatchNormAct2d

    with pytest.raises(ValueError, match="BatchNormAct2d"):
        split_batch_norms(nn.Sequential(BatchNormAct2d(3)), ranks(0, 2))
    untouched = nn.Sequential(nn.BatchNorm1d(3))
    split_batch_norms(untouched, ranks(0, 1))
    assert type(untouched[0]) is nn.BatchNorm1d
