"""Which queued jobs the ledger hands to the dispatcher: templates stay together, and nobody is passed over for ever."""

from __future__ import annotations

from waybill import AsyncClient, Job
from waybill.ledger import sharing, turns
from waybill.ledger.engine import Ledger


async def submit(client: AsyncClient, *systems: str | None) -> list[str]:
    """One job for each system text, in this order; ids grow with time, so each is handed over by itself."""
    jobs = [Job(intent="extraction", prompt=f"{n}", system=system, priority="lo") for n, system in enumerate(systems)]  # type: ignore[arg-type]
    await client.submit_many(jobs, ids=[f"01a00000-0000-7000-8000-{n:012d}" for n in range(len(jobs))])
    return [job.system or "" for job in jobs]


async def next_systems(ledger: Ledger, count: int) -> list[int]:
    """Numbers of the jobs that come next."""
    [line] = await ledger.fetch(turns.LINES, {"priority": "lo", "after_tenant": "", "after_line": ""})
    rows = await ledger.fetch(
        turns.NEXT,
        {"priority": "lo", "tenants": [line["tenant"]], "lines": [line["line"]], "counts": [count], "read": ["auto"]},
    )
    return [int(row["id"][-12:]) for row in rows]


async def test_jobs_of_one_template_leave_together_and_the_oldest_leads(redis_url: str, database_url: str) -> None:
    async with AsyncClient(database_url, redis_url) as client:
        await submit(client, "a", "b", None, "a", "b", "a", None)

        assert await next_systems(client.ledger, 2) == [0, 3]
        assert await next_systems(client.ledger, 5) == [0, 3, 5, 1, 2]
        assert sorted(await next_systems(client.ledger, 10)) == list(range(7))


async def test_two_dispatchers_that_ask_at_once_agree_on_who_is_first(redis_url: str, database_url: str) -> None:
    import asyncio

    async with AsyncClient(database_url, redis_url) as client:
        await submit(client, *["a"] * 20)
        ids = [f"01a00000-0000-7000-8000-{n:012d}" for n in range(20)]

        async def ask(mine: list[str]) -> list[str]:
            rows = await client.ledger.fetch(
                sharing.ASK,
                {"ids": mine, "keys": ["k"] * len(mine), "waits": [60.0] * len(mine), "ttl_s": 60, "most_bytes": 1000},
            )
            return [row["part"] for row in rows]

        one, other = await asyncio.gather(ask(ids[:10]), ask(ids[10:]))

        assert (one + other).count("first") == 1
        assert set(one + other) <= {"first", "waits", "unseen"}
