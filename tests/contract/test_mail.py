"""The mail between workers and gateways over a real Redis: what a broken connection leaves unknown is sent again, once seen."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from waybill import mail
from waybill.mail import Letter, Outbox, read_mail


class Flaky:
    """A Redis whose next pipelines fail: before they are carried out, or after, so that only the answer is lost."""

    def __init__(self, redis: Redis, *failures: str) -> None:
        self._redis, self.failures = redis, list(failures)

    def pipeline(self, **options: Any) -> Any:
        return _Pipe(self._redis.pipeline(**options), self.failures)


class _Pipe:
    def __init__(self, pipe: Any, failures: list[str]) -> None:
        self._pipe, self._failures = pipe, failures

    async def __aenter__(self) -> _Pipe:
        await self._pipe.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._pipe.__aexit__(*exc)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pipe, name)

    async def execute(self) -> Any:
        failure = self._failures.pop(0) if self._failures else None
        if failure == "before":
            raise RedisConnectionError("cut")
        done = await self._pipe.execute()
        if failure == "after":
            raise RedisConnectionError("cut")
        return done


@asynccontextmanager
async def sending(redis_url: str, *failures: str) -> AsyncIterator[tuple[Outbox, Redis]]:
    redis = Redis.from_url(redis_url)
    outbox = Outbox(Flaky(redis, *failures))  # type: ignore[arg-type]  # as much of one as it uses
    outbox.start()
    try:
        yield outbox, redis
    finally:
        await outbox.close()
        await redis.aclose()


async def read(redis: Redis, until: int) -> list[Letter]:
    """The letters up to the end letter of so many jobs."""
    found: list[Letter] = []
    async with asyncio.timeout(30):
        async for letters in read_mail(redis, "gw", block_s=0.1):
            found += letters
            if sum(letter.kind == "end" for letter in found) >= until:
                return found
    raise AssertionError


@pytest.mark.parametrize("failures", [(), ("before",), ("after",), ("before", "after", "before")])
async def test_every_letter_comes_in_order_whatever_breaks_on_the_way(
    redis_url: str, failures: tuple[str, ...]
) -> None:
    async with sending(redis_url, *failures) as (outbox, redis):
        for job in ("a", "b"):
            outbox.put("gw", "head", job, 1, b"{}")
        for n in range(20):
            for job in ("a", "b"):
                outbox.put("gw", "data", job, 1, f"{job}{n} ".encode())
            await asyncio.sleep(0)
        for job in ("a", "b"):
            outbox.put("gw", "end", job, 1, b"{}")
        letters = await read(redis, until=2)

    for job in ("a", "b"):
        once = {letter.number: letter for letter in letters if letter.job_id == job}
        assert sorted(once) == list(range(len(once))), "no gap"
        assert b"".join(once[n].data for n in sorted(once) if once[n].kind == "data") == b"".join(
            f"{job}{n} ".encode() for n in range(20)
        )


async def test_what_is_too_much_to_wait_is_lost_and_leaves_a_gap(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mail, "MAX_WAITING_BYTES", 1000)
    async with sending(redis_url) as (outbox, redis):
        outbox.put("gw", "head", "a", 1, b"{}")
        outbox.put("gw", "data", "a", 1, b"x" * 2000)
        outbox.put("gw", "end", "a", 1, b"{}")
        letters = await read(redis, until=1)

    assert [(letter.kind, letter.number) for letter in letters] == [("end", 2)]
