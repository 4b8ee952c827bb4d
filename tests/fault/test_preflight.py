"""R6, S8: services that would lose work silently, or are open to anybody, are refused before anything is served."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import redis

from tests.fault.harness import ROOT, until
from tests.fleet import clean_environment
from waybill import embedded
from waybill.cli.up import free_port
from waybill.embedded.binaries import find_valkey
from waybill.errors import ConfigError
from waybill.settings import Settings
from workers.preflight import check_services, ledger_problem, redis_problem

EVICTING = ["allkeys-lru", "allkeys-lfu", "allkeys-random", "volatile-lru", "volatile-ttl"]


@pytest.mark.parametrize("policy", EVICTING)
def test_r06_an_evicting_redis_is_no_broker(policy: str) -> None:
    problem = redis_problem(policy, "7.2.4", is_open=False, is_dev=False)

    assert problem is not None
    assert policy in problem
    assert "noeviction" in problem


def test_s08_a_redis_that_is_open_to_everybody_is_for_a_machine_of_ones_own() -> None:
    assert "requirepass" in str(redis_problem("noeviction", "9.1.0", is_open=True, is_dev=False))
    assert redis_problem("noeviction", "9.1.0", is_open=True, is_dev=True) is None
    assert redis_problem("noeviction", "9.1.0", is_open=False, is_dev=False) is None
    assert redis_problem(None, None, is_open=False, is_dev=False) is None
    assert "7.0 or newer" in str(redis_problem("noeviction", "6.2.14", is_open=False, is_dev=False))


def test_r07_a_ledger_that_forgets_commits_is_no_ledger() -> None:
    assert "synchronous_commit" in str(ledger_problem("off", "on"))
    assert "fsync" in str(ledger_problem("on", "off"))
    assert ledger_problem("on", "on") is None
    assert ledger_problem("local", "on") is None


@pytest.fixture
def evicting(redis_url: str) -> Iterator[str]:
    """A Redis with an evicting policy."""
    with redis.Redis.from_url(redis_url) as connection:
        connection.config_set("maxmemory-policy", "allkeys-lru")
        yield redis_url
        connection.config_set("maxmemory-policy", "noeviction")


def test_r06_a_worker_does_not_start_on_an_evicting_redis(database_url: str, evicting: str) -> None:
    env = {"WAYBILL_DATABASE_URL": database_url, "WAYBILL_REDIS_URL": evicting}
    ended = subprocess.run(
        [sys.executable, "-m", "waybill", "control"],
        env={**clean_environment(), **env},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert ended.returncode == 1
    assert ended.stderr.strip().splitlines()[-1].startswith("waybill: Redis runs with maxmemory-policy allkeys-lru")


def test_r07_a_role_with_synchronous_commit_off_is_refused(
    services: embedded.Services, database_url: str, redis_url: str
) -> None:
    plain = database_url.replace("+psycopg", "")
    name = plain.rsplit("/", 1)[1]
    with psycopg.connect(plain, autocommit=True) as connection:
        connection.execute(f'alter database "{name}" set synchronous_commit = off')

    with pytest.raises(ConfigError, match="synchronous_commit=off"):
        check_services(settings(database_url, redis_url))


def test_a_sound_pair_of_services_passes(database_url: str, redis_url: str) -> None:
    check_services(settings(database_url, redis_url))


def test_a_wrong_password_is_said_at_once_and_not_waited_for(database_url: str, redis_url: str) -> None:
    with pytest.raises(ConfigError, match="password"):
        check_services(settings(database_url, redis_url.replace("redis://:", "redis://:not")))


def test_s08_an_open_redis_is_refused_outside_development(database_url: str, tmp_path: Path) -> None:
    port = free_port()
    server = subprocess.Popen(
        [str(find_valkey()), "--port", str(port), "--bind", "127.0.0.1", "--save", ""],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
    )
    url = f"redis://127.0.0.1:{port}/0"
    try:
        until(lambda: _answers(url), 20, "the open server answers")
        with pytest.raises(ConfigError, match="without a login"):
            check_services(settings(database_url, url))
        check_services(settings(database_url, url, WAYBILL_DEV="1"))
    finally:
        server.terminate()
        server.wait(10)


def _answers(url: str) -> bool:
    try:
        with redis.Redis.from_url(url) as connection:
            return bool(connection.ping())
    except redis.RedisError:
        return False


def settings(database_url: str, redis_url: str, **more: str) -> Settings:
    """As a process would read them."""
    return Settings.from_env({"WAYBILL_DATABASE_URL": database_url, "WAYBILL_REDIS_URL": redis_url, **more})
