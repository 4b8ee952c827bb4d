"""What to do after an attempt failed: the same lane again, another lane, later, or never. docs/failures.md is the table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from waybill.contract import BATCH_SERVICE, Candidate
from waybill.errors import Broken, ProviderError, Rejected, Throttled, Unavailable

PARK_MAX_S = 60.0
"""A wait longer than this moves the job to another lane, where there is one."""
CHEAP_TRIES = 3
"""How often a cheap lane is tried in a row when it does not answer."""
CAPACITY_TRIES = 8
CAPACITY_BASE_S = 15.0
CAPACITY_MAX_S = 900.0
"""Waits when the flex tier has no capacity: 15 s doubling to 15 min, three quarters of an hour in all."""
_RETRY_BASE_S = 0.5
_RETRY_MAX_S = 20.0


FITS: Final = "the answer is complete and fits what was asked"


@dataclass(frozen=True, slots=True)
class Accept:
    """The answer becomes the result.

    Attributes:
        data: The parsed object or label, None for free text.
        reason: Why.
        text: What the result says instead of the answer's own text (a calibrated label); None = that text.
    """

    data: object
    reason: str = FITS
    text: str | None = None


@dataclass(frozen=True, slots=True)
class Retry:
    """The same lane again, after a wait (seconds)."""

    delay_s: float
    reason: str


@dataclass(frozen=True, slots=True)
class Reroute:
    """Another lane after a failure (a fallback): the index of the candidate in the route."""

    index: int
    reason: str


@dataclass(frozen=True, slots=True)
class Escalate:
    """A stronger model after a weak answer: the index of the candidate in the route, and what is kept of the answer."""

    index: int
    reason: str
    detail: Mapping[str, Any] | None = None

    @property
    def has_passed(self) -> bool:
        """Whether the answer passed all checks, so that its fingerprint is kept, and a second one is only wanted beside it."""
        return "said" in (self.detail or {})


@dataclass(frozen=True, slots=True)
class Snooze:
    """Later on the same lane; uses up no attempt."""

    delay_s: float
    reason: str


@dataclass(frozen=True, slots=True)
class GiveUp:
    """No further attempt can help: a stable code and a line for the submitter."""

    code: str
    reason: str


Decision = Accept | Retry | Reroute | Escalate | Snooze | GiveUp


@dataclass(frozen=True, slots=True)
class History:
    """What happened to the job so far.

    Attributes:
        route: All candidates.
        index: The one whose attempt just ended.
        used: Attempts used up, this one included if it counts.
        max_attempts: The job's budget over all lanes.
        same_lane: How often this lane has been tried in a row, this attempt included.
        streamed: Whether the waiting client has already seen a part of the answer.
        slack_s: Seconds to the deadline, None without one.
        due_s: Seconds until the answer is wanted, where cheaper lanes may use the time; else None.
    """

    route: Sequence[Candidate]
    index: int
    used: int
    max_attempts: int
    same_lane: int = 1
    streamed: bool = False
    slack_s: float | None = None
    due_s: float | None = None

    @property
    def has_next(self) -> bool:
        """Whether another candidate is left."""
        return self.index + 1 < len(self.route)

    @property
    def other_model(self) -> int | None:
        """The next candidate that is another model; None = there is none. Lanes of the same model answer alike."""
        here = self.route[self.index].model
        return next((at for at in range(self.index + 1, len(self.route)) if self.route[at].model != here), None)

    @property
    def paid_model(self) -> int | None:
        """The next candidate that is none of our own models; None = there is none."""
        return next((at for at in range(self.index + 1, len(self.route)) if self.route[at].provider != "local"), None)

    def may_stay(self, wait_s: float, most_tries: int) -> bool:
        """Whether a cheap lane may be tried again after a wait: then it still has time enough to answer."""
        again_s = self.route[self.index].again_s
        if again_s is None or self.same_lane >= most_tries:
            return False
        return self.due_s is not None and self.due_s - wait_s > again_s

    @property
    def lane(self) -> str:
        """The model whose attempt ended, for messages."""
        return self.route[self.index].model


def with_more_room(history: History, *, sent: int, most: int) -> Retry | None:
    """Again on the same lane, for an answer that was cut by a limit of ours; None when the limit was the job's or plan's own."""
    if sent >= most or history.streamed or history.used >= history.max_attempts:
        return None
    return Retry(0.0, f"cut after {sent} tokens, a limit taken from earlier answers: again with {most}")


def decide(failure: ProviderError, history: History, *, jitter: float) -> Decision:
    """Decide after a failure.

    Args:
        failure: What the adapter raised.
        history: What happened so far.
        jitter: 0..1, uniformly random; spreads waits so that a crowd does not come back at once.

    Returns:
        Retry, Reroute, Snooze or GiveUp. Throttling uses up no attempt, but after `PARK_MAX_S` of asked-for waiting
        the next lane is tried; a lane is tried at most three times in a row before the next one.
    """
    if history.streamed:
        return GiveUp("stream_broken", f"{history.lane} failed after the answer had begun: {failure}")
    if isinstance(failure, Rejected):
        return _after_rejection(failure, history)
    if history.used >= history.max_attempts:
        return GiveUp("attempts_exhausted", f"{history.used} attempts used up; the last, {history.lane}: {failure}")
    if isinstance(failure, Throttled):
        return _after_throttling(failure, history, jitter)
    if isinstance(failure, Unavailable | Broken):
        if isinstance(failure, Unavailable) and failure.billed is False:
            wait_s = (
                0.0 if history.route[history.index].service == BATCH_SERVICE else _backoff(history.same_lane, jitter)
            )
            if history.may_stay(wait_s, CHEAP_TRIES):
                return Retry(wait_s, f"{history.lane}: {failure}; there is time to try the cheap lane again")
        if history.has_next:
            return _reroute(failure, history)
        return _retry(failure, history, jitter)
    raise TypeError(f"unclassified failure {failure!r}")


def _reroute(failure: ProviderError, history: History) -> Decision:
    following = history.route[history.index + 1]
    return Reroute(history.index + 1, f"{history.lane}: {failure} -> {following.model}")


def _retry(failure: ProviderError, history: History, jitter: float) -> Retry | GiveUp:
    wait = max(_backoff(history.same_lane, jitter), asked_to_wait(failure, jitter))
    if history.slack_s is not None and wait > history.slack_s:
        reason = (
            f"{history.lane}: {failure}; to be tried again in {wait:.0f} s, the deadline is in {history.slack_s:.0f} s"
        )
        return GiveUp("deadline", reason)
    return Retry(wait, f"{history.lane}: {failure}; no other lane is left")


def asked_to_wait(failure: ProviderError, jitter: float) -> float:
    """Seconds until the same call may be made again: what the provider asked for and up to a tenth more; 0 = it did not."""
    return (failure.retry_after_s or 0.0) * (1 + 0.1 * jitter)


def _after_rejection(failure: Rejected, history: History) -> Decision:
    # A request that one model refuses (too long, a feature it lacks) may suit another, not another lane of the same model.
    if not failure.account_wide and history.route[history.index].again_s is not None:
        other = history.other_model
        if other is None or history.used >= history.max_attempts:
            return GiveUp(failure.code, f"{history.lane}: {failure}")
        return Reroute(other, f"{history.lane}: {failure} -> {history.route[other].model}")
    if history.has_next and history.used < history.max_attempts:
        return _reroute(failure, history)
    return GiveUp(failure.code if not failure.account_wide else "account", f"{history.lane}: {failure}")


def _after_throttling(failure: Throttled, history: History, jitter: float) -> Decision:
    asked = failure.retry_after_s
    if failure.code == "no_capacity" and history.route[history.index].again_s is not None:
        wait = max(
            asked or 0.0, min(CAPACITY_MAX_S, CAPACITY_BASE_S * 2 ** (history.same_lane - 1)) * (0.5 + 0.5 * jitter)
        )
        if history.may_stay(wait, CAPACITY_TRIES):
            return Snooze(wait, f"{history.lane} has no cheap capacity: later, in {wait:.0f} s; there is time")
        if history.has_next:
            return _reroute(failure, history)
    wait = _backoff(history.same_lane, jitter) if asked is None else asked_to_wait(failure, jitter)
    too_long = wait > PARK_MAX_S or (history.slack_s is not None and wait > history.slack_s)
    if history.has_next and (too_long or history.same_lane >= 3):
        return _reroute(failure, history)
    if history.slack_s is not None and wait > history.slack_s:
        return GiveUp(
            "deadline", f"{history.lane} asks to wait {wait:.0f} s, the deadline is in {history.slack_s:.0f} s"
        )
    return Snooze(wait, f"{history.lane} is throttled: later, in {wait:.1f} s")


def _backoff(tries: int, jitter: float) -> float:
    """Seconds: 0.5 doubling to 20, between half and all of it."""
    return float(min(_RETRY_MAX_S, _RETRY_BASE_S * 2 ** (tries - 1))) * (0.5 + 0.5 * jitter)
