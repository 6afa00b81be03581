"""Clients with different modalities: each block of the shared model is the mean over its owners, whoever owns what."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedhpc.algorithms.dgb_pcw import DgbPcw
from fedhpc.client.client import ClientRecord, DataClient, Rows
from fedhpc.client.engine import Engine
from fedhpc.client.slot import Slot
from fedhpc.comm.collectives import Collectives
from fedhpc.comm.ledger import Ledger
from fedhpc.comm.mesh import Mesh
from fedhpc.comm.sums import Sums
from fedhpc.config.blending import DgbPcwConfig
from fedhpc.config.fusion import FusionConfig
from fedhpc.config.schema import CohortConfig, DataConfig, FitConfig, PhantomConfig
from fedhpc.data.batches import BatchMaker, Source
from fedhpc.federation.federation import SlotFederation
from fedhpc.interfaces import Contribution, DataSpec, FusionSpec
from fedhpc.models.fusion import FusionModel

NAMES = ("a", "b", "c")
CPU = torch.device("cpu")
held_by = st.lists(st.sets(st.sampled_from(NAMES), min_size=1), min_size=1, max_size=5)


def federation(held: list[set[str]], validation: bool = False) -> SlotFederation:
    """Client k has 1 + k % 4 training rows, and all but the first a validation row, where there is one at all."""
    config = FusionConfig.model_validate({"kind": "fusion", "tabular": {m: {"widths": []} for m in NAMES}, "width": 2})
    heads = tuple(sorted({tuple(m for m in NAMES if m in one) for one in held}))
    spec = DataSpec(num_classes=2, fusion=FusionSpec(columns=dict.fromkeys(NAMES, 2), heads=heads))
    torch.manual_seed(0)
    fit = FitConfig.model_validate({"steps": 1, "batch_size": 2, "optimizer": {"name": "sgd", "learning_rate": 0.5}})
    engine = Engine(FusionModel(config, spec), lambda out, batch: out["logits"].square().mean(), fit, CPU)
    rows = 4 * len(held)
    given = {f"tabular/{m}": torch.randn(rows, 2) for m in NAMES} | {"label": torch.zeros(rows, dtype=torch.int32)}
    source = Source(None, {name: name for name in given}, 1, given)  # type: ignore[arg-type]
    maker = BatchMaker(source, DataConfig(phantom=PhantomConfig()), CPU, False)
    none = torch.arange(0)
    val = [torch.arange(4 * k, 4 * k + 1) if k and validation else none for k in range(len(held))]
    records = {
        k: ClientRecord(k, f"h{k}", Rows(torch.arange(4 * k, 4 * k + 1 + k % 4), val[k], none), frozenset(one))
        for k, one in enumerate(held)
    }
    slot = Slot(engine, maker, records, 0, 1, False, False, lambda client, split: None)  # type: ignore[arg-type, return-value]
    alone = Collectives(Mesh(0, 1, 1, None), Ledger(), 1 << 20)
    fed = SlotFederation(
        slot, alone, Sums(alone, "fixed_point", 32), list(records), CohortConfig(), 0, False, frozenset()
    )
    fed.begin(0)
    return fed


@settings(max_examples=25, deadline=None)
@given(held_by)
def test_each_block_equals_the_mean_over_its_owners(held: list[set[str]]) -> None:
    fed = federation(held)
    shared = fed.initial
    seen: dict[int, dict[str, torch.Tensor]] = {}

    def turn(client: Any) -> Contribution:
        client.load(shared)
        client.fit()
        update = client.update(shared)
        assert set(update) == set(client.read()) == set(client.blocks)
        seen[client.id] = {name: block.flat.double().clone() for name, block in update.items()}
        return Contribution(update, float(client.num_examples))

    reduced = fed.reduce(turn, like=shared)
    for name in shared:
        owners = {
            k: 1 + k % 4
            for k, one in enumerate(held)
            if name in (f"encoder/{m}" for m in one) or name == f"head/{'+'.join(m for m in NAMES if m in one)}"
        }
        assert {k for k in seen if name in seen[k]} == set(owners)
        if not owners:
            assert name not in reduced.mean
            continue
        expected = sum(w * seen[k][name] for k, w in owners.items()) / sum(owners.values())
        torch.testing.assert_close(reduced.mean[name].flat.double(), expected, atol=1e-7, rtol=0)
        assert reduced.weight[name] == sum(owners.values())


def test_a_client_never_sees_a_modality_that_it_lacks() -> None:
    fed = federation([{"a", "c"}, {"b"}])
    columns: dict[int, set[str]] = {}

    def look(client: DataClient) -> None:
        columns[client.id] = set(next(client.batches("train")))

    fed.each(look)
    assert columns == {0: {"tabular/a", "tabular/c", "label", "row"}, 1: {"tabular/b", "label", "row"}}


def test_a_client_with_one_row_and_none_to_validate_on(caplog: pytest.LogCaptureFixture) -> None:
    fed = federation([{"a", "b"}, {"a"}, {"a", "b"}, {"b"}], validation=True)
    made = DgbPcw(DgbPcwConfig(name="dgb_pcw"))
    made.setup(fed)
    for index in range(4):
        fed.begin(index)
        metrics = made.round(fed, index)
        assert all(math.isfinite(value) for value in metrics.values()), metrics
    assert "client 0 (h0) has no labeled validation row: losses go without it" in caplog.text
    rates = fed.each(lambda client: made.scales(made.ratios_of(fed, 4), client))
    assert set(rates[0]) == {"encoder/a", "encoder/b", "head/a+b"}
    assert all(0.1 <= rate <= 3 for rate in rates[0].values()), "those of its combination, whose losses others measure"
    assert all(bool(block.flat.isfinite().all()) for block in made.shared.values())


@pytest.mark.parametrize(("name", "moves"), [("sgd", 0.1), ("adam", 0.1)])
def test_a_scale_on_a_learning_rate_holds_for_every_optimizer(name: str, moves: float) -> None:
    """ALGORITHMS.md 0.1: Adam cancels a factor on gradients; on learning rates it does what it says."""
    distance = {}
    for scale in (1.0, moves):
        fed = federation([{"a", "b"}])
        engine = fed.slot.engine
        engine.config = FitConfig.model_validate(
            {"steps": 1, "batch_size": 2, "optimizer": {"name": name, "learning_rate": 1e-3}}
        )
        engine._optimizers.clear()

        def turn(client: Any, start: Any = fed.initial, scale: float = scale) -> torch.Tensor:
            client.load(start)
            client.fit(lr_scale={"encoder/a": scale})
            return client.update(start)["encoder/a"].flat.norm()

        distance[scale] = float(fed.each(turn)[0])
    assert distance[moves] == pytest.approx(moves * distance[1.0], rel=0.01)
