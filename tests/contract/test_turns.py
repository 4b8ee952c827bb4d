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


async def glance(ledger: Ledger) -> list[dict[str, object]]:
    """As the dispatcher asks for the quick class."""
    return [dict(row) for row in await ledger.fetch(turns.GLANCE, {"priority": "hi", "read": ["auto"]})]


async def test_a_glance_says_of_a_few_jobs_what_a_whole_look_says(redis_url: str, database_url: str) -> None:
    async with AsyncClient(database_url, redis_url) as client:
        for tenant, intent, model in (
            ("a", "extraction", None),
            ("b", "extraction", None),
            ("a", "auto", "gpt-6-luna"),
        ):
            await client.submit_many([Job(intent=intent, prompt=f"{n}", tenant=tenant, model=model) for n in range(3)])
        await client.submit(intent="extraction", prompt="of the other class", priority="lo")
        await client.ledger.fetch("insert into tenants (name, weight) values ('b', 7)")
        await client.ledger.fetch("insert into holds (kind, name, reason) values ('intent', 'auto', 'a test')")

        rows = await glance(client.ledger)

        lines = await client.ledger.fetch(turns.LINES, {"priority": "hi", "after_tenant": "", "after_line": ""})
        seen = {(row["tenant"], row["line"], row["weight"], row["run_state"], row["is_paused"]) for row in rows}
        assert seen == {
            (row["tenant"], row["line"], row["weight"], row["run_state"], row["is_paused"]) for row in lines
        }
        wanted = {
            "tenants": [row["tenant"] for row in lines],
            "lines": [row["line"] for row in lines],
            "counts": [20] * len(lines),
        }
        asked = await client.ledger.fetch(turns.NEXT, {"priority": "hi", "read": ["auto"], **wanted})
        told = {str(row["id"]): row for row in rows}
        clocks = ("slack_s", "due_s")
        assert len(asked) == len(rows) == 9
        for row in asked:
            assert {k: told[row["id"]][k] for k in row if k not in clocks} == {
                k: row[k] for k in row if k not in clocks
            }
        assert {row["total"] for row in rows} == {9}
        assert all(row["under_way"] is None for row in rows)


async def test_a_glance_leaves_it_at_a_count_when_there_are_more_than_a_few(redis_url: str, database_url: str) -> None:
    async with AsyncClient(database_url, redis_url) as client:
        [nothing] = await glance(client.ledger)
        assert (nothing["total"], nothing["id"]) == (0, None)

        ids = await client.submit_many([Job(intent="extraction", prompt=f"{n}") for n in range(turns.FEW + 1)])
        [many] = await glance(client.ledger)
        assert (many["total"], many["id"]) == (turns.FEW + 1, None)

        await client.ledger.fetch(
            "update jobs set state = 'routed', provider = 'openai', route = '[{}]' where id = any(%(ids)s::uuid[])",
            {"ids": ids[:2]},
        )
        few = await glance(client.ledger)
        assert [str(row["id"]) for row in few] == sorted(ids[2:])
        assert few[0]["under_way"] == {"openai": 2}
