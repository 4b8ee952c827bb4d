"""The limiter in a whole fleet: nothing over the limit, nothing wasted on waiting, and what happens when Redis freezes."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis

from sandbox.testing import Running, spawned
from tests.fault.harness import Scene, check
from tests.fleet import running_fleet
from waybill import Client, Job, embedded

FROZEN_S = 30.0 if os.environ.get("WAYBILL_SLOW") else 4.0
LIMITS = (
    "claude-haiku-5.5:rpm=600,itpm=60000,otpm=200000",
    "gpt-6-luna:rpm=600,tpm=200000",
)


@pytest.fixture
def urls(services: embedded.Services, database_url: str) -> tuple[str, str]:
    """A ledger of the test's own, and an empty Redis database for it."""
    url = str(services.redis_url).rsplit("/", 1)[0] + "/14"
    with redis.Redis.from_url(url) as connection:
        connection.flushdb()
    return database_url, url


@pytest.fixture
def tight() -> Iterator[Running]:
    """A sandbox with small buckets: ten seconds' worth."""
    arguments = [part for limit in LIMITS for part in ("--limit", limit)]
    with spawned("--burst", "10", "--latency", "fixed:50ms", *arguments) as sandbox:
        yield sandbox


def policy_with(folder: Path, limits: str) -> str:
    """A policy file: the shipped one with limits."""
    shipped = (Path(__file__).parent.parent.parent / "policies" / "default.toml").read_text()
    path = folder / "policy.toml"
    path.write_text(f"{shipped}\n{limits}\n")
    return str(path)


def haiku(count: int, **fields: Any) -> list[Job]:
    words = {"intent": "extraction", "model": "claude-haiku-5-5", "priority": "lo", "max_output_tokens": 300, **fields}
    return [Job(prompt=f"Note {number}: " + "pay the bill. " * 20, **words) for number in range(count)]


def statuses(sandbox: Running) -> dict[int, int]:
    found: dict[int, int] = {}
    for line in sandbox.log():
        found[line["status"]] = found.get(line["status"], 0) + 1
    return found


def ledger(database_url: str, sql: str) -> Any:
    with psycopg.connect(database_url.replace("+psycopg", "")) as connection:
        row = connection.execute(sql).fetchone()
    assert row is not None
    return row[0]


def test_a_backlog_waits_for_quota_without_a_refusal_and_without_an_attempt(
    urls: tuple[str, str], tight: Running, tmp_path: Path
) -> None:
    """A hundred calls may start at once and ten a second: the others wait, the last for 10 s."""
    env = {"WAYBILL_POLICY_FILE": policy_with(tmp_path, '[limits."*"]\nburst_s = 10')}
    with (
        running_fleet(*urls, tight.url, tmp_path, workers={"anthropic": 3, "openai": 1}, env=env) as fleet,
        Client(*urls) as client,
    ):
        began = time.monotonic()
        ids = client.submit_many(haiku(200))
        outcomes = list(client.results(ids, timeout_s=120))
        took = time.monotonic() - began
        log = "".join(fleet.log(name) for name in ("anthropic-1", "anthropic") if fleet.log_path(name).exists())

    assert all(outcome.result is not None for outcome in outcomes)
    assert statuses(tight) == {200: 200}, log[-2000:]
    assert ledger(urls[0], "select count(*) from attempts") == 200
    assert ledger(urls[0], "select max(attempt) from jobs") == 1
    # 600 a minute, full bucket 100, of which ten are kept for interactive work.
    assert took >= (200 - 100) / 10


def test_interactive_work_does_not_stand_behind_a_backlog(
    urls: tuple[str, str], tight: Running, tmp_path: Path
) -> None:
    env = {"WAYBILL_POLICY_FILE": policy_with(tmp_path, '[limits."*"]\nburst_s = 10')}
    with (
        running_fleet(*urls, tight.url, tmp_path, workers={"anthropic": 2}, env=env),
        Client(*urls) as client,
    ):
        backlog = client.submit_many(haiku(400))
        end = time.monotonic() + 60
        while ledger(urls[0], "select count(*) from jobs where state = 'parked'") < 100:
            assert time.monotonic() < end, "the backlog is not parked"
            time.sleep(0.1)
        (urgent,) = client.submit_many(haiku(1, priority="hi"))
        answer = client.result(urgent, timeout_s=60)
        waiting = ledger(urls[0], "select count(*) from jobs where state in ('parked', 'routed', 'running')")
        client.cancel(backlog)

    assert answer.attempts == 1
    assert waiting > 50  # the backlog still waits


def test_several_keys_are_accounts_with_limits_of_their_own(
    urls: tuple[str, str], tight: Running, tmp_path: Path
) -> None:
    """Each key has a full bucket of its own: 170 calls are answered at once by two, which needs 7 s with one."""
    env = {
        "WAYBILL_POLICY_FILE": policy_with(tmp_path, '[limits."*"]\nburst_s = 10'),
        "ANTHROPIC_API_KEY": "sandbox-a, sandbox-b",
    }
    with (
        running_fleet(*urls, tight.url, tmp_path, workers={"anthropic": 2}, env=env),
        Client(*urls) as client,
    ):
        outcomes = list(client.results(client.submit_many(haiku(170)), timeout_s=120))

    by_account: dict[str, int] = {}
    for line in tight.log():
        by_account[line["account"]] = by_account.get(line["account"], 0) + 1
    assert all(outcome.result is not None for outcome in outcomes)
    assert statuses(tight) == {200: 170}
    assert len(by_account) == 2
    assert min(by_account.values()) >= 60


def test_a_frozen_redis_stops_admission_and_nothing_hangs(scene: Scene) -> None:
    """With Valkey stopped no call starts; what was under way ends; afterwards everything goes on by itself."""
    scene.sandbox.latency("fixed:200ms")
    scene.submit(60)
    scene.until_calls(1)
    with scene.service_down("valkey", signal.SIGSTOP):
        time.sleep(2.5)  # what had been admitted before is answered
        calls = len(scene.calls())
        time.sleep(FROZEN_S)
        started = len(scene.calls()) - calls
        assert scene.sandbox.state()["in_flight"] == 0
        scene.kill_service("valkey", signal.SIGCONT)

    scene.until_final()
    verdict = check(scene)

    assert started == 0
    verdict.assert_holds()
    assert verdict.states == {"succeeded": 60}
