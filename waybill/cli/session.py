"""Where a command that needs the fleet finds it: the services named by the environment, a `waybill up` that runs here, or a
fleet of its own for the length of the command."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from waybill.errors import ConfigError
from waybill.settings import Settings

if TYPE_CHECKING:
    from policies.routing import Request


def running_services(settings: Settings) -> tuple[str, str] | None:
    """Postgres and Redis that are there already; None when a fleet has to be started.

    Raises:
        ConfigError: Only one of the two is named, and no `waybill up` runs here that has the other.
    """
    from waybill.embedded.folder import StateFolder, lives

    database_url = settings.database_url.get_secret_value() if settings.database_url else None
    redis_url = settings.redis_url.get_secret_value() if settings.redis_url else None
    if database_url is not None and redis_url is not None:
        return database_url, redis_url
    record = StateFolder(settings.state_dir.absolute()).record()
    if record is not None and record["ready"] and lives(record["owner"]):
        return database_url or record["database_url"], redis_url or record["redis_url"]
    if database_url is None and redis_url is None:
        return None
    return settings.require_database_url(), settings.require_redis_url()


@asynccontextmanager
async def fleet_session(
    settings: Settings, *, sandbox: bool, work: Request | None = None
) -> AsyncIterator[tuple[str, str]]:
    """The URLs of a ledger and a Redis that a fleet serves, for the length of the block.

    Args:
        settings: Of this process.
        sandbox: A fleet that is started here calls the sandbox instead of real providers.
        work: What is to be done; a fleet that could not do it is not started.

    Raises:
        ConfigError: A fleet would have to be started, and no lane that could do the work is on (no key, no local model).
    """
    found = running_services(settings)
    if found is not None:
        if sandbox:
            raise ConfigError("--sandbox starts a fleet of its own, but one is there already; leave it out")
        yield found
        return
    from waybill.cli.up import SANDBOX_NOTE, ledger_and_redis, plan_fleet
    from waybill.supervisor import Supervisor

    if not sandbox:
        _check_lanes(settings, work)
    log_path = settings.state_dir / "fleet.log"
    with ledger_and_redis(settings) as (database_url, redis_url):
        fleet = plan_fleet(settings, database_url, redis_url, sandbox_args=[] if sandbox else None, flower=False)
        if sandbox:
            click.echo(SANDBOX_NOTE, err=True)
        for provider, why in fleet.off.items():
            click.echo(f"off: {provider} ({why})", err=True)
        with open(log_path, "a", encoding="utf-8") as log:  # noqa: ASYNC230, PTH123  # once, before the loop is busy
            async with Supervisor(fleet.programs, out=log):
                yield database_url, redis_url


def _check_lanes(settings: Settings, work: Request | None) -> None:
    from policies.pricing import PriceBook
    from policies.routing import NoRoute, Snapshot, route
    from workers.providers.registry import available
    from workers.runtime import load_policy

    policy = load_policy(settings)
    state = available(settings, policy)
    off = {name: why for name, why in state.items() if why is not None}
    advice = "Set a key, or try --sandbox, which needs none and answers with play money"
    if len(off) == len(state):
        raise ConfigError(f"no lane is on: {'; '.join(f'{name}: {why}' for name, why in off.items())}. {advice}")
    if work is not None:
        found = route(work, policy, Snapshot(off, datetime.now(UTC)), PriceBook(policy))
        if isinstance(found, NoRoute):
            raise ConfigError(f"{found.reason}. {advice}")
