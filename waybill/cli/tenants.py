"""`waybill keys`, `waybill tenants`, `waybill budgets`: who may use the gateway, and what they may spend."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING

import click

from waybill.cli.desk import Desk, at_desk, refuse
from waybill.cli.money import USD
from waybill.ledger import budgets as spending
from waybill.ledger import keys as keyring

if TYPE_CHECKING:
    from waybill.ledger.engine import Row


def _json(rows: Sequence[Row]) -> str:
    return json.dumps([dict(row) for row in rows], default=str)


# --- keys -------------------------------------------------------------------------------------------------------------


@click.group()
def keys() -> None:
    """Keys to the gateway. A key is shown once, when it is made."""


@keys.command("create")
@click.argument("tenant")
@click.option("--name", default="", help="What it is for, for people.")
@click.option("--scope", "scopes", multiple=True, help="call, jobs or admin; several times. Default: call and jobs.")
@click.option("--days", type=click.IntRange(1, 3650), default=None, help="Until it expires; default: never.")
@click.option(
    "--rpm", type=click.IntRange(min=1), default=None, help="Requests a minute; default: no limit of its own."
)
@click.option("--concurrency", type=click.IntRange(min=1), default=None, help="Requests open at once.")
@click.option("--budget", type=USD, default=None, help="USD it may spend in all (more kinds: waybill budgets set).")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def keys_create(
    tenant: str,
    name: str,
    scopes: tuple[str, ...],
    days: int | None,
    rpm: int | None,
    concurrency: int | None,
    budget: Decimal | None,
    as_json: bool,
) -> None:
    """Make a key of TENANT and show it, this once."""
    made = keyring.make_key()
    fields = {
        "id": made.id,
        "tenant": keyring.check_tenant(tenant),
        "name": name,
        "hash": made.hash,
        "hint": made.hint,
        "scopes": keyring.check_scopes(scopes or keyring.DEFAULT_SCOPES),
        "requests_per_minute": rpm,
        "concurrency": concurrency,
        "expires_at": None if days is None else datetime.now(UTC) + timedelta(days=days),
    }

    async def work(desk: Desk) -> None:
        await desk.ask(keyring.CREATE, fields)
        if budget is not None:
            await desk.ask(spending.SET, _budget("key", made.id, "total", budget, "stop", (50, 80, 100)))

    at_desk(work)
    if as_json:
        click.echo(json.dumps({"id": made.id, "tenant": tenant, "key": made.secret}))
        return
    click.echo(made.secret)
    click.echo(f"key {made.id} of tenant {tenant}; it is kept nowhere, so copy it now", err=True)


@keys.command("list")
@click.option("--tenant", default=None)
@click.option("--all", "everything", is_flag=True, help="Revoked ones, too.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def keys_list(tenant: str | None, everything: bool, as_json: bool) -> None:
    """List keys by tenant."""
    rows = at_desk(lambda desk: desk.ask(keyring.LIST, {"tenant": tenant, "all": everything}))
    if as_json:
        click.echo(_json(rows))
        return
    now = datetime.now(UTC)
    for row in rows:
        state = (
            "revoked" if row["revoked_at"] else ("expired" if keyring.is_expired(row["expires_at"], now) else "open")
        )
        limits = [f"{row['requests_per_minute']}/min"] * bool(row["requests_per_minute"])
        limits += [f"{row['concurrency']} at once"] * bool(row["concurrency"])
        used = f"{row['last_used_at']:%Y-%m-%d %H:%M}" if row["last_used_at"] else "never used"
        click.echo(
            f"{row['id']}  ...{row['hint']}  {state:<7}  {row['tenant']:<16} {','.join(row['scopes']):<15}"
            f" {', '.join(limits):<20} {used:<16}  {row['name']}"
        )
    if not rows:
        click.echo("no keys; make one with `waybill keys create TENANT`")


@keys.command("revoke")
@click.argument("key_id")
def keys_revoke(key_id: str) -> None:
    """Close KEY_ID (as `waybill keys list` shows it). Gateways notice within seconds; jobs it has submitted go on."""
    if not at_desk(lambda desk: desk.ask(keyring.REVOKE, {"id": key_id, "tenant": None})):
        refuse(f"no open key {key_id}; `waybill keys list --all` shows all")
    click.echo(f"key {key_id} is revoked")


# --- tenants ----------------------------------------------------------------------------------------------------------


@click.group()
def tenants() -> None:
    """Tenants: whose jobs and money are kept apart."""


@tenants.command("add")
@click.argument("name")
@click.option(
    "--weight", type=click.IntRange(1, 100), default=1, show_default=True, help="Turns for each turn of another."
)
def tenants_add(name: str, weight: int) -> None:
    """Add NAME. Making a key or setting a weight does it, too."""
    params = {"name": keyring.check_tenant(name), "weight": weight}
    if not at_desk(lambda desk: desk.ask(keyring.ADD_TENANT, params)):
        refuse(f"tenant {name} is there already")
    click.echo(f"tenant {name} added; next: waybill keys create {name}")


@tenants.command("list")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def tenants_list(as_json: bool) -> None:
    """List tenants with their keys and what they spent in 30 days."""
    rows = at_desk(lambda desk: desk.ask(keyring.TENANTS, {"name": None}))
    if as_json:
        click.echo(_json(rows))
        return
    for row in rows:
        click.echo(
            f"{row['name']:<24} {'suspended' if row['suspended_at'] else 'open':<10} weight {row['weight']:<4}"
            f" {row['keys']:>4} keys  {row['jobs_30_days']:>8} jobs  ${row['usd_30_days']:.4f} in 30 days"
        )
    if not rows:
        click.echo("no tenants; jobs without one belong to `default`")


@tenants.command("suspend")
@click.argument("name")
def tenants_suspend(name: str) -> None:
    """Let none of NAME's keys in. Jobs that were accepted go on; cancel them with `waybill cancel`."""
    _suspend(name, suspended=True)
    click.echo(f"tenant {name} is suspended. Undo: waybill tenants reopen {name}")


