"""`waybill up`: all processes of the fleet on one machine, under one supervisor, with real Postgres and Valkey."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import click

from waybill.hugepages import heap_settings
from waybill.names import BATCH_PROVIDERS, BATCH_QUEUE, CLASSES, PROVIDERS, provider_queue
from waybill.settings import Settings
from waybill.supervisor import Program, Supervisor

SANDBOX_NOTE = "NO KEYS: calls go to the sandbox on this machine. No model runs; answers are recorded or made up, costs are play money."


@dataclass(frozen=True, slots=True)
class Fleet:
    """What is to run on this machine.

    Attributes:
        programs: In the order of starting.
        env: Environment that every program (and a client beside them) needs.
        sandbox_url: The sandbox's address, None when real keys are used.
        flower_url: With user and password to be typed separately; None without Flower.
        off: Providers whose lanes are off, with the reason.
        gateway_url: Where the API is; None without gateway.
        metrics_url: What Prometheus scrapes; None without exporter.
    """

    programs: Sequence[Program]
    env: Mapping[str, str]
    sandbox_url: str | None
    flower_url: str | None
    flower_login: str | None
    off: Mapping[str, str] = field(default_factory=dict)
    gateway_url: str | None = None
    metrics_url: str | None = None


@contextlib.contextmanager
def ledger_and_redis(settings: Settings) -> Iterator[tuple[str, str]]:
    """The URLs to use: those of the environment, else embedded servers for the length of the block. Migrates the ledger.

    Raises:
        ConfigError: A given service does not answer.
        EmbeddedError: No embedded server can be started here.
    """
    from waybill import embedded
    from waybill.cli.db import run_upgrade

    given_db, given_redis = settings.database_url, settings.redis_url
    if given_db is not None and given_redis is not None:
        run_upgrade(given_db.get_secret_value())
        yield given_db.get_secret_value(), given_redis.get_secret_value()
        return
    with embedded.services(settings.state_dir, postgres=given_db is None, redis=given_redis is None) as local:
        database_url = given_db.get_secret_value() if given_db is not None else str(local.database_url)
        redis_url = given_redis.get_secret_value() if given_redis is not None else str(local.redis_url)
        run_upgrade(database_url)
        yield database_url, redis_url


def plan_fleet(
    settings: Settings,
    database_url: str,
    redis_url: str,
    *,
    sandbox_args: Sequence[str] | None,
    flower: bool = True,
    gateway: bool = False,
    metrics: bool = False,
    workers: Mapping[str, int] | None = None,
    extra_env: Mapping[str, str] | None = None,
) -> Fleet:
    """Which programs run here, and with what.

    Args:
        settings: Of this process.
        database_url: The ledger.
        redis_url: Redis or Valkey.
        sandbox_args: Arguments of `waybill sandbox`; None = no sandbox, the keys of the environment are used.
        flower: Whether Flower runs.
        gateway: Whether the gateway runs.
        metrics: Whether the exporter runs.
        workers: Worker processes per provider (and `batch`: 0 = none), default one each; a provider that is off gets none.
        extra_env: Added to every program's environment.

    Raises:
        ConfigError: The policy is wrong; nothing is started with a wrong policy.
    """
    from workers.providers.registry import available
    from workers.runtime import load_policy

    env = {
        "WAYBILL_DATABASE_URL": database_url,
        "WAYBILL_REDIS_URL": redis_url,
        "WAYBILL_LOG_FORMAT": os.environ.get("WAYBILL_LOG_FORMAT", "text"),
        **(extra_env or {}),
    }
    programs: list[Program] = []
    sandbox_url = None
    if sandbox_args is not None:
        sandbox_port = free_port()
        sandbox_url = f"http://127.0.0.1:{sandbox_port}"
        env |= {
            "ANTHROPIC_API_KEY": "sandbox",
            "OPENAI_API_KEY": "sandbox",
            "ANTHROPIC_BASE_URL": sandbox_url,
            "OPENAI_BASE_URL": f"{sandbox_url}/v1",
        }
        programs.append(
            Program(
                "sandbox",
                [*waybill_argv(), "sandbox", "--port", str(sandbox_port), "--quiet", *sandbox_args],
                ready=lambda: _listens(sandbox_port),
                ready_timeout_s=120.0,
            )
        )
    settings = Settings.from_env({**os.environ, **env})
    policy = load_policy(settings)
    state = available(settings, policy)
    off = {name: why for name, why in state.items() if why is not None}
    grace_s = settings.drain_s + 15
    told, env = env, {**heap_settings(os.environ), **env}
    programs.append(Program("dispatcher", [*waybill_argv(), "dispatcher"], env=env, grace_s=grace_s))
    for provider in PROVIDERS:
        if provider in off:
            continue
        count = (workers or {}).get(provider, 1)
        queues = ",".join(provider_queue(provider, klass) for klass in CLASSES)
        for number in range(1, count + 1):
            name = provider if count == 1 else f"{provider}-{number}"
            argv = [*waybill_argv(), "worker", "--queues", queues, "--name", name]
            programs.append(Program(name, argv, env=env, grace_s=grace_s))
    if any(provider not in off for provider in BATCH_PROVIDERS) and (workers or {}).get(BATCH_QUEUE, 1):
        argv = [*waybill_argv(), "worker", "--queues", BATCH_QUEUE, "--name", BATCH_QUEUE]
        programs.append(Program(BATCH_QUEUE, argv, env=env, grace_s=grace_s))
    programs.append(Program("control", [*waybill_argv(), "control"], env=env))
    metrics_url = None
    if metrics:
        port = settings.metrics_port if is_free(settings.metrics_port) else free_port()
        programs.append(
            Program("metrics", [*waybill_argv(), "metrics"], env={**env, "WAYBILL_METRICS_PORT": str(port)})
        )
        metrics_url = f"http://127.0.0.1:{port}/metrics"
    flower_url, login = None, None
    if flower:
        port = settings.flower_port if is_free(settings.flower_port) else free_port()
        password = settings.flower_password.get_secret_value() if settings.flower_password else secrets.token_urlsafe(9)
        flower_env = {**env, "WAYBILL_FLOWER_PORT": str(port), "WAYBILL_FLOWER_PASSWORD": password}
        programs.append(Program("flower", [*waybill_argv(), "flower"], env=flower_env))
        flower_url, login = f"http://127.0.0.1:{port}", f"{settings.flower_user} / {password}"
    gateway_url = None
    if gateway:
        linked = {} if flower_url is None else {"WAYBILL_FLOWER_PUBLIC_URL": flower_url}
        gateway_url, program = _plan_gateway(settings, {**linked, **env})
        programs.append(program)
    return Fleet(programs, told, sandbox_url, flower_url, login, off, gateway_url, metrics_url)


def _plan_gateway(settings: Settings, env: Mapping[str, str]) -> tuple[str, Program]:
    port = settings.gateway_port if is_free(settings.gateway_port) else free_port()
    program = Program(
        "gateway",
        [*waybill_argv(), "gateway"],
        env={**env, "WAYBILL_GATEWAY_PORT": str(port)},
        ready=lambda: _listens(port),
        ready_timeout_s=60.0,
        grace_s=settings.drain_s + 15,
    )
    return settings.gateway_public_url or f"http://{settings.gateway_address}:{port}", program


def waybill_argv() -> list[str]:
    """How this same code is run as another process."""
    return [sys.executable, "-m", "waybill"]


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_free(port: int) -> bool:
    """Whether a port can be listened on."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


