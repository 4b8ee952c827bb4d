"""Log-probabilities of continuations, side by side in sequences that share what is in memory already."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np

from workers.providers.local_model import BATCH_TOKENS, Entry, LocalModel, Logits

SCORERS: Final = 16
"""Continuations that are scored side by side."""


def score(
    model: LocalModel,
    sequence: int,
    length: int,
    logits: Logits,
    spelled: Sequence[Sequence[int]],
    *,
    scorers: range,
    check: Callable[[], None],
) -> list[float]:
    """The log-probability of each continuation of a sequence; the sequence itself stays as it is.

    Args:
        sequence, length: What is continued.
        logits: After its last token.
        spelled: Tokens of the continuations, at least one each.
        scorers: Sequences that are free.
        check: Called between steps; may raise.
    """
    first = log_softmax(logits)
    sums = [float(first[tokens[0]]) for tokens in spelled]
    try:
        for start in range(0, len(spelled), len(scorers)):
            _score_some(model, sequence, length, spelled, sums, start, scorers, check)
    finally:
        for scorer in scorers:
            model.keep(scorer, 0)
    return sums


def _score_some(
    model: LocalModel,
    sequence: int,
    length: int,
    spelled: Sequence[Sequence[int]],
    sums: list[float],
    start: int,
    scorers: range,
    check: Callable[[], None],
) -> None:
    """Add to `sums` what the tokens after each continuation's first are worth."""
    entries: list[Entry] = []
    adds: list[tuple[int, int]] = []
    for at, scorer in zip(range(start, len(spelled)), scorers, strict=False):
        tokens = spelled[at]
        model.keep(scorer, 0)
        model.fork(sequence, scorer, length)
        for offset, token in enumerate(tokens[:-1]):
            entries.append(Entry(token, length + offset, scorer, is_wanted=True))
            adds.append((at, tokens[offset + 1]))
    for base in range(0, len(entries), BATCH_TOKENS):
        check()

        def take(n: int, logits: Logits, base: int = base) -> None:
            at, token = adds[base + n]
            sums[at] += float(log_softmax(logits)[token])

        model.step(entries[base : base + BATCH_TOKENS], take)


def log_softmax(logits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Log-probabilities."""
    shifted = logits - logits.max()
    return np.asarray(shifted - np.log(np.exp(shifted).sum()))
