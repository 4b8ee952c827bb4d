"""The fleet at a glance, read from the ledger and from Redis: for `waybill status`, the dashboard and the exporter. Changes nothing.

Redis may be away; then breakers and headroom are unknown and everything else is told all the same.
"""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from waybill.ledger import oncall
from waybill.names import BEATS_KEY, COUNTERS_KEY, HEALTH_KEY, LIMIT_PREFIX

if TYPE_CHECKING:
    from policies.policyfile import Policy

WINDOW_S: Final = 900.0
"""Rates and percentiles are over the last quarter of an hour."""
CHANGES: Final = 10
BATCHES: Final = 20
DIMENSIONS: Final = {"r": "requests", "i": "input_tokens", "o": "output_tokens", "t": "tokens"}
RECOVERING_S: Final = 8.0

Ask = Callable[[str, Mapping[str, Any] | None], Awaitable[Sequence[Any]]]
"""Runs a statement on the ledger: `Ledger.fetch` or a desk's `ask`."""


@dataclass(frozen=True, slots=True)
class Hints:
    """What Redis says.

    Attributes:
        health: Breakers by lane and account.
        limits: The limiter's levels by `provider:account:class`.
        counters: Events of all processes.
        beats: Duty of control -> when it was last done (seconds since 1970).
        memory: Share of maxmemory (else of the machine's memory) in use.
        trouble: None, or why Redis is not read.
        now: Redis's clock; ours while it is away.
    """

    health: Mapping[str, Any] = field(default_factory=dict)
    limits: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    counters: Mapping[str, int] = field(default_factory=dict)
    beats: Mapping[str, float] = field(default_factory=dict)
    memory: float | None = None
    trouble: str | None = None
    now: float = 0.0


async def read_hints(redis: Any) -> Hints:
    """What Redis says; `redis` None = no Redis is known."""
    from redis.exceptions import RedisError

    if redis is None:
        return Hints(trouble="WAYBILL_REDIS_URL is not set", now=time.time())
    try:
        seconds, micros = await redis.time()
        health = {name.decode(): _object(text) for name, text in (await redis.hgetall(HEALTH_KEY)).items()}
        limits = {}
        async for key in redis.scan_iter(match=f"{LIMIT_PREFIX}{{*}}", count=1000):
            flat = await redis.hgetall(key)
            limits[key.decode()[len(LIMIT_PREFIX) + 1 : -1]] = {
                name.decode(): float(value) for name, value in flat.items() if value
            }
        counters = {name.decode(): int(count) for name, count in (await redis.hgetall(COUNTERS_KEY)).items()}
        beats = {name.decode(): float(at) for name, at in (await redis.hgetall(BEATS_KEY)).items()}
        memory = await redis.info("memory")
    except (RedisError, OSError) as exc:
        return Hints(trouble=f"Redis does not answer: {exc}", now=time.time())
    most = memory.get("maxmemory") or memory.get("total_system_memory")
    used = memory["used_memory"] / most if most else None
    return Hints(health, limits, counters, beats, used, None, int(seconds) + int(micros) / 1e6)


async def read_overview(ask: Ask, hints: Hints, policy: Policy | None, changes: int = CHANGES) -> dict[str, Any]:
    """What a screen shows, for programs.

    Returns:
        `lanes`, `intents`, `holds`, `accounts`, `route_changes`, `batches` (lists), `dead` (count) and `redis` (None, or
        why it is not read).
    """
    rows = {row["lane"]: dict(row) for row in await ask(oncall.LANES, {"window_s": WINDOW_S})}
    under_way = {row["lane"]: row["jobs"] for row in await ask(oncall.UNDER_WAY, None)}
    names = sorted({*rows, *under_way, *(name for name in hints.health if "@" not in name)})
    holds = [dict(row) for row in await ask(oncall.HOLDS, None)]
    drained = {row["name"]: row for row in holds if row["kind"] == "provider"}
    lanes = []
    for name in names:
        row = rows.get(name, {})
        breaker = hints.health.get(name, {})
        provider, _, rest = name.partition("/")
        left = headroom(policy, hints, provider, rest.rpartition("/")[0])
        lanes.append(
            {
                "lane": name,
                "state": "drained"
                if provider in drained
                else "unknown"
                if hints.trouble
                else breaker_state(breaker, hints.now),
                "reason": drained[provider]["reason"] if provider in drained else breaker.get("reason", ""),
                "headroom": min(left.values()) if left else None,
                "in_flight": under_way.get(name, 0),
                "answered": row.get("answered", 0),
                "throttled": row.get("throttled", 0),
                "failed": row.get("failed", 0),
                "median_s": row.get("median_s"),
                "last_success": row.get("last_success"),
            }
        )
    return {
        "lanes": lanes,
        "intents": [dict(row) for row in await ask(oncall.INTENTS, {"window_s": WINDOW_S})],
        "holds": holds + await _paused_runs(ask),
        "accounts": refused_accounts(hints),
        "route_changes": [dict(row) for row in await ask(oncall.ROUTE_CHANGES, {"limit": changes})],
        "batches": [dict(row) for row in await ask(oncall.OPEN_BATCHES, {"limit": BATCHES})],
        "dead": (await ask(oncall.DEAD_COUNT, None))[0]["jobs"],
        "redis": hints.trouble,
    }


