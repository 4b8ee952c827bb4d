"""One fleet for the file, at the beginning of an act for each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from tests.batchlane.stage import Stage, stage
from waybill import embedded


@pytest.fixture(scope="module")
def whole_stage(
    services: embedded.Services, ledger_template: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stage]:
    """The fleet."""
    database_url = embedded.create_database(str(services.database_url), "batchlane", template=ledger_template)
    redis_url = str(services.redis_url).rsplit("/", 1)[0] + "/0"
    with redis.Redis.from_url(redis_url) as connection:
        connection.flushdb()
    with stage((database_url, redis_url), tmp_path_factory.mktemp("batchlane")) as running:
        yield running


@pytest.fixture
def on(whole_stage: Stage) -> Stage:
    """The fleet with nothing to do and an empty bill."""
    whole_stage.begin()
    return whole_stage
