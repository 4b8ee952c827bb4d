"""Rate limits as headers, in each provider's own spelling, and the error of an empty bucket.

Anthropic: twelve `anthropic-ratelimit-*`, times in RFC 3339, when the bucket will be full. OpenAI: six
`x-ratelimit-*`, times as Go durations ("12ms", "6m0s").
"""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache
from math import ceil

from sandbox.buckets import Bucket, Empty, Meter
from sandbox.exchange import ApiError

Headers = list[tuple[bytes, bytes]]


def headers(meter: Meter, now_ns: int) -> Headers:
    """Return the headers of the meter's state at `now_ns`."""
    meter.refill(now_ns)
    if meter.provider == "openai":
        return [*_openai(b"requests", meter.requests), *_openai(b"tokens", meter.tokens)]
    tightest = min(meter.input_tokens, meter.output_tokens, key=lambda bucket: bucket.remaining / max(1, bucket.limit))
    return [
        *_anthropic(b"requests", meter.requests, now_ns),
        *_anthropic(b"tokens", tightest, now_ns),
        *_anthropic(b"input-tokens", meter.input_tokens, now_ns),
        *_anthropic(b"output-tokens", meter.output_tokens, now_ns),
    ]


def refusal(empty: Empty, meter: Meter, account: str, model: str) -> ApiError:
    """Return the 429 that names the limit."""
    if meter.provider == "anthropic":
        message = (
            f"This request would exceed the rate limit of {empty.limit:,} {empty.which} per minute for {account} and "
            f"{model}. Try again in {ceil(empty.retry_after_s)} s."
        )
        return ApiError(429, "rate_limit", message, retry_after_s=empty.retry_after_s)
    short = "RPM" if empty.which == "requests" else "TPM"
    message = (
        f"Rate limit reached for {model} in organization {account} on {empty.which} per min ({short}): limit "
        f"{empty.limit}. Please try again in {go_duration(int(empty.retry_after_s * 1e9))}."
    )
    kind = "requests" if empty.which == "requests" else "tokens"
    return ApiError(429, "rate_limit", message, retry_after_s=empty.retry_after_s, kind_in_dialect=kind)


def retry_after(error: ApiError, provider: str) -> Headers:
    """Return `retry-after` in whole seconds, rounded up; OpenAI also tells the milliseconds."""
    if error.retry_after_s is None:
        return []
    sent: Headers = [(b"retry-after", b"%d" % ceil(error.retry_after_s))]
    if provider == "openai":
        sent.append((b"retry-after-ms", b"%d" % ceil(error.retry_after_s * 1000)))
    return sent


def go_duration(nanoseconds: int) -> str:
    """Return a duration as Go prints one: "0s", "12ms", "1.5s", "6m0s", "1h0m2.25s"."""
    milliseconds = -(-nanoseconds // 1_000_000)
    if milliseconds <= 0:
        return "0s"
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, milliseconds = divmod(milliseconds, 60_000)
    seconds = f"{milliseconds / 1000:.3f}".rstrip("0").rstrip(".")
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes}m{seconds}s"
    return f"{minutes}m{seconds}s" if minutes else f"{seconds}s"


@lru_cache(maxsize=256)
def rfc3339(second: int) -> bytes:
    """Return a time in whole seconds since the epoch as RFC 3339 in UTC."""
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%SZ").encode()


def _anthropic(name: bytes, bucket: Bucket, now_ns: int) -> Headers:
    prefix = b"anthropic-ratelimit-" + name
    return [
        (prefix + b"-limit", b"%d" % bucket.limit),
        (prefix + b"-remaining", b"%d" % bucket.remaining),
        (prefix + b"-reset", rfc3339(-(-(now_ns + bucket.full_in_ns) // 1_000_000_000))),
    ]


def _openai(name: bytes, bucket: Bucket) -> Headers:
    return [
        (b"x-ratelimit-limit-" + name, b"%d" % bucket.limit),
        (b"x-ratelimit-remaining-" + name, b"%d" % bucket.remaining),
        (b"x-ratelimit-reset-" + name, go_duration(bucket.full_in_ns).encode()),
    ]
