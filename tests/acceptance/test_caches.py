"""Nothing is asked twice and no prefix is paid for twice: answers given again, one call for many, one leader for a prefix."""

from __future__ import annotations

import os
import time
from collections import Counter
from decimal import Decimal

import psycopg
import pytest

from sandbox.testing import Running
from tests.fleet import RunningFleet
from waybill import Client, Job, JobFailed, JobState

SLOW = os.environ.get("WAYBILL_SLOW") == "1"
SUBMISSIONS, QUESTIONS = (10_000, 100) if SLOW else (1000, 20)


def ask(prompt: str, **fields: object) -> Job:
    return Job(intent="extraction", prompt=prompt, **fields)  # type: ignore[arg-type]  # pydantic checks them


def attempts(urls: tuple[str, str], job_id: str) -> list[tuple[object, ...]]:
    with psycopg.connect(urls[0].replace("postgresql+psycopg", "postgresql")) as connection:
        return connection.execute(
            "select service, state, cost_usd, cost_source, source_job::text from attempts where job_id = %s order by number",
            [job_id],
        ).fetchall()


def calls(sandbox: Running, since: int) -> int:
    return sum(line["status"] == 200 for line in sandbox.log(since))


def last(sandbox: Running) -> int:
    return int(sandbox.log()[-1]["seq"]) if sandbox.log() else 0


def test_a_question_that_was_answered_is_not_asked_again(
    client: Client, sandbox: Running, urls: tuple[str, str]
) -> None:
    first = client.submit(ask("what is the total of 7.10?"))
    told = client.result(first, timeout_s=30)
    seen = last(sandbox)

    again = client.submit(ask("what is the total of 7.10?", priority="lo", metadata={"row": "2"}, deadline_s=60))
    result = client.result(again, timeout_s=30)

    assert (result.text, result.data) == (told.text, told.data)
    assert (result.usd, result.attempts, result.metadata) == (Decimal(0), 0, {"row": "2"})
    assert result.lane == "anthropic/claude-haiku-5-5/reuse"
    assert calls(sandbox, seen) == 0
    assert attempts(urls, again) == [("reuse", "succeeded", Decimal(0), "nothing", first)]


def test_a_stream_of_a_question_that_was_answered_brings_the_answer(client: Client, sandbox: Running) -> None:
    told = client.result(client.submit(ask("the total of 8.20")), timeout_s=30)
    seen = last(sandbox)

    pieces = list(client.stream(ask("the total of 8.20")))

    assert "".join(pieces) == told.text
    assert calls(sandbox, seen) == 0


@pytest.mark.parametrize(
    "other", [{"reuse": False}, {"tenant": "other"}, {"context": "Read this."}, {"max_output_tokens": 900}]
)
def test_another_question_or_an_unwilling_job_is_asked(
    client: Client, sandbox: Running, other: dict[str, object]
) -> None:
    client.result(client.submit(ask("the total of 9.30")), timeout_s=30)
    seen = last(sandbox)

    result = client.result(client.submit(ask("the total of 9.30", **other)), timeout_s=30)

    assert result.usd
    assert calls(sandbox, seen) == 1


