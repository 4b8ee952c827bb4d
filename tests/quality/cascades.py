"""Outcomes with a known structure under the names of three models of the catalogue, and a policy whose chain they are."""

from __future__ import annotations

from typing import Final

import numpy as np

from policies.evaluate.outcomes import Outcomes

OPUS, SONNET, HAIKU = "claude-opus-5-5", "claude-sonnet-5-5", "claude-haiku-5-5"
INTENT: Final = "sums"
POLICY: Final = f"""
version = "sums"
flagship = "{OPUS}"
[intents.{INTENT}]
chain = ["{HAIKU}", "{SONNET}", "{OPUS}"]
reason = "as declared"
max_output_tokens = 4096
"""


def invent(count: int, *, seed: int) -> Outcomes:
    """Easy prompts that all models get right, and hard ones on which the cheap ones err, each in its own way."""
    rng = np.random.default_rng(seed)
    prompts, answers, scores = [], [], []
    for item in range(count):
        hard = bool(rng.random() < 0.4)
        # Half of the hard ones say so; the others show only in the answers, which then differ.
        shown = hard and bool(rng.random() < 0.5)
        words = "prove the difficult theorem about" if shown else "add the simple numbers of"
        prompts.append(f"{words} case {seed}-{item} " + " ".join(rng.choice(["red", "blue", "green", "old", "new"], 4)))
        truth = str(rng.integers(100, 999))
        right = [rng.random() < chance for chance in ((1.0, 0.2, 0.1) if hard else (1.0, 0.97, 0.93))]
        answers.append(tuple(truth if good else str(rng.integers(1000, 9999)) for good in right))
        scores.append([float(good) for good in right])
    return Outcomes(
        models=(OPUS, HAIKU, SONNET),
        items=tuple(f"{seed}-{item}" for item in range(count)),
        intents=(INTENT,) * count,
        prompts=tuple(prompts),
        scores=np.array(scores)[:, [0, 2, 1]],
        costs=np.tile([1.0, 0.02, 0.1], (count, 1)),
        answers=tuple((opus, haiku, sonnet) for opus, sonnet, haiku in answers),
        left_out=0,
    )
