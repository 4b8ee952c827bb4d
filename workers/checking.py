"""Standing checks: a sample of finished jobs is asked of the flagship too, without anybody's command. The dispatcher does it.

An audit is about an answer that a learned cascade kept; whether the cascade has drifted is looked at in the same turn. Judging is
about free texts that no check can tell good from bad, and leaves grades, from which plans are learned. Checks are jobs: with half the
price and a day's time where there is a batch lane, behind all other work, under a budget of a day. All state lies on the ledger, so
any number of dispatchers may do this and each may die: jobs are drawn by their ids, a check is submitted under a key, and what came
of it is written once.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

from policies.cascading import prompt_of
from policies.checking import again, compared, grades_of, judge_question, judged, reckoned, within
from policies.drift import RECORDS, audited
from policies.policyfile import Policy, Sampling
from waybill.client import AsyncClient, prompt_bytes
from waybill.contract import GradeSource
from waybill.errors import LedgerUnavailable
from waybill.ledger import cascades, checking, replays
from workers.telemetry import emit

if TYPE_CHECKING:
    from waybill.contract import Job
    from workers.runtime import Runtime

log = logging.getLogger("waybill.checking")

LOOK_EVERY_S: Final = 15.0
AUDITS: Final = "audits"
JUDGING: Final = "judging"
_FIRST_S: Final = 3600.0
"""How far back the first look goes."""
_OVERLAP_S: Final = 60.0
_AT_ONCE: Final = 200
_LANES: Final = {"latency": "day"}


@dataclass(frozen=True, slots=True)
class _Scored:
    """What came of a check: scores of the job's answer and of the flagship's, and who gave them; None = it came to nothing."""

    row: Mapping[Any, Any]
    scores: tuple[float, float] | None = None
    source: GradeSource | None = None


class Checking:
    """One dispatcher's turn at it."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._looked: float | None = None
        """`time.monotonic()` of the last look that drew."""

    async def keep_checking(self) -> None:
        """Until cancelled."""
        settings = self._runtime.settings
        urls = settings.require_database_url(), settings.require_redis_url()
        async with AsyncClient(*urls, broker_url=settings.require_broker_url()) as client:
            while True:
                try:
                    await self.look(client)
                except LedgerUnavailable as exc:
                    emit("service.away", service="ledger", error=str(exc))
                except Exception:  # a bug here must not stop jobs: none of them waits for a check
                    log.exception("the standing checks cannot go on")
                await asyncio.sleep(LOOK_EVERY_S)

    async def look(self, client: AsyncClient) -> None:
        """Carry on with the checks under way, draw new ones, and see which cascades have drifted."""
        policy, now = self._runtime.policy, time.monotonic()
        since_s = _FIRST_S if self._looked is None else now - self._looked + _OVERLAP_S
        await self._follow(client, policy)
        in_force = [row for row in await self._runtime.ledger.fetch(cascades.IN_FORCE) if not row["has_drifted"]]
        if in_force:
            await self._watch(in_force, policy)
            kept = {"cascades": [row["id"] for row in in_force], "since_s": since_s}
            await self._draw(client, policy, AUDITS, policy.audits, checking.KEPT, kept)
        await self._draw(client, policy, JUDGING, policy.judging, checking.FREE, {"since_s": since_s})
        self._looked = now

    async def _draw(
        self, client: AsyncClient, policy: Policy, use: str, rules: Sampling, statement: str, asked: Mapping[str, Any]
    ) -> None:
        """Ask the flagship about the jobs that are drawn now, as far as the budget goes."""
        if rules.share <= 0:
            return
        ledger, key = self._runtime.ledger, budget_key(use)
        sampled = {"use": use, "share": rules.share, "flagship": policy.flagship, "limit": _AT_ONCE}
        found = await ledger.fetch(statement, {**asked, **sampled})
        rows = [row for row in found if prompt_of(row["payload"]) is not None]
        if not rows:
            return
        [left] = await ledger.fetch(checking.LEFT, {"key": key, "cap_usd": rules.budget_usd_per_day})
        taken = within(left["usd"], ((row, self._reckon(row, policy)) for row in rows))
        if not taken:
            return
        jobs = [again(row, policy.flagship, key_id=key, **_LANES) for row, _ in taken]
        ids = await client.submit_many(jobs)
        await ledger.fetch(
            checking.MARK,
            {
                "ids": ids,
                "abouts": [row["id"] for row, _ in taken],
                "kind": "shadow",
                "shares": [rules.share] * len(ids),
                "cascades": [row["cascade"] for row, _ in taken],
                "usd": [usd for _, usd in taken],
            },
        )
        emit("checks.begun", use=use, jobs=len(ids))

    def _reckon(self, row: Mapping[Any, Any], policy: Policy) -> Decimal | None:
        halved = {"flex", "batch"} & set(policy.models[policy.flagship].services) & set(policy.lanes.services)
        service = "batch" if halved else "interactive"
        return reckoned(row, policy.flagship, policy, self._runtime.prices, datetime.now(UTC), service=service)

    async def _follow(self, client: AsyncClient, policy: Policy) -> None:
        """Compare what has been answered; have the flagship read free texts; keep what came of it."""
        rows = await self._runtime.ledger.fetch(checking.ENDED, {"limit": _AT_ONCE})
        scored: list[_Scored] = []
        texts: list[tuple[Mapping[Any, Any], Job]] = []
        for row in rows:
            if None in (row["body"], row["check_body"], row["payload"]):
                scored.append(_Scored(row))
            elif row["kind"] == "judge":
                verdict = json.loads(row["check_body"])["data"]
                scored.append(_Scored(row, judged(row["about"], verdict), GradeSource.JUDGE))
            elif (score := compared(row)) is not None:
                scored.append(_Scored(row, (score, 1.0), GradeSource.SHADOW))
            else:
                key = budget_key(JUDGING if row["cascade"] is None else AUDITS)
                job = judge_question(row, policy.flagship, key_id=key, **_LANES)
                if prompt_bytes(job) > self._runtime.settings.max_payload_bytes:
                    scored.append(_Scored(row))
                else:
                    texts.append((row, job))
        if texts:
            await self._have_judged(client, texts)
        await self._grade(scored, policy)
        await self._end(scored)

    async def _have_judged(self, client: AsyncClient, texts: Sequence[tuple[Mapping[Any, Any], Job]]) -> None:
        ids = await client.submit_many([job for _, job in texts])
        await self._runtime.ledger.fetch(
            checking.MARK,
            {
                "ids": ids,
                "abouts": [row["about"] for row, _ in texts],
                "kind": "judge",
                "shares": [row["share"] for row, _ in texts],
                "cascades": [row["cascade"] for row, _ in texts],
                "usd": [row["reckoned_usd"] for row, _ in texts],
            },
        )
        await self._end([_Scored(row) for row, _ in texts])

    async def _grade(self, scored: Sequence[_Scored], policy: Policy) -> None:
        """Grades of what was no audit: answers that a cascade chose to keep say nothing about their model."""
        for source in GradeSource.JUDGE, GradeSource.SHADOW:
            graded = [
                (each.row, *each.scores)
                for each in scored
                if each.scores is not None and each.source is source and each.row["cascade"] is None
            ]
            if graded:
                columns = grades_of(graded, policy.flagship)
                await self._runtime.ledger.fetch(replays.GRADE, columns | {"source": source.value})

    async def _end(self, scored: Sequence[_Scored]) -> None:
        if not scored:
            return
        kept = [each.scores if each.row["cascade"] is not None else None for each in scored]
        await self._runtime.ledger.fetch(
            checking.END,
            {
                "ids": [each.row["check_id"] for each in scored],
                "scores": [None if scores is None else scores[0] for scores in kept],
                "flagships": [None if scores is None else scores[1] for scores in kept],
            },
        )

    async def _watch(self, in_force: Sequence[Mapping[Any, Any]], policy: Policy) -> None:
        """Take cascades out of force whose latest audits contradict them."""
        ledger = self._runtime.ledger
        rows = await ledger.fetch(checking.AUDITS, {"cascades": [row["id"] for row in in_force], "most": RECORDS})
        for row in in_force:
            scores = [(each["score"], each["flagship"]) for each in rows if each["cascade"] == row["id"]]
            # As if every answer had been kept: nearly always enough to see that all is well, without counting jobs.
            found = audited(scores, kept=1.0, target=row["target"])
            if found is None or not found.has_drifted:
                continue
            asked = {**checking.OF_LATE, "cascade": row["id"], "flagship": policy.flagship}
            [counts] = await ledger.fetch(checking.SHARE, asked)
            kept = counts["kept"] / counts["jobs"] if counts["jobs"] else 1.0
            found = audited(scores, kept=kept, target=row["target"])
            if found is not None and found.has_drifted:
                reason = found.describe()
                if await ledger.fetch(cascades.DRIFT, {"id": row["id"], "reason": reason}):
                    emit("cascade.drifted", level=logging.WARNING, intent=row["intent"], reason=reason)


def budget_key(use: str) -> str:
    """The name under which a kind of standing checks has its budget: a key that opens nothing."""
    return f"standing:{use}"
