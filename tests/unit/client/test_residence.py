"""Own models: the same bits whether a client has an engine to itself or shares it, and the same as a loop by hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedhpc.client.client import ClientRecord, Rows
from fedhpc.client.engine import Engine
from fedhpc.client.residence import OWN_MODEL, STEP_MOMENTS
from fedhpc.client.slot import Slot
from fedhpc.config.schema import FitConfig
from fedhpc.interfaces import Batch
from fedhpc.models.dropout import dropout


class Net(nn.Module):
    block_prefixes: Mapping[str, tuple[str, ...]] = {"body": ("body.", "norm."), "head": ("head.",)}

    def __init__(self) -> None:
        super().__init__()
        self.body, self.norm, self.head = nn.Linear(4, 6, bias=False), nn.BatchNorm1d(6), nn.Linear(6, 3)
        self.passes = 0

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        self.passes += 1
        return {"logits": self.head(dropout(torch.relu(self.norm(self.body(batch["x"]))), 0.3, self.training))}


def loss(out: Mapping[str, Tensor], batch: Batch) -> Tensor:
    return functional.cross_entropy(out["logits"], batch["y"])


def engine(seed: int = 0, **fit: Any) -> Engine:
    torch.manual_seed(seed)
    optimizer = {"name": "adam", "learning_rate": 0.05}
    config = FitConfig.model_validate(
        {"steps": 2, "batch_size": 8, "channels_last": False, "optimizer": optimizer, **fit}
    )
    return Engine(Net(), loss, config, torch.device("cpu"))


def batches(n: int, seed: int) -> list[Batch]:
    generator = torch.Generator().manual_seed(seed)
    return [
        {"x": torch.randn(8, 4, generator=generator), "y": torch.randint(3, (8,), generator=generator)}
        for _ in range(n)
    ]


class Own:
    """A maker of batches from a client's rows: the first row number is the seed."""

    def training(self, rows: Tensor, size: int, num_batches: int, drop_last: bool, generator: Any) -> list[Batch]:
        return batches(num_batches, int(rows[0]))


def slot(engines: list[Engine], clients: int, keep: bool = True) -> Slot:
    none = torch.arange(0)
    rows = [Rows(torch.arange(8 * k, 8 * k + 8), none, none) for k in range(clients)]
    records = {k: ClientRecord(k, "x", rows[k], frozenset()) for k in range(clients)}
    return Slot(engines, Own(), records, 0, 3, keep, True, None)  # type: ignore[arg-type]


def play(made: Slot, clients: int, rounds: int = 2) -> dict[int, Tensor]:
    """Rounds of alignment-like exchanges and local training; every client's own weights and statistics."""
    public = batches(3, 99)
    for index in range(rounds):
        made.begin(index)
        for batch in public:
            said = {}
            for k in range(clients):
                client = made.turn(k)
                client.resume()
                said[k] = client.respond(batch, "logits")
                made.release(client)
            mean = torch.stack(list(said.values())).mean(0)
            for k in range(clients):
                client = made.turn(k)
                client.resume()
                client.step(batch, lambda out, _, mean=mean: functional.mse_loss(out["logits"], mean))  # type: ignore[misc]
                made.release(client)
        for k in range(clients):
            client = made.turn(k)
            client.resume()
            client.fit()
            made.release(client)
    return {k: torch.cat([b.flat for b in state[OWN_MODEL].values()]) for k, state in made.states.items()}


def test_an_engine_of_ones_own_and_a_shared_one_give_the_same_bits() -> None:
    alone = play(slot([engine() for _ in range(3)], 3), 3)
    shared = play(slot([engine()], 3), 3)
    for k in range(3):
        assert torch.equal(alone[k], shared[k])
    assert not torch.equal(alone[0], alone[1])


def test_alone_a_step_makes_one_forward_pass_and_copies_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    engines = [engine() for _ in range(2)]
    made = slot(engines, 2)
    play(made, 2, rounds=1)
    assert [one.module.passes for one in engines] == [3 + 2, 3 + 2], "a pass for each public batch and each local step"
    made = slot([engine()], 2)
    play(made, 2, rounds=1)
    assert made.engine.module.passes == 2 * (3 * 2 + 2), "shared: the pass is made again for the step"


