"""R1, R2, R3, R13, R26, R28, R30, R31: processes of the fleet are killed, frozen, replaced, told to stop."""

from __future__ import annotations

import signal
import time

import pytest

from tests.fault.harness import LEASE_S, Scene, check, until


def owners(scene: Scene, **wanted: object) -> set[int]:
    """Pids of the workers whose attempts have these values."""
    rows = [row for row in scene.attempts() if all(row[key] == value for key, value in wanted.items())]
    return {int(row["worker"].split("-")[-2]) for row in rows}


def test_r01_kill_minus_nine_of_a_whole_worker_loses_nothing(scene: Scene) -> None:
    scene.sandbox.latency("fixed:1s")
    scene.submit(60, one_by_one=True)
    scene.until_calls(3)

    scene.fleet.kill("anthropic-1")
    scene.until_final()
    verdict = check(scene)

    verdict.assert_holds()
    assert verdict.states == {"succeeded": 60}
    assert owners(scene, state="unknown") == {scene.fleet.pid("anthropic-1")}


def test_r01_the_jobs_of_a_killed_worker_run_again_within_a_lease_and_a_sweep(scene: Scene) -> None:
    scene.sandbox.latency("fixed:1s")
    scene.submit(12, one_by_one=True)
    scene.until_calls(4)

    scene.fleet.kill("anthropic-1")
    scene.until_final()

    check(scene).assert_holds()
    gaps = [
        (after["started_at"] - before["started_at"]).total_seconds()
        for before in scene.attempts()
        for after in scene.attempts(str(before["job_id"]))
        if before["state"] == "unknown" and after["number"] == before["number"] + 1
    ]
    assert gaps
    # A lease is renewed by thirds, a sweep is once a second; the rest is this machine's load. In sweeps: at most five.
    assert max(gaps) < LEASE_S + 5


@pytest.mark.parametrize(
    "point", ["before_claim", "after_claim", "before_call", "after_call", "before_commit", "after_commit"]
)
def test_r02_kill_of_a_worker_at_a_named_point(scene: Scene, point: str) -> None:
    passage = scene.rng.randint(1, 3)
    scene.fleet.kill("anthropic-1")
    scene.fleet.start("anthropic-1", extra_env={"WAYBILL_CRASH_AT": f"{point}:{passage}"})

    # On a slow machine a message holds many jobs: until the worker has had as many messages as it takes.
    end = time.monotonic() + 60
    while scene.fleet.alive("anthropic-1") and time.monotonic() < end:
        scene.submit(4, one_by_one=True)
    exit_code = scene.fleet.wait("anthropic-1", 30)
    scene.until_final()
    verdict = check(scene)

    assert exit_code == 137
    verdict.assert_holds()
    assert verdict.states == {"succeeded": len(scene.accepted)}
    if point in ("after_call", "before_commit"):
        assert verdict.unknown_usd > 0, "the call had been answered and billed, so its attempt must carry an estimate"


@pytest.mark.parametrize("point", ["before_route", "after_route"])
def test_r02_kill_of_the_dispatcher_at_a_named_point(scene: Scene, point: str) -> None:
    scene.fleet.kill("dispatcher")
    scene.fleet.start("dispatcher", extra_env={"WAYBILL_CRASH_AT": f"{point}:1"})

    scene.submit(20)
    exit_code = scene.fleet.wait("dispatcher", 30)
    scene.fleet.start("dispatcher")
    scene.until_final()
    verdict = check(scene)

    assert exit_code == 137
    verdict.assert_holds()
    assert verdict.states == {"succeeded": 20}
    lost = sum(row["losses"] for row in scene.jobs().values())  # 0, unless the machine stands still for a lease
    assert 20 <= len(scene.calls()) <= 20 + lost


