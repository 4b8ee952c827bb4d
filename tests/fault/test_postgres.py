"""R7, R9: Postgres is stopped, killed, restarted, and drops everybody's connection."""

from __future__ import annotations

import signal
import time

import pytest

from tests.fault.harness import LEASE_S, Scene, check, until


@pytest.mark.parametrize(
    "number", [signal.SIGINT, signal.SIGQUIT, signal.SIGKILL], ids=["fast stop", "immediate stop", "kill -9"]
)
def test_r07_postgres_goes_away_and_comes_back_under_load(scene: Scene, number: signal.Signals) -> None:
    scene.sandbox.latency("fixed:1s")
    scene.submit(20)
    scene.until_calls(2)

    scene.kill_service("postgres", number)
    scene.submit(20, one_by_one=True)
    scene.until_final()
    verdict = check(scene)

    verdict.assert_holds()
    assert verdict.states == {"succeeded": 40}
    assert scene.fleet.revive() == []


def test_r07_a_ledger_that_is_away_longer_than_a_lease_costs_no_call_twice(scene: Scene) -> None:
    scene.sandbox.latency("fixed:3s")
    scene.submit(12)
    scene.until_calls(12)

    with scene.service_down("postgres"):
        time.sleep(LEASE_S * 2)
    scene.until_final()
    verdict = check(scene)

    verdict.assert_holds()
    assert len(scene.calls()) == 12
    assert all(row["losses"] == 0 for row in scene.jobs().values()), "its workers were alive all the time"


def test_r07_a_producer_gets_a_clear_error_while_the_ledger_is_away(scene: Scene) -> None:
    with scene.service_down("postgres"), pytest.raises(Exception, match="Postgres does not answer") as refused:
        scene.client.submit(intent="summarization", prompt="hello", tenant=scene.act)
    scene.submit(3)
    scene.until_final()
    verdict = check(scene)

    assert type(refused.value).__name__ == "LedgerUnavailable"
    verdict.assert_holds()


def test_r09_all_connections_dropped_again_and_again(scene: Scene) -> None:
    scene.sandbox.latency("fixed:300ms")
    scene.submit(20, one_by_one=True)

    for _ in range(6):
        assert scene.terminate_connections() > 0
        scene.submit(5, one_by_one=True)
        time.sleep(scene.rng.uniform(0.1, 0.5))
    scene.until_final()
    verdict = check(scene)

    verdict.assert_holds()
    assert verdict.states == {"succeeded": 50}
    assert all(row["losses"] == 0 for row in scene.jobs().values())


def test_r07_postgres_that_hangs_loses_nothing(scene: Scene) -> None:
    scene.sandbox.latency("fixed:1s")
    scene.submit(20)
    scene.until_calls(2)
    pids = _postgres_processes(scene)

    for pid in pids:
        _send(pid, signal.SIGSTOP)
    time.sleep(LEASE_S * 1.5)
    for pid in pids:
        _send(pid, signal.SIGCONT)
    scene.until_final()
    verdict = check(scene)

    verdict.assert_holds()
    assert verdict.states == {"succeeded": 20}
    until(lambda: scene.fleet.revive() == [], 1, "no process had ended")


def _postgres_processes(scene: Scene) -> list[int]:
    """The postmaster and all its children."""
    from pathlib import Path

    postmaster = scene.services.pids()["postgres"]
    children = Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split()
    return [postmaster, *map(int, children)]


def _send(pid: int, number: signal.Signals) -> None:
    import contextlib
    import os

    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
