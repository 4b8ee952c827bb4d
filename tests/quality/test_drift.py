"""Audits take a cascade out of force when they contradict it, soon when much is lost and hardly ever when all is well."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from policies.drift import LEAST, RECORDS, audited

SCORES = st.floats(0, 1)
PAIRS = st.lists(st.tuples(SCORES, st.floats(0.1, 1)), min_size=LEAST, max_size=RECORDS + 50)


def fires(loss: float, *, target: float = 0.99, kept: float = 0.6, audits: int = 2000, seed: int = 0) -> int | None:
    """After how many audits a cascade is taken out of force, of whose kept answers this share is lost; None = never."""
    rng = random.Random(seed)
    scores: list[tuple[float, float]] = []
    for count in range(1, audits + 1):
        scores.insert(0, (float(rng.random() >= loss), 1.0))
        if count >= LEAST and count % 10 == 0:
            found = audited(scores, kept=kept, target=target)
            if found is not None and found.has_drifted:
                return count
    return None


def test_a_healthy_cascade_stays_and_a_bad_one_goes_soon() -> None:
    healthy = [fires(0.01, seed=seed) for seed in range(20)]  # 0.994 over all jobs
    bad = [fires(0.083, seed=seed) for seed in range(20)]  # 0.95

    assert sum(each is not None for each in healthy) <= 2
    assert all(each is not None and each <= 200 for each in bad)
    assert sorted(each or 0 for each in bad)[10] <= 80


@given(PAIRS, st.floats(0, 1), st.floats(0.5, 1))
def test_bounds_lie_around_the_ratio_and_few_kept_answers_lose_little(
    scores: list[tuple[float, float]], kept: float, target: float
) -> None:
    found, whole = audited(scores, kept=kept, target=target), audited(scores, kept=1.0, target=target)

    assert found is not None
    assert whole is not None
    assert found.records == min(len(scores), RECORDS)
    assert found.lower <= found.ratio <= found.upper
    # What the dispatcher relies on: without drift where every answer counts there is none where fewer do.
    assert whole.has_drifted or not found.has_drifted


@given(st.lists(st.floats(0.1, 1), min_size=LEAST, max_size=60), st.floats(0.5, 1))
def test_equal_answers_never_drift_and_lost_ones_always_do(flagship: list[float], target: float) -> None:
    same = audited([(score, score) for score in flagship], kept=1.0, target=target)
    lost = audited([(0.0, score) for score in flagship], kept=1.0, target=target)

    assert same is not None
    assert not same.has_drifted
    assert same.ratio == 1
    assert lost is not None
    assert lost.has_drifted


@given(st.lists(st.tuples(SCORES, SCORES), max_size=LEAST - 1))
def test_a_few_audits_say_nothing(scores: list[tuple[float, float]]) -> None:
    assert audited(scores, kept=1.0, target=0.99) is None


def test_a_flagship_without_a_right_answer_is_no_measure() -> None:
    assert audited([(1.0, 0.0)] * LEAST, kept=1.0, target=0.99) is None


def test_only_the_latest_audits_count() -> None:
    scores = [(1.0, 1.0)] * RECORDS + [(0.0, 1.0)] * RECORDS

    found = audited(scores, kept=1.0, target=0.99)

    assert found is not None
    assert (found.records, found.ratio) == (RECORDS, 1.0)
