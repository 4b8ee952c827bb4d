"""Jobs that wait for quota and stand in no line are found by control; the others are left alone."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest

from policies.limits import Need
from tests.contract.budgeted import claimed
from waybill.ledger import queries
from waybill.ledger.engine import Ledger
from waybill.settings import Settings
from workers.control import LINES_WITHIN_S, Control
from workers.limiter import Limiter, Wanted

PATROL_S = 120.0


@pytest.fixture
async def ledger(database_url: str) -> AsyncIterator[Ledger]:
    connected = Ledger(database_url)
    yield connected
    await connected.close()


@pytest.fixture
async def control(database_url: str, redis_url: str) -> AsyncIterator[Control]:
    made = Control(Settings.from_env({"WAYBILL_DATABASE_URL": database_url, "WAYBILL_REDIS_URL": redis_url}))
    yield made
    await made.close()


async def parked(ledger: Ledger, count: int) -> list[str]:
    """Jobs that were parked a while ago; the statement is sent twice, as after a lost answer."""
    rows = await claimed(ledger, count)
    about = {
        "ids": [row["id"] for row in rows],
        "tokens": [row["lease_token"] for row in rows],
        "numbers": [row["attempt"] for row in rows],
        "delays": [PATROL_S] * count,
    }
    first, again = await ledger.fetch(queries.PARK, about), await ledger.fetch(queries.PARK, about)
    assert {(row["id"], row["state"]) for row in again} == {(row["id"], row["state"]) for row in first}
    await ledger.fetch("update jobs set published_at = now() - interval '1 minute' returning id")
    return [row["id"] for row in first]


async def soon(ledger: Ledger) -> set[str]:
    """The jobs that ask again by themselves within moments."""
    end = datetime.now(UTC) + timedelta(seconds=LINES_WITHIN_S + 1)
    return {
        str(row["id"]) for row in await ledger.fetch("select id from jobs where not_before < %(end)s", {"end": end})
    }


async def test_a_job_whose_place_was_lost_asks_again(ledger: Ledger, control: Control, redis_url: str) -> None:
    in_line, lost = (ids := await parked(ledger, 5))[:3], ids[3:]
    limiter = Limiter(redis_url, {})
    lane = limiter.lane("anthropic", "a", "claude-haiku-5-5")
    await limiter.stand_in_line(lane, [Wanted(job_id, 1, Need(10, 10, 10)) for job_id in in_line], is_batch=True)

    await control.find_strays()
    await limiter.close()

    assert await soon(ledger) == set(lost)


async def test_who_stands_in_line_is_left_alone(ledger: Ledger, control: Control, redis_url: str) -> None:
    ids = await parked(ledger, 5)
    limiter = Limiter(redis_url, {})
    lane = limiter.lane("anthropic", "a", "claude-haiku-5-5")
    await limiter.stand_in_line(lane, [Wanted(job_id, 1, Need(10, 10, 10)) for job_id in ids], is_batch=True)

    await control.find_strays()
    await limiter.close()

    assert await soon(ledger) == set()


async def test_who_was_parked_a_moment_ago_may_be_on_its_way_into_the_line(ledger: Ledger, control: Control) -> None:
    await parked(ledger, 2)
    await ledger.fetch("update jobs set published_at = now() returning id")

    await control.find_strays()

    assert await soon(ledger) == set()
