"""Connections to the ledger: one pool per process, and one way to run a statement that survives a lost connection.

psycopg itself, not SQLAlchemy on top of it: a statement costs its process 0.25 ms instead of 0.85 (decision 0102), and a
call that somebody waits for takes nine of them one after the other.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.rows import dict_row
from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from waybill.errors import ConfigError, LedgerUnavailable

Row = Mapping[str, Any]
"""A row by the names of its columns."""

# SQLSTATE classes that mean "later", not "wrong": connection, resources, operator intervention, serialization.
_LATER = ("08", "53", "57", "40", "25006")
# The server ends the session with these: every other connection of the pool is as dead.
_SESSION_ENDED = ("08", "57P")
_RECYCLE_S: Final = 1800.0
_WAIT_S: Final = 30.0
"""So long is a connection waited for when all are in use."""


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
    if isinstance(exc, psycopg.Error):
        if exc.sqlstate is not None:
            return exc.sqlstate.startswith(_LATER)
        return isinstance(exc, psycopg.OperationalError | psycopg.InterfaceError)
    return isinstance(exc, OSError | TimeoutError)


_Connection = psycopg.AsyncConnection[dict[str, Any]]


class _Pool:
    """Connections that are lent out one statement at a time, the one used last first. Those above `size` end when they come back.

    Attributes:
        wait_s: How long one is waited for when all are in use.
    """

    def __init__(self, size: int, overflow: int, options: Mapping[str, Any]) -> None:
        self.wait_s = _WAIT_S
        self._size, self._options = size, options
        self._seats = asyncio.Semaphore(size + overflow)
        self._idle: list[tuple[_Connection, float]] = []
        self._good_since = 0.0
        """Connections opened before this belong to a server that has said farewell."""

    async def fetch(self, sql: str, params: Mapping[str, Any]) -> Sequence[Row]:
        """Run one statement on a connection."""
        if self._seats.locked():
            try:
                async with asyncio.timeout(self.wait_s):
                    await self._seats.acquire()
            except TimeoutError:
                raise TimeoutError(f"all connections were in use for {self.wait_s:g} s") from None
        else:
            await self._seats.acquire()
        try:
            connection, born = await self._take()
            try:
                cursor = await connection.execute(sql, params)
                rows = await cursor.fetchall() if cursor.description is not None else ()
            except BaseException as exc:
                await self._after(exc, connection, born)
                raise
            await self._give_back(connection, born)
            return rows
        finally:
            self._seats.release()

    async def open(self) -> None:
        """Have one connection ready. Quietly nothing when the server is away."""
        try:
            await self._give_back(*await self._take())
        except (psycopg.Error, OSError):
            return

    async def close(self) -> None:
        """Close what is idle; what is lent out is closed when it comes back."""
        self._good_since = time.monotonic()
        while self._idle:
            await self._idle.pop()[0].close()

    async def _take(self) -> tuple[_Connection, float]:
        while self._idle:
            connection, born = self._idle.pop()
            if not connection.closed and self._is_young(born):
                return connection, born
            await connection.close()
        born = time.monotonic()
        return await psycopg.AsyncConnection.connect(**self._options, autocommit=True, row_factory=dict_row), born

    async def _after(self, exc: BaseException, connection: _Connection, born: float) -> None:
        """A statement failed or was broken off: its connection stays only where it surely is as it was."""
        is_ended = connection.closed or (
            isinstance(exc, psycopg.Error) and exc.sqlstate is not None and exc.sqlstate.startswith(_SESSION_ENDED)
        )
        if is_ended:
            # All drop at the first farewell, not each at its own failure.
            self._good_since = time.monotonic()
        if is_ended or not isinstance(exc, psycopg.Error):
            await connection.close()
        else:
            await self._give_back(connection, born)

    async def _give_back(self, connection: _Connection, born: float) -> None:
        is_well = connection.info.transaction_status is TransactionStatus.IDLE
        if is_well and self._is_young(born) and len(self._idle) < self._size:
            self._idle.append((connection, born))
        else:
            await connection.close()

    def _is_young(self, born: float) -> bool:
        return born > self._good_since and time.monotonic() - born < _RECYCLE_S


class Ledger:
    """A pool of autocommit connections. Every statement in queries.py is one transaction by itself.

    Not to be shared between event loops.
    """

    def __init__(self, url: str, *, pool_size: int = 5, max_overflow: int = 5, connect_timeout_s: int = 5) -> None:
        parsed = parse_url(url)
        # A pooler that gives each statement another session knows nothing of statements prepared on the one before.
        pooled = parsed.query.get("pgbouncer") == "true"
        parsed = parsed.difference_update_query(["pgbouncer"])
        _, given = parsed.get_dialect()().create_connect_args(parsed)
        self._pool = _Pool(
            pool_size,
            max_overflow,
            {
                "connect_timeout": connect_timeout_s,
                "application_name": "waybill",
                # A silent network must not hold a worker for ever: 30 s of probes, then the connection is dead.
                "keepalives_idle": 10,
                "keepalives_interval": 5,
                "keepalives_count": 4,
                "tcp_user_timeout": 30_000,
                "prepare_threshold": None if pooled else 1,
                **given,
            },
        )

    async def fetch(self, sql: str, params: Mapping[str, Any] | None = None) -> Sequence[Row]:
        """Run one statement and return its rows.

        Raises:
            LedgerUnavailable: Postgres does not answer; the statement may or may not have been carried out.
            psycopg.Error: The statement is wrong, or what it was given.
        """
        try:
            return await self._pool.fetch(sql, params or {})
        except (psycopg.Error, OSError, TimeoutError) as exc:
            if is_passing(exc):
                raise LedgerUnavailable(f"Postgres does not answer: {_first_line(exc)}") from exc
            raise

    async def fetch_patiently(
        self, sql: str, params: Mapping[str, Any] | None = None, *, give_up: asyncio.Event | None = None
    ) -> Sequence[Row]:
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

    async def open(self) -> None:
        """Have a connection ready before the first statement; nothing happens where Postgres is away."""
        await self._pool.open()

    async def close(self) -> None:
        """Close all connections."""
        await self._pool.close()


def _first_line(exc: BaseException) -> str:
    text = str(exc).strip()
    return text.splitlines()[0] if text else type(exc).__name__
