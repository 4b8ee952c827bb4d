"""What a process looks at before it serves: services that would lose work silently, or are open to anybody, are refused.

A service that does not answer yet is waited for; that is not its configuration's fault.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

from waybill.errors import ConfigError, LedgerUnavailable
from waybill.ledger.engine import Ledger
from waybill.redislink import connect, is_redis
from waybill.settings import Settings
from workers.telemetry import emit

if TYPE_CHECKING:
    from redis import Redis

RETRY_S = 1.0
OLDEST_REDIS = 7
TELL_EVERY = 10
"""Tries between two lines that say what is waited for."""


def check_services(settings: Settings) -> None:
    """Return when Redis and the ledger are fit to be used.

    Raises:
        ConfigError: One is not; the message says why and what to set.
    """
    # All that is not set is told before anything is waited for.
    ledger_url = settings.require_database_url()
    redis_urls = dict.fromkeys((settings.require_redis_url(), settings.require_broker_url()))
    asyncio.run(_check_ledger(ledger_url))
    for url in redis_urls:
        if is_redis(url):
            asyncio.run(_check_redis(url, is_dev=settings.dev))


async def _check_ledger(url: str) -> None:
    ledger = Ledger(url, pool_size=1)
    tries = 0
    try:
        while True:
            try:
                [row] = await ledger.fetch(
                    "select current_setting('synchronous_commit') as commits, current_setting('fsync') as syncs"
                )
                break
            except LedgerUnavailable as exc:
                await _wait("ledger", exc, tries)
                tries += 1
    finally:
        await ledger.close()
    problem = ledger_problem(str(row["commits"]), str(row["syncs"]))
    if problem is not None:
        raise ConfigError(problem)


def ledger_problem(synchronous_commit: str, fsync: str) -> str | None:
    """Why these settings of Postgres cannot carry a ledger; None when they can."""
    if synchronous_commit == "off":
        # Measured: 18 of 5,217 acknowledged commits were gone after one round of kills.
        return (
            "Postgres runs with synchronous_commit=off and forgets committed jobs when it falls;"
            " `alter role ... set synchronous_commit = on` (or local)"
        )
    if fsync == "off":
        return "Postgres runs with fsync=off and may lose the ledger with the power; set fsync = on and restart it"
    return None


async def _check_redis(url: str, *, is_dev: bool) -> None:
    from redis.exceptions import RedisError

    tries = 0
    while True:
        try:
            with connect(url, socket_connect_timeout=5, socket_timeout=5) as connection:
                policy, version = await asyncio.to_thread(_told_by, connection)
            is_open = await asyncio.to_thread(_is_open, _without_login(url))
            break
        except (RedisError, OSError) as exc:
            refusal = _refused_login(exc)
            if refusal is not None:
                raise ConfigError(refusal) from exc
            await _wait("redis", exc, tries)
            tries += 1
    problem = redis_problem(policy, version, is_open=is_open, is_dev=is_dev)
    if problem is not None:
        raise ConfigError(problem)


def redis_problem(policy: str | None, version: str | None, *, is_open: bool, is_dev: bool) -> str | None:
    """Why this Redis cannot carry doorbells and quotas; None when it can.

    Args:
        policy: Its maxmemory-policy; None where it does not tell.
        version: Its version, or that of the Redis that it is compatible with; None where it does not tell.
        is_open: Whether it takes commands without a login.
        is_dev: Whether an open one is wanted (WAYBILL_DEV).
    """
    if version is not None and version.partition(".")[0].isdigit() and int(version.partition(".")[0]) < OLDEST_REDIS:
        return f"Redis is {version}; quick bells need {OLDEST_REDIS}.0 or newer (BLMPOP)"
    if policy is not None and policy != "noeviction":
        # Measured: of 60 acknowledged messages 9 were left.
        return (
            f"Redis runs with maxmemory-policy {policy} and drops messages silently when it is full;"
            " `config set maxmemory-policy noeviction`"
        )
    if is_open and not is_dev:
        return (
            "Redis takes commands without a login, and whoever reaches it controls the workers;"
            " set requirepass or an ACL user and put it into WAYBILL_REDIS_URL"
            " (WAYBILL_DEV=1 allows it on a machine of your own)"
        )
    return None


def _told_by(connection: Redis) -> tuple[str | None, str | None]:
    """Its maxmemory-policy and its version. INFO and not CONFIG: managed services forbid the latter."""
    told: Any = {**connection.info("server"), **connection.info("memory")}
    policy, version = told.get("maxmemory_policy"), told.get("redis_version")
    return None if policy is None else str(policy), None if version is None else str(version)


def _is_open(url: str) -> bool:
    from redis.exceptions import AuthenticationError, ResponseError

    with connect(url, socket_connect_timeout=5, socket_timeout=5) as stranger:
        try:
            stranger.ping()
        except (AuthenticationError, ResponseError):
            return False
    return True


def _without_login(url: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _refused_login(exc: Exception) -> str | None:
    from redis.exceptions import AuthenticationError

    if isinstance(exc, AuthenticationError):
        return f"WAYBILL_REDIS_URL: Redis refuses its user or password ({str(exc).splitlines()[0]})"
    return None


async def _wait(service: str, exc: Exception, tries: int) -> None:
    if tries % TELL_EVERY == 0:
        emit("service.away", service=service, error=f"{exc}; waiting for it")
    await asyncio.sleep(RETRY_S)
