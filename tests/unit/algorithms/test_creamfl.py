"""CreamFL's contrasts by hand, its two sums against the softmax over clients in NumPy, a round with fake clients."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedhpc.algorithms.cream_losses import inter_modal_loss, intra_modal_loss, mean_of_shares, share_of_mean
from fedhpc.algorithms.creamfl import CreamFl, without_joint
from fedhpc.config.joint import CreamFlConfig
from fedhpc.data.partition import ClientRows
from fedhpc.interfaces import Block, Layout, TensorSpec
from fedhpc.population import held_modalities
from tests.unit.algorithms.fakes import FakeClient, FakeFederation
from tests.unit.models.test_joint import batch, build


def unit(*shape: int, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


# ------------------------------------------------------------------------------------------------------------- losses
def test_inter_modal_golden() -> None:
    """own (1, 0) against others (1, 0), (0, 1), t = .5: -log e^2 / (e^2 + 1) where its row is the first."""
    own, other = torch.tensor([[1.0, 0.0]]), torch.eye(2)
    for place, right in ((0, 2.0), (1, 0.0)):
        want = math.log(math.exp(2) + 1) - right
        assert float(inter_modal_loss(own, other, torch.tensor([place]), 0.5)) == pytest.approx(want, abs=1e-6)


def test_intra_modal_golden() -> None:
    """Cosines 1 and .6, t = .5: log(1 + e^-0.8); log 2 where both are alike."""
    own, same, before = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0]]), torch.tensor([[0.6, 0.8]])
    assert float(intra_modal_loss(own, same, before, 0.5)) == pytest.approx(math.log(1 + math.exp(-0.8)), abs=1e-6)
    assert float(intra_modal_loss(own, before, before, 0.5)) == pytest.approx(math.log(2), abs=1e-6)


def gathered(own: np.ndarray, other: np.ndarray, t: float) -> np.ndarray:
    """Everybody's representations [clients,rows,D] in one place: the published softmax over scores, row by row."""
    clients, rows, _ = own.shape
    out = np.zeros(own.shape[1:])
    for k in range(rows):
        scores = []
        for c in range(clients):
            wrong = sum(math.exp(own[c, k] @ other[j] / t) for j in range(rows) if j != k)
            scores.append(math.log(math.exp(own[c, k] @ other[k] / t) / wrong))
        w = np.exp(scores) / np.exp(scores).sum()
        out[k] = sum(w[c] * own[c, k] for c in range(clients))
    return out


@settings(max_examples=15)
@given(st.integers(0, 10_000), st.integers(2, 5), st.floats(0.2, 2.0))
def test_two_sums_are_the_softmax_over_clients(seed: int, rows: int, t: float) -> None:
    own, other = unit(3, rows, 4, seed=seed).double(), unit(rows, 4, seed=seed + 1).double()
    shares = [share_of_mean(one, other, t) for one in own]
    found = mean_of_shares(torch.stack(shares).sum(0))
    np.testing.assert_allclose(found.numpy(), gathered(own.numpy(), other.numpy(), t), atol=1e-6)
    for share in shares:  # whatever a client does: fixed point knows its range
        assert (
            math.exp(-2 / t) - 1e-9 <= float(share[:, -1].min()) <= float(share[:, -1].max()) <= math.exp(2 / t) + 1e-6
        )


def test_who_tells_rows_apart_weighs_more() -> None:
    other = torch.eye(2)
    right, wrong = share_of_mean(torch.eye(2), other, 1.0), share_of_mean(torch.eye(2).flip(0), other, 1.0)
    assert right[:, -1].tolist() == pytest.approx([math.e, math.e])
    assert wrong[:, -1].tolist() == pytest.approx([1 / math.e, 1 / math.e])


