"""Where the verbs for the person on call work: the ledger, Redis where there is one, and how they end with one line."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar

import click

from waybill.cli.session import running_services
from waybill.cli.why import ledger_url
from waybill.errors import BrokerUnavailable, ConfigError, LedgerUnavailable
from waybill.redislink import connect_async
from waybill.settings import Settings

if TYPE_CHECKING:
    from waybill.broker import Doorbell
    from waybill.ledger.engine import Ledger, Row

T = TypeVar("T")

_TRIES: Final = 5


@dataclass(slots=True)
class Desk:
    """What a verb works with. `redis_url` is None where no Redis is known."""

    ledger: Ledger
    redis_url: str | None
    settings: Settings

    async def ask(self, sql: str, params: Mapping[str, Any] | None = None) -> Sequence[Row]:
        """Run a statement; one that met a deadlock with the fleet's own is tried again."""
        for attempt in range(_TRIES):
            try:
                return await self.ledger.fetch(sql, params)
            except LedgerUnavailable:
                if attempt == _TRIES - 1:
                    raise
                await asyncio.sleep(0.1 * 2**attempt)
        raise AssertionError("unreachable")

    async def ring(self, doorbells: Sequence[Doorbell]) -> None:
        """Ring, where there is a broker."""
        from waybill.broker import Broker

        if self.redis_url is None or not doorbells:
            return
        broker = Broker(self.settings.broker_url.get_secret_value() if self.settings.broker_url else self.redis_url)
        try:
            await asyncio.to_thread(broker.ring, doorbells)
        except BrokerUnavailable:
            click.echo("the broker does not answer; the fleet will find the jobs by itself", err=True)
        finally:
            await asyncio.to_thread(broker.close)

    @contextlib.asynccontextmanager
    async def redis(self) -> AsyncIterator[Any]:
        """A connection, or None."""
        if self.redis_url is None:
            yield None
            return
        connection = connect_async(self.redis_url, socket_connect_timeout=2, socket_timeout=5)
        try:
            yield connection
        finally:
            await connection.aclose()


def at_desk(work: Callable[[Desk], Awaitable[T]]) -> T:
    """Run a verb's work with the services that the environment or a `waybill up` here gives.

    Raises:
        ConfigError: No ledger is known, or it has another schema than this code.
        LedgerUnavailable: It does not answer.
    """
    settings = Settings.from_env()
    try:
        found = running_services(settings)
    except ConfigError:
        found = None  # only one of the two is named; the ledger alone will do

    async def run(database_url: str, redis_url: str | None) -> T:
        from psycopg.errors import UndefinedTable

        from waybill.ledger.engine import Ledger

        ledger = Ledger(database_url, pool_size=2)
        try:
            return await work(Desk(ledger, redis_url, settings))
        except UndefinedTable:
            raise ConfigError("this ledger lacks tables that this code needs; run `waybill db upgrade`") from None
        finally:
            await ledger.close()

    if found is not None:
        return asyncio.run(run(*found))
    with ledger_url(settings) as url:
        return asyncio.run(run(url, settings.redis_url.get_secret_value() if settings.redis_url else None))


def refuse(message: str) -> NoReturn:
    """End with one line."""
    click.echo(f"waybill: {message}", err=True)
    sys.exit(1)


async def find_job(desk: Desk, name: str) -> str:
    """The job of an id or its first 8 characters; refuses everything else."""
    from waybill.ledger import oncall

    clean = name.strip().lower()
    if len(clean) < 8 or any(c not in "0123456789abcdef-" for c in clean):
        refuse(f"{name!r} is neither the name of a run nor an id (at least the first 8 characters)")
    rows = await desk.ask(oncall.FIND_JOB, {"prefix": f"{clean}%"})
    if len(rows) != 1:
        refuse(
            f"several jobs begin with {name}; give more of the id" if rows else f"no run or job {name} in this ledger"
        )
    return str(rows[0]["id"])
