"""The verbs for the person on call: drain, pause, resume, cancel, weight. What each does to jobs is in docs/oncall.md.

Every change is one statement on the ledger, so a verb works while the fleet is down and takes force when it is back. Redis
is only told so that it is quicker; where it is not known or does not answer, the fleet finds out by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import click

from waybill.cli.desk import Desk, at_desk, find_job, refuse
from waybill.names import HEALTH_KEY, PROVIDERS
from waybill.settings import Settings

if TYPE_CHECKING:
    from waybill.ledger.engine import Row

SPREAD_S: Final = 5.0
"""Parked jobs that are let go ask again within this time, not all at once."""


# --- drain and resume a provider --------------------------------------------------------------------------------------


@click.command()
@click.argument("provider")
@click.option(
    "--reason", default="by hand", show_default=True, help="Shown by `waybill status` and in each job's story."
)
def drain(provider: str, reason: str) -> None:
    """Send nothing more to PROVIDER. Calls under way end; jobs that can go elsewhere do; the others wait."""
    from waybill.ledger import oncall

    if provider not in PROVIDERS:
        refuse(f"no provider {provider!r}; there are: {', '.join(PROVIDERS)}")

    async def work(desk: Desk) -> int:
        await desk.ask(oncall.HOLD, {"kind": "provider", "name": provider, "reason": reason})
        rows = await desk.ask(oncall.UNDER_WAY)
        return sum(row["jobs"] for row in rows if row["lane"].startswith(f"{provider}/"))

    under_way = at_desk(work)
    click.echo(f"{provider} is drained; {under_way} calls are under way there. Undo: waybill resume {provider}")


@click.command()
@click.argument("name")
def resume(name: str) -> None:
    """Undo a drain or a pause: NAME is a provider, a run (id or name) or an intent."""
    click.echo(at_desk(lambda desk: _resume(desk, name)))


async def _resume(desk: Desk, name: str) -> str:
    from waybill.ledger import oncall

    if name in PROVIDERS:
        undone = await desk.ask(oncall.UNHOLD, {"kind": "provider", "name": name})
        accounts = await _forgive_accounts(desk, name)
        if not undone and not accounts:
            refuse(f"{name} is neither drained nor refused by its provider; see `waybill status`")
        rows = await desk.ask(oncall.LET_GO, {"provider": name, "model": None, "within_s": SPREAD_S})
        what = " and ".join(
            ["the drain is undone"] * bool(undone) + [f"{accounts} refused account(s) get a new try"] * bool(accounts)
        )
        return f"{name}: {what}; {len(rows)} parked jobs ask again within {SPREAD_S:.0f} s"
    run = await _find_run(desk, name)
    if run is not None:
        if run["state"] == "cancelled":
            refuse(f"run {run['id']} is cancelled, which cannot be undone; run its command again with --fresh")
        if not await desk.ask(oncall.SET_RUN, {"id": run["id"], "state": "open", "before": ["paused"]}):
            refuse(f"run {run['id']} is not paused")
        ringing = await _ring_waiting(desk, run_id=run["id"])
        return f"run {run['id']} ({run['name']}) goes on; rang for {ringing} jobs that waited on the way"
    undone = await desk.ask(oncall.UNHOLD, {"kind": "intent", "name": name})
    if not undone:
        await _require_intent(desk, name)
        refuse(f"intent {name} is not paused")
    ringing = await _ring_waiting(desk, intent=name)
    return f"intent {name} goes on; rang for {ringing} jobs that waited on the way"


async def _forgive_accounts(desk: Desk, provider: str) -> int:
    from redis.exceptions import RedisError

    async with desk.redis() as redis:
        if redis is None:
            return 0
        try:
            found = await redis.hgetall(HEALTH_KEY)
            fields = [
                field
                for field, text in found.items()
                if field.decode().startswith(f"{provider}@") and b'"state":"closed"' not in text
            ]
            if fields:
                await redis.hset(HEALTH_KEY, mapping=dict.fromkeys(fields, "{}"))
        except (RedisError, OSError) as exc:
            click.echo(f"Redis does not answer ({exc}); a refused account is tried again by itself", err=True)
            return 0
        return len(fields)


async def _ring_waiting(desk: Desk, *, run_id: str | None = None, intent: str | None = None) -> int:
    from waybill.broker import execute_doorbells
    from waybill.ledger import oncall

    rows = await desk.ask(oncall.WAITING_FOR_WORKERS, {"run_id": run_id, "intent": intent})
    await desk.ring(execute_doorbells((r["id"], r["provider"], r["priority"], r["intent"], r["model"]) for r in rows))
    return len(rows)


# --- pause ------------------------------------------------------------------------------------------------------------


@click.command()
@click.argument("name")
@click.option("--reason", default="by hand", show_default=True, help="Shown by `waybill status` (intents only).")
def pause(name: str, reason: str) -> None:
    """Start no more calls for NAME, a run (id or name) or an intent. Calls under way end; the rest stays where it is."""
    click.echo(at_desk(lambda desk: _pause(desk, name, reason)))


async def _pause(desk: Desk, name: str, reason: str) -> str:
    from waybill.ledger import oncall

    if name in PROVIDERS:
        refuse(f"{name} is a provider; write `waybill drain {name}`")
    run = await _find_run(desk, name)
    if run is not None:
        if not await desk.ask(oncall.SET_RUN, {"id": run["id"], "state": "paused", "before": ["open"]}):
            refuse(f"run {run['id']} is {run['state']} already")
        return f"run {run['id']} ({run['name']}) is paused. Undo: waybill resume {run['id'][:13]}"
    await _require_intent(desk, name)
    await desk.ask(oncall.HOLD, {"kind": "intent", "name": name, "reason": reason})
    return f"intent {name} is paused. Undo: waybill resume {name}"


async def _find_run(desk: Desk, name: str) -> Row | None:
    """The run of an id (or its first 8 characters) or a name; None when there is none."""
    from waybill.ledger import oncall

    clean = name.strip().lower()
    is_id = len(clean) >= 8 and all(c in "0123456789abcdef-" for c in clean)
    rows = await desk.ask(oncall.FIND_RUN, {"prefix": f"{clean}%" if is_id else "", "name": name})
    going_on = [row for row in rows if row["state"] != "cancelled"]
    if len(going_on) > 1:
        ids = ", ".join(row["id"] for row in going_on[:4])
        refuse(f"several runs fit {name!r}: {ids}{' ...' if len(going_on) > 4 else ''}; give the id")
    return next(iter(going_on or rows), None)


async def _require_intent(desk: Desk, name: str) -> None:
    from waybill.ledger import oncall

    known = {row["intent"] for row in await desk.ask(oncall.KNOWN_INTENTS)} | _policy_intents(desk.settings)
    if name not in known:
        refuse(
            f"{name!r} is no provider, run or intent of this ledger; intents: {', '.join(sorted(known)) or 'none yet'}"
        )


def _policy_intents(settings: Settings) -> set[str]:
    """Of the policy file, where the checkout is there to read it."""
    try:
        from workers.runtime import load_policy
    except ModuleNotFoundError:
        return set()
    return set(load_policy(settings).intents())


# --- cancel -----------------------------------------------------------------------------------------------------------


@click.command()
@click.argument("name")
def cancel(name: str) -> None:
    """Cancel a job or all of a run: NAME is a job's id, a run's id or its name. Calls under way are broken off and booked."""
    click.echo(at_desk(lambda desk: _cancel(desk, name)))


async def _cancel(desk: Desk, name: str) -> str:
    from waybill.ledger import oncall, queries

    run = await _find_run(desk, name)
    if run is not None:
        rows = await desk.ask(oncall.CANCEL_RUN, {"run_id": run["id"]})
        await _tell_waiting(desk, rows)
        return f"run {run['id']} ({run['name']}): {_told(rows)}"
    job_id = await find_job(desk, name)
    rows = await desk.ask(queries.CANCEL, {"ids": [job_id]})
    if not rows:
        refuse(f"job {job_id} is final already; nothing was changed")
    await _tell_waiting(desk, rows)
    return f"job {job_id}: {_told(rows)}"


def _told(rows: Sequence[Row]) -> str:
    running = sum(row["state"] == "running" for row in rows)
    line = f"{len(rows) - running} cancelled"
    return line + (f", {running} with a call under way are broken off within seconds" if running else "")


async def _tell_waiting(desk: Desk, rows: Sequence[Row]) -> None:
    """Wake clients that wait for these jobs. A hint: they look by themselves, too."""
    from redis.exceptions import RedisError

    from waybill.streaming import publish_end

    ids = [row["id"] for row in rows if row["state"] == "cancelled"]
    async with desk.redis() as redis:
        if redis is None:
            return
        try:
            for start in range(0, len(ids), 1000):
                await publish_end(redis, ids[start : start + 1000], [])
        except (RedisError, OSError):
            return


@click.command()
@click.argument("tenant")
@click.argument("turns", type=click.IntRange(1, 100))
def weight(tenant: str, turns: int) -> None:
    """Give TENANT that many TURNS for each turn of a tenant of weight 1, where several wait."""
    from waybill.ledger import oncall

    at_desk(lambda desk: desk.ask(oncall.SET_WEIGHT, {"name": tenant, "weight": turns}))
    click.echo(f"tenant {tenant} has weight {turns}")
