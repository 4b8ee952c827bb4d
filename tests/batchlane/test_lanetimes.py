"""What the ledger says about how long lanes take: the latest observations, a batch counting once."""

from __future__ import annotations

import os
import time

import psycopg

from policies.lanes import ALL_MODELS, RECENT
from waybill.contract import new_job_id
from waybill.ledger.engine import Ledger
from workers.lanetimes import read_times

Row = tuple[str, str, str, str, str, float, float]


def fill(database_url: str, rows: list[Row]) -> None:
    """Attempts of (provider, model, service, worker, state, begun seconds ago, seconds)."""
    with psycopg.connect(database_url.replace("+psycopg", ""), autocommit=True) as connection:
        job_id = new_job_id(time.time_ns() // 1_000_000, os.urandom(10))
        connection.execute(
            "insert into jobs (id, tenant, intent, priority, request_hash, payload_bytes) values (%s,'t','x','lo','-',1)",
            (job_id,),
        )
        for number, (provider, model, service, worker, state, ago_s, seconds) in enumerate(rows, start=1):
            connection.execute(
                "insert into attempts (job_id, number, provider, model, service, reason, state, worker, started_at, ended_at,"
                " cost_usd, cost_source, estimate_usd) values (%s, %s, %s, %s, %s, '-', %s, %s,"
                " now() - %s * interval '1 second', now() - %s * interval '1 second', 0, 'usage', 0)",
                (job_id, number, provider, model, service, state, worker, ago_s, ago_s - seconds),
            )


async def test_times_are_read_by_lane_and_for_all_models_of_a_provider(database_url: str) -> None:
    calls: list[Row] = [("openai", "gpt-6-luna", "interactive", "w", "succeeded", 100, 4)] * 3
    other: list[Row] = [("openai", "gpt-6.1-sol", "interactive", "w", "succeeded", 100, 8)]
    failed: list[Row] = [("openai", "gpt-6-luna", "interactive", "w", "failed", 100, 50)]
    fill(database_url, calls + other + failed)
    ledger = Ledger(database_url, pool_size=1)
    try:
        times = await read_times(ledger)
    finally:
        await ledger.close()

    luna, all_models = times["openai/gpt-6-luna/interactive"], times[f"openai/{ALL_MODELS}/interactive"]
    assert (luna.count, all_models.count) == (3, 4)
    assert luna.seconds[0] == luna.seconds[-1] == 4
    assert luna.answered == 0.75
    assert 7.9 < all_models.seconds[-1] <= 8


async def test_a_batch_is_one_observation_and_only_the_latest_count(database_url: str) -> None:
    rows: list[Row] = []
    for number in range(RECENT["batch"] + 5):
        slow = number >= RECENT["batch"]  # the older ones
        rows += [
            ("anthropic", model, "batch", f"batch:{number}", "succeeded", 40_000 + 100 * number, 9000 if slow else 600)
            for model in ("claude-haiku-5-5", "claude-opus-5-5")
            for _ in range(3)
        ]
    fill(database_url, rows)
    ledger = Ledger(database_url, pool_size=1)
    try:
        times = await read_times(ledger)
    finally:
        await ledger.close()

    pool = times[f"anthropic/{ALL_MODELS}/batch"]
    assert pool.count == RECENT["batch"]
    assert pool.seconds[0] == pool.seconds[-1] == 600


async def test_an_empty_ledger_knows_no_times(database_url: str) -> None:
    ledger = Ledger(database_url, pool_size=1)
    try:
        assert await read_times(ledger) == {}
    finally:
        await ledger.close()
