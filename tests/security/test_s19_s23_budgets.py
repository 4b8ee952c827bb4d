"""S19 to S23: no crowd, no name, no missing price and no default of a client gets past a budget."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.requests import Request

from policies.budgets import AtCap, View
from policies.estimates import Estimates
from policies.fallback import GiveUp, History, Reroute
from policies.policyfile import parse
from policies.pricing import PriceBook
from producers.gateway.principal import Principal
from producers.gateway.request import make_job
from tests.contract.budgeted import claimed, set_budget, settle
from tests.security.conftest import POLICY, Api
from waybill.contract import AttemptState, Candidate, CostSource, Job, JobState
from waybill.ledger import budgets, queries
from waybill.ledger.engine import Ledger
from workers.affording import afford
from workers.attempt import Attempt
from workers.preparing import prepare
from workers.runtime import SHIPPED_POLICY
from workers.till import Denied, Granted, Reserving, Till, Verdict


@pytest.fixture
async def ledger(database_url: str) -> AsyncIterator[Ledger]:
    connected = Ledger(database_url, pool_size=10)
    yield connected
    await connected.close()


async def test_s19_200_at_once_reserve_no_more_than_the_budget(ledger: Ledger, database_url: str) -> None:
    await set_budget(ledger, "1.00")
    rows = await claimed(ledger, 200)
    pools = [Ledger(database_url, pool_size=2) for _ in range(4)]
    tills = [Till(pool) for pool in pools]

    verdicts = await asyncio.gather(
        *(tills[n % 4].reserve([Reserving(row["id"], row["attempt"], Decimal("0.03"))]) for n, row in enumerate(rows))
    )

    [row] = await ledger.fetch("select reserved_usd, spent_usd from budgets")
    assert sum(isinstance(found, Granted) for [found] in verdicts) == 33
    assert row["reserved_usd"] + row["spent_usd"] == Decimal("0.99")
    for pool in pools:
        await pool.close()


def test_s20_alias_dated_name_and_intent_become_jobs_of_the_same_budget(api: Api) -> None:
    """What is not a name of a model is not accepted at all; the others are one model and one tenant's."""
    key, turns = api.key(), [{"role": "user", "content": "x"}]
    names = {
        "gpt-6-luna": 0,
        "gpt-6-luna-2026-09-01": 0,
        "gpt-6-luna-20260901": 0,
        "GPT-6-LUNA": 404,
        "gpt-6-luna ": 404,
    }
    accepted: list[Job] = []
    gateway = api.gateway

    for name, status in names.items():
        request = Request({"type": "http", "method": "POST", "path": "/", "headers": [], "query_string": b""})
        body = {"model": name, "messages": turns}
        if status:
            assert api.post("/v1/chat/completions", key, json=body).status_code == status
        else:
            who = Principal("acme", "key_1", frozenset({"call"}))
            accepted.append(make_job(request, "chat", body, who, gateway.policy, gateway.off)[0])

    assert {(job.model, job.tenant, job.key_id) for job in accepted} == {("gpt-6-luna", "acme", "key_1")}


async def test_s20_a_fallback_reserves_in_the_budget_of_the_first_try(ledger: Ledger) -> None:
    """However many models a job tries: tenant, key and run pay, each once, and the cap holds over all of them."""
    ids = {
        scope: await set_budget(ledger, "1.00", scope=scope, subject=s)
        for scope, s in (("tenant", "acme"), ("key", "k1"))
    }
    [first] = await claimed(ledger, 1, key_id="k1")
    till = Till(ledger)
    [one] = await till.reserve([Reserving(first["id"], 1, Decimal("0.60"))])

    # It failed and was billed; the job goes on with the next of its route.
    await settle(ledger, [first], Decimal("0.60"), state=JobState.ROUTED, attempt=AttemptState.FAILED)
    await ledger.fetch(
        "update jobs set route_index = 1, route = route || %(more)s::jsonb, provider = 'openai'", {"more": FALLBACK}
    )
    claim = {"ids": [first["id"]], "providers": ["openai"], "owner": "test", "lease_s": 600.0}
    [second] = await ledger.fetch(queries.CLAIM, claim)
    [too_much] = await till.reserve([Reserving(second["id"], second["attempt"], Decimal("0.50"))])
    [fits] = await till.reserve([Reserving(second["id"], second["attempt"], Decimal("0.30"))])

    rows = await ledger.fetch("select id, spent_usd + reserved_usd as taken from budgets")
    assert isinstance(one, Granted)
    assert second["has_budget"]
    assert isinstance(too_much, Denied)
    assert {view.whose for view in too_much.views} == {"tenant", "key"}
    assert isinstance(fits, Granted)
    assert {row["id"]: row["taken"] for row in rows} == dict.fromkeys(ids.values(), Decimal("0.90"))


FALLBACK = json.dumps([Candidate("openai", "gpt-6-luna", "interactive", "test", Decimal("0.5")).as_json()])


