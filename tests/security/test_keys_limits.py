"""A key's own limits: requests a minute and requests open at once, over all gateways, and without Redis."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from producers.gateway.errors import Kind, Refusal
from producers.gateway.keys import KeyRecord, KeyRing
from tests.security.conftest import Api
from waybill.ledger.engine import Ledger


def record(*, rpm: int | None = None, concurrency: int | None = None) -> KeyRecord:
    return KeyRecord("key_1", "acme", frozenset({"call"}), rpm, concurrency, None, is_suspended=False)


@pytest.fixture(params=["redis", "alone"])
async def rings(request: pytest.FixtureRequest, database_url: str, redis_url: str) -> AsyncIterator[list[KeyRing]]:
    """Two gateways; without Redis each counts by itself, so there it is one twice."""
    ledger = Ledger(database_url)
    first = KeyRing(ledger, redis_url if request.param == "redis" else "redis://127.0.0.1:9/0")
    second = KeyRing(ledger, redis_url) if request.param == "redis" else first
    yield [first, second]
    await first.close()
    await second.close()
    await ledger.close()


async def test_no_more_requests_a_minute_than_allowed(rings: list[KeyRing]) -> None:
    mine, passed, refused = record(rpm=5), 0, []
    for number in range(12):
        try:
            await rings[number % 2].enter(mine, f"req_{number}")
            passed += 1
        except Refusal as refusal:
            refused.append(refusal)

    assert passed == 5
    assert {refusal.kind for refusal in refused} == {Kind.RATE_LIMIT}
    assert all(50 < (refusal.retry_after_s or 0) <= 60 for refusal in refused)


async def test_no_more_requests_open_than_allowed_and_an_ended_one_makes_room(rings: list[KeyRing]) -> None:
    mine = record(concurrency=3)
    entered = await asyncio.gather(
        *(rings[number % 2].enter(mine, f"req_{number}") for number in range(8)), return_exceptions=True
    )
    open_ones = [number for number, outcome in enumerate(entered) if outcome is None]

    await rings[open_ones[0] % 2].leave(f"req_{open_ones[0]}")
    await rings[0].enter(mine, "req_later")

    assert len(open_ones) == 3
    with pytest.raises(Refusal, match="3 requests open"):
        await rings[1].enter(mine, "req_last")


def test_a_client_over_its_rate_gets_429_and_when_to_come_again(api: Api) -> None:
    key = api.key(rpm=2)

    answers = [api.get("/v1/models", key) for _ in range(3)]

    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert answers[2].json()["error"]["code"] == "rate_limit_exceeded"
    assert 1 <= int(answers[2].headers["retry-after"]) <= 60


def test_a_request_leaves_when_its_answer_is_complete(api: Api) -> None:
    key = api.key(concurrency=1)

    assert [api.get("/v1/models", key).status_code for _ in range(3)] == [200, 200, 200]
