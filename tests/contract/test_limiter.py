"""The limiter on a real Valkey: one set of buckets for all processes, fair lines, leases, and no answer from Redis."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import redis

from policies.limits import COLD_IN_FLIGHT, LimitSpec, Need
from waybill.contract import Usage
from workers.limiter import Ended, Limiter, LimiterAway, LimitLane, Pump, Wanted
from workers.providers.base import Limits

ROOT = Path(__file__).parent.parent.parent
ROOMY = LimitSpec(requests_per_minute=10**6, input_tokens_per_minute=10**9)
NEED = Need(10, 10)


@pytest.fixture
async def limiter(redis_url: str) -> AsyncIterator[Limiter]:
    """One process's limiter, with limits by model for the tests that need some."""
    specs = {
        "claude-haiku-5-5": ROOMY,
        "claude-opus-5-5": LimitSpec(requests_per_minute=600, burst_s=1, interactive_reserve=0.2),
        "claude-sonnet-5-5": LimitSpec(requests_per_minute=1, burst_s=60, interactive_reserve=0.0),
    }
    made = Limiter(redis_url, specs, slot_lease_s=1.0)
    made.start()
    yield made
    await made.close()


@pytest.fixture
async def pump(redis_url: str) -> AsyncIterator[Pump]:
    """Control's side."""
    made = Pump(redis_url)
    yield made
    await made.close()


def wanted(*jobs: str, need: Need = NEED, tenant: str = "default") -> list[Wanted]:
    return [Wanted(job, 1, need, tenant) for job in jobs]


async def warm(limiter: Limiter, model: str) -> LimitLane:
    """A lane whose first answer has come."""
    lane = limiter.lane("anthropic", "acct", model)
    found = await limiter.reserve(lane, wanted("warm"), is_batch=False)
    limiter.settle(found.grants["warm:1"], Ended("unused"))
    limiter.settle(found.grants["warm:1"], Ended("ok"))
    await limiter.settled()
    found = await limiter.reserve(lane, wanted("warm2"), is_batch=False)
    limiter.settle(found.grants["warm2:1"], Ended("ok", 10, 10))
    await limiter.settled()
    return lane


def kinds(found: object) -> list[str]:
    return [verdict.kind for verdict in found.verdicts]  # type: ignore[attr-defined]


async def test_a_chunk_is_reserved_and_settled(limiter: Limiter) -> None:
    lane = await warm(limiter, "claude-haiku-5-5")

    found = await limiter.reserve(lane, wanted(*"abcdefghij"), is_batch=True)
    for grant in found.grants.values():
        limiter.settle(grant, Ended("ok", 5, 5))
    await limiter.settled()

    assert kinds(found) == ["admitted"] * 10
    assert 0.9 < found.headroom <= 1


async def test_few_calls_before_the_first_answer_and_its_headers_tell_the_limits(limiter: Limiter) -> None:
    lane = limiter.lane("openai", "acct", "gpt-6-luna")
    first = await limiter.reserve(lane, wanted(*"abcdefgh"), is_batch=False)
    assert kinds(first) == ["admitted"] * COLD_IN_FLIGHT + ["busy"] * 4

    told = Limits(requests_remaining=4, tokens_remaining=5000, requests_limit=6, tokens_limit=6000)
    limiter.settle(first.grants["a:1"], Ended("ok", 10, 10, 0.0, told))
    await limiter.settled()
    # Three are on their way, one of four is left.
    second = await limiter.reserve(lane, wanted(*"ijk"), is_batch=False)

    assert kinds(second) == ["admitted", "rate", "rate"]
    assert second.verdicts[1].wait_s == pytest.approx(10, abs=1)


async def test_the_limits_are_known_when_an_answer_begins_and_its_slot_is_held_until_it_ends(
    limiter: Limiter, redis_url: str
) -> None:
    lane = limiter.lane("openai", "acct", "gpt-6-luna")
    first = await limiter.reserve(lane, wanted(*"abcd"), is_batch=False)
    told = Limits(requests_remaining=96, tokens_remaining=90_000, requests_limit=100, tokens_limit=100_000)
    limiter.begun(first.grants["a:1"], told)
    limiter.begun(first.grants["a:1"], told)
    await limiter.settled()

    second = await limiter.reserve(lane, wanted(*"efghij"), is_batch=False)
    with redis.Redis.from_url(redis_url, decode_responses=True) as server:
        held = set(server.zrange(lane.keys[1], 0, -1))  # type: ignore[arg-type]
        wins = server.hget(lane.keys[0], "wins")
        limiter.settle(first.grants["a:1"], Ended("ok", 10, 10))
        await limiter.settled()
        left = set(server.zrange(lane.keys[1], 0, -1))  # type: ignore[arg-type]
        wins_at_the_end = server.hget(lane.keys[0], "wins")

    assert kinds(second) == ["admitted"] * 6
    assert held == {f"{name}:1" for name in "abcdefghij"}
    assert left == held - {"a:1"}
    assert wins_at_the_end == wins


