"""Leader first, through a real Redis: one goes, the others follow when it begins, and nobody waits beyond the bound."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
from redis.asyncio import Redis

from workers.prefixes import Entered, Prefixes

LIFE_S = 300.0


@pytest.fixture
async def process(redis_url: str) -> AsyncIterator[Callable[[], Prefixes]]:
    """Makes what one process has; all share a Redis."""
    made: list[Prefixes] = []

    def make() -> Prefixes:
        made.append(Prefixes(Redis.from_url(redis_url)))
        return made[-1]

    yield make
    for prefixes in made:
        await prefixes.close()
        await prefixes.redis.aclose()


async def enter(prefixes: Prefixes, *, wait_s: float = 20, lead_s: float = 20) -> Entered:
    async with asyncio.timeout(30):
        return await prefixes.enter("anthropic/a/haiku/p", wait_s=wait_s, lead_s=lead_s)


def begun(prefixes: Prefixes) -> None:
    prefixes.begun("anthropic/a/haiku/p", life_s=LIFE_S, is_long=False)


async def until_told(prefixes: Prefixes) -> None:
    while prefixes._tasks:
        await asyncio.sleep(0.005)


async def test_of_many_in_one_process_one_leads_and_the_others_go_when_it_begins(
    process: Callable[[], Prefixes],
) -> None:
    prefixes = process()
    calls = [asyncio.ensure_future(enter(prefixes)) for _ in range(50)]
    done, waiting = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
    assert [task.result().state for task in done] == ["lead"]
    await asyncio.sleep(0)
    assert not any(task.done() for task in waiting)

    begun(prefixes)

    assert {(await task).state for task in waiting} == {"warm"}


async def test_the_leader_counts_the_others_of_its_process(process: Callable[[], Prefixes]) -> None:
    prefixes = process()

    found = await asyncio.gather(*(enter(prefixes, wait_s=0.3) for _ in range(5)))

    assert found[0].state == "lead"
    assert found[0].others == 4


async def test_other_processes_follow_the_same_leader(process: Callable[[], Prefixes]) -> None:
    one, other = process(), process()
    assert (await enter(one)).state == "lead"
    waiting = [asyncio.ensure_future(enter(other)) for _ in range(10)]
    await asyncio.sleep(0.05)
    assert not any(task.done() for task in waiting)

    begun(one)

    assert {(await task).state for task in waiting} == {"warm"}


async def test_a_warm_prefix_is_entered_by_all_at_once(process: Callable[[], Prefixes]) -> None:
    one, other = process(), process()
    await enter(one)
    begun(one)
    await until_told(one)

    assert (await enter(one)).state == "warm"
    assert (await enter(other)).state == "warm"


async def test_when_the_leader_gives_up_the_next_one_leads(process: Callable[[], Prefixes]) -> None:
    one, other = process(), process()
    await enter(one)
    waiting = asyncio.ensure_future(enter(other))
    await asyncio.sleep(0.05)

    one.drop("anthropic/a/haiku/p")

    assert (await waiting).state == "lead"


async def test_a_leader_that_is_lost_holds_nobody_up_for_longer_than_the_bound(
    process: Callable[[], Prefixes],
) -> None:
    one, other = process(), process()
    await enter(one, lead_s=0.5)

    found = await enter(other, wait_s=20)

    assert found.state == "lead"


async def test_who_has_waited_long_enough_goes_without_the_leader(process: Callable[[], Prefixes]) -> None:
    one, other = process(), process()
    await enter(one)

    found = await asyncio.gather(enter(other, wait_s=0.2), enter(one, wait_s=0.2), enter(other, wait_s=0))

    assert [entered.state for entered in found] == ["late"] * 3


async def test_a_prefix_that_is_not_kept_is_waited_for_by_nobody(process: Callable[[], Prefixes]) -> None:
    one, other = process(), process()
    await enter(one)
    one.plain("anthropic/a/haiku/p")
    await until_told(one)

    assert {(await enter(prefixes)).state for prefixes in (one, other)} == {"plain"}


async def test_a_leader_that_is_cancelled_while_it_asks_leaves_the_place_free(
    process: Callable[[], Prefixes],
) -> None:
    prefixes = process()
    asking = asyncio.ensure_future(enter(prefixes))
    await asyncio.sleep(0)
    asking.cancel()
    await asyncio.wait([asking])

    # The fleet still thinks of it as the leader: the next one waits for the bound and goes.
    assert (await enter(prefixes, wait_s=0.2)).state in ("late", "lead")


async def test_the_time_between_uses_is_learned(process: Callable[[], Prefixes]) -> None:
    prefixes = process()
    assert (await enter(prefixes)).gap_s is None
    prefixes.drop("anthropic/a/haiku/p")
    await until_told(prefixes)

    found = await enter(prefixes)

    assert found.gap_s is not None
    assert 0 <= found.gap_s < 10


async def test_without_redis_nobody_waits() -> None:
    prefixes = Prefixes(Redis.from_url("redis://127.0.0.1:9/0"))

    assert (await enter(prefixes)).state == "late"
    await prefixes.redis.aclose()
