"""The sandbox's own table of models: prices, limits' classes, quirks, speeds. Nothing else in the repository feeds it.

Prices are the providers' list prices as published on 2026-11-23, in USD per million tokens. Speeds are round
figures chosen to be plausible, not measured. What a row could not be sourced for says "assumed".
`--models FILE` adds rows, so that recorded answers of older models can be replayed.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, replace
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from sandbox import tokens

CLAUDE_EFFORTS = ("low", "medium", "high", "xhigh", "max")
GPT_EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")


@dataclass(frozen=True, slots=True)
class Prices:
    """USD per million tokens. `write_long` is Claude's 1-hour and OpenAI's 12-hour cache write."""

    input: Decimal
    output: Decimal
    read: Decimal
    write_short: Decimal
    write_long: Decimal

    def times(self, prompt: str, output: str) -> Prices:
        """Return the prices with every prompt class times `prompt` and output times `output`."""
        factor = Decimal(prompt)
        return Prices(
            self.input * factor,
            self.output * Decimal(output),
            self.read * factor,
            self.write_short * factor,
            self.write_long * factor,
        )


@dataclass(frozen=True, slots=True)
class Model:
    """One row: everything the sandbox knows about a model."""

    id: str
    provider: str
    prices: Prices
    # long_prices: for a request whose prompt is above `long_above` tokens; then all its tokens move, output included.
    long_prices: Prices | None = None
    long_above: int | None = None
    priority_factor: Decimal = Decimal(2)
    fast_factor: Decimal | None = None
    context: int = 1_000_000
    max_output: int = 128_000
    # limit_class: models with the same class share one set of buckets.
    limit_class: str = ""
    bytes_per_token: float = tokens.GPT
    # min_cache_tokens: a shorter prefix is not cached, without an error.
    min_cache_tokens: int = 1024
    # charges_writes: OpenAI bills cache writes from GPT-5.6 on; before that a write is plain input.
    charges_writes: bool = True
    # thinking: "always" cannot be switched off, "on" can, "off" must be asked for, "none" does not exist.
    thinking: str = "on"
    default_effort: str = "medium"
    efforts: tuple[str, ...] = GPT_EFFORTS
    forced_tools: bool = True
    prefill: bool = False
    # legacy: takes temperature, top_p and max_tokens as models before GPT-5 and Claude 4.7 did.
    legacy: bool = False
    first_token_s: float = 0.8
    tokens_per_s: float = 80.0
    created: str = "2026-01-01"
    shutdown: str | None = None


def _prices(given: str, write_long_factor: str = "2") -> Prices:
    """Read "input output read [write]"; the write is 1.25 times, the long write 2 times the input unless given."""
    numbers = [Decimal(part) for part in given.split()]
    plain, output, read = numbers[:3]
    write = numbers[3] if len(numbers) > 3 else plain * Decimal("1.25")
    return Prices(plain, output, read, write, plain * Decimal(write_long_factor))


def _claude(name: str, prices: str, limit_class: str, **row: Any) -> Model:
    row.setdefault("bytes_per_token", tokens.CLAUDE_NEW)
    row.setdefault("min_cache_tokens", 512)
    row.setdefault("efforts", CLAUDE_EFFORTS)
    return Model(id=name, provider="anthropic", prices=_prices(prices), limit_class=limit_class, **row)


def _gpt(name: str, prices: str, **row: Any) -> Model:
    """A GPT row: above 272,000 prompt tokens the prompt costs double and the output 1.5 times, where so much fits."""
    row.setdefault("context", 1_050_000)
    row.setdefault("limit_class", name)
    base = _prices(prices)
    if not row.get("charges_writes", True):
        base = replace(base, write_short=base.input, write_long=base.input)
    if row["context"] > 1_000_000:
        row |= {"long_prices": base.times("2", "1.5"), "long_above": 272_000}
    return Model(id=name, provider="openai", prices=base, **row)


_FABLE = {"thinking": "always", "default_effort": "high", "forced_tools": False}
_OPUS = {"thinking": "always", "forced_tools": False}
_SPEED_FLAGSHIP = {"first_token_s": 1.2, "tokens_per_s": 60.0}
_SPEED_SMALL = {"first_token_s": 0.4, "tokens_per_s": 160.0}
# Dated ids and earlier Claude share a price; their quirks: adaptive thinking, prefill refused from 4.6 on (assumed).
_OPUS_4 = "claude-opus-4.x"

_TABLE: tuple[Model, ...] = (
    # minimum cacheable size of Fable 5.2: assumed like 5.1
    _claude("claude-fable-5-2", "8 40 0.20", "claude-fable-5.x", first_token_s=2.0, tokens_per_s=40.0,
            created="2026-11-09", **_FABLE),
    _claude("claude-fable-5-1", "10 50 0.25", "claude-fable-5.x", first_token_s=2.0, tokens_per_s=40.0, **_FABLE),
    _claude("claude-opus-5-5", "4 20 0.20", "claude-opus-5.5", fast_factor=Decimal(2), **_OPUS, **_SPEED_FLAGSHIP),
    _claude("claude-opus-5", "5 25 0.50", "claude-opus-5", **_SPEED_FLAGSHIP),
    _claude("claude-opus-4-8", "5 25 0.50", _OPUS_4, min_cache_tokens=1024, thinking="off", **_SPEED_FLAGSHIP),
    _claude("claude-opus-4-7", "5 25 0.50", _OPUS_4, min_cache_tokens=2048, thinking="off", **_SPEED_FLAGSHIP),
    _claude("claude-opus-4-6", "5 25 0.50", _OPUS_4, min_cache_tokens=4096, thinking="off",
            bytes_per_token=tokens.CLAUDE_OLD, **_SPEED_FLAGSHIP),
    _claude("claude-opus-4-5", "5 25 0.50", _OPUS_4, min_cache_tokens=4096, thinking="off", context=200_000,
            max_output=64_000, bytes_per_token=tokens.CLAUDE_OLD, prefill=True, **_SPEED_FLAGSHIP),
    # Whether Sonnet 5.5 takes a forced tool is disputed; the stricter reading is kept.
    _claude("claude-sonnet-5-5", "2 10 0.10", "claude-sonnet-5.5", thinking="always", default_effort="high",
            forced_tools=False),
    _claude("claude-sonnet-5", "2 10 0.20", "claude-sonnet-5", min_cache_tokens=1024),
    _claude("claude-sonnet-4-6", "3 15 0.30", "claude-sonnet-4.x", min_cache_tokens=1024, thinking="off",
            bytes_per_token=tokens.CLAUDE_OLD),
    _claude("claude-sonnet-4-5", "3 15 0.30", "claude-sonnet-4.x", min_cache_tokens=1024, thinking="off",
            context=200_000, max_output=64_000, bytes_per_token=tokens.CLAUDE_OLD, prefill=True,
            shutdown="2026-11-30"),
    _claude("claude-haiku-5-5", "0.10 0.50 0.01", "claude-haiku-5.5",
            long_prices=_prices("0.50 2.50 0.05"), long_above=100_000, **_SPEED_SMALL),
    _claude("claude-haiku-4-5", "1 5 0.10", "claude-haiku-4.5", min_cache_tokens=4096, thinking="off",
            context=200_000, max_output=64_000, bytes_per_token=tokens.CLAUDE_OLD, prefill=True, **_SPEED_SMALL),
    # GPT-6.2: cache prices are assumed (Astra read from the announced discount, Sol as GPT-6.1).
    _gpt("gpt-6.2-astra", "8 40 0.40", efforts=GPT_EFFORTS[2:], created="2026-11-17", **_SPEED_FLAGSHIP),
    _gpt("gpt-6.2-sol", "2 10 0.10", created="2026-11-17"),
    _gpt("gpt-6.1-sol", "2 10 0.10"),
    _gpt("gpt-6.1-terra", "1 5 0.05", first_token_s=0.6, tokens_per_s=110.0),
    _gpt("gpt-6-astra", "10 50 1.0", **_SPEED_FLAGSHIP),
    _gpt("gpt-6-sol", "2 10 0.20"),
    _gpt("gpt-6-luna", "0.10 0.50 0.01", **_SPEED_SMALL),
    _gpt("gpt-5.6-sol", "4 20 0.40"),
    _gpt("gpt-5.6-terra", "2 12 0.20", first_token_s=0.6, tokens_per_s=110.0),
    _gpt("gpt-5.6-luna", "0.20 1.20 0.02", **_SPEED_SMALL),
    _gpt("gpt-5.5", "5 30 0.50", charges_writes=False, priority_factor=Decimal("2.5"), created="2026-04-23",
         **_SPEED_FLAGSHIP),
    _gpt("gpt-5.4", "2.5 15 0.25", charges_writes=False),
    _gpt("gpt-5.4-mini", "0.75 4.5 0.075", charges_writes=False, context=400_000),
    _gpt("gpt-5.4-nano", "0.20 1.25 0.02", charges_writes=False, context=400_000, **_SPEED_SMALL),
)  # fmt: skip

# A dated id is the same model; the answer repeats the id that was asked for.
_ALIASES = {
    "claude-haiku-4-5-20251001": "claude-haiku-4-5",
    "claude-opus-4-5-20251101": "claude-opus-4-5",
    "claude-sonnet-4-5-20250929": "claude-sonnet-4-5",
    "gpt-5.5-2026-04-23": "gpt-5.5",
}


class ModelFileError(ValueError):
    """The file given with --models cannot be used; the message names the row and the remedy."""


class Catalogue:
    """The models this sandbox serves."""

    def __init__(self, extra: tuple[Model, ...] = ()) -> None:
        self._models = {model.id: model for model in (*_TABLE, *extra)}

    def find(self, name: str, provider: str) -> Model | None:
        """Return the model of that provider, or None: an id of the other provider is unknown here."""
        model = self._models.get(_ALIASES.get(name, name))
        return model if model is not None and model.provider == provider else None

    def of(self, provider: str) -> list[Model]:
        """Return the provider's models in table order."""
        return [model for model in self._models.values() if model.provider == provider]

    def __iter__(self) -> Any:
        return iter(self._models.values())


