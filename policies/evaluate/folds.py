"""Folds by prompt: the same question never stands on both sides of a split, however often a file repeats it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from policies.evaluate.outcomes import Ints


def draw_folds(prompts: Sequence[str], *, count: int, seed: int) -> Ints:
    """Return the fold number, 0..count-1, of each prompt; equal prompts share a fold."""
    distinct = {prompt: number for number, prompt in enumerate(sorted(set(prompts)))}
    shuffled = np.random.default_rng(seed).permutation(len(distinct)) % count
    return np.array([shuffled[distinct[prompt]] for prompt in prompts], dtype=np.int64)


def split_rows(prompts: Sequence[str], *, share: float, seed: int) -> tuple[Ints, Ints]:
    """Return the rows of a random share of the distinct prompts, and the rows of the others."""
    distinct = sorted(set(prompts))
    order = np.random.default_rng(seed).permutation(len(distinct))
    first = {distinct[number] for number in order[: round(share * len(distinct))]}
    inside = np.array([prompt in first for prompt in prompts], dtype=bool)
    return np.flatnonzero(inside), np.flatnonzero(~inside)