@pytest.mark.parametrize("keep", [True, False])
def test_it_is_the_loop_by_hand(keep: bool) -> None:
    """One client: Adam over public batches, apart from that of local training; the moments of both stay, or neither's
    do."""
    made = slot([engine(seed=5)], 1, keep)
    [found] = play(made, 1, rounds=2).values()
    net = engine(seed=5).module.train()
    from fedhpc.client.client import derived_seed

    for index in range(2):
        if index == 0 or not keep:
            public, local = (torch.optim.Adam(net.parameters(), lr=0.05) for _ in range(2))
        for n, batch in enumerate(batches(3, 99)):
            for second in (False, True):
                torch.manual_seed(derived_seed(0, index, 0, "step", n))
                statistics = [b.clone() for b in net.buffers()]
                out = net(batch)["logits"]
                if not second:
                    mean = out.detach()
                    for buffer, old in zip(net.buffers(), statistics, strict=True):
                        buffer.copy_(old)
            functional.mse_loss(out, mean).backward()
            public.step()
            public.zero_grad()
        torch.manual_seed(derived_seed(0, index, 0, "fit", 1))
        for batch in batches(2, 0):
            loss(net(batch), batch).backward()
            local.step()
            local.zero_grad()
    expected = {name: tensor for name, tensor in net.state_dict().items() if tensor.is_floating_point()}
    state = made.states[0][OWN_MODEL]
    named = {name: tensor for block in state.values() for name, tensor in block.items()}
    assert named.keys() == expected.keys()
    for name in named:
        torch.testing.assert_close(named[name], expected[name], atol=1e-6, rtol=1e-5)
    assert found.isfinite().all()


def test_state_goes_through_a_checkpoint_with_its_moments() -> None:
    whole = play(slot([engine()], 2), 2, rounds=2)
    first = slot([engine()], 2)
    play(first, 2, rounds=1)
    states = {k: dict(state) for k, state in first.states.items()}
    assert all(STEP_MOMENTS in state for state in states.values())
    second = slot([engine(), engine()], 2)
    second.states = states
    public = batches(3, 99)
    assert public
    resumed = _second_round(second)
    for k in whole:
        assert torch.equal(whole[k], resumed[k])


def _second_round(made: Slot) -> dict[int, Tensor]:
    real, made.begin = made.begin, lambda index: real(1)  # type: ignore[method-assign]
    return play(made, 2, rounds=1)


def test_a_response_without_a_step_leaves_no_trace() -> None:
    made = slot([engine()], 1)
    made.begin(0)
    client = made.turn(0)
    client.resume()
    before = made.engine.weights.flat.clone()
    [one, two] = batches(2, 1)
    client.respond(one, "logits")
    client.respond(two, "logits")
    assert not torch.equal(made.engine.weights.flat, before), "running statistics moved"
    assert torch.equal(
        made.states[0][OWN_MODEL]["body"].flat, before[: made.engine.weights.blocks["body"].flat.numel()]
    )
    assert torch.equal(made.engine.weights.flat, before)


def test_other_weights_do_not_touch_the_own_model() -> None:
    made = slot([engine()], 2)
    made.begin(0)
    client = made.turn(0)
    client.resume()
    client.fit()
    mine = {name: block.clone() for name, block in client.own.items()}
    client.load({name: block.new_zeros() for name, block in client.read().items()})
    assert all(torch.equal(client.own[name].flat, mine[name].flat) for name in mine)
    assert not any(block.flat.any() for block in client.read().values())
    made.release(client)
    other = made.turn(1)
    start = made.residence(1).start
    assert all(torch.equal(other.own[name].flat, start[name].flat) for name in start)
    assert 1 not in made.states, "a client that did nothing keeps nothing"


def test_fresh_moments_and_a_rate_of_its_own() -> None:
    """Adam's first step is the learning rate times the sign of the gradient."""
    made = slot([engine()], 1)
    made.begin(0)
    client = made.turn(0)
    client.resume()
    [batch] = batches(1, 3)
    head = made.engine.weights.blocks["head"]["head.bias"]
    for _ in range(3):
        before = head.clone()
        client.step(batch, loss, rate=0.01, fresh=True)
        assert (head - before).abs().tolist() == pytest.approx([0.01] * 3, abs=1e-5)


def test_a_loss_that_is_not_finite_is_named() -> None:
    made = slot([engine()], 1)
    made.begin(0)
    client = made.turn(0)
    client.resume()
    [batch] = batches(1, 3)
    with pytest.raises(FloatingPointError, match=r"client 0 \(x\): the loss on public data became nan in round 0"):
        client.step(batch, lambda out, _: out["logits"].sum() * float("nan"))
