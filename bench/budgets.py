"""1,000 calls at once against a cap of 5 USD, and what reserving costs where everybody wants the same budget.

The fleet part: gateway, dispatcher and two workers whose calls cost about 0.08 USD each (a policy file with play prices), asked
over HTTP by a client that allows 64,000 tokens an answer. What counts is what the ledger says was spent. The same race with a
key that has no budget follows.

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

import aiohttp
import psycopg

from sandbox.testing import spawned
from tests.contract.budgeted import claimed, set_budget
from tests.fleet import ROOT, running_fleet
from waybill import embedded
from waybill.cli.db import run_upgrade
from waybill.ledger import budgets, keys
from waybill.ledger.engine import Ledger
from workers.till import Reserving, parameters

ROOMY = "*:rpm=100000000,itpm=100000000000,otpm=100000000000,tpm=100000000000"
CAP = Decimal(5)
MODEL = "claude-haiku-5-5"
PLAY_PRICES = """
[prices."claude-haiku-5-5"]
input = 2500
output = 25
cache_read = 250
cache_write = 3125
"""
"""About 40 prompt tokens make 0.10 USD; 64,000 tokens of answer would be 1.60 USD more."""
CONNECTIONS = 16


def request(number: int) -> dict[str, object]:
    """Alike and different; the client allows as much as an answer can have."""
    prompt = f"Invoice {number:05d}: 3 chairs at 20.00 each. Total 60.00. Give the total."
    return {"model": MODEL, "max_tokens": 64_000, "messages": [{"role": "user", "content": prompt}]}


async def race(url: str, secret: str, count: int) -> tuple[Counter[str], float]:
    """All at once. Returns how they ended, and the seconds until the last one had."""
    endings: Counter[str] = Counter()
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=300)
    async with aiohttp.ClientSession(url, connector=connector, timeout=timeout) as http:

        async def one(number: int) -> None:
            headers = {"x-api-key": secret, "anthropic-version": "2026-10-21"}
            async with http.post("/v1/messages", json=request(number), headers=headers) as answer:
                body = await answer.json()
                error = body.get("error", {}).get("type", "")
                endings[f"{answer.status} {error}".strip()] += 1

        began = time.monotonic()
        await asyncio.gather(*(one(number) for number in range(count)))
        return endings, time.monotonic() - began


async def make_key(database_url: str, tenant: str, cap: Decimal | None) -> str:
    """A key of a tenant, with a cap of its own."""
    made = keys.make_key()
    fields = {
        "id": made.id, "tenant": tenant, "name": "bench", "hash": made.hash, "hint": made.hint, "scopes": ["call"],
        "requests_per_minute": None, "concurrency": None, "expires_at": None,
    }  # fmt: skip
    ledger = Ledger(database_url)
    await ledger.fetch(keys.CREATE, fields)
    if cap is not None:
        await set_budget(ledger, str(cap), scope="key", subject=made.id)
    await ledger.close()
    return made.secret


def measure_fleet(services: embedded.Services, sandbox_url: str, count: int, folder: Path) -> dict[str, object]:
    """The race through gateway and fleet, with the key that has a cap first."""
    database_url, redis_url = str(services.database_url), str(services.redis_url)
    policy = folder / "play.toml"
    policy.write_text((ROOT / "policies" / "default.toml").read_text() + PLAY_PRICES)
    with (
        running_fleet(
            database_url, redis_url, sandbox_url, folder, env={"WAYBILL_POLICY_FILE": str(policy)},
            workers={"anthropic": 2}, gateway=True,
        ) as fleet,
        psycopg.connect(database_url.replace("+psycopg", ""), autocommit=True) as connection,
    ):  # fmt: skip
        capped = asyncio.run(make_key(database_url, "capped", CAP))
        free = asyncio.run(make_key(database_url, "free", None))
        endings, seconds = asyncio.run(race(fleet.gateway_url, capped, count))
        time.sleep(1)  # the last charges are added up
        row = connection.execute(
            "select (select sum(cost_usd) from attempts a join jobs j on j.id = a.job_id where j.tenant = 'capped'),"
            " b.spent_usd, b.reserved_usd, (select deadlocks from pg_stat_database where datname = current_database()),"
            " (select array_agg(share order by id) from budget_alerts) from budgets b"
        ).fetchone()
        assert row is not None
        free_endings, free_seconds = asyncio.run(race(fleet.gateway_url, free, count))
    spent, booked, reserved, deadlocks, alerts = row
    return {
        "reservations": count,
        "cap_usd": float(CAP),
        "spent_usd": float(spent),
        "booked_usd": float(booked),
        "reserved_after_usd": float(reserved),
        "answered": endings.get("200", 0),
        "refused_402_billing_error": endings.get("402 billing_error", 0),
        "answers_5xx": sum(n for name, n in endings.items() if name.startswith("5")),
        "all_endings": dict(endings),
        "deadlocks": deadlocks,
        "alerts": alerts,
        "seconds_capped": round(seconds, 2),
        "seconds_without_budget": round(free_seconds, 2),
        "endings_without_budget": dict(free_endings),
    }


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
