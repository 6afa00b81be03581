"""What `fedhpc check` says about robust rules, attacks and compression."""

from __future__ import annotations

import pytest

from fedhpc.config import check
from fedhpc.config.checks_updates import BESIDES, UPDATES_ONLY

from .conftest import CLASSIFIER, Load, Problems

KRUM = "aggregation.robust={rule: krum, num_byzantine: 1}"
MEDIAN = "aggregation.robust={rule: median}"
BF16 = "aggregation.compression={kind: bf16}"
FLIP = "attack={kind: sign_flip, clients: [1]}"
TEN = "partition.num_clients=10"


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        ([KRUM], "krum needs 2 * num_byzantine(1) + 3 = 5 clients a round or more, but clients that train = 4; set 5"),
        (["aggregation.robust={rule: multi_krum, num_byzantine: 4}", TEN],
         "+ 3 = 11 clients a round or more, but clients that train = 10; set num_byzantine: 3, or 11"),
        (["aggregation.robust={rule: multi_krum, num_byzantine: 2, num_kept: 9}", TEN],
         "num_kept(9) + num_byzantine(2) = 11 clients a round or more, but clients that train = 10; set num_kept: 8"),
        (["aggregation.robust={rule: trimmed_mean, num_byzantine: 5}", TEN],
         "2 * num_byzantine(5) + 1 = 11 clients a round or more, but clients that train = 10; set num_byzantine: 4"),
        (["aggregation.robust={rule: norm_filter, num_byzantine: 1}", "cohort.size=2"], "but cohort.size = 2; set 3"),
        ([MEDIAN, TEN, "cohort.fraction=0.2"], "but cohort.fraction(0.2) * 10 clients = 2; set 3 clients or more"),
        ([MEDIAN, "aggregation.secure=true"], "rules compare the clients' updates one by one (they reveal `update`)"),
        ([BF16, "aggregation.secure=true"], "one by one (they reveal `update`), and masks hide all but their sum; set"),
        ([MEDIAN, BF16], "rules compare updates, and have not been made to compare rounded ones; set one of"),
        ([MEDIAN, "mesh.shard=2"], "with sharded clients: no rank of a sharded client has its whole update; set"),
        ([BF16, "mesh.shard=2"], "aggregation.compression.kind = bf16 with sharded clients"),
        ([FLIP, "mesh.shard=2"], "attack.kind = sign_flip with sharded clients"),
        ([MEDIAN, "algorithm.weight=uniform"], "algorithm.weight = \"uniform\": has no effect with aggregation.robust"),
        ([BF16, "aggregation.bucket_mib=1"], "bucket_mib = 1: has no effect with aggregation.compression"),
        (["attack={kind: sign_flip}"], "set exactly one of attack.clients and attack.fraction"),
        (["attack={kind: noise, fraction: 0.2}"], "attack.std: missing"),
        (["attack={kind: sign_flip, clients: [7]}"], "there is no client 7; the run has 0 to 3"),
        (["attack={kind: sign_flip, clients: [1, 1]}"], "names a client twice"),
        (["attack={kind: sign_flip, clients: [0, 1, 2, 3]}"], "names every client; leave an honest one"),
        (["attack={kind: label_flip, clients: [1]}"], "dual_encoder, which learns no labels; set another kind"),
        (["aggregation.robust={rule: medain}"], "aggregation.robust.rule = \"medain\""),
        (["aggregation.robust={rule: krum}"], "aggregation.robust.num_byzantine: missing"),
        (["aggregation.compression={kind: int8, block: 100}"], "aggregation.compression.block = 100: not accepted"),
    ],
)  # fmt: skip
def test_against_the_rest(problems: Problems, overrides: list[str], line: str) -> None:
    found = problems(*overrides)
    assert len(found) == 1, found
    assert line in found[0]


def test_what_goes_together(load: Load) -> None:
    assert check(load(KRUM, "partition.num_clients=5", FLIP)) == []
    assert check(load(MEDIAN, "algorithm={name: moon}")) == []
    assert check(load("aggregation.compression={kind: top_k}", "algorithm={name: fedopt}", FLIP)) == []
    assert check(load(CLASSIFIER, "data.label=x", "attack={kind: label_flip, fraction: 0.25}")) == []


def test_every_algorithm_is_allowed_or_refused_with_its_reason(problems: Problems) -> None:
    from fedhpc.algorithms.registry import ALGORITHMS

    assert set(UPDATES_ONLY) | set(BESIDES) == set(ALGORITHMS)
    for name in ("scaffold", "local", "feddra"):
        for key in (MEDIAN, BF16, FLIP):
            found = problems(key, f"algorithm={{name: {name}}}")
            assert any(f"with algorithm.name = {name}: it works where" in line for line in found), found
