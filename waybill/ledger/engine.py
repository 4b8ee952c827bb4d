"""Connections to the ledger: one pool per process, and one way to run a statement that survives a lost connection."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import URL, event, make_url
from sqlalchemy.engine import ExceptionContext, RowMapping
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as NoConnectionLeft
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from waybill.errors import ConfigError, LedgerUnavailable

# SQLSTATE classes that mean "later", not "wrong": connection, resources, operator intervention, serialization.
_LATER = ("08", "53", "57", "40", "25006")
# The server ends the session with these: every other connection of the pool is as dead.
_SESSION_ENDED = ("08", "57P")


def parse_url(url: str) -> URL:
    """Check a ledger URL and fill in the driver.

    Raises:
        ConfigError: It is no PostgreSQL URL.
    """
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise ConfigError(
            "WAYBILL_DATABASE_URL is not a URL; write postgresql+psycopg://user:password@host:5432/database"
        ) from None
    if parsed.drivername in ("postgres", "postgresql"):
        parsed = parsed.set(drivername="postgresql+psycopg")
    if parsed.drivername != "postgresql+psycopg":
        raise ConfigError(
            f"WAYBILL_DATABASE_URL: {parsed.drivername!r} is not supported; the ledger needs PostgreSQL:"
            " postgresql+psycopg://user:password@host:5432/database"
        )
    return parsed


def is_passing(exc: BaseException) -> bool:
    """Whether the statement may succeed when it is sent again later (server gone, restarting, out of slots)."""
    if isinstance(exc, DBAPIError):
        state = getattr(exc.orig, "sqlstate", None)
        if state is not None:
            return str(state).startswith(_LATER)
        return isinstance(exc, OperationalError | InterfaceError) or exc.connection_invalidated
    return isinstance(exc, OSError | TimeoutError | NoConnectionLeft)


def _notice_ended_session(context: ExceptionContext) -> None:
    """Let the pool drop all its connections at the first farewell, not each at its own failure."""
    state = getattr(context.original_exception, "sqlstate", None)
    if state is not None and str(state).startswith(_SESSION_ENDED):
        context.is_disconnect = True


class Ledger:
    """A pool of autocommit connections. Every statement in queries.py is one transaction by itself.

    Not to be shared between event loops.
    """

    def __init__(self, url: str, *, pool_size: int = 5, max_overflow: int = 5, connect_timeout_s: int = 5) -> None:
        parsed = parse_url(url)
        # A pooler that gives each statement another session knows nothing of statements prepared on the one before.
        pooled = parsed.query.get("pgbouncer") == "true"
        self._engine: AsyncEngine = create_async_engine(
            parsed.difference_update_query(["pgbouncer"]),
            pool_size=pool_size,
            max_overflow=max_overflow,
            pool_timeout=30,
            pool_recycle=1800,
            isolation_level="AUTOCOMMIT",
            hide_parameters=True,  # an error message must never quote a prompt
            connect_args={
                "connect_timeout": connect_timeout_s,
                "application_name": "waybill",
                # A silent network must not hold a worker for ever: 30 s of probes, then the connection is dead.
                "keepalives_idle": 10,
                "keepalives_interval": 5,
                "keepalives_count": 4,
                "tcp_user_timeout": 30_000,
                **({"prepare_threshold": None} if pooled else {}),
            },
        )

        event.listen(self._engine.sync_engine, "handle_error", _notice_ended_session)

    async def fetch(self, sql: str, params: Mapping[str, Any] | None = None) -> Sequence[RowMapping]:
        """Run one statement and return its rows.

        Raises:
            LedgerUnavailable: Postgres does not answer; the statement may or may not have been carried out.
        """
        try:
            async with self._engine.connect() as connection:
                result = await connection.exec_driver_sql(sql, dict(params) if params else None)
                return result.mappings().all() if result.returns_rows else ()
        except (DBAPIError, OSError, TimeoutError, NoConnectionLeft) as exc:
            if is_passing(exc):
                raise LedgerUnavailable(f"Postgres does not answer: {_first_line(exc)}") from exc
            raise

    async def fetch_patiently(
        self, sql: str, params: Mapping[str, Any] | None = None, *, give_up: asyncio.Event | None = None
    ) -> Sequence[RowMapping]:
        """`fetch`, sent again (0.1 s doubling to 5 s, with jitter) until Postgres answers or `give_up` is set.

        Only for statements that are harmless to carry out twice.
        """
        pause_s = 0.1
        while True:
            try:
                return await self.fetch(sql, params)
            except LedgerUnavailable:
                if give_up is not None and give_up.is_set():
                    raise
                await asyncio.sleep(pause_s * random.uniform(0.7, 1.3))
                pause_s = min(5.0, pause_s * 2)

    async def close(self) -> None:
        """Close all connections."""
        await self._engine.dispose()


def _first_line(exc: BaseException) -> str:
    cause = exc.orig if isinstance(exc, DBAPIError) and exc.orig is not None else exc
    text = str(cause).strip()
    return text.splitlines()[0] if text else type(cause).__name__
