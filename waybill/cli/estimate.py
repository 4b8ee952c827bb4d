"""`waybill estimate INPUT ...`: what a run would cost for a deadline, beside what it costs with a day's time."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from waybill.cli.durations import DURATION
from waybill.errors import ConfigError, LedgerUnavailable
from waybill.settings import Settings

if TYPE_CHECKING:
    from policies.lanes import Latency

DAY_S: Final = 86400.0


@click.command()
@click.argument("input_path", metavar="INPUT", type=click.Path(path_type=Path))
@click.option("--intent", required=True, help="As for `waybill run`.")
@click.option("--prompt", "prompt_file", required=True, type=click.Path(path_type=Path), help="As for `waybill run`.")
@click.option("--system", "system_file", type=click.Path(path_type=Path), help="File with instructions for all rows.")
@click.option(
    "--context",
    "context_file",
    type=click.Path(path_type=Path),
    help="File with a text that all rows share, sent before the prompt; prompt caches keep it.",
)
@click.option("--schema", "schema_file", type=click.Path(path_type=Path), help="JSON Schema that answers must fit.")
@click.option("--labels", help="Classification: the answers allowed, separated by commas.")
@click.option("--model", help="Pin the model.")
@click.option("--limit", type=int, metavar="N", help="Only the first N rows.")
@click.option("--max-output-tokens", type=int, metavar="N", help="Upper bound of an answer.")
@click.option(
    "--deadline",
    "deadlines",
    type=DURATION,
    multiple=True,
    metavar="TIME",
    help="15m, 1h, 24h, ...; may be repeated. A day is always shown beside it; without one also `at once`.",
)
@click.option("--json", "as_json", is_flag=True, help="Figures as JSON.")
def estimate(input_path: Path, deadlines: tuple[float, ...], as_json: bool, **options: Any) -> None:
    """Say what a run over INPUT would cost at most, and what haste costs.

    Nothing is submitted. With a ledger (WAYBILL_DATABASE_URL or a `waybill up` here) the fleet's own times of lanes are
    used, without one the times that are usual.
    """
    from policies.policyfile import Policy
    from producers import estimate as estimates
    from producers.batch import BatchSpec
    from producers.policy import load_policy
    from waybill.cli.run import read_schema, read_text
    from waybill.client import AsyncClient
    from workers.providers.registry import available

    settings = Settings.from_env()
    policy: Policy = load_policy(settings)
    labels: str | None = options["labels"]
    spec = BatchSpec(
        input=input_path,
        output=Path("estimate.jsonl"),
        intent=options["intent"],
        prompt=read_text("--prompt", options["prompt_file"]),
        prompt_name=str(options["prompt_file"]),
        policy=policy,
        system=read_text("--system", options["system_file"]) if options["system_file"] else None,
        context=read_text("--context", options["context_file"]) if options["context_file"] else None,
        schema=read_schema(options["schema_file"]) if options["schema_file"] else None,
        labels=tuple(label.strip() for label in labels.split(",") if label.strip()) if labels is not None else (),
        model=options["model"],
        limit=options["limit"],
        max_output_tokens=options["max_output_tokens"],
        max_prompt_bytes=settings.max_payload_bytes,
    )
    due: list[float | None] = [*sorted({*deadlines, DAY_S})] if deadlines else [None, DAY_S]
    # Paid lanes count as open without keys: who asks what it would cost may not have them yet.
    local = available(settings, policy)["local"]
    off = {} if local is None else {"local": local}
    client = AsyncClient("postgresql+psycopg://nobody@localhost/none", "redis://localhost")
    figures = estimates.estimate(spec, client, due, off=off, times=asyncio.run(_times(settings)))
    if as_json:
        click.echo(json.dumps({"estimates": [one.as_json() for one in figures]}, indent=2))
    else:
        click.echo(estimates.told(figures))


async def _times(settings: Settings) -> Mapping[str, Latency]:
    """The fleet's own times; none without a ledger that answers."""
    from waybill.cli.session import running_services
    from waybill.ledger.engine import Ledger
    from workers.lanetimes import read_times

    try:
        found = running_services(settings)
    except ConfigError:
        found = None
    url = found[0] if found is not None else settings.database_url and settings.database_url.get_secret_value()
    if not url:
        return {}
    ledger = Ledger(url, pool_size=1)
    try:
        return await read_times(ledger)
    except LedgerUnavailable:
        click.echo("the ledger does not answer: usual times are taken instead of the fleet's own", err=True)
        return {}
    finally:
        await ledger.close()
