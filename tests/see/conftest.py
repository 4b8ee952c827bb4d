"""A ledger and a Redis with the pieces of a fleet that a test acts with: no worker runs unless the test starts one."""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import pytest

from waybill import Client, Job
from waybill.contract import AttemptState, Candidate, CostSource, JobState, Usage
from waybill.ledger import queries
from waybill.ledger.engine import Ledger
from waybill.settings import Settings
from workers.control import Control
from workers.exporter import Exporter
from workers.metricserver import exporting
from workers.writer import Settlement, parameters


@dataclass
class Bench:
    """What a test works with."""

    settings: Settings
    ledger: Ledger
    client: Client
    exporter: Exporter
    control: Control
    redis: Any

    async def claimed(
        self, intent: str = "extraction", model: str = "claude-haiku-5-5", **job: Any
    ) -> tuple[str, int, int]:
        """A job that a worker has taken: its id, token and attempt number."""
        job_id = self.client.submit(Job(intent=intent, prompt="CANARY-PROMPT", **job))
        route = [Candidate("anthropic", model, "interactive", "a test", Decimal("0.02"))]
        await self.ledger.fetch(
            queries.ROUTE,
            {
                "ids": [job_id],
                "intents": [intent],
                "providers": ["anthropic"],
                "routes": [json.dumps([c.as_json() for c in route])],
                "reasons": ["a test"],
                "details": ["{}"],
                "policy": "test",
            },
        )
        return await self.claim(job_id)

    async def claim(self, job_id: str) -> tuple[str, int, int]:
        """Take a routed job."""
        rows = await self.ledger.fetch(
            queries.CLAIM, {"ids": [job_id], "providers": ["anthropic"], "owner": secrets.token_hex(4), "lease_s": 60}
        )
        return job_id, rows[0]["lease_token"], rows[0]["attempt"]

    async def settle(self, claimed: tuple[str, int, int], **how: Any) -> None:
        """End an attempt; by default with an answer of 100 + 10 tokens for 0.001 USD, 0.01 on the flagship."""
        job_id, token, number = claimed
        values: dict[str, Any] = {
            "state": JobState.SUCCEEDED,
            "outcome": "accept",
            "reason": "a test",
            "policy_version": "v7",
            "attempt_state": AttemptState.SUCCEEDED,
            "cost_usd": Decimal("0.001"),
            "cost_source": CostSource.USAGE,
            "flagship_usd": Decimal("0.01"),
            "usage": Usage(input_tokens=100, output_tokens=10),
            "body": '{"text": "CANARY-ANSWER", "data": null}'
            if how.get("state", JobState.SUCCEEDED) == "succeeded"
            else None,
            **how,
        }
        settlement = Settlement(job_id=job_id, token=token, number=number, **values)
        await self.ledger.fetch(queries.SETTLE, parameters([settlement]))

    async def lose_worker(self, job_id: str) -> None:
        """The lease of a running job ends."""
        await self.ledger.fetch(
            "update jobs set lease_until = now() - interval '1 second' where id = %(id)s and state = 'running'",
            {"id": job_id},
        )
        await self.control.rescue()

    async def look(self) -> str:
        """The metrics, after control has told what it counted."""
        await self.control.report()
        return await self.exporter.look()


@asynccontextmanager
async def _bench(database_url: str, redis_url: str) -> AsyncIterator[Bench]:
    from redis.asyncio import Redis

    from workers.telemetry import take_counts

    take_counts()  # of the tests before
    settings = Settings(database_url=database_url, redis_url=redis_url)  # type: ignore[arg-type]  # parsed
    ledger = Ledger(database_url)
    redis: Redis = Redis.from_url(redis_url)
    control = Control(settings)
    async with exporting(settings) as exporter:
        with Client(database_url, redis_url) as client:
            yield Bench(settings, ledger, client, exporter, control, redis)
    await control.close()
    await redis.aclose()
    await ledger.close()


@pytest.fixture
async def bench(database_url: str, redis_url: str) -> AsyncIterator[Bench]:
    """The pieces, on a fresh ledger."""
    async with _bench(database_url, redis_url) as made:
        yield made
