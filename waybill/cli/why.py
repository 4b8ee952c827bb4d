"""`waybill why JOB`: the whole story of a job from the ledger."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import Iterator

import click

from waybill.errors import ConfigError
from waybill.settings import Settings


@contextlib.contextmanager
def ledger_url(settings: Settings) -> Iterator[str]:
    """The ledger's URL for the length of the block: of the environment, else the embedded one of the state folder.

    Raises:
        ConfigError: Neither is there.
    """
    if settings.database_url is not None:
        yield settings.database_url.get_secret_value()
        return
    if not (settings.state_dir / "pg").exists():
        raise ConfigError(
            "WAYBILL_DATABASE_URL is not set and there is no ledger in this state folder; set it, or start one with"
            " `waybill up` or `waybill run`"
        )
    from waybill import embedded

    with embedded.services(settings.state_dir, redis=False) as local:
        yield str(local.database_url)


@click.command()
@click.argument("job")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def why(job: str, as_json: bool) -> None:
    """Tell every decision, attempt, reason and cent of JOB (its id, or the first 8 characters of it)."""
    from waybill.ledger.engine import Ledger
    from waybill.ledger.story import read_story, tell

    async def read() -> dict[str, object]:
        with ledger_url(Settings.from_env()) as url:
            ledger = Ledger(url)
            try:
                return await read_story(ledger, job)
            finally:
                await ledger.close()

    try:
        story = asyncio.run(read())
    except LookupError as exc:
        click.echo(f"waybill: {exc.args[0]}", err=True)
        sys.exit(1)
    click.echo(json.dumps(story, default=str, indent=2) if as_json else tell(story))