_FIELDS = {
    "id", "provider", "input", "output", "cache_read", "cache_write", "cache_write_long", "long_above", "long_input",
    "long_output", "long_cache_read", "context", "max_output", "limit_class", "bytes_per_token", "min_cache_tokens",
    "thinking", "legacy", "first_token_ms", "tokens_per_s", "created",
}  # fmt: skip


def read_models(path: Path) -> tuple[Model, ...]:
    """Return the rows of a TOML file of `[[model]]` tables.

    Needed: id, provider ("anthropic" or "openai"), input, output (USD per million tokens; strings keep every digit,
    plain TOML numbers too). A row without `thinking` is an old model: no thinking, sampling parameters allowed.

    Raises:
        ModelFileError: the file is not TOML, or a row lacks a field, has an unknown one or a value that cannot be.
    """
    try:
        rows = tomllib.loads(path.read_text("utf-8"), parse_float=Decimal).get("model", [])
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
        raise ModelFileError(f"{path}: cannot be read as TOML: {exc}") from exc
    if not isinstance(rows, list) or not rows:
        raise ModelFileError(f"{path}: has no [[model]] table; write one for each model to add")
    return tuple(_row(row, f"{path}: model {number}") for number, row in enumerate(rows, 1))


def _row(row: Any, where: str) -> Model:
    if not isinstance(row, dict):
        raise ModelFileError(f"{where}: is not a table; write [[model]]")
    if unknown := sorted(set(row) - _FIELDS):
        raise ModelFileError(f"{where}: unknown key {unknown[0]!r}; known keys are {', '.join(sorted(_FIELDS))}")
    for needed in ("id", "provider", "input", "output"):
        if needed not in row:
            raise ModelFileError(f"{where}: lacks {needed!r}")
    if row["provider"] not in ("anthropic", "openai"):
        raise ModelFileError(f'{where}: provider is {row["provider"]!r}; write "anthropic" or "openai"')
    where = f"{where} ({row['id']})"

    def money(key: str, default: Decimal) -> Decimal:
        try:
            amount = Decimal(str(row[key])) if key in row else default
        except InvalidOperation as exc:
            raise ModelFileError(f'{where}: {key} is {row[key]!r}; write USD per million tokens, like "2.50"') from exc
        if not amount.is_finite() or amount < 0:
            raise ModelFileError(f"{where}: {key} is {amount}; a price is finite and not negative")
        return amount

    def whole(key: str, default: int) -> int:
        value = row.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
            raise ModelFileError(f"{where}: {key} is {value!r}; write a whole number above 0")
        return value

    def number(key: str, default: float) -> float:
        value = row.get(key, default)
        if not isinstance(value, int | float | Decimal) or isinstance(value, bool) or value <= 0:
            raise ModelFileError(f"{where}: {key} is {value!r}; write a number above 0")
        return float(value)

    anthropic = row["provider"] == "anthropic"
    plain, output = money("input", Decimal(0)), money("output", Decimal(0))
    prices = Prices(
        plain,
        output,
        money("cache_read", plain),
        money("cache_write", plain * Decimal("1.25") if anthropic else plain),
        money("cache_write_long", plain * 2 if anthropic else plain),
    )
    long_prices = None
    if "long_above" in row:
        long_input = money("long_input", plain)
        factor = str(long_input / plain) if plain else "1"
        long_prices = replace(
            prices.times(factor, "1"),
            input=long_input,
            output=money("long_output", output),
            read=money("long_cache_read", prices.read),
        )
    thinking = row.get("thinking", "none")
    if thinking not in ("always", "on", "off", "none"):
        raise ModelFileError(f"{where}: thinking is {thinking!r}; write always, on, off or none")
    return Model(
        id=str(row["id"]),
        provider=row["provider"],
        prices=prices,
        long_prices=long_prices,
        long_above=whole("long_above", 1) if long_prices else None,
        context=whole("context", 200_000),
        max_output=whole("max_output", 16_384),
        limit_class=str(row.get("limit_class", row["id"])),
        bytes_per_token=number("bytes_per_token", tokens.CLAUDE_OLD if anthropic else tokens.GPT),
        min_cache_tokens=whole("min_cache_tokens", 1024),
        charges_writes=anthropic or "cache_write" in row,
        thinking=thinking,
        efforts=CLAUDE_EFFORTS if anthropic else GPT_EFFORTS,
        prefill=True,
        legacy=bool(row.get("legacy", thinking == "none")),
        first_token_s=number("first_token_ms", 500) / 1000,
        tokens_per_s=number("tokens_per_s", 80),
        created=_date(str(row.get("created", "2024-01-01")), where),
    )


def _date(value: str, where: str) -> str:
    if not re.fullmatch(r"\d{4}-\d{2}-\d{2}", value):
        raise ModelFileError(f"{where}: created is {value!r}; write YYYY-MM-DD")
    return value
