"""What a job does whose lane is out: take another one, or wait for it. Urgent work moves at once; work with time costs nothing extra."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from policies.fallback import Decision, History, Reroute, Snooze
from policies.health import Outage
from waybill.errors import ProviderError, Unavailable

PATIENCE_S: Final = 1800.0
"""An outage longer than this is not short: then jobs with slack pay for another lane, too."""
MARGIN_S: Final = 120.0
"""A job whose deadline is nearer than this has no slack."""


def may_wait(*, priority: str, slack_s: float | None, outage_s: float) -> bool:
    """Whether a job waits out an outage instead of paying for another lane: batch work with time, for a while."""
    return priority == "lo" and outage_s < PATIENCE_S and (slack_s is None or slack_s > MARGIN_S)


@dataclass(frozen=True, slots=True)
class Wait:
    """The job stays with its lane and is asked about again (seconds)."""

    delay_s: float
    reason: str
    is_returning: bool = False


def detour(history: History, outages: Sequence[Outage | None], *, patient: bool) -> Reroute | Wait:
    """What becomes of a job whose lane is not to be taken now.

    Args:
        history: Whose lane is `route[index]`.
        outages: For each candidate of the route; that of `index` is not None.
        patient: `may_wait` of this job. It then takes another lane only if that costs no more.
    """
    here = outages[history.index]
    assert here is not None  # the caller asks only then
    lane = history.route[history.index]
    index = next_open(outages, history.index, urgent=not patient)
    if index is not None:
        other = history.route[index]
        if not patient or here.is_drained or other.estimate_usd <= lane.estimate_usd:
            return Reroute(index, f"{lane.model}: {here.reason} -> {other.model}")
    return Wait(here.wait_s, f"{lane.model}: {here.reason}", here.is_returning)


def next_open(outages: Sequence[Outage | None], index: int, *, urgent: bool) -> int | None:
    """The first candidate after `index` that lets calls through; None when there is none."""
    for later in range(index + 1, len(outages)):
        found = outages[later]
        if found is None or not found.blocks(urgent=urgent):
            return later
    return None


def wait_out(
    decision: Decision,
    failure: ProviderError,
    here: Outage | None,
    history: History,
    *,
    patient: bool,
    delay_s: float,
) -> Decision:
    """A fallback that a patient job does not make: its lane is out as a whole, and another one would cost more.

    Where the lane is otherwise well the job itself may be what fails, so it moves on; a call that may have been billed
    counts as an attempt and moves on, too. The call that failed cost nothing and uses up no attempt.
    """
    if not isinstance(decision, Reroute) or not isinstance(failure, Unavailable) or failure.billed is not False:
        return decision
    if here is None or here.is_drained or here.is_suspicion or not patient:
        return decision
    if history.route[decision.index].estimate_usd <= history.route[history.index].estimate_usd:
        return decision
    return Snooze(delay_s, f"{failure}; the job has time: later on the same lane, {here.reason}")
