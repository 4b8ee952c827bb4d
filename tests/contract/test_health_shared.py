"""Breakers shared through a real Redis: what one process learns the others know, and nobody passes the probes' limit."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from redis.asyncio import Redis

from policies.health import LANE, Breaker, Seen
from waybill.contract import Candidate
from waybill.ledger.engine import Ledger
from waybill.names import HEALTH_KEY
from workers.health import Health, account_field

HAIKU = Candidate("anthropic", "haiku", "interactive", "r")
LANE_NAME = "anthropic/haiku/interactive"


def down(health: Health) -> Seen:
    return Seen(health.now(), failed=True, why="529")


@asynccontextmanager
async def process(
    redis_url: str, database_url: str, accounts: dict[str, tuple[str, ...]] | None = None
) -> AsyncIterator[Health]:
    """A Health as one process has it."""
    redis, ledger = Redis.from_url(redis_url), Ledger(database_url, pool_size=1)
    health = Health(redis, ledger, accounts or {})
    await health.start()
    try:
        yield health
    finally:
        await health.close()
        await redis.aclose()
        await ledger.close()


async def until(true: Callable[[], bool], timeout_s: float = 10.0) -> None:
    """Wait for another process's news."""
    async with asyncio.timeout(timeout_s):
        while not true():
            await asyncio.sleep(0.01)


async def test_what_one_process_learns_the_others_know(redis_url: str, database_url: str) -> None:
    async with process(redis_url, database_url) as one, process(redis_url, database_url) as other:
        assert other.outage(HAIKU) is None

        one.learn(LANE_NAME, down(one))

        assert one.outage(HAIKU) is not None
        await until(lambda: other.outage(HAIKU) is not None)


async def test_a_process_that_starts_later_knows_it_from_the_start(redis_url: str, database_url: str) -> None:
    async with process(redis_url, database_url) as one:
        one.learn(LANE_NAME, down(one))
    async with process(redis_url, database_url) as later:
        assert later.outage(HAIKU) is not None


async def test_all_processes_together_let_no_more_probes_through_than_one(redis_url: str, database_url: str) -> None:
    async with contextlib.AsyncExitStack() as stack:
        fleet = [await stack.enter_async_context(process(redis_url, database_url)) for _ in range(4)]
        fleet[0].learn(LANE_NAME, down(fleet[0]))
        await until(lambda: all(health.knows_trouble(LANE_NAME) for health in fleet))
        assert not any([await health.take(HAIKU, urgent=False) for health in fleet])
        await asyncio.sleep(LANE.first_s + 0.1)

        taken = await asyncio.gather(*(health.take(HAIKU, urgent=False) for health in fleet for _ in range(5)))

    assert sum(taken) == LANE.probes


async def test_nothing_learned_by_several_at_once_is_lost(redis_url: str, database_url: str) -> None:
    async with contextlib.AsyncExitStack() as stack:
        fleet = [await stack.enter_async_context(process(redis_url, database_url)) for _ in range(4)]
        for n in range(50):
            for health in fleet:
                health.learn(LANE_NAME, Seen(health.now(), seconds=1.0 + n % 3, output_tokens=10))
            if n % 10 == 0:
                await asyncio.sleep(0.12)
        redis = fleet[0].redis

        async def counted() -> int:
            text = await redis.hget(HEALTH_KEY, LANE_NAME)
            return Breaker.from_json(text.decode()).speed.count if text else 0

        async with asyncio.timeout(15):
            while await counted() < 200:
                await asyncio.sleep(0.05)
        assert await counted() == 200
        views = {health._views[LANE_NAME].state for health in fleet}

    assert views == {"closed"}


async def test_clearing_a_field_by_hand_clears_every_process(redis_url: str, database_url: str) -> None:
    async with process(redis_url, database_url) as one, process(redis_url, database_url) as other:
        one.learn(LANE_NAME, down(one))
        await until(lambda: other.knows_trouble(LANE_NAME))

        await one.redis.hdel(HEALTH_KEY, LANE_NAME)

        await until(lambda: one.outage(HAIKU) is None and other.outage(HAIKU) is None)


async def test_without_redis_everybody_goes_on_with_what_was_known(database_url: str, redis_url: str) -> None:
    async with process(redis_url, database_url) as health:
        health.learn(LANE_NAME, down(health))
        await asyncio.sleep(0.2)
        await health.redis.aclose()
        health.redis = Redis.from_url("redis://127.0.0.1:1/0", socket_connect_timeout=0.2)
        await asyncio.sleep(LANE.first_s)

        assert await health.take(HAIKU, urgent=False)
        health.learn(LANE_NAME, Seen(health.now(), seconds=1.0, output_tokens=5))
        assert health._views[LANE_NAME].state == "recovering"


async def test_an_account_that_is_refused_stops_its_provider_and_one_of_two_does_not(
    redis_url: str, database_url: str
) -> None:
    async with (
        process(redis_url, database_url, {"anthropic": ("a", "b")}) as worker,
        process(redis_url, database_url) as dispatcher,
    ):
        worker.learn(account_field("anthropic", "a"), down(worker))
        await until(lambda: dispatcher.knows_trouble(account_field("anthropic", "a")))
        assert dispatcher.provider_outage("anthropic") is None
        assert worker.usable("anthropic", ["a", "b"]) == ["b"]

        worker.learn(account_field("anthropic", "b"), down(worker))

        await until(lambda: dispatcher.provider_outage("anthropic") is not None)
        out = worker.outage(HAIKU)
        assert out is not None
        assert out.is_drained
        assert not await worker.take(HAIKU, urgent=True)


async def test_a_drained_provider_is_known_within_seconds_and_let_go_as_quickly(
    redis_url: str, database_url: str
) -> None:
    async with process(redis_url, database_url) as health:
        await health.ledger.fetch("insert into holds (kind, name, reason) values ('provider', 'anthropic', 'test')")
        await until(lambda: health.outage(HAIKU) is not None)
        assert health.outage(HAIKU).reason == "drained (test)"  # type: ignore[union-attr]  # just waited for

        await health.ledger.fetch("delete from holds")
        await until(lambda: health.outage(HAIKU) is None)


@pytest.mark.parametrize("garbage", ["not json", "[1]", '{"state": "sideways"}'])
async def test_garbage_in_the_hash_stops_nobody(redis_url: str, database_url: str, garbage: str) -> None:
    async with process(redis_url, database_url) as health:
        await health.redis.hset(HEALTH_KEY, LANE_NAME, garbage)
        await asyncio.sleep(0.6)

        assert health.outage(HAIKU) is None
        health.learn(LANE_NAME, down(health))
        await until(lambda: LANE_NAME not in health._pending)
