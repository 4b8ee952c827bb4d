"""`waybill status`: one screen for the person on call. Reads the ledger, and Redis where it answers; changes nothing."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, Final

import click

from waybill.cli.desk import Desk, at_desk
from waybill.names import HEALTH_KEY, LIMIT_PREFIX
from waybill.settings import Settings

WINDOW_S: Final = 900.0
"""Rates and percentiles are over the last quarter of an hour."""
_CHANGES: Final = 10
_DIMENSIONS: Final = ("r", "i", "o", "t")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="For programs: one object a line.")
@click.option("--watch", is_flag=True, help="Again and again until Ctrl-C.")
@click.option("--every", type=click.FloatRange(min=0.2), default=2.0, show_default=True, help="Seconds, with --watch.")
def status(as_json: bool, watch: bool, every: float) -> None:
    """Lanes (breaker, headroom, in flight, 429s), intents (waiting, oldest, p95, USD/h), latest changes of route."""

    async def work(desk: Desk) -> None:
        while True:
            found = await read_status(desk)
            if watch and not as_json:
                click.clear()
            click.echo(json.dumps(found, default=_plain) if as_json else screen(found))
            if not watch:
                return
            await asyncio.sleep(every)

    try:
        at_desk(work)
    except KeyboardInterrupt:
        return


def _plain(value: Any) -> Any:
    return float(value) if isinstance(value, Decimal) else str(value)


async def read_status(desk: Desk) -> dict[str, Any]:
    """What the screen shows, for programs.

    Returns:
        `lanes`, `intents`, `holds`, `accounts`, `route_changes` (lists), `dead` (count) and `redis` (None, or why it is
        not read; then breakers and headroom are unknown).
    """
    from waybill.ledger import oncall

    rows = {row["lane"]: dict(row) for row in await desk.ask(oncall.LANES, {"window_s": WINDOW_S})}
    under_way = {row["lane"]: row["jobs"] for row in await desk.ask(oncall.UNDER_WAY)}
    health, limits, trouble, now = await _read_redis(desk)
    names = sorted({*rows, *under_way, *(name for name in health if "@" not in name)})
    drained = {row["name"]: dict(row) for row in await desk.ask(oncall.HOLDS) if row["kind"] == "provider"}
    policy = _policy(desk.settings)
    lanes = []
    for name in names:
        row = rows.get(name, {})
        breaker = health.get(name, {})
        provider, _, rest = name.partition("/")
        lanes.append(
            {
                "lane": name,
                "state": "drained" if provider in drained else _state(breaker, now),
                "reason": drained[provider]["reason"] if provider in drained else breaker.get("reason", ""),
                "headroom": _headroom(policy, limits, provider, rest.rpartition("/")[0], now),
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
        "intents": [dict(row) for row in await desk.ask(oncall.INTENTS, {"window_s": WINDOW_S})],
        "holds": [dict(row) for row in await desk.ask(oncall.HOLDS)] + await _paused_runs(desk),
        "accounts": [
            {"account": name, "state": _state(breaker, now), "reason": breaker.get("reason", "")}
            for name, breaker in sorted(health.items())
            if "@" in name and _state(breaker, now) != "closed"
        ],
        "route_changes": [dict(row) for row in await desk.ask(oncall.ROUTE_CHANGES, {"limit": _CHANGES})],
        "dead": (await desk.ask(oncall.DEAD_COUNT))[0]["jobs"],
        "redis": trouble,
    }


async def _paused_runs(desk: Desk) -> list[dict[str, Any]]:
    rows = await desk.ask("select id::text, name, created_at from runs where state = 'paused' order by created_at")
    return [{"kind": "run", "name": row["id"], "reason": row["name"], "since": None} for row in rows]


async def _read_redis(desk: Desk) -> tuple[dict[str, Any], dict[str, dict[str, float]], str | None, float]:
    """Breakers, the limiter's levels by `provider:account:class`, what is wrong with Redis, and its clock."""
    from redis.exceptions import RedisError

    health: dict[str, Any] = {}
    limits: dict[str, dict[str, float]] = {}
    async with desk.redis() as redis:
        if redis is None:
            return health, limits, "WAYBILL_REDIS_URL is not set", time.time()
        try:
            seconds, micros = await redis.time()
            for name, text in (await redis.hgetall(HEALTH_KEY)).items():
                health[name.decode()] = _object(text)
            async for key in redis.scan_iter(match=f"{LIMIT_PREFIX}{{*}}", count=1000):
                flat = await redis.hgetall(key)
                limits[key.decode()[len(LIMIT_PREFIX) + 1 : -1]] = {
                    field.decode(): float(value) for field, value in flat.items() if value
                }
        except (RedisError, OSError) as exc:
            return health, limits, f"Redis does not answer: {exc}", time.time()
    return health, limits, None, int(seconds) + int(micros) / 1e6