# -------------------------------------------------------------------------------------------------------------- rounds
class SeeingClient(FakeClient):
    """What it makes of public rows is drawn once; under other weights than its own it sees what the server sees."""

    def __init__(self, id: int, modalities: frozenset[str], calls: list[Any]) -> None:
        super().__init__(id, 10, float(id + 1))
        self.modalities = modalities
        self.calls = calls
        self.tables = {m: unit(6, 2, seed=10 * id + n) for n, m in enumerate(("image", "text"))}
        self.mine: dict[str, Block] = {}
        self.serves = False

    def load(self, shared: Any) -> None:
        super().load(shared)
        self.serves = True

    def resume(self) -> None:
        self.serves = False
        self.own = self.mine = self.mine or {name: b.clone() for name, b in self.first.items()}

    def fit(self, *args: Any, **options: Any) -> Any:
        self.calls.append((self.id, "fit"))
        return super().fit(*args, **options)

    def outputs(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {m: table[batch["row"]] for m, table in (SERVER if self.serves else self.tables).items()}

    def step(self, batch: Mapping[str, Tensor], loss: Callable[..., Tensor], *, rate: float | None = None) -> float:
        value = float(loss(self.outputs(batch), batch))
        self.calls.append((self.id, "server" if self.serves else "step", value))
        for b in self.own.values():
            b.flat.add_(self._step)
        return value


SERVER = {"image": unit(6, 2, seed=100), "text": unit(6, 2, seed=101)}
BOTH = frozenset({"image", "text"})
FIRST = {"embed": Block(torch.zeros(4), Layout((TensorSpec("embed.weight", (2, 2), (2, 1), 0, True),), 4, 4))}


def federation(*held: frozenset[str]) -> tuple[FakeFederation, list[Any]]:
    calls: list[Any] = []
    fed = FakeFederation([SeeingClient(k, m, calls) for k, m in enumerate(held)], FIRST)
    fed.public = [{"row": torch.arange(4)}, {"row": torch.arange(4, 6)}]
    return fed, calls


def played(*held: frozenset[str], **keys: Any) -> tuple[FakeFederation, list[Any], CreamFl, Mapping[str, float]]:
    fed, calls = federation(*held)
    algorithm = CreamFl(CreamFlConfig(name="creamfl", **keys))
    algorithm.setup(fed)  # type: ignore[arg-type]
    return fed, calls, algorithm, algorithm.round(fed, 0)  # type: ignore[arg-type]


def test_a_round() -> None:
    fed, calls, algorithm, metrics = played(BOTH, BOTH, BOTH, frozenset({"text"}), inter=1.0, intra=0.25, distill=1.0)
    steps = [call[:2] for call in calls]
    local = [(k, what) for k in range(4) for what in ("fit", "step", "step")]
    assert steps == [(0, "server"), (0, "server"), *local, (0, "server"), (0, "server")]
    # The server went by what client 0, which plays it, added to its weights in four steps; clients kept their own.
    assert algorithm.state_dict()["server"]["embed"].flat.tolist() == [4.0] * 4
    for k, client in fed._clients.items():
        assert client.mine["embed"].flat.tolist() == [3.0 * (k + 1)] * 4  # type: ignore[attr-defined]
    # A client of texts alone: its texts against the server's pictures, its own of before being what they are now.
    table = fed._clients[3].tables["text"]  # type: ignore[attr-defined]
    inter = F.cross_entropy(table[:4] @ SERVER["image"].T / 0.5, torch.arange(4))
    intra = torch.log1p(((1 - (table * SERVER["text"]).sum(1)) / 0.5).exp())[:4].mean()
    assert calls[12][2] == pytest.approx(float(inter + 0.25 * intra), abs=1e-6)
    # Distillation: pictures of the three that hold them, texts of all four.
    want = 0.0
    for m, other, holders in (("image", "text", 3), ("text", "image", 4)):
        own = np.stack([fed._clients[k].tables[m].double().numpy() for k in range(holders)])  # type: ignore[attr-defined]
        target = gathered(own, SERVER[other].double().numpy(), 1.0)
        want += float(((SERVER[m].numpy() - target)[:4] ** 2).mean())
    assert calls[-2][2] == pytest.approx(want, abs=1e-6)
    assert metrics["loss"] == pytest.approx(1.5)


def test_what_too_few_hold_is_not_summed(caplog: pytest.LogCaptureFixture) -> None:
    text = frozenset({"text"})
    with caplog.at_level(logging.WARNING):
        fed, calls, *_ = played(BOTH, text, text, text, distill=1.0)
    assert "1 of 4 clients hold image, and a sum over fewer than 3 would show" in caplog.text
    own = np.stack([fed._clients[k].tables["text"].double().numpy() for k in range(4)])  # type: ignore[attr-defined]
    target = gathered(own, SERVER["image"].double().numpy(), 1.0)
    assert calls[-2][2] == pytest.approx(float(((SERVER["text"].numpy() - target)[:4] ** 2).mean()), abs=1e-6)


def test_public_rows_are_cut_to_what_is_read_of_them() -> None:
    tokens = {
        "image_tokens": torch.randn(2, 5, 3),
        "text_tokens": torch.randn(2, 4, 3),
        "text_mask": torch.ones(2, 4) > 0,
    }
    cut = without_joint({**tokens, "row": torch.arange(2)})
    assert {name: tuple(x.shape) for name, x in cut.items()} == {
        "image_tokens": (2, 1, 3), "text_tokens": (2, 1, 3), "text_mask": (2, 1), "row": (2,),
    }  # fmt: skip
    assert all(torch.equal(cut[name][:, 0], x[:, 0]) for name, x in tokens.items())
    patches = {**tokens, "image": torch.randn(2, 3, 8, 8)}  # concat: features needs as many positions of both
    assert without_joint(patches) is patches


def test_representations_of_modalities_need_no_more() -> None:
    model = build(pictures="tokens", concat="sequence").eval()
    whole = {**batch(), **model.features(batch())}
    features = {name: x for name, x in whole.items() if name.startswith(("image_", "text_"))}
    full, cut = model(features), model(without_joint(features))
    for m in ("image", "text"):
        assert torch.equal(full[m], cut[m])


def test_no_server_training_no_server_steps_before_the_clients() -> None:
    _, calls, *_ = played(BOTH, BOTH, BOTH, server_epochs=0)
    assert [call[:2] for call in calls[:2]] == [(0, "fit"), (0, "step")]


def test_state_goes_on() -> None:
    *_, algorithm, _ = played(BOTH, BOTH, BOTH)
    fed, _ = federation(BOTH, BOTH, BOTH)
    other = CreamFl(CreamFlConfig(name="creamfl"))
    other.setup(fed)  # type: ignore[arg-type]
    other.load_state_dict(algorithm.state_dict())
    assert torch.equal(other.state_dict()["server"]["embed"].flat, algorithm.state_dict()["server"]["embed"].flat)
    assert other.shared == {} and not algorithm.reveals


def test_refused() -> None:
    fed, _ = federation(BOTH, BOTH)
    with pytest.raises(ValueError, match="set the partition .* to 3 clients or more"):
        CreamFl(CreamFlConfig(name="creamfl")).setup(fed)  # type: ignore[arg-type]
    fed, _ = federation(BOTH, BOTH, BOTH)
    for public, rows in (([{"row": torch.arange(4)}, {"row": torch.arange(1)}], 1), ([], 0)):
        fed.public = public
        with pytest.raises(ValueError, match=f"a public batch has {rows} rows, .* set public.size"):
            CreamFl(CreamFlConfig(name="creamfl")).setup(fed)  # type: ignore[arg-type]


def test_a_client_holds_what_any_of_its_training_rows_has() -> None:
    has = {"image": np.array([True, True, False, False, True]), "text": np.array([False, True, True, True, True])}
    none = np.empty(0, np.int64)
    for train, want in (([0], {"image"}), ([0, 2], {"image", "text"}), ([2, 3], {"text"}), ([], set())):
        client = ClientRows(0, "a", np.array(train, np.int64), none, np.array([4]))
        assert held_modalities(client, has) == want
