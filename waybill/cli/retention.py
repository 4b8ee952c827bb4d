"""`waybill retention` and `waybill erase`: how long text is kept, and its deletion for one tenant. The ledger's rows stay."""

from __future__ import annotations

import click

from waybill.cli.desk import Desk, at_desk, refuse

BATCH = 500


@click.group()
def retention() -> None:
    """Say how long what was asked and answered is kept. Control deletes what is older; costs stay on the ledger."""


@retention.command()
@click.argument("tenant")
@click.argument("days", type=click.IntRange(0, 36500))
def set(tenant: str, days: int) -> None:  # noqa: A001  # the verb
    """Keep text of TENANT for DAYS after a job's end. TENANT `*` stands for all that have no rule of their own."""
    from waybill.ledger import retention as sql

    async def work(desk: Desk) -> None:
        await desk.ask(sql.SET, {"tenant": tenant, "days": days})
        click.echo(f"{tenant}: text is deleted {days} day(s) after a job's end; control begins within a minute")

    at_desk(work)


@retention.command()
@click.argument("tenant")
def unset(tenant: str) -> None:
    """Drop TENANT's rule."""
    from waybill.ledger import retention as sql

    async def work(desk: Desk) -> None:
        if not await desk.ask(sql.UNSET, {"tenant": tenant}):
            refuse(f"there is no rule for {tenant}; `waybill retention show` lists them")
        click.echo(f"{tenant}: the rule is dropped")

    at_desk(work)


@retention.command()
def show() -> None:
    """List the rules."""
    from waybill.ledger import retention as sql

    async def work(desk: Desk) -> None:
        rows = await desk.ask(sql.SHOW)
        for row in rows:
            click.echo(f"{row['tenant']:<30} {row['days']} day(s)")
        if not any(row["tenant"] == "*" for row in rows):
            click.echo("all others: text is kept for ever")

    at_desk(work)


@click.command()
@click.argument("tenant")
@click.option("--yes", is_flag=True, help="Do it; without, only say what would be done.")
def erase(tenant: str, yes: bool) -> None:
    """Delete everything that TENANT asked and was answered, and cancel what it still waits for. Cannot be undone.

    Accounting stays: jobs, attempts and what they cost, without text, keys of its own and names of runs. Backups that were
    made before still have the text until they are deleted.
    """
    from waybill.ledger import cascades, heads, queries
    from waybill.ledger import retention as sql

    async def work(desk: Desk) -> None:
        waiting = await desk.ask(sql.STILL_OPEN, {"tenant": tenant})
        if not yes:
            click.echo(
                f"{tenant}: {waiting[0]['jobs']} unfinished job(s) would be cancelled and all text deleted; add --yes"
            )
            return
        while rows := await desk.ask(sql.UNFINISHED, {"tenant": tenant, "limit": BATCH}):
            await desk.ask(queries.CANCEL, {"ids": [row["id"] for row in rows]})
        jobs = 0
        while rows := await desk.ask(sql.ERASE, {"tenant": tenant, "limit": BATCH, "keys_too": True}):
            jobs += len(rows)
        files = (await desk.ask(sql.ERASE_REST, {"tenant": tenant}))[0]["files"]
        forgotten = await desk.ask(cascades.FORGET, {"tenant": tenant})
        if forgotten:
            click.echo(
                f"{tenant}: {len(forgotten)} learned cascade(s) are deleted; fit them again with `waybill policy fit`"
            )
        if headless := await desk.ask(heads.FORGET, {"tenant": tenant}):
            click.echo(
                f"{tenant}: {len(headless)} label head(s) are deleted; others' labels make new ones by themselves"
            )
        click.echo(f"{tenant}: the text of {jobs} job(s) and {files} file(s) is deleted")
        left = (await desk.ask(sql.STILL_OPEN, {"tenant": tenant}))[0]["jobs"]
        if left:
            refuse(f"{left} call(s) are still under way; they are being cancelled. Run this again in a minute")

    at_desk(work)
