"""What the dashboard shows, read from ledger and Redis and shared by everybody who looks: ten viewers cost what one does.

Nothing of a job's text and no tenant is in it. `notes` are changes that were seen between two looks, so they are there as
long as somebody looks; the ledger has the causes for good.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

from policies.pricing import PriceBook
from waybill.contract import Usage
from waybill.errors import LedgerUnavailable
from waybill.ledger import oncall, tallies
from waybill.overview import WINDOW_S, Hints, read_hints, read_overview

if TYPE_CHECKING:
    from policies.policyfile import Policy
    from waybill.ledger.engine import Ledger

FRESH_S: Final = 1.8
"""A look that is younger is shown again."""
SLOW_FRESH_S: Final = 10.0
"""What reads much: runs, history, detours."""
CHANGES: Final = 20
NOTES: Final = 60
RUNS: Final = 8
_OUT: Final = {"open", "half_open"}


class Watch:
    """One per gateway."""

    def __init__(self, ledger: Ledger, redis: Any, policy: Policy, flower: str | None = None) -> None:
        self._ledger, self._redis = ledger, redis
        self.policy = policy
        """In force; replaced as a whole."""
        self._flower = flower
        self._lock = asyncio.Lock()
        self._seen: dict[str, Any] = {}
        self._seen_at = float("-inf")
        self._slow: dict[str, Any] = {}
        self._slow_at = float("-inf")
        self._notes: deque[dict[str, Any]] = deque(maxlen=NOTES)
        self._before: dict[str, str] = {}

    async def look(self) -> dict[str, Any]:
        """The state of the fleet, at most FRESH_S old. With the ledger away: what was seen last, and `ledger` says why."""
        async with self._lock:
            if time.monotonic() - self._seen_at <= FRESH_S:
                return self._seen
            hints = await read_hints(self._redis)
            try:
                found = await self._read(hints)
            except LedgerUnavailable as exc:
                found = {**self._seen, "ledger": str(exc), "at": _now(), "redis": hints.trouble}
            self._note_changes(found)
            self._seen = {**found, "notes": list(self._notes)}
            self._seen_at = time.monotonic()
            return self._seen

    async def _read(self, hints: Hints) -> dict[str, Any]:
        found = await read_overview(self._ask, hints, self.policy, CHANGES)
        for lane in found["lanes"]:
            breaker = hints.health.get(lane["lane"], {})
            since = breaker.get("out_since") or breaker.get("since") or 0
            lane["out_s"] = (
                max(0.0, hints.now - since) if lane["state"] not in ("closed", "drained", "unknown") and since else None
            )
        escalated = {row["intent"]: row["ratio"] for row in await self._ask(oncall.ESCALATED, {"window_s": WINDOW_S})}
        for intent in found["intents"]:
            intent["escalated"] = escalated.get(intent["intent"])
        if time.monotonic() - self._slow_at > SLOW_FRESH_S:
            self._slow = await self._read_slow()
            self._slow_at = time.monotonic()
        counters = {name: count for name, count in hints.counters.items() if " " not in name}
        return {
            **found,
            **self._slow,
            "at": _now(),
            "ledger": None,
            "flower": self._flower,
            "waiting_for": [dict(row) for row in await self._ask(oncall.WAITING_FOR)],
            "minutes": [dict(row) for row in await self._ask(tallies.SPEND_BY_MINUTE, {"minutes": 60})],
            "housekeeping": {
                "silent_s": max((hints.now - at for at in hints.beats.values()), default=None),
                "rerung": counters.get("doorbells.rerung", 0),
                "rescued": counters.get("jobs.rescued", 0),
            },
        }

    async def _read_slow(self) -> dict[str, Any]:
        return {
            "flagship": self.policy.flagship,
            "policy": self.policy.version,
            "hours": [dict(row) for row in await self._ask(tallies.SPEND_BY_HOUR, {"hours": 48})],
            "grades": {
                row["intent"]: {"mean": row["mean"], "grades": row["grades"]} for row in await self._ask(oncall.GRADED)
            },
            "good_enough": {row["intent"]: row["ratio"] for row in await self._ask(oncall.GOOD_ENOUGH)},
            "runs": [dict(row) for row in await self._ask(oncall.RUNS, {"limit": RUNS})],
            "detours": self._detours(await self._ask(oncall.DETOURS)),
        }

    def _detours(self, rows: Sequence[Any]) -> list[dict[str, Any]]:
        """What going around outages cost, beside what the same tokens would have cost on the model that was out."""
        prices, now = PriceBook(self.policy), datetime.now(UTC)
        found = []
        for row in rows:
            mean = Usage(input_tokens=row["input_tokens"] or 0, output_tokens=row["output_tokens"] or 0)
            each: Decimal | None = prices.cost(row["from_model"], "interactive", mean, now)
            found.append(
                {
                    "from": row["from_model"],
                    "to": row["to_model"],
                    "jobs": row["jobs"],
                    "usd": row["usd"],
                    "instead_of_usd": None if each is None else each * row["jobs"],
                }
            )
        return found

    async def _ask(self, sql: str, params: Mapping[str, Any] | None = None) -> Sequence[Any]:
        return await self._ledger.fetch(sql, params)

    def _note_changes(self, found: Mapping[str, Any]) -> None:
        """Write down what is different from the look before."""
        # What is not known while Redis is away has not changed.
        now = {
            lane["lane"]: self._before.get(lane["lane"], "closed") if lane["state"] == "unknown" else lane["state"]
            for lane in found.get("lanes", ())
        }
        now["Redis"] = "away" if found["redis"] else "there"
        now["ledger"] = "away" if found["ledger"] else "there"
        reasons = {lane["lane"]: lane["reason"] for lane in found.get("lanes", ())}
        for name, state in now.items():
            before = self._before.get(name, "there" if name in ("Redis", "ledger") else "closed")
            if before == state:
                continue
            began = next((note for note in self._notes if note["what"] == name), None)
            if began is not None and {before, state} <= _OUT:
                # A probe that fails is no news, but how often it did is: an outage of an hour is one note.
                if state == "open":
                    began["probes"] += 1
                    began["probed_at"] = _now()
                continue
            self._notes.appendleft(
                {
                    "at": _now(), "what": name, "before": before,
                    # Between two looks it was open, too.
                    "state": "open" if state in _OUT else state, "reason": reasons.get(name, ""),
                    "probes": 0, "probed_at": None,
                }
            )  # fmt: skip
        self._before = now


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