@tenants.command("reopen")
@click.argument("name")
def tenants_reopen(name: str) -> None:
    """Undo a suspension."""
    _suspend(name, suspended=False)
    click.echo(f"tenant {name} is open")


def _suspend(name: str, *, suspended: bool) -> None:
    if not at_desk(lambda desk: desk.ask(keyring.SUSPEND, {"name": name, "suspended": suspended})):
        refuse(f"no tenant {name}; `waybill tenants list` shows all")


# --- budgets ----------------------------------------------------------------------------------------------------------


@click.group()
def budgets() -> None:
    """What tenants, keys and runs may spend. What a call is likely to cost is reserved before it is made."""


def _subject(tenant: str | None, key: str | None, run: str | None) -> tuple[str, str]:
    named = [(scope, name) for scope, name in (("tenant", tenant), ("key", key), ("run", run)) if name is not None]
    if len(named) != 1:
        refuse("say whose budget: --tenant NAME, --key ID or --run ID")
    return named[0]


def _budget(
    scope: str, subject: str, period: str, cap: Decimal, at_cap: str, shares: Sequence[int]
) -> dict[str, object]:
    return {
        "scope": scope,
        "subject": subject,
        "period": period,
        "cap_usd": cap,
        "at_cap": at_cap,
        "alert_shares": sorted(set(shares)),
    }


async def _check_subject(desk: Desk, scope: str, subject: str) -> str:
    """The subject as the ledger names it; refuses what is not there."""
    if scope == "tenant":
        return keyring.check_tenant(subject)
    if scope == "key":
        if not await desk.ask("select from api_keys where id = %(id)s", {"id": subject}):
            refuse(f"no key {subject}; `waybill keys list` shows all")
        return subject
    rows = await desk.ask(
        "select id::text from runs where id::text like %(prefix)s or name = %(name)s limit 2",
        {"prefix": f"{subject}%" if len(subject) >= 8 else "", "name": subject},
    )
    if len(rows) != 1:
        refuse(f"several runs fit {subject!r}; give the id" if rows else f"no run {subject!r} in this ledger")
    return str(rows[0]["id"])


