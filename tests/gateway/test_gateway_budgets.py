"""Budgets through a real fleet: a crowd does not pass the cap, parked jobs go on when it is raised, errors are the dialect's."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any

import anthropic
import openai
import pytest

from tests.contract.budgeted import set_budget
from tests.gateway.conftest import Ledger
from waybill.ledger import budgets
from waybill.ledger.engine import Ledger as Connection

HELLO: list[Any] = [{"role": "user", "content": "Say hello."}]
Setter = Callable[..., int]


@pytest.fixture
def budget(gateway_urls: tuple[str, str]) -> Iterator[Setter]:
    """Sets the budget of the tenant `default`, who everybody is in development mode; gone after the test."""

    async def ask(statement: str, params: dict[str, Any]) -> None:
        connection = Connection(gateway_urls[0], pool_size=1)
        await connection.fetch(statement, params)
        await connection.close()

    def set_it(cap: Decimal, at_cap: str = "stop") -> int:
        async def work() -> int:
            connection = Connection(gateway_urls[0], pool_size=1)
            found = await set_budget(connection, str(cap), subject="default", at_cap=at_cap)
            await connection.fetch(budgets.LET_ASK, {"id": found})
            await connection.close()
            return found

        return asyncio.run(work())

    yield set_it
    asyncio.run(ask(budgets.REMOVE, {"scope": "tenant", "subject": "default", "period": None}))


def spent(ledger: Ledger, after: str = "") -> Decimal:
    """What was spent, or what jobs with ids above `after` spent: calls of other files' jobs may still end."""
    [(usd,)] = ledger.rows(
        "select sum(coalesce(cost_usd, estimate_usd)) from attempts where ended_at is not null and job_id::text > %s",
        after,
    )
    return Decimal(usd or 0)


def test_a_crowd_with_default_max_tokens_spends_what_the_cap_allows_and_no_more(
    claude: anthropic.Anthropic, ledger: Ledger, budget: Setter
) -> None:
    def call(number: int) -> str:
        messages: Any = [{"role": "user", "content": f"Say hello, number {number:04d}."}]
        try:
            claude.messages.create(model="claude-haiku-5-5", max_tokens=64_000, messages=messages)
        except anthropic.APIStatusError as exc:
            return f"{exc.status_code} {exc.body['error']['type']}"  # type: ignore[index]
        return "answered"

    [(last,)] = ledger.rows("select coalesce(max(id::text), '') from jobs")
    assert [call(number) for number in range(6)] == ["answered"] * 6
    each = spent(ledger, last) / 6
    [(last,)] = ledger.rows("select max(id::text) from jobs")
    budget(spent(ledger) + each * 15)

    with ThreadPoolExecutor(60) as crowd:
        endings = list(crowd.map(call, range(100, 160)))

    assert set(endings) == {"answered", "402 billing_error"}
    assert 8 <= endings.count("answered") <= 15
    assert spent(ledger, last) <= each * 15


def test_a_used_up_budget_is_the_error_that_the_sdk_knows(gpt: openai.OpenAI, ledger: Ledger, budget: Setter) -> None:
    budget(Decimal(0))

    with pytest.raises(openai.RateLimitError) as caught:
        gpt.chat.completions.create(model="gpt-6-luna", messages=HELLO)

    assert caught.value.code == "insufficient_quota"
    assert "tenant's budget of $0 is used up" in str(caught.value)


def finished(http: Any, job: str) -> dict[str, Any]:
    """The job's result, however slow the machine is."""
    end = time.monotonic() + 180
    while (answer := http.get(f"/v1/jobs/{job}/result?wait=20")).status_code == 202:
        assert time.monotonic() < end, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_a_parked_job_goes_on_when_the_cap_is_raised(gateway: str, ledger: Ledger, budget: Setter) -> None:
    import httpx2

    budget(Decimal(0), "park")
    with httpx2.Client(base_url=gateway, timeout=60) as http:
        job = http.post("/v1/jobs", json={"intent": "summarization", "prompt": "Summarize: a."}).json()["id"]
        end = time.monotonic() + 120
        while ledger.rows("select state, error_code from jobs where id = %s", job) != [("parked", "budget_exhausted")]:
            assert time.monotonic() < end
            time.sleep(0.05)

        budget(spent(ledger) + 5, "park")
        result = finished(http, job)

    assert result["state"] == "succeeded"


def test_cheaper_takes_the_next_model_that_can_be_paid_for(gateway: str, ledger: Ledger, budget: Setter) -> None:
    import httpx2

    # The chain of openai-only: gpt-5.5 first, whose prompt alone costs more than is left, then gpt-6.1-sol.
    budget(spent(ledger) + Decimal("0.02"), "cheaper")
    with httpx2.Client(base_url=gateway, timeout=60) as http:
        body = {"intent": "openai-only", "prompt": "Summarize: " + "word " * 4000, "max_output_tokens": 300}
        job = http.post("/v1/jobs", json=body).json()["id"]
        finished(http, job)

    outcomes = ledger.rows("select outcome, reason from decisions where job_id = %s order by id", job)
    assert any(outcome == "fallback" and "budget" in reason for outcome, reason in outcomes), outcomes
    called = ledger.rows("select model from attempts where job_id = %s and state <> 'released'", job)
    assert called == [("gpt-6.1-sol",)]