async def test_a_retry_after_blocks_the_lane_for_every_process(limiter: Limiter, redis_url: str) -> None:
    lane = await warm(limiter, "claude-haiku-5-5")
    found = await limiter.reserve(lane, wanted("a", "b"), is_batch=False)
    limiter.settle(found.grants["a:1"], Ended("throttled", retry_s=20))
    await limiter.settled()
    limiter.settle(found.grants["b:1"], Ended("throttled", retry_s=3))
    await limiter.settled()

    other = Limiter(redis_url, {"*": ROOMY})
    verdict = (await other.reserve(lane, wanted("c"), is_batch=False)).verdicts[0]
    await other.close()

    assert verdict.kind == "blocked"
    assert 19 < verdict.wait_s <= 22  # the jitter adds up to a tenth


async def test_slots_of_a_lost_worker_expire_and_those_of_a_living_one_do_not(limiter: Limiter, redis_url: str) -> None:
    lane = await warm(limiter, "claude-haiku-5-5")
    lost = Limiter(redis_url, {"*": ROOMY}, slot_lease_s=1.0)  # never started: nobody renews its slots
    await lost.reserve(lane, wanted("dead"), is_batch=False)
    await limiter.reserve(lane, wanted("alive"), is_batch=False)

    with redis.Redis.from_url(redis_url, decode_responses=True) as server:
        assert set(server.zrange(lane.keys[1], 0, -1)) == {"dead:1", "alive:1"}  # type: ignore[arg-type]
        end = time.monotonic() + 20
        while True:
            probe = await limiter.reserve(lane, wanted("probe"), is_batch=False)
            limiter.settle(probe.grants["probe:1"], Ended("unused"))
            await limiter.settled()
            held = server.zrange(lane.keys[1], 0, -1)
            if "dead:1" not in held:  # type: ignore[operator]
                break
            assert time.monotonic() < end, held
            await asyncio.sleep(0.1)
    await lost.close()

    assert held == ["alive:1"]


async def test_a_settlement_gives_back_what_was_not_used(limiter: Limiter, redis_url: str) -> None:
    lane = await warm(limiter, "claude-haiku-5-5")

    def level() -> float:
        with redis.Redis.from_url(redis_url, decode_responses=True) as server:
            return float(server.hget(lane.keys[0], "li"))  # type: ignore[arg-type]

    found = await limiter.reserve(lane, wanted("a", need=Need(10**8, 0)), is_batch=False)
    taken = level()
    limiter.settle(found.grants["a:1"], Ended("ok", 10**7, 0))
    await limiter.settled()

    # The refill of the moments between is 17 tokens a microsecond, far below what is compared.
    assert level() - taken >= 9 * 10**7 or level() == 10**9


async def test_a_script_that_the_server_forgot_is_sent_again(limiter: Limiter, redis_url: str) -> None:
    lane = await warm(limiter, "claude-haiku-5-5")
    with redis.Redis.from_url(redis_url) as server:
        server.script_flush()

    assert kinds(await limiter.reserve(lane, wanted("a"), is_batch=False)) == ["admitted"]


async def test_no_answer_means_nothing_is_admitted_within_the_time_given() -> None:
    silent = socket.create_server(("127.0.0.1", 0))  # the kernel takes the connection, nobody reads
    port = silent.getsockname()[1]
    limiter = Limiter(f"redis://127.0.0.1:{port}/0", {}, timeout_s=0.2)
    lane = limiter.lane("anthropic", "acct", "claude-haiku-5-5")
    began = time.monotonic()

    with pytest.raises(LimiterAway, match="gives no answer"):
        await limiter.reserve(lane, wanted("a"), is_batch=False)

    assert time.monotonic() - began < 5
    await limiter.close()
    silent.close()


async def test_batch_work_stops_at_the_reserve_and_interactive_work_does_not(limiter: Limiter) -> None:
    lane = await warm(limiter, "claude-opus-5-5")
    await asyncio.sleep(0.3)

    batch = await limiter.reserve(lane, wanted(*(f"b{n}" for n in range(20))), is_batch=True)
    interactive = await limiter.reserve(lane, wanted("i"), is_batch=False)

    assert kinds(batch).count("admitted") < 10
    assert kinds(interactive) == ["admitted"]


async def test_newcomers_stand_behind_who_waits_while_somebody_wakes_them(limiter: Limiter, pump: Pump) -> None:
    lane = await warm(limiter, "claude-haiku-5-5")
    await limiter.stand_in_line(lane, wanted("waits"), is_batch=True)
    unattended = await limiter.reserve(lane, wanted("x1"), is_batch=True)

    woken = await pump.wake()
    await limiter.stand_in_line(lane, wanted("waits-too"), is_batch=True)
    newcomer = await limiter.reserve(lane, wanted("x2"), is_batch=True)
    expected = await limiter.reserve(lane, wanted("waits"), is_batch=True)
    interactive = await limiter.reserve(lane, wanted("x3"), is_batch=False)

    # Without a pump nobody would ever be woken, so nobody waits behind others.
    assert kinds(unattended) == ["admitted"]
    assert [jobs for _, jobs in woken] == [["waits"]]
    assert kinds(newcomer) == ["queue"]
    assert kinds(expected) == ["admitted"]
    assert kinds(interactive) == ["admitted"]


