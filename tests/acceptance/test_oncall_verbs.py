"""The verbs for the person on call, on a real fleet: what they do to jobs, and one line for whatever is wrong."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator

import psycopg
import pytest
from click.testing import CliRunner, Result

from sandbox.testing import Running
from tests.fleet import RunningFleet
from waybill import Client, Job, JobCancelled, JobState
from waybill.cli import cli
from waybill.contract import new_job_id

Waybill = Callable[..., Result]


@pytest.fixture(autouse=True)
def pace(sandbox: Running) -> None:
    """Answers take a moment, so that there is something under way."""
    sandbox.latency("fixed:20ms")


@pytest.fixture
def waybill(urls: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> Waybill:
    """The command, in this process."""
    monkeypatch.setenv("WAYBILL_DATABASE_URL", urls[0])
    monkeypatch.setenv("WAYBILL_REDIS_URL", urls[1])
    return lambda *arguments: CliRunner().invoke(cli, list(arguments))


def ok(result: Result) -> str:
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def ledger(urls: tuple[str, str]) -> Iterator[psycopg.Connection]:
    with psycopg.connect(urls[0].replace("+psycopg", ""), autocommit=True) as connection:
        yield connection


def open_run(ledger: psycopg.Connection, name: str) -> str:
    run_id = new_job_id(int(time.time() * 1000), b"0123456789")
    ledger.execute(
        "insert into runs (id, tenant, name, fingerprint) values (%s, 'default', %s, %s)", (run_id, name, name)
    )
    return run_id


def in_run(client: Client, run_id: str, count: int, intent: str = "extraction") -> list[str]:
    jobs = [Job(intent=intent, prompt=f"row {n}", priority="lo") for n in range(count)]
    return client.submit_many(jobs, run_id=run_id, seqs=list(range(count)))


def wait_for(true: Callable[[], object], timeout_s: float = 20.0) -> None:
    end = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < end, "it did not come in time"
        time.sleep(0.05)


# --- wrong names ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["drain", "antropic"], "no provider 'antropic'; there are: anthropic, openai, local"),
        (["pause", "anthropic"], "anthropic is a provider; write `waybill drain anthropic`"),
        (["pause", "extracton"], "'extracton' is no provider, run or intent of this ledger; intents: "),
        (["resume", "extracton"], "'extracton' is no provider, run or intent"),
        (["resume", "openai"], "openai is neither drained nor refused"),
        (["resume", "extraction"], "intent extraction is not paused"),
        (["cancel", "nobody"], "'nobody' is neither the name of a run nor an id"),
        (["cancel", "ffffffff"], "no run or job ffffffff in this ledger"),
        (["dlq", "show", "ffffffff"], "no job ffffffff in this ledger"),
        (["dlq", "requeue"], "say which: job ids, --code CODE or --all"),
        (["dlq", "requeue", "--all", "--code", "x"], "say which"),
        (["dlq", "requeue", "--code", "nonsense"], "no dead job has the error code 'nonsense'"),
        (["dlq", "drop", "ffffffff", "--yes"], "no run or job ffffffff"),
    ],
)
def test_a_wrong_name_is_one_line_that_says_what_to_write(waybill: Waybill, arguments: list[str], says: str) -> None:
    refused = waybill(*arguments)

    assert refused.exit_code == 1
    assert says in refused.output
    assert refused.output.count("\n") == 1


def test_a_ledger_that_is_not_there_is_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    monkeypatch.setenv("WAYBILL_STATE_DIR", str(tmp_path_factory.mktemp("empty")))
    monkeypatch.delenv("WAYBILL_DATABASE_URL", raising=False)
    monkeypatch.delenv("WAYBILL_REDIS_URL", raising=False)

    refused = CliRunner().invoke(cli, ["status"])

    assert refused.exit_code == 1
    assert "WAYBILL_DATABASE_URL is not set" in str(refused.exception)


# --- drain and pause --------------------------------------------------------------------------------------------------


def test_a_drained_provider_gets_nothing_and_who_can_go_elsewhere_does(
    client: Client, sandbox: Running, waybill: Waybill
) -> None:
    ok(waybill("drain", "anthropic", "--reason", "incident 42"))
    time.sleep(1.5)  # every process reads it within a second
    before = len(sandbox.log())
    pinned = client.submit(intent="extraction", prompt="x", model="claude-haiku-5-5")

    result = client.result(client.submit(intent="extraction", prompt="y"), timeout_s=20)

    assert result.model == "gpt-6-luna"
    assert "incident 42" in result.reason
    assert client.states([pinned]) == {pinned: JobState.QUEUED}
    assert not [line for line in sandbox.log(before) if str(line["model"]).startswith("claude")]
    assert "provider anthropic is drained" in ok(waybill("status"))
    ok(waybill("resume", "anthropic"))
    assert client.result(pinned, timeout_s=20).model == "claude-haiku-5-5"


def test_jobs_on_the_way_to_a_drained_provider_leave_it_at_no_cost(
    client: Client, sandbox: Running, waybill: Waybill, fleet: RunningFleet, ledger: psycopg.Connection
) -> None:
    sandbox.latency("fixed:1500ms")
    ids = client.submit_many([Job(intent="extraction", prompt=f"{n}", priority="lo") for n in range(12)])
    wait_for(lambda: JobState.RUNNING in client.states(ids).values())
    ok(waybill("drain", "anthropic"))
    later = [client.submit(Job(intent="extraction", prompt=f"later {n}")) for n in range(5)]

    outcomes = list(client.results([*ids, *later], timeout_s=40))

    ok(waybill("resume", "anthropic"))
    assert all(outcome.result for outcome in outcomes)
    assert all(outcome.attempts == 1 for outcome in outcomes), "moving used up no attempt"


def test_a_paused_intent_waits_where_it_is_and_others_go_on(client: Client, waybill: Waybill) -> None:
    client.result(client.submit(intent="summarization", prompt="known"), timeout_s=20)
    ok(waybill("pause", "summarization", "--reason", "prices"))
    held = client.submit_many([Job(intent="summarization", prompt=f"{n}") for n in range(20)])

    assert client.result(client.submit(intent="extraction", prompt="other"), timeout_s=20).text
    assert set(client.states(held).values()) <= {JobState.QUEUED, JobState.ROUTED}
    assert "intent summarization is paused" in ok(waybill("status"))

    ok(waybill("resume", "summarization"))
    assert all(outcome.result for outcome in client.results(held, timeout_s=20))


def test_a_paused_run_ends_its_calls_and_starts_no_more(
    client: Client, sandbox: Running, waybill: Waybill, ledger: psycopg.Connection
) -> None:
    sandbox.latency("fixed:300ms")
    run_id = open_run(ledger, "monthly")
    ids = in_run(client, run_id, 1500)
    wait_for(lambda: JobState.SUCCEEDED in client.states(ids).values())

    assert "is paused" in ok(waybill("pause", "monthly"))
    wait_for(lambda: JobState.RUNNING not in client.states(ids).values())
    at_rest = client.states(ids)
    calls = len(sandbox.log())
    time.sleep(2)

    assert client.states(ids) == at_rest
    assert len(sandbox.log()) == calls
    left = sum(not state.is_final for state in at_rest.values())
    assert left > 0, "the run was over before it was paused"
    assert {"kind": "run", "name": run_id, "reason": "monthly", "since": None} in json.loads(
        ok(waybill("status", "--json"))
    )["holds"]
    again = waybill("pause", "monthly")
    assert "is paused already" in again.output
    sandbox.latency("none")
    ok(waybill("resume", run_id))
    outcomes = list(client.results(ids, timeout_s=60))
    assert len(outcomes) == 1500
    assert all(outcome.result and outcome.attempts == 1 for outcome in outcomes)


# --- cancel -----------------------------------------------------------------------------------------------------------


def test_a_run_of_ten_thousand_is_cancelled_at_once_and_each_job_says_why(
    client: Client, sandbox: Running, waybill: Waybill, ledger: psycopg.Connection
) -> None:
    sandbox.latency("fixed:10s")  # few of them are done before the word is given, however slow the machine
    run_id = open_run(ledger, "too-large")
    ids = in_run(client, run_id, 10_000)

    began = time.monotonic()
    told = ok(waybill("cancel", "too-large"))
    took = time.monotonic() - began

    assert took < 10, f"{took:.1f} s"
    assert "cancelled" in told
    wait_for(lambda: all(state.is_final for state in client.states(ids).values()), 30)
    states = list(client.states(ids).values())
    assert states.count(JobState.CANCELLED) + states.count(JobState.SUCCEEDED) == 10_000
    assert states.count(JobState.CANCELLED) > 9000
    noted = ledger.execute(
        "select count(*) from decisions d join jobs j on j.id = d.job_id where j.run_id = %s and d.outcome = 'cancel'"
        " and j.state = 'cancelled' and d.attempt is null",
        (run_id,),
    ).fetchone()
    assert noted is not None
    assert noted[0] == states.count(JobState.CANCELLED)
    # A row that the producer submits a moment later belongs to a run that is no more.
    late = client.submit_many([Job(intent="extraction", prompt="late")], run_id=run_id, seqs=[10_000])
    with pytest.raises(JobCancelled):
        client.result(late[0], timeout_s=20)
    assert "cannot be undone" in waybill("resume", run_id).output


def test_one_job_is_cancelled_by_the_beginning_of_its_id(client: Client, sandbox: Running, waybill: Waybill) -> None:
    sandbox.latency("fixed:30s")
    job_id = client.submit(intent="extraction", prompt="slow")
    wait_for(lambda: client.states([job_id])[job_id] is JobState.RUNNING)

    assert "broken off" in ok(waybill("cancel", job_id))

    with pytest.raises(JobCancelled):
        client.result(job_id, timeout_s=20)
    assert "is final already" in waybill("cancel", job_id).output


# --- dead letters -----------------------------------------------------------------------------------------------------


@pytest.fixture
def dead(client: Client, waybill: Waybill, ledger: psycopg.Connection) -> Iterator[list[str]]:
    """Jobs that went to the dead letters by the edges of the state machine."""
    ok(waybill("pause", "reasoning"))
    ids = client.submit_many([Job(intent="reasoning", prompt=f"poison {n}") for n in range(3)])
    ledger.execute("update jobs set state = 'routed', route = '[]', provider = 'anthropic' where id = any(%s)", (ids,))
    ledger.execute(
        "update jobs set state = 'running', lease_token = 1, lease_until = now() + interval '1 hour' where id = any(%s)",
        (ids,),
    )
    ledger.execute(
        "update jobs set state = 'dead', lease_token = null, lease_until = null, finished_at = now(), losses = 3, used = 3,"
        " error_code = 'worker_lost', error = 'lost three workers' where id = any(%s)",
        (ids,),
    )
    ok(waybill("resume", "reasoning"))
    yield ids
    waybill("dlq", "drop", "--all", "--yes")


def test_dead_letters_are_listed_shown_and_run_again(client: Client, waybill: Waybill, dead: list[str]) -> None:
    listed = json.loads(ok(waybill("dlq", "list", "--json")))
    assert {row["id"] for row in listed["jobs"]} == set(dead)
    assert listed["totals"] == [{"state": "dead", "code": "worker_lost", "jobs": 3}]
    assert "3  dead with worker_lost" in ok(waybill("dlq", "list"))
    shown = ok(waybill("dlq", "show", dead[0]))
    assert "lost three workers" in shown
    assert "poison" not in shown
    assert "poison 0" in ok(waybill("dlq", "show", dead[0], "--payload"))

    assert ok(waybill("dlq", "requeue", "--code", "worker_lost")) == "3 jobs queued again\n"

    outcomes = list(client.results(dead, timeout_s=30))
    assert all(outcome.result for outcome in outcomes)
    assert "requeue: asked for again" in ok(waybill("why", dead[0]))
    assert "no dead letters" in ok(waybill("dlq", "list"))


def test_dropping_needs_a_yes_deletes_the_request_and_keeps_the_history(
    client: Client, waybill: Waybill, dead: list[str], ledger: psycopg.Connection
) -> None:
    refused = waybill("dlq", "drop", dead[0])
    assert refused.exit_code == 1
    assert "delete the requests of 1 jobs for good; say --yes" in refused.output
    assert len(json.loads(ok(waybill("dlq", "list", "--json")))["jobs"]) == 3

    assert ok(waybill("dlq", "drop", dead[0], "--yes")) == "1 jobs dropped\n"

    assert ledger.execute("select count(*) from payloads where job_id = %s", (dead[0],)).fetchone() == (0,)
    assert "drop: dropped by hand" in ok(waybill("why", dead[0]))
    assert {row["id"] for row in json.loads(ok(waybill("dlq", "list", "--json")))["jobs"]} == set(dead[1:])
    again = waybill("dlq", "requeue", dead[0])
    assert again.exit_code == 1
    assert "is no dead letter" in again.output


def test_failed_jobs_are_reached_with_failed_or_by_id(client: Client, sandbox: Running, waybill: Waybill) -> None:
    sandbox.fault("forbidden", model="gpt-5.5")
    job_id = client.submit(intent="extraction", prompt="x", model="gpt-5.5")
    wait_for(lambda: client.states([job_id])[job_id] is JobState.FAILED)
    sandbox.clear_faults()
    assert job_id not in ok(waybill("dlq", "list"))
    assert job_id in ok(waybill("dlq", "list", "--failed"))

    ok(waybill("dlq", "requeue", job_id))

    assert client.result(job_id, timeout_s=30).model == "gpt-5.5"


# --- status -----------------------------------------------------------------------------------------------------------


def test_status_shows_lanes_intents_and_changes_of_route(client: Client, sandbox: Running, waybill: Waybill) -> None:
    for n in range(3):
        client.result(client.submit(intent="extraction", prompt=f"s {n}"), timeout_s=20)
    sandbox.fault("overloaded", model="claude-sonnet-5-5")
    client.result(client.submit(intent="summarization", prompt="moves"), timeout_s=20)
    sandbox.latency("fixed:20s")
    slow = client.submit(intent="extraction", prompt="slow", model="gpt-5.5")
    wait_for(lambda: client.states([slow])[slow] is JobState.RUNNING)

    found = json.loads(ok(waybill("status", "--json")))

    client.cancel(slow)
    lanes = {lane["lane"]: lane for lane in found["lanes"]}
    assert lanes["anthropic/claude-haiku-5-5/interactive"]["answered"] >= 3
    assert 0 < lanes["anthropic/claude-haiku-5-5/interactive"]["headroom"] <= 1
    assert lanes["openai/gpt-5.5/interactive"]["in_flight"] == 1
    assert lanes["anthropic/claude-sonnet-5-5/interactive"]["failed"] >= 1
    intents = {row["intent"]: row for row in found["intents"]}
    assert intents["extraction"]["p95_s"] > 0
    assert intents["extraction"]["usd_per_hour"] > 0
    assert any(change["outcome"] == "fallback" and "529" in change["reason"] for change in found["route_changes"])
    assert found["redis"] is None
    text = ok(waybill("status"))
    assert "anthropic/claude-haiku-5-5/interactive" in text
    assert "latest changes of route" in text
    assert max(map(len, text.splitlines())) < 160


def test_status_says_when_redis_is_away(waybill: Waybill, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WAYBILL_REDIS_URL", "redis://127.0.0.1:1/0")

    assert "! Redis does not answer" in ok(waybill("status"))


def test_a_heavier_tenant_is_written_down(waybill: Waybill, ledger: psycopg.Connection) -> None:
    ok(waybill("weight", "large", "5"))
    ok(waybill("weight", "large", "3"))

    assert ledger.execute("select weight from tenants where name = 'large'").fetchone() == (3,)
    assert waybill("weight", "large", "0").exit_code == 2
