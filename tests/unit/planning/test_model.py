"""The arithmetic of a plan, against sums worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedhpc.config.schema import CohortConfig
from fedhpc.planning.costs import Call, Costs, Link, Machine, Memory, Phase, costs_from_json, to_json
from fedhpc.planning.model import (
    Workload,
    candidates,
    client_costs,
    default_ranks_per_node,
    exchange_seconds,
    makespan,
    predict,
    worthwhile,
)
from fedhpc.planning.plan import relative_cost, scaled
from fedhpc.planning.probe import line
from fedhpc.planning.show import duration, size

FREE = Link(0.0, float("inf"))
MEMORY = Memory(model_state=1000, exchange=100, data=10, rest=1, state_of_client=50)


def machine(capacity: int = 4, slowdown: float = 1.0, link: Link = FREE) -> Machine:
    return Machine(capacity, slowdown, link, link)


def costs(rows: list[int], **changes: Any) -> Costs:
    one = Costs((), 0.0, (800,), MEMORY, dict(enumerate(rows)), stateful=False, device="cpu", steps_measured=8)
    return replace(one, **changes)


def workload(seconds: list[float], **changes: Any) -> Workload:
    measured = costs([round(1000 * s) for s in seconds], **changes)
    return Workload([dict(enumerate(seconds))], measured, CohortConfig(), 0, 10)


def test_a_ring_moves_what_it_should() -> None:
    # p = 4: 6 messages of 1/4 of the buffer: 6 * (1 ms + 1000 / 4 / 1e6 s)
    assert Link(1e-3, 1e6).all_reduce(1000, 4) == pytest.approx(6 * (1e-3 + 250e-6))
    assert Link(1e-3, 1e6).all_reduce(1000, 1) == 0.0


@pytest.mark.parametrize(
    ("loads", "capacity", "slowdown", "seconds"),
    [
        ([3, 1], 2, 1.0, 3),  # room for both
        ([3, 1], 2, 1.5, 1 * 1.5 + 2),  # both slow each other until one is done
        ([3, 1], 1, 1.0, 4),  # one core does all the work
        ([1, 1, 1, 1], 2, 1.0, 2),
        ([1, 1, 1, 1], 2, 1.2, 2 * 1.2),
        ([2, 0, 0], 2, 1.5, 2),  # idle ranks slow nobody
        ([], 2, 1.5, 0),
    ],
)
def test_ranks_of_a_node_share_its_cores(loads: list[float], capacity: int, slowdown: float, seconds: float) -> None:
    assert makespan(loads, machine(capacity, slowdown)) == pytest.approx(seconds)


@given(st.lists(st.floats(0.01, 10), min_size=1, max_size=12), st.integers(1, 8))
def test_no_work_is_lost_and_none_is_won(loads: list[float], capacity: int) -> None:
    seconds = makespan(loads, machine(capacity))
    assert seconds >= max(loads) - 1e-9
    assert seconds >= sum(loads) / capacity - 1e-9
    assert seconds <= sum(loads) + 1e-9


def test_equal_clients_divide_evenly() -> None:
    work = workload([2.0] * 8, rest=0.5)
    assert predict(work, machine(16), 1, 1).seconds == pytest.approx(16.5)
    four = predict(work, machine(16), 4, 4)
    assert four.seconds == pytest.approx(4.5)
    assert (four.idle, four.clients_per_rank) == (pytest.approx(0.0), (2, 2))
    sixteen = predict(work, machine(16), 16, 16)
    assert sixteen.seconds == pytest.approx(2.5)
    assert (sixteen.idle, sixteen.clients_per_rank) == (pytest.approx(0.5), (0, 1))
    assert sixteen.bytes_summed == 800
    assert sixteen.bytes_per_link == 2 * 15 / 16 * 800


def test_placement_is_the_run_s_own() -> None:
    # Longest first: 5 | 4, then 3 to the second, 3 to the first, 2 to the second: 8 and 9, of 17 in all.
    work = workload([5.0, 4.0, 3.0, 3.0, 2.0])
    two = predict(work, machine(16), 2, 2)
    assert two.seconds == pytest.approx(9.0)
    assert two.idle == pytest.approx(1 - 17 / 18)


def test_crowded_and_several_nodes() -> None:
    work = workload([1.0] * 4, rest=0.1)
    crowded = predict(work, machine(2), 4, 4)
    assert crowded.seconds == pytest.approx(2.0 + 0.2)  # four ranks on two cores, the rest of the round too
    spread = predict(work, machine(2), 4, 2)
    assert (spread.nodes, spread.seconds) == (2, pytest.approx(1.1))
    links = Machine(2, 1.0, Link(1e-6, 1e9), Link(1e-3, 1e6))
    assert exchange_seconds(1000, 4, 2, links) == pytest.approx(links.between.all_reduce(1000, 4))
    assert exchange_seconds(1000, 4, 4, links) == pytest.approx(2 * links.within.all_reduce(1000, 4))


def test_memory_counts_states_where_they_live_and_shards_the_model() -> None:
    assert MEMORY.per_rank(2) == 1000 + 100 + 10 + 1 + 2 * 50
    assert MEMORY.per_rank(2, shard=4) == (1000 + 100 + 2 * 50) // 4 + 10 + 1
    assert predict(workload([1.0] * 6, stateful=True), machine(), 2, 2).memory == MEMORY.per_rank(3)
    assert predict(workload([1.0] * 6), machine(), 2, 2).memory == MEMORY.per_rank(0)


def test_a_shard_sends_its_part_along_the_slots() -> None:
    work = workload([1.0] * 4, rest=0.0)
    sharded = replace(work, shard=2)
    whole, two, four = (
        predict(work, machine(4), 2, 4),
        predict(sharded, machine(4), 2, 4),
        predict(sharded, machine(4), 4, 4),
    )
    assert whole.bytes_summed == 2 * four.bytes_summed == 2 * two.bytes_summed
    assert (two.bytes_per_link, four.bytes_per_link) == (0, four.bytes_summed)  # one slot sends nothing
    assert (two.exchanging, four.exchanging) == (0.0, whole.exchanging)
    assert (two.clients_per_rank, four.clients_per_rank) == ((4, 4), (2, 2))
    assert predict(sharded, machine(4), 1, 4).seconds == predict(work, machine(4), 1, 4).seconds


def test_clients_that_were_not_measured() -> None:
    by_epochs = Call("fit", rate=0.5, offset=0.25, planned={0: 10, 1: 20})  # two passes over 5 and 10 batches
    by_steps = Call("fit", rate=1.0, offset=0.0, planned={0: 3, 1: 3})
    measured = costs([50, 100, 200], phases=(Phase(0.1, (by_epochs,)), Phase(0.2, (by_steps,))))
    first, second = client_costs(measured, lambda rows: rows // 10)
    assert first == pytest.approx({0: 0.1 + 0.25 + 5, 1: 0.1 + 0.25 + 10, 2: 0.1 + 0.25 + 20})
    assert second == pytest.approx({0: 3.2, 1: 3.2, 2: 3.2})


def test_past_which_count_more_do_not_pay() -> None:
    work = workload([1.0] * 10, rest=0.0)
    predictions = [predict(work, machine(64), ranks, 64) for ranks in candidates(10, [3])]
    assert [p.ranks for p in predictions] == [1, 2, 3, 4, 5, 10]
    assert worthwhile(predictions).ranks == 10
    slow_link = machine(64, link=Link(0.2, 1e9))  # each further rank costs 0.4 s
    # 4 ranks: 3 + 1.2 s; 5: 2 + 1.6; 10: 1 + 3.6
    assert worthwhile(predict(work, slow_link, p, 64) for p in range(1, 11)).ranks == 5


def test_lines_through_short_and_long_loops() -> None:
    # 0.3 s before the first batch, 0.1 s a batch; an odd one does not matter.
    assert line([(1, 0.4), (1, 0.4), (1, 9.0), (8, 1.1), (8, 1.1), (8, 7.0)]) == pytest.approx((0.1, 0.3))
    assert line([(4, 2.0)]) == (0.5, 0.0)
    assert line([]) == (0.0, 0.0)
    assert line([(1, 1.0), (3, 0.5)]) == (0.0, 1.0)  # noise makes no negative cost


def test_side_by_side_and_step_seconds() -> None:
    one = costs([1], phases=(Phase(0.0, (Call("fit", 1.0, 0.5, {0: 10}),)),))
    other = costs([1], phases=(Phase(0.0, (Call("fit", 1.4, 0.5, {0: 10}),)),))
    assert relative_cost(one, other, 2) == pytest.approx(1.4)
    assert relative_cost(other, one, 2) == 1.0
    assert relative_cost(one, scaled(one, 9.0), 2) == 2.0  # at worst they take turns
    assert machine(4, slowdown=1.6).slowed(2) == pytest.approx(1.2)  # in between by the line
    assert machine(4, slowdown=1.6).slowed(8) == pytest.approx(3.2)
    assert costs_from_json(to_json(one)) == one


def test_crowding_by_default() -> None:
    assert [default_ranks_per_node(p, 2, "cpu") for p in (1, 2, 4, 8)] == [1, 2, 4, 2]
    assert [default_ranks_per_node(p, 4, "cuda") for p in (4, 8)] == [4, 4]


def test_words() -> None:
    assert (size(512), size(1536), size(3 << 30)) == ("512 B", "1.5 KiB", "3.0 GiB")
    assert [duration(s) for s in (90, 3600, 9000, 3 * 86400)] == ["90 s", "60 min", "2 h 30 min", "3.0 days"]
