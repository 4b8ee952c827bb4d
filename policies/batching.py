"""When a provider batch is sent, and how large it may be. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class BatchRules:
    """The policy file's `[batches]`.

    Attributes:
        max_rows: Rows of one batch. Providers take 50,000 (OpenAI) or 100,000; smaller ones end sooner and cost less to redo.
        max_bytes: Prompt bytes of one batch; providers take 200 or 256 MB with everything around them.
        enqueued_tokens: Prompt tokens of one model that may wait at a provider at a time (its tier says how many).
        linger_s: How long rows are gathered at most before they are sent.
        poll_s: Shortest time between two questions how a batch is.
        lost_after_s: A batch whose creation nobody saw end and that is in no list after this time was not created.
    """

    max_rows: int = 10_000
    max_bytes: int = 64_000_000
    enqueued_tokens: int = 50_000_000
    linger_s: float = 20.0
    poll_s: float = 10.0
    lost_after_s: float = 60.0


ONE_MODEL: Final = frozenset({"openai"})
"""Providers whose batches have one model each; elsewhere rows of all models are done, and end, together."""
POLL_MOST_S: Final = 60.0
LINGER_OF_SLACK: Final = 0.02
"""Of the time a row has, this much at most goes into waiting for others."""
_BACKOFF_MOST_S: Final = 600.0


@dataclass(frozen=True, slots=True)
class Gathering:
    """The rows that wait for a batch of one provider (and model, where a batch has one).

    Attributes:
        rows: How many.
        payload_bytes: Of their prompts.
        waited_s: How long the oldest has waited.
        tightest_s: Time until the first of them has to leave the lane; None = all have time without end.
    """

    rows: int
    payload_bytes: int
    waited_s: float
    tightest_s: float | None


def hold_s(gathering: Gathering, rules: BatchRules) -> float:
    """Seconds to wait for more rows; 0 = send now: it is full, or waiting no longer pays.

    A batch costs a few calls whatever its size, and its rows are done no later for being alone; so only so much is waited
    as its tightest row does not feel.
    """
    if gathering.rows >= rules.max_rows or gathering.payload_bytes >= rules.max_bytes:
        return 0.0
    patience_s = rules.linger_s
    if gathering.tightest_s is not None:
        patience_s = min(patience_s, LINGER_OF_SLACK * max(0.0, gathering.tightest_s))
    return max(0.0, patience_s - gathering.waited_s)


def poll_s(age_s: float, rules: BatchRules) -> float:
    """Seconds until a batch is asked about again: a tenth of its age, so that young ones are seen to end soon."""
    return min(max(rules.poll_s, age_s / 10), max(POLL_MOST_S, rules.poll_s))


def backoff_s(tries: int, *, is_paused: bool) -> float:
    """Seconds until a batch that the provider did not take is offered again; longer where its account is refused."""
    return float(min(_BACKOFF_MOST_S, (30.0 if is_paused else 2.0) * 2 ** min(tries, 10)))
