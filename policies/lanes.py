"""Which lane a job takes, by when it is due: the least expected cost with P(done in time) at least the policy's target. Pure.

A cheap lane (flex, batch) is taken with a way out: when the time left gets down to `leave_s` the job goes to the
interactive lane of the same model. Both charges are then paid, so taking a cheap lane and leaving it costs
`cheap + P(not done by then) * interactive`; that is what is compared with going interactive at once.

Times of lanes are the fleet's own (workers/lanetimes.py reads them from the ledger) mixed with priors, which count as much
as a few observations. The rows of one batch end together, so that a batch is one observation, however many rows.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from math import exp, log
from typing import Final

RANKS: Final = (0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999)
"""Shares of the answers for which a `Latency` knows the seconds."""
PRIOR_WEIGHT: Final = {"interactive": 20, "local": 20, "flex": 10, "batch": 4}
"""Observations that a prior counts for. A wrong belief about a cheap lane costs money, one about the last lane deadlines."""
ALL_MODELS: Final = "*"
"""In the name of a lane: all models of its provider."""
RECENT: Final = {"batch": 12}
RECENT_USUAL: Final = 500
"""Latest observations of a lane that count: the load of providers lasts for hours, and shows in batches first."""
HEDGES: Final = (0.9975, 0.99, 0.97, 0.9)
"""How sure the interactive call that follows a lane in time may be: what is probably done anyway can be left late."""
HEDGE_S: Final = 10.0
"""Beside the time of the interactive call itself: until the hedge is seen, rung, claimed and admitted."""
WORTH: Final = Decimal("1.01")
"""A saving below this is none: the lane that stands first is taken."""
EVEN: Final = 0.75
"""A row that was not done is sent to its cheap lane again where it will be done in time with at least this probability."""


@dataclass(frozen=True, slots=True)
class LaneRules:
    """The policy file's `[lanes]`.

    Attributes:
        target: Least probability that a job is done when it is due.
        services: Which services may be used beside the interactive one; the first is preferred where they cost the same.
    """

    target: float = 0.995
    services: tuple[str, ...] = ("flex", "batch")


@dataclass(frozen=True, slots=True)
class Latency:
    """How long a lane takes.

    Attributes:
        seconds: At `RANKS`, of those that were answered; not falling.
        count: Observations it comes from.
        answered: Share that was answered at all.
    """

    seconds: tuple[float, ...]
    count: int
    answered: float = 1.0

    def done_by(self, within_s: float) -> float:
        """Share that is answered within these seconds; between two ranks by the logarithm of time."""
        if within_s <= 0:
            return 0.0
        place = bisect_left(self.seconds, within_s)
        if place == 0:
            return self.answered * RANKS[0] * within_s / self.seconds[0]
        if place == len(self.seconds):
            return self.answered * RANKS[-1]
        low, high = self.seconds[place - 1], self.seconds[place]
        part = 1.0 if high <= low else log(within_s / low) / log(high / low)
        return self.answered * (RANKS[place - 1] + part * (RANKS[place] - RANKS[place - 1]))


def _prior(median_s: float, p95_s: float, p999_s: float, answered: float = 1.0) -> Latency:
    """Log-normal up to the 95th percentile, and a tail that reaches `p999_s`."""
    spread = log(p95_s / median_s) / 1.645
    points = []
    for rank, normal in zip(RANKS, _NORMAL, strict=True):
        if rank <= 0.95:
            points.append(median_s * exp(spread * normal))
        else:
            points.append(p95_s * exp(log(p999_s / p95_s) * (normal - 1.645) / (3.090 - 1.645)))
    return Latency(tuple(points), 0, answered)


# Quantiles of the normal distribution at RANKS.
_NORMAL: Final = (
    -2.326, -1.645, -1.282, -0.842, -0.524, -0.253, 0.0, 0.253, 0.524, 0.842, 1.282, 1.645, 2.054, 2.326, 2.576, 3.090,
)  # fmt: skip
PRIORS: Final[Mapping[str, Latency]] = {
    "interactive": _prior(5, 30, 180),
    "local": _prior(2, 20, 120),
    # Half price for patience; the advised timeout is 15 minutes (providers.md 2.6).
    "flex": _prior(20, 240, 1800),
    # "Most batches finish in less than an hour"; the tail to 24 h is real (anchors-gateways.md 2b).
    "batch": _prior(1500, 5400, 80_000, answered=0.995),
}
"""What is believed of a service before the fleet has seen it."""


@dataclass(frozen=True, slots=True)
class Times:
    """A lane's own latency, mixed with that of all models of its provider, mixed with the prior of its service."""

    service: str
    own: Latency | None = None
    pool: Latency | None = None

    def done_by(self, within_s: float) -> float:
        """P(answered within these seconds)."""
        share = PRIORS[self.service].done_by(within_s)
        for latency in (self.pool, self.own):
            if latency is not None and latency.count:
                weight = latency.count / (latency.count + PRIOR_WEIGHT[self.service])
                share = weight * latency.done_by(within_s) + (1 - weight) * share
        return share

    def needs_s(self, share: float) -> float:
        """Seconds after which this share is answered; what more than are ever answered gets the longest time known."""
        return _needs_s(self, share)


