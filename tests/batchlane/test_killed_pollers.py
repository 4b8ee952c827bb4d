"""R32: pollers die at every step; no batch is lost, none is sent twice, every job has one result and every charge is booked once.

The last one has 5,000 jobs and eight deaths with WAYBILL_SLOW=1, 100 and one otherwise.
"""

from __future__ import annotations

import os
import random
import time
from decimal import Decimal
from pathlib import Path

import pytest

from tests.batchlane.stage import MODELS, Stage
from workers.batchlane.rows import CHUNK

POINTS = (
    "batch_before_gather",
    "batch_after_gather",
    "batch_before_create",
    "batch_after_create",
    "batch_after_sent",
    "batch_before_results",
    "batch_mid_results",
    "batch_before_end",
)
HOUR_S, DAY_S = 3600, 86400
SLOW = os.environ.get("WAYBILL_SLOW") == "1"


def restart(on: Stage, point: str | None) -> None:
    """Another poller in the place of the dead one; it dies at `point`."""
    if on.fleet.alive("batch"):
        on.fleet.kill("batch")
    on.fleet.start("batch", extra_env={} if point is None else {"WAYBILL_CRASH_AT": f"{point}:1"})


def die(on: Stage, point: str, timeout_s: float = 60) -> None:
    """Wait for the poller's death."""
    on.until(lambda: not on.fleet.alive("batch"), timeout_s, f"the death at {point}")


@pytest.mark.parametrize("point", POINTS)
def test_r32_a_poller_that_dies_on_the_way_there_loses_and_repeats_nothing(on: Stage, point: str) -> None:
    restart(on, point)
    # Results are settled by the chunk: only a batch with more rows than one has a middle.
    count = 2 * (CHUNK + 5) if point == "batch_mid_results" else 6
    on.submit(count)
    if POINTS.index(point) >= POINTS.index("batch_before_results"):
        on.until_sent(count)
        on.sandbox.advance(HOUR_S)
    die(on, point)
    restart(on, None)
    on.until_sent(count)
    on.sandbox.advance(HOUR_S)
    on.until_final()
    on.until_books_closed()

    assert on.states() == {"succeeded": count}
    on.check()
    assert on.sandbox.state()["batches"] == 2, "one batch for each provider, whatever happened"
    assert set(on.tiers()) == {"batch"}


def test_r32_an_answer_that_is_lost_does_not_make_a_second_batch(on: Stage) -> None:
    restart(on, None)
    on.sandbox.fault("reset", endpoint="batches", billed=True, times=3)
    on.submit(6)
    on.until_sent(6)
    on.sandbox.advance(HOUR_S)
    on.until_final()
    on.until_books_closed()

    assert on.states() == {"succeeded": 6}
    on.check()
    assert on.sandbox.bill()["requests"] == 6


def test_r32_a_batch_of_somebody_else_is_not_taken_for_ours(on: Stage) -> None:
    """Same account, same time, same number of rows, while ours was never created."""
    from anthropic import Anthropic

    restart(on, "batch_before_create")
    on.submit(3, models=MODELS[:1])
    die(on, "batch_before_create")
    with Anthropic(base_url=on.sandbox.url, api_key="sandbox-key", max_retries=0) as stranger:
        note = {"model": MODELS[0], "max_tokens": 50, "messages": [{"role": "user", "content": "Not ours."}]}
        stranger.messages.batches.create(
            requests=[{"custom_id": f"theirs-{n}", "params": note} for n in range(3)]  # type: ignore[typeddict-item]
        )
    restart(on, None)
    on.until_sent(3)
    on.sandbox.advance(HOUR_S)
    on.until(lambda: on.sandbox.state()["batches"] == 2, 60, "our own batch")
    on.until_sent(3)
    on.sandbox.advance(HOUR_S)
    on.until_final()
    on.until_books_closed()

    assert on.states() == {"succeeded": 3}
    charged = sum((row["cost_usd"] for row in on.attempts()), Decimal(0))
    ours = sum((Decimal(line["usd"]) for line in on.sandbox.log() if not line["job"].startswith("theirs-")), Decimal(0))
    assert abs(charged - ours) < Decimal("0.000001")


def test_r32_several_pollers_share_the_work_and_bill_once(on: Stage, tmp_path: Path) -> None:
    restart(on, None)
    program = on.fleet._programs["batch"]
    on.fleet._programs["batch-2"] = program
    on.fleet.start("batch-2")
    try:
        on.submit(120 if not SLOW else 1000)
        on.until_sent(len(on.ids), 60)
        on.sandbox.advance(HOUR_S)
        on.until_final(120)
        on.until_books_closed()
    finally:
        on.fleet.kill("batch-2")
        del on.fleet._programs["batch-2"]

    assert on.states() == {"succeeded": len(on.ids)}
    on.check()


@pytest.mark.timeout(1200)
def test_r32_expiry_errors_reordering_and_a_poller_killed_at_each_point(on: Stage) -> None:
    count = 5000 if SLOW else 100
    points = POINTS if SLOW else random.SystemRandom().sample(POINTS[:5], 1)
    on.sandbox.fault("batch_expired", endpoint="batch", probability=0.02)
    on.sandbox.fault("server_error", endpoint="batch", probability=0.02)
    on.sandbox.fault("overloaded", endpoint="batches", probability=0.1)
    on.sandbox.fault("max_tokens", endpoint="batch", probability=0.01)
    on.submit(count, model=None, models=(MODELS[0],), intent="extraction")
    waiting = [*points]
    restart(on, waiting.pop(0))
    end = time.monotonic() + (900 if SLOW else 150)
    while sum(on.states()[state] for state in ("succeeded", "failed", "dead")) < count:
        assert time.monotonic() < end, on.states()
        if not on.fleet.alive("batch"):
            restart(on, waiting.pop(0) if waiting else None)
        # The providers' day goes by in steps of an hour, at most a day for each round of what was not done.
        on.sandbox.advance(HOUR_S)
        time.sleep(1.0)
    restart(on, None)
    on.sandbox.advance(DAY_S)
    on.until_books_closed(120)

    assert on.states() == {"succeeded": count}
    on.check()
    tiers = on.tiers()
    # A row that failed three times in a row goes interactive; few do.
    assert tiers["batch"] > Decimal("0.98") * sum(tiers.values()), tiers
    assert not waiting, "a poller that was to die did not get there"