def test_s20_no_spelling_of_a_model_is_outside_a_budget(api: Api) -> None:
    """A budget belongs to a tenant, key or run, never to a model; and a model has one name."""
    key = api.key()
    api.post("/v1/admin/budgets", api.key("ops", "admin"), json={"scope": "tenant", "subject": "acme", "cap_usd": 0})

    for model in ("gpt-6-luna", "GPT-6-LUNA", "gpt-6-luna-2026-09-01", "waybill/extraction", None):
        answer = api.post("/v1/jobs", key, json={"intent": "extraction", "prompt": "x", "model": model})

        assert (answer.status_code, answer.json()["error"]["code"]) == (429, "insufficient_quota")


class AskedTill:
    """A till with `left` USD, that remembers what was asked of it."""

    def __init__(self, left: str) -> None:
        self.left, self.asked = Decimal(left), list[Decimal]()

    async def reserve(self, asks: list[Reserving]) -> list[Verdict]:
        found: list[Verdict] = []
        for one in asks:
            self.asked.append(one.usd)
            view = View("tenant", "total", self.left, Decimal(0), Decimal(0), AtCap.STOP, None)
            found.append(Granted(self.left) if one.usd <= self.left else Denied((view,)))
        return found


def attempt_of(*models: str, max_output_tokens: int | None = None) -> Attempt:
    catalogue = parse(SHIPPED_POLICY.read_text(), "default.toml").models
    route = tuple(
        Candidate(catalogue[m].provider if m in catalogue else "openai", m, "interactive", "test") for m in models
    )
    return Attempt(
        job_id="j",
        number=1,
        token=1,
        route=route,
        index=0,
        intent="extraction",
        priority="hi",
        payload_bytes=400,
        job=Job(intent="extraction", prompt="hello", max_output_tokens=max_output_tokens),
        history=History(route=route, index=0, used=1, max_attempts=5),
        started=0.0,
        started_at=datetime(2026, 11, 23, tzinfo=UTC),
        has_budget=True,
    )


def runtime_with(till: AskedTill, **policy: Any) -> Any:
    found = replace(POLICY, **policy)
    return SimpleNamespace(
        policy=found,
        prices=PriceBook(found),
        till=till,
        limiter=SimpleNamespace(estimates=Estimates()),
        settings=SimpleNamespace(call_timeout_s=5.0, idle_timeout_s=5.0),
    )


async def test_s21_a_model_without_a_price_is_not_called_on_a_budget() -> None:
    unpriced = {**POLICY.models, "new-model": replace(POLICY.models["gpt-6-luna"], id="new-model")}
    till = AskedTill("100")
    runtime = runtime_with(till, models=unpriced)
    alone, with_another = attempt_of("new-model"), attempt_of("new-model", "gpt-6-luna")
    for attempt in (alone, with_another):
        prepare(runtime, attempt)

    await afford(runtime, [alone, with_another])

    assert isinstance(alone.decision, GiveUp)
    assert alone.decision.code == "unpriced"
    assert isinstance(with_another.decision, Reroute)
    assert till.asked == []


@pytest.mark.parametrize("asked", [None, 64_000, 1_000_000])
async def test_s22_a_huge_or_missing_max_tokens_is_clamped_to_what_is_left(asked: int | None) -> None:
    till = AskedTill("0.05")
    runtime, attempt = runtime_with(till), attempt_of("claude-opus-5-5", max_output_tokens=asked)
    prepare(runtime, attempt)

    going, parked = await afford(runtime, [attempt])

    assert (going, parked, attempt.decision) == ([attempt], {}, None)
    assert till.asked[-1] <= Decimal("0.05")
    assert attempt.call is not None
    rates = PriceBook(POLICY).rates("claude-opus-5-5", "interactive", datetime.now(UTC))
    assert rates is not None
    assert attempt.call.max_output_tokens * rates.output <= Decimal("0.05")


def test_s22_a_negative_max_tokens_is_refused(api: Api) -> None:
    key = api.key()
    messages = [{"role": "user", "content": "x"}]
    for number in (-1, 0):
        job = api.post("/v1/jobs", key, json={"intent": "extraction", "prompt": "x", "max_output_tokens": number})
        body = {"model": "claude-haiku-5-5", "max_tokens": number, "messages": messages}
        message = api.post("/v1/messages", key, json=body)

        assert (job.status_code, message.status_code) == (400, 400)


@pytest.mark.parametrize(
    ("state", "attempt"),
    [
        (JobState.CANCELLED, AttemptState.CANCELLED),
        (JobState.FAILED, AttemptState.FAILED),
        (JobState.FAILED, AttemptState.BROKEN),
        (JobState.ROUTED, AttemptState.WEAK),
    ],
)
async def test_s23_what_did_not_succeed_counts(ledger: Ledger, state: JobState, attempt: AttemptState) -> None:
    await set_budget(ledger, "1")
    rows = await claimed(ledger, 1)
    await Till(ledger).reserve([Reserving(rows[0]["id"], 1, Decimal("0.1"))])

    await settle(ledger, rows, Decimal("0.4"), state=state, attempt=attempt, source=CostSource.ESTIMATED)
    await ledger.fetch(budgets.FOLD)

    [row] = await ledger.fetch("select spent_usd, reserved_usd from budgets")
    assert (row["spent_usd"], row["reserved_usd"]) == (Decimal("0.4"), 0)
