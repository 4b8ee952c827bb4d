"""Whether a lane is well: a circuit breaker per lane that opens for failures and for getting worse, and who may try it.

closed -> open (nobody calls) -> half_open (a few probes, real jobs) -> recovering (a rate that doubles) -> closed. One value
per lane, shared by the fleet (workers/health.py); times are seconds on one clock, Redis's. An account that was refused as a
whole (key, spend limit, quota) is the same machine with a longer pace, under the name of its provider.

The figures are choices, not measurements, except where a line says so; docs/decisions/0007-health-and-fairness.md.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final, Literal

WINDOW_S: Final = 30.0
"""Failures older than this count no more."""
_SLOTS: Final = 6
FAILURES: Final = 5
"""In the window, when they are at least half of all calls: open. One is enough when nothing at all has succeeded."""
FAILURE_SHARE: Final = 0.5
CALM_S: Final = 60.0
"""Closed for this long, the next opening is as short as the first."""
SUSPECT_MOST_S: Final = 8.0
RAMP_S: Final = 8.0
RAMP_DOUBLES_S: Final = 1.0
OVERDUE_MOST_S: Final = 5.0
"""A probe that no patient job takes is given to an urgent one after this, or after one interval if that is shorter."""
NEW_NORMAL_S: Final = 600.0
"""A lane that answers, only slower than it used to, for this long has a new normal."""

_ENOUGH: Final = 30
"""Answers before a lane has a history to be compared with."""
_DEVIATIONS: Final = 4.0
_TIMES_WORSE: Final = math.log(3)
FIRST_TOKEN_FLOOR_S: Final = 3.0
ANSWER_FLOOR_S: Final = 5.0
"""Below these no answer is called slow: a busy machine of our own can make a fast lane three times slower."""
_OVERHEAD_TOKENS: Final = 20
"""Added to the length of an answer, so that the time to the first token does not make short answers look slow."""
_POOR_SHARE: Final = 0.5
_POOR_TIMES: Final = 3.0

State = Literal["closed", "open", "half_open", "recovering"]


@dataclass(frozen=True, slots=True)
class Pace:
    """How long a breaker stays open and how it is probed.

    Attributes:
        first_s, most_s: Length of the first opening; it doubles with every probe that fails.
        probes: Calls let through in each interval while half open.
    """

    first_s: float
    most_s: float
    probes: int


LANE: Final = Pace(first_s=1.0, most_s=30.0, probes=2)
ACCOUNT: Final = Pace(first_s=30.0, most_s=300.0, probes=1)


@dataclass(frozen=True, slots=True)
class Norm:
    """What is usual for a lane and what it is doing now, of a logarithm (slow, fast and spread: moving averages)."""

    count: int = 0
    mean: float = 0.0
    variance: float = 0.0
    recent: float = 0.0

    def threshold(self) -> float:
        """Above this a value is out of the ordinary."""
        return self.mean + max(_DEVIATIONS * math.sqrt(self.variance), _TIMES_WORSE)

    def after(self, value: float) -> Norm:
        """With one more value. What is far out moves the usual no further than two deviations would."""
        if self.count == 0:
            return Norm(1, value, 0.0, value)
        is_young = self.count < _ENOUGH
        weight = 1 / (self.count + 1) if self.count < 100 else 0.01
        usual = value if is_young else min(value, self.mean + 2 * math.sqrt(self.variance))
        gap = usual - self.mean
        mean = self.mean + weight * gap
        variance = (1 - weight) * (self.variance + weight * gap * gap)
        recent = mean if is_young else self.recent + 0.25 * (value - self.recent)
        return Norm(self.count + 1, mean, variance, recent)

    def is_worse(self, value: float, floor: float) -> bool:
        """Whether a value is out of the ordinary and above an absolute floor (seconds, as a logarithm)."""
        return self.count >= _ENOUGH and value > self.threshold() and value > floor


@dataclass(frozen=True, slots=True)
class Share:
    """How often something happens: usually, and now."""

    count: int = 0
    usual: float = 0.0
    recent: float = 0.0

    def after(self, happened: bool) -> Share:
        """With one more answer."""
        value = float(happened)
        weight = 1 / (self.count + 1) if self.count < 100 else 0.01
        usual = self.usual + weight * (value - self.usual)
        recent = usual if self.count < _ENOUGH else self.recent + 0.1 * (value - self.recent)
        return Share(self.count + 1, usual, recent)

    @property
    def is_worse(self) -> bool:
        """Whether at least half of the recent answers, and three times as many as usual, are so."""
        return self.count >= _ENOUGH and self.recent >= max(_POOR_SHARE, _POOR_TIMES * self.usual)


@dataclass(frozen=True, slots=True)
class Seen:
    """What one call told about its lane. Throttling and requests that are wrong in themselves tell nothing: no Seen.

    Attributes:
        began: When the call was made: what was under way when the lane opened says nothing about a probe.
        failed: The provider was down, overloaded, unreachable.
        malformed: What came back was no answer: cut, garbled, the wrong thing.
        unfit: A whole answer that does not fit what was asked for. May be the job's own fault, so only a rise of it counts.
        refused: The model declined; as `unfit`.
        seconds: Of a whole answer; None when it must not be judged (it failed, or our own process was behind).
        output_tokens: Of that answer.
        first_token_s: Of a streamed answer.
        why: For people, when it failed.
    """

    began: float
    failed: bool = False
    malformed: bool = False
    unfit: bool = False
    refused: bool = False
    seconds: float | None = None
    output_tokens: int = 0
    first_token_s: float | None = None
    why: str = ""


@dataclass(frozen=True, slots=True)
class Breaker:
    """One lane's state. A new one is closed and knows nothing.

    Attributes:
        since: When `state` began; half open: when the present round of probes became due.
        until: Open: when probes become due.
        interval_s: Length of this opening; afterwards, of the last one.
        issued: Half open: probes given out in this round. Recovering: calls let through so far.
        issued_at: When the last of them was.
        out_since: When the lane opened first, in this outage; 0 while closed.
        opened_at: When it opened last.
        streak: Failures in a row; `bad_at`: the last one's time.
        slots: (number of the time slot, good, bad) of the window, oldest first.
        reason: Why it opened, for people.
        is_worse: It opened for having become worse, not for failing.
        first, speed, refusals, malformed: Its history.
    """

    state: State = "closed"
    since: float = 0.0
    until: float = 0.0
    interval_s: float = 0.0
    issued: int = 0
    issued_at: float = 0.0
    out_since: float = 0.0
    opened_at: float = 0.0
    streak: int = 0
    bad_at: float = 0.0
    slots: tuple[tuple[int, int, int], ...] = ()
    reason: str = ""
    is_worse: bool = False
    first: Norm = field(default_factory=Norm)
    speed: Norm = field(default_factory=Norm)
    refusals: Share = field(default_factory=Share)
    malformed: Share = field(default_factory=Share)

    def to_json(self) -> str:
        """As the fleet shares it."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Breaker:
        """The inverse of `to_json`. What cannot be read is a lane that nothing is known about: health is a hint."""
        try:
            data: dict[str, Any] = json.loads(text)
            for name in ("first", "speed"):
                data[name] = Norm(**data[name])
            for name in ("refusals", "malformed"):
                data[name] = Share(**data[name])
            data["slots"] = tuple((int(number), int(good), int(bad)) for number, good, bad in data["slots"])
            return cls(**data)
        except (ValueError, TypeError, KeyError, AttributeError):
            return cls()


