"""Who holds what: presets, natural holdings, small combinations; and the values of tabular modalities."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedhpc.comm.collectives import Collectives
from fedhpc.comm.ledger import Ledger
from fedhpc.comm.mesh import Mesh
from fedhpc.comm.sums import Sums
from fedhpc.config.schema import FusionConfig, RunConfig
from fedhpc.data.hdf5 import PackedFile, PackWriter
from fedhpc.data.modalities import hold, merged, preset_of
from fedhpc.data.partition import partition_file
from fedhpc.data.tabular import corrupted_tokens, raw_values, word_counts
from fedhpc.federation.scaling import federated_scaling

ABC = ("m", "i", "c")


def test_tri_modal_is_the_published_table() -> None:
    """ALGORITHMS.md C.4: BRCA, LUSC, LIHC."""
    held = ["".join(preset_of("tri_modal", n, ABC)) for n in range(9)]
    assert held == ["mic", "mi", "m", "mic", "ic", "i", "mic", "mc", "c"]


def test_the_other_presets() -> None:
    assert ["".join(preset_of("bi_modal", n, ABC)) for n in range(6)] == ["mi", "m", "i"] * 2
    assert {preset_of("upper_bound", n, ABC) for n in range(9)} == {ABC}
    for preset, size in (("uni_dominant", 1), ("bi_dominant", 2), ("tri_dominant", 3)):
        sizes = [len(preset_of(preset, n, ABC)) for n in range(9)]
        assert sizes.count(size) >= 6 and len(set(sizes)) == 3, "all kinds are there, one is frequent"
    four = ("a", "b", "c", "d")
    assert [len(preset_of("tri_modal", n, four)) for n in range(12)] == [4, 3, 1] * 4
    assert {preset_of("tri_modal", n, four) for n in range(2, 12, 3)} == {(m,) for m in four}


def test_small_combinations_join_the_smallest_larger_one() -> None:
    full, pair, single = ("a", "b", "c"), ("a", "b"), ("a",)
    assert merged({full: 3, pair: 2, single: 1}, 3) == {single: pair}, "with whom {a, b} are enough"
    assert merged({full: 3, pair: 1, single: 1}, 3) == {single: full, pair: full}
    assert merged({full: 1, single: 1}, 3) == {single: full}, "still too few: they stay at home"
    assert merged({full: 3, ("c",): 5}, 3) == {}


combinations = st.sets(st.sampled_from("abcd"), min_size=1).map(lambda s: tuple(sorted(s)))


@given(st.dictionaries(combinations, st.integers(1, 4), min_size=1), st.integers(2, 4))
def test_merging_only_leaves_small_ones_that_nothing_holds(count: dict[tuple[str, ...], int], least: int) -> None:
    moved = merged(count, least)
    number = dict.fromkeys(count, 0)
    for c, n in count.items():
        assert set(c) < set(moved[c]) if c in moved else True
        number[moved.get(c, c)] += n
    for c, n in number.items():
        if 0 < n < least and c not in moved:
            assert not any(set(c) < set(d) for d in count)


# ------------------------------------------------------------------------------------------------------ packed files
@pytest.fixture
def packed(tmp_path: Path) -> Any:
    """Two sites of 10: site b has no x."""
    path = tmp_path / "two.h5"
    random = np.random.default_rng(0)
    x = random.normal(3, 2, (20, 2)).astype(np.float32)
    x[10:] = np.nan
    x[0, 1] = np.nan
    with PackWriter(path, name="two", source="made up", licence="CC0-1.0", generated=True) as pack:
        pack.set_tabular("x", x, ["u", "v"])
        pack.set_present("tabular/x", np.arange(20) < 10)
        pack.set_tabular("y", random.normal(size=(20, 1)).astype(np.float32), ["w"])
        pack.set_label("stage", np.arange(20) % 2, ["I", "II"])
        pack.set_label("grade", np.where(np.arange(20) == 3, -1, np.arange(20) % 3), ["1", "2", "3"])
        pack.set_site(np.repeat([0, 1], 10), ["a", "b"])
        pack.set_row_ids([f"r{k}" for k in range(20)])
        pack.set_split(np.where(np.arange(20) % 10 < 6, 0, np.where(np.arange(20) % 10 < 8, 1, 2)))
    with PackedFile(path) as file:
        yield file


def config(packed: PackedFile, **keys: Any) -> RunConfig:
    base = {
        "name": "t", "rounds": 1, "data": {"path": str(packed.path), "label": "stage"},
        "partition": {"kind": "column"}, "fit": {"steps": 1, "optimizer": {"learning_rate": 0.1}},
        "model": {"kind": "fusion", "tabular": {"x": {"widths": []}, "y": {"widths": []}}},
    }  # fmt: skip
    return RunConfig.model_validate({**base, **keys})


def test_natural_holdings_follow_the_data(packed: PackedFile) -> None:
    run = config(packed)
    held = hold(packed, run, partition_file(run.partition, packed, 0))
    assert held.of_client == {0: ("x", "y"), 1: ("y",)}
    assert held.spec.heads == (("y",), ("x", "y"))
    full = next(c for c in held.evaluated if c.site == "x+y")
    assert full.test.tolist() == [8, 9], "only rows that have both"
    assert next(c for c in held.evaluated if c.site == "y").test.tolist() == [8, 9, 18, 19]


def test_what_a_client_cannot_hold_is_an_error(packed: PackedFile) -> None:
    run = config(packed, modalities={"preset": "upper_bound"})
    with pytest.raises(ValueError, match=r"client 1 \(b\) is to hold x, y, but none of its 6 training rows has that"):
        hold(packed, run, partition_file(run.partition, packed, 0))
    run = config(packed, modalities={"of_client": [["y"], ["y"]]})
    with pytest.raises(ValueError, match="nobody holds x"):
        hold(packed, run, partition_file(run.partition, packed, 0))


def test_too_few_contributors_stay_at_home(packed: PackedFile, caplog: pytest.LogCaptureFixture) -> None:
    run = config(packed, modalities={"min_contributors": 2, "small": "skip"})
    held = hold(packed, run, partition_file(run.partition, packed, 0))
    assert held.private == ("encoder/x", "head/x+y", "head/y")
    assert "they stay at home, and their losses are not summed" in caplog.text
    assert held.evaluated == [], "nothing that is shared makes up a combination"
    run = config(packed, modalities={"min_contributors": 2})
    held = hold(packed, run, partition_file(run.partition, packed, 0))
    assert held.spec.head_of == {("y",): ("x", "y")} and held.private == ("encoder/x",)
    assert "they use the classifier of x+y, with zeros" in caplog.text


def test_masks_merge_what_they_would_refuse(packed: PackedFile, caplog: pytest.LogCaptureFixture) -> None:
    dealt = partition_file(config(packed).partition, packed, 0)
    masked = {"aggregation": {"secure": True}, "evaluation": {"clients": "shown"}}
    assert hold(packed, config(packed), dealt).spec.head_of == {}
    held = hold(packed, config(packed, **masked), dealt)
    assert held.spec.head_of == {("y",): ("x", "y")}, "two clients, and a masked sum needs three"
    assert "y is held by 1 clients, modalities.min_contributors is 3: they use the classifier of x+y" in caplog.text
    assert held.private == ("encoder/x", "encoder/y", "head/x+y")
    held = hold(packed, config(packed, **masked, modalities={"small": "skip"}), dealt)
    assert held.spec.head_of == {} and held.private == ("encoder/x", "encoder/y", "head/x+y", "head/y")


def test_probes_where_nobody_holds_a_modality_alone(packed: PackedFile) -> None:
    dealt = partition_file(config(packed).partition, packed, 0)
    for probes, expected in (("unpopulated", ("x",)), ("always", ("x", "y")), ("never", ())):
        run = config(packed, algorithm={"name": "dgb_pcw", "probes": probes})
        assert hold(packed, run, dealt).spec.probes == expected


def test_heads_in_place_of_probes(packed: PackedFile) -> None:
    dealt = partition_file(config(packed).partition, packed, 0)
    for rates in ({}, {"rates": "static", "static_rates": {"encoder/x": 1.0}}):
        run = config(packed, algorithm={"name": "dgb_pcw", "probes": "heads", **rates})
        spec = hold(packed, run, dealt).spec
        assert spec.probes == () and spec.beside == "single"
        assert spec.heads == (("x",), ("y",), ("x", "y")), "x has a classifier although nobody holds x alone"


def test_modalities_made_of_labels(packed: PackedFile) -> None:
    model = FusionConfig.model_validate(
        {"kind": "fusion", "tabular": {"g": {"labels": ["grade", "stage"], "widths": []}}}
    )
    present = packed.read("label/grade") >= 0
    values = raw_values(packed, model, "g", present)
    assert values.shape == (20, 5) and values[1].tolist() == [0, 1, 0, 0, 1]
    assert np.isnan(values[3]).all(), "a row without grade"


# ----------------------------------------------------------------------------------------------------------- scaling
def one_rank() -> Sums:
    return Sums(Collectives(Mesh(0, 1, 1, None), Ledger(), 1 << 20), "fixed_point", 32)


def test_scaling_uses_training_rows_of_owners_only() -> None:
    values = np.array([[1.0], [3.0], [np.nan], [100.0], [5.0]], np.float32)
    owners = {0: torch.tensor([0, 2]), 1: torch.tensor([1, 4])}  # row 3 is a test row
    scaling = federated_scaling(values, owners, None, one_rank(), torch.device("cpu"))
    assert float(scaling.mean) == pytest.approx(3) and float(scaling.deviation) == pytest.approx(np.std([1, 3, 5]))
    out = scaling.apply(values).flatten().tolist()
    assert out[2] == 0, "missing is the mean"
    assert out[4] == pytest.approx((5 - 3) / np.std([1, 3, 5]))


def test_clipping_bounds_come_first_and_statistics_again() -> None:
    values = np.concatenate([np.zeros(50), np.ones(49), [1000.0]])[:, None].astype(np.float32)
    rows = {0: torch.arange(60), 1: torch.arange(60, 100)}
    scaling = federated_scaling(values, rows, 3.0, one_rank(), torch.device("cpu"))
    bound = values.mean() + 3 * values.std()
    clipped = np.minimum(values.astype(np.float64), bound)
    assert float(scaling.high) == pytest.approx(bound, rel=1e-6)
    assert float(scaling.mean) == pytest.approx(clipped.mean(), rel=1e-6)
    assert float(scaling.apply(values).std(unbiased=False)) == pytest.approx(1, rel=1e-4)


def test_a_constant_column_becomes_zero() -> None:
    values = np.full((10, 1), 0.1, np.float32)
    scaling = federated_scaling(values, {0: torch.arange(10)}, 5.0, one_rank(), torch.device("cpu"))
    assert scaling.apply(values).abs().max() == 0


def test_words_and_their_corruption() -> None:
    tokens = np.array([[2, 7, 7, 9, 3, 0, 0], [2, 8, 3, 0, 0, 0, 0]])
    assert np.expm1(word_counts(tokens, 12, 0))[0].round().tolist() == [0, 0, 1, 1, 0, 0, 0, 2, 0, 1, 0, 0]
    many = np.tile(np.array([[2, *range(6, 26), 3, 0]]), (500, 1))
    noisy = corrupted_tokens(many, 0.5, 200, 0, 1)
    changed = noisy != many
    assert not changed[:, [0, -2, -1]].any(), "first, last and padding stay"
    assert changed[:, 1:-2].mean() == pytest.approx(0.5, abs=0.02)
    assert noisy.min() >= 0 and (noisy[changed] >= 5).all()
    assert np.array_equal(noisy, corrupted_tokens(many, 0.5, 200, 0, 1))
