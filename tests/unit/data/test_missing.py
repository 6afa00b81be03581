"""Rows that lose a modality: how many, which, and that larger ratios only add."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedhpc.config.joint import MissingConfig
from fedhpc.data.missing import lost_rows, needed, without_lost
from fedhpc.data.partition import ClientRows
from tests.conftest import ROOT

NONE = np.empty(0, np.int64)


def clients(*sizes: int) -> list[ClientRows]:
    edges = np.cumsum([0, *sizes])
    held = np.arange(edges[-1], edges[-1] + 5)
    return [
        ClientRows(k, f"site-{k}", np.arange(a, b), held if k == 0 else NONE, NONE)
        for k, (a, b) in enumerate(itertools.pairwise(edges))
    ]


@settings(max_examples=30)
@given(st.integers(0, 1000), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_counts_are_exact_and_rows_nested(seed: int, share: float, first: float, second: float) -> None:
    dealt = clients(37, 100)
    low, high = sorted((first, second))
    less, more = (lost_rows(MissingConfig(ratio=[r], image_share=share), dealt, seed) for r in (low, high))
    for client in dealt:
        image, text = (np.intersect1d(client.train, more[m]) for m in ("image", "text"))
        assert len(image) + len(text) == round(high * len(client.train))
        assert not set(image) & set(text)
        assert abs(len(image) - share * (len(image) + len(text))) <= 1
    assert all(set(less[m]) <= set(more[m]) for m in ("image", "text"))


def test_the_draw_is_the_seeds_and_the_clients_own() -> None:
    half = MissingConfig(ratio=[0.5])
    one = lost_rows(half, clients(40, 40), 0)
    np.testing.assert_array_equal(one["text"], lost_rows(half, clients(40, 40), 0)["text"])
    assert set(one["text"]) != set(lost_rows(half, clients(40, 40), 1)["text"])
    alone = lost_rows(half, clients(40), 0)
    np.testing.assert_array_equal(alone["image"], one["image"][one["image"] < 40])
    assert set(one["image"][one["image"] >= 40] - 40) != set(alone["image"]), "clients draw apart"


def test_ratios_by_client() -> None:
    lost = lost_rows(MissingConfig(ratio=[0.0, 1.0]), clients(10, 10, 10), 0)
    assert sorted(np.concatenate(list(lost.values()))) == list(range(10, 20))


def test_not_at_random_some_values_lose_more_but_as_many_in_all() -> None:
    value = np.arange(4000) % 4
    rates = []
    for strength in (0.01, 2.0):
        missing = MissingConfig(ratio=[0.4], rule="label", strength=strength)
        lost = np.concatenate(list(lost_rows(missing, clients(2000, 1995), 0, value).values()))
        assert len(lost) == 800 + 798
        rates.append(np.bincount(value[lost], minlength=4) / 1000)
    assert np.ptp(rates[0]) < 0.1
    assert np.ptp(rates[1]) > 0.5


def test_sites_differ_under_one_ratio() -> None:
    site = np.repeat([0, 1, 2, 0], [500, 500, 500, 5])
    lost = lost_rows(MissingConfig(ratio=[0.3], rule="site", strength=2.0), clients(500, 500, 500), 0, site)
    rates = np.bincount(site[np.concatenate(list(lost.values()))], minlength=3) / 500
    assert rates.sum() == pytest.approx(0.9)
    assert np.ptp(rates) > 0.3


def test_unknown_values_are_neither_hit_nor_spared() -> None:
    value = np.full(1005, -1)
    value[:300], value[300:600] = 0, 1
    lost = lost_rows(MissingConfig(ratio=[0.5], rule="label"), clients(1000), 0, value)
    rows = np.concatenate(list(lost.values()))
    spared, unknown, hit = sorted([(rows < 300).mean() / 300, ((rows >= 300) & (rows < 600)).mean() / 300,
                                   (rows >= 600).mean() / 400])  # fmt: skip
    assert spared < unknown < hit


def test_other_models_leave_out_what_they_read() -> None:
    from fedhpc.config.load import load_config

    smoke = ROOT / "configs" / "smoke"
    lost = {"image": np.array([0, 3]), "text": np.array([5])}
    dealt = clients(10)
    for name, left in (("fedavg", 7), ("classifier", 8)):
        kept = without_lost(load_config(smoke / f"{name}.yaml"), dealt, lost)
        assert len(kept[0].train) == left
        assert len(kept[0].val) == 5
    fusion = load_config(smoke / "dgb_pcw.yaml")
    words = [
        "modalities.preset=natural",
        "model.tabular={words: {words: true, widths: [4]}}",
        "~model.image",
        "~model.text",
    ]
    assert needed(fusion) == ("image", "text")
    assert needed(load_config(smoke / "dgb_pcw.yaml", [*words, "algorithm={name: fedavg}"])) == ("text",)


def test_a_client_that_lost_everything_is_named() -> None:
    from fedhpc.config.load import load_config

    config = load_config(ROOT / "configs" / "smoke" / "fedavg.yaml", ["missing={ratio: 1.0}"])
    with pytest.raises(ValueError, match=r"client 0 \(site-0\) has no training row with image and text left at "
                       r"missing.ratio: 1 \(of 4\)"):  # fmt: skip
        without_lost(config, clients(4), {"image": np.arange(2), "text": np.arange(2, 4)})
