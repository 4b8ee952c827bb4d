"""`waybill run INPUT ...`: reads the command line and the files it names; the work is in producers/batch.py."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from waybill.cli.durations import DURATION
from waybill.cli.money import USD
from waybill.errors import ConfigError
from waybill.settings import Settings

if TYPE_CHECKING:
    from policies.routing import Request
    from producers.batch import BatchOutcome, BatchSpec


class _Run(click.Command):
    """Exit code 1 for a command line that cannot be used: 2 means that some rows failed."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as exc:
            raise click.ClickException(exc.format_message()) from exc  # its exit code is 1


@click.command(cls=_Run)
@click.argument("input_path", metavar="INPUT", type=click.Path(path_type=Path))
@click.option("--intent", required=True, help="What kind of work it is, as the policy file knows it: extraction, ...")
@click.option(
    "--prompt",
    "prompt_file",
    required=True,
    type=click.Path(path_type=Path),
    help="File with the prompt; {column} is replaced by the row's value, {{ and }} are literal braces.",
)
@click.option("--output", required=True, type=click.Path(path_type=Path), help="out.jsonl, out.csv or out.parquet.")
@click.option("--system", "system_file", type=click.Path(path_type=Path), help="File with instructions for all rows.")
@click.option(
    "--context",
    "context_file",
    type=click.Path(path_type=Path),
    help="File with a text that all rows share, sent before the prompt; prompt caches keep it.",
)
@click.option("--schema", "schema_file", type=click.Path(path_type=Path), help="JSON Schema that answers must fit.")
@click.option("--labels", help="Classification: the answers allowed, separated by commas.")
@click.option("--model", help="Pin the model; no other is ever tried.")
@click.option("--local-only", is_flag=True, help="No row may leave the local models.")
@click.option("--local-only-column", metavar="COLUMN", help="Column that says so row by row: true or false.")
@click.option(
    "--quality",
    type=click.FloatRange(0, 1, min_open=True),
    metavar="SHARE",
    help="Share of the flagship's quality to keep, such as 0.97. Default: the policy file's.",
)
@click.option("--tenant", default="default", show_default=True, help="Whose jobs these are.")
@click.option(
    "--deadline",
    "deadline_s",
    type=DURATION,
    metavar="TIME",
    help="15m, 24h, ...: later an answer is of no use. Half-price lanes are used where they make it.",
)
@click.option(
    "--latency",
    type=click.Choice(["interactive", "minutes", "hours", "day"]),
    help="How soon answers are wanted: as --deadline, but a later answer still counts.",
)
@click.option("--priority", type=click.Choice(["batch", "interactive"]), default="batch", show_default=True)
@click.option("--report", "report_file", type=click.Path(path_type=Path), help="Write the figures of the run as JSON.")
@click.option("--limit", type=int, metavar="N", help="Only the first N rows.")
@click.option("--id-column", metavar="COLUMN", help="Column with the row's own id; `waybill why` shows it.")
@click.option("--max-output-tokens", type=int, metavar="N", help="Upper bound of an answer.")
@click.option(
    "--field",
    "filled",
    multiple=True,
    metavar="COLUMN",
    help="Column that must not be empty (repeatable); default: all that the prompt uses.",
)
@click.option(
    "--budget",
    type=USD,
    metavar="USD",
    help="What the run may spend in all, retries and escalations counted in; then rows fail with budget_exhausted.",
)
@click.option("--fresh", is_flag=True, help="Do all rows again, whatever was done before.")
@click.option("--retry-failed", is_flag=True, help="Give rows that failed before another chance.")
@click.option("--sandbox", is_flag=True, help="Try it without keys: a sandbox provider on this machine answers.")
@click.option("--raw-csv", is_flag=True, help="Leave cells that a spreadsheet would run as formulas as they are.")
def run(input_path: Path, report_file: Path | None, sandbox: bool, **options: Any) -> None:
    """Carry a folder or table of documents through the fleet.

    INPUT is a folder of text files (columns `file` and `text`), or a .jsonl, .csv or .parquet file. The output has the
    input's columns, `answer`, and _status _error _model _lane _attempts _usd _tokens_in _tokens_out _reason _job, in
    input order.

    Uses the services that WAYBILL_DATABASE_URL and WAYBILL_REDIS_URL name, or a `waybill up` that runs here; without
    either it starts a fleet of its own for the length of the run.

    Ctrl-C keeps what is done; the same command goes on without paying twice.

    Exit codes: 0 every row has an answer, 2 some have, 1 none has or the command was refused, 130 interrupted.
    """
    from producers.batch import BatchSpec

    settings = Settings.from_env()
    _check_report(report_file)
    spec = make_spec(BatchSpec, input_path, options, settings)
    outcome = asyncio.run(_run(spec, settings, sandbox=sandbox))
    _tell(outcome, report_file)
    sys.exit(outcome.exit_code)


