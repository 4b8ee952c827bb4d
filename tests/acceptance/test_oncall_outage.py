"""A provider is down: interactive work does not feel it, batch work waits at no cost, nobody storms the provider's return."""

from __future__ import annotations

import itertools
import time
from datetime import datetime, timedelta

import pytest
import redis
from click.testing import CliRunner

from sandbox.testing import Running
from tests.fleet import RunningFleet
from waybill import Client, Job
from waybill.cli import cli
from waybill.names import HEALTH_KEY, LIMIT_PREFIX
from workers.health import EXCHANGE_S


@pytest.fixture(autouse=True)
def as_new(sandbox: Running, urls: tuple[str, str], fleet: RunningFleet) -> None:
    """The provider without faults, and a fleet that has forgotten what the test before taught it."""
    with redis.Redis.from_url(urls[1]) as connection:
        for key in (HEALTH_KEY, *connection.scan_iter(f"{LIMIT_PREFIX}*")):
            connection.delete(key)
    sandbox.reset()
    sandbox.latency("fixed:20ms")
    time.sleep(2 * EXCHANGE_S)  # until every process has read that


def calls(sandbox: Running, *, status: int, model: str = "claude") -> list[dict[str, object]]:
    """What the provider answered in this test with a status, on models whose name begins so."""
    return [line for line in sandbox.log() if line["status"] == status and str(line["model"]).startswith(model)]


def test_from_the_second_interactive_job_on_the_dead_lane_is_not_tried_first(client: Client, sandbox: Running) -> None:
    client.result(client.submit(intent="extraction", prompt="well"), timeout_s=30)
    sandbox.fault("overloaded", model="claude-*")
    client.result(client.submit(intent="extraction", prompt="first"), timeout_s=30)
    tried = len(calls(sandbox, status=529))
    assert tried >= 1

    for n in range(5):
        began = time.monotonic()
        result = client.result(client.submit(intent="extraction", prompt=f"later {n}"), timeout_s=30)
        took = time.monotonic() - began
        assert result.model == "gpt-6-luna"
        assert took < 1.0, f"job {n} took {took:.2f} s"
        assert result.reason != "", "a fallback is never silent"
    # All five came within the first pause of the breaker or were no probes.
    assert len(calls(sandbox, status=529)) - tried <= 1


# The chain of reasoning goes on to a dearer model; that of extraction to one that costs no more.


def test_batch_jobs_wait_an_outage_out_and_cost_nothing_extra(client: Client, sandbox: Running) -> None:
    sandbox.fault("overloaded", model="claude-*")
    ids = client.submit_many([Job(intent="reasoning", prompt=f"row {n}", priority="lo") for n in range(60)])
    time.sleep(8)  # the outage: there is no event to wait for
    states = client.states(ids)
    during = len(calls(sandbox, status=529))
    assert during >= 1
    assert "succeeded" not in states.values(), "nobody paid for another lane"

    sandbox.clear_faults()
    outcomes = list(client.results(ids, timeout_s=60))

    assert {outcome.result.model for outcome in outcomes if outcome.result} == {"claude-opus-5-5"}
    assert len(outcomes) == 60
    assert len(calls(sandbox, status=200)) == 60, "each was paid once"
    # The first wave was under way before anybody could know; after that there are two probes in each pause (1, 2, 4 s).
    assert during <= 60 + 2 * 4
    assert not calls(sandbox, status=200, model="gpt")


def test_the_return_of_a_provider_meets_no_stampede(client: Client, sandbox: Running) -> None:
    sandbox.fault("overloaded", model="claude-*")
    client.submit_many([Job(intent="reasoning", prompt=f"warm {n}", priority="lo") for n in range(5)])
    time.sleep(2)
    ids = client.submit_many([Job(intent="reasoning", prompt=f"row {n}", priority="lo") for n in range(400)])
    time.sleep(3)
    sandbox.clear_faults()

    outcomes = list(client.results(ids, timeout_s=90))

    assert all(outcome.result for outcome in outcomes)
    answered = sorted(datetime.fromisoformat(line["time"]) for line in sandbox.log() if line["status"] == 200)
    in_the_first_second = sum(at < answered[0] + timedelta(seconds=1) for at in answered)
    assert in_the_first_second < 40, f"{in_the_first_second} of 400 waiting jobs came at once"


def test_a_batch_job_takes_another_lane_where_that_costs_no_more(client: Client, sandbox: Running) -> None:
    sandbox.fault("overloaded", model="claude-*")

    job_id = client.submit(Job(intent="extraction", prompt="row", priority="lo"))

    assert client.result(job_id, timeout_s=20).model == "gpt-6-luna"


def test_a_job_whose_deadline_is_near_does_not_wait(client: Client, sandbox: Running) -> None:
    sandbox.fault("overloaded", model="claude-*")
    client.result(client.submit(intent="reasoning", prompt="opens it"), timeout_s=30)

    urgent = client.submit(Job(intent="reasoning", prompt="soon", priority="lo", deadline_s=60))

    assert client.result(urgent, timeout_s=20).model == "gpt-6-astra"


def test_a_refused_account_is_left_alone_until_somebody_resumes_it(
    client: Client, sandbox: Running, urls: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WAYBILL_DATABASE_URL", urls[0])
    monkeypatch.setenv("WAYBILL_REDIS_URL", urls[1])
    sandbox.fault("unauthorized", model="claude-*")
    assert client.result(client.submit(intent="extraction", prompt="finds out"), timeout_s=30).model == "gpt-6-luna"
    time.sleep(1)
    refused = len(calls(sandbox, status=401))
    assert refused >= 1

    for intent in ("extraction", "summarization", "reasoning"):
        result = client.result(client.submit(intent=intent, prompt="goes elsewhere"), timeout_s=30)
        assert result.model.startswith("gpt")
    assert len(calls(sandbox, status=401)) == refused, "all of the account's models are left alone, not one by one"
    shown = CliRunner().invoke(cli, ["status"])
    assert "account anthropic@" in shown.output
    assert "is refused (open)" in shown.output

    sandbox.clear_faults()
    undone = CliRunner().invoke(cli, ["resume", "anthropic"])
    assert undone.exit_code == 0, undone.output
    assert "1 refused account(s) get a new try" in undone.output
    end = time.monotonic() + 20
    numbers = itertools.count()  # the same question twice would be answered from memory
    while _model_of(client, f"back, try {next(numbers)}?") != "claude-haiku-5-5":
        assert time.monotonic() < end


def _model_of(client: Client, prompt: str) -> str:
    return client.result(client.submit(intent="extraction", prompt=prompt), timeout_s=30).model