@pytest.mark.parametrize("point", ["after_release", "after_rescue", "before_ring_again"])
def test_r02_kill_of_control_at_a_named_point(scene: Scene, point: str) -> None:
    scene.fleet.kill("control")
    scene.fleet.start("control", extra_env={"WAYBILL_CRASH_AT": f"{point}:1"})
    if point == "after_release":
        scene.sandbox.fault("rate_limit", times=3, retry_after_s=0.5)
    scene.sandbox.latency("fixed:500ms")

    if point == "before_ring_again":  # nobody takes what was rung, and then it is gone
        scene.fleet.kill("anthropic-1")
        scene.fleet.kill("anthropic-2")
    scene.submit(12, one_by_one=True)
    if point == "after_rescue":
        scene.until_calls(4)
        scene.fleet.kill("anthropic-1")
    if point == "before_ring_again":
        until(lambda: scene.states() == {"routed": 12}, 30, "all jobs are on their way")
        with scene.redis() as connection:
            connection.flushall()
    exit_code = scene.fleet.wait("control", 30)
    scene.fleet.start("control")
    scene.fleet.revive()
    scene.until_final()
    verdict = check(scene)

    assert exit_code == 137
    verdict.assert_holds()
    assert verdict.states == {"succeeded": len(scene.accepted)}


def test_r03_r26_a_job_that_kills_its_worker_is_put_aside_after_three_losses(scene: Scene) -> None:
    for name in ("anthropic-1", "anthropic-2"):
        scene.fleet.kill(name)
    [poison] = scene.submit()

    for _ in range(3):
        scene.fleet.start("anthropic-1", extra_env={"WAYBILL_CRASH_AT": "before_call:1"})
        scene.fleet.wait("anthropic-1", 30)
    until(lambda: scene.jobs()[poison]["state"] == "dead", 30, "the poison is a dead letter", scene.told)
    scene.fleet.start("anthropic-1", "anthropic-2")
    scene.submit(5)
    scene.until_final()
    verdict = check(scene)

    verdict.assert_holds()
    assert verdict.states == {"dead": 1, "succeeded": 5}
    row = scene.jobs()[poison]
    assert (row["losses"], row["error_code"]) == (3, "worker_lost")
    assert scene.calls(job=poison) == []


def test_r13_a_frozen_worker_that_wakes_after_its_lease_is_fenced(scene: Scene) -> None:
    scene.sandbox.latency("fixed:800ms")
    scene.submit(20, one_by_one=True)
    scene.until_calls(6)

    scene.fleet.signal("anthropic-1", signal.SIGSTOP)
    frozen = scene.fleet.pid("anthropic-1")
    until(lambda: owners(scene, state="unknown") == {frozen}, 20, "its jobs are taken over", scene.told)
    scene.fleet.signal("anthropic-1", signal.SIGCONT)
    scene.until_final()
    until(lambda: "lease.lost" in scene.fleet.log("anthropic-1"), 10, "the woken worker has learned it", scene.told)
    verdict = check(scene)

    verdict.assert_holds()
    assert verdict.states == {"succeeded": 20}
    late = [row for row in scene.attempts() if row["state"] in ("fenced", "unknown")]
    assert late
    assert all(row["cost_usd"] > 0 for row in late), "a late answer is not used, but it is paid"


def test_r28_a_worker_that_is_told_to_stop_hands_long_calls_back_without_using_an_attempt(scene: Scene) -> None:
    scene.sandbox.latency("fixed:4s")
    scene.submit(5)
    scene.submit(5)
    scene.until_calls(10)

    [stopped, _] = sorted(("anthropic-1", "anthropic-2"), key=lambda name: -_under_way(scene, name))
    codes = scene.fleet.stop(stopped, timeout_s=20)
    scene.sandbox.latency("fixed:30ms")
    scene.until_final()
    verdict = check(scene)

    assert codes == {stopped: 0}
    verdict.assert_holds()
    assert verdict.states == {"succeeded": 10}
    handed = [row for row in scene.attempts() if row["state"] == "cancelled"]
    assert handed
    for before in handed:
        after = scene.attempts(str(before["job_id"]))[before["number"]]
        gap_s = (after["started_at"] - before["ended_at"]).total_seconds()
        assert gap_s < LEASE_S, "it waited for the lease's end although it had been handed back"
    assert all(row["used"] == 1 and row["losses"] == 0 for row in scene.jobs().values())