@budgets.command("set")
@click.argument("usd", type=USD)
@click.option("--tenant")
@click.option("--key")
@click.option("--run")
@click.option(
    "--period", type=click.Choice(["total", "day", "month"]), default=None, help="Default: month; runs: total."
)
@click.option(
    "--at-cap",
    type=click.Choice(["stop", "park", "cheaper"]),
    default="stop",
    show_default=True,
    help="What becomes of jobs it does not pay for: fail, wait, or take a cheaper model.",
)
@click.option("--alert", "shares", type=click.IntRange(1, 100), multiple=True, help="Percent; default 50, 80, 100.")
def budgets_set(
    usd: Decimal,
    tenant: str | None,
    key: str | None,
    run: str | None,
    period: str | None,
    at_cap: str,
    shares: tuple[int, ...],
) -> None:
    """Let a tenant, key or run spend USD and no more. Setting it again changes it; days and months are UTC."""
    scope, name = _subject(tenant, key, run)
    chosen = period or ("total" if scope == "run" else "month")

    async def work(desk: Desk) -> tuple[str, int]:
        subject = await _check_subject(desk, scope, name)
        rows = await desk.ask(spending.SET, _budget(scope, subject, chosen, usd, at_cap, shares or (50, 80, 100)))
        return subject, len(await desk.ask(spending.LET_ASK, {"id": rows[0]["id"]}))

    subject, waiting = at_desk(work)
    asks = f"; {waiting} waiting jobs ask again" if waiting else ""
    click.echo(f"{scope} {subject} may spend ${usd:f} ({chosen}), then: {at_cap}{asks}")


@budgets.command("list")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def budgets_list(as_json: bool) -> None:
    """List budgets with what is spent and reserved."""
    rows = at_desk(lambda desk: desk.ask(spending.LIST, {"scope": None, "subjects": None}))
    if as_json:
        click.echo(_json(rows))
        return
    for row in rows:
        share = f"{row['spent_usd'] / row['cap_usd'] * 100:.0f} %" if row["cap_usd"] else "-"
        until = f"until {row['resets_at']:%Y-%m-%d}" if row["resets_at"] else ""
        click.echo(
            f"{row['scope']:<6} {row['subject']:<36} {row['period']:<6} ${row['spent_usd']:.4f} of ${row['cap_usd']:.2f}"
            f" ({share}), ${row['reserved_usd']:.4f} reserved, then {row['at_cap']} {until}".rstrip()
        )
    if not rows:
        click.echo("no budgets; set one with `waybill budgets set USD --tenant NAME`")


@budgets.command("remove")
@click.option("--tenant")
@click.option("--key")
@click.option("--run")
@click.option("--period", type=click.Choice(["total", "day", "month"]), default=None, help="Default: all periods.")
def budgets_remove(tenant: str | None, key: str | None, run: str | None, period: str | None) -> None:
    """Lift a budget. What was spent stays on the ledger."""
    scope, name = _subject(tenant, key, run)

    async def work(desk: Desk) -> int:
        subject = name if scope != "run" else await _check_subject(desk, scope, name)
        mine = await desk.ask(spending.LIST, {"scope": scope, "subjects": [subject]})
        for row in mine:
            await desk.ask(spending.LET_ASK, {"id": row["id"]})
        return len(await desk.ask(spending.REMOVE, {"scope": scope, "subject": subject, "period": period}))

    if not at_desk(work):
        refuse(f"{scope} {name} has no such budget; `waybill budgets list` shows all")
    click.echo(f"the budget of {scope} {name} is lifted")
