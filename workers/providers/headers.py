"""What response headers say: how long to wait and what is left. Pure; clocks are parameters.

A header is text from outside. Whatever cannot be read becomes None ("not said"), never an error: a call that was
answered and paid must not be lost over a strange header.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final

from workers.providers.base import Limits

MAX_RETRY_AFTER_S: Final = 86_400.0
"""Longest wait we believe. Anything above is a mistake or an attack (anthropic's SDK would sleep 4,294,967 s)."""

_MAX_COUNT: Final = 10**12
_INTEGER: Final = re.compile(r"\d{1,15}", re.ASCII)


def retry_after_s(headers: Mapping[str, str], *, now: datetime) -> float | None:
    """Seconds the provider asks us to wait, 0..86 400, or None when it does not say so in a usable way.

    Reads `retry-after-ms` first (finer), then `retry-after` as seconds or as an HTTP date. Negative, NaN and infinite
    values count as not said; larger ones than a day are cut to a day.

    Args:
        headers: Of the response; names in lower case.
        now: Aware, for the HTTP date. A date in the past means 0.
    """
    milliseconds = _seconds(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return min(milliseconds / 1000, MAX_RETRY_AFTER_S)
    value = headers.get("retry-after")
    seconds = _seconds(value)
    if seconds is None and value is not None:
        seconds = _seconds_until(value, now)
    return None if seconds is None else min(seconds, MAX_RETRY_AFTER_S)


def anthropic_limits(headers: Mapping[str, str]) -> Limits:
    """Of `anthropic-ratelimit-{requests,tokens,input-tokens,output-tokens}-{remaining,limit}`."""

    def said(what: str) -> int | None:
        return _count(headers.get(f"anthropic-ratelimit-{what}"))

    return Limits(
        requests_remaining=said("requests-remaining"),
        input_tokens_remaining=said("input-tokens-remaining"),
        output_tokens_remaining=said("output-tokens-remaining"),
        tokens_remaining=said("tokens-remaining"),
        requests_limit=said("requests-limit"),
        input_tokens_limit=said("input-tokens-limit"),
        output_tokens_limit=said("output-tokens-limit"),
        tokens_limit=said("tokens-limit"),
    )


def openai_limits(headers: Mapping[str, str]) -> Limits:
    """Of `x-ratelimit-remaining-{requests,tokens}`, believed only next to a limit above 0: Azure sends -1 and 0 for
    "unknown" (providers.md 2.4), and a believed 0 would stop the lane."""

    def remaining(what: str) -> int | None:
        limit = headers.get(f"x-ratelimit-limit-{what}")
        if limit is not None and not _count(limit):
            return None
        return _count(headers.get(f"x-ratelimit-remaining-{what}"))

    return Limits(
        requests_remaining=remaining("requests"),
        tokens_remaining=remaining("tokens"),
        requests_limit=_count(headers.get("x-ratelimit-limit-requests")) or None,
        tokens_limit=_count(headers.get("x-ratelimit-limit-tokens")) or None,
    )


def _seconds(value: str | None) -> float | None:
    """A plain finite number >= 0, else None."""
    if value is None:
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) and number >= 0 else None


def _seconds_until(value: str, now: datetime) -> float | None:
    try:
        moment = parsedate_to_datetime(value)
    except (ValueError, IndexError, OverflowError):
        return None
    if moment.tzinfo is None:  # RFC 5322 "-0000": the zone is not known, HTTP dates are always UTC
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - now).total_seconds())


def _count(value: str | None) -> int | None:
    """An integer 0..10^12, else None."""
    if value is None or not _INTEGER.fullmatch(value.strip()):
        return None
    number = int(value.strip())
    return number if number <= _MAX_COUNT else None
