"""Exploration: a known share of batch jobs gets another model of its route first, and the chance is kept."""

from __future__ import annotations

from collections import Counter
from decimal import Decimal

import pytest

from policies.exploration import explore
from policies.routing import Request, Route
from waybill.contract import Candidate

MODELS = ("l", "a", "b", "c")
ROUTE = Route(
    tuple(Candidate("local" if m == "l" else "anthropic", m, "s", m, Decimal(1)) for m in MODELS), "as declared", {}
)
BATCH = Request("x", 10, priority="lo")


def test_shares_are_as_their_propensities_say() -> None:
    drawn = [explore(ROUTE, BATCH, share=0.3, draw=n / 1000) for n in range(1000)]

    counts = Counter(found.candidates[0].model for found, _ in drawn)
    chances = {found.candidates[0].model: chance for found, chance in drawn}
    assert counts == {"l": 800, "b": 100, "c": 100}
    assert chances == {"l": pytest.approx(0.8), "b": pytest.approx(0.1), "c": pytest.approx(0.1)}


def test_an_explored_route_has_the_same_candidates() -> None:
    found, _ = explore(ROUTE, BATCH, share=0.3, draw=0.25)

    assert [c.model for c in found.candidates] == ["c", "l", "a", "b"]
    assert "at random" in found.reason


@pytest.mark.parametrize(
    "request_",
    [
        Request("x", 10, priority="hi"),
        Request("x", 10, priority="lo", model="a"),
        Request("x", 10, priority="lo", local_only=True),
        Request("x", 10, priority="lo", quality=0.99),
    ],
)
def test_who_waits_pins_must_stay_or_states_a_quality_is_not_explored_with(request_: Request) -> None:
    assert explore(ROUTE, request_, share=1.0, draw=0.9) == (ROUTE, 1.0)
