"""What a provider's rate limits allow: classes of models, start values, and the arithmetic of the fleet's buckets.

Continuous refill, as both providers describe it: a limit of n a minute refills n/60 a second up to a capacity of
`burst_s` seconds' worth; there is no window with an edge. A call reserves before it starts and is settled with the truth.
`Bucket` below is the arithmetic in full. workers/limiter.lua does the same in one atomic step on the server; a property
test runs both over the same sequences and compares every level (tests/contract/test_limiter_arithmetic.py).

Sources: providers.md 1.5 and 2.4 of the project's reference (classes, headers, OpenAI's ramp rule, read 2026-11).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from policies.fallback import PARK_MAX_S, GiveUp, History, Reroute, decide
from waybill.errors import Rejected, Throttled

DIMENSIONS: Final = ("r", "i", "o", "t", "g")
"""Requests, input tokens, output tokens, both together (OpenAI), and growth of input tokens (OpenAI's ramp rule)."""
MEASURED: Final = ("r", "i", "o", "t")
"""The dimensions that headers speak of."""

SLEEP_MAX_S: Final = 0.25
"""A shorter wait is slept in the coroutine; a longer one is parked."""
COLD_IN_FLIGHT: Final = 4
"""Calls of the whole fleet that may be under way before a lane's first answer has told its limits."""
WINS_PER_STEP: Final = 20
"""Successes after which one more call may be in flight."""
CUT_EVERY_US: Final = 1_000_000
"""The cap is halved at most once in this time: one overload makes many calls fail together."""
HEADERS_AGREE: Final = 8
"""Answers in a row that must all say that less is left than we believe, before the smallest difference is taken off."""
SLOT_LEASE_US: Final = 12_000_000
"""A slot in flight whose worker is gone is free again after this."""
RAMP_TOKENS: Final = 1_000_000
"""OpenAI: above this many input tokens a minute, use may grow by at most a half in 15 minutes."""
RAMP_PERIOD_US: Final = 15 * 60 * 1_000_000
RAMP_GROWTH: Final = 1.5

_POOLED: Final = re.compile(r"claude-(?:(opus|sonnet)-(4)|(fable)-(5))(?:-\d+)*$")

OutputCounted = Literal["at_start", "as_generated"]


@dataclass(frozen=True, slots=True)
class LimitSpec:
    """Limits of a lane as the policy file gives them. What headers say can only lower these.

    Attributes:
        requests_per_minute, input_tokens_per_minute, output_tokens_per_minute, tokens_per_minute: None = not given:
            learned from the headers of the first answers.
        burst_s: How many seconds' worth a full bucket holds.
        interactive_reserve: Share of the capacity that batch work leaves alone.
        in_flight: Most calls under way at once, over the whole fleet.
        output_counted: When the provider charges output: at its `max_tokens` when the call starts (OpenAI's
            documentation; the sandbox; the safe belief about Claude), or as it is generated.
    """

    requests_per_minute: int | None = None
    input_tokens_per_minute: int | None = None
    output_tokens_per_minute: int | None = None
    tokens_per_minute: int | None = None
    burst_s: float = 60.0
    interactive_reserve: float = 0.1
    in_flight: int = 1000
    output_counted: OutputCounted = "at_start"

    def ceilings(self) -> dict[str, int]:
        """Limit per minute by dimension; 0 = not given."""
        return {
            "r": self.requests_per_minute or 0,
            "i": self.input_tokens_per_minute or 0,
            "o": self.output_tokens_per_minute or 0,
            "t": self.tokens_per_minute or 0,
        }


def limit_class(model_id: str) -> str:
    """Models that share one set of limits: Claude Opus 4.x, Sonnet 4.x and Fable 5.x are pooled, others stand alone."""
    pooled = _POOLED.fullmatch(model_id)
    if pooled is None:
        return model_id
    family, major = (pooled[1], pooled[2]) if pooled[1] else (pooled[3], pooled[4])
    return f"claude-{family}-{major}.x"


def spec_for(model_id: str, specs: Mapping[str, LimitSpec]) -> LimitSpec:
    """The policy file's entry for a model: by its id, else by its class, else `*`, else nothing is known."""
    return specs.get(model_id) or specs.get(limit_class(model_id)) or specs.get("*") or LimitSpec()


@dataclass(frozen=True, slots=True)
class Need:
    """What a call takes when it starts (whole tokens; one request).

    Attributes:
        input, output: Reserved.
        least_input, least_output: What it surely takes: above the limit it can never be admitted.
    """

    input: int
    output: int
    least_input: int = 0
    least_output: int = 0

    def amounts(self) -> dict[str, int]:
        """By dimension."""
        return {"r": 1, "i": self.input, "o": self.output, "t": self.input + self.output, "g": self.input}

    def least(self) -> dict[str, int]:
        """By dimension; growth is never too small for a single call."""
        return {
            "r": 1,
            "i": self.least_input,
            "o": self.least_output,
            "t": self.least_input + self.least_output,
            "g": 0,
        }


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer to one reservation.

    Attributes:
        kind: `admitted`; `rate`: a bucket lacks enough; `busy`: enough calls are under way; `blocked`: the provider asked
            to be left alone; `queue`: others wait in front; `never`: larger than a limit.
        wait_us: When it would fit, as far as the buckets can tell.
    """

    kind: Literal["admitted", "rate", "busy", "blocked", "queue", "never"]
    wait_us: int = 0

    @property
    def wait_s(self) -> float:
        """The wait in seconds."""
        return self.wait_us / 1e6


ADMITTED: Final = Verdict("admitted")
BUSY_WAIT_US: Final = 50_000
Outcome = Literal["begun", "ok", "done", "throttled", "overloaded", "failed", "unused"]


@dataclass(frozen=True, slots=True)
class Told:
    """What an answer's headers said, by dimension of `MEASURED`; absent = not said."""

    limit: Mapping[str, int] = field(default_factory=dict)
    remaining: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Ticket:
    """Levels and counters right after a reservation: what the headers of its answers are compared with."""

    level: Mapping[str, float] = field(default_factory=dict)
    reserved: Mapping[str, float] = field(default_factory=dict)
    lowered: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Settlement:
    """How a reserved call ended.

    Attributes:
        slot: Name of the reservation.
        reserved: What it took.
        used_input, used_output: What the provider counted; Claude's cache reads are not in it, OpenAI's are.
        outcome: `begun` = a streamed answer begins: the provider has taken the call, which goes on; `done` = the end of one
            whose beginning was told; `throttled` = 429, `overloaded` = 529 and 503, `failed` = anything else, `unused` = no call was made.
        retry_us: How long the provider asked to be left alone, jitter included; 0 = not said.
        told: Its headers.
        ticket: From the reservation.
    """

    slot: str
    reserved: Need
    used_input: int
    used_output: int
    outcome: Outcome = "ok"
    retry_us: int = 0
    told: Told = field(default_factory=Told)
    ticket: Ticket = field(default_factory=Ticket)


def turned_away(verdict: Verdict, history: History, *, is_batch: bool, jitter: float) -> Reroute | GiveUp | None:
    """What becomes of a job that was not admitted; None = it waits in line for this lane.

    Another lane is tried when waiting cannot help (`never`), when it would take longer than the job has, when the provider
    has asked for more than `PARK_MAX_S`, and for interactive work also when the line is that long. Batch work waits for
    quota however long it takes: that is the cheapest way that meets its deadline.
    """
    lane = history.lane
    if verdict.kind == "never":
        decision = decide(
            Rejected(f"the call is larger than what {lane} allows in a minute", code="over_limit"),
            history,
            jitter=jitter,
        )
        return decision if isinstance(decision, Reroute | GiveUp) else None
    too_late = history.slack_s is not None and verdict.wait_s > history.slack_s
    is_outage = verdict.kind == "blocked" or not is_batch
    if not too_late and not (is_outage and verdict.wait_s > PARK_MAX_S):
        return None
    why = f"no quota for {verdict.wait_s:.0f} s ({verdict.kind})"
    decision = decide(Throttled(why, code="no_quota", retry_after_s=verdict.wait_s), history, jitter=jitter)
    if isinstance(decision, Reroute) or (isinstance(decision, GiveUp) and too_late):
        return decision
    return None


@dataclass(slots=True)
class Bucket:
    """The limits of one account and class of models. All times are microseconds; they may not go back (that counts as 0).

    A dimension whose limit is not known yet holds back nothing; its level then is minus what is under way, so that the
    first header can be read correctly. Levels may go below zero when a call used more than it had reserved.
    """

    spec: LimitSpec
    ramp: bool = False
    lease_us: int = SLOT_LEASE_US
    at: int | None = None
    level: dict[str, float] = field(default_factory=dict)
    limit_told: dict[str, int] = field(default_factory=dict)
    reserved: dict[str, float] = field(default_factory=dict)
    lowered: dict[str, float] = field(default_factory=dict)
    least_gap: dict[str, float] = field(default_factory=dict)
    gaps: dict[str, int] = field(default_factory=dict)
    slots: dict[str, int] = field(default_factory=dict)
    cap: float | None = None
    wins: int = 0
    cut_at: int = 0
    blocked: int = 0
    is_known: bool = False
    ramp_limit: float | None = None
    ramp_used: float = 0.0
    ramp_began: int = 0

    def limit(self, dimension: str) -> float:
        """Per minute; 0 = not known. The smaller of file and header."""
        if dimension == "g":
            return self.ramp_limit or 0.0
        given, told = self.spec.ceilings()[dimension], self.limit_told.get(dimension, 0)
        return min(given, told) if given and told else given or told

    def capacity(self, dimension: str) -> float:
        """What a full bucket holds; 0 = limit not known."""
        return self.limit(dimension) * self.spec.burst_s / 60

    def refill(self, now: int) -> None:
        """Bring all levels to `now`."""
        passed = 0.0 if self.at is None else max(0, now - self.at) / 1e6
        self.at = now if self.at is None else max(self.at, now)
        for d in DIMENSIONS:
            limit = self.limit(d)
            if limit:
                capacity = self.capacity(d)
                self.level[d] = min(capacity, self.level.get(d, capacity) + limit / 60 * passed)
        for slot in [slot for slot, until in self.slots.items() if until <= now]:
            del self.slots[slot]
        self._refill_ramp(now)

    def _refill_ramp(self, now: int) -> None:
        if not self.ramp or self.limit("t") <= RAMP_TOKENS:
            return
        if self.ramp_limit is None:
            self.ramp_limit, self.ramp_began, self.ramp_used = float(RAMP_TOKENS), now, 0.0
            self.level["g"] = self.capacity("g")
        elif now - self.ramp_began >= RAMP_PERIOD_US:
            a_minute = self.ramp_used / ((now - self.ramp_began) / 6e7)
            self.ramp_limit = max(float(RAMP_TOKENS), RAMP_GROWTH * a_minute)
            self.ramp_began, self.ramp_used = now, 0.0

    def most_in_flight(self) -> float:
        """How many calls may be under way."""
        cap = self.cap or self.spec.in_flight
        return cap if self.is_known else min(COLD_IN_FLIGHT, cap)

    def reserve(
        self, calls: Sequence[tuple[str, Need]], *, is_batch: bool, now: int
    ) -> tuple[tuple[Verdict, ...], Ticket]:
        """Reserve for each of `calls` (slot name, need) all it needs or nothing, in order.

        After one that has to wait the rest waits too: small calls must not starve a large one.
        """
        self.refill(now)
        verdicts: list[Verdict] = []
        stopped = False
        for slot, need in calls:
            verdict = self._reserve_one(slot, need, is_batch=is_batch, now=now, stopped=stopped)
            stopped = stopped or verdict.kind not in ("admitted", "never")
            verdicts.append(verdict)
        return tuple(verdicts), self.ticket()

    def _reserve_one(self, slot: str, need: Need, *, is_batch: bool, now: int, stopped: bool) -> Verdict:
        amounts, least = need.amounts(), need.least()
        if any(self.limit(d) and least[d] > self.limit(d) for d in DIMENSIONS):
            return Verdict("never")
        if self.blocked > now:
            return Verdict("blocked", self.blocked - now)
        share = self.spec.interactive_reserve if is_batch else 0.0
        wait = 0.0
        for d in DIMENSIONS:
            limit = self.limit(d)
            if limit:
                capacity = self.capacity(d)
                wanted = min(amounts[d] + share * capacity, capacity)
                if self.level[d] < wanted:
                    wait = max(wait, (wanted - self.level[d]) / (limit / 60))
        if wait > 0:
            return Verdict("rate", int(wait * 1e6) + 1)
        if len(self.slots) >= self.most_in_flight():
            return Verdict("busy", BUSY_WAIT_US)
        if stopped:
            return Verdict("queue", BUSY_WAIT_US)
        for d in DIMENSIONS:
            self.level[d] = self.level.get(d, 0.0) - amounts[d]
            self.reserved[d] = self.reserved.get(d, 0.0) + amounts[d]
        if self.ramp_limit is not None:
            self.ramp_used += amounts["g"]
        self.slots[slot] = now + self.lease_us
        return ADMITTED

    def ticket(self) -> Ticket:
        """The state that headers of answers are compared with."""
        known = [d for d in MEASURED if self.limit(d)]
        return Ticket(
            {d: self.level[d] for d in known},
            {d: self.reserved.get(d, 0.0) for d in known},
            {d: self.lowered.get(d, 0.0) for d in known},
        )

    def settle(self, ended: Settlement, *, now: int) -> None:
        """Replace what was reserved by what was used, then read the headers, then the outcome.

        A slot that is gone (its lease expired, or it was settled before) gives nothing back: a settlement that arrives
        twice must not refund twice. Headers of such a call are still read.

        That a call was taken, and the headers, are known when its answer begins: a lane is not held at a few calls until
        the first long answer has ended. The first level told then counts the call itself twice, until it ends.
        """
        self.refill(now)
        if ended.outcome != "begun" and self.slots.pop(ended.slot, None) is not None:
            self._refund(ended)
        if ended.outcome == "unused":
            return
        for d in MEASURED:
            self._learn_limit(d, ended.told)
        for d in MEASURED:
            if ended.outcome in ("ok", "begun") and d in ended.told.remaining and self.limit(d):
                self._lower(d, ended.told.remaining[d], ended.ticket)
        self._adapt(ended, now)

    def _refund(self, ended: Settlement) -> None:
        reserved = ended.reserved.amounts()
        requests = 0 if ended.outcome == "unused" else 1
        used = {
            "r": requests,
            "i": ended.used_input,
            "o": ended.used_output,
            "t": ended.used_input + ended.used_output,
            "g": ended.used_input,
        }
        for d in DIMENSIONS:
            if self.limit(d):
                self.level[d] = min(self.capacity(d), self.level[d] + (reserved[d] - used[d]))
            else:
                self.level[d] = self.level.get(d, 0.0) + reserved[d]
        if self.ramp_limit is not None:
            self.ramp_used = max(0.0, self.ramp_used + (used["g"] - reserved["g"]))

    def _learn_limit(self, d: str, told: Told) -> None:
        limit = told.limit.get(d, 0)
        if not limit or self.limit_told.get(d) == limit:
            return
        was_known, was_told = bool(self.limit(d)), d in self.limit_told
        self.limit_told[d] = limit
        capacity = self.capacity(d)
        if was_known:
            self.level[d] = min(capacity, self.level[d])
        else:
            # The level of an unknown dimension is minus what is under way: it may not have reached the provider yet.
            self.level[d] = capacity + self.level.get(d, 0.0)
        if not was_told and d in told.remaining:
            self.level[d] = min(self.level[d], told.remaining[d] + (0.0 if was_known else self.level[d] - capacity))

    def _lower(self, d: str, remaining: int, ticket: Ticket) -> None:
        """Believe a header only as far as it must be true, and only downwards.

        It tells the level when the provider took the call, an answer's time ago, with output at max_tokens for what was
        under way; taken as the level of now it would swallow every refund since. So it is compared with our own level
        right after the reservation. The difference less all reservations made since is certain and is taken off at
        once. The rest may be others' calls that overtook ours: it is taken off when several answers in a row agree.
        """
        if d not in ticket.level:
            return
        corrected = self.lowered.get(d, 0.0) - ticket.lowered[d]
        gap = (ticket.level[d] - corrected) - remaining
        certain = gap - (self.reserved.get(d, 0.0) - ticket.reserved[d])
        if certain > 0:
            self._take_off(d, certain)
            return
        self.least_gap[d] = min(self.least_gap.get(d, gap), gap)
        self.gaps[d] = self.gaps.get(d, 0) + 1
        if self.gaps[d] >= HEADERS_AGREE:
            self._take_off(d, max(0.0, self.least_gap[d]))

    def _take_off(self, d: str, amount: float) -> None:
        self.level[d] -= amount
        self.lowered[d] = self.lowered.get(d, 0.0) + amount
        self.least_gap.pop(d, None)
        self.gaps.pop(d, None)

    def _adapt(self, ended: Settlement, now: int) -> None:
        if ended.outcome in ("ok", "begun"):
            self._grow(2 if ended.outcome == "begun" else 1)
            return
        if ended.outcome not in ("throttled", "overloaded"):
            return
        if now - self.cut_at >= CUT_EVERY_US:
            under_way = len(self.slots) + 1
            self.cap = max(1.0, float(int(min(self.cap or self.spec.in_flight, under_way) / 2)))
            self.cut_at, self.wins = now, 0
        if ended.retry_us > 0:
            self.blocked = max(self.blocked, now + ended.retry_us)
        if ended.outcome == "throttled":
            self._empty(ended)

    def _grow(self, by: int) -> None:
        self.is_known = True
        # A provider that tells no limits is felt for: one more with each success until it first complains,
        # two with each that begins, for that one keeps its place. So what is under way doubles with each round.
        feeling = self.cut_at == 0 and not any(self.limit(d) for d in MEASURED)
        if self.cap is None:
            if not feeling:
                return
            self.cap = float(COLD_IN_FLIGHT)
        self.wins += 1
        if feeling or self.wins >= WINS_PER_STEP:
            self.cap, self.wins = min(float(self.spec.in_flight), self.cap + (by if feeling else 1)), 0

    def _empty(self, ended: Settlement) -> None:
        """After a 429 our level was wrong: at the end of the wait just this call fits, and the lane starts from there."""
        amounts = ended.reserved.amounts()
        for d in MEASURED:
            if self.limit(d):
                until = amounts[d] - self.limit(d) / 60 * (ended.retry_us / 1e6)
                if self.level[d] > until:
                    self._take_off(d, self.level[d] - until)
