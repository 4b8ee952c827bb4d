"""Turns are shared by weight, whoever has how much waiting."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from policies.fairness import Line, Turns

names = st.sampled_from(["a", "b", "c", "d"])
lines = st.lists(st.tuples(names, st.sampled_from(["x", "y", "z"])), unique=True, min_size=1, max_size=12)


def test_one_tenant_alone_gets_every_seat() -> None:
    assert Turns().share_out([("a", "x")], {}, 5) == [("a", "x")] * 5


def test_a_newcomer_goes_next_however_long_another_has_been_served() -> None:
    turns = Turns()
    turns.share_out([("a", "x")], {}, 5000)

    order = turns.share_out([("a", "x"), ("b", "x")], {}, 4)

    assert Counter(tenant for tenant, _ in order) == {"a": 2, "b": 2}


def test_who_was_away_has_saved_nothing_up() -> None:
    turns = Turns()
    both: list[Line] = [("a", "x"), ("b", "x")]
    turns.share_out(both, {}, 2)
    turns.share_out([("a", "x")], {}, 1000)

    assert Counter(tenant for tenant, _ in turns.share_out(both, {}, 100)) == {"a": 50, "b": 50}


def test_a_tenant_of_weight_three_gets_three_seats_for_each_of_the_other() -> None:
    order = Turns().share_out([("a", "x"), ("b", "x")], {"a": 3}, 40)

    assert Counter(tenant for tenant, _ in order) == {"a": 30, "b": 10}


def test_many_lines_give_a_tenant_no_more_turns() -> None:
    order = Turns().share_out([("a", str(n)) for n in range(50)] + [("b", "x")], {}, 100)

    assert Counter(tenant for tenant, _ in order) == {"a": 50, "b": 50}
    assert len({line for line in order if line[0] == "a"}) == 50


@given(lines, st.dictionaries(names, st.integers(1, 10)), st.lists(st.integers(0, 60), max_size=6))
def test_over_any_sequence_every_tenant_gets_its_share_within_one_turn(
    waiting: list[Line], weights: dict[str, int], batches: list[int]
) -> None:
    turns = Turns()
    given_out = Counter[str]()
    for seats in batches:
        order = turns.share_out(waiting, weights, seats)
        assert len(order) == seats
        given_out.update(tenant for tenant, _ in order)

    total = sum(batches)
    sum_of_weights = sum(weights.get(tenant, 1) for tenant in {tenant for tenant, _ in waiting})
    for tenant in {tenant for tenant, _ in waiting}:
        due = total * weights.get(tenant, 1) / sum_of_weights
        # Start-time fair queueing: behind or ahead of the due share by at most one turn of the others.
        assert abs(given_out[tenant] - due) <= max(weights.get(tenant, 1), sum_of_weights)


@given(lines, st.integers(1, 50), st.integers(0, 20))
def test_seats_handed_back_leave_no_trace(waiting: list[Line], seats: int, unused: int) -> None:
    turns = Turns()
    before = turns.share_out(waiting, {}, seats)
    clock = dict(turns.tenants)
    line = before[-1]
    unused = min(unused, before.count(line))
    turns.tenants[line[0]] += unused
    turns.lines[line] += unused

    turns.hand_back(line, unused, {})

    assert turns.tenants == clock
