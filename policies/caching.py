"""What a provider's prompt cache is to keep of a call, and how long a job waits for another one to fill it. Pure.

A prefix that is written and never read costs a quarter more than one that is not cached at all, one that is read costs a
tenth or less (reference/providers.md 1.4, 2.3). So a prefix is marked when another job is known to wait with it, or when
the last ones came so close together that the next is likely to find it.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Final

from policies.catalog import Model
from policies.pricing import Rates, estimate_tokens

SHORT_S: Final = {"marked": 300.0, "explicit": 1800.0, "implicit": 300.0}
"""How long an entry lives after its last use, by `Model.caching`."""
LONG_S: Final = {"marked": 3600.0, "explicit": 43_200.0, "implicit": 0.0}
SURE: Final = 0.8
"""Share of a lifetime within which the next use must be expected: gaps scatter."""
ROUGH: Final = 1.35
"""An estimate of tokens may be a third too low; a mark below the provider's minimum costs nothing."""
BEGIN_S: Final = 30.0
"""An answer begins within this, or its lane has a problem: then the next job goes first."""
_WAIT_BATCH_S: Final = 30.0
_WAIT_INTERACTIVE_S: Final = 2.0
_WAIT_OF_SLACK: Final = 0.1
_URGENCY_USD_PER_S: Final = Decimal("0.001")
"""What a second of an interactive job's time is taken to be worth."""


@dataclass(frozen=True, slots=True)
class Prefix:
    """What jobs begin with alike.

    Attributes:
        key: Its hash; also the key under which OpenAI routes requests to the same cache.
        bytes: UTF-8 bytes of its texts.
    """

    key: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Expected:
    """What is known about further use of a prefix.

    Attributes:
        waiting: Jobs with it that are queued or under way besides this one: they come for certain.
        gap_s: Time between its last uses; None = it is new.
    """

    waiting: int = 0
    gap_s: float | None = None


@dataclass(frozen=True, slots=True)
class Caching:
    """What the adapter is to ask for.

    Attributes:
        mark: Keep what precedes the prompt; False = nothing is to be written, and no write is paid.
        is_long: For the longer of the provider's two lifetimes.
        key: Groups requests with the same prefix, where the provider takes such a key; None = none.
        reason: For people.
    """

    mark: bool
    is_long: bool = False
    key: str | None = None
    reason: str = ""


def plan(model: Model, prefix: Prefix, expected: Expected, rates: Rates | None) -> Caching:
    """Whether writing the prefix pays.

    Args:
        model: Whose cache it is.
        prefix: What may be kept.
        expected: Further uses.
        rates: Prices of this lane; None = unknown, then nothing is marked.
    """
    key = prefix.key[:32] if model.caching in ("explicit", "implicit") else None
    tokens = prefix_tokens(model, prefix)
    if model.caching in ("none", "implicit") or rates is None:
        return Caching(False, key=key, reason="this model's cache takes no marks")
    if tokens * ROUGH < model.min_cacheable_tokens:
        return Caching(
            False, key=key, reason=f"about {tokens} tokens are below the least of {model.min_cacheable_tokens}"
        )
    gain = rates.input - rates.cache_read
    short, long = rates.cache_write - rates.input, rates.cache_write_1h - rates.input
    if expected.waiting * gain > short:
        return Caching(True, key=key, reason=f"{expected.waiting} more jobs wait with the same prefix")
    if expected.gap_s is not None and gain > short and expected.gap_s <= SURE * SHORT_S[model.caching]:
        return Caching(True, key=key, reason=f"the same prefix came {expected.gap_s:.0f} s ago")
    # A longer entry costs more than one read brings in: only where it came again and again (the gap is a mean).
    if expected.gap_s is not None and 2 * gain > long and expected.gap_s <= SURE * LONG_S[model.caching]:
        return Caching(True, is_long=True, key=key, reason=f"the same prefix came {expected.gap_s:.0f} s ago")
    return Caching(False, key=key, reason="no other job with this prefix is expected")


def reading(model: Model, prefix: Prefix, *, is_long: bool = False) -> Caching:
    """For a prefix that the provider keeps: marked in the same way, so that it is found."""
    key = prefix.key[:32] if model.caching in ("explicit", "implicit") else None
    return Caching(model.caching in ("marked", "explicit"), is_long, key, "the prefix is in the provider's cache")


def lifetime_s(model: Model, *, is_long: bool) -> float:
    """How long an entry lives after its last use."""
    return (LONG_S if is_long else SHORT_S)[model.caching]


def is_worth_leading(model: Model, prefix: Prefix) -> bool:
    """Whether the order of calls matters at all: the provider can keep a prefix of this length."""
    return model.caching != "none" and prefix_tokens(model, prefix) * ROUGH >= model.min_cacheable_tokens


def prefix_tokens(model: Model, prefix: Prefix) -> int:
    """About how many tokens it has."""
    return estimate_tokens(prefix.bytes, model.bytes_per_token)


def wait_s(model: Model, prefix: Prefix, rates: Rates | None, *, priority: str, slack_s: float | None) -> float:
    """How long a job may wait until the prefix can be read instead of paid for again.

    An interactive job waits no longer than the saving is worth; nobody waits longer than an answer takes to begin or
    for more than a tenth of the time to its deadline.
    """
    if rates is None:
        return 0.0
    bound_s = _WAIT_BATCH_S
    if priority == "hi":
        saved = prefix_tokens(model, prefix) * (max(rates.cache_write, rates.input) - rates.cache_read)
        bound_s = min(_WAIT_INTERACTIVE_S, float(saved / _URGENCY_USD_PER_S))
    return bound_s if slack_s is None else max(0.0, min(bound_s, _WAIT_OF_SLACK * slack_s))
