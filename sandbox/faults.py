"""Faults on demand: which requests go wrong, and how.

A rule names a fault and the requests it falls on: all of them, a share (seeded, so that a run repeats), the nth, every
kth, those between two times, only some models, endpoints or tiers. The first rule that falls on a request wins.

What happens is the server's work; this file only decides. Each fault says whether the model ran, and so whether the
request is billed; a rule may say otherwise with `billed`.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any


@dataclass(frozen=True, slots=True)
class Kind:
    """One fault the sandbox knows."""

    name: str
    text: str
    # billed: whether the model ran; True bills the prompt and whatever output was produced.
    billed: bool
    # on: "any" request, only a "stream", or only a "whole" answer.
    on: str = "any"


_KINDS = (
    # Before the model: an error body, nothing billed.
    Kind("rate_limit", "429 with retry-after", False),
    Kind("rate_limit_bare", "429 without retry-after", False),
    Kind("ramp_limit", "429 for growing too fast: ramp_limit_exceeded / slow_down, with retry-after", False),
    Kind(
        "spend_limit", "429 enforced_spend_limit_reached (Claude) / insufficient_quota (OpenAI), no retry-after", False
    ),
    Kind("insufficient_quota", "the same as spend_limit, under OpenAI's name", False),
    Kind("overloaded", "529 overloaded_error (Claude) / 503 server_is_overloaded (OpenAI)", False),
    Kind("server_error", "500", False),
    Kind("unavailable", "503", False),
    Kind("unauthorized", "401, as if the key had been withdrawn", False),
    Kind("forbidden", "403", False),
    Kind("flex_unavailable", "429 resource_unavailable; put tier=flex on the rule to spare other requests", False),
    # On the way: the model was never reached.
    Kind("hang", "no byte of an answer, until the client leaves", False),
    Kind("reset", "TCP reset before the headers", False),
    Kind("html", "200 with a proxy's HTML page", False),
    # The model ran, the answer is damaged.
    Kind("cut_json", "200 whose JSON body stops half way", True, on="whole"),
    Kind("short_body", "200 whose body is shorter than its content-length", True, on="whole"),
    Kind("cut_stream", "TCP reset half way through the stream", True, on="stream"),
    Kind("early_end", "the stream ends half way, without an error and without its last events", True, on="stream"),
    Kind("hang_stream", "the stream stops half way and never ends", True, on="stream"),
    Kind("garbled_sse", "an event half way through the stream is not JSON", True, on="stream"),
    Kind("error_event", "an error event half way through a stream that began with 200", True, on="stream"),
    Kind("usage_missing", "no usage in the answer", True),
    Kind("usage_null", "usage is null", True),
    Kind("usage_negative", "usage counts are negative", True),
    Kind("usage_string", "usage counts are words", True),
    Kind("empty", "200 without any content", True),
    # The model ran and says so itself.
    Kind("refusal", "the model refuses", True),
    Kind("content_filter", "the answer is withheld by a filter (OpenAI) / refused (Claude)", True),
    Kind("max_tokens", "the answer is cut as if max_tokens had been reached", True),
    Kind("tier_downgrade", "flex or priority was asked for, default is served and billed", True),
    Kind("slow", "a good answer that comes `delay_s` later (default 5)", True),
    # Batches only.
    Kind("batch_expired", "a row of a batch that is not done within 24 hours; put endpoint=batch on the rule", True),
    Kind("batch_hidden", "a batch just made is a 404 and in no list for `delay_s`; endpoint=batches", False),
)
KINDS: Mapping[str, Kind] = {kind.name: kind for kind in _KINDS}


class FaultError(ValueError):
    """A rule cannot be used; the message names the key and what to write."""


@dataclass(slots=True)
class Rule:
    """When a fault falls on a request. Counts and times run from the moment the rule was added."""

    kind: Kind
    probability: float = 1.0
    # nth: counted among the requests this rule could fall on, from 1.
    nth: tuple[int, ...] = ()
    every: int | None = None
    # times: how often it may fall at most.
    times: int | None = None
    from_s: float = 0.0
    to_s: float | None = None
    # model, endpoint (messages, chat, responses; batch: a row, batches: making one, batch_reads) and tier: patterns.
    model: str = "*"
    endpoint: str = "*"
    tier: str = "*"
    # match: only requests whose user text contains this.
    match: str = ""
    retry_after_s: float = 1.0
    # at: how far into the answer it is cut, 0..1.
    at: float = 0.5
    delay_s: float = 5.0
    billed: bool | None = None
    id: int = 0
    added_ns: int = 0
    seen: int = 0
    hits: int = 0
    random: random.Random = field(default_factory=random.Random, repr=False)

    @property
    def is_billed(self) -> bool:
        """Whether a request this rule falls on is billed."""
        return self.kind.billed if self.billed is None else self.billed

    def falls(self, target: Target, now_ns: int) -> bool:
        """Decide for one request, and count it."""
        if self.times is not None and self.hits >= self.times:
            return False
        if self.kind.on != "any" and (self.kind.on == "stream") != target.stream:
            return False
        if not (
            fnmatchcase(target.model, self.model)
            and fnmatchcase(target.endpoint, self.endpoint)
            and fnmatchcase(target.tier, self.tier)
            and self.match in target.user_text
        ):
            return False
        elapsed_s = (now_ns - self.added_ns) / 1e9
        if elapsed_s < self.from_s or (self.to_s is not None and elapsed_s >= self.to_s):
            return False
        self.seen += 1
        if self.nth and self.seen not in self.nth:
            return False
        if self.every is not None and self.seen % self.every:
            return False
        if self.probability < 1.0 and self.random.random() >= self.probability:
            return False
        self.hits += 1
        return True

    def shown(self) -> dict[str, Any]:
        """Return the rule as JSON, with how often it was asked and how often it fell."""
        shown: dict[str, Any] = {"id": self.id, "fault": self.kind.name, "seen": self.seen, "hits": self.hits}
        for key, default in _DEFAULTS.items():
            if (value := getattr(self, key)) != default:
                shown[key] = list(value) if isinstance(value, tuple) else value
        return shown


@dataclass(frozen=True, slots=True)
class Target:
    """What a rule looks at."""

    model: str
    endpoint: str
    tier: str
    stream: bool
    user_text: str


_DEFAULTS: dict[str, Any] = {
    "probability": 1.0, "nth": (), "every": None, "times": None, "from_s": 0.0, "to_s": None, "model": "*",
    "endpoint": "*", "tier": "*", "match": "", "retry_after_s": 1.0, "at": 0.5, "delay_s": 5.0, "billed": None,
}  # fmt: skip


class Faults:
    """The rules in force, in the order they were added."""

    def __init__(self, *, seed: int = 0) -> None:
        self._seed = seed
        self._rules: list[Rule] = []
        self._next_id = 1

    def add(self, rule: Rule, *, now_ns: int) -> Rule:
        """Put a rule in force and give it its number and its own seeded randomness."""
        rule.id, rule.added_ns = self._next_id, now_ns
        rule.random = random.Random(f"{self._seed}:{rule.id}")
        self._next_id += 1
        self._rules.append(rule)
        return rule

    def remove(self, number: int | None = None) -> int:
        """Take one rule, or all, out of force; returns how many went."""
        before = len(self._rules)
        self._rules = [] if number is None else [rule for rule in self._rules if rule.id != number]
        return before - len(self._rules)

    def pick(self, target: Target, now_ns: int) -> Rule | None:
        """Return the rule that falls on this request, if any."""
        for rule in self._rules:
            if rule.falls(target, now_ns):
                return rule
        return None

    def __bool__(self) -> bool:
        return bool(self._rules)

    def shown(self) -> list[dict[str, Any]]:
        """Return all rules as JSON."""
        return [rule.shown() for rule in self._rules]


def rule_from(given: Mapping[str, Any]) -> Rule:
    """Return the rule of a JSON object: `fault` and any of the fields of Rule.

    Raises:
        FaultError: an unknown fault or key, or a value out of range.
    """
    if not isinstance(given, Mapping):
        raise FaultError(f'a fault rule is a JSON object like {{"fault": "overloaded"}}, not {given!r}')
    name = given.get("fault")
    if name not in KINDS:
        raise FaultError(f"unknown fault {name!r}; known are {', '.join(KINDS)}")
    if unknown := sorted(set(given) - set(_DEFAULTS) - {"fault"}):
        raise FaultError(f"{name}: unknown key {unknown[0]!r}; known are {', '.join(_DEFAULTS)}")
    rule = Rule(KINDS[str(name)])
    for key, value in given.items():
        if key != "fault":
            setattr(rule, key, _checked(str(name), key, value))
    if rule.to_s is not None and rule.to_s <= rule.from_s:
        raise FaultError(f"{name}: to_s is {rule.to_s}, not after from_s {rule.from_s}")
    return rule


def rule_from_text(text: str) -> Rule:
    """Return the rule of a command line word like `overloaded:probability=0.1,model=claude-haiku-*`."""
    name, _, rest = text.partition(":")
    given: dict[str, Any] = {"fault": name}
    for pair in filter(None, rest.split(",")):
        key, equals, value = pair.partition("=")
        if not equals:
            raise FaultError(f"{text!r}: {pair!r} is not key=value")
        key = {"p": "probability"}.get(key, key)
        given[key] = _scalar(key, value)
    return rule_from(given)


def _scalar(key: str, value: str) -> Any:
    if key in ("model", "endpoint", "tier", "match"):
        return value
    try:
        if key == "nth":
            return [int(part) for part in value.split("+")]
        if key in ("every", "times"):
            return int(value)
        if key == "billed":
            return {"true": True, "false": False}[value]
        return float(value)
    except (ValueError, KeyError) as exc:
        raise FaultError(f"{key}={value!r} cannot be read; numbers, nth=1+5+9, billed=true|false") from exc


def _checked(name: str, key: str, value: Any) -> Any:
    def refuse(wanted: str) -> FaultError:
        return FaultError(f"{name}: {key} is {value!r}; write {wanted}")

    match key:
        case "model" | "endpoint" | "tier" | "match":
            if not isinstance(value, str):
                raise refuse("a string")
        case "nth":
            value = tuple(value) if isinstance(value, list | tuple) else (value,)
            if not all(isinstance(place, int) and place > 0 for place in value):
                raise refuse("a number from 1 on, or a list of them")
        case "every" | "times":
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise refuse("a whole number from 1 on")
        case "billed":
            if value is not None and not isinstance(value, bool):
                raise refuse("true or false")
        case _:
            if key == "to_s" and value is None:
                return None
            if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < 1e9:
                raise refuse("a number from 0 on")
            if key in ("probability", "at") and value > 1:
                raise refuse("a number between 0 and 1")
    return value


def rules_from(given: Any) -> Iterable[Rule]:
    """Return the rules of an admin call's body: one object or a list of them; all are checked before any is used."""
    return [rule_from(one) for one in (given if isinstance(given, list) else [given])]
