"""R28, R24: a cancellation that comes while an answer is being stored does not make a second story of it."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest

from policies.estimates import Estimates
from policies.fallback import History
from policies.policyfile import parse
from policies.pricing import PriceBook
from waybill.contract import Candidate, Job, JobState, Usage
from workers.attempt import Attempt
from workers.execute import _leased
from workers.health import Health
from workers.preparing import prepare
from workers.providers.base import Answer, Stop
from workers.runtime import SHIPPED_POLICY, Lane
from workers.writer import Settlement


class SlowWriter:
    """Keeps settlements until it is let go, as the real one does while Postgres is away."""

    def __init__(self) -> None:
        self.taken: list[Settlement] = []
        self.let_go = asyncio.Event()

    async def settle(self, settlement: Settlement) -> JobState:
        self.taken.append(settlement)
        await self.let_go.wait()
        return settlement.state


class AwayRedis:
    """Redis that does not answer: nobody hears of the end, which is a hint only."""

    def pipeline(self, **_: object) -> None:
        raise ConnectionError


class Answering:
    """A provider with one answer."""

    async def call(self, _: object) -> Answer:
        return Answer("Done.", Stop.COMPLETE, Usage(input_tokens=10, output_tokens=5), "claude-sonnet-5-5")


def world(writer: SlowWriter) -> tuple[Any, Attempt]:
    """What an attempt needs around it, and a claimed attempt that is ready to be called."""
    policy = parse(SHIPPED_POLICY.read_text(), "default.toml")
    route = (Candidate("anthropic", "claude-sonnet-5-5", "interactive", "test"),)
    settings = SimpleNamespace(call_timeout_s=5.0, idle_timeout_s=5.0)
    away: Any = AwayRedis()
    ledger: Any = None  # asked only by a Health that was started
    runtime: Any = SimpleNamespace(
        policy=policy,
        health=Health(away, ledger),
        prices=PriceBook(policy),
        writer=writer,
        settings=settings,
        leases={},
        redis=away,
        tracing=None,
        keys=(),
        limiter=SimpleNamespace(estimates=Estimates()),
        lane=lambda _: Lane(asyncio.Semaphore(1)),
        provider=lambda *_: Answering(),
    )
    attempt = Attempt(
        job_id="j",
        number=1,
        token=1,
        route=route,
        index=0,
        intent="summarization",
        priority="lo",
        payload_bytes=5,
        job=Job(intent="summarization", prompt="hello"),
        history=History(route=route, index=0, used=1, max_attempts=5),
        started=0.0,
        started_at=datetime(2026, 11, 23, tzinfo=UTC),
    )
    prepare(runtime, attempt)
    return runtime, attempt


async def test_a_settlement_under_way_is_the_only_one_whoever_cancels_the_attempt() -> None:
    writer = SlowWriter()
    runtime, attempt = world(writer)

    running = asyncio.ensure_future(_leased(runtime, attempt))
    while not writer.taken:
        await asyncio.sleep(0)
    runtime.leases["j"].task.cancel()
    for _ in range(10):
        await asyncio.sleep(0)
    writer.let_go.set()
    told = await asyncio.gather(running, return_exceptions=True)

    assert [one.state for one in writer.taken] == [JobState.SUCCEEDED]
    assert writer.taken[0].policy_version == runtime.policy.version
    assert told


async def test_a_bug_in_judging_does_not_lose_what_the_call_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("workers.concluding.judge", broken)
    writer = SlowWriter()
    writer.let_go.set()
    runtime, attempt = world(writer)

    await _leased(runtime, attempt)

    [stored] = writer.taken
    assert (stored.state, stored.error_code) == (JobState.FAILED, "internal_error")
    assert stored.cost_usd is not None
    assert stored.cost_usd > 0
