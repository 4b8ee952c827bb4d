"""Shared fixtures: real Postgres and Valkey for the session, a fresh ledger and Redis database for each test that asks."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from waybill import embedded

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[embedded.Services]:
    """One embedded pair for the whole session."""
    with embedded.services(tmp_path_factory.mktemp("services")) as running:
        yield running


@pytest.fixture(scope="session")
def ledger_template(services: embedded.Services) -> str:
    """A migrated, empty ledger, to be copied: `create database ... template` costs a tenth of the migrations."""
    from waybill.cli.db import run_upgrade

    url = embedded.create_database(str(services.database_url), "ledger_template")
    run_upgrade(url)
    return "ledger_template"


@pytest.fixture
def database_url(services: embedded.Services, ledger_template: str) -> str:
    """An empty ledger of the test's own."""
    return embedded.create_database(str(services.database_url), f"test_{next(_numbers)}", template=ledger_template)


@pytest.fixture
def redis_url(services: embedded.Services) -> str:
    """An empty Redis database of the test's own (0 to 7, in turn; `redis_database` has the others)."""
    import redis

    url = str(services.redis_url).rsplit("/", 1)[0] + f"/{next(_numbers) % 8}"
    with redis.Redis.from_url(url) as connection:
        connection.flushdb()
    return url


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real documents beside the checkout."""
    from tests.fleet import DATA

    if not DATA.is_dir():
        pytest.skip("the real documents (../shared/data) are not beside this checkout")
    return DATA
