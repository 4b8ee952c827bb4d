"""Reads a routing policy (TOML text) into values, or says in one line what is wrong with it and what to write instead."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from typing import Any, Final

from policies.batching import BatchRules
from policies.catalog import CATALOG, Model
from policies.lanes import LaneRules
from policies.limits import LimitSpec, limit_class
from policies.reuse import Reuse
from waybill.errors import ConfigError
from waybill.names import PROVIDERS

AUTO: Final = "auto"
"""The intent of jobs whose producer named none: classified, or done by this plan where the classifier is not sure."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done with jobs of one intent.

    Attributes:
        intent: The tag.
        chain: Model ids in the order in which they are tried; a failure or a weak answer moves to the next.
        reason: Why this order, for people.
        max_output_tokens: Default upper bound of an answer, thinking included.
        effort: Reasoning effort asked for where the model takes it; None = the model's own default.
        quality: Share of the flagship's quality to keep; None = as the policy says for all.
        grounded: Every value of an answer must stand in the text (extraction).
        compare: An answer counts once two models of the chain have given it alike; else the last one's does.
    """

    intent: str
    chain: tuple[str, ...]
    reason: str
    max_output_tokens: int = 2048
    effort: str | None = None
    quality: float | None = None
    grounded: bool = False
    compare: bool = False


@dataclass(frozen=True, slots=True)
class PriceOverride:
    """USD per million tokens for a model that the price package does not know. Batch and flex are half of it.

    Attributes:
        input, output, cache_read, cache_write: Of prompts up to `long_above` tokens.
        long_above: A longer prompt (cache included) makes all tokens of the request dearer; None = its length is no matter.
        long_input, long_output: Then; the cache's prices grow as the input's.
    """

    input: Decimal
    output: Decimal
    cache_read: Decimal
    cache_write: Decimal
    long_above: int | None = None
    long_input: Decimal = Decimal(0)
    long_output: Decimal = Decimal(0)


@dataclass(frozen=True, slots=True)
class Sampling:
    """A sample of finished jobs that is asked of the flagship too: the policy file's `[audits]` and `[judging]`.

    Attributes:
        share: Of the jobs in question; 0 = none.
        budget_usd_per_day: What it may cost, judges included, by UTC days.
    """

    share: float
    budget_usd_per_day: Decimal = Decimal(1)


@dataclass(frozen=True, slots=True)
class Policy:
    """A checked policy file.

    Attributes:
        version: The file's own name for itself; kept with every decision.
        flagship: The model that savings are reported against.
        max_attempts: Calls a job may use up over all lanes.
        plans: By intent.
        models: The catalogue with the file's additions.
        prices: Overrides by model id.
        limits: Rate limits by model id, class of models or `*`; what is not here is learned from headers.
        quality: Share of the flagship's quality that plans learned from outcomes must keep; None = nothing is learned.
        explore: Share of batch jobs that get another model of their chain first, to learn from.
        reuse: When an earlier answer may be given again.
        lanes: How lanes are chosen.
        batches: How provider batches are made.
        audits: Of the answers that a learned cascade kept.
        judging: Of free texts that other models than the flagship wrote.
    """

    version: str
    flagship: str
    max_attempts: int
    plans: Mapping[str, Plan]
    models: Mapping[str, Model]
    prices: Mapping[str, PriceOverride] = field(default_factory=dict)
    limits: Mapping[str, LimitSpec] = field(default_factory=dict)
    quality: float | None = None
    explore: float = 0.0
    reuse: Reuse = field(default_factory=Reuse)
    lanes: LaneRules = field(default_factory=LaneRules)
    batches: BatchRules = field(default_factory=BatchRules)
    audits: Sampling = field(default_factory=lambda: Sampling(0.02))
    judging: Sampling = field(default_factory=lambda: Sampling(0.0))

    def intents(self) -> tuple[str, ...]:
        """The intents it has a plan for, in the file's order."""
        return tuple(self.plans)


