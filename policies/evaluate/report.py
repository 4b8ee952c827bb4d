"""Fit on one set of outcomes, measure on another: the figures behind `waybill policy evaluate`."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from policies.evaluate.baselines import Measured, measure, measure_baselines, measure_singles
from policies.evaluate.bounds import Quality, labels_lacking, paired_quality
from policies.evaluate.cascade import Cascade, Played, fit_cascade
from policies.evaluate.curves import PairMeasures, measure_pair
from policies.evaluate.outcomes import NO_INTENT, BadOutcomes, Outcomes, check_measurable, check_trainable

# Below this many paired items five folds hold too few to fit anything; the message then asks for labels instead.
FEWEST_ITEMS = 40


@dataclass(frozen=True)
class Report:
    """What a policy did on items it had not seen.

    promised: quality on the training items, out of fold, at the chosen price; None when the flagship does everything.
    lacking: when the flagship does everything, per tag the labels there are and how many more would show the target.
    """

    target: float
    test_items: int
    train_items: int
    measured: Measured
    realised: Quality
    promised: Quality | None
    shares: dict[str, float]
    paths: dict[str, float]
    by_intent: dict[str, Measured]
    baselines: dict[str, Measured]
    singles: list[Measured]
    curve: list[Measured]
    pair: PairMeasures | None
    lacking: dict[str, tuple[int, int | None]]


def evaluate(
    train: Outcomes, test: Outcomes, *, target: float, seed: int, name: str, test_name: str, as_chain: bool = False
) -> Report:
    """Fit on `train` only and measure on `test`, whose scores are used for nothing but measuring.

    Args:
        name, test_name: What messages call the training and the test outcomes.
        as_chain: The pool is a chain, see `open_moves`.

    Raises:
        BadOutcomes: Nothing can be fitted or measured, or the target lies above what any plan showed out of fold.
    """
    check_enough(train, name, target)
    check_trainable(train, name)
    check_measurable(test, test_name)
    cascade = fit_cascade(train, target=target, seed=seed, as_chain=as_chain)
    if cascade.chosen is None and target > 1:
        raise BadOutcomes(f"{name}: {_unreachable(train, cascade, target)}")
    played = cascade.play_all(test, [cascade.chosen, *range(len(cascade.settings))])
    measured = [measure(test, relative=play.relative, cost=play.cost) for play in played]
    return Report(
        target=target,
        test_items=len(test),
        train_items=len(train),
        measured=measured[0],
        realised=paired_quality(played[0].relative, test.scores[:, 0]),
        promised=None if cascade.chosen is None else cascade.settings[cascade.chosen].quality,
        shares=_shares(played[0]),
        paths=_paths(played[0], test.models),
        by_intent=_by_intent(test, played[0]),
        baselines=measure_baselines(train, test, target=target),
        singles=measure_singles(test),
        curve=sorted(measured[1:], key=lambda point: point.saving),
        pair=_pair(cascade, test) if len(test.models) == 2 else None,
        lacking=find_lacking(train, cascade, target) if cascade.chosen is None else {},
    )


def check_enough(train: Outcomes, name: str, target: float) -> None:
    """Refuse outcomes too few to fit anything on.

    Raises:
        BadOutcomes: Too few items, or too few different prompts among them.
    """
    if len(train) < FEWEST_ITEMS:
        counts = Counter(train.intents)
        each = ", ".join(
            f"{intent} has {count}, lacks {max(0, FEWEST_ITEMS - count)}" for intent, count in sorted(counts.items())
        )
        raise BadOutcomes(
            f"{name}: {len(train)} labelled items cannot show {target:g}; at least {FEWEST_ITEMS} per intent: {each}"
        )
    distinct = len(set(train.prompts))
    if distinct < FEWEST_ITEMS:
        raise BadOutcomes(
            f"{name}: only {distinct} different prompts among {len(train)} items; at least {FEWEST_ITEMS} are needed"
        )


def find_lacking(train: Outcomes, cascade: Cascade, target: float) -> dict[str, tuple[int, int | None]]:
    """Return per tag the labels at hand and how many more would show the target for its cheapest promising single model.

    None instead of a number: no cheaper model is above the target there, so labels alone do not help.
    """
    del cascade  # the cascade as a whole has failed; what a tag lacks is judged on its single models
    gains, lacking = train.relative(), {}
    for intent in sorted(set(train.intents)):
        rows = np.array([tag == intent for tag in train.intents])
        needs = [
            labels_lacking(paired_quality(gains[rows, model], train.scores[rows, 0]), target=target)
            for model in range(gains.shape[1])
            if rows.sum() > 1 and train.scores[rows, 0].mean() > 0
        ]
        lacking[intent] = (int(rows.sum()), min((need for need in needs if need is not None), default=None))
    return lacking


def describe_lacking(lacking: dict[str, tuple[int, int | None]], target: float) -> str:
    """Return one line: which tag lacks how many labels."""
    parts = [
        f"{intent} has {count} labels and "
        + (
            "no cheaper model above the target"
            if more is None
            else "shows it alone"
            if more == 0
            else f"lacks about {more}"
        )
        for intent, (count, more) in lacking.items()
    ]
    return f"no cheaper plan is shown to keep {target:g} of the flagship: " + "; ".join(parts)


def _unreachable(train: Outcomes, cascade: Cascade, target: float) -> str:
    best = max(setting.quality.lower_bound() for setting in cascade.settings)
    head = (
        f"target {target:g} is out of reach: the best plan is shown to keep {best:.3f}; lower the target or add labels"
    )
    return f"{head}; {describe_lacking(find_lacking(train, cascade, target), target)}"


def _pair(cascade: Cascade, test: Outcomes) -> PairMeasures:
    scores = cascade.knowledge.precall.score(test.prompts, test.intents)
    return measure_pair(-scores[:, 0], weak=test.scores[:, 1], strong=test.scores[:, 0])


def _shares(played: Played) -> dict[str, float]:
    """Return the share of items per plan, by what was really called."""
    kinds = Counter(
        "flagship" if calls == (0,) else "escalated" if 0 in calls else "single" if len(calls) == 1 else "agreed"
        for calls in played.calls
    )
    names = {
        "flagship": "flagship_directly",
        "escalated": "cascade_escalated",
        "single": "cheap_only",
        "agreed": "cascade_stopped",
    }
    return {names[kind]: kinds[kind] / len(played.calls) for kind in names}


def _paths(played: Played, models: tuple[str, ...]) -> dict[str, float]:
    paths = Counter(
        " > ".join(models[model] for model in calls) + ("" if calls[-1] == final else f" (answer of {models[final]})")
        for calls, final in zip(played.calls, played.final, strict=True)
    )
    return {path: count / len(played.calls) for path, count in paths.most_common()}


def _by_intent(test: Outcomes, played: Played) -> dict[str, Measured]:
    found = {}
    for intent in sorted(set(test.intents) - {NO_INTENT}):
        rows = np.flatnonzero([tag == intent for tag in test.intents])
        found[intent] = measure(test.select(rows), relative=played.relative[rows], cost=played.cost[rows])
    return found