async def test_as_many_are_woken_as_fit_and_interactive_work_first(limiter: Limiter, pump: Pump) -> None:
    lane = limiter.lane("anthropic", "acct", "claude-sonnet-5-5")
    found = await limiter.reserve(lane, wanted("warm"), is_batch=False)
    limiter.settle(found.grants["warm:1"], Ended("unused"))
    await limiter.settled()
    await limiter.stand_in_line(lane, wanted("b1", "b2"), is_batch=True)
    await limiter.stand_in_line(lane, wanted("i1", "i2"), is_batch=False)

    first = await pump.wake()
    again = await pump.wake()
    # Its promise is taken back (it was cancelled): the next one may try.
    await pump.forget(lane, ["i1"])
    third = await pump.wake()

    assert [jobs for _, jobs in first] == [["i1"]]
    assert again == []
    assert [jobs for _, jobs in third] == [["i2"]]


async def test_tenants_take_turns(limiter: Limiter, pump: Pump, redis_url: str) -> None:
    lane = await warm(limiter, "claude-haiku-5-5")
    await limiter.stand_in_line(lane, wanted(*(f"a{n}" for n in range(50)), tenant="a"), is_batch=True)
    await limiter.stand_in_line(lane, wanted("b0", "b1", tenant="b"), is_batch=True)

    order = [job for _, jobs in await pump.wake() for job in jobs]

    assert order[:5] == ["a0", "b0", "a1", "b1", "a2"]
    assert len(order) == 52


async def test_who_was_woken_in_vain_is_next_again(limiter: Limiter, pump: Pump) -> None:
    lane = await warm(limiter, "claude-haiku-5-5")
    await limiter.stand_in_line(lane, wanted("a", "b", "c"), is_batch=True)
    await pump.wake()

    await limiter.stand_in_line(lane, wanted("d"), is_batch=True)
    await limiter.stand_in_line(lane, wanted("b"), is_batch=True)
    order = [job for _, jobs in await pump.wake() for job in jobs]

    assert order == ["b", "d"]


async def test_what_one_process_learned_reaches_the_others(redis_url: str) -> None:
    from policies.catalog import CATALOG

    teacher = Limiter(redis_url, {})
    for _ in range(10):
        teacher.estimates.observe("claude-haiku-5-5", "extraction", 1000, Usage(input_tokens=516, output_tokens=70))
    teacher.start()
    pupil: Limiter | None = None
    end = time.monotonic() + 20
    while True:
        pupil = Limiter(redis_url, {})
        pupil.start()
        await asyncio.sleep(0.1)
        output = pupil.estimates.output_tokens(CATALOG["claude-haiku-5-5"], "extraction", 4096)
        await pupil.close()
        if output == 70:
            break
        assert time.monotonic() < end
    await teacher.close()


CROWD = """
import asyncio, json, sys, time
from policies.limits import LimitSpec, Need
from workers.limiter import Ended, Limiter, Wanted

async def main(url, name):
    limiter = Limiter(url, {"*": LimitSpec(input_tokens_per_minute=60_000, burst_s=2, interactive_reserve=0.0)})
    limiter.start()
    lane = limiter.lane("anthropic", "acct", "claude-haiku-5-5")
    begun, number, spent, end = time.time(), 0, [], time.monotonic() + 3
    while time.monotonic() < end:
        calls = [Wanted(f"{name}-{number + n}", 1, Need(110, 0)) for n in range(10)]
        number += 10
        found = await limiter.reserve(lane, calls, is_batch=True)
        for grant in found.grants.values():
            spent.append((time.time(), 100))
            limiter.settle(grant, Ended("ok", 100, 0))
        await asyncio.sleep(0.005)
    await limiter.close()
    print(json.dumps(spent))

asyncio.run(main(*sys.argv[1:]))
"""


def test_four_processes_together_stay_within_the_limit_and_use_it(redis_url: str) -> None:
    processes = [
        subprocess.Popen([sys.executable, "-c", CROWD, redis_url, f"p{n}"], stdout=subprocess.PIPE, cwd=ROOT)
        for n in range(4)
    ]
    spent = sorted(tuple(x) for p in processes for x in json.loads(p.communicate(timeout=60)[0]))

    assert all(process.returncode == 0 for process in processes)
    times = [at for at, _ in spent]
    whole_s = times[-1] - times[0]
    for width_s in (0.5, 1.0, whole_s):
        for first, begin in enumerate(times):
            count = sum(begin <= at <= begin + width_s for at in times[first:])
            # A capacity of 2,000 and 1,000 a second; a process notes the time up to 0.2 s after the script decided.
            assert count * 100 <= 2000 + 1000 * (width_s + 0.2)
    assert sum(tokens for _, tokens in spent) >= 0.9 * 1000 * whole_s
