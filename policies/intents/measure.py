"""How good the guesses are: accuracy, macro F1, accuracy of the most confident 80 %, and what abstention buys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from policies.intents.classifier import Guess

_FEWEST_PROMPTS = 10


class BadIntents(ValueError):
    """The labelled prompts cannot be used; one line: what, in which file, and what to do."""


@dataclass(frozen=True)
class Labelled:
    """Prompts with intents; `groups` is the template of each, `producers` its data set, None where the file has none."""

    prompts: tuple[str, ...]
    intents: tuple[str, ...]
    groups: tuple[str, ...] | None
    producers: tuple[str, ...] | None


@dataclass(frozen=True)
class IntentReport:
    """coverage: share of prompts not abstained from; accuracy_answered: accuracy among those, None when there are none."""

    prompts: int
    accuracy: float
    macro_f1: float
    accuracy_at_80_coverage: float
    coverage: float
    accuracy_answered: float | None
    f1: dict[str, float]
    ms_per_prompt: float

    def as_dict(self) -> dict[str, Any]:
        return dict(vars(self))


def check_labels(columns: Mapping[str, Sequence[Any]], *, name: str, to_learn: bool) -> Labelled:
    """Return the prompts and intents of a table (`prompt` or `text`, and `intent`).

    Raises:
        BadIntents: A column is missing, a label is null, or, when it is to be learned from, there is only one class.
    """
    text = next((column for column in ("prompt", "text") if column in columns), None)
    missing = [column for column, there in (("prompt", text), ("intent", "intent" in columns)) if not there]
    if missing or text is None:
        raise BadIntents(f"{name}: missing columns: {', '.join(missing)}; columns in the file: {', '.join(columns)}")
    prompts, intents = columns[text], columns["intent"]
    if not len(prompts):
        raise BadIntents(f"{name}: no rows")
    if all(intent is None for intent in intents):
        raise BadIntents(f"{name}: no labels (every intent is null)")
    for row, (prompt, intent) in enumerate(zip(prompts, intents, strict=True)):
        if prompt is None or intent is None:
            raise BadIntents(
                f"{name}: row {row}: {text if prompt is None else 'intent'} is null; drop or label the row"
            )
    distinct = sorted({str(intent) for intent in intents})
    if to_learn and len(distinct) < 2:
        raise BadIntents(f"{name}: one class only ({distinct[0]}); at least two intents are needed to tell them apart")
    if to_learn and len(prompts) < _FEWEST_PROMPTS:
        raise BadIntents(
            f"{name}: {len(prompts)} prompts are too few to learn from; at least {_FEWEST_PROMPTS} are needed"
        )
    groups, producers = columns.get("template"), columns.get("dataset")
    if producers is not None and len(set(producers)) < 2:
        producers = None  # nothing could be left out
    return Labelled(
        prompts=tuple(map(str, prompts)),
        intents=tuple(map(str, intents)),
        groups=None if groups is None else tuple(map(str, groups)),
        producers=None if producers is None else tuple(map(str, producers)),
    )


def measure_intents(truth: Sequence[str], guesses: Sequence[Guess], *, ms_per_prompt: float) -> IntentReport:
    """Return the measures; an intent that occurs on neither side is not averaged into the macro F1."""
    right = np.array([guess.likeliest == intent for guess, intent in zip(guesses, truth, strict=True)])
    confidence = np.array([guess.confidence for guess in guesses])
    answered = np.array([guess.intent is not None for guess in guesses])
    surest = np.argsort(-confidence, kind="stable")[: max(1, round(0.8 * len(guesses)))]
    f1 = _f1(truth, [guess.likeliest for guess in guesses])
    return IntentReport(
        prompts=len(guesses),
        accuracy=float(right.mean()),
        macro_f1=float(np.mean(list(f1.values()))),
        accuracy_at_80_coverage=float(right[surest].mean()),
        coverage=float(answered.mean()),
        accuracy_answered=float(right[answered].mean()) if answered.any() else None,
        f1=f1,
        ms_per_prompt=ms_per_prompt,
    )


def _f1(truth: Sequence[str], guessed: Sequence[str]) -> dict[str, float]:
    """Return the F1 of each intent that occurs in `truth`."""
    pairs = list(zip(truth, guessed, strict=True))
    return {
        intent: 2 * sum(a == b == intent for a, b in pairs) / sum((a == intent) + (b == intent) for a, b in pairs)
        for intent in sorted(set(truth))
    }
