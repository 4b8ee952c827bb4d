"""A fleet on servers that are not the embedded pair: older Postgres, Redis itself, and both behind TLS with a CA of the test's own."""

from __future__ import annotations

import shutil
from pathlib import Path

import psycopg
import pytest
import redis

from sandbox.testing import running
from tests.fleet import running_fleet
from tests.infrastructure.servers import SLOW, Certificates, postgres, postgres_servers, redis_server, sentinels
from waybill import Client, Job
from waybill.cli.db import run_upgrade
from waybill.contract import Priority
from waybill.errors import ConfigError, LedgerUnavailable, ServiceUnavailable

REDIS = shutil.which("redis-server")
POSTGRES = postgres_servers()
pytestmark = SLOW
needs_redis = pytest.mark.skipif(REDIS is None, reason="Redis is not installed (Debian package redis-server)")
needs_postgres = pytest.mark.skipif(
    not POSTGRES, reason="no PostgreSQL but the embedded one (Debian package postgresql)"
)


def work(database_url: str, redis_url: str, logs: Path) -> str:
    """Jobs of both classes through a fleet: whole, streamed, and throttled ones. Returns what the fleet said."""
    with (
        running() as sandbox,
        running_fleet(database_url, redis_url, sandbox.url, logs) as fleet,
        Client(database_url, redis_url) as client,
    ):
        sandbox.fault("rate_limit", nth=[3, 4], retry_after_s=1)
        jobs = [
            Job(intent="extraction", prompt=f"{priority} {n}", priority=priority)
            for n in range(25)
            for priority in Priority
        ]
        outcomes = list(client.results(client.submit_many(jobs), timeout_s=180))
        assert all(outcome.result for outcome in outcomes)
        assert "".join(client.stream(intent="summarization", prompt="Summarize: streams work."))
        told = "".join(fleet.log(name) for name in ("dispatcher", "anthropic", "openai", "control"))
    assert "Traceback" not in told
    return told


@needs_postgres
@pytest.mark.parametrize("version", POSTGRES)
def test_a_fleet_works_on_postgres(version: str, redis_url: str, tmp_path: Path) -> None:
    folder = tmp_path / "pg"
    folder.mkdir()
    with postgres(POSTGRES[version], folder) as database_url:
        run_upgrade(database_url)
        work(database_url, redis_url, tmp_path)


@needs_redis
def test_a_fleet_works_on_redis(database_url: str, tmp_path: Path) -> None:
    folder = tmp_path / "redis"
    folder.mkdir()
    with redis_server(str(REDIS), folder) as redis_url:
        work(database_url, redis_url, tmp_path)


@needs_redis
def test_jobs_outlive_the_loss_of_the_master_that_sentinels_watch(database_url: str, tmp_path: Path) -> None:
    folder = tmp_path / "sentinels"
    folder.mkdir()
    with (
        sentinels(str(REDIS), folder) as watched,
        running() as sandbox,
        running_fleet(database_url, watched.url, sandbox.url, tmp_path) as fleet,
        Client(database_url, watched.url) as client,
    ):
        sandbox.latency("fixed:200ms")

        def jobs(what: str) -> list[Job]:
            return [Job(intent="extraction", prompt=f"{what} {n}", priority=Priority.BATCH) for n in range(40)]

        before = client.submit_many(jobs("before"))
        old, new = watched.master, watched.lose_master()
        after = client.submit_many(jobs("after"))
        outcomes = list(client.results([*before, *after], timeout_s=240))

        assert new != old
        assert all(outcome.result for outcome in outcomes)
        assert all(fleet.alive(name) for name in ("dispatcher", "anthropic", "openai", "control"))


@needs_postgres
@needs_redis
def test_a_fleet_works_with_tls_to_both_and_refuses_a_certificate_it_does_not_know(tmp_path: Path) -> None:
    for name in ("pg", "redis", "ca", "other-ca"):
        (tmp_path / name).mkdir()
    tls, other = Certificates(tmp_path / "ca"), Certificates(tmp_path / "other-ca")
    with (
        postgres(list(POSTGRES.values())[-1], tmp_path / "pg", tls) as database_url,
        redis_server(str(REDIS), tmp_path / "redis", tls) as redis_url,
    ):
        run_upgrade(database_url)
        work(database_url, redis_url, tmp_path)
        with psycopg.connect(database_url.replace("+psycopg", "")) as connection:
            row = connection.execute("select ssl, version from pg_stat_ssl where pid = pg_backend_pid()").fetchone()
        assert row is not None
        assert row[0] is True

        stranger = str(other.authority)
        with (
            Client(database_url.replace(str(tls.authority), stranger), redis_url) as client,
            pytest.raises((LedgerUnavailable, ServiceUnavailable, ConfigError)),
        ):
            client.submit(intent="extraction", prompt="not to be sent")
        with (
            redis.Redis.from_url(redis_url.replace(str(tls.authority), stranger)) as connection_,
            pytest.raises(redis.ConnectionError, match="certificate"),
        ):
            connection_.ping()