def test_many_submissions_of_few_questions_make_one_call_each(
    client: Client, sandbox: Running, urls: tuple[str, str]
) -> None:
    sandbox.latency("fixed:200ms")
    seen = last(sandbox)
    jobs = [ask(f"question {n % QUESTIONS} of the crowd", priority="lo") for n in range(SUBMISSIONS)]

    ids = client.submit_many(jobs)
    texts = {outcome.job_id: outcome.result for outcome in client.results(ids, timeout_s=300)}

    answers = Counter((n % QUESTIONS, texts[job_id].text) for n, job_id in enumerate(ids) if texts[job_id])  # type: ignore[union-attr]
    assert calls(sandbox, seen) == QUESTIONS
    assert len(answers) == QUESTIONS
    assert set(answers.values()) == {SUBMISSIONS // QUESTIONS}
    with psycopg.connect(urls[0].replace("postgresql+psycopg", "postgresql")) as connection:
        row = connection.execute(
            "select count(*) filter (where a.service <> 'reuse'), count(*) filter (where a.service = 'reuse'),"
            " sum(cost_usd) from attempts a where job_id = any(%s::uuid[])",
            [ids],
        ).fetchone()
    assert row is not None
    assert row[:2] == (QUESTIONS, SUBMISSIONS - QUESTIONS)
    assert row[2] == sum(Decimal(line["usd"]) for line in whole_log(sandbox, seen))


def whole_log(sandbox: Running, since: int) -> list[dict[str, object]]:
    lines: list[dict[str, object]] = []
    while page := sandbox.log(int(lines[-1]["seq"]) if lines else since):  # type: ignore[call-overload]
        lines += page
    return lines


def test_who_waits_for_a_cancelled_job_gets_its_answer_from_the_next(client: Client, sandbox: Running) -> None:
    sandbox.latency("fixed:12000ms")
    ids = led(client, ask("cancelled while others wait", priority="lo"), followers=3)
    sandbox.latency("none")

    client.cancel(ids[0])
    outcomes = {outcome.job_id: outcome for outcome in client.results(ids, timeout_s=60)}

    assert outcomes[ids[0]].state is JobState.CANCELLED
    assert all(outcomes[job_id].result for job_id in ids[1:])
    assert sum(outcomes[job_id].attempts for job_id in ids[1:]) == 1


def test_who_waits_for_a_job_that_fails_asks_alone(client: Client, sandbox: Running) -> None:
    sandbox.latency("fixed:1000ms")
    sandbox.fault("refusal", times=1, match="refused once")
    ids = led(client, ask("refused once", priority="lo", model="claude-haiku-5-5"), followers=2)

    outcomes = {outcome.job_id: outcome for outcome in client.results(ids, timeout_s=60)}

    assert isinstance(outcomes[ids[0]].error, JobFailed)
    assert [outcomes[job_id].attempts for job_id in ids[1:]] == [1, 1]


def test_a_worker_that_dies_does_not_keep_followers_from_their_answer(
    client: Client, fleet: RunningFleet, sandbox: Running
) -> None:
    sandbox.latency("fixed:2000ms")
    ids = led(client, ask("the worker dies", priority="lo"), followers=4)

    fleet.kill("anthropic")
    fleet.start("anthropic")
    outcomes = list(client.results(ids, timeout_s=90))

    assert all(outcome.result for outcome in outcomes)


@pytest.mark.parametrize("model", ["claude-haiku-5-5", "gpt-6-luna"])
def test_of_many_jobs_with_one_prefix_one_pays_for_writing_it(client: Client, sandbox: Running, model: str) -> None:
    sandbox.latency("fixed:150ms")
    context = f"{model}: " + "The supplier answers for the goods until they have been handed over. " * 200
    seen = last(sandbox)

    ids = client.submit_many(
        [ask(f"Which clause covers case {n}?", context=context, model=model, priority="lo") for n in range(60)]
    )
    outcomes = list(client.results(ids, timeout_s=120))

    assert all(outcome.result for outcome in outcomes)
    usages: list[dict[str, int]] = [line["usage"] for line in whole_log(sandbox, seen)]  # type: ignore[misc]
    assert sum(usage["cache_write_tokens"] > 0 for usage in usages) == 1
    assert sum(usage["cache_read_tokens"] > 0 for usage in usages) == 59


def test_a_document_that_comes_once_pays_no_write(client: Client, sandbox: Running) -> None:
    context = "A document that nobody else asks about. " * 300
    seen = last(sandbox)

    client.result(client.submit(ask("What is it?", context=context)), timeout_s=30)

    [line] = whole_log(sandbox, seen)
    assert line["usage"]["cache_write_tokens"] == 0  # type: ignore[index]


def test_a_leader_that_fails_holds_nobody_up(client: Client, sandbox: Running) -> None:
    context = "The first call with this text fails. " * 300
    sandbox.fault("server_error", times=1, match="The first call")

    ids = client.submit_many([ask(f"case {n}", context=context, priority="lo") for n in range(10)])

    assert all(outcome.result for outcome in client.results(ids, timeout_s=60))


def test_an_answer_cut_by_a_limit_from_history_is_asked_for_again_with_the_whole(
    client: Client, sandbox: Running, urls: tuple[str, str]
) -> None:
    many = [Job(intent="summarization", prompt=f"sum up note {n}", model="claude-sonnet-5-5") for n in range(40)]
    assert all(outcome.result for outcome in client.results(client.submit_many(many), timeout_s=60))
    sandbox.fault("max_tokens", times=1)

    job_id = client.submit(Job(intent="summarization", prompt="a long one", model="claude-sonnet-5-5"))
    result = client.result(job_id, timeout_s=30)

    assert result.attempts == 2
    assert [row[1] for row in attempts(urls, job_id)] == ["weak", "succeeded"]


def led(client: Client, job: Job, *, followers: int) -> list[str]:
    """Ids of a job that is being called for, and of others that ask the same."""
    leader = client.submit(job)
    end = time.monotonic() + 30
    while client.states([leader])[leader] is not JobState.RUNNING:
        assert time.monotonic() < end
        time.sleep(0.01)
    others = client.submit_many([job] * followers)
    time.sleep(0.3)  # the dispatcher sees them
    return [leader, *others]
