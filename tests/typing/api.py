"""Only type-checked (by `mypy` in ./run check through test_public_types.py): the types of the public interface."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from decimal import Decimal
from typing import assert_type

from waybill import AsyncClient, Client, Job, JobState, Result
from waybill.client import Outcome


def sync_use(client: Client) -> None:
    """What a plain program sees."""
    assert_type(client.submit(intent="extraction", prompt="x"), str)
    assert_type(client.submit(Job(intent="extraction", prompt="x")), str)
    assert_type(client.submit_many([Job(intent="extraction", prompt="x")]), list[str])
    result = client.result("id", timeout_s=1)
    assert_type(result, Result)
    assert_type(result.usd, Decimal | None)
    assert_type(client.results(["id"]), Iterator[Outcome])
    assert_type(client.stream(intent="extraction", prompt="x"), Iterator[str])
    assert_type(client.cancel("id"), dict[str, JobState])
    assert_type(client.feedback("id", 0.5, note="why"), str)
    with client as entered:
        assert_type(entered, Client)


async def async_use(client: AsyncClient) -> None:
    """What an asyncio program sees."""
    assert_type(await client.submit(intent="extraction", prompt="x"), str)
    assert_type(await client.result("id"), Result)
    assert_type(client.results(["id"]), AsyncIterator[Outcome])
    assert_type(client.stream(intent="extraction", prompt="x"), AsyncIterator[str])
    async with client as entered:
        assert_type(entered, AsyncClient)
