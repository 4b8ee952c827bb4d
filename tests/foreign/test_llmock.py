"""The fleet against a provider that this project did not write, judged by that provider.

The sandbox is ours, so it could share our misunderstandings. llmock has quotas, refusals and broken streams of its own, and
its verdict groups what it was sent by request body: a retry before `retry-after`, a refused request sent again, more than
ten tries of one request, a cut stream taken for an answer.
"""

from __future__ import annotations

import json
import os
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.fleet import ROOT, running_fleet
from tests.foreign.llmock_server import Llmock, install, running
from waybill import Client, Job, JobError, StreamBroken, embedded

POLICY = """
version = "foreign"
flagship = "claude-opus-5-5"
max_attempts = 8

[intents.note]
chain = ["claude-haiku-5-5", "gpt-6-luna"]
reason = "one model at each of the two"
max_output_tokens = 64
effort = "low"
"""
RPM = 240
JOBS = 60
FAULTS = (
    *("--error-rate", "429=0.06", "--error-rate", "529=0.04", "--error-rate", "500=0.03"),
    *("--stream-fault", "truncate=0.06", "--stream-fault", "disconnect=0.04", "--stream-fault", "malformed=0.04"),
)
"""Together a quarter of the calls: at a half, the breakers are right to leave both providers alone most of the time."""
pytestmark = [
    pytest.mark.skipif(
        os.environ.get("WAYBILL_SLOW") != "1",
        reason="installs llmock and waits out its faults; `./run foreign` runs it",
    ),
    pytest.mark.timeout(400),
]
EXPLAINED = {"gave_up"}
"""Where a call fails we go to the other provider, not to the same one again: to the first it looks like giving up."""


@pytest.fixture(scope="module")
def program() -> Path:
    """Installed once for the checkout, outside its .venv."""
    return install(Path(os.environ.get("WAYBILL_STATE_DIR", ROOT / ".waybill")) / "llmock")


@pytest.fixture
def database(services: embedded.Services, ledger_template: str, request: pytest.FixtureRequest) -> str:
    """A ledger of the test's own."""
    name = f"foreign_{request.node.name.removeprefix('test_')[:40]}"
    return embedded.create_database(str(services.database_url), name, template=ledger_template)


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    """One intent, one model at each provider: llmock keeps one quota for an account, whatever the model."""
    path = tmp_path / "policy.toml"
    path.write_text(POLICY)
    return path


@pytest.fixture
def fleet_of(database: str, redis_url: str, policy: Path, tmp_path: Path) -> Any:
    """Starts a fleet whose providers are a given llmock."""

    def start(mock: Llmock) -> Any:
        bases = {"ANTHROPIC_BASE_URL": f"{mock.url}/anthropic", "OPENAI_BASE_URL": f"{mock.url}/v1"}
        env = {**bases, "WAYBILL_POLICY_FILE": str(policy)}
        return running_fleet(database, redis_url, mock.url, tmp_path, workers={"anthropic": 2, "openai": 1}, env=env)

    return start


def test_its_quota_is_used_and_not_crossed(
    program: Path, fleet_of: Any, database: str, redis_url: str, tmp_path: Path
) -> None:
    arguments = ["--rpm", str(RPM), "--latency-ms", "50"]
    with running(program, arguments, tmp_path / "llmock.log") as mock, fleet_of(mock), Client(database, redis_url) as c:
        jobs = [Job(intent="note", prompt=f"note {n}", priority="lo") for n in range(RPM + 40)]  # type: ignore[arg-type]
        outcomes = list(c.results(c.submit_many(jobs), timeout_s=120))
        asked, verdict = mock.requests(), mock.verdict()

    assert {outcome.state.value for outcome in outcomes} == {"succeeded"}
    assert Counter(request["status"] for request in asked)[429] == 0
    assert len(asked) == len(jobs), "a job was asked for more than once"
    assert verdict["findings"] == []


def test_its_faults_are_survived_and_its_verdict_is_clean(
    program: Path, fleet_of: Any, database: str, redis_url: str, tmp_path: Path
) -> None:
    arguments = [*FAULTS, "--latency-ms", "20", "--stream-chunk-delay-ms", "5"]
    with running(program, arguments, tmp_path / "llmock.log") as mock, fleet_of(mock), Client(database, redis_url) as c:
        jobs = [Job(intent="note", prompt=f"whole note {n}") for n in range(JOBS)]
        ids = c.submit_many(jobs)
        shown = _stream_many(c, JOBS)
        outcomes = list(c.results(ids, timeout_s=120))
        asked, verdict = mock.requests(), mock.verdict()

    states = Counter(outcome.state.value for outcome in outcomes)
    assert states["succeeded"] == len(jobs), [outcome.error for outcome in outcomes if outcome.error]
    assert sum(bool(request["fault"]) or request["status"] >= 400 for request in asked) > JOBS // 6, (
        "too few faults to matter"
    )
    _explain(verdict, asked, database)
    assert shown["ended"] + shown["broken"] + shown["failed"] == JOBS
    assert shown["ended"] > JOBS // 2


def _stream_many(client: Client, count: int) -> Counter[str]:
    """Streams, eight at a time, and how each ended for its reader."""
    ends: Counter[str] = Counter()
    numbers = iter(range(count))

    def read() -> None:
        for number in numbers:
            try:
                pieces = list(client.stream(intent="note", prompt=f"streamed note {number}"))
                ends["ended" if pieces else "empty"] += 1
            except StreamBroken:
                ends["broken"] += 1
            except JobError:
                ends["failed"] += 1

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    return ends


def _explain(verdict: dict[str, Any], asked: list[dict[str, Any]], database: str) -> None:
    """Every finding is a move to the other provider, or a damaged stream that the ledger calls damaged, never an answer."""
    by_number = {request["seq"]: request for request in asked}
    answers = _accepted_attempts(database)
    left = []
    for finding in verdict["findings"]:
        if finding["code"] in EXPLAINED:
            continue
        if finding["code"] in ("truncated_stream_accepted", "malformed_chunk_ignored"):
            request = by_number[finding["requests"][-1]]
            prompt = json.dumps(request["body"])
            provider = "anthropic" if "anthropic" in request["path"] else "openai"
            accepted = {p for text, p in answers if f'"{text}"' in prompt}
            if provider not in accepted:
                continue
            finding = {**finding, "request": request, "accepted": accepted}
        left.append(finding)
    assert left == []


def _accepted_attempts(database: str) -> set[tuple[str, str]]:
    """(prompt, provider) of every attempt whose answer became a job's result."""
    with psycopg.connect(database.replace("postgresql+psycopg", "postgresql")) as connection:
        rows = connection.execute(
            "select p.body::json ->> 'prompt', a.provider from attempts a join payloads p using (job_id)"
            " where a.state = 'succeeded'"
        ).fetchall()
    return {(str(prompt), str(provider)) for prompt, provider in rows}