def _object(text: bytes) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _state(breaker: Mapping[str, Any], now: float) -> str:
    """The breaker's state now; time alone moves it on from what was written last."""
    state = str(breaker.get("state", "closed"))
    if state == "open" and now >= breaker.get("until", 0):
        return "half_open"
    if state == "recovering" and now >= breaker.get("since", 0) + 8:
        return "closed"
    return state


def _policy(settings: Settings) -> Any:
    """The policy, where the checkout is there to read it."""
    try:
        from workers.runtime import load_policy
    except ModuleNotFoundError:
        return None
    return load_policy(settings)


def _headroom(
    policy: Any, limits: Mapping[str, Mapping[str, float]], provider: str, model: str, now: float
) -> float | None:
    """Share that is left in the emptiest bucket of the best account; None = no limit is known."""
    if policy is None:
        return None
    from policies.limits import limit_class, spec_for

    spec = spec_for(model, policy.limits)
    best: float | None = None
    for name, state in limits.items():
        of_provider, _, rest = name.partition(":")
        if of_provider != provider or rest.partition(":")[2] != limit_class(model):
            continue
        shares = []
        for dimension in _DIMENSIONS:
            known = [n for n in (spec.ceilings()[dimension], state.get(f"q{dimension}", 0)) if n > 0]
            if known and f"l{dimension}" in state:
                most = min(known)
                passed_s = max(0.0, now - state.get("at", 0) / 1e6)
                level = state[f"l{dimension}"] + most / 60 * passed_s
                shares.append(max(0.0, min(1.0, level / (most * spec.burst_s / 60))))
        if state.get("blocked", 0) / 1e6 > now:
            shares.append(0.0)
        if shares:
            best = max(best or 0.0, min(shares))
    return best


def screen(found: Mapping[str, Any]) -> str:
    """The status as text."""
    lines = [
        f"{time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime())} UTC; rates over the last {WINDOW_S / 60:.0f} minutes"
    ]
    if found["redis"]:
        lines.append(f"! {found['redis']}: breakers and headroom are unknown")
    for hold in found["holds"]:
        what = "drained" if hold["kind"] == "provider" else "paused"
        since = f" since {hold['since']:%H:%M:%S}" if hold["since"] else ""
        lines.append(f"! {hold['kind']} {hold['name']} is {what}{since}: {hold['reason']}")
    lines += [
        f"! account {account['account']} is refused ({account['state']}): {account['reason']}"
        for account in found["accounts"]
    ]
    if found["dead"]:
        lines.append(f"! {found['dead']} dead letters; see `waybill dlq list`")
    lines += ["", *_table(
        ("lane", "state", "headroom", "in flight", "answered", "429", "failed", "median s"),
        [
            (
                lane["lane"],
                lane["state"],
                "-" if lane["headroom"] is None else f"{lane['headroom']:.0%}",
                lane["in_flight"],
                lane["answered"],
                lane["throttled"],
                lane["failed"],
                _seconds(lane["median_s"]),
            )
            for lane in found["lanes"]
        ],
    )]  # fmt: skip
    lines += [
        f"  {lane['lane']}: {lane['reason']}" for lane in found["lanes"] if lane["state"] not in ("closed", "drained")
    ]
    lines += ["", *_table(
        ("intent", "queued", "on the way", "parked", "running", "oldest s", "done", "failed", "p95 s", "USD/h"),
        [
            (
                row["intent"],
                row["queued"],
                row["routed"],
                row["parked"],
                row["running"],
                _seconds(row["oldest_s"]),
                row["succeeded"],
                row["failed"],
                _seconds(row["p95_s"]),
                f"{row['usd_per_hour']:.4f}",
            )
            for row in found["intents"]
        ],
    )]  # fmt: skip
    if found["route_changes"]:
        lines += ["", "latest changes of route"]
    lines += [
        f"  {change['at']:%H:%M:%S} {change['job_id'][:13]} {change['outcome']}: {change['reason'][:100]}"
        for change in found["route_changes"]
    ]
    return "\n".join(lines)


def _seconds(value: Any) -> str:
    return "-" if value is None else f"{float(value):.1f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    """Columns, the first to the left, the others to the right."""
    texts = [head, *[[str(cell) for cell in row] for row in rows]]
    widths = [max(len(row[n]) for row in texts) for n in range(len(head))]
    return [
        "  ".join(
            cell.ljust(width) if n == 0 else cell.rjust(width)
            for n, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in texts
    ]