async def _run(spec: BatchSpec, settings: Settings, *, sandbox: bool) -> BatchOutcome:
    from producers import batch
    from producers.progress import for_stream
    from waybill.cli.session import fleet_session
    from waybill.client import AsyncClient

    stop, loop = asyncio.Event(), asyncio.get_running_loop()

    def interrupted() -> None:
        # The second Ctrl-C is Python's own: it ends us at once.
        loop.remove_signal_handler(signal.SIGINT)
        click.echo("\nstopping: writing what is done (Ctrl-C again to leave at once)", err=True)
        stop.set()

    async with fleet_session(settings, sandbox=sandbox, work=_work(spec)) as (database_url, redis_url):
        # After the session: a fleet that it starts brings handlers of its own, and here Ctrl-C means the run.
        loop.add_signal_handler(signal.SIGINT, interrupted)
        loop.add_signal_handler(signal.SIGTERM, stop.set)
        broker_url = settings.broker_url.get_secret_value() if settings.broker_url else redis_url
        async with AsyncClient(database_url, redis_url, broker_url=broker_url) as client:
            return await batch.run(spec, client, for_stream(sys.stderr), stop=stop)


def _work(spec: BatchSpec) -> Request:
    """What routing would read of the rows, their sizes left out."""
    from policies.routing import Request

    return Request(
        intent=spec.intent,
        payload_bytes=0,
        model=spec.model,
        local_only=spec.local_only,
        needs=("json_schema",) if spec.schema is not None else (),
    )


def _tell(outcome: BatchOutcome, report_file: Path | None) -> None:
    from producers import report

    if report_file is not None:
        report_file.write_text(json.dumps(outcome.report, indent=2) + "\n", encoding="utf-8")
    report.show(outcome.report)
    if outcome.adopted:
        click.echo(
            f"{outcome.adopted:,} of {outcome.rows:,} rows were done before and cost nothing now;"
            f" this command spent {outcome.report['usd_now']} USD"
        )
    if outcome.invalid:
        click.echo(f"{outcome.invalid:,} rows could not be submitted: see _status invalid and _error in the output")
    if outcome.failed:
        click.echo(f"{outcome.failed:,} rows have no answer: see _error; --retry-failed gives them another chance")
    click.echo(f"run {outcome.run_id} -> {outcome.output}")
    if not outcome.complete:
        click.echo(
            f"interrupted with {outcome.waiting:,} rows to go; jobs under way end in the fleet. Give the same command"
            " again (without --fresh) to go on: what is done is not paid twice.",
            err=True,
        )


# --- what the command line names --------------------------------------------------------------------------------------


def make_spec(make: type[BatchSpec], input_path: Path, options: dict[str, Any], settings: Settings) -> BatchSpec:
    from producers.policy import load_policy
    from waybill.contract import Priority

    prompt_file: Path = options["prompt_file"]
    labels: str | None = options["labels"]
    return make(
        input=input_path,
        output=options["output"],
        intent=options["intent"],
        prompt=read_text("--prompt", prompt_file),
        prompt_name=str(prompt_file),
        policy=load_policy(settings),
        system=read_text("--system", options["system_file"]) if options["system_file"] else None,
        context=read_text("--context", options["context_file"]) if options["context_file"] else None,
        schema=read_schema(options["schema_file"]) if options["schema_file"] else None,
        labels=tuple(label.strip() for label in labels.split(",") if label.strip()) if labels is not None else (),
        priority=Priority.BATCH if options["priority"] == "batch" else Priority.INTERACTIVE,
        filled=options["filled"] or None,
        max_prompt_bytes=settings.max_payload_bytes,
        **{
            name: options[name]
            for name in (
                "model", "local_only", "local_only_column", "quality", "tenant", "deadline_s", "latency", "limit", "id_column",
                "max_output_tokens", "budget", "fresh", "retry_failed", "raw_csv",
            )
        },
    )  # fmt: skip


def read_text(option: str, path: Path) -> str:
    """What a file named on the command line holds."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as exc:
        raise ConfigError(f"{option} {path}: cannot be read: {exc.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{option} {path}: is not UTF-8 text") from None
    if not text.strip():
        raise ConfigError(f"{option} {path}: is empty")
    return text


def read_schema(path: Path) -> dict[str, Any]:
    """The JSON Schema in a file."""
    try:
        schema = json.loads(read_text("--schema", path))
    except RecursionError:
        raise ConfigError(f"--schema {path}: is nested too deeply; flatten it") from None
    except ValueError as exc:
        raise ConfigError(f"--schema {path}: is not JSON: {exc}") from None
    if not isinstance(schema, dict):
        raise ConfigError(f'--schema {path}: must be a JSON object, such as {{"type": "object", ...}}')
    return schema


def _check_report(path: Path | None) -> None:
    if path is None:
        return
    try:
        with path.open("a", encoding="utf-8"):
            return
    except OSError as exc:
        raise ConfigError(f"--report {path}: cannot be written: {exc.strerror}") from None
