"""The fleet's housekeeping: releases parked jobs, rescues jobs whose worker was lost, rings again what was not heard.

Any number of these may run: every statement takes rows with `skip locked`, so two never do the same thing twice.
"""

from __future__ import annotations

import asyncio
import secrets
import signal
import time
from collections.abc import Sequence
from typing import Any

from waybill.broker import execute_doorbells
from waybill.errors import LedgerUnavailable
from waybill.ledger import budgets, providerbatches, queries, retention
from waybill.ledger.engine import Ledger
from waybill.names import BEATS_KEY, CLASSES, EPOCH_KEY, PROVIDERS, provider_queue
from waybill.probe import beating
from waybill.redislink import connect_async
from waybill.settings import Settings
from waybill.streaming import publish_end
from workers.crashpoint import crash_point
from workers.limiter import LimiterAway, Pump
from workers.preflight import check_services
from workers.sharing import Sharing
from workers.telemetry import configure, emit, flush

RELEASE_EVERY_S = 0.1
PUMP_EVERY_S = 0.1
FOLD_EVERY_S = 0.1
RESCUE_EVERY_S = 1.0
SHARE_EVERY_S = 2.0
HEDGE_EVERY_S = 1.0
RING_EVERY_S = 2.0
STRAYS_EVERY_S = 5.0
REPORT_EVERY_S = 2.0
PURGE_EVERY_S = 30.0
PURGE_JOBS = 500
"""In one statement; as many statements as a tenth of a second allows, so that nothing else control does waits for it."""
PURGE_ROWS = 1000
MAX_LOSSES = 3
"""A job that lost this many workers is put aside: it probably kills them."""
SHORT_QUEUE = 3
"""Messages: below this a queue cannot be why a job has been waiting, so its doorbell must have been lost."""
LONG_UNHEARD_S = 5.0
"""After a kill -9 this is how long the doorbells wait that the dead worker had heard and not yet followed."""
LINES_WITHIN_S = 10.0
"""Jobs that waited for quota ask again within this time when Redis was wiped, or when they turn out to stand in no line."""


