"""What the gateway's mailroom learns from the ledger when no letter comes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from producers.gateway import mailroom
from producers.gateway.answer import Carriage
from producers.gateway.errors import Kind, Refusal
from producers.gateway.mailroom import Mailroom
from waybill import AsyncClient, Job
from waybill.contract import Wire
from waybill.ledger.engine import Row
from waybill.mail import RESEND_S, SEND_TIMEOUT_S, Letter
from waybill.redislink import connect_async


@asynccontextmanager
async def reading(database_url: str, redis_url: str) -> AsyncIterator[tuple[AsyncClient, Mailroom]]:
    """A mailroom that reads, and the client whose jobs' mail it takes in."""
    redis = connect_async(redis_url)
    async with AsyncClient(database_url, redis_url) as client:
        room = Mailroom(client)
        room.start(redis)
        try:
            yield client, room
        finally:
            await room.close()
            await redis.aclose()


def carriage(client: AsyncClient, room: Mailroom) -> Carriage:
    """Of one small question."""
    body = {"model": "gpt-6-luna", "messages": [{"role": "user", "content": "Say hello."}]}
    job = Job(intent="direct", model="gpt-6-luna", wire=Wire(dialect="chat", body=body, text_bytes=10))
    return Carriage(client, room, job, "chat", "req_1")


async def test_a_job_that_the_ledger_lost_is_refused_and_may_be_sent_again(
    redis_url: str, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mailroom, "LOOK_EVERY_S", 0.05)
    async with reading(database_url, redis_url) as (client, room):
        lost = carriage(client, room)
        await lost.submit()
        await client.ledger.fetch("delete from payloads where job_id = %(id)s", {"id": lost.job_id})
        await client.ledger.fetch("delete from jobs where id = %(id)s", {"id": lost.job_id})

        async with asyncio.timeout(20):
            with pytest.raises(Refusal, match="send it again") as refused:
                await lost.whole()

        assert refused.value.kind is Kind.OVERLOADED


async def test_letters_of_a_stream_that_is_over_are_waited_for_as_long_as_they_are_sent_again(
    redis_url: str, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mailroom, "LOOK_EVERY_S", 0.02)
    async with reading(database_url, redis_url) as (client, room):
        stream = carriage(client, room)
        await stream.submit()
        box = room._boxes[stream.job_id]
        box.put(Letter("data", stream.job_id, 1, 0, b"data: {}\n\n"))
        await client.cancel(stream.job_id)

        async with asyncio.timeout(10):
            while box.since >= 0:  # the ledger has said that it is over
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        assert not box.is_final

        box.heard = time.monotonic() - RESEND_S - SEND_TIMEOUT_S  # nobody sends its letters again any more
        await asyncio.sleep(0.1)
        assert not box.is_final  # but what was sent last may just have come
        box.heard = time.monotonic() - mailroom.QUIET_S
        async with asyncio.timeout(10):
            while not box.is_final:
                await asyncio.sleep(0.01)


async def test_a_job_that_is_still_being_submitted_is_not_taken_for_lost(
    redis_url: str, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mailroom, "LOOK_EVERY_S", 0.01)
    async with reading(database_url, redis_url) as (client, room):
        asked = asyncio.Event()
        states, looks = client.states, 0

        async def counted(job_ids: list[str]) -> object:
            nonlocal looks
            looks += 1
            if looks == 5:
                asked.set()
            return await states(job_ids)

        monkeypatch.setattr(client, "states", counted)
        early, settled = room.open("01a00000-0000-7000-8000-000000000001"), carriage(client, room)
        await settled.submit()

        async with asyncio.timeout(20):
            await asked.wait()

        assert not early.is_final


@pytest.mark.parametrize(
    ("reply_to", "key", "commits"),
    [("gw-test", None, "off"), ("gw-test", "a key", None), (None, None, None), (None, "a key", None)],
)
async def test_only_a_job_that_nobody_was_told_of_is_not_waited_for_on_disk(
    redis_url: str,
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
    reply_to: str | None,
    key: str | None,
    commits: str | None,
) -> None:
    async with AsyncClient(database_url, redis_url) as client:
        fetch, found = client.ledger.fetch, []

        async def kept(*asked: Any) -> Sequence[Row]:
            rows = await fetch(*asked)
            found.extend(rows)
            return rows

        monkeypatch.setattr(client.ledger, "fetch", kept)
        await client.submit_many([Job(intent="extraction", prompt="p", idempotency_key=key)], reply_to=reply_to)

        assert [row["commits"] for row in found] == [commits]
