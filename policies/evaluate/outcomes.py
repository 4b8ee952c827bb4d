"""Recorded outcomes: what each model answered to each item, how good it was and what it cost.

Built from the columns of the long format (one row per item and model); everything that could make a later figure silently
wrong is refused here, in one line that names the thing. Reading files is the caller's work.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

REQUIRED = ("item_id", "intent", "prompt", "model", "score", "cost_usd")
OPTIONAL = ("answer",)
NO_INTENT = "(untagged)"


class BadOutcomes(ValueError):
    """The outcomes cannot be used; the message is one line: what, in which file, and what to do."""


@dataclass(frozen=True)
class Outcomes:
    """Paired outcomes: every item has a score and a cost for every model; the flagship is model 0.

    left_out: items that some model lacked, not counted in any figure.
    answers: per item and model, None where none was recorded.
    """

    models: tuple[str, ...]
    items: tuple[str, ...]
    intents: tuple[str, ...]
    prompts: tuple[str, ...]
    scores: Floats
    costs: Floats
    answers: tuple[tuple[str | None, ...], ...]
    left_out: int

    def __len__(self) -> int:
        return len(self.items)

    @property
    def flagship(self) -> str:
        return self.models[0]

    def relative(self) -> Floats:
        """Return the score of each pool model minus the flagship's on the same item, shape (items, pool)."""
        return self.scores[:, 1:] - self.scores[:, :1]

    def select(self, rows: Ints) -> Outcomes:
        """Return the outcomes of some rows, in that order."""
        return Outcomes(
            models=self.models,
            items=tuple(self.items[i] for i in rows),
            intents=tuple(self.intents[i] for i in rows),
            prompts=tuple(self.prompts[i] for i in rows),
            scores=self.scores[rows],
            costs=self.costs[rows],
            answers=tuple(self.answers[i] for i in rows),
            left_out=self.left_out,
        )


def pair_outcomes(
    columns: Mapping[str, Sequence[Any]], *, flagship: str, pool: Sequence[str], name: str, tagged: bool = True
) -> Outcomes:
    """Pair the rows of the long format by item.

    Args:
        columns: Column name to values, all of one length; unknown columns are ignored, see `unknown_columns`.
        flagship: The model all others are measured against.
        pool: The models beside the flagship, at least one, the flagship not among them.
        name: What the messages call this table, usually the file's name.
        tagged: False replaces every intent by `NO_INTENT`.

    Raises:
        BadOutcomes: A column or model is missing, rows contradict each other (the same row twice counts once), values are out
            of range, or nothing is left.
    """
    pool = tuple(dict.fromkeys(pool))
    if not pool:
        raise BadOutcomes("--pool is empty: name at least one model beside the flagship")
    if flagship in pool:
        raise BadOutcomes(f"--pool names the flagship {flagship}: list only the models beside it")
    if not tagged and "intent" not in columns and "model" in columns:
        columns = {**columns, "intent": [None] * len(columns["model"])}
    _check_columns(columns, name)
    models = (flagship, *pool)
    present = dict.fromkeys(str(model) for model in columns["model"])
    for model in models:
        if model not in present:
            role = "flagship" if model == flagship else "model"
            listed = ", ".join(sorted(present)[:12]) or "none"
            raise BadOutcomes(f"{name}: {role} {model} has no outcomes; models in the file: {listed}")
    scores = columns["score"]
    for model in models:
        if all(score is None for score, of in zip(scores, columns["model"], strict=True) if of == model):
            role = "flagship" if model == flagship else "model"
            raise BadOutcomes(
                f"{name}: {role} {model} has no labels (every score is null); record or judge its answers first"
            )
    return _pair(columns, models, name, tagged)


@dataclass(frozen=True, slots=True)
class GradedRow:
    """One row of the long format as a grade; `usd` None where the file has no cost."""

    item: str
    intent: str
    model: str
    score: float
    usd: float | None


def gradable(columns: Mapping[str, Sequence[Any]], *, name: str) -> list[GradedRow]:
    """The rows that have a score, checked; prompts and answers are not needed.

    Raises:
        BadOutcomes: A column is missing, a value is out of range, a row is there twice, or no row has a score.
    """
    needed = ("item_id", "intent", "model", "score")
    missing = [column for column in needed if column not in columns]
    if missing:
        raise BadOutcomes(f"{name}: missing columns: {', '.join(missing)}; needed: {', '.join((*needed, 'cost_usd'))}")
    costs = columns.get("cost_usd") or [None] * len(columns["model"])
    rows: dict[tuple[str, str], GradedRow] = {}
    for item, intent, model, score, cost in zip(*(columns[column] for column in needed), costs, strict=True):
        if score is None:
            continue
        where = f"{name}: item {item}, model {model}"
        if item is None or intent is None or model is None:
            raise BadOutcomes(f"{where}: item_id, intent and model must not be null")
        row = GradedRow(
            str(item), str(intent), str(model), _score(score, where), None if cost is None else _price(cost, where)
        )
        if rows.setdefault((row.item, row.model), row) != row:
            raise BadOutcomes(f"{name}: item {item} has two outcomes of {model}; keep one row per item and model")
    if not rows:
        raise BadOutcomes(f"{name}: no labels (every score is null); record or judge the answers first")
    return list(rows.values())


