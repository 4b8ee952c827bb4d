"""The learned policy: it saves on what is easy, keeps its promise, and reads nothing it has not paid for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from policies.evaluate.cascade import Cascade, fit_cascade
from policies.evaluate.outcomes import BadOutcomes, Outcomes, pair_outcomes
from policies.evaluate.report import describe_lacking, evaluate

Columns = dict[str, list[Any]]


def _outcomes(columns: Columns, pool: tuple[str, ...] = ("small", "tiny")) -> Outcomes:
    return pair_outcomes(columns, flagship="big", pool=pool, name="a.parquet")


@pytest.fixture(scope="module")
def train(invented: Callable[..., Columns]) -> Outcomes:
    return _outcomes(invented(600, seed=1))


@pytest.fixture(scope="module")
def test(invented: Callable[..., Columns]) -> Outcomes:
    return _outcomes(invented(600, seed=2))


@pytest.fixture(scope="module")
def cascade(train: Outcomes) -> Cascade:
    return fit_cascade(train, target=0.99, seed=0)


def test_it_saves_on_easy_prompts_and_keeps_the_quality(cascade: Cascade, test: Outcomes) -> None:
    played = cascade.play(test, cascade.chosen)

    quality = 1 + played.relative.mean() / test.scores[:, 0].mean()
    saving = 1 - played.cost.mean() / test.costs[:, 0].mean()
    # Easy prompts are 60 % and their cheap answers cost a tenth: about half can be saved.
    assert saving > 0.35
    assert quality > 0.975


def test_every_call_is_charged_once(cascade: Cascade, test: Outcomes) -> None:
    played = cascade.play(test, cascade.chosen)

    for item, calls in enumerate(played.calls):
        assert len(set(calls)) == len(calls)
        assert played.cost[item] == pytest.approx(sum(test.costs[item, model] for model in calls))
        assert played.final[item] in calls


def test_what_was_not_paid_for_does_not_change_the_calls(cascade: Cascade, test: Outcomes) -> None:
    """Overwrite, per item, the answers and scores of all models it never called: it must play the same."""
    played = cascade.play(test, cascade.chosen)
    answers = tuple(
        tuple(answer if model in calls else "tampered" for model, answer in enumerate(row))
        for row, calls in zip(test.answers, played.calls, strict=True)
    )

    again = cascade.play(replace(test, answers=answers, scores=1 - test.scores), cascade.chosen)

    assert again.calls == played.calls
    assert again.final == played.final


def test_the_same_seed_gives_the_same_policy(train: Outcomes, test: Outcomes, cascade: Cascade) -> None:
    again = fit_cascade(train, target=0.99, seed=0)

    assert again.play(test, again.chosen).calls == cascade.play(test, cascade.chosen).calls


def test_without_recorded_answers_it_routes_before_the_call(invented: Callable[..., Columns]) -> None:
    train, test = (_outcomes(invented(500, seed=seed, answers=False)) for seed in (1, 2))

    cascade = fit_cascade(train, target=0.95, seed=0)
    played = cascade.play(test, cascade.chosen)

    assert cascade.asked == ()
    assert all(len(calls) == 1 for calls in played.calls)
    assert 1 - played.cost.mean() / test.costs[:, 0].mean() > 0.3


def test_no_setting_plays_the_flagship(cascade: Cascade, test: Outcomes) -> None:
    played = cascade.play(test, None)

    assert set(played.calls) == {(0,)}
    assert played.relative.sum() == 0


def test_a_report_compares_with_the_plain_ways(train: Outcomes, test: Outcomes) -> None:
    report = evaluate(train, test, target=0.99, seed=0, name="a.parquet", test_name="b.parquet")

    assert set(report.baselines) == {"always_flagship", "best_single_model", "static_table", "oracle"}
    assert report.baselines["always_flagship"].saving == 0
    assert report.baselines["oracle"].quality_ratio >= report.measured.quality_ratio
    assert sum(report.shares.values()) == pytest.approx(1)
    assert sum(report.paths.values()) == pytest.approx(1)
    assert report.pair is None


def test_one_pool_model_is_measured_as_a_pair(invented: Callable[..., Columns]) -> None:
    train, test = (_outcomes(invented(300, seed=seed), pool=("small",)) for seed in (1, 2))

    report = evaluate(train, test, target=0.9, seed=0, name="a.parquet", test_name="b.parquet")

    assert report.pair is not None
    assert report.pair.apgr is not None
    assert report.pair.apgr > 0.7  # the words tell hard from easy


def test_too_few_labels_are_counted_by_intent(invented: Callable[..., Columns]) -> None:
    few = _outcomes(invented(20))

    with pytest.raises(BadOutcomes, match=r"20 labelled items cannot show 0\.99.*easy has \d+, lacks \d+"):
        evaluate(few, few, target=0.99, seed=0, name="a.parquet", test_name="b.parquet")


def test_when_nothing_is_shown_the_flagship_does_all_and_the_lack_is_told(invented: Callable[..., Columns]) -> None:
    columns = invented(80)
    rng = np.random.default_rng(0)
    columns["score"] = [
        float(rng.random() < (0.9 if model == "big" else 0.5)) for model in columns["model"]
    ]  # cheap models are a coin
    poor = _outcomes(columns)

    report = evaluate(poor, poor, target=0.99, seed=0, name="a.parquet", test_name="b.parquet")

    assert (report.measured.quality_ratio, report.measured.saving) == (1.0, 0.0)
    assert set(report.lacking) == {"easy", "hard"}
    assert "easy has" in describe_lacking(report.lacking, 0.99)


def test_a_target_above_anything_shown_is_refused(train: Outcomes) -> None:
    with pytest.raises(BadOutcomes, match=r"target 1\.5 is out of reach.*hard has \d+ labels"):
        evaluate(train, train, target=1.5, seed=0, name="a.parquet", test_name="b.parquet")


def test_costs_that_vary_are_predicted_not_peeked_at(train: Outcomes, test: Outcomes) -> None:
    """Two test sets that differ only in costs nobody has paid yet must get the same first call."""
    rng = np.random.default_rng(5)
    priced = replace(train, costs=train.costs * rng.uniform(0.5, 1.5, train.costs.shape))
    cascade = fit_cascade(priced, target=0.99, seed=0)

    one = cascade.play(test, cascade.chosen)
    other = cascade.play(replace(test, costs=test.costs * 1.3), cascade.chosen)

    assert [calls[0] for calls in one.calls] == [calls[0] for calls in other.calls]


def test_an_answer_that_differs_often_is_charged_for_doubt(train: Outcomes) -> None:
    """Of two cheap models of equal mean, the one which errs where the flagship errs needs the smaller margin."""
    rng = np.random.default_rng(8)
    count = len(train)
    flagship = (rng.random(count) < 0.8).astype(float)
    twin = np.where(rng.random(count) < 0.02, 1 - flagship, flagship)
    stranger = rng.permutation(twin)
    costs = np.tile([1.0, 0.1, 0.1], (count, 1))
    mixed = replace(
        train,
        scores=np.column_stack([flagship, stranger, twin]),
        costs=costs,
        answers=((None, None, None),) * count,
        prompts=tuple(f"case {rng.integers(1_000_000)}" for _ in range(count)),
        intents=("x",) * count,
    )

    cascade = fit_cascade(mixed, target=0.97, seed=0)
    final = np.array(cascade.play(mixed, cascade.chosen).final)

    assert (final == 2).mean() > 0.9
    assert not (final == 1).any()
