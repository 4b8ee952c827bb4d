"""R4, R5, R6, R10, S1-S10: Redis is wiped, killed, frozen, full; messages come twice or never."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.fault.harness import Scene, check, until
from waybill import Client
from waybill.broker import Broker, dispatch_doorbells, execute_doorbells


@contextmanager
def again_and_again(act: object, pause_s: float) -> Iterator[None]:
    """Do something every `pause_s` in a thread for the length of the block."""
    stop = threading.Event()

    def repeat() -> None:
        while not stop.wait(pause_s):
            act()  # type: ignore[operator]

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def flush(scene: Scene) -> None:
    """FLUSHALL, whatever state Valkey is in."""
    with scene.redis() as connection:
        connection.flushall()


def test_r04_redis_is_wiped_under_load(scene: Scene) -> None:
    scene.sandbox.latency("fixed:300ms")
    pids = {name: scene.fleet.pid(name) for name in scene.fleet.names}

    with again_and_again(lambda: flush(scene), 1.0):
        for _ in range(8):
            scene.submit(5, one_by_one=True)
            time.sleep(scene.rng.uniform(0.1, 0.6))
    scene.until_final()
    verdict = check(scene)

    verdict.assert_holds()
    assert verdict.states == {"succeeded": 40}
    assert {name: scene.fleet.pid(name) for name in scene.fleet.names if scene.fleet.alive(name)} == pids


@pytest.mark.parametrize("away_s", [0.0, 3.0])
def test_r05_redis_is_killed_and_comes_back_empty(scene: Scene, away_s: float) -> None:
    scene.sandbox.latency("fixed:1s")
    pids = {name: scene.fleet.pid(name) for name in scene.fleet.names}
    scene.submit(20)
    scene.until_calls(2)

    with scene.service_down("valkey"):
        scene.forget_redis_files()
        scene.submit(10)
        time.sleep(away_s)
    scene.submit(10, one_by_one=True)
    scene.until_final()
    verdict = check(scene)

    verdict.assert_holds()
    assert verdict.states == {"succeeded": 40}
    assert {name: scene.fleet.pid(name) for name in scene.fleet.names if scene.fleet.alive(name)} == pids


def test_r05_a_frozen_redis_holds_nothing_up_for_good(scene: Scene) -> None:
    scene.sandbox.latency("fixed:300ms")
    scene.submit(10, one_by_one=True)

    scene.kill_service("valkey", signal.SIGSTOP)
    time.sleep(4)
    scene.kill_service("valkey", signal.SIGCONT)
    scene.submit(10, one_by_one=True)
    scene.until_final()
    verdict = check(scene)

    verdict.assert_holds()
    assert verdict.states == {"succeeded": 20}


def test_r05_streamed_answers_survive_the_loss_of_redis(scene: Scene) -> None:
    """Deltas are hints: without Redis nobody sees them, and the answer is in the ledger all the same."""
    scene.sandbox.latency("model:0.5")
    scene.submit(6, stream=True)
    scene.until_calls(6)

    with scene.service_down("valkey"):
        until(lambda: scene.sandbox.state()["in_flight"] == 0, 30, "all streams have ended")
    scene.until_final()
    verdict = check(scene)

    verdict.assert_holds()
    assert verdict.states == {"succeeded": 6}
    assert len(scene.calls()) == 6


def test_r06_a_full_redis_refuses_and_the_job_is_accepted_all_the_same(scene: Scene) -> None:
    with scene.redis() as connection:
        connection.config_set("maxmemory", 1)
        try:
            ids = scene.submit(5)
            refused = scene.states()["queued"]
        finally:
            connection.config_set("maxmemory", 0)
    scene.until_final()
    verdict = check(scene)

    assert len(ids) == refused == 5
    verdict.assert_holds()
    assert verdict.states == {"succeeded": 5}


def test_r10_every_message_three_times_shuffled_and_late_is_one_call_each(scene: Scene) -> None:
    scene.sandbox.latency("fixed:100ms")
    ids = scene.submit(20)
    copies = [bell for _ in range(3) for job in ids for bell in dispatch_doorbells([job])]
    copies += [
        bell
        for _ in range(3)
        for job in ids
        for bell in execute_doorbells([(job, "anthropic", "hi", "summarization", "claude-sonnet-5-5")])
    ]
    random.Random(scene.rng.random()).shuffle(copies)
    broker = Broker(scene.redis_url)

    for bell in copies:
        broker.ring([bell])
    scene.until_final()
    broker.ring(copies)
    until(lambda: _queues_are_empty(scene), 30, "the late copies were taken", scene.told)
    broker.close()
    verdict = check(scene)

    verdict.assert_holds()
    assert verdict.states == {"succeeded": 20}
    assert len(scene.calls()) == 20


def test_r02_a_producer_that_dies_between_its_commit_and_the_doorbell_has_lost_nothing(scene: Scene) -> None:
    with Client(scene.database_url, scene.redis_url, broker_url="redis://127.0.0.1:1/0") as mute:
        job_id = mute.submit(intent="summarization", prompt="never rung", tenant=scene.act)
    scene.accepted.append(job_id)

    scene.until_final()
    verdict = check(scene)

    verdict.assert_holds()
    assert verdict.states == {"succeeded": 1}


def _queues_are_empty(scene: Scene) -> bool:
    with scene.redis() as connection:
        return sum(connection.llen(name) for name in ("dispatch", "anthropic.hi", "anthropic.lo", "openai.hi")) == 0
