"""One real fleet with a gateway for all files of this folder, and the SDKs that users have."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import anthropic
import openai
import psycopg
import pytest

from sandbox.testing import Running, running
from tests.fleet import RunningFleet, brisk_batches, redis_database, running_fleet
from waybill import embedded

_numbers = itertools.count(1)


@pytest.fixture(scope="package")
def gateway_urls(services: embedded.Services, ledger_template: str) -> tuple[str, str]:
    """A ledger and a Redis database for this folder."""
    database_url = embedded.create_database(
        str(services.database_url), f"gateway_{next(_numbers)}", template=ledger_template
    )
    return database_url, redis_database(services, "gateway")


@pytest.fixture(scope="package")
def provider() -> Iterator[Running]:
    """The provider behind the fleet."""
    with running() as box:
        yield box


@pytest.fixture(scope="package")
def gateway_fleet(
    gateway_urls: tuple[str, str], provider: Running, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningFleet]:
    """The fleet; batches are done at once."""
    folder = tmp_path_factory.mktemp("gateway")
    env = brisk_batches(provider, folder)
    with running_fleet(*gateway_urls, provider.url, folder, gateway=True, env=env) as programs:
        yield programs


@pytest.fixture
def gateway(gateway_fleet: RunningFleet, provider: Running) -> Iterator[str]:
    """The gateway's address; after the test the sandbox has no faults."""
    yield gateway_fleet.gateway_url
    provider.clear_faults()
    provider.latency("none")


@pytest.fixture
def claude(gateway: str) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=gateway, api_key="any", max_retries=0, timeout=30) as client:
        yield client


@pytest.fixture
def gpt(gateway: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{gateway}/v1", api_key="any", max_retries=0, timeout=30) as client:
        yield client


class Ledger:
    """What the ledger says, for asserts."""

    def __init__(self, url: str) -> None:
        self._url = url.replace("postgresql+psycopg://", "postgresql://")

    def rows(self, sql: str, *params: Any) -> list[tuple[Any, ...]]:
        with psycopg.connect(self._url) as connection:
            return connection.execute(sql, params).fetchall()


@pytest.fixture
def ledger(gateway_urls: tuple[str, str]) -> Ledger:
    return Ledger(gateway_urls[0])
