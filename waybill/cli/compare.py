"""`waybill compare`: the price and the agreement of several models on a sample of an input, before a run."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from waybill.cli.run import make_spec
from waybill.errors import ConfigError
from waybill.settings import Settings

if TYPE_CHECKING:
    from producers.batch import BatchSpec
    from producers.compare import Comparison

_UNUSED = {
    "local_only": False, "local_only_column": None, "deadline_s": None, "id_column": None, "fresh": True,
    "retry_failed": False, "raw_csv": False, "priority": "batch", "model": None, "filled": (),
    "output": Path("none.jsonl"), "latency": None, "budget": None, "quality": None,
}  # fmt: skip


@click.command()
@click.argument("input_path", metavar="INPUT", type=click.Path(path_type=Path))
@click.option(
    "--models", required=True, help="Two or more, separated by commas; the others are compared with the first."
)
@click.option("--sample", type=click.IntRange(1, 10_000), default=50, show_default=True, help="Rows asked of each.")
@click.option("--intent", required=True, help="What kind of work it is, as the policy file knows it.")
@click.option("--prompt", "prompt_file", required=True, type=click.Path(path_type=Path), help="As for `waybill run`.")
@click.option("--system", "system_file", type=click.Path(path_type=Path), help="File with instructions for all rows.")
@click.option(
    "--context", "context_file", type=click.Path(path_type=Path), help="File with a text that all rows share."
)
@click.option("--schema", "schema_file", type=click.Path(path_type=Path), help="JSON Schema that answers must fit.")
@click.option("--labels", help="Classification: the answers allowed, separated by commas.")
@click.option("--tenant", default="default", show_default=True, help="Whose jobs these are.")
@click.option("--limit", type=int, metavar="N", help="Sample from the first N rows.")
@click.option("--max-output-tokens", type=int, metavar="N", help="Upper bound of an answer.")
@click.option("--sandbox", is_flag=True, help="Try it without keys: a sandbox provider on this machine answers.")
def compare(input_path: Path, models: str, sample: int, sandbox: bool, **options: Any) -> None:
    """Ask several models about the same random rows of INPUT: what all rows would cost on each, and how far they agree.

    Exit code 2 when a model answered none of the rows.
    """
    from producers.batch import BatchSpec
    from producers.compare import text

    names = tuple(dict.fromkeys(name.strip() for name in models.split(",") if name.strip()))
    if len(names) < 2:
        raise ConfigError("--models: name at least two models, such as claude-haiku-5-5,gpt-6-luna")
    settings = Settings.from_env()
    spec = make_spec(BatchSpec, input_path, _UNUSED | options, settings)
    found = asyncio.run(_compare(spec, names, sample, settings, sandbox=sandbox))
    click.echo(text(found))
    if any(each.answered == 0 for each in found.models):
        sys.exit(2)


async def _compare(
    spec: BatchSpec, models: tuple[str, ...], sample: int, settings: Settings, *, sandbox: bool
) -> Comparison:
    from producers import compare as comparing
    from waybill.cli.session import fleet_session
    from waybill.client import AsyncClient

    async with fleet_session(settings, sandbox=sandbox) as (database_url, redis_url):
        broker_url = settings.broker_url.get_secret_value() if settings.broker_url else redis_url
        async with AsyncClient(database_url, redis_url, broker_url=broker_url) as client:
            return await comparing.compare(spec, client, models, sample=sample)