@lru_cache(maxsize=10_000)
def _needs_s(times: Times, share: float) -> float:
    known = [latency for latency in (PRIORS[times.service], times.pool, times.own) if latency is not None]
    low, high = 0.0, max(latency.seconds[-1] for latency in known)
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if times.done_by(middle) >= share else (middle, high)
    return high


@dataclass(frozen=True, slots=True)
class Offer:
    """A lane that could take the job.

    Attributes:
        service: Of the lane.
        usd: What the job is expected to cost there.
        times: How long it takes.
        wait_s: Until it is sent at all: a batch is gathered first.
    """

    service: str
    usd: Decimal
    times: Times
    wait_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Weighed:
    """An offer and what taking it means.

    Attributes:
        service: Of the lane.
        usd: Its own price for the job.
        expected_usd: With the interactive call that follows where it is not done in time.
        in_lane: P(done in this lane before the job leaves it).
        in_time: P(done when due), the hedge included.
        leave_s: How long before it is due the job leaves; 0 for the interactive lane.
    """

    service: str
    usd: Decimal
    expected_usd: Decimal
    in_lane: float
    in_time: float
    leave_s: float = 0.0

    def as_json(self) -> dict[str, object]:
        """For the decision's row: all the figures that were compared."""
        return {
            "service": self.service,
            "usd": str(self.usd),
            "expected_usd": str(self.expected_usd.quantize(Decimal("0.0000000001"))),
            "in_lane": round(self.in_lane, 5),
            "in_time": round(self.in_time, 5),
            "leave_s": round(self.leave_s, 1),
        }


@dataclass(frozen=True, slots=True)
class Choice:
    """The lane to take, and everything that was weighed (the interactive lane first)."""

    taken: Weighed
    weighed: tuple[Weighed, ...]
    reason: str


def choose(last: Offer, cheaper: Sequence[Offer], *, due_s: float, target: float) -> Choice:
    """Choose between the interactive lane and cheaper ones.

    Args:
        last: The interactive lane: always there, the way out of the others.
        cheaper: Other lanes of the same model.
        due_s: Seconds until the answer is due.
        target: Least P(in time).

    Returns:
        The least expected cost among those that reach the target (the first of them where they differ by less than 1 %);
        where none does, the likeliest to be in time.
    """
    usual = Weighed(last.service, last.usd, last.usd, done := last.times.done_by(due_s), done)
    weighed = [usual, *(_weigh(offer, last, due_s, target) for offer in cheaper)]
    able = [one for one in weighed if one.in_time >= target]
    if able:
        least = min(one.expected_usd for one in able)
        taken = next(one for one in able if one.expected_usd <= least * WORTH)
    else:
        taken = max(weighed, key=lambda one: (one.in_time, -one.expected_usd))
    return Choice(taken, tuple(weighed), _reason(taken, usual, due_s, target, reached=bool(able)))


def _weigh(offer: Offer, last: Offer, due_s: float, target: float) -> Weighed:
    """The offer left at the best moment: as late as the target allows, since each minute there may save the second call."""
    ways = [_left_at(offer, last, due_s, share) for share in HEDGES]
    able = [way for way in ways if way.in_time >= target]
    return min(able, key=lambda way: way.expected_usd) if able else max(ways, key=lambda way: way.in_time)


def _left_at(offer: Offer, last: Offer, due_s: float, share: float) -> Weighed:
    leave = last.times.needs_s(share) + HEDGE_S
    in_lane = offer.times.done_by(due_s - leave - offer.wait_s)
    rest = last.times.done_by(min(leave, due_s) - HEDGE_S)
    expected = offer.usd + last.usd * Decimal(1 - in_lane)
    return Weighed(offer.service, offer.usd, expected, in_lane, in_lane + (1 - in_lane) * rest, leave)


def _reason(taken: Weighed, usual: Weighed, due_s: float, target: float, *, reached: bool) -> str:
    due = span(due_s)
    if not reached:
        return f"due in {due}: no lane is done by then with p >= {target:g}; {taken.service} comes nearest, p = {taken.in_time:.4f}"
    if taken.service == usual.service:
        return f"due in {due}: no cheaper lane pays"
    return (
        f"due in {due}: {taken.service} at ${_short(taken.usd)}, done before it has to be left with p = {taken.in_lane:.3f},"
        f" so expected ${_short(taken.expected_usd)} against ${_short(usual.usd)} {usual.service}; in time with"
        f" p = {taken.in_time:.4f} (target {target:g}), as it leaves {span(taken.leave_s)} before it is due"
    )


def _short(usd: Decimal) -> str:
    return f"{usd:.3g}" if usd and usd < 1 else f"{usd:.2f}"


def span(seconds: float) -> str:
    """A length of time for people: `45 s`, `12 min`, `3.5 h`."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.3g} h"