def unknown_columns(columns: Mapping[str, object]) -> list[str]:
    """Return the columns that the long format does not have."""
    return [column for column in columns if column not in REQUIRED + OPTIONAL]


def _score(value: object, where: str) -> float:
    score = _number(value, "score", where)
    if not 0.0 <= score <= 1.0:
        hint = "; write null where an answer was not judged" if math.isnan(score) else ""
        raise BadOutcomes(f"{where}: score {score:g} is outside 0..1{hint}")
    return score


def _price(value: object, where: str) -> float:
    price = _number(value, "cost_usd", where)
    if not 0.0 <= price < math.inf:
        hint = "; write null where it is not known" if math.isnan(price) else ""
        raise BadOutcomes(f"{where}: cost_usd {price:g} is not a price{hint}")
    return price


def _number(value: object, column: str, where: str) -> float:
    try:
        return float(value)  # type: ignore[arg-type]  # a Parquet column may hold anything
    except (TypeError, ValueError):
        shown = " ".join(str(value).split())[:40]
        raise BadOutcomes(f"{where}: {column} {shown!r} is not a number") from None


def check_trainable(train: Outcomes, name: str) -> None:
    """Refuse outcomes from which no policy can be fitted.

    Raises:
        BadOutcomes: All scores are equal (one class only), or the flagship scores zero throughout, so that no ratio exists.
    """
    if np.ptp(train.scores) == 0:
        value = train.scores.flat[0]
        raise BadOutcomes(
            f"{name}: every score is {value:g} (one class only); add items which some model gets wrong and some right"
        )
    check_measurable(train, name)


def check_measurable(outcomes: Outcomes, name: str) -> None:
    """Refuse outcomes beside which nothing can be measured.

    Raises:
        BadOutcomes: The flagship scores zero throughout, so that no ratio exists.
    """
    if outcomes.scores[:, 0].mean() <= 0:
        raise BadOutcomes(
            f"{name}: flagship {outcomes.flagship} scores 0 on every item, so no quality ratio exists;"
            " choose another flagship"
        )


def _check_columns(columns: Mapping[str, Sequence[Any]], name: str) -> None:
    missing = [column for column in REQUIRED if column not in columns]
    if missing:
        extra = unknown_columns(columns)
        tail = f"; unknown columns: {', '.join(extra)}" if extra else ""
        if missing == ["intent"]:
            tail += "; add --no-intent to do without"
        raise BadOutcomes(
            f"{name}: missing columns: {', '.join(missing)}{tail}; needed: {', '.join(REQUIRED + OPTIONAL)}"
        )
    if not len(columns["model"]):
        raise BadOutcomes(f"{name}: no rows")


def _pair(columns: Mapping[str, Sequence[Any]], models: tuple[str, ...], name: str, tagged: bool) -> Outcomes:
    place = {model: number for number, model in enumerate(models)}
    answers = columns.get("answer") or [None] * len(columns["model"])
    rows: dict[str, list[tuple[float, float, str | None] | None]] = {}
    heads: dict[str, tuple[str, str]] = {}
    for item, intent, prompt, model, score, cost, answer in zip(
        *(columns[column] for column in REQUIRED), answers, strict=True
    ):
        if model not in place:
            continue
        if item is None or prompt is None:
            raise BadOutcomes(f"{name}: item {item}: {'item_id' if item is None else 'prompt'} is null")
        head = (str(intent) if tagged and intent is not None else NO_INTENT, str(prompt))
        if heads.setdefault(str(item), head) != head:
            raise BadOutcomes(f"{name}: item {item} has two prompts or intents; item_id must be unique for each prompt")
        cells = rows.setdefault(str(item), [None] * len(models))
        if score is None or cost is None:
            continue
        where = f"{name}: item {item}, model {model}"
        cell = (_score(score, where), _price(cost, where), None if answer is None else str(answer))
        if cells[place[model]] not in (None, cell):
            raise BadOutcomes(f"{name}: item {item} has two outcomes of {model}; keep one row per item and model")
        cells[place[model]] = cell
    whole = {item: [cell for cell in cells if cell is not None] for item, cells in rows.items()}
    kept = [item for item, cells in whole.items() if len(cells) == len(models)]
    if not kept:
        raise BadOutcomes(
            f"{name}: no item has an outcome of every model ({', '.join(models)}); quality is compared item by item"
        )
    outcomes = Outcomes(
        models=models,
        items=tuple(kept),
        intents=tuple(heads[item][0] for item in kept),
        prompts=tuple(heads[item][1] for item in kept),
        scores=np.array([[cell[0] for cell in whole[item]] for item in kept], dtype=np.float64),
        costs=np.array([[cell[1] for cell in whole[item]] for item in kept], dtype=np.float64),
        answers=tuple(tuple(cell[2] for cell in whole[item]) for item in kept),
        left_out=len(rows) - len(kept),
    )
    if outcomes.costs[:, 0].sum() <= 0:
        raise BadOutcomes(
            f"{name}: flagship {models[0]} costs nothing, so nothing can be saved against it; record its cost_usd"
        )
    return outcomes
