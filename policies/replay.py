"""What another policy would have come to on one's own ledger, with intervals and without a call: a doubly robust estimate.

For each job: what is expected of the model that the other policy puts first (the mean of the jobs that began with it, in the
same intent), plus, where the ledger's own choice was the same, what that job really came to beside the expectation, weighed by
one over the chance of the choice. Either the expectations or the chances being right is enough. Where no job of the intent ever
began with the model, its cost is the same tokens at its list price and its quality is not known.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

_SURE: Final = 1.96
"""Standard errors on either side: 95 %."""
_LEAST: Final = 2
"""Jobs from which on a mean is used."""


@dataclass(frozen=True, slots=True)
class Played:
    """A job as it was.

    Attributes:
        intent: As it was routed.
        model: The first candidate: what was chosen.
        propensity: The chance of that choice, above 0.
        usd: What all its attempts cost.
        late: 1 when it ended after its deadline or not at all for it, 0 when it did not; None without a deadline.
        score: Grade of the answer; None where it has none.
    """

    intent: str
    model: str
    propensity: float
    usd: float
    late: float | None = None
    score: float | None = None


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean over jobs with its 95 % interval, and how many jobs it rests on."""

    mean: float
    low: float
    high: float
    jobs: int


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a policy comes to.

    Attributes:
        usd: Cost of a job.
        late: Share of the jobs with a deadline that miss it; None when none has one.
        score: Mean grade; None when nothing can be said.
        unknown: (intent, model) of which the ledger has seen nothing, with the number of jobs.
        ungraded: Jobs left out of `score`, as no answer of that model to that intent is graded.
    """

    usd: Interval
    late: Interval | None
    score: Interval | None
    unknown: Mapping[tuple[str, str], int] = field(default_factory=dict)
    ungraded: int = 0


@dataclass(slots=True)
class _Mean:
    count: int = 0
    total: float = 0.0
    squares: float = 0.0

    def add(self, value: float) -> None:
        self.count += 1
        self.total += value
        self.squares += value * value

    @property
    def mean(self) -> float:
        return self.total / self.count

    @property
    def error(self) -> float:
        """Standard error of the mean."""
        spread = max(0.0, self.squares / self.count - self.mean**2) * self.count / max(1, self.count - 1)
        return math.sqrt(spread / self.count)


def replay(played: Sequence[Played], choices: Sequence[str], list_usd: Sequence[float | None]) -> Estimate:
    """Estimate what the choices would have come to.

    Args:
        played: The jobs, at least one.
        choices: For each, the model that the policy puts first.
        list_usd: For each, the tokens of its answer at that model's list price; used where nothing was seen of it.
    """
    unknown: dict[tuple[str, str], int] = {}
    seen = _means(played, "usd")
    for job, choice in zip(played, choices, strict=True):
        if (job.intent, choice) not in seen:
            unknown[job.intent, choice] = unknown.get((job.intent, choice), 0) + 1
    usd = _estimate(played, choices, "usd", list_usd)
    assert usd is not None
    score = _estimate(played, choices, "score")
    graded = _means(played, "score")
    ungraded = sum((job.intent, choice) not in graded for job, choice in zip(played, choices, strict=True))
    return Estimate(usd, _estimate(played, choices, "late"), score, unknown, ungraded)


def _means(played: Sequence[Played], name: str) -> dict[tuple[str, str], _Mean]:
    found: dict[tuple[str, str], _Mean] = {}
    for job in played:
        value = getattr(job, name)
        if value is not None:
            found.setdefault((job.intent, job.model), _Mean()).add(value)
    return {key: mean for key, mean in found.items() if mean.count >= _LEAST}


def _estimate(
    played: Sequence[Played], choices: Sequence[str], name: str, stand_in: Sequence[float | None] | None = None
) -> Interval | None:
    """Mean over the jobs that the quantity is defined for, with the error of the terms and that of the expectations."""
    means = _means(played, name)
    terms: list[float] = []
    weights: dict[tuple[str, str], float] = {}
    observed = _observed_share(played, name)
    for number, (job, choice) in enumerate(zip(played, choices, strict=True)):
        if name == "late" and job.late is None:
            continue
        key = (job.intent, choice)
        value: float | None = getattr(job, name)
        if key in means:
            expected: float | None = means[key].mean
        else:
            expected = stand_in[number] if stand_in is not None else None
            if expected is None and job.model == choice:
                expected = value
        if expected is None:
            continue
        correction = 0.0
        if job.model == choice and value is not None:
            # A grade is missing for most jobs: the graded ones stand for the others of their kind.
            correction = (value - expected) / job.propensity / observed.get(key, 1.0)
        terms.append(expected + correction)
        if key in means:
            weights[key] = weights.get(key, 0.0) + (1.0 - (1.0 if correction else 0.0))
    if not terms:
        return None
    count = len(terms)
    mean = sum(terms) / count
    spread = sum((term - mean) ** 2 for term in terms) / max(1, count - 1) / count
    model_error = sum((weight / count * means[key].error) ** 2 for key, weight in weights.items())
    error = math.sqrt(spread + model_error)
    return Interval(mean, mean - _SURE * error, mean + _SURE * error, count)


def _observed_share(played: Sequence[Played], name: str) -> dict[tuple[str, str], float]:
    counts: dict[tuple[str, str], list[int]] = {}
    for job in played:
        both = counts.setdefault((job.intent, job.model), [0, 0])
        both[0] += 1
        both[1] += getattr(job, name) is not None
    return {key: some / all_ for key, (all_, some) in counts.items() if some}
