"""Reserves in budgets for many attempts at once: while one statement is under way, those that come wait for the next.

So a process asks one budget once at a time, however many calls it begins, and the lock on the budget's row is waited for by
other processes only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

import psycopg

from policies.budgets import AtCap, View
from waybill.errors import LedgerUnavailable
from waybill.ledger import budgets
from waybill.ledger.engine import Ledger, Row

MOST_AT_ONCE = 500


@dataclass(frozen=True, slots=True)
class Reserving:
    """An attempt and the amount it asks for."""

    job_id: str
    number: int
    usd: Decimal


@dataclass(frozen=True, slots=True)
class Granted:
    """Reserved. `left_usd`: what was left for this call, its own amount included; None = it has no budget (any more)."""

    left_usd: Decimal | None


@dataclass(frozen=True, slots=True)
class Denied:
    """Not reserved anywhere, because of these budgets."""

    views: tuple[View, ...]


Verdict = Granted | Denied


class Till:
    """One per process; lives in the pool's loop."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._queue: list[tuple[Reserving, asyncio.Future[Verdict]]] = []
        self._work: asyncio.Task[None] | None = None

    async def reserve(self, asks: Sequence[Reserving]) -> list[Verdict]:
        """Verdicts in the order of the asks. Waits for a ledger that is away."""
        loop = asyncio.get_running_loop()
        futures: list[asyncio.Future[Verdict]] = [loop.create_future() for _ in asks]
        self._queue += zip(asks, futures, strict=True)
        if self._work is None or self._work.done():
            self._work = asyncio.create_task(self._run(), name="till")
        return await asyncio.gather(*futures)

    async def _run(self) -> None:
        while self._queue:
            batch, self._queue = self._queue[:MOST_AT_ONCE], self._queue[MOST_AT_ONCE:]
            try:
                rows = await self._ledger.fetch_patiently(budgets.RESERVE, parameters([ask for ask, _ in batch]))
            except asyncio.CancelledError:
                for _, future in batch:
                    future.cancel()
                raise
            except (psycopg.Error, LedgerUnavailable) as exc:  # a bug, or we are being stopped: those who asked hear it
                for _, future in batch:
                    if not future.done():
                        future.set_exception(exc)
                continue
            found = verdicts(rows)
            for ask, future in batch:
                if not future.done():
                    future.set_result(found.get(ask.job_id, Granted(None)))


def parameters(asks: Sequence[Reserving]) -> dict[str, list[object]]:
    """The arrays of budgets.RESERVE."""
    return {
        "ids": [ask.job_id for ask in asks],
        "numbers": [ask.number for ask in asks],
        "amounts": [ask.usd for ask in asks],
    }


def verdicts(rows: Sequence[Row]) -> Mapping[str, Verdict]:
    """By job id, from the rows of budgets.RESERVE."""
    found: dict[str, Verdict] = {}
    for row in rows:
        if row["granted"]:
            found[row["id"]] = Granted(row["left_usd"])
            continue
        view = View(
            whose=row["scope"],
            period=row["period"],
            cap_usd=row["cap_usd"],
            spent_usd=row["spent_usd"],
            reserved_usd=row["reserved_usd"],
            at_cap=AtCap(row["at_cap"]),
            resets_in_s=row["resets_in_s"],
        )
        earlier = found.get(row["id"])
        found[row["id"]] = Denied((*earlier.views, view) if isinstance(earlier, Denied) else (view,))
    return found
