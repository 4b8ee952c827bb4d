"""Opens connections to Redis from its URL: one server, or whoever Sentinels say is the master now.

    redis://[user:password@]host:port/db                              one server; rediss:// with TLS
    redis+sentinel://[user:password@]host:port,host:port/db?master=NAME   the Sentinels; user and password are the server's

After a failover what the old master had not yet passed on is lost. That is no more than any loss of Redis: hints, and
doorbells that control rings again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, cast
from urllib.parse import parse_qs, quote, unquote, urlsplit

from waybill.errors import ConfigError

if TYPE_CHECKING:
    import redis
    import redis.asyncio

SCHEME: Final = "redis+sentinel"
SENTINEL_PORT: Final = 26379
_FORM: Final = f"write {SCHEME}://user:password@host:26379,host:26379/0?master=NAME"


@dataclass(frozen=True, slots=True)
class Sentinels:
    """Who knows the master.

    Attributes:
        hosts: Of the Sentinels.
        master: What they call it.
        login: `username` and `password` of the servers, those that are given.
        sentinel_password: Of the Sentinels themselves; `sentinel_password` in the query.
        db: The database's number.
    """

    hosts: tuple[tuple[str, int], ...]
    master: str
    login: dict[str, str]
    sentinel_password: str | None
    db: int

    @property
    def own_login(self) -> dict[str, str]:
        """What the Sentinels want to know."""
        return {} if self.sentinel_password is None else {"password": self.sentinel_password}


def is_redis(url: str) -> bool:
    """Whether Redis is meant, by itself or behind Sentinels."""
    return url.startswith(("redis://", "rediss://", f"{SCHEME}://"))


def sentinels(url: str) -> Sentinels | None:
    """The Sentinels of a URL; None where it names a server.

    Raises:
        ConfigError: It begins as one for Sentinels and is none.
    """
    if not url.startswith(f"{SCHEME}://"):
        return None
    parts = urlsplit(url)
    login, _, hosts = parts.netloc.rpartition("@")
    user, _, password = login.partition(":")
    query = parse_qs(parts.query)
    try:
        found = tuple(_host(one) for one in hosts.split(","))
        db = int(parts.path.strip("/") or 0)
    except ValueError:
        raise ConfigError(f"WAYBILL_REDIS_URL: a host, port or database is none; {_FORM}") from None
    if "master" not in query:
        raise ConfigError(f"WAYBILL_REDIS_URL names no master; {_FORM}")
    given = {"username": unquote(user), "password": unquote(password)}
    return Sentinels(
        hosts=found,
        master=query["master"][0],
        login={name: value for name, value in given.items() if value},
        sentinel_password=query.get("sentinel_password", [None])[0],
        db=db,
    )


def _host(text: str) -> tuple[str, int]:
    name, colon, port = text.rpartition(":")
    if not colon:
        name, port = text, str(SENTINEL_PORT)
    if not name:
        raise ValueError(text)
    return name.strip("[]"), int(port)


def connect(url: str, **options: Any) -> redis.Redis:
    """A client for threads. Options: redis-py's, of a connection."""
    import redis

    behind = sentinels(url)
    if behind is None:
        return redis.Redis.from_url(url, **options)
    from redis import sentinel

    return cast("redis.Redis", _master(sentinel, behind, options))


def connect_async(url: str, **options: Any) -> redis.asyncio.Redis:
    """A client for asyncio. Options: redis-py's, of a connection."""
    import redis.asyncio

    behind = sentinels(url)
    if behind is None:
        return redis.asyncio.Redis.from_url(url, **options)
    from redis.asyncio import sentinel

    return cast("redis.asyncio.Redis", _master(sentinel, behind, options))


def _master(module: Any, behind: Sentinels, options: dict[str, Any]) -> object:
    # A Sentinel that is gone must not hold up the others.
    wait_s = options.get("socket_connect_timeout", 5)
    asking = {"socket_connect_timeout": wait_s, "socket_timeout": wait_s, **behind.own_login}
    found = module.Sentinel(list(behind.hosts), sentinel_kwargs=asking)
    master: object = found.master_for(behind.master, db=behind.db, **behind.login, **options)
    return master


def kombu_address(url: str) -> tuple[str, dict[str, Any]]:
    """The URL and the transport options by which kombu finds the same Redis."""
    behind = sentinels(url)
    if behind is None:
        return url, {}
    user, password = (quote(behind.login.get(name, ""), safe="") for name in ("username", "password"))
    login = f"{user}:{password}@" if behind.login else ""
    urls = ";".join(f"sentinel://{login}{host}:{port}/{behind.db}" for host, port in behind.hosts)
    return urls, {"master_name": behind.master, "sentinel_kwargs": {"socket_timeout": 5, **behind.own_login}}
