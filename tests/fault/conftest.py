"""One breakable pair of servers and one fleet for all fault tests; each test is an act of its own on it."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import pytest

from tests.fault.harness import Scene, scene_set
from waybill import embedded

LONG = ("test_partitions.py", "test_provider_faults.py", "test_quota.py", "test_workers.py")
"""Not in the short check: they wait out outages, and their bounds want an idle machine."""
SLOW = os.environ.get("WAYBILL_SLOW") == "1"
SEED = int(os.environ.get("WAYBILL_FAULT_SEED") or random.SystemRandom().randrange(1_000_000))


def pytest_report_header() -> str:
    """Shown once; the seed of a failing run replays it."""
    return f"fault tests: WAYBILL_FAULT_SEED={SEED}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of a test that runs the fleet with several values the seed picks one, so that all together stay below 3 minutes.

    WAYBILL_SLOW=1 runs them all; so does naming one.
    """
    if SLOW:
        return
    for item in items:
        if item.path.name in LONG:
            item.add_marker(pytest.mark.skip(reason="minutes of outages and throttling; set WAYBILL_SLOW=1"))
    kinds: dict[str, list[pytest.Function]] = {}
    for item in items:
        if isinstance(item, pytest.Function) and "scene" in item.fixturenames and hasattr(item, "callspec"):
            kinds.setdefault(item.nodeid.partition("[")[0], []).append(item)
    chosen = random.Random(SEED)
    left_out = {item for same in kinds.values() for item in same} - {chosen.choice(same) for same in kinds.values()}
    if left_out:
        config.hook.pytest_deselected(items=list(left_out))
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope="session")
def breakable(tmp_path_factory: pytest.TempPathFactory) -> Iterator[embedded.Services]:
    """Servers of our own: the other tests' servers are left in peace."""
    with embedded.services(tmp_path_factory.mktemp("breakable")) as running:
        yield running


@pytest.fixture(scope="session")
def fault_ledger(breakable: embedded.Services) -> str:
    """A migrated ledger on them."""
    from waybill.cli.db import run_upgrade

    url = embedded.create_database(str(breakable.database_url), "fault")
    run_upgrade(url)
    return url


@pytest.fixture(scope="session")
def whole_scene(
    breakable: embedded.Services, fault_ledger: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Scene]:
    """Two Anthropic workers, one OpenAI worker, a dispatcher and control over a sandbox."""
    with scene_set(breakable, fault_ledger, tmp_path_factory.mktemp("scene"), seed=SEED) as scene:
        yield scene


@pytest.fixture
def scene(whole_scene: Scene) -> Scene:
    """The shared scene at the beginning of an act."""
    whole_scene.begin()
    return whole_scene
