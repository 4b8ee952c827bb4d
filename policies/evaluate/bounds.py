"""How sure a quality is: the ratio to the flagship on paired items, its standard error and its lower bound."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

from policies.evaluate.outcomes import Floats

# One-sided. The margin itself is never typed in: it is this many standard errors of the labels at hand.
CONFIDENCE = 0.90


@dataclass(frozen=True)
class Quality:
    """The ratio of a plan's mean score to the flagship's on the same items."""

    ratio: float
    standard_error: float
    labels: int

    def lower_bound(self, confidence: float = CONFIDENCE) -> float:
        """Return the value which the true ratio exceeds with this confidence (normal approximation)."""
        return self.ratio - NormalDist().inv_cdf(confidence) * self.standard_error


def paired_quality(relative: Floats, flagship: Floats) -> Quality:
    """Return the quality of a plan from its score minus the flagship's on each item.

    The error is that of the ratio of means (delta method): items on which both score the same carry none, which is why pairing
    needs several times fewer labels than two separate accuracies.
    """
    mean = float(flagship.mean())
    shift = float(relative.mean()) / mean
    residual = relative - shift * flagship
    spread = float(residual.std(ddof=1)) if len(relative) > 1 else math.inf
    return Quality(ratio=1 + shift, standard_error=spread / mean / math.sqrt(len(relative)), labels=len(relative))


def labels_lacking(quality: Quality, *, target: float, confidence: float = CONFIDENCE) -> int | None:
    """Return how many more labels of the same kind would show the target, 0 if it is shown, None if none would.

    None: the plan's own ratio is not above the target, so more labels only make that surer.
    """
    if quality.lower_bound(confidence) >= target:
        return 0
    gap = quality.ratio - target
    if gap <= 0 or not math.isfinite(quality.standard_error):
        return None
    needed = quality.labels * (NormalDist().inv_cdf(confidence) * quality.standard_error / gap) ** 2
    return max(1, math.ceil(needed) - quality.labels)
