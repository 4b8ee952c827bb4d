"""How long the fleet's lanes take, read from the ledger now and then: what the choice of lanes starts from."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final

from policies.lanes import RANKS, RECENT, RECENT_USUAL, Latency
from waybill.errors import LedgerUnavailable
from waybill.ledger import providerbatches
from waybill.ledger.engine import Ledger

WINDOW_S: Final = 7 * 86400.0
READ_EVERY_S: Final = 60.0
_LEAST_S: Final = 0.001


class LaneTimes:
    """One process's copy."""

    def __init__(self) -> None:
        self.by_lane: Mapping[str, Latency] = {}

    async def keep_reading(self, ledger: Ledger) -> None:
        """Until cancelled. While the ledger is away what was known last is kept."""
        while True:
            try:
                self.by_lane = await read_times(ledger)
            except LedgerUnavailable:
                await asyncio.sleep(1.0)
                continue
            await asyncio.sleep(READ_EVERY_S)


async def read_times(ledger: Ledger) -> dict[str, Latency]:
    """Latency by lane: its latest observations within a week and the last 50,000 attempts.

    Raises:
        LedgerUnavailable: Postgres does not answer.
    """
    asked = {"window_s": WINDOW_S, "ranks": list(RANKS), "batches": RECENT["batch"], "calls": RECENT_USUAL}
    rows = await ledger.fetch(providerbatches.LANE_TIMES, asked)
    return {row["lane"]: _latency(row) for row in rows}


def _latency(row: Mapping[Any, Any]) -> Latency:
    return Latency(tuple(max(_LEAST_S, float(second)) for second in row["seconds"]), row["count"], row["answered"])
