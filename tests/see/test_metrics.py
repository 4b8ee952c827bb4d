"""The exporter tells what the ledger says, in the names of the contract, whoever asks and however often."""

from __future__ import annotations

import asyncio
import re
from decimal import Decimal

import pytest

from tests.fleet import ROOT
from tests.see.conftest import Bench
from tests.see.promrules import Vector, read
from waybill import metrics
from waybill.contract import AttemptState, CostSource, JobState
from waybill.ledger import tallies
from waybill.metrics import Metric
from workers import telemetry


def value(look: dict[str, Vector], metric: Metric, **labels: str) -> float:
    """Sum of the series that have these labels."""
    return sum(v for k, v in look.get(metric.name, {}).items() if set(labels.items()) <= set(k))


async def test_money_calls_and_tokens_are_those_of_the_ledger(bench: Bench) -> None:
    await bench.settle(await bench.claimed())
    await bench.settle(
        await bench.claimed(intent="summarization"), cost_usd=Decimal("0.002"), flagship_usd=Decimal("0.03")
    )
    job = await bench.claimed()
    await bench.lose_worker(job[0])

    look = read(await bench.look())

    assert value(look, metrics.SPEND) == pytest.approx(0.001 + 0.002 + 0.02), "the lost call is booked at its estimate"
    assert value(look, metrics.SPEND, intent="extraction", provider="anthropic") == pytest.approx(0.021)
    assert value(look, metrics.BASELINE) == pytest.approx(0.04)
    assert value(look, metrics.CALLS, outcome="succeeded") == 2
    assert value(look, metrics.CALLS, outcome="unknown") == 1
    assert value(look, metrics.ESTIMATED) == 1
    assert value(look, metrics.LEASES) == 1
    assert value(look, metrics.TOKENS, kind="input") == 200
    assert value(look, metrics.FINISHED, state="succeeded") == 2
    assert value(look, metrics.JOBS, state="routed") == 1
    assert look["waybill_job_end_to_end_seconds_count"][
        frozenset({("intent", "extraction"), ("priority", "hi")})
    ] == 1  # fmt: skip
    assert value(look, metrics.SWEEPER, duty="rescue") == 0, "the duty was called by the test, not by control"


async def test_sums_stay_the_same_when_hours_are_closed_and_late_attempts_end(bench: Bench) -> None:
    for _ in range(3):
        await bench.settle(await bench.claimed())
    late = await bench.claimed()
    before = read(await bench.look())
    for table, column in (("attempts", "started_at"), ("jobs", "submitted_at"), ("jobs", "finished_at")):
        await bench.ledger.fetch(f"update {table} set {column} = {column} - interval '3 days'")  # noqa: S608  # constants
    await bench.ledger.fetch("update tally_marks set upto = upto - interval '4 days'")

    closed = read(await bench.look())
    rows = await bench.ledger.fetch("select sum(calls) as calls, sum(usd) as usd from attempt_tallies")
    assert (rows[0]["calls"], rows[0]["usd"]) == (3, Decimal("0.003"))
    for metric in (metrics.SPEND, metrics.BASELINE, metrics.CALLS, metrics.FINISHED, metrics.TOKENS):
        assert value(closed, metric) == pytest.approx(value(before, metric)), metric.name

    await bench.settle(late)
    ended = read(await bench.look())
    assert value(ended, metrics.SPEND) == pytest.approx(0.004)
    again = read(await bench.look())
    assert value(again, metrics.SPEND) == pytest.approx(0.004)


async def test_two_exporters_that_close_hours_at_once_count_nothing_twice(bench: Bench) -> None:
    for _ in range(5):
        await bench.settle(await bench.claimed())
    await bench.ledger.fetch("update attempts set started_at = started_at - interval '30 hours'")

    await asyncio.gather(*(bench.ledger.fetch(tallies.CLOSE_ATTEMPTS) for _ in range(5)))

    rows = await bench.ledger.fetch("select sum(calls) as calls from attempt_tallies")
    assert rows[0]["calls"] == 5


async def test_a_counter_never_goes_down_when_an_estimate_turns_out_lower(bench: Bench) -> None:
    job_id, token, number = await bench.claimed()
    await bench.lose_worker(job_id)
    first = read(await bench.look())
    assert value(first, metrics.SPEND) == pytest.approx(0.02)

    await bench.settle((job_id, token, number), cost_usd=Decimal("0.001"))
    second = read(await bench.look())

    assert value(second, metrics.SPEND) == pytest.approx(0.02)
    assert value(second, metrics.FENCED) == 1


async def test_events_of_all_processes_come_together_and_survive_an_absent_redis(bench: Bench) -> None:
    telemetry.emit("jobs.released", jobs=4)
    telemetry.emit(
        "job.rerouted", job="j", attempt=1, outcome="fallback", code="overloaded", lane="anthropic/a/x", to="openai/b/x"
    )
    from redis.asyncio import Redis

    nowhere: Redis = Redis.from_url("redis://127.0.0.1:1/0")
    await telemetry.flush(nowhere)
    await nowhere.aclose()

    await telemetry.flush(bench.redis)
    telemetry.emit("jobs.released", jobs=2)
    await telemetry.flush(bench.redis)

    look = read(await bench.look())
    assert value(look, metrics.EVENTS, event="jobs.released") == 6
    assert look[metrics.REROUTES.name] == {frozenset({("from", "a"), ("to", "b"), ("reason", "overloaded")}): 1}


async def test_a_dead_redis_is_said_and_the_ledgers_metrics_go_on(bench: Bench, database_url: str) -> None:
    from redis.asyncio import Redis

    await bench.settle(await bench.claimed())
    bench.exporter._redis = Redis.from_url("redis://127.0.0.1:1/0")

    look = read(await bench.exporter.look())
    await bench.exporter._redis.aclose()

    assert value(look, metrics.SERVICE_UP, service="redis") == 0
    assert value(look, metrics.SERVICE_UP, service="ledger") == 1
    assert value(look, metrics.SPEND) == pytest.approx(0.001)


async def test_the_ledger_gap_is_ours_minus_the_providers_bill(bench: Bench) -> None:
    await bench.settle(await bench.claimed())
    await bench.ledger.fetch(
        tallies.NOTE_BILL.replace("%(day)s", "(now() at time zone 'UTC')::date"),
        {"provider": "anthropic", "usd": Decimal("0.0025")},
    )

    look = read(await bench.look())

    assert value(look, metrics.LEDGER_GAP, provider="anthropic") == pytest.approx(-0.0015)


async def test_every_series_is_of_the_contract_and_no_label_is_free_text(bench: Bench) -> None:
    await bench.settle(
        await bench.claimed(tenant="CANARY-TENANT"), state=JobState.FAILED, outcome="give_up",
        attempt_state=AttemptState.UNKNOWN, error_code="timeout", error="CANARY-ERROR", cost_source=CostSource.ESTIMATED,
    )  # fmt: skip
    text = await bench.look()

    assert "CANARY" not in text
    known = {metric.name for metric in metrics.ALL}
    seen = {re.sub(r"_(bucket|sum|count)$", "", name) if "end_to_end" in name else name for name in read(text)}
    assert seen <= known


def test_the_documented_table_is_the_contract() -> None:
    documented = re.findall(
        r"^\| `(waybill_\w+)` \| (\w+) \| (.*?) \| (.*?) \|$", (ROOT / "docs/metrics.md").read_text(), re.MULTILINE
    )

    assert documented == [(m.name, m.kind, ", ".join(m.labels) or "-", m.help) for m in metrics.ALL]