ANY_NUMBER: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Outage:
    """Why a lane is not simply taken.

    Attributes:
        reason: For people.
        wait_s: When to look again.
        age_s: How long the outage has lasted.
        spare: Calls that may be let through now all the same (probes, the ramp).
        spare_urgent: As `spare`, for work that must not wait and has another lane to go to.
        is_drained: By hand, or the account is refused: nobody waits for its end who can go elsewhere.
        is_returning: The ramp: in a few seconds everybody may come.
    """

    reason: str
    wait_s: float
    age_s: float = 0.0
    spare: int = 0
    spare_urgent: int = 0
    is_drained: bool = False
    is_returning: bool = False

    @property
    def is_suspicion(self) -> bool:
        """Whether the lane is closed all the same: only urgent work keeps away from it for a moment."""
        return self.spare >= ANY_NUMBER

    def blocks(self, *, urgent: bool) -> bool:
        """Whether nothing more is let through now."""
        return (self.spare_urgent if urgent else self.spare) <= 0


def advance(breaker: Breaker, now: float) -> Breaker:
    """The breaker at `now`: what time alone changes."""
    if breaker.state == "open" and now >= breaker.until:
        return replace(breaker, state="half_open", since=breaker.until, issued=0)
    if breaker.state == "half_open" and breaker.issued > 0 and now >= breaker.issued_at + breaker.interval_s:
        return replace(breaker, since=now, issued=0)
    if breaker.state == "recovering" and now >= breaker.since + RAMP_S:
        return replace(breaker, state="closed", since=now, issued=0, out_since=0.0, reason="", is_worse=False)
    return breaker


