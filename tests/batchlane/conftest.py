"""One fleet for all, at the beginning of an act for each test; what takes more than seconds waits for WAYBILL_SLOW=1."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.batchlane.stage import Stage, stage
from tests.fleet import redis_database
from waybill import embedded

SLOW = os.environ.get("WAYBILL_SLOW") == "1"
QUICK_TESTS = (
    "test_jobs_with_a_day",
    "test_rows_that_expire",
    "test_a_job_that_runs_out_of_time",
    "test_a_batch_nobody_waits_for",
    "test_status_lists",
    "test_why_shows",
    "test_r32_expiry_errors_reordering",
    "test_deadlines_are_met",
    "test_times_are_read",
    "test_a_batch_is_one_observation",
    "test_an_empty_ledger",
)
"""In the short check; together about 40 s on an idle machine."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out what is not in the short check."""
    for item in items:
        if not SLOW and "batchlane" in item.path.parts and not item.name.startswith(QUICK_TESTS):
            item.add_marker(pytest.mark.skip(reason="the lane's other cases take minutes; set WAYBILL_SLOW=1"))


@pytest.fixture(scope="package")
def whole_stage(
    services: embedded.Services, ledger_template: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stage]:
    """The fleet."""
    database_url = embedded.create_database(str(services.database_url), "batchlane", template=ledger_template)
    redis_url = redis_database(services, "batchlane")
    with stage(
        (database_url, redis_url), tmp_path_factory.mktemp("batchlane"), max_rows=2500 if SLOW else 40
    ) as running:
        yield running


@pytest.fixture
def on(whole_stage: Stage) -> Stage:
    """The fleet with nothing to do and an empty bill."""
    if not whole_stage.fleet.alive("batch"):
        whole_stage.fleet.start("batch")
    whole_stage.begin()
    return whole_stage
