"""One real fleet for each file of tests that asks for it: its services, its sandbox, a client."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator

import pytest

from sandbox.testing import Running, running
from tests.fleet import RunningFleet, forget_health, redis_database, running_fleet
from waybill import Client, embedded

_numbers = itertools.count(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What is measured against a backlog or an outage takes minutes and an idle machine: WAYBILL_SLOW=1 runs it."""
    if os.environ.get("WAYBILL_SLOW") == "1":
        return
    for item in items:
        if item.path.name.startswith("test_oncall_"):
            item.add_marker(pytest.mark.skip(reason="takes minutes on an idle machine; set WAYBILL_SLOW=1"))


@pytest.fixture(scope="module")
def urls(services: embedded.Services, ledger_template: str) -> tuple[str, str]:
    """A ledger and a Redis database for this file."""
    database_url = embedded.create_database(
        str(services.database_url), f"fleet_{next(_numbers)}", template=ledger_template
    )
    return database_url, redis_database(services, "acceptance")


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Running]:
    """The provider."""
    with running() as provider:
        yield provider


@pytest.fixture(scope="module")
def fleet(urls: tuple[str, str], sandbox: Running, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningFleet]:
    """The fleet."""
    with running_fleet(*urls, sandbox.url, tmp_path_factory.mktemp("logs")) as programs:
        yield programs


@pytest.fixture
def client(urls: tuple[str, str], fleet: RunningFleet, sandbox: Running) -> Iterator[Client]:
    """A client; every lane is well before the test, the sandbox without faults after it."""
    forget_health(urls[1])
    with Client(*urls) as connected:
        yield connected
    sandbox.clear_faults()
    sandbox.latency("none")
