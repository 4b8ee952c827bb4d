"""RabbitMQ as the broker, where Debian's rabbitmq-server is installed. Redis stays: limits, breakers, streams and bells live there."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from sandbox.testing import Running, running
from tests.fleet import RunningFleet, running_fleet
from tests.infrastructure.servers import SLOW, Server, rabbitmq
from waybill import Client, Job
from waybill.contract import Priority
from waybill.names import provider_queue

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
