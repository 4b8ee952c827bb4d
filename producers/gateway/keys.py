"""Keys at the gateway: from what was sent to who asks, and how many requests a key may make and hold open.

A key is looked up by its hash and remembered for `REMEMBER_S`, so a revoked key opens nothing after that. Rates and open
requests are counted in Redis for all gateways together; while Redis is away each gateway counts by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from starlette.types import ASGIApp, Receive, Scope, Send

from producers.gateway.errors import Kind, Refusal
from waybill.errors import LedgerUnavailable
from waybill.ledger import keys
from waybill.names import REDIS_PREFIX
from waybill.redislink import connect_async

if TYPE_CHECKING:
    from waybill.ledger.engine import Ledger

log = logging.getLogger("waybill.gateway")

REMEMBER_S: Final = 5.0
_MOST_REMEMBERED: Final = 10_000
WINDOW_S: Final = 60.0
HOLD_S: Final = 30.0
"""An open request that its gateway does not renew for this long is no longer counted (the gateway was lost)."""
NOBODY: Final = "no valid key was sent; send it as `Authorization: Bearer KEY` or `x-api-key: KEY`"
"""The same whether a key is missing, wrong, revoked or expired: nobody learns which."""


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """A key that exists and is not revoked."""

    id: str
    tenant: str
    scopes: frozenset[str]
    requests_per_minute: int | None
    concurrency: int | None
    expires_at: datetime | None
    is_suspended: bool


# Both limits are checked before either counts. The window slides: no 60 seconds hold more than the rate.
_ENTER: Final = """
local now = redis.call('time')
now = now[1] * 1000 + math.floor(now[2] / 1000)
local rate, most, window, hold = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
if most > 0 then
    redis.call('zremrangebyscore', KEYS[2], '-inf', now)
    if redis.call('zcard', KEYS[2]) >= most then return {'open', 1000} end
end
if rate > 0 then
    redis.call('zremrangebyscore', KEYS[1], '-inf', now - window)
    if redis.call('zcard', KEYS[1]) >= rate then
        local oldest = redis.call('zrange', KEYS[1], 0, 0, 'withscores')
        return {'rate', oldest[2] + window - now}
    end
    redis.call('zadd', KEYS[1], now, ARGV[5])
    redis.call('pexpire', KEYS[1], window)
end
if most > 0 then
    redis.call('zadd', KEYS[2], now + hold, ARGV[5])
    redis.call('pexpire', KEYS[2], hold)
end
return {'ok', 0}
"""

_RENEW: Final = """
local now = redis.call('time')
local till = now[1] * 1000 + math.floor(now[2] / 1000) + tonumber(ARGV[1])
for i = 2, #ARGV do redis.call('zadd', KEYS[1], 'xx', till, ARGV[i]) end
redis.call('pexpire', KEYS[1], tonumber(ARGV[1]))
return 0
"""


@dataclass(slots=True)
class _Alone:
    """One key's requests as this gateway alone has seen them, for when Redis is away."""

    recent: deque[float] = field(default_factory=deque)
    held: set[str] = field(default_factory=set)

    def enter(self, record: KeyRecord, request_id: str, now: float) -> tuple[str, float]:
        while self.recent and self.recent[0] <= now - WINDOW_S:
            self.recent.popleft()
        if record.concurrency is not None and len(self.held) >= record.concurrency:
            return "open", 1.0
        if record.requests_per_minute is not None:
            if len(self.recent) >= record.requests_per_minute:
                return "rate", self.recent[0] + WINDOW_S - now
            self.recent.append(now)
        return "ok", 0.0