def test_r28_calls_that_end_within_the_drain_are_finished(scene: Scene) -> None:
    scene.sandbox.latency("fixed:700ms")
    scene.submit(10)
    scene.until_calls(10)

    scene.fleet.stop("anthropic-1", "anthropic-2", timeout_s=20)
    scene.until_final()
    verdict = check(scene)

    verdict.assert_holds()
    assert [row["state"] for row in scene.attempts()] == ["succeeded"] * 10


def test_r28_a_stop_while_the_ledger_is_away_does_not_part_an_answer_from_its_cost(scene: Scene) -> None:
    scene.sandbox.latency("fixed:2s")
    scene.submit(8)
    scene.until_calls(8)

    with scene.service_down("postgres"):
        until(lambda: scene.sandbox.state()["in_flight"] == 0, 10, "all calls are answered")
        for name in ("anthropic-1", "anthropic-2"):
            scene.fleet.signal(name, signal.SIGTERM)
        time.sleep(2.5)  # the drain of 1 s has passed and every lease was told to end
    scene.until_final()
    scene.fleet.stop("anthropic-1", "anthropic-2")
    verdict = check(scene)

    verdict.assert_holds()
    assert [row["state"] for row in scene.attempts()] == ["succeeded"] * 8


def test_r30_two_controls_share_the_work(scene: Scene) -> None:
    scene.fleet.start("control-2")
    scene.sandbox.fault("rate_limit", times=10, retry_after_s=0.5)
    scene.sandbox.latency("fixed:500ms")
    scene.submit(30, one_by_one=True)
    scene.until_calls(1)

    scene.fleet.kill("anthropic-1")
    scene.until_final()
    scene.fleet.stop("control-2")
    verdict = check(scene)

    verdict.assert_holds()
    assert verdict.states == {"succeeded": 30}


def test_r30_work_goes_on_while_control_is_dead_and_what_was_lost_comes_back_with_it(scene: Scene) -> None:
    scene.sandbox.latency("fixed:500ms")
    scene.fleet.kill("control")
    scene.submit(20, one_by_one=True)
    scene.until_calls(4)

    scene.fleet.kill("anthropic-1")
    # Of those it had heard of some were running and some still routed: nobody rescues or rings again now.
    until(lambda: _others_are_done(scene, "anthropic-1"), 60, "the rest is done", scene.told)
    stranded = 20 - scene.states()["succeeded"]
    scene.fleet.start("control")
    scene.until_final()
    verdict = check(scene)

    assert stranded
    verdict.assert_holds()
    assert verdict.states == {"succeeded": 20}


def test_r31_a_worker_that_comes_back_under_the_same_name_is_not_taken_for_the_dead_one(scene: Scene) -> None:
    scene.sandbox.latency("fixed:1s")
    scene.submit(12, one_by_one=True)
    scene.until_calls(6)

    scene.fleet.kill("anthropic-1")
    scene.fleet.start("anthropic-1")
    scene.until_final()
    verdict = check(scene)

    verdict.assert_holds()
    lost = {row["worker"] for row in scene.attempts() if row["state"] == "unknown"}
    assert len(lost) == 1
    assert lost.isdisjoint({row["worker"] for row in scene.attempts() if row["state"] == "succeeded"} - lost)
    assert all(row["losses"] == 1 for row in scene.jobs().values() if row["losses"])


def _others_are_done(scene: Scene, dead: str) -> bool:
    """Whether no job of the act runs, except for those that the dead worker had."""
    pid = f"-{scene.fleet.pid(dead)}-"
    running = [row for row in scene.jobs().values() if row["state"] == "running"]
    return all(pid in row["lease_owner"] for row in running) and scene.sandbox.state()["in_flight"] == 0


def _under_way(scene: Scene, name: str) -> int:
    """How many calls a worker has made that have not ended."""
    pid = f"-{scene.fleet.pid(name)}-"
    return sum(row["state"] == "started" and pid in row["worker"] for row in scene.attempts())
