"""R12: a worker is cut off from Postgres, Redis or the provider, in one direction or both, silently or with a reset."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.fault.harness import LEASE_S, Scene, check, until
from tests.fault.proxy import Proxy, before

Cut = Callable[[str], Proxy]


@pytest.fixture
def behind(scene: Scene) -> Iterator[Cut]:
    """Start the first worker anew so that it reaches one of its services through a proxy."""
    from contextlib import ExitStack

    services = {
        "WAYBILL_DATABASE_URL": scene.database_url,
        "WAYBILL_REDIS_URL": scene.redis_url,
        "ANTHROPIC_BASE_URL": scene.sandbox.url,
    }
    with ExitStack() as stack:

        def start(variable: str) -> Proxy:
            proxy, url = stack.enter_context(before(services[variable]))
            scene.fleet.kill("anthropic-1")
            scene.fleet.start("anthropic-1", extra_env={variable: url})
            return proxy

        yield start
        scene.fleet.kill("anthropic-1")


@pytest.mark.parametrize("directions", [("up", "down"), ("up",), ("down",)], ids="-".join)
def test_r12_a_worker_cut_off_from_the_ledger_past_its_lease_is_fenced(
    scene: Scene, behind: Cut, directions: tuple[str, ...]
) -> None:
    proxy = behind("WAYBILL_DATABASE_URL")
    scene.sandbox.latency("fixed:600ms")
    scene.submit(16, one_by_one=True)
    until(lambda: _running_on(scene, "anthropic-1") > 0, 20, "the first worker has jobs", scene.told)

    proxy.silence(*directions)
    until(
        lambda: any(row["state"] == "unknown" for row in scene.attempts()) or not _running_on(scene, "anthropic-1"),
        LEASE_S * 6,
        "its jobs are taken over",
        scene.told,
    )
    proxy.heal()
    scene.until_final()
    verdict = check(scene)

    verdict.assert_holds()
    assert verdict.states == {"succeeded": 16}


def test_r12_reset_connections_to_the_ledger_cost_no_job(scene: Scene, behind: Cut) -> None:
    proxy = behind("WAYBILL_DATABASE_URL")
    scene.sandbox.latency("fixed:300ms")
    for _ in range(5):
        scene.submit(4, one_by_one=True)
        proxy.cut()
    scene.until_final()
    verdict = check(scene)

    verdict.assert_holds()
    assert verdict.states == {"succeeded": 20}


@pytest.mark.parametrize("directions", [("up", "down"), ("down",)], ids="-".join)
def test_r12_a_worker_cut_off_from_redis_is_done_without(
    scene: Scene, behind: Cut, directions: tuple[str, ...]
) -> None:
    proxy = behind("WAYBILL_REDIS_URL")
    scene.sandbox.latency("fixed:300ms")
    scene.submit(8, one_by_one=True)

    proxy.silence(*directions)
    scene.submit(8, one_by_one=True)
    # Doorbells that the silent connection swallowed are rung again after LONG_UNHEARD_S, by control.
    scene.until_final()
    proxy.heal()
    scene.submit(4, one_by_one=True)
    scene.until_final()
    verdict = check(scene)

    verdict.assert_holds()
    assert verdict.states == {"succeeded": 20}


def test_r12_reset_connections_to_redis_do_not_end_the_worker(scene: Scene, behind: Cut) -> None:
    proxy = behind("WAYBILL_REDIS_URL")
    scene.sandbox.latency("fixed:300ms")
    for _ in range(4):
        scene.submit(4, one_by_one=True)
        proxy.cut()
    scene.until_final()
    verdict = check(scene)

    verdict.assert_holds()
    assert verdict.states == {"succeeded": 16}
    assert scene.fleet.alive("anthropic-1")


def test_r12_a_provider_out_of_reach_is_left_and_what_it_may_have_billed_is_booked(scene: Scene, behind: Cut) -> None:
    proxy = behind("ANTHROPIC_BASE_URL")
    scene.sandbox.latency("fixed:300ms")
    scene.submit(10, one_by_one=True)
    until(lambda: _running_on(scene, "anthropic-1") > 0, 20, "the first worker has jobs", scene.told)

    proxy.silence("down")
    scene.until_final()
    proxy.heal()
    verdict = check(scene)

    verdict.assert_holds()
    assert verdict.states == {"succeeded": 10}


def _running_on(scene: Scene, name: str) -> int:
    pid = f"-{scene.fleet.pid(name)}-"
    return sum(row["state"] == "started" and pid in row["worker"] for row in scene.attempts())
