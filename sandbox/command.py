"""The command: `python -m sandbox`, and `waybill sandbox` where the library's command line loads it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import click

from sandbox.admin import AdminError, checked_limits
from sandbox.answers import AnswerBook, BookError, read_book
from sandbox.faults import KINDS, FaultError, rule_from_text
from sandbox.latency import latency_from
from sandbox.models import Catalogue, ModelFileError, read_models
from sandbox.server import Sandbox, Settings
from sandbox.serving import listen, server_for

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_EPILOG = "Faults: " + ", ".join(KINDS) + ". GET / on the server tells what each does; docs/sandbox.md has the rules."


@click.command(epilog=_EPILOG, context_settings={"max_content_width": 110})
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8377, show_default=True, type=click.IntRange(0, 65535), help="0 takes a free one.")
@click.option("--port-file", type=click.Path(path_type=Path), help="Write the port here once clients can connect.")
@click.option("--answers", type=_FILE, help="Answer book: Parquet or JSONL with columns match, model, answer.")
@click.option("--models", type=_FILE, help="TOML file of further models and their prices.")
@click.option("--log", "log_path", type=click.Path(path_type=Path), help="Append every request as a JSON line.")
@click.option("--log-memory", default=50_000, show_default=True, type=click.IntRange(1), help="Lines GET /log keeps.")
@click.option("--seed", default=0, show_default=True, help="Seed of faults with a probability.")
@click.option(
    "--latency", default="model", show_default=True, help="none, fixed:50ms, model (each model's own pace), model:0.1."
)
@click.option(
    "--limit",
    "limits",
    multiple=True,
    metavar="CLASS:rpm=N,...",
    help="Limits per minute of a model class or '*': rpm, itpm, otpm (Claude), rpm, tpm (OpenAI). May be repeated.",
)
@click.option("--burst", default=60.0, show_default=True, help="Seconds of its limit a full bucket holds.")
@click.option(
    "--fault",
    "faults",
    multiple=True,
    metavar="NAME:key=value,...",
    help="A fault rule, e.g. 'overloaded:p=0.1,model=claude-*' or 'hang:nth=3+7'. May be repeated.",
)
@click.option("--quiet", is_flag=True, help="Print nothing but errors.")
def sandbox(
    host: str,
    port: int,
    port_file: Path | None,
    answers: Path | None,
    models: Path | None,
    log_path: Path | None,
    log_memory: int,
    seed: int,
    latency: str,
    limits: tuple[str, ...],
    burst: float,
    faults: tuple[str, ...],
    quiet: bool,
) -> None:
    """A model provider on this machine, for the unmodified anthropic and openai SDKs.

    No model runs and no key is checked. It keeps the current wire rules, real rate limits and a real prompt cache,
    answers from a book of recorded answers or by itself, goes wrong on demand, and keeps its own bill (GET /bill) and
    log (GET /log).
    """
    try:
        catalogue = Catalogue(read_models(models) if models else ())
        book = read_book(answers) if answers else AnswerBook()
        settings = Settings(
            seed=seed, latency=latency_from(latency), burst_s=burst, log_path=log_path, log_keep=log_memory
        )
        provider = Sandbox(settings, catalogue=catalogue, book=book)
        known = {"*", *(model.limit_class for model in catalogue)}
        for text in limits:
            _set_limit(provider, text, known)
        for text in faults:
            provider.faults.add(rule_from_text(text), now_ns=provider.clock.now_ns())
    except (ModelFileError, BookError, FaultError, AdminError, ValueError) as exc:
        raise click.ClickException(str(exc)) from exc
    except OSError as exc:
        raise click.ClickException(f"{exc.filename}: {exc.strerror}") from exc
    try:
        bound = listen(host, port)
    except OSError as exc:
        raise click.ClickException(
            f"cannot listen on {host}:{port}: {exc.strerror}; choose another --port, or 0"
        ) from exc
    port = bound.getsockname()[1]
    if port_file is not None:
        _write_port(port_file, port)
    if not quiet:
        click.echo(_greeting(host, port, book, provider))
    # uvicorn stops gracefully and then raises the signal again; as an exit it lets what follows run.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _exit)
    try:
        server_for(provider).run(sockets=[bound])
    finally:
        bound.close()
        provider.log.close()
        if port_file is not None:
            port_file.unlink(missing_ok=True)
        if not quiet:
            click.echo(f"{provider.log.count} requests, bill {provider.bill.shown()['total_usd']} USD")


def _exit(number: int, frame: object) -> None:  # noqa: ARG001 - a signal handler has these two
    raise SystemExit(0)


def _set_limit(provider: Sandbox, text: str, known: set[str]) -> None:
    limit_class, colon, rest = text.partition(":")
    if not colon or limit_class not in known:
        raise AdminError(f"--limit {text!r}: write CLASS:rpm=N,... with a class of {', '.join(sorted(known))}")
    pairs = [pair.partition("=") for pair in rest.split(",")]
    try:
        given = {name.strip(): int(value) for name, _, value in pairs}
    except ValueError as exc:
        raise AdminError(f"--limit {text!r}: {rest!r} is not a list of name=number") from exc
    provider.meters.set(limit_class, **checked_limits(given))


def _write_port(path: Path, port: int) -> None:
    """Write the port in one step: who waits for the file never reads half of it."""
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        partial.write_text(f"{port}\n", "ascii")
        partial.replace(path)
    except OSError as exc:
        raise click.ClickException(f"--port-file {path}: {exc.strerror}") from exc


def _greeting(host: str, port: int, book: AnswerBook, provider: Sandbox) -> str:
    shown = f"[{host}]" if ":" in host else host
    url = f"http://{shown}:{port}"
    return "\n".join(
        [
            f"sandbox provider on {url} (no model runs, nothing costs money)",
            f"  anthropic  Anthropic(base_url='{url}', api_key='sandbox-1', max_retries=0)",
            f"  openai     OpenAI(base_url='{url}/v1', api_key='sandbox-1', max_retries=0)",
            f"  environment  ANTHROPIC_BASE_URL={url} OPENAI_BASE_URL={url}/v1",
            f"  answers: {len(book)} recorded, else made up; faults: {len(provider.faults.shown())} rules",
            f"  {url}/bill  {url}/log  {url}/admin/state  {url}/ (help)",
            "stop with Ctrl-C",
        ]
    )