def _line_of(text: str, key: str) -> int | None:
    """The first line that mentions a key, for error messages; None when it cannot be told."""
    leaf = re.escape(key.rsplit(".", 1)[-1])
    for number, line in enumerate(text.splitlines(), start=1):
        if re.match(rf'\s*(\[.*\b{leaf}\b.*\]|"?{leaf}"?\s*=)', line):
            return number
    return None


class _Reader:
    """Takes values out of the parsed file and complains with file, line and key."""

    def __init__(self, text: str, source: str) -> None:
        self.text, self.source = text, source

    def fail(self, key: str, problem: str) -> ConfigError:
        line = _line_of(self.text, key)
        where = f"{self.source}:{line}" if line else self.source
        return ConfigError(f"{where}: `{key}` {problem}")

    def known(self, table: Mapping[str, Any], prefix: str, allowed: tuple[str, ...]) -> None:
        for key in table:
            if key not in allowed:
                raise self.fail(f"{prefix}{key}", f"is not a key of this table; write one of: {', '.join(allowed)}")

    def string(self, table: Mapping[str, Any], prefix: str, key: str) -> str:
        value = table.get(key)
        if not isinstance(value, str) or not value:
            raise self.fail(f"{prefix}{key}", 'must be a text that is not empty, such as "..."')
        return value

    def integer(self, table: Mapping[str, Any], prefix: str, key: str, default: int, low: int, high: int) -> int:
        value = table.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise self.fail(f"{prefix}{key}", f"must be a whole number from {low} to {high}, not {value!r}")
        return value

    def boolean(self, table: Mapping[str, Any], prefix: str, key: str) -> bool:
        value = table.get(key, False)
        if not isinstance(value, bool):
            raise self.fail(f"{prefix}{key}", f"must be true or false, not {value!r}")
        return value

    def share(self, table: Mapping[str, Any], prefix: str, key: str) -> float | None:
        value = table.get(key)
        if value is None:
            return None
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value <= 1:
            raise self.fail(f"{prefix}{key}", f"must be a share above 0 and up to 1, such as 0.99, not {value!r}")
        return float(value)

    def seconds(
        self, table: Mapping[str, Any], prefix: str, key: str, default: float, low: float, high: float
    ) -> float:
        value = table.get(key, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
            raise self.fail(f"{prefix}{key}", f"must be seconds from {low:g} to {high:g}, not {value!r}")
        return float(value)

    def price(self, table: Mapping[str, Any], prefix: str, key: str, default: Decimal | None = None) -> Decimal:
        value = table.get(key, default)
        if value is None:
            raise self.fail(f"{prefix}{key}", "is missing; give USD per million tokens")
        try:
            price = Decimal(str(value))
        except InvalidOperation:
            price = Decimal("NaN")
        if isinstance(value, bool) or not price.is_finite() or price < 0:
            raise self.fail(f"{prefix}{key}", f"must be USD per million tokens, 0 or more, not {value!r}")
        return price


_TOP = (
    "version",
    "flagship",
    "quality",
    "explore",
    "max_attempts",
    "intents",
    "models",
    "prices",
    "limits",
    "reuse",
    "lanes",
    "batches",
    "audits",
    "judging",
)
_PLAN = ("chain", "reason", "max_output_tokens", "effort", "quality", "grounded", "compare")
_MODEL = (
    "provider",
    "context_tokens",
    "max_output_tokens",
    "thinking",
    "efforts",
    "json_schema",
    "vision",
    "bytes_per_token",
)
_LONG = frozenset({"long_above", "long_input", "long_output"})
_PRICE = ("input", "output", "cache_read", "cache_write", *sorted(_LONG))
_LIMITS = (
    "requests_per_minute",
    "input_tokens_per_minute",
    "output_tokens_per_minute",
    "tokens_per_minute",
    "burst_s",
    "interactive_reserve",
    "in_flight",
    "output_counted",
)
_REUSE = ("ttl_s", "max_answer_bytes", "max_questions")
_LANES = ("target", "services")
_BATCHES = ("max_rows", "max_bytes", "enqueued_tokens", "linger_s", "poll_s", "lost_after_s")
_SAMPLING = ("share", "budget_usd_per_day")
_EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")


def parse(text: str, source: str) -> Policy:
    """Check a policy file.

    Args:
        text: TOML.
        source: Its name, for messages.

    Raises:
        ConfigError: With file, line or key, and what to write instead.
    """
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        raise ConfigError(f"{source}: not valid TOML: {exc}") from None
    read = _Reader(text, source)
    read.known(data, "", _TOP)
    for key in ("version", "flagship", "intents"):
        if key not in data:
            raise ConfigError(f"{source}: `{key}` is missing")

    models = dict(CATALOG)
    for model_id, table in _tables(read, data, "models").items():
        models[model_id] = _model(read, model_id, table)
    prices = {
        model_id: _override(read, model_id, table, models) for model_id, table in _tables(read, data, "prices").items()
    }

    flagship = read.string(data, "", "flagship")
    if flagship not in models:
        raise read.fail("flagship", _unknown_model(flagship, models))
    plans = {intent: _plan(read, intent, table, models) for intent, table in _tables(read, data, "intents").items()}
    if not plans:
        raise read.fail("intents", "is empty; add at least one table such as [intents.extraction]")
    plans.setdefault(AUTO, Plan(AUTO, (flagship,), "nobody said what kind of work it is: the flagship directly"))
    return Policy(
        version=read.string(data, "", "version"),
        flagship=flagship,
        max_attempts=read.integer(data, "", "max_attempts", 5, 1, 20),
        plans=plans,
        models=models,
        prices=prices,
        limits={name: _limit(read, name, table, models) for name, table in _tables(read, data, "limits").items()},
        quality=read.share(data, "", "quality"),
        explore=read.share(data, "", "explore") or 0.0,
        reuse=_reuse(read, data.get("reuse", {})),
        lanes=_lanes(read, data.get("lanes", {})),
        batches=_batches(read, data.get("batches", {})),
        audits=_sampling(read, data, "audits", Sampling(0.02)),
        judging=_sampling(read, data, "judging", Sampling(0.0)),
    )


def _tables(read: _Reader, data: Mapping[str, Any], key: str) -> Mapping[str, Mapping[str, Any]]:
    value = data.get(key, {})
    if not isinstance(value, dict) or not all(isinstance(table, dict) for table in value.values()):
        raise read.fail(key, f"must hold tables, such as [{key}.name]")
    return value


def _unknown_model(name: str, models: Mapping[str, Model]) -> str:
    return (
        f"names the unknown model {name!r}; known: {', '.join(sorted(models))}"
        f' (or describe it in a table [models."{name}"])'
    )


def _plan(read: _Reader, intent: str, table: Mapping[str, Any], models: Mapping[str, Model]) -> Plan:
    prefix = f"intents.{intent}."
    if not re.fullmatch(r"[a-z][a-z0-9_-]{0,63}", intent):
        raise read.fail(f"intents.{intent}", "is no intent name; use a-z, 0-9, _ and -, beginning with a letter")
    read.known(table, prefix, _PLAN)
    chain = table.get("chain")
    if not isinstance(chain, list) or not chain or not all(isinstance(m, str) for m in chain):
        raise read.fail(f"{prefix}chain", 'must be a list of model ids, such as ["claude-haiku-5-5"]')
    for model in chain:
        if model not in models:
            raise read.fail(f"{prefix}chain", _unknown_model(model, models))
    if len(set(chain)) != len(chain):
        raise read.fail(f"{prefix}chain", "names a model twice; a retry of the same lane needs no second entry")
    effort = table.get("effort")
    if effort is not None and effort not in _EFFORTS:
        raise read.fail(f"{prefix}effort", f"must be one of {', '.join(_EFFORTS)}, not {effort!r}")
    return Plan(
        intent=intent,
        chain=tuple(chain),
        reason=read.string(table, prefix, "reason"),
        max_output_tokens=read.integer(table, prefix, "max_output_tokens", 2048, 1, 128_000),
        effort=effort,
        quality=read.share(table, prefix, "quality"),
        grounded=read.boolean(table, prefix, "grounded"),
        compare=read.boolean(table, prefix, "compare"),
    )


def _model(read: _Reader, model_id: str, table: Mapping[str, Any]) -> Model:
    prefix = f"models.{model_id}."
    read.known(table, prefix, _MODEL)
    provider = read.string(table, prefix, "provider")
    if provider not in PROVIDERS:
        raise read.fail(f"{prefix}provider", f"must be one of {', '.join(PROVIDERS)}, not {provider!r}")
    thinking = table.get("thinking", "none")
    if thinking not in ("none", "optional", "default", "always"):
        raise read.fail(f"{prefix}thinking", f"must be none, optional, default or always, not {thinking!r}")
    efforts = table.get("efforts", [])
    if not isinstance(efforts, list) or not all(effort in _EFFORTS for effort in efforts):
        raise read.fail(f"{prefix}efforts", f"must be a list out of {', '.join(_EFFORTS)}")
    bytes_per_token = table.get("bytes_per_token", 4.0)
    if not isinstance(bytes_per_token, int | float) or not 0.5 <= bytes_per_token <= 20:
        raise read.fail(f"{prefix}bytes_per_token", "must be a number from 0.5 to 20")
    for key in ("json_schema", "vision"):
        if not isinstance(table.get(key, True), bool):
            raise read.fail(f"{prefix}{key}", "must be true or false")
    return Model(
        id=model_id,
        provider=provider,
        services={"anthropic": ("interactive", "batch"), "openai": ("interactive", "flex", "batch")}.get(
            provider, ("local",)
        ),
        context_tokens=read.integer(table, prefix, "context_tokens", 8192, 128, 10_000_000),
        max_output_tokens=read.integer(table, prefix, "max_output_tokens", 2048, 1, 1_000_000),
        thinking=thinking,
        efforts=tuple(efforts),
        temperature=provider == "local",
        json_schema=table.get("json_schema", True),
        vision=table.get("vision", False),
        bytes_per_token=float(bytes_per_token),
        min_cacheable_tokens=1 if provider == "local" else 1024,
        # Only what every model of that provider takes.
        caching={"anthropic": "marked", "openai": "implicit"}.get(provider, "none"),  # type: ignore[arg-type]  # narrowed
    )


def _override(read: _Reader, model_id: str, table: Mapping[str, Any], models: Mapping[str, Model]) -> PriceOverride:
    prefix = f"prices.{model_id}."
    if model_id not in models:
        raise read.fail(f"prices.{model_id}", _unknown_model(model_id, models))
    read.known(table, prefix, _PRICE)
    full = read.price(table, prefix, "input")
    return PriceOverride(
        input=full,
        output=read.price(table, prefix, "output"),
        cache_read=read.price(table, prefix, "cache_read", full),
        cache_write=read.price(table, prefix, "cache_write", full),
        **(_long_prices(read, table, prefix) if _LONG.intersection(table) else {}),
    )


def _long_prices(read: _Reader, table: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {
        "long_above": read.integer(table, prefix, "long_above", 0, 100_000, 10**9),
        "long_input": read.price(table, prefix, "long_input"),
        "long_output": read.price(table, prefix, "long_output"),
    }


def _limit(read: _Reader, name: str, table: Mapping[str, Any], models: Mapping[str, Model]) -> LimitSpec:
    prefix = f"limits.{name}."
    if name != "*" and name not in models and name not in {limit_class(model) for model in models}:
        raise read.fail(f"limits.{name}", _unknown_model(name, models) + '; or "*" for all others')
    read.known(table, prefix, _LIMITS)

    def minute(key: str) -> int | None:
        return read.integer(table, prefix, key, 0, 1, 10**12) if key in table else None

    def number(key: str, default: float, low: float, high: float) -> float:
        value = table.get(key, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
            raise read.fail(f"{prefix}{key}", f"must be a number from {low:g} to {high:g}, not {value!r}")
        return float(value)

    counted = table.get("output_counted", "at_start")
    if counted not in ("at_start", "as_generated"):
        raise read.fail(f"{prefix}output_counted", f"must be at_start or as_generated, not {counted!r}")
    return LimitSpec(
        requests_per_minute=minute("requests_per_minute"),
        input_tokens_per_minute=minute("input_tokens_per_minute"),
        output_tokens_per_minute=minute("output_tokens_per_minute"),
        tokens_per_minute=minute("tokens_per_minute"),
        burst_s=number("burst_s", 60.0, 1.0, 3600.0),
        interactive_reserve=number("interactive_reserve", 0.1, 0.0, 0.9),
        in_flight=read.integer(table, prefix, "in_flight", 1000, 1, 1_000_000),
        output_counted=counted,
    )


def _reuse(read: _Reader, table: object) -> Reuse:
    if not isinstance(table, dict):
        raise read.fail("reuse", "must be a table: [reuse]")
    read.known(table, "reuse.", _REUSE)
    usual = Reuse()
    return Reuse(
        ttl_s=read.integer(table, "reuse.", "ttl_s", int(usual.ttl_s), 0, 366 * 86_400),
        max_answer_bytes=read.integer(table, "reuse.", "max_answer_bytes", usual.max_answer_bytes, 1, 2**30),
        max_questions=read.integer(table, "reuse.", "max_questions", usual.max_questions, 1, 10**9),
    )


def _lanes(read: _Reader, table: object) -> LaneRules:
    if not isinstance(table, dict):
        raise read.fail("lanes", "must be a table: [lanes]")
    read.known(table, "lanes.", _LANES)
    usual = LaneRules()
    services = table.get("services", list(usual.services))
    if not isinstance(services, list) or not set(map(str, services)) <= set(usual.services):
        raise read.fail("lanes.services", f"must be a list out of {', '.join(usual.services)}; [] = interactive only")
    return LaneRules(read.share(table, "lanes.", "target") or usual.target, tuple(services))


def _batches(read: _Reader, table: object) -> BatchRules:
    if not isinstance(table, dict):
        raise read.fail("batches", "must be a table: [batches]")
    read.known(table, "batches.", _BATCHES)
    usual, name = BatchRules(), "batches."
    return BatchRules(
        max_rows=read.integer(table, name, "max_rows", usual.max_rows, 1, 50_000),
        max_bytes=read.integer(table, name, "max_bytes", usual.max_bytes, 1_000_000, 150_000_000),
        enqueued_tokens=read.integer(table, name, "enqueued_tokens", usual.enqueued_tokens, 1, 10**12),
        linger_s=read.seconds(table, name, "linger_s", usual.linger_s, 0, 3600),
        poll_s=read.seconds(table, name, "poll_s", usual.poll_s, 0.1, 3600),
        lost_after_s=read.seconds(table, name, "lost_after_s", usual.lost_after_s, 1, 3600),
    )


def _sampling(read: _Reader, data: Mapping[str, Any], name: str, usual: Sampling) -> Sampling:
    table = data.get(name, {})
    if not isinstance(table, dict):
        raise read.fail(name, f"must be a table: [{name}]")
    prefix = f"{name}."
    read.known(table, prefix, _SAMPLING)
    share = table.get("share", usual.share)
    if not isinstance(share, int | float) or isinstance(share, bool) or not 0 <= share <= 1:
        raise read.fail(f"{prefix}share", f"must be a share from 0 (none) to 1, such as 0.02, not {share!r}")
    usd = table.get("budget_usd_per_day", usual.budget_usd_per_day)
    if not isinstance(usd, int | float | Decimal) or isinstance(usd, bool) or not 0 <= usd <= 10**6:
        raise read.fail(f"{prefix}budget_usd_per_day", f"must be USD from 0 to 1,000,000, not {usd!r}")
    return Sampling(float(share), Decimal(str(usd)))
