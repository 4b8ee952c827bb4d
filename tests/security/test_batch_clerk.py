"""A gateway that is lost in the middle of a batch: another one goes on, and every request becomes one job."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from producers.gateway import clerk as clerks
from producers.gateway.clerk import Clerk
from producers.gateway.files import FileWriter
from tests.security.conftest import POLICY
from waybill.client import AsyncClient, fresh_job_id
from waybill.ledger import batches
from waybill.ledger.engine import Ledger

ROWS = 25


class Quiet(AsyncClient):
    """Rings nobody, and may be lost after some parts."""

    parts_left = 1_000_000

    async def _ring(self, job_ids: Any) -> None:
        return

    async def submit_many(self, *args: Any, **kwargs: Any) -> list[str]:
        if self.parts_left == 0:
            raise asyncio.CancelledError
        self.parts_left -= 1
        return await super().submit_many(*args, **kwargs)


@pytest.fixture
async def client(database_url: str) -> AsyncIterator[Quiet]:
    async with Quiet(database_url, "redis://127.0.0.1:9/0") as connected:
        yield connected


def row(number: int, model: str = "gpt-6-luna") -> dict[str, Any]:
    body = {"model": model, "messages": [{"role": "user", "content": f"Hello {number}."}]}
    return {"custom_id": f"r{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}


async def make_batch(ledger: Ledger, content: bytes) -> str:
    writer = FileWriter(ledger, "acme", "batch")
    await writer.begin("upload")
    await writer.add(content)
    await writer.end()
    params = {"id": "batch_1", "run": fresh_job_id(), "tenant": "acme", "key_id": None, "dialect": "openai"}
    more = {"endpoint": "/v1/chat/completions", "file": writer.id, "headers": "{}", "metadata": None, "total": 0}
    await ledger.fetch(batches.CREATE, params | more)
    return "batch_1"


async def state(ledger: Ledger) -> dict[str, Any]:
    [found] = await ledger.fetch("select status, total, counts, output_file_id, error_file_id from batches")
    return dict(found)


async def test_another_gateway_goes_on_where_one_was_lost(client: Quiet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clerks, "CHUNK", 10)
    await make_batch(client.ledger, b"\n".join(json.dumps(row(n)).encode() for n in range(ROWS)))
    client.parts_left = 1
    with pytest.raises(asyncio.CancelledError):
        await Clerk(client, POLICY, frozenset()).step()
    handed_over = await client.ledger.fetch("select count(*) as n from jobs")
    taken = await Clerk(client, POLICY, frozenset()).step()  # still under the lost one's lease
    await client.ledger.fetch("update batches set look_at = now()")

    client.parts_left = 1_000
    await Clerk(client, POLICY, frozenset()).step()

    assert (handed_over[0]["n"], taken) == (10, False)
    jobs = await client.ledger.fetch("select seq, priority, tenant from jobs order by seq")
    assert [(job["seq"], job["priority"], job["tenant"]) for job in jobs] == [(n, "lo", "acme") for n in range(ROWS)]
    assert (await state(client.ledger))["status"] == "in_progress"


async def test_a_batch_ends_once_with_every_request_counted(client: Quiet) -> None:
    content = [row(0), row(1, model="no-such-model"), row(2)]
    await make_batch(client.ledger, b"\n".join(json.dumps(one).encode() for one in content))
    clerk = Clerk(client, POLICY, frozenset())
    await clerk.step()
    await client.ledger.fetch("update jobs set state = 'cancelled', finished_at = now()")
    await client.ledger.fetch("update batches set look_at = now()")

    await clerk.step()
    again = await clerk.step()

    found = await state(client.ledger)
    assert (found["status"], again) == ("completed", False)
    assert found["counts"] == {"succeeded": 0, "errored": 1, "canceled": 2, "expired": 0}
    assert (found["output_file_id"], found["total"]) == (None, 3)
    files = await client.ledger.fetch("select id, bytes, purpose from files where batch_id is not null")
    assert [(file["id"], file["purpose"]) for file in files] == [(found["error_file_id"], "batch_output")]
    assert files[0]["bytes"] > 300
