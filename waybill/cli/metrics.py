"""`waybill metrics` and `waybill bill`: what Prometheus scrapes, and the provider's side of the ledger gap."""

from __future__ import annotations

import asyncio
import sys
from datetime import datetime
from decimal import Decimal, InvalidOperation

import click

from waybill.cli.desk import Desk, at_desk, refuse
from waybill.cli.session import running_services
from waybill.names import PROVIDERS
from waybill.settings import Settings


@click.command()
@click.option("--once", is_flag=True, help="Print them and stop.")
def metrics(once: bool) -> None:
    """Serve the fleet's metrics on WAYBILL_METRICS_ADDRESS and WAYBILL_METRICS_PORT, at /metrics. Run one of these."""
    from workers.metricserver import read_once, run_metrics

    settings = Settings.from_env()
    if not once:
        sys.exit(run_metrics(settings))
    if found := running_services(settings):
        settings = Settings.from_env(
            {**_own(settings), "WAYBILL_DATABASE_URL": found[0], "WAYBILL_REDIS_URL": found[1]}
        )
    click.echo(asyncio.run(read_once(settings)), nl=False)


def _own(settings: Settings) -> dict[str, str]:
    return {} if settings.policy_file is None else {"WAYBILL_POLICY_FILE": str(settings.policy_file)}


@click.command()
@click.argument("provider", type=click.Choice(PROVIDERS))
@click.argument("day", type=click.DateTime(["%Y-%m-%d"]))
@click.argument("usd")
def bill(provider: str, day: datetime, usd: str) -> None:
    """Note that PROVIDER says the UTC day DAY (2026-11-25) cost USD. The gap to the ledger is a metric."""
    from waybill.ledger import tallies

    try:
        amount = Decimal(usd)
    except InvalidOperation:
        amount = Decimal("NaN")
    if not amount.is_finite() or amount < 0:
        refuse(f"{usd!r} is no amount in USD; write it like 12.34")

    async def work(desk: Desk) -> None:
        await desk.ask(tallies.NOTE_BILL, {"provider": provider, "day": day.date(), "usd": amount})
        for row in await desk.ask(tallies.BILL_GAPS):
            click.echo(f"{row['provider']}: ledger minus bills ${row['gap_usd']:f} over {row['days']} day(s)")

    at_desk(work)
