"""Token buckets: how much of its limits an account has left, for each class of models.

Continuous refill, as both providers describe it: a bucket of 60 per minute gives one back each second, there is no
window with an edge. All arithmetic is in whole numbers (a token is 60e9 units, a limit of n per minute refills n units
each nanosecond), so a bucket neither gains nor loses by being asked often.

Claude: requests, input tokens (cache reads do not count) and output tokens. OpenAI: requests and tokens (prompt,
cached or not, plus the output allowed). Output is reserved at `max_tokens` when the call starts and corrected to what
was generated when it ends.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Literal

MINUTE_NS = 60_000_000_000
_MAX_METERS = 20_000


class Bucket:
    """One level that refills with time. A correction may push it below zero; nothing fits then until it is repaid."""

    __slots__ = ("_capacity", "_level", "_updated_ns", "limit")

    def __init__(self, limit: int, *, burst_s: float, now_ns: int) -> None:
        self.limit = limit
        self._capacity = max(MINUTE_NS, limit * int(burst_s * 1_000_000_000))
        self._level = self._capacity
        self._updated_ns = now_ns

    def refill(self, now_ns: int) -> None:
        """Bring the level to `now_ns`; a clock that went back counts as no time passed."""
        if now_ns > self._updated_ns:
            self._level = min(self._capacity, self._level + self.limit * (now_ns - self._updated_ns))
            self._updated_ns = now_ns

    def fits(self, cost: int) -> bool:
        """Whether `cost` could be taken at the time of the last refill."""
        return self._level >= cost * MINUTE_NS

    def take(self, cost: int) -> None:
        """Lower the level by `cost`, below zero if it must; a negative cost gives back, up to the capacity."""
        self._level = min(self._capacity, self._level - cost * MINUTE_NS)

    def wait_s(self, cost: int) -> float:
        """Return the seconds until `cost` fits; for a cost above the capacity, until the bucket is full."""
        missing = min(cost * MINUTE_NS, self._capacity) - self._level
        return max(0, missing) / (self.limit * 1_000_000_000) if self.limit else 60.0

    @property
    def remaining(self) -> int:
        """Whole tokens left, never negative."""
        return max(0, self._level // MINUTE_NS)

    @property
    def full_in_ns(self) -> int:
        """Nanoseconds until the bucket is full again."""
        return -((self._level - self._capacity) // self.limit) if self.limit else MINUTE_NS


@dataclass(frozen=True, slots=True)
class Limits:
    """Per minute, for one account and class. Defaults: the highest published self-service tier of Claude Fable 5.x."""

    requests: int = 4_000
    input_tokens: int = 4_000_000
    output_tokens: int = 800_000
    # tokens: OpenAI's single token limit; Claude has none.
    tokens: int = 4_000_000


@dataclass(frozen=True, slots=True)
class Cost:
    """What one call takes when it starts."""

    input_tokens: int
    output_tokens: int
    # tokens: OpenAI's measure, prompt plus output allowed.
    tokens: int


@dataclass(frozen=True, slots=True)
class Empty:
    """A bucket did not have enough."""

    which: Literal["requests", "input tokens", "output tokens", "tokens"]
    limit: int
    retry_after_s: float


class Meter:
    """The buckets of one account and class."""

    __slots__ = ("input_tokens", "output_tokens", "provider", "requests", "tokens")

    def __init__(self, provider: str, limits: Limits, *, burst_s: float, now_ns: int) -> None:
        self.provider = provider
        self.requests = Bucket(limits.requests, burst_s=burst_s, now_ns=now_ns)
        self.input_tokens = Bucket(limits.input_tokens, burst_s=burst_s, now_ns=now_ns)
        self.output_tokens = Bucket(limits.output_tokens, burst_s=burst_s, now_ns=now_ns)
        self.tokens = Bucket(limits.tokens, burst_s=burst_s, now_ns=now_ns)

    @property
    def shown(self) -> tuple[str, ...]:
        """The names of the buckets that count for this provider."""
        return ("requests", "input_tokens", "output_tokens") if self.provider == "anthropic" else ("requests", "tokens")

    def refill(self, now_ns: int) -> None:
        """Bring every bucket to `now_ns`."""
        self.requests.refill(now_ns)
        if self.provider == "anthropic":
            self.input_tokens.refill(now_ns)
            self.output_tokens.refill(now_ns)
        else:
            self.tokens.refill(now_ns)

    def admit(self, cost: Cost, now_ns: int) -> Empty | None:
        """Take `cost` from every bucket, or from none and say which lacked it longest.

        One exception, OpenAI's: a request refused for its tokens still counts as a request, so a client that retries
        without waiting keeps itself out.
        """
        self.refill(now_ns)
        empty = [
            Empty(which, bucket.limit, bucket.wait_s(amount))
            for which, bucket, amount in self._charges(cost)
            if not bucket.fits(amount)
        ]
        if not empty:
            for _, bucket, amount in self._charges(cost):
                bucket.take(amount)
            return None
        if self.provider == "openai" and self.requests.fits(1):
            self.requests.take(1)
        return max(empty, key=lambda refusal: refusal.retry_after_s)

    def settle(self, reserved: Cost, used: Cost, now_ns: int) -> None:
        """Replace what was reserved by what was used: the surplus comes back, an excess is owed."""
        self.refill(now_ns)
        if self.provider == "anthropic":
            self.input_tokens.take(used.input_tokens - reserved.input_tokens)
            self.output_tokens.take(used.output_tokens - reserved.output_tokens)
        else:
            self.tokens.take(used.tokens - reserved.tokens)

    def _charges(
        self, cost: Cost
    ) -> tuple[tuple[Literal["requests", "input tokens", "output tokens", "tokens"], Bucket, int], ...]:
        if self.provider == "anthropic":
            return (
                ("requests", self.requests, 1),
                ("input tokens", self.input_tokens, cost.input_tokens),
                ("output tokens", self.output_tokens, cost.output_tokens),
            )
        return (("requests", self.requests, 1), ("tokens", self.tokens, cost.tokens))


class Meters:
    """The meters of all accounts, made when first used; the least recently used goes when there are too many."""

    def __init__(self, *, burst_s: float = 60.0) -> None:
        self._burst_s = burst_s
        self._limits: dict[str, Limits] = {"*": Limits()}
        self._meters: OrderedDict[tuple[str, str], Meter] = OrderedDict()

    def set(self, limit_class: str, **changes: int) -> None:
        """Change limits of one class (or "*", the default of all); its levels start full again."""
        base = self._limits.get(limit_class, self._limits["*"])
        self._limits[limit_class] = replace(base, **changes)
        for key in [key for key in self._meters if limit_class in ("*", key[1])]:
            del self._meters[key]

    def limits(self, limit_class: str) -> Limits:
        """Return the limits that hold for a class."""
        return self._limits.get(limit_class) or self._limits["*"]

    def meter(self, account: str, provider: str, limit_class: str, now_ns: int) -> Meter:
        """Return the meter of an account for a class of models."""
        key = (account, limit_class)
        meter = self._meters.get(key)
        if meter is None:
            meter = Meter(provider, self.limits(limit_class), burst_s=self._burst_s, now_ns=now_ns)
            self._meters[key] = meter
            if len(self._meters) > _MAX_METERS:
                self._meters.popitem(last=False)
        else:
            self._meters.move_to_end(key)
        return meter

    def clear(self) -> None:
        """Fill every bucket again."""
        self._meters.clear()

    def items(self) -> list[tuple[tuple[str, str], Meter]]:
        """Return ((account, class), meter) of every meter in use."""
        return list(self._meters.items())