def observe(breaker: Breaker, seen: Seen, now: float, pace: Pace = LANE) -> Breaker:
    """The breaker after a call has ended."""
    breaker = advance(breaker, now)
    if breaker.state == "open":
        return breaker  # the others that were under way; they say nothing new
    is_bad = seen.failed or seen.malformed
    if breaker.state == "half_open":
        return _after_probe(breaker, seen, now, pace, is_bad=is_bad)
    breaker = _counted(breaker, seen, now, is_bad=is_bad)
    why = _why_open(breaker, seen, pace)
    if why is None:
        return breaker
    return _opened(breaker, now, pace, reason=why, is_worse=not is_bad)


def _counted(breaker: Breaker, seen: Seen, now: float, *, is_bad: bool) -> Breaker:
    width = WINDOW_S / _SLOTS
    number = int(now // width)
    slots = [slot for slot in breaker.slots if slot[0] > number - _SLOTS]
    if not slots or slots[-1][0] < number:
        slots.append((number, 0, 0))
    last, good, bad = slots[-1]
    slots[-1] = (last, good + (not is_bad), bad + is_bad)
    first, speed = breaker.first, breaker.speed
    if not is_bad and seen.first_token_s is not None:
        first = first.after(_log(seen.first_token_s))
    if not is_bad and seen.seconds is not None:
        speed = speed.after(_pace_of(seen))
    return replace(
        breaker,
        slots=tuple(slots),
        streak=breaker.streak + 1 if is_bad else 0,
        bad_at=now if is_bad else breaker.bad_at,
        first=first,
        speed=speed,
        refusals=breaker.refusals if is_bad else breaker.refusals.after(seen.refused),
        malformed=breaker.malformed if seen.failed else breaker.malformed.after(seen.malformed or seen.unfit),
    )


def _why_open(breaker: Breaker, seen: Seen, pace: Pace) -> str | None:
    good, bad = sum(slot[1] for slot in breaker.slots), sum(slot[2] for slot in breaker.slots)
    if seen.failed or seen.malformed:
        if breaker.state == "recovering" and breaker.streak >= pace.probes:
            return f"failed again on its way back: {seen.why}"
        is_mostly_bad = bad >= FAILURES and bad >= FAILURE_SHARE * (good + bad)
        # One unusable answer is an accident even where nothing else was asked; one "I am down" is not.
        if is_mostly_bad or (good == 0 and (seen.failed or bad >= FAILURES)):
            return f"{bad} of {good + bad} calls in {WINDOW_S:.0f} s failed; the last: {seen.why}"
    if breaker.malformed.is_worse and (seen.malformed or seen.unfit):
        return f"{breaker.malformed.recent:.0%} of its answers cannot be used ({breaker.malformed.usual:.0%} is usual)"
    if seen.failed or seen.malformed:
        return None
    if breaker.refusals.is_worse:
        return f"it refuses {breaker.refusals.recent:.0%} of the work ({breaker.refusals.usual:.0%} is usual)"
    if seen.first_token_s is not None and breaker.first.is_worse(breaker.first.recent, _log(FIRST_TOKEN_FLOOR_S)):
        now_s, usual_s = math.exp(breaker.first.recent), math.exp(breaker.first.mean)
        return f"slow: {now_s:.1f} s to the first token, {usual_s:.1f} s is usual"
    if seen.seconds is not None and breaker.speed.is_worse(breaker.speed.recent, _floor(seen)):
        times = math.exp(breaker.speed.recent - breaker.speed.mean)
        return f"slow: answers take {times:.1f} times as long as usual"
    return None


def _after_probe(breaker: Breaker, seen: Seen, now: float, pace: Pace, *, is_bad: bool) -> Breaker:
    if seen.began < breaker.opened_at:
        return breaker
    if breaker.is_worse and not is_bad and now - breaker.out_since >= NEW_NORMAL_S:
        breaker = replace(breaker, first=Norm(), speed=Norm(), refusals=Share(), malformed=Share())
    is_slow = not is_bad and (
        (seen.first_token_s is not None and breaker.first.is_worse(_log(seen.first_token_s), _log(FIRST_TOKEN_FLOOR_S)))
        or (seen.seconds is not None and breaker.speed.is_worse(_pace_of(seen), _floor(seen)))
        or ((seen.refused or seen.unfit) and breaker.is_worse)
    )
    if is_bad or is_slow:
        why = f"the probe failed: {seen.why}" if is_bad else breaker.reason
        return _opened(breaker, now, pace, reason=why, is_worse=breaker.is_worse and not is_bad)
    return replace(breaker, state="recovering", since=now, issued=0, issued_at=now, streak=0, slots=())


def _opened(breaker: Breaker, now: float, pace: Pace, *, reason: str, is_worse: bool) -> Breaker:
    is_fresh = breaker.state == "closed" and (breaker.interval_s == 0 or now - breaker.since >= CALM_S)
    interval_s = pace.first_s if is_fresh else min(pace.most_s, max(pace.first_s, 2 * breaker.interval_s))
    first, speed, refusals, malformed = breaker.first, breaker.speed, breaker.refusals, breaker.malformed
    return replace(
        breaker,
        state="open",
        since=now,
        opened_at=now,
        until=now + interval_s,
        interval_s=interval_s,
        issued=0,
        out_since=breaker.out_since or now,
        reason=reason,
        is_worse=is_worse,
        # What opened it must not open it once more when it is back.
        first=replace(first, recent=first.mean),
        speed=replace(speed, recent=speed.mean),
        refusals=replace(refusals, recent=refusals.usual),
        malformed=replace(malformed, recent=malformed.usual),
    )


def grant(breaker: Breaker, wanted: int, now: float, *, urgent: bool, pace: Pace = LANE) -> tuple[Breaker, int]:
    """How many of `wanted` calls may start on the lane now, and the breaker that remembers it.

    Urgent calls are no probes as long as patient ones may take that part: a probe can take as long as a call may.
    """
    breaker = advance(breaker, now)
    granted = min(wanted, _spare(breaker, now, pace, urgent=urgent))
    if breaker.state == "closed" or granted <= 0:
        return breaker, max(0, granted)
    return replace(breaker, issued=breaker.issued + granted, issued_at=now), granted


def _spare(breaker: Breaker, now: float, pace: Pace, *, urgent: bool) -> int:
    match breaker.state:
        case "closed":
            return 0 if urgent and is_suspect(breaker, now) else ANY_NUMBER
        case "open":
            return 0
        case "half_open":
            is_overdue = now >= breaker.since + min(OVERDUE_MOST_S, breaker.interval_s)
            if urgent and not is_overdue:
                return 0
            return max(0, (1 if urgent else pace.probes) - breaker.issued)
        case "recovering":
            allowed = pace.probes * 2 ** (max(0.0, now - breaker.since) / RAMP_DOUBLES_S)
            return max(0, int(allowed) - breaker.issued)


def is_suspect(breaker: Breaker, now: float) -> bool:
    """Whether the last call failed a moment ago: closed for those who can wait, but nothing for urgent work to try first."""
    return breaker.streak > 0 and now < breaker.bad_at + min(SUSPECT_MOST_S, 2.0**breaker.streak)


def outage(breaker: Breaker, now: float, pace: Pace = LANE) -> Outage | None:
    """Why the lane is not simply to be taken; None when it is."""
    breaker = advance(breaker, now)
    spare = _spare(breaker, now, pace, urgent=False)
    spare_urgent = _spare(breaker, now, pace, urgent=True)
    age_s = now - breaker.out_since if breaker.out_since else 0.0
    match breaker.state:
        case "closed":
            if spare_urgent:
                return None
            return Outage("its last call failed a moment ago", 1.0, spare=spare)
        case "open":
            how, wait_s = "out of order", breaker.until - now
        case "half_open":
            how = "being probed"
            wait_s = breaker.issued_at + breaker.interval_s - now if breaker.issued else 0.25
        case "recovering":
            how, wait_s = "on its way back", 0.25
    return Outage(
        f"{how}: {breaker.reason}",
        max(0.05, wait_s),
        age_s,
        spare,
        spare_urgent,
        is_drained=pace is ACCOUNT,
        is_returning=breaker.state == "recovering",
    )


def _log(seconds: float) -> float:
    return math.log(max(0.001, seconds))


def _pace_of(seen: Seen) -> float:
    assert seen.seconds is not None  # asked only then
    return _log(seen.seconds) - math.log(seen.output_tokens + _OVERHEAD_TOKENS)


def _floor(seen: Seen) -> float:
    return _log(ANSWER_FLOOR_S) - math.log(seen.output_tokens + _OVERHEAD_TOKENS)