class Control:
    """One process's housekeeping."""

    def __init__(self, settings: Settings) -> None:
        from waybill.broker import Broker

        self._ledger = Ledger(settings.require_database_url(), pool_size=2)
        self._redis = connect_async(
            settings.require_redis_url(), socket_connect_timeout=5, socket_timeout=10, health_check_interval=10
        )
        self._broker = Broker(settings.require_broker_url())
        self._sharing = Sharing(self._ledger, self._redis, self._broker, "control")
        self._pump = Pump(settings.require_redis_url())
        self._broker_is_redis = settings.require_broker_url().startswith("redis")
        self._epoch: bytes | str | None = None
        self._away_since: float | None = None
        self._lease_s = settings.lease_s
        self._done: dict[str, float] = {}
        """When each duty was last done without an error (`time.time()`)."""
        self._rescue_from = 0.0
        """`time.monotonic()`. Leases that ended while the ledger was away say nothing: nobody could renew them."""

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set; a service that is away is waited for."""
        every = {
            self.release: RELEASE_EVERY_S,
            self.share: SHARE_EVERY_S,
            self.pump: PUMP_EVERY_S,
            self.fold: FOLD_EVERY_S,
            self.rescue: RESCUE_EVERY_S,
            self.hedge: HEDGE_EVERY_S,
            self.ring_again: RING_EVERY_S,
            self.find_strays: STRAYS_EVERY_S,
            self.report: REPORT_EVERY_S,
            self.purge: PURGE_EVERY_S,
        }
        due = dict.fromkeys(every, 0.0)
        while not stop.is_set():
            now = time.monotonic()
            for duty in due:
                if due[duty] <= now:
                    due[duty] = now + every[duty]
                    await self._carefully(duty)
            try:
                await asyncio.wait_for(stop.wait(), RELEASE_EVERY_S)
            except TimeoutError:
                continue
        await self.close()

    async def close(self) -> None:
        """Disconnect."""
        await self._pump.close()
        await self._redis.aclose()
        await self._ledger.close()
        await asyncio.to_thread(self._broker.close)

    async def _carefully(self, duty: Any) -> None:
        from redis.exceptions import RedisError

        from waybill.errors import BrokerUnavailable

        try:
            await duty()
        except (LedgerUnavailable, BrokerUnavailable, LimiterAway, RedisError, OSError) as exc:
            if self._away_since is None:
                self._away_since = time.monotonic()
                emit("service.away", service=type(exc).__name__, error=str(exc))
            if isinstance(exc, LedgerUnavailable):
                self._rescue_from = time.monotonic() + self._lease_s
            await asyncio.sleep(0.5)
            return
        self._done[duty.__name__] = time.time()
        if self._away_since is not None:
            emit("service.back", service="all", seconds_s=time.monotonic() - self._away_since)
            self._away_since = None

    def obstacle(self) -> str | None:
        """What keeps the housekeeping from being done; None = it is done."""
        return None if self._away_since is None else "the ledger or Redis is away"

    async def report(self) -> None:
        """Tell the exporter which duties were done and when, and what was counted."""
        await flush(self._redis)
        for name, at in self._done.items():
            await self._redis.hset(BEATS_KEY, name, f"{at:.3f}")

    async def purge(self) -> None:
        """Delete text that is older than its tenant's rule says."""
        jobs, end = 0, time.monotonic() + 0.1
        while rows := await self._ledger.fetch(retention.PURGE, {"limit": PURGE_JOBS, "keys_too": False}):
            jobs += len(rows)
            if time.monotonic() > end:
                break
        counts = {}
        for what, statement, limit in (
            ("files", retention.PURGE_UPLOADS, 10),
            ("batches", retention.PURGE_BATCHES, PURGE_ROWS),
            ("deliveries", retention.PURGE_DELIVERIES, PURGE_ROWS),
        ):
            counts[what] = len(await self._ledger.fetch(statement, {"limit": limit}))
        counts["files"] += len(await self._ledger.fetch(retention.PURGE_BROKEN_UPLOADS))
        if jobs or any(counts.values()):
            emit("text.purged", jobs=jobs, **counts)

    async def release(self) -> None:
        """Parked jobs whose time has come go back to their queue."""
        rows = await self._ledger.fetch(queries.RELEASE_DUE, {"limit": 500})
        if rows:
            crash_point("after_release")
        await self._ring_routed(rows)
        await self._tell_final(rows)
        if rows:
            emit("jobs.released", jobs=len(rows))

    async def pump(self) -> None:
        """Jobs that wait for quota go back to their queue, as many as the buckets admit now."""
        for lane, job_ids in await self._pump.wake():
            rows = await self._ledger.fetch(queries.RELEASE_WOKEN, {"ids": job_ids})
            await self._ring_routed(rows)
            woken = {row["id"] for row in rows}
            await self._pump.forget(lane, [job_id for job_id in job_ids if job_id not in woken])

    async def fold(self) -> None:
        """What calls have cost goes to their budgets, and their reservations become free."""
        if not await self._ledger.fetch(budgets.FOLD):
            return
        for row in await self._ledger.fetch(budgets.ALERT):
            emit("budget.share", budget=row["budget_id"], percent=row["share"])

    async def share(self) -> None:
        """Who still waits for a job that has ended, or has waited too long: a worker that died could not tell them."""
        await self._sharing.sweep()

    async def rescue(self) -> None:
        """Running jobs whose lease ended: their worker is gone. The call it may have made is booked as unknown."""
        if time.monotonic() < self._rescue_from:
            return
        rows = await self._ledger.fetch(queries.RESCUE, {"limit": 500, "max_losses": MAX_LOSSES})
        if rows:
            crash_point("after_rescue")
        await self._ring_routed(rows)
        await self._tell_final(rows)
        if rows:
            emit("jobs.rescued", jobs=len(rows), dead=sum(row["state"] == "dead" for row in rows))

    async def hedge(self) -> None:
        """Jobs whose time runs out leave the batch lane; so do those that were cancelled while a batch had them."""
        rows = await self._ledger.fetch(providerbatches.HEDGE, {"limit": 500})
        if rows:
            crash_point("after_hedge")
            await self._ring_routed(rows)
            emit("jobs.hedged", jobs=len(rows))
        await self._tell_final(await self._ledger.fetch(providerbatches.LEAVE_CANCELLED, {"limit": 500}))

    async def ring_again(self) -> None:
        """Doorbells that were lost: with Redis, with a producer that died before ringing, with a worker's prefetch."""
        wiped = await self._redis_was_wiped()
        if wiped:
            await self._ledger.fetch(queries.RELEASE_LINES, {"ids": None, "within_s": LINES_WITHIN_S})
        short = await self._short_queues() if not wiped else _provider_queues()
        rows = await self._ledger.fetch(
            queries.STALE,
            {
                "routed_s": 0.5 if wiped else LONG_UNHEARD_S,
                "short_queues": short,
                "limit": 5000,
            },
        )
        if not rows:
            return
        crash_point("before_ring_again")
        emit("doorbells.rerung", jobs=len(rows), cause="redis was wiped" if wiped else "not heard")
        await self._ring_routed(rows)

    async def find_strays(self) -> None:
        """Parked jobs whose place in a line was lost: with the worker or control that died, with Redis's last second."""
        about = {"within_s": LINES_WITHIN_S}
        [row] = await self._ledger.fetch(queries.COUNT_IN_LINE, about)
        # Only a look at the numbers, as a rule; a place that nobody needs any more can hide a stray until it is used up.
        if not row["n"] or row["n"] <= await self._pump.count():
            return
        parked = [row["id"] for row in await self._ledger.fetch(queries.IN_LINE, about)]
        standing = await self._pump.standing()
        if strays := [job_id for job_id in parked if job_id not in standing]:
            await self._ledger.fetch(queries.RELEASE_LINES, {"ids": strays, **about})
            emit("jobs.strayed", jobs=len(strays))

    async def _redis_was_wiped(self) -> bool:
        """Whether the epoch we knew is gone: then every message in Redis is gone with it. Without one at our start, too."""
        found = await self._redis.get(EPOCH_KEY)
        is_missing = found is None
        if is_missing:
            await self._redis.set(EPOCH_KEY, secrets.token_hex(8), nx=True)
            found = await self._redis.get(EPOCH_KEY)
        # A wipe while no control ran: jobs in a lost line would wait for their own patrol, two minutes and more.
        wiped = is_missing if self._epoch is None else found != self._epoch
        self._epoch = found
        return wiped

    async def _short_queues(self) -> list[str]:
        if not self._broker_is_redis:
            return _provider_queues()
        names = _provider_queues()
        async with self._redis.pipeline(transaction=False) as pipe:
            for name in names:
                pipe.llen(name)
            lengths = await pipe.execute()
        return [name for name, length in zip(names, lengths, strict=True) if length < SHORT_QUEUE]

    async def _ring_routed(self, rows: Sequence[Any]) -> None:
        bells = execute_doorbells(
            (row["id"], row["provider"], row["priority"], row["intent"], row["model"])
            for row in rows
            if row["state"] == "routed"
        )
        await asyncio.to_thread(self._broker.ring, bells)

    async def _tell_final(self, rows: Sequence[Any]) -> None:
        ids = [row["id"] for row in rows if row["state"] in ("dead", "cancelled")]
        if ids:
            await publish_end(self._redis, ids, ids)


def _provider_queues() -> list[str]:
    return [provider_queue(provider, klass) for provider in PROVIDERS for klass in CLASSES]


def run_control(settings: Settings) -> int:
    """Run housekeeping until SIGTERM or SIGINT; returns the exit code.

    Raises:
        ConfigError: A service is not fit to be used.
    """
    configure(settings.log_level, settings.log_format)
    check_services(settings)

    async def main() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        emit("worker.ready", queues="-", concurrency=0)
        housekeeping = Control(settings)
        async with beating(settings.heartbeat_file, housekeeping.obstacle):
            await housekeeping.run(stop)

    asyncio.run(main())
    return 0
