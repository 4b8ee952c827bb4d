"""The ledger's budgets do what policies.budgets.Account does, for whatever ends a call, and with many asking at once."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import pytest

from policies.budgets import Account
from tests.contract.budgeted import claimed, set_budget, settle
from waybill.contract import AttemptState, CostSource, JobState
from waybill.ledger import budgets, oncall, queries
from waybill.ledger.engine import Ledger
from workers.till import Denied, Granted, Reserving, Till

TENTH = Decimal("0.1")


@pytest.fixture
async def ledger(database_url: str) -> AsyncIterator[Ledger]:
    connected = Ledger(database_url, pool_size=10)
    yield connected
    await connected.close()


async def state(ledger: Ledger, budget: int) -> tuple[Decimal, Decimal]:
    """Spent and reserved, after everything that ended was added up."""
    while await ledger.fetch(budgets.FOLD):
        pass
    [row] = await ledger.fetch("select spent_usd, reserved_usd from budgets where id = %(id)s", {"id": budget})
    return row["spent_usd"], row["reserved_usd"]


def asks(rows: list[dict[str, Any]], usd: Decimal = TENTH) -> list[Reserving]:
    return [Reserving(row["id"], row["attempt"], usd) for row in rows]


async def test_reservations_and_ends_in_any_order_are_what_the_arithmetic_says(ledger: Ledger) -> None:
    rng, till = random.Random(7), Till(ledger)
    budget, account = await set_budget(ledger, "2"), Account(Decimal(2))
    under_way: list[tuple[dict[str, Any], Decimal]] = []
    rows = await claimed(ledger, 60)
    assert all(row["has_budget"] for row in rows)

    for row in rows:
        usd = Decimal(rng.randrange(1, 60)) / 100
        [verdict] = await till.reserve([Reserving(row["id"], row["attempt"], usd)])
        expected = account.reserve(usd)
        assert isinstance(verdict, Granted) == (expected is not None)
        if expected is not None:
            account = expected
            under_way.append((row, usd))
        if under_way and rng.random() < 0.6:
            ended, released = under_way.pop(rng.randrange(len(under_way)))
            spent = released * rng.randrange(0, 100) / 100
            await settle(ledger, [ended], spent)
            account = account.book(released=released, spent=spent)
            assert await state(ledger, budget) == (account.spent_usd, account.reserved_usd)


@pytest.mark.parametrize(
    ("end", "counts"),
    [
        ((JobState.SUCCEEDED, AttemptState.SUCCEEDED, CostSource.USAGE, "0.07"), "0.07"),
        ((JobState.FAILED, AttemptState.FAILED, CostSource.ESTIMATED, "0.5"), "0.5"),
        ((JobState.CANCELLED, AttemptState.CANCELLED, CostSource.ESTIMATED, "0.5"), "0.5"),
        ((JobState.FAILED, AttemptState.BROKEN, CostSource.USAGE, "0.02"), "0.02"),
        ((JobState.FAILED, AttemptState.THROTTLED, CostSource.NOTHING, "0"), "0"),
        ((JobState.ROUTED, AttemptState.RELEASED, CostSource.NOTHING, "0"), "0"),
        ((JobState.SUCCEEDED, AttemptState.SUCCEEDED, CostSource.UNPRICED, None), "0.5"),
    ],
)
async def test_every_end_of_a_call_is_booked_with_what_it_cost(ledger: Ledger, end: Any, counts: str) -> None:
    job, attempt, source, cost = end
    budget = await set_budget(ledger, "5")
    rows = await claimed(ledger, 1)
    await Till(ledger).reserve(asks(rows))

    await settle(ledger, rows, None if cost is None else Decimal(cost), state=job, attempt=attempt, source=source)

    assert await state(ledger, budget) == (Decimal(counts), 0)


async def test_a_lost_workers_call_counts_at_its_estimate_until_the_truth_comes(ledger: Ledger) -> None:
    budget = await set_budget(ledger, "5")
    rows = await claimed(ledger, 1)
    await Till(ledger).reserve(asks(rows))
    await ledger.fetch("update jobs set lease_until = now() - interval '1 minute' where state = 'running'")
    await ledger.fetch(queries.RESCUE, {"limit": 10, "max_losses": 3})
    lost = await state(ledger, budget)

    await settle(ledger, rows, Decimal("0.03"))  # the worker was only slow: its attempt is fenced, and paid

    assert lost == (Decimal("0.5"), 0)
    assert await state(ledger, budget) == (Decimal("0.03"), 0)


async def test_what_a_call_cost_above_its_reservation_counts_before_it_is_added_up(ledger: Ledger) -> None:
    await set_budget(ledger, "1")
    rows, till = await claimed(ledger, 3), Till(ledger)
    await till.reserve(asks(rows[:2]))

    await settle(ledger, rows[:1], Decimal("0.95"), state=JobState.FAILED, attempt=AttemptState.BROKEN)
    await settle(ledger, rows[1:2], Decimal("0.01"))  # below its reservation: given back when it is added up
    [before] = await till.reserve(asks(rows[2:], Decimal("0.04")))
    while await ledger.fetch(budgets.FOLD):
        pass
    [after] = await till.reserve(asks(rows[2:], Decimal("0.04")))

    assert isinstance(before, Denied)
    assert before.views[0].left_usd == 0
    assert isinstance(after, Granted)


async def test_a_claim_that_is_undone_gives_its_reservation_back(ledger: Ledger) -> None:
    budget = await set_budget(ledger, "5")
    rows = await claimed(ledger, 2)
    await Till(ledger).reserve(asks(rows))
    common = {"ids": [rows[0]["id"]], "tokens": [rows[0]["lease_token"]], "numbers": [1], "delays": [1.0]}
    await ledger.fetch(queries.PARK, common)
    other = {"ids": [rows[1]["id"]], "tokens": [rows[1]["lease_token"]], "numbers": [1], "delays": [1.0]}
    await ledger.fetch(oncall.HOLD_BACK, {**other, "reasons": ["test"], "code": "lane_held"})

    assert await state(ledger, budget) == (0, 0)


async def test_a_call_needs_room_in_all_its_budgets_and_takes_nothing_from_any_otherwise(ledger: Ledger) -> None:
    tenant = await set_budget(ledger, "5")
    key = await set_budget(ledger, "0.15", scope="key", subject="key_1")
    rows = await claimed(ledger, 2, key_id="key_1")

    verdicts = await Till(ledger).reserve(asks(rows))

    assert isinstance(verdicts[0], Granted)
    assert isinstance(verdicts[1], Denied)
    assert [view.whose for view in verdicts[1].views] == ["key"]
    assert (await state(ledger, tenant), await state(ledger, key)) == ((0, TENTH), (0, TENTH))


async def test_a_statement_sent_twice_reserves_once(ledger: Ledger) -> None:
    budget = await set_budget(ledger, "5")
    rows = await claimed(ledger, 3)

    first, again = await Till(ledger).reserve(asks(rows)), await Till(ledger).reserve(asks(rows))

    assert all(isinstance(verdict, Granted) for verdict in [*first, *again])
    assert await state(ledger, budget) == (0, 3 * TENTH)


async def test_a_new_period_begins_with_nothing_spent(ledger: Ledger) -> None:
    budget = await set_budget(ledger, "0.1", period="day")
    rows = await claimed(ledger, 2)
    till = Till(ledger)
    await till.reserve(asks(rows[:1]))
    await settle(ledger, rows[:1], TENTH)
    [before] = await till.reserve(asks(rows[1:]))
    await state(ledger, budget)
    await ledger.fetch("update budgets set resets_at = now() - interval '1 second'")

    [after] = await till.reserve(asks(rows[1:]))

    assert isinstance(before, Denied)
    assert isinstance(after, Granted)
    assert await state(ledger, budget) == (0, TENTH)
    [row] = await ledger.fetch("select resets_at > now() as later, alerted from budgets")
    assert row["later"]


async def test_a_budget_set_later_begins_with_what_the_ledger_knows(ledger: Ledger) -> None:
    rows = await claimed(ledger, 2)
    await settle(ledger, rows, Decimal("0.04"))

    budget = await set_budget(ledger, "5")

    assert await state(ledger, budget) == (Decimal("0.08"), 0)


async def test_each_share_is_alerted_once(ledger: Ledger) -> None:
    await set_budget(ledger, "1")
    till, told = Till(ledger), []
    for row in await claimed(ledger, 10):
        await till.reserve(asks([row]))
        await settle(ledger, [row], TENTH)
        await ledger.fetch(budgets.FOLD)
        told += [found["share"] for found in await ledger.fetch(budgets.ALERT)]

    assert told == [50, 80, 100]
    assert len(await ledger.fetch("select * from budget_alerts")) == 3


async def test_many_processes_at_once_never_pass_the_cap(database_url: str, ledger: Ledger) -> None:
    """As eight workers would: each with its own pool and till, all on the same tenant's and keys' budgets."""
    budget = await set_budget(ledger, "5")
    key = await set_budget(ledger, "3", scope="key", subject="key_1")
    pools = [Ledger(database_url, pool_size=2) for _ in range(8)]
    tills = [Till(pool) for pool in pools]
    rows = [row for key_id in ("key_1", None) for row in await claimed(ledger, 200, key_id=key_id)]
    random.Random(3).shuffle(rows)

    async def one(till: Till, row: dict[str, Any]) -> bool:
        [verdict] = await till.reserve(asks([row]))
        if isinstance(verdict, Granted):
            await settle(ledger, [row], TENTH)
            await ledger.fetch(budgets.FOLD)
        return isinstance(verdict, Granted)

    granted = await asyncio.gather(*(one(till, row) for till, row in zip(itertools.cycle(tills), rows, strict=False)))
    for pool in pools:
        await pool.close()

    spent, reserved = await state(ledger, budget)
    assert (sum(granted) * TENTH, reserved) == (spent, 0)
    assert Decimal("4.5") <= spent <= 5
    assert (await state(ledger, key))[0] <= 3
