"""The promise about deadlines and cost, in simulated time: what `./run bench lanes` measures, with fewer seeds."""

from __future__ import annotations

from bench.lanes import measure
from tests.batchlane.conftest import SLOW


def test_deadlines_are_met_at_nearly_the_least_cost_and_never_at_more_than_interactive() -> None:
    found = measure(range(1, 7) if SLOW else [1])

    assert found["jobs"] == 2000
    assert found["deadline_hit_rate"] >= 0.995
    # One seed alone is as good as the dice of a few dear jobs are.
    assert found["cost_ratio_to_optimum"] <= (1.05 if SLOW else 1.08)
    assert found["cost_ratio_to_interactive"] < 1
