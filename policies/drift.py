"""Whether a learned cascade still keeps its promise, from a sample of the answers that it kept, each beside the flagship's. Pure.

An answer that went on to the flagship is the flagship's and loses nothing, so only kept ones are audited, and what they lose
counts by their share of all jobs. A cascade comes in force when a lower bound shows its target; it saves the most that this
allows, so its true quality lies close to the target, and to ask for the same bound again and again would end every second
healthy one. It has drifted when the latest audits contradict: when even their upper bound misses the target
(docs/decisions/0154-audited-cascades.md has the figures).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final

RECORDS: Final = 400
"""The latest audits of a cascade; older ones say nothing about today."""
LEAST: Final = 30
"""Audits before anything is said."""
SURE: Final = 0.95
"""Of the upper bound, at one look."""
_STEPS: Final = NormalDist().inv_cdf(SURE)


@dataclass(frozen=True, slots=True)
class Audited:
    """What the audits say of a cascade.

    Attributes:
        records: Audits that were looked at.
        kept: Share of the cascade's jobs whose cheap answer was kept.
        ratio: Mean score of all its jobs relative to the flagship's.
        error: Of the ratio.
        target: What it was to keep.
    """

    records: int
    kept: float
    ratio: float
    error: float
    target: float

    @property
    def lower(self) -> float:
        """Lower bound of the ratio."""
        return self.ratio - _STEPS * self.error

    @property
    def upper(self) -> float:
        """Upper bound of the ratio."""
        return self.ratio + _STEPS * self.error

    @property
    def has_drifted(self) -> bool:
        """Whether the target is missed whatever chance may have done."""
        return self.records >= LEAST and self.upper < self.target

    def describe(self) -> str:
        """In one line, without a word of anybody's."""
        return (
            f"{self.records} audits of kept answers ({self.kept:.0%} of its jobs): {self.ratio:.4f} of the flagship,"
            f" {self.lower:.4f} to {self.upper:.4f}, target {self.target:g}"
        )


def audited(scores: Sequence[tuple[float, float]], *, kept: float, target: float) -> Audited | None:
    """What these audits come to; None while they are too few, or the flagship's answers were of no use.

    Args:
        scores: Of the kept answer and of the flagship's, the latest first.
        kept: Share of the cascade's jobs whose cheap answer was kept, 0..1.
        target: Share of the flagship's quality to keep over all its jobs.
    """
    import numpy as np  # only where there is a cascade

    from policies.evaluate.bounds import paired_quality

    latest = np.array(scores[:RECORDS], dtype=float).reshape(-1, 2)
    if len(latest) < LEAST or latest[:, 1].sum() <= 0:
        return None
    quality = paired_quality(latest[:, 0] - latest[:, 1], latest[:, 1])
    return Audited(len(latest), kept, 1 + kept * (quality.ratio - 1), kept * quality.standard_error, target)
