"""What a backend service can rely on, with one real fleet for the whole file: results, streams, pins, cancel, stories."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from sandbox.testing import Running
from tests.fleet import ROOT, RunningFleet, clean_environment
from waybill import (
    AsyncClient,
    Client,
    IdempotencyConflict,
    InvalidJob,
    Job,
    JobCancelled,
    JobFailed,
    JobState,
    ResultTimeout,
)

SCHEMA = {
    "type": "object",
    "properties": {"total": {"type": "string"}},
    "required": ["total"],
    "additionalProperties": False,
}


def test_a_job_comes_back_with_model_reason_and_cost(client: Client) -> None:
    result = client.result(client.submit(intent="summarization", prompt="Stones are heavy."), timeout_s=30)

    assert result.model == "claude-sonnet-5-5"
    assert result.lane == "anthropic/claude-sonnet-5-5/interactive"
    assert result.attempts == 1
    assert result.usd is not None
    assert result.usd > 0
    assert "margin" in result.reason


def test_a_schema_gives_typed_data(client: Client) -> None:
    job_id = client.submit(intent="extraction", prompt="total: 9.00", json_schema=SCHEMA)

    assert isinstance(client.result(job_id, timeout_s=30).data["total"], str)


def test_any_text_survives_the_way(client: Client, sandbox: Running) -> None:
    text = "nul \x00, emoji 🧾, RTL ‮שלום, tabs\t, \\u0000 spelled, end"

    result = client.result(client.submit(intent="summarization", prompt=text, metadata={"k": "\x00é"}), timeout_s=30)

    assert result.metadata == {"k": "\x00é"}
    assert result.text


def test_a_stream_is_the_same_answer_as_in_the_ledger(client: Client) -> None:
    pieces = list(client.stream(intent="summarization", prompt="Say something about five long rivers, please."))

    assert len(pieces) > 1
    assert "".join(pieces).startswith("This is the sandbox speaking as claude-sonnet-5-5")


async def test_the_async_client_does_the_same(urls: tuple[str, str], fleet: RunningFleet) -> None:
    async with AsyncClient(*urls) as client:
        ids = await client.submit_many([client.make_job(intent="reasoning", prompt=f"{n} + {n}?") for n in range(25)])
        seen = [outcome.job_id async for outcome in client.results(ids, timeout_s=30)]
        streamed = [piece async for piece in client.stream(intent="reasoning", prompt="Why?")]

    assert sorted(seen) == sorted(ids)
    assert streamed


def test_a_pinned_model_is_never_replaced(client: Client, sandbox: Running) -> None:
    sandbox.fault("overloaded", model="gpt-5.5")

    job_id = client.submit(intent="extraction", prompt="x", model="gpt-5.5")
    with pytest.raises(ResultTimeout):
        client.result(job_id, timeout_s=2)
    sandbox.clear_faults()

    result = client.result(job_id, timeout_s=60)
    assert result.model == "gpt-5.5"
    assert result.attempts > 1


def test_a_failing_provider_is_left_for_the_next_one_and_the_result_says_so(client: Client, sandbox: Running) -> None:
    sandbox.fault("overloaded", model="claude-*")

    result = client.result(client.submit(intent="extraction", prompt="total 5.00", json_schema=SCHEMA), timeout_s=30)

    assert result.model == "gpt-6-luna"
    assert result.attempts == 2


def test_a_stream_falls_back_freely_before_the_first_piece(client: Client, sandbox: Running) -> None:
    sandbox.fault("overloaded", model="claude-*")

    text = "".join(client.stream(intent="summarization", prompt="Something about hills."))

    assert text.startswith("This is the sandbox speaking as gpt-6.1-sol")


def test_a_local_only_job_without_a_local_model_fails_and_never_leaves(client: Client, sandbox: Running) -> None:
    before = len(sandbox.log())
    job_id = client.submit(intent="classification", prompt="secret", labels=("a", "b"), local_only=True)

    with pytest.raises(JobFailed) as failed:
        client.result(job_id, timeout_s=30)

    assert failed.value.code == "no_route"
    assert len(sandbox.log()) == before


def test_unknown_intents_and_models_fail_with_the_known_ones_named(client: Client) -> None:
    for fields, says in (
        ({"intent": "extracton"}, "known: extraction"),
        ({"intent": "extraction", "model": "gpt-7"}, "gpt-6-luna"),
    ):
        with pytest.raises(JobFailed, match=says):
            client.result(client.submit(prompt="x", **fields), timeout_s=30)


def test_an_idempotency_key_gives_the_same_job_and_refuses_another_request(client: Client, sandbox: Running) -> None:
    first = client.submit(intent="summarization", prompt="once", idempotency_key="k1")
    assert client.submit(intent="summarization", prompt="once", idempotency_key="k1") == first
    with pytest.raises(IdempotencyConflict, match="k1"):
        client.submit(intent="summarization", prompt="twice", idempotency_key="k1")
    client.result(first, timeout_s=30)

    calls = [line for line in sandbox.log() if line["job"] == first]
    assert len(calls) == 1


def test_bad_input_is_one_clear_line(client: Client) -> None:
    for fields, says in (
        ({"intent": "Extract!", "prompt": "x"}, "intent: "),
        ({"intent": "extraction", "prompt": ""}, "needs either `prompt`"),
        ({"intent": "extraction", "prompt": "x" * 9_000_000}, "9,000,000 bytes are more than the limit of 8,388,608"),
        ({"intent": "extraction", "prompt": "\ud800"}, "lone surrogate"),
    ):
        with pytest.raises(InvalidJob) as refused:
            client.submit(**fields)
        assert says in str(refused.value)
        assert "\n" not in str(refused.value)


def test_a_running_job_can_be_cancelled_and_its_cost_is_booked(
    client: Client, sandbox: Running, urls: tuple[str, str]
) -> None:
    sandbox.latency("fixed:60s")
    job_id = client.submit(intent="summarization", prompt="slow")
    end = time.monotonic() + 20
    while client.states([job_id])[job_id] is not JobState.RUNNING:
        assert time.monotonic() < end
        time.sleep(0.05)

    assert client.cancel(job_id) == {job_id: JobState.RUNNING}
    with pytest.raises(JobCancelled):
        client.result(job_id, timeout_s=20)

    story = why(urls, job_id)
    assert re.search(r"attempt \d+ cancelled", story), story
    assert "(estimated)" in story


def test_a_finished_job_is_not_cancelled(client: Client) -> None:
    job_id = client.submit(intent="summarization", prompt="quick")
    client.result(job_id, timeout_s=30)

    assert client.cancel(job_id) == {}


def test_why_tells_route_attempts_fallback_and_cents(client: Client, sandbox: Running, urls: tuple[str, str]) -> None:
    sandbox.fault("overloaded", model="claude-haiku-5-5")
    job_id = client.submit(intent="extraction", prompt="the secret total 5.00", json_schema=SCHEMA)
    result = client.result(job_id, timeout_s=30)

    story = why(urls, job_id[:20])

    assert f"job {job_id}: succeeded" in story
    assert "-> route claude-haiku-5-5 > gpt-6-luna > claude-sonnet-5-5 (policy 2026-11-23)" in story
    assert re.search(r"attempt 1 failed .*\[overloaded\]", story)
    assert "-> fallback: claude-haiku-5-5" in story
    assert "attempt 2 succeeded" in story
    assert f"${result.usd.normalize():f}" in story  # type: ignore[union-attr]
    assert "secret" not in story


def why(urls: tuple[str, str], job: str) -> str:
    """What `waybill why` prints."""
    env = {**clean_environment(), "WAYBILL_DATABASE_URL": urls[0], "WAYBILL_REDIS_URL": urls[1]}
    told = subprocess.run(
        [sys.executable, "-m", "waybill", "why", job], env=env, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert told.returncode == 0, told.stderr
    return told.stdout


def test_why_names_what_it_cannot_find(urls: tuple[str, str], client: Client) -> None:
    env = {**clean_environment(), "WAYBILL_DATABASE_URL": urls[0]}
    for job, says in (("nonsense!", "is no job id"), ("ffffffff", "no job ffffffff in this ledger")):
        told = subprocess.run(
            [sys.executable, "-m", "waybill", "why", job],
            env=env,
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert told.returncode == 1
        assert says in told.stderr
        assert told.stderr.count("\n") == 1


def test_hundreds_of_jobs_of_all_intents_agree_with_the_bill(client: Client, sandbox: Running) -> None:
    before = Decimal(str(sandbox.bill()["total_usd"]))
    jobs = [
        Job(
            intent=("extraction", "summarization", "reasoning", "openai-only")[n % 4],
            prompt=f"document {n}",
            priority="lo",
        )
        for n in range(400)
    ]
    ids = client.submit_many(jobs)
    outcomes = list(client.results(ids, timeout_s=60))

    assert {outcome.job_id for outcome in outcomes} == set(ids)
    assert all(outcome.state is JobState.SUCCEEDED for outcome in outcomes)
    assert sum(outcome.usd for outcome in outcomes) == Decimal(str(sandbox.bill()["total_usd"])) - before


def test_prompts_never_reach_redis_or_the_logs(client: Client, fleet: RunningFleet, urls: tuple[str, str]) -> None:
    import redis

    canary = "canary-7f3a91"
    client.result(client.submit(intent="summarization", prompt=f"{canary} is a word"), timeout_s=30)

    for name in ("dispatcher", "anthropic", "openai", "control"):
        assert canary not in fleet.log(name)
    with redis.Redis.from_url(urls[1]) as connection:
        for key in connection.keys("*"):
            assert canary.encode() not in (connection.dump(key) or b"")  # some run out meanwhile


def _tells(task: dict[str, Any], job_id: str, ring: str) -> bool:
    """Whether Flower shows of this task which job it was for, on which lane, and that it has ended."""
    args = str(task["args"])
    return task["state"] == "SUCCESS" and job_id in args and ring in args and job_id in str(task["result"])


def test_flower_is_closed_read_only_and_shows_no_prompt(client: Client, urls: tuple[str, str], tmp_path: Path) -> None:
    import base64
    import urllib.error
    import urllib.request

    from waybill.cli.up import free_port

    port = free_port()
    env = {
        **clean_environment(),
        "WAYBILL_REDIS_URL": urls[1],
        "WAYBILL_FLOWER_PORT": str(port),
        "WAYBILL_FLOWER_PASSWORD": "open-sesame",
    }
    argv = [sys.executable, "-m", "waybill", "flower"]
    with (
        (tmp_path / "flower.log").open("wb") as log,
        subprocess.Popen(argv, env=env, cwd=ROOT, stdout=log, stderr=log) as flower,
    ):

        def get(path: str, password: str | None = "open-sesame") -> tuple[int, str]:
            request = urllib.request.Request(f"http://127.0.0.1:{port}{path}")
            if password:
                request.add_header(
                    "Authorization", "Basic " + base64.b64encode(f"waybill:{password}".encode()).decode()
                )
            try:
                with urllib.request.urlopen(request, timeout=10) as answer:
                    return answer.status, answer.read().decode()
            except urllib.error.HTTPError as exc:
                return exc.code, ""

        try:
            end = time.monotonic() + 40
            while True:
                try:
                    get("/healthcheck")
                    break
                except (urllib.error.URLError, ConnectionError):
                    assert time.monotonic() < end, (tmp_path / "flower.log").read_text()
                    time.sleep(0.1)
            heard: list[dict[str, Any]] = []
            for number in range(10):  # it answers before it listens: what the first jobs said may be missed
                job_id = client.submit(intent="summarization", prompt=f"canary-55aa11 in Flower, try {number}")
                model = client.result(job_id, timeout_s=60).model
                ring = f"summarization x1 on {model}"
                look_until = time.monotonic() + 10
                while not heard and time.monotonic() < look_until:
                    tasks = get("/api/tasks")[1]
                    heard = [task for task in json.loads(tasks).values() if _tells(task, job_id, ring)]
                    time.sleep(0.2)
                if heard:
                    break
            page = get("/tasks")
            assert [get(path, None)[0] for path in ("/", "/tasks", "/workers", "/api/tasks")] == [401] * 4
            assert get("/tasks", "wrong")[0] == 401
            shutdown = urllib.request.Request(
                f"http://127.0.0.1:{port}/api/worker/shutdown/x", method="POST", data=b"",
                headers={"Authorization": "Basic " + base64.b64encode(b"waybill:open-sesame").decode()},
            )  # fmt: skip
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(shutdown, timeout=10)
            assert refused.value.code == 403
            refused.value.close()
        finally:
            flower.terminate()
            try:
                flower.wait(10)
            except subprocess.TimeoutExpired:
                flower.kill()
                raise
    assert page[0] == 200
    assert "canary" not in tasks + page[1]
    assert heard, tasks[:2000]
    assert f"succeeded summarization {model} $" in str(heard[0]["result"])


def test_flower_does_not_start_open() -> None:
    env = {**clean_environment(), "WAYBILL_REDIS_URL": "redis://127.0.0.1:1/0"}
    refused = subprocess.run(
        [sys.executable, "-m", "waybill", "flower"], env=env, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert refused.returncode == 1
    assert "WAYBILL_FLOWER_PASSWORD is not set" in refused.stderr


def test_a_worker_refuses_queues_that_do_not_exist_and_missing_services() -> None:
    base = clean_environment() | {"PATH": os.environ["PATH"]}
    both = {"WAYBILL_DATABASE_URL": "postgresql://x/y", "WAYBILL_REDIS_URL": "redis://x"}
    for argv, env, says in (
        (["worker", "--queues", "antropic.hi"], both, "no queue antropic.hi; there are: dispatch"),
        (["worker", "--queues", "anthropic.hi"], {}, "_URL is not set; give"),
        (["dispatcher"], {"WAYBILL_DATABASE_URL": "mysql://x/y", "WAYBILL_REDIS_URL": "redis://x"}, "needs PostgreSQL"),
        (["dispatcher"], {"WAYBILL_LEASE_S": "soon"}, "WAYBILL_LEASE_S: "),
        (["db", "upgrade"], {"WAYBILL_DATABASE_URL": "postgresql://waybill@127.0.0.1:1/none"}, "Postgres does not take the connection"),
        (["control"], {"WAYBILL_DATABASE_URL": "postgresql://x/y"}, "WAYBILL_REDIS_URL is not set"),
    ):  # fmt: skip
        refused = subprocess.run(
            [sys.executable, "-m", "waybill", *argv],
            env=base | env,
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert refused.returncode == 1, (argv, refused.stderr)
        assert says in refused.stderr.splitlines()[-1], refused.stderr


def test_a_dead_ledger_is_one_clear_error_and_a_dead_broker_loses_nothing(
    urls: tuple[str, str], client: Client
) -> None:
    from waybill.errors import LedgerUnavailable

    with (
        Client("postgresql://waybill@127.0.0.1:1/none", urls[1]) as broken,
        pytest.raises(LedgerUnavailable, match="Postgres does not answer"),
    ):
        broken.submit(intent="summarization", prompt="x")
    with Client(urls[0], "redis://127.0.0.1:1/0") as deaf:
        job_id = deaf.submit(intent="summarization", prompt="nobody rings for me")
    assert client.result(job_id, timeout_s=60).text


def test_asyncio_is_not_needed_to_import_and_nothing_heavy_comes_along() -> None:
    code = (
        "import sys, time; import pydantic; a = time.process_time(); "
        "from waybill import Client; "
        "heavy = ('anthropic', 'openai', 'celery', 'kombu', 'sqlalchemy', 'redis', 'psycopg', 'workers', 'llama_cpp');"
        "heavy = [m for m in heavy if m in sys.modules]; "
        "print(heavy)"
    )
    told = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[]"


def test_the_client_works_inside_a_running_loop_thread(urls: tuple[str, str], fleet: RunningFleet) -> None:
    async def inside() -> str:
        def sync_part() -> str:
            with Client(*urls) as client:
                return client.result(client.submit(intent="summarization", prompt="threads"), timeout_s=30).text

        return await asyncio.to_thread(sync_part)

    assert asyncio.run(inside())
