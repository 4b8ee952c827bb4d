"""RabbitMQ as the broker, where Debian's rabbitmq-server is installed. Redis stays: limits, breakers, streams and bells live there."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery

from sandbox.testing import Running, running
from tests.fleet import RunningFleet, running_fleet
from tests.infrastructure.servers import SLOW, Server, rabbitmq
from waybill import Client, Job
from waybill.broker import celery_config
from waybill.contract import Priority
from waybill.names import EXECUTE_TASK, QUARANTINE_KEY, provider_queue

PROGRAM = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
pytestmark = [
    pytest.mark.skipif(not PROGRAM.exists(), reason="RabbitMQ is not installed (Debian package rabbitmq-server)"),
    *SLOW,
]


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[tuple[str, Server]]:
    folder = tmp_path / "rabbitmq"
    folder.mkdir()
    with rabbitmq(str(PROGRAM.resolve()), folder) as running_node:
        yield running_node


@pytest.fixture
def sandbox() -> Iterator[Running]:
    with running() as made:
        yield made


@pytest.fixture
def fleet(
    database_url: str, redis_url: str, sandbox: Running, broker: tuple[str, Server], tmp_path: Path
) -> Iterator[RunningFleet]:
    env = {"WAYBILL_BROKER_URL": broker[0]}
    with running_fleet(database_url, redis_url, sandbox.url, tmp_path, env=env) as made:
        yield made


def test_jobs_of_both_classes_go_through_rabbitmq_and_outlive_its_restart(
    fleet: RunningFleet, database_url: str, redis_url: str, broker: tuple[str, Server], sandbox: Running
) -> None:
    url, server = broker

    def jobs(what: str, count: int, priority: Priority) -> list[Job]:
        return [Job(intent="extraction", prompt=f"{what} {n}", priority=priority) for n in range(count)]

    with Client(database_url, redis_url, broker_url=url) as client:
        ids = client.submit_many(jobs("first, hi", 20, Priority.INTERACTIVE) + jobs("first, lo", 60, Priority.BATCH))
        assert all(outcome.result for outcome in client.results(ids, timeout_s=120))

        # Throttled: jobs are parked in the ledger, and control brings them back through the same broker.
        sandbox.fault("rate_limit", nth=[1, 2, 3], retry_after_s=1)
        parked = client.submit_many(jobs("throttled", 10, Priority.BATCH))
        assert all(outcome.result for outcome in client.results(parked, timeout_s=120))

        server.stop()
        alone = client.submit_many(
            jobs("nobody to ring", 10, Priority.INTERACTIVE) + jobs("nobody to ring", 10, Priority.BATCH)
        )
        server.start()
        assert all(outcome.result for outcome in client.results(alone, timeout_s=240))

    with redis.Redis.from_url(redis_url) as connection:
        queues = [provider_queue(name, klass) for name in ("anthropic", "openai") for klass in ("hi", Priority.BATCH)]
        assert not connection.exists("dispatch", "unacked", *queues), "a doorbell went through Redis"
    for name in ("dispatcher", "anthropic", "openai", "control"):
        assert fleet.alive(name), fleet.log(name)[-3000:]
        assert "Traceback" not in fleet.log(name)


def test_garbage_and_forged_commands_are_put_aside_here_too(
    fleet: RunningFleet, database_url: str, redis_url: str, broker: tuple[str, Server]
) -> None:
    task = {"task": EXECUTE_TASK, "id": str(uuid.uuid4())}
    job = str(uuid.uuid4())
    bodies: list[tuple[bytes, dict[str, Any], str]] = [
        (b"not json", task, "application/json"),
        (b"[" * 60_000, task, "application/json"),
        (b'"' + b"x" * 100_000 + b'"', task, "application/json"),
        (json.dumps([[[job]], {}, {}]).encode(), task, "application/x-python-serialize"),
        (json.dumps([[[job]], {}, {}]).encode(), {**task, "task": "celery.chord"}, "application/json"),
        (json.dumps([[[job]], {}, {}]).encode(), {**task, "compression": "zlib"}, "application/json"),
        (json.dumps([[["; drop table jobs"]], {}, {}]).encode(), task, "application/json"),
        (json.dumps([[[job]], {}, {"callbacks": [{"task": EXECUTE_TASK}]}]).encode(), task, "application/json"),
        (b'{"method": "shutdown"}', {}, "application/json"),
    ]
    workers = ("dispatcher", "anthropic", "openai", "batch")
    pids = {name: fleet.pid(name) for name in workers}
    app = Celery("forger", set_as_current=False)
    app.conf.update(celery_config(broker[0]))
    with app.connection_for_write() as connection, connection.channel() as channel:
        for body, headers, kind in bodies:
            message = channel.prepare_message(body, content_type=kind, content_encoding="utf-8", headers=headers)
            channel.basic_publish(message, exchange="waybill", routing_key="anthropic.hi")
    app.control.shutdown()
    with redis.Redis.from_url(redis_url) as connection:
        end = time.monotonic() + 60
        # A shutdown is put aside once by each of the workers.
        while (kept := connection.llen(QUARANTINE_KEY)) <= len(bodies) and time.monotonic() < end:
            time.sleep(0.05)
        entries = [json.loads(entry) for entry in connection.lrange(QUARANTINE_KEY, 0, -1)]
    answered = app.control.ping(timeout=30, limit=len(workers))
    app.close()

    assert kept > len(bodies), fleet.log("anthropic")[-3000:]
    assert sum(entry["queue"] == "anthropic.hi" for entry in entries) == len(bodies)
    assert "a command that changes a worker" in {entry["reason"] for entry in entries}
    assert len(answered) == len(workers), "who only asks is answered"
    with Client(database_url, redis_url, broker_url=broker[0]) as client:
        assert client.result(client.submit(intent="extraction", prompt="still there?"), timeout_s=60)
    assert {name: fleet.pid(name) for name in pids if fleet.alive(name)} == pids


def test_what_was_taken_and_not_acknowledged_is_delivered_again(
    fleet: RunningFleet, database_url: str, redis_url: str, broker: tuple[str, Server], sandbox: Running
) -> None:
    sandbox.latency("fixed:3s")
    with Client(database_url, redis_url, broker_url=broker[0]) as client:
        ids = client.submit_many(
            [Job(intent="extraction", prompt=f"slow {n}", priority=Priority.BATCH) for n in range(10)]
        )
        end = time.monotonic() + 60
        while not sandbox.bill()["requests"] and time.monotonic() < end:
            time.sleep(0.05)
        fleet.kill("anthropic")
        sandbox.latency("fixed:0s")
        fleet.start("anthropic")
        assert all(outcome.result for outcome in client.results(ids, timeout_s=240))
