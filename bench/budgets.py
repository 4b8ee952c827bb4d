"""1,000 calls at once against a cap of 5 USD, and what reserving costs where everybody wants the same budget.

The fleet part: a real fleet whose calls cost about 0.10 USD each (a policy file with play prices), asked by a client that
allows 64,000 tokens an answer. What counts is what the ledger says was spent. The same number of jobs of a tenant without a
budget goes before it: the ratio of both times is what the budget costs (most of the jobs are turned down, so it can be < 1).

The lock part: 16 connections reserve and settle one call at a time, first each in a budget of its own, then all in the same.
Milliseconds are this machine's; take the ratio.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg

from sandbox.testing import spawned
from tests.contract.budgeted import claimed, set_budget
from tests.fleet import ROOT, running_fleet
from waybill import Client, Job, embedded
from waybill.cli.db import run_upgrade
from waybill.ledger import budgets
from waybill.ledger.engine import Ledger
from workers.till import Reserving, parameters

ROOMY = "*:rpm=100000000,itpm=100000000000,otpm=100000000000,tpm=100000000000"
CAP = Decimal(5)
PLAY_PRICES = """
[prices."claude-haiku-5-5"]
input = 2500
output = 25
cache_read = 250
cache_write = 3125
"""
"""About 40 prompt tokens make 0.10 USD; 64,000 tokens of answer would be 1.60 USD more."""
CONNECTIONS = 16


def jobs(count: int, tenant: str) -> list[Job]:
    """Alike and different."""
    return [
        Job(
            intent="extraction",
            model="claude-haiku-5-5",
            max_output_tokens=64_000,
            tenant=tenant,
            prompt=f"Invoice {number:05d}: 3 chairs at 20.00 each. Total 60.00. Give the total.",
        )
        for number in range(count)
    ]


def measure_fleet(services: embedded.Services, sandbox_url: str, count: int, folder: Path) -> dict[str, object]:
    """The race through a real fleet."""
    database_url, redis_url = str(services.database_url), str(services.redis_url)
    policy = folder / "play.toml"
    policy.write_text((ROOT / "policies" / "default.toml").read_text() + PLAY_PRICES)
    with (
        running_fleet(
            database_url, redis_url, sandbox_url, folder, env={"WAYBILL_POLICY_FILE": str(policy)},
            workers={"anthropic": 2},
        ),
        Client(database_url, redis_url) as client,
        psycopg.connect(database_url.replace("+psycopg", ""), autocommit=True) as connection,
    ):  # fmt: skip
        seconds: dict[str, float] = {}
        endings: Counter[str] = Counter()
        for tenant in ("free", "capped"):
            if tenant == "capped":
                asyncio.run(_budget(database_url))
            began = time.monotonic()
            ids = client.submit_many(jobs(count, tenant))
            outcomes = list(client.results(ids, timeout_s=600))
            seconds[tenant] = time.monotonic() - began
            if tenant == "capped":
                endings = Counter("answered" if o.error is None else o.error.code for o in outcomes)
        time.sleep(1)  # the last charges are added up
        row = connection.execute(
            "select (select sum(cost_usd) from attempts a join jobs j on j.id = a.job_id where j.tenant = 'capped'),"
            " b.spent_usd, b.reserved_usd, (select deadlocks from pg_stat_database where datname = current_database()),"
            " (select array_agg(share order by id) from budget_alerts) from budgets b where b.subject = 'capped'"
        ).fetchone()
        assert row is not None
    spent, booked, reserved, deadlocks, alerts = row
    return {
        "reservations": count,
        "cap_usd": float(CAP),
        "spent_usd": float(spent),
        "booked_usd": float(booked),
        "reserved_after_usd": float(reserved),
        "answered": endings.pop("answered", 0),
        "refused_budget_exhausted": endings.pop("budget_exhausted", 0),
        "other_failures": sum(endings.values()),
        "deadlocks": deadlocks,
        "alerts": alerts,
        "seconds_capped": round(seconds["capped"], 2),
        "seconds_without_budget": round(seconds["free"], 2),
    }


async def _budget(database_url: str) -> None:
    ledger = Ledger(database_url)
    await set_budget(ledger, str(CAP), subject="capped")
    await ledger.close()


async def measure_lock(database_url: str, each: int) -> dict[str, object]:
    """Reserving one by one, without the worker's till that puts many into one statement."""
    pools = [Ledger(database_url, pool_size=1) for _ in range(CONNECTIONS)]
    figures: dict[str, object] = {}
    medians: dict[str, float] = {}
    for kind in ("own", "same"):
        tenants = [f"{kind}-{number if kind == 'own' else 0}" for number in range(CONNECTIONS)]
        for tenant in dict.fromkeys(tenants):
            await set_budget(pools[0], "1000000", subject=tenant)
        rows = [await claimed(pools[0], each, tenant=tenant) for tenant in tenants]
        took: list[float] = []

        async def reserve(pool: Ledger, mine: Sequence[dict[str, Any]], took: list[float] = took) -> None:
            for row in mine:
                began = time.perf_counter()
                found = await pool.fetch(
                    budgets.RESERVE, parameters([Reserving(row["id"], row["attempt"], Decimal("0.1"))])
                )
                took.append((time.perf_counter() - began) * 1000)
                assert found[0]["granted"]

        began = time.perf_counter()
        await asyncio.gather(*(reserve(pool, mine) for pool, mine in zip(pools, rows, strict=True)))
        wall = time.perf_counter() - began
        took.sort()
        medians[kind] = took[len(took) // 2]
        figures |= {
            f"lock_{kind}_budget_per_s": round(len(took) / wall),
            f"lock_{kind}_budget_p50_ms": round(medians[kind], 2),
            f"lock_{kind}_budget_p99_ms": round(took[int(len(took) * 0.99)], 2),
        }
    for pool in pools:
        await pool.close()
    return figures | {"lock_p50_ratio": round(medians["same"] / medians["own"], 2)}


def main(arguments: Sequence[str]) -> None:
    """Measure both and print."""
    parser = argparse.ArgumentParser(prog="./run bench budgets", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--each", type=int, default=100, help="reservations of each connection in the lock part")
    options = parser.parse_args(arguments)
    with (
        tempfile.TemporaryDirectory() as state,
        embedded.services(Path(state)) as services,
        spawned("--latency", "fixed:50ms", "--limit", ROOMY) as sandbox,
    ):
        run_upgrade(str(services.database_url))
        figures = measure_fleet(services, sandbox.url, options.jobs, Path(state))
        figures |= asyncio.run(measure_lock(str(services.database_url), options.each))
    if options.json:
        print(json.dumps(figures))
        return
    for key, value in figures.items():
        print(f"{key:>26}  {value}")
