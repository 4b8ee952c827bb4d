"""`waybill why JOB`: the whole story of a job from the ledger."""

from __future__ import annotations

import asyncio
import json
import sys

import click

from waybill.errors import ConfigError
from waybill.settings import Settings


def find_database_url(settings: Settings) -> str:
    """The ledger's URL: from the environment, else of the embedded servers that run in the state folder.

    Raises:
        ConfigError: Neither.
    """
    if settings.database_url is not None:
        return settings.database_url.get_secret_value()
    running = settings.state_dir / "run.json"
    raise ConfigError(
        "WAYBILL_DATABASE_URL is not set"
        + (
            "; `waybill up` runs here and prints the line to copy"
            if running.exists()
            else "; set it to the ledger, or start one with `waybill up`"
        )
    )


@click.command()
@click.argument("job")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def why(job: str, as_json: bool) -> None:
    """Tell every decision, attempt, reason and cent of JOB (its id, or the first 8 characters of it)."""
    from waybill.ledger.engine import Ledger
    from waybill.ledger.story import read_story, tell

    async def read() -> dict[str, object]:
        ledger = Ledger(find_database_url(Settings.from_env()))
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