async def _paused_runs(ask: Ask) -> list[dict[str, Any]]:
    rows = await ask("select id::text, name, created_at from runs where state = 'paused' order by created_at", None)
    return [{"kind": "run", "name": row["id"], "reason": row["name"], "since": None} for row in rows]


def _object(text: bytes) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def refused_accounts(hints: Hints) -> list[dict[str, Any]]:
    """Accounts that are left alone as a whole."""
    return [
        {"account": name, "state": breaker_state(breaker, hints.now), "reason": breaker.get("reason", "")}
        for name, breaker in sorted(hints.health.items())
        if "@" in name and breaker_state(breaker, hints.now) != "closed"
    ]


def breaker_state(breaker: Mapping[str, Any], now: float) -> str:
    """The breaker's state now; time alone moves it on from what was written last."""
    state = str(breaker.get("state", "closed"))
    if state == "open" and now >= breaker.get("until", 0):
        return "half_open"
    if state == "recovering" and now >= breaker.get("since", 0) + RECOVERING_S:
        return "closed"
    return state


def headroom(policy: Policy | None, hints: Hints, provider: str, model: str) -> dict[str, float]:
    """Share that is left of each limit (by DIMENSIONS' names) in the account with most; empty = no limit is known.

    A lane that was asked to wait has nothing left of any.
    """
    if policy is None:
        return {}
    from policies.limits import limit_class, spec_for

    spec = spec_for(model, policy.limits)
    best: dict[str, float] = {}
    for name, state in hints.limits.items():
        of_provider, _, rest = name.partition(":")
        if of_provider != provider or rest.partition(":")[2] != limit_class(model):
            continue
        shares = {}
        blocked = state.get("blocked", 0) / 1e6 > hints.now
        for dimension, told in DIMENSIONS.items():
            known = [n for n in (spec.ceilings()[dimension], state.get(f"q{dimension}", 0)) if n > 0]
            if known and f"l{dimension}" in state:
                most = min(known)
                passed_s = max(0.0, hints.now - state.get("at", 0) / 1e6)
                level = state[f"l{dimension}"] + most / 60 * passed_s
                shares[told] = 0.0 if blocked else max(0.0, min(1.0, level / (most * spec.burst_s / 60)))
            elif blocked and dimension == "r":
                shares[told] = 0.0
        if shares and (not best or min(shares.values()) > min(best.values())):
            best = shares
    return best


def routes_available(policy: Policy, hints: Hints, out: set[str]) -> dict[str, int]:
    """Per intent: how many models of its chain can be called now, as far as breakers, accounts and drains tell.

    Args:
        policy: In force.
        hints: Of now.
        out: Providers that are drained or have no workers.
    """
    providers_out = {
        provider
        for provider in {account["account"].partition("@")[0] for account in refused_accounts(hints)}
        if all(
            breaker_state(breaker, hints.now) == "open"
            for name, breaker in hints.health.items()
            if name.startswith(f"{provider}@")
        )
    }
    found = {}
    for intent in policy.intents():
        usable = 0
        for model_id in policy.plans[intent].chain:
            model = policy.models[model_id]
            # Interactive and batch work share the breaker of a lane; the chain's models have one service each.
            states = [
                breaker_state(breaker, hints.now)
                for name, breaker in hints.health.items()
                if "@" not in name and name.startswith(f"{model.provider}/{model_id}/")
            ]
            closed = not states or any(state != "open" for state in states)
            usable += closed and model.provider not in out and model.provider not in providers_out
        found[intent] = usable
    return found