async def _listens(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


def describe(fleet: Fleet) -> str:
    """What runs and where to look, for the screen."""
    lines = []
    if fleet.sandbox_url:
        lines += [SANDBOX_NOTE, f"  sandbox  {fleet.sandbox_url}/bill, {fleet.sandbox_url}/log"]
    for provider, why in fleet.off.items():
        lines.append(f"  off      {provider}: {why}")
    if fleet.gateway_url:
        lines.append(f"  gateway  {fleet.gateway_url}  (base URL for the Anthropic SDK; with /v1 for OpenAI's)")
        lines.append(f"  look at  {fleet.gateway_url}/dashboard")
    if fleet.flower_url:
        lines.append(f"  flower   {fleet.flower_url}  (user / password: {fleet.flower_login})")
    if fleet.metrics_url:
        lines.append(f"  metrics  {fleet.metrics_url}")
    lines.append(f"  ledger   WAYBILL_DATABASE_URL={fleet.env['WAYBILL_DATABASE_URL']}")
    lines.append(f"  redis    WAYBILL_REDIS_URL={fleet.env['WAYBILL_REDIS_URL']}")
    return "\n".join(lines)


def wants_sandbox(settings: Settings, asked: bool | None) -> bool:
    """Whether calls go to the sandbox: as asked, else when neither provider has a key."""
    if asked is not None:
        return asked
    return settings.anthropic_api_key is None and settings.openai_api_key is None


@click.command()
@click.option(
    "--sandbox/--no-sandbox", default=None, help="Answer from a sandbox on this machine. Default: only without keys."
)
@click.option(
    "--answers", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="The sandbox's answer book."
)
@click.option("--flower/--no-flower", default=True, show_default=True)
@click.option("--gateway/--no-gateway", default=True, show_default=True)
@click.option("--metrics/--no-metrics", default=False, show_default=True, help="Serve metrics to Prometheus.")
def up(sandbox: bool | None, answers: Path | None, flower: bool, gateway: bool, metrics: bool) -> None:
    """Run all processes of the fleet on this machine until Ctrl-C.

    Postgres and Valkey are started here too, unless WAYBILL_DATABASE_URL and WAYBILL_REDIS_URL name others. In a second
    terminal, `waybill run` and `waybill why` find them by the two lines that are printed.
    """
    settings = Settings.from_env()
    with ledger_and_redis(settings) as (database_url, redis_url):
        sandbox_args = (["--answers", str(answers)] if answers else []) if wants_sandbox(settings, sandbox) else None
        fleet = plan_fleet(
            settings,
            database_url,
            redis_url,
            sandbox_args=sandbox_args,
            flower=flower,
            gateway=gateway,
            metrics=metrics,
        )

        async def serve() -> None:
            async with Supervisor(fleet.programs) as supervisor:
                click.echo(describe(fleet))
                click.echo("The fleet is up. Ctrl-C stops it; jobs that are under way are finished or handed back.")
                await supervisor.until_told()

        with contextlib.suppress(KeyboardInterrupt):
            signal.signal(signal.SIGTERM, signal.default_int_handler)
            asyncio.run(serve())
    click.echo("stopped; the ledger keeps everything")