class KeyRing:
    """One per gateway process."""

    def __init__(self, ledger: Ledger, redis_url: str) -> None:
        self._ledger = ledger
        self._redis = connect_async(redis_url, socket_connect_timeout=2, socket_timeout=2)
        self._known: OrderedDict[str, tuple[float, KeyRecord | None]] = OrderedDict()
        self._alone: dict[str, _Alone] = {}
        self._held: dict[str, str] = {}
        self._used: set[str] = set()
        self._any_until = 0.0
        self._any = False
        self._task: asyncio.Task[None] | None = None

    async def any_exist(self) -> bool:
        """Whether anybody has a key; development mode ends with the first one."""
        now = time.monotonic()
        if not self._any and now >= self._any_until:
            try:
                self._any = bool((await self._ledger.fetch(keys.ANY))[0]["there"])
            except LedgerUnavailable:
                return self._any  # nothing can be submitted either
            self._any_until = now + REMEMBER_S
        return self._any

    async def find(self, secret: str | None) -> KeyRecord:
        """Whose key it is.

        Raises:
            Refusal: Nobody's, or a suspended tenant's.
            LedgerUnavailable: It cannot be looked up now.
        """
        record = None if not secret or len(secret) > 500 else await self._look_up(keys.hash_of(secret))
        if record is None or keys.is_expired(record.expires_at, datetime.now(UTC)):
            raise Refusal(Kind.AUTHENTICATION, NOBODY)
        if record.is_suspended:
            raise Refusal(Kind.PERMISSION, "this tenant is suspended; ask whoever runs this gateway")
        return record

    async def _look_up(self, hashed: str) -> KeyRecord | None:
        now = time.monotonic()
        until, known = self._known.get(hashed, (0.0, None))
        if now < until:
            return known
        rows = await self._ledger.fetch(keys.FIND, {"hash": hashed})
        record = None
        if rows and keys.is_same(rows[0]["hash"], hashed):
            row = rows[0]
            record = KeyRecord(
                id=row["id"],
                tenant=row["tenant"],
                scopes=frozenset(row["scopes"]),
                requests_per_minute=row["requests_per_minute"],
                concurrency=row["concurrency"],
                expires_at=row["expires_at"],
                is_suspended=row["suspended_at"] is not None,
            )
        self._known[hashed] = (now + REMEMBER_S, record)
        while len(self._known) > _MOST_REMEMBERED:
            self._known.popitem(last=False)
        return record

    async def enter(self, record: KeyRecord, request_id: str) -> None:
        """Count a request; `leave` ends it.

        Raises:
            Refusal: The key makes too many, or holds too many open.
        """
        self._used.add(record.id)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._keep(), name="keyring")
        if record.requests_per_minute is None and record.concurrency is None:
            return
        verdict, wait_s = await self._enter_somewhere(record, request_id)
        if verdict == "open":
            raise Refusal(
                Kind.RATE_LIMIT, f"this key has {record.concurrency} requests open, its limit", retry_after_s=wait_s
            )
        if verdict == "rate":
            raise Refusal(
                Kind.RATE_LIMIT,
                f"this key may make {record.requests_per_minute} requests a minute",
                retry_after_s=wait_s,
            )
        self._held[request_id] = record.id
        self._alone.setdefault(record.id, _Alone()).held.add(request_id)

    async def _enter_somewhere(self, record: KeyRecord, request_id: str) -> tuple[str, float]:
        from redis.exceptions import RedisError

        alone = self._alone.setdefault(record.id, _Alone())
        try:
            answer: Any = await self._redis.eval(
                _ENTER,
                2,
                _rate_key(record.id),
                _open_key(record.id),
                str(record.requests_per_minute or 0),
                str(record.concurrency or 0),
                str(int(WINDOW_S * 1000)),
                str(int(HOLD_S * 1000)),
                request_id,
            )
        except (RedisError, OSError):
            return alone.enter(record, request_id, time.monotonic())
        verdict, wait_ms = answer
        return (verdict.decode() if isinstance(verdict, bytes) else str(verdict)), max(0.0, float(wait_ms) / 1000)

    async def leave(self, request_id: str) -> None:
        """The request's answer is complete, or its client is gone."""
        from redis.exceptions import RedisError

        key_id = self._held.pop(request_id, None)
        if key_id is None:
            return
        alone = self._alone.get(key_id)
        if alone is not None:
            alone.held.discard(request_id)
        with contextlib.suppress(RedisError, OSError):
            await self._redis.zrem(_open_key(key_id), request_id)

    async def _keep(self) -> None:
        """Every third of a hold: say that our open requests are still open, and write down which keys were used."""
        from redis.exceptions import RedisError

        while True:
            await asyncio.sleep(HOLD_S / 3)
            held: dict[str, list[str]] = {}
            for request_id, key_id in self._held.items():
                held.setdefault(key_id, []).append(request_id)
            with contextlib.suppress(RedisError, OSError):
                for key_id, request_ids in held.items():
                    await self._redis.eval(_RENEW, 1, _open_key(key_id), str(int(HOLD_S * 1000)), *request_ids)
            used, self._used = self._used, set()
            if used:
                with contextlib.suppress(LedgerUnavailable):
                    await self._ledger.fetch(keys.USED, {"ids": list(used)})

    async def close(self) -> None:
        """Stop counting."""
        if self._task is not None:
            self._task.cancel()
        await self._redis.aclose()


class Turnstile:
    """Ends a request at its key when its answer is complete, however it ended."""

    def __init__(self, app: ASGIApp, ring: KeyRing) -> None:
        self._app, self._ring = app, ring

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._app(scope, receive, send)
        finally:
            request_id = scope.get("state", {}).get("request_id") if scope["type"] == "http" else None
            if request_id is not None:
                await self._ring.leave(request_id)


def _rate_key(key_id: str) -> str:
    return f"{REDIS_PREFIX}key:{key_id}:rate"


def _open_key(key_id: str) -> str:
    return f"{REDIS_PREFIX}key:{key_id}:open"
