"""The arithmetic of promises: paired bounds, RouteLLM's measures, baselines."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from policies.evaluate.baselines import measure
from policies.evaluate.bounds import SURE_OF_SLACK, Quality, labels_lacking, margin, paired_quality
from policies.evaluate.cascade import Setting, choose_setting
from policies.evaluate.curves import draw_curve, measure_pair
from policies.evaluate.outcomes import Outcomes

SCORES = hnp.arrays(np.float64, 40, elements=st.sampled_from([0.0, 1.0]))


def test_a_plan_equal_to_the_flagship_has_ratio_one_and_no_error() -> None:
    quality = paired_quality(np.zeros(100), np.ones(100))

    assert (quality.ratio, quality.standard_error, quality.lower_bound()) == (1.0, 0.0, 1.0)


def test_the_paired_error_is_that_of_the_differences() -> None:
    relative = np.array([-1.0] * 10 + [0.0] * 390)

    quality = paired_quality(relative, np.ones(400))

    assert quality.ratio == pytest.approx(0.975)
    assert quality.standard_error == pytest.approx(np.sqrt(0.025 * 0.975 / 400), rel=0.01)


def test_with_one_lost_item_a_few_agreements_show_nothing() -> None:
    few, many = (paired_quality(np.zeros(count), np.ones(count), lost=1) for count in (30, 400))

    assert few.lower_bound() < 0.95
    assert 0.99 < many.lower_bound() < 1
    assert (few.labels, many.labels) == (30, 400)


@given(flagship=SCORES, other=SCORES)
def test_the_bound_lies_below_the_ratio(flagship: np.ndarray, other: np.ndarray) -> None:
    if flagship.sum() == 0:
        return
    quality = paired_quality(other - flagship, flagship)

    assert quality.lower_bound() <= quality.ratio


@given(small=st.floats(0, 0.05), more=st.floats(0, 0.05))
def test_the_margin_grows_with_the_error(small: float, more: float) -> None:
    assert 0 <= margin(small) <= margin(small + more)


def test_the_margin_keeps_nineteen_of_twenty_halves_within_a_point() -> None:
    """Draw halves of 700 labels: a plan measured exactly its margin above the target on one is checked on another."""
    rng = np.random.default_rng(3)
    error = 0.009
    true_ratio = 0.99 + margin(error) + rng.normal(0, error, 20_000)
    other_half = true_ratio + rng.normal(0, error, 20_000)

    missed = float((other_half < 0.98).mean())

    assert missed == pytest.approx(1 - SURE_OF_SLACK, abs=0.005)
    assert (1 - missed) ** 20 + 20 * missed * (1 - missed) ** 19 > 0.85
    assert other_half.mean() >= 0.99


def test_lacking_labels_would_show_the_target() -> None:
    quality = Quality(ratio=1.0, standard_error=0.02, labels=200)

    more = labels_lacking(quality, target=0.99)

    assert more is not None
    enough = Quality(1.0, 0.02 * np.sqrt(200 / (200 + more)), 200 + more)
    assert enough.lower_bound() == pytest.approx(0.99, abs=1e-4)
    assert labels_lacking(Quality(0.98, 0.02, 200), target=0.99) is None
    assert labels_lacking(Quality(1.02, 0.001, 200), target=0.99) == 0


def test_the_largest_saving_above_the_target_is_chosen() -> None:
    settings = [
        Setting(0.0, Quality(1.02, 0.001, 100), 0.2),
        Setting(0.1, Quality(1.0, 0.001, 100), 0.5),
        Setting(0.2, Quality(0.97, 0.001, 100), 0.8),
    ]

    assert choose_setting(settings, 0.99) == 1
    assert choose_setting(settings, 1.5) is None


def test_apgr_of_a_perfect_a_random_and_a_reversed_order() -> None:
    strong, weak = np.ones(100), np.array([0.0] * 50 + [1.0] * 50)
    hard_first = np.arange(100, 0, -1.0)

    perfect = measure_pair(hard_first, weak=weak, strong=strong)
    even = measure_pair(np.zeros(100), weak=weak, strong=strong)
    reverse = measure_pair(-hard_first, weak=weak, strong=strong)

    assert (perfect.apgr, perfect.cpt50, perfect.cpt80) == (pytest.approx(0.75), 25.0, 40.0)
    assert (even.apgr, even.cpt50) == (pytest.approx(0.5), 50.0)
    assert reverse.apgr == pytest.approx(0.25)


def test_a_pair_without_a_gap_has_no_measures() -> None:
    assert measure_pair(np.zeros(3), weak=np.ones(3), strong=np.ones(3)).apgr is None


@given(
    hardness=hnp.arrays(np.float64, 40, elements=st.sampled_from([0.0, 0.5, 1.0])), weak=SCORES, seed=st.integers(0, 9)
)
def test_the_order_of_the_file_does_not_matter(hardness: np.ndarray, weak: np.ndarray, seed: int) -> None:
    strong = np.ones(40)
    if weak.sum() == 40:
        return
    mixed = np.random.default_rng(seed).permutation(40)

    one = measure_pair(hardness, weak=weak, strong=strong)
    other = measure_pair(hardness[mixed], weak=weak[mixed], strong=strong)

    assert one.apgr == pytest.approx(other.apgr)


def test_quality_and_saving_are_ratios_to_the_flagship() -> None:
    outcomes = Outcomes(
        models=("big", "small"),
        items=("a", "b"),
        intents=("x", "x"),
        prompts=("p", "q"),
        scores=np.array([[1.0, 0.0], [1.0, 1.0]]),
        costs=np.array([[1.0, 0.1], [3.0, 0.1]]),
        answers=((None, None), (None, None)),
        left_out=0,
    )

    measured = measure(outcomes, relative=np.array([0.0, 0.0]), cost=np.array([1.0, 0.1]))

    assert measured.quality_ratio == 1.0
    assert measured.saving == pytest.approx(1 - 1.1 / 4)


def test_the_curve_is_one_self_contained_svg() -> None:
    outcomes_point = measure(
        Outcomes(("a<b", "s"), ("i",), ("x",), ("p",), np.ones((1, 2)), np.ones((1, 2)), ((None, None),), 0),
        relative=np.zeros(1),
        cost=np.array([0.5]),
    )

    svg = draw_curve(
        [outcomes_point], chosen=outcomes_point, others={"oracle": outcomes_point}, target=0.99, title="a<b & c"
    )

    assert svg.startswith("<svg")
    assert svg.endswith("</svg>")
    assert "a&lt;b &amp; c" in svg
    assert "nan" not in svg
