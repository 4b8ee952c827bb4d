"""The plain ways a learned policy must beat: flagship for all, best single model, a table by tag, and what hindsight could do."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from policies.evaluate.outcomes import Floats, Outcomes


@dataclass(frozen=True)
class Measured:
    """A way of choosing, on some items: ratio of its mean score to the flagship's, and the share of the flagship's bill saved."""

    quality_ratio: float
    saving: float
    model: str | None = None

    def as_dict(self) -> dict[str, object]:
        named = {} if self.model is None else {"model": self.model}
        return {**named, "quality_ratio": self.quality_ratio, "saving": self.saving}


def measure(outcomes: Outcomes, *, relative: Floats, cost: Floats, model: str | None = None) -> Measured:
    """Return quality and saving of scores relative to the flagship and costs, item by item.

    Raises nothing for a flagship that scored 0 throughout: the ratio is then NaN, and callers show it as such.
    """
    flagship = outcomes.scores[:, 0].mean()
    ratio = 1 + relative.mean() / flagship if flagship > 0 else float("nan")
    return Measured(
        quality_ratio=float(ratio), saving=float(1 - cost.mean() / outcomes.costs[:, 0].mean()), model=model
    )


def measure_baselines(train: Outcomes, test: Outcomes, *, target: float) -> dict[str, Measured]:
    """Return the baselines, each fitted on `train` alone and measured on `test` (the oracle, of course, on `test`)."""
    return {
        "always_flagship": _single(test, 0),
        "best_single_model": _best_single(train, test, target),
        "static_table": _static_table(train, test, target),
        "oracle": _oracle(test),
    }


def measure_singles(test: Outcomes) -> list[Measured]:
    """Return each model used for everything, the flagship first."""
    return [_single(test, model) for model in range(len(test.models))]


def _single(test: Outcomes, model: int) -> Measured:
    return measure(
        test,
        relative=test.scores[:, model] - test.scores[:, 0],
        cost=test.costs[:, model],
        model=test.models[model],
    )


def _best_single(train: Outcomes, test: Outcomes, target: float) -> Measured:
    """Return the cheapest model that met the target on the training items, the flagship if no other did."""
    met = [
        model for model, score in enumerate(train.scores.mean(axis=0)) if score >= target * train.scores[:, 0].mean()
    ]
    return _single(test, min([0, *met], key=lambda model: train.costs[:, model].mean()))


def _static_table(train: Outcomes, test: Outcomes, target: float) -> Measured:
    """Return the table tag -> model that saves most on the training items while their mean quality meets the target.

    The exact choice is a knapsack; the Lagrangian over prices of money finds it up to one tag's share, as a team with a
    spreadsheet would. No margin: this is the baseline as it is commonly built.
    """
    tags = sorted(set(train.intents))
    of = np.array([tags.index(intent) for intent in train.intents])
    score = np.array([train.scores[of == tag].mean(axis=0) for tag in range(len(tags))])
    cost = np.array([train.costs[of == tag].mean(axis=0) for tag in range(len(tags))])
    weight = np.bincount(of) / len(of)
    best: tuple[float, np.ndarray] | None = None
    for price in [0.0, *np.geomspace(1e-3, 10.0, 200)]:
        table = np.argmax(score - price * cost / train.costs[:, 0].mean(), axis=1)
        rows = np.arange(len(tags))
        if (weight * score[rows, table]).sum() >= target * train.scores[:, 0].mean():
            spent = float((weight * cost[rows, table]).sum())
            if best is None or spent < best[0]:
                best = (spent, table)
    chosen = dict.fromkeys(tags, 0) if best is None else dict(zip(tags, best[1].tolist(), strict=True))
    models = np.array([chosen.get(intent, 0) for intent in test.intents])
    rows = np.arange(len(test))
    return measure(test, relative=test.scores[rows, models] - test.scores[:, 0], cost=test.costs[rows, models])


def _oracle(test: Outcomes) -> Measured:
    """Return the cheapest model among those with the item's best score: what hindsight would pay for."""
    top = test.scores >= test.scores.max(axis=1, keepdims=True)
    models = np.argmin(np.where(top, test.costs, np.inf), axis=1)
    rows = np.arange(len(test))
    return measure(test, relative=test.scores[rows, models] - test.scores[:, 0], cost=test.costs[rows, models])
