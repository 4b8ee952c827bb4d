"""How sure a quality is: the ratio to the flagship on paired items, its standard error and its lower bound."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from policies.evaluate.outcomes import Floats

# The promise: over random halves the mean quality meets the target, and at most one half in twenty lies more than a
# point under it. The margin itself is never typed in: these fix how many standard errors of the labels at hand it takes.
SURE_OF_TARGET = 0.75
SLACK = 0.01
# A chance of 2.7 % each leaves two or more such halves among twenty with 10 % (binomial).
SURE_OF_SLACK = 0.973
_STEPS_OF_TARGET = NormalDist().inv_cdf(SURE_OF_TARGET)
# Another half of the same size is as uncertain as the labels: their difference has the square root of two of one error.
STEPS_OF_SLACK = NormalDist().inv_cdf(SURE_OF_SLACK) * math.sqrt(2)


def margin(standard_error: float) -> float:
    """Return how far above the target a measured ratio must lie for the promise to hold (normal approximation)."""
    return max(_STEPS_OF_TARGET * standard_error, STEPS_OF_SLACK * standard_error - SLACK)


@dataclass(frozen=True)
class Quality:
    """The ratio of a plan's mean score to the flagship's on the same items."""

    ratio: float
    standard_error: float
    labels: int

    def lower_bound(self) -> float:
        """Return the largest target for which the promise holds."""
        return self.ratio - margin(self.standard_error)


def paired_quality(relative: Floats, flagship: Floats, *, lost: int = 0) -> Quality:
    """Return the quality of a plan from its score minus the flagship's on each item.

    Args:
        lost: So many items are added that the flagship had right and the plan wrong. Without one a few dozen agreements have no error
            and would show anything.

    The error is that of the ratio of means (delta method): items on which both score the same carry none, which is why pairing
    needs several times fewer labels than two separate accuracies.
    """
    labels = len(relative)
    relative, flagship = np.append(relative, -np.ones(lost)), np.append(flagship, np.ones(lost))
    mean = float(flagship.mean())
    shift = float(relative.mean()) / mean
    residual = relative - shift * flagship
    spread = float(residual.std(ddof=1)) if len(relative) > 1 else math.inf
    return Quality(ratio=1 + shift, standard_error=spread / mean / math.sqrt(len(relative)), labels=labels)


def labels_lacking(quality: Quality, *, target: float) -> int | None:
    """Return how many more labels of the same kind would show the target, 0 if it is shown, None if none would.

    None: the plan's own ratio is not above the target, so more labels only make that surer.
    """
    if quality.lower_bound() >= target:
        return 0
    gap = quality.ratio - target
    if gap <= 0 or not math.isfinite(quality.standard_error):
        return None
    largest_error = min(gap / _STEPS_OF_TARGET, (gap + SLACK) / STEPS_OF_SLACK)
    return max(1, math.ceil(quality.labels * (quality.standard_error / largest_error) ** 2) - quality.labels)
