"""R7, R9, seen from one process: what a connection pool does when its server goes away under it."""

from __future__ import annotations

import asyncio

import pytest

from waybill.errors import LedgerUnavailable
from waybill.ledger.engine import Ledger

SLEEP = "select pg_sleep(1)"
DROP_OTHERS = (
    "select pg_terminate_backend(pid) from pg_stat_activity"
    " where datname = current_database() and pid <> pg_backend_pid()"
)


async def test_r09_one_error_at_most_after_all_connections_were_dropped(database_url: str) -> None:
    ledger, other = Ledger(database_url), Ledger(database_url, pool_size=1)
    await asyncio.gather(*(ledger.fetch("select pg_sleep(0.2)") for _ in range(5)))

    await other.fetch(DROP_OTHERS)
    failures = 0
    for _ in range(6):
        try:
            await ledger.fetch("select 1")
        except LedgerUnavailable:
            failures += 1
    await ledger.close()
    await other.close()

    assert failures <= 1


async def test_r09_a_statement_under_way_when_its_connection_is_dropped_does_not_poison_the_pool(
    database_url: str,
) -> None:
    ledger, other = Ledger(database_url), Ledger(database_url, pool_size=1)
    under_way = [asyncio.create_task(ledger.fetch("select pg_sleep(5)")) for _ in range(5)]
    while len(await other.fetch("select 1 from pg_stat_activity where starts_with(query, 'select pg_sleep')")) < 5:
        await asyncio.sleep(0.02)

    await other.fetch(DROP_OTHERS)
    ended = await asyncio.gather(*under_way, return_exceptions=True)
    again = await ledger.fetch("select 1 as one")
    await ledger.close()
    await other.close()

    assert [type(one) for one in ended] == [LedgerUnavailable] * 5
    assert again[0]["one"] == 1


async def test_r07_a_pool_with_no_connection_left_says_later_and_not_that_there_is_a_bug(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger(database_url, pool_size=1)
    monkeypatch.setattr(ledger._pool, "wait_s", 0.2)

    asked = [asyncio.create_task(ledger.fetch(SLEEP)) for _ in range(8)]
    ended = await asyncio.gather(*asked, return_exceptions=True)
    await ledger.close()

    refused = [one for one in ended if isinstance(one, BaseException)]
    assert refused
    assert {type(one) for one in refused} == {LedgerUnavailable}


async def test_r08_a_standby_that_is_not_promoted_yet_is_waited_for(database_url: str) -> None:
    ledger = Ledger(database_url, pool_size=1)
    await ledger.fetch("select set_config('default_transaction_read_only', 'on', false)")

    with pytest.raises(LedgerUnavailable):
        await ledger.fetch("insert into runs (id, tenant, name, fingerprint) values (gen_random_uuid(), 'a', 'b', 'c')")
    await ledger.close()
