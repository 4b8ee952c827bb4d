"""When a local label may stand by itself: batch calibration, and a gate that only labels of paid answers can open.

A local model scores labels instead of generating them. Its prior for a label (some words are likelier whatever the text says)
is taken off as the mean over the jobs seen: 3 to 40 points of accuracy (local-lane figures, docs/quality.md). What is left
is compared with what the paid model answered to the same jobs. Without such records the model runs in shadow: it answers, its
answer is kept for comparison, and the job goes on to the paid model.

The gate of an (intent, prompt version, model file) opens at the largest share of answers whose precision is shown: of `SHARES`,
the loosest threshold whose kept answers have a lower bound (Clopper-Pearson, 90 % for all shares together) that loses no more
than the target allows. It is worked out anew from the latest records, so drift closes it again. While it is open a sample of *all*
its jobs goes on to the paid model, whether it was sure of them or not: records of the unsure ones alone would soon fill the window
and say nothing of what is kept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

SHARES: Final = (1.0, 0.8, 0.6, 0.4, 0.2)
"""Shares of the answers that may be kept, loosest first. Few, since each look costs confidence."""
SURE: Final = 0.9
AUDIT_SHARE: Final = 0.05
"""Of an open gate's jobs, so many go on to the paid model whatever it says: they are its records."""
USUAL_TARGET: Final = 0.99
"""What a gate has to show where the policy file names no quality."""
RECORDS: Final = 400
"""The latest records of a gate; older ones say nothing about today."""


@dataclass(frozen=True, slots=True)
class Record:
    """One job that both the local and a paid model answered.

    Attributes:
        logprobs: Of each label, after the prompt, not normalised.
        paid: The label that the paid model gave.
    """

    logprobs: Mapping[str, float]
    paid: str


@dataclass(frozen=True, slots=True)
class Scored:
    """The same of an answer whose score needs no calibration.

    Attributes:
        score: Of copied values: their log-probability, the sum over their tokens. Of a head: the label's share of the probability, as it
            is: fitted on the labels, it is right to think a common one likelier.
        right: Whether the paid model said the same.
    """

    score: float
    right: bool


@dataclass(frozen=True, slots=True)
class Gate:
    """What is known of one (intent, prompt version, model file).

    Attributes:
        means: Mean log-probability of each label: the prior that calibration takes off.
        threshold: Share of probability (of copied values: log-probability) from which an answer is kept; None = closed.
        records: Labels it was worked out from.
        precision, lower: Of the kept: share that agreed with the paid model, and its lower bound; of all while closed.
        kept: Share of the answers above the threshold.
    """

    means: Mapping[str, float] = field(default_factory=dict)
    threshold: float | None = None
    records: int = 0
    precision: float = 0.0
    lower: float = 0.0
    kept: float = 0.0

    @property
    def is_open(self) -> bool:
        """Whether any answer may stand."""
        return self.threshold is not None

    def read(self, logprobs: Mapping[str, float]) -> tuple[str, float]:
        """The likeliest label after calibration, and its share of the probability."""
        return calibrated(logprobs, self.means)

    def describe(self) -> str:
        """For `waybill why`."""
        if self.threshold is not None:
            return f"right {self.precision:.1%} of the time, at least {self.lower:.1%} ({self.records} labels)"
        if not self.records:
            return "no labels yet"
        return f"{self.records} labels, {self.precision:.1%} right, shown {self.lower:.1%}: too little"


SHUT: Final = Gate()


def calibrated(logprobs: Mapping[str, float], means: Mapping[str, float]) -> tuple[str, float]:
    """The likeliest label once its prior is taken off, and its share.

    Args:
        logprobs: Of at least one label.
        means: A label without a mean keeps its own log-probability only while no label has one.
    """
    default = sum(means.values()) / len(means) if means else 0.0
    scores = {label: value - means.get(label, default) for label, value in logprobs.items()}
    best = max(scores, key=scores.__getitem__)
    total = sum(math.exp(value - scores[best]) for value in scores.values())
    return best, 1 / total


def work_out(records: Sequence[Record], *, target: float) -> Gate:
    """The gate that these records allow.

    Args:
        records: The latest ones, in any order.
        target: Share of the paid model's quality to keep over all the intent's jobs: an answer kept wrongly costs one.
    """
    means = _means(records)
    read = [(calibrated(record.logprobs, means), record.paid) for record in records]
    return replace(_open_at([(share, label == paid) for (label, share), paid in read], target=target), means=means)


def work_out_scored(records: Sequence[Scored], *, target: float) -> Gate:
    """The same where no prior is to be taken off."""
    return _open_at([(record.score, record.right) for record in records], target=target)


def _open_at(read: Sequence[tuple[float, bool]], *, target: float) -> Gate:
    """The gate of answers with these scores, of which these were right."""
    if not read:
        return SHUT
    ordered = sorted(read, key=lambda each: each[0], reverse=True)
    for share in SHARES:
        kept = int(share * len(ordered) + 1e-9)
        if not kept:
            continue
        while kept < len(ordered) and ordered[kept][0] == ordered[kept - 1][0]:  # the threshold would keep these too
            kept += 1
        right = sum(is_right for _, is_right in ordered[:kept])
        lower = clopper_pearson_lower(right, kept, 1 - (1 - SURE) / len(SHARES))
        if lower >= 1 - (1 - target) * len(ordered) / kept:
            return Gate({}, ordered[kept - 1][0], len(read), right / kept, lower, kept / len(read))
    right = sum(is_right for _, is_right in ordered)
    return Gate({}, None, len(read), right / len(read), clopper_pearson_lower(right, len(read), SURE))


def clopper_pearson_lower(right: int, of: int, sure: float) -> float:
    """The share that lies below the true one with this confidence: the p at which so many or more right have chance 1 - sure."""
    if right <= 0:
        return 0.0
    low, high = 0.0, right / of
    for _ in range(50):
        middle = (low + high) / 2
        if _at_least(right, of, middle) > 1 - sure:
            high = middle
        else:
            low = middle
    return low


def _at_least(right: int, of: int, p: float) -> float:
    """P(X >= right), X binomial."""
    if p <= 0:
        return 0.0
    log_p, log_q = math.log(p), math.log1p(-p) if p < 1 else -math.inf
    total = 0.0
    for k in range(right, of + 1):
        rest = of - k
        term = math.lgamma(of + 1) - math.lgamma(k + 1) - math.lgamma(rest + 1) + k * log_p
        total += math.exp(term + (rest * log_q if rest else 0.0))
    return min(1.0, total)


def _means(records: Sequence[Record]) -> dict[str, float]:
    sums: dict[str, float] = {}
    counts: dict[str, int] = {}
    for record in records:
        for label, value in record.logprobs.items():
            sums[label] = sums.get(label, 0.0) + value
            counts[label] = counts.get(label, 0) + 1
    return {label: total / counts[label] for label, total in sums.items()}
