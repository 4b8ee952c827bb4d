"""The dispatcher: takes queued jobs in turns, asks the routing policy, records the decisions, rings the provider queues.

A doorbell says only that there is work. What is taken is decided here: interactive before batch, tenants in turn, and never
more than `WINDOW` jobs of a provider and class on their way to a worker; the rest stays `queued` in the ledger, where a
newcomer can still go ahead of it, a pause costs nothing and an outage is waited out. Because it also looks by itself, a
doorbell that was lost delays a job by `LOOK_EVERY_S` at most. docs/decisions/0007-health-and-fairness.md has the figures.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final

from policies.exploration import explore
from policies.fairness import Line, Turns
from policies.health import Outage
from policies.policyfile import AUTO, Policy
from policies.pricing import PRICE_VERSION
from policies.reuse import answer_key, outcome_key, wait_s
from policies.routing import Later, NoRoute, Request, Route, Snapshot, route, with_lanes
from waybill.bells import hear, ring_quickly
from waybill.broker import execute_doorbells
from waybill.contract import Candidate, lane_name
from waybill.errors import LedgerUnavailable
from waybill.ledger import oncall, queries, sharing, turns
from waybill.names import BATCH_QUEUE, CLASSES, DISPATCH_QUEUE, PROVIDERS, provider_queue
from waybill.streaming import publish_end
from workers.cascades import Cascades
from workers.checking import Checking
from workers.crashpoint import crash_point
from workers.lanetimes import LaneTimes
from workers.learning import Learned, Tagger
from workers.runtime import Runtime
from workers.telemetry import emit

log = logging.getLogger("waybill.dispatch")

WINDOW: Final = 200
"""Jobs of one provider and class that wait for a claim: two ticks' worth at 1,000 jobs a second."""
BATCH_WINDOW: Final = 20_000
"""The same for provider batches, of all providers together: two of the largest that we make."""
REFILL: Final = 50
"""A window is not filled up by less than this while more work waits, so that messages stay full."""
TICK_S: Final = 0.1
LOOK_EVERY_S: Final = 1.0
BATCH: Final = 200
"""Jobs routed in one statement."""
FORGET_EVERY_S: Final = 60.0
MOST_KINDS: Final = 1000
UNSEEN_S: Final = 0.7
"""So long may it take until a breaker shows that a call was let through which we sent (workers/health.py: EXCHANGE_S)."""
RECOVERY_S: Final = 8.0
"""Parked jobs of a lane that is back ask again within this time."""


@dataclass(slots=True)
class _Shift:
    """One look at the queued jobs of a class.

    Attributes:
        lines: Those that may still have work, with their tenants' weights.
        room: Jobs that may still be sent, by provider.
        full: Kinds of work (a line without its tenant and run) whose way is full or out for now.
        found: All their jobs, oldest first, where a glance has found them; None = they are still to be asked for.
    """

    lines: dict[Line, int]
    room: dict[str, int]
    full: set[str] = field(default_factory=set)
    found: dict[Line, deque[Mapping[str, Any]]] | None = None

    def take(self, counts: Mapping[Line, int]) -> list[Mapping[str, Any]]:
        """So many of each line's jobs that were found, or fewer."""
        found = self.found or {}
        return [found[line].popleft() for line, count in counts.items() for _ in range(min(count, len(found[line])))]


class Dispatcher:
    """One per process; belongs to its event loop."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._learned = Learned(runtime.policy)
        runtime.on_policy.append(self._learned.declare)
        self._tagger = Tagger()
        self._cascades = Cascades()
        self._times = LaneTimes()
        self._looked_for_batches = 0.0
        self._turns = {klass: Turns() for klass in CLASSES}
        self._after: dict[str, Line] = dict.fromkeys(CLASSES, ("", ""))
        self._lock = asyncio.Lock()
        self._sent: deque[tuple[float, str]] = deque()
        """Calls sent to lanes that are not well, a moment ago."""
        self._begun = 0
        self._keyed: tuple[Policy, Mapping[str, str]] | None = None
        """The policy and the cascades that `_outcomes` belong to."""
        self._outcomes: dict[tuple[str, str | None, float | None], str] = {}
        self._forgot = time.monotonic()
        self._is_behind = False
        """Whether the last look left jobs queued that could be sent later."""

    async def hear(self, job_ids: Sequence[str]) -> str:
        """The dispatcher's task: a doorbell rang. Which jobs it names is a hint for people; the ledger decides.

        Returns:
            A line for Flower.
        """
        heard = self._begun
        async with self._lock:
            if self._begun > heard:
                return f"{len(job_ids)} jobs, seen by a look that began after the bell"
            routed, refused = await self._look()
        return f"{routed} routed, {refused} refused"

    async def hear_quickly(self) -> None:
        """Until cancelled: look when a quick bell rings. Only interactive work rings so, so only that is looked at."""
        async for _ in hear(self._runtime.redis, [DISPATCH_QUEUE]):
            try:
                async with self._lock:
                    await self._look(CLASSES[:1], begin=self._glance)
            except LedgerUnavailable as exc:
                emit("service.away", service="ledger", error=str(exc))
            except Exception:  # a bug, or a row that cannot be routed: the next look says so too
                log.exception("the dispatcher's look failed")

    async def look_by_itself(self) -> None:
        """Until cancelled: go on with what is queued as windows get room, and find what no doorbell told of."""
        self._runtime.health.on_recovery = self._let_go
        looked = 0.0
        while True:
            if self._is_behind or time.monotonic() - looked >= LOOK_EVERY_S:
                looked = time.monotonic()
                try:
                    async with self._lock:
                        await self._look()
                except LedgerUnavailable as exc:
                    emit("service.away", service="ledger", error=str(exc))
                    await asyncio.sleep(0.5)
                except (
                    Exception
                ):  # a bug, or a row that cannot be routed: said each time, and no reason to stop for good
                    log.exception("the dispatcher's look failed")
                    await asyncio.sleep(0.5)
            await asyncio.sleep(TICK_S)

    async def keep_times(self) -> None:
        """Until cancelled: keep up with how long lanes take."""
        await self._times.keep_reading(self._runtime.ledger)

    async def keep_learning(self) -> None:
        """Until cancelled: choose plans from graded outcomes."""
        await self._learned.keep_learning(self._runtime.ledger)

    async def keep_cascades(self) -> None:
        """Until cancelled: know which learned cascades are in force."""
        await self._cascades.keep_reading(self._runtime.ledger)

    async def keep_checking(self) -> None:
        """Until cancelled: have a sample of the answers checked, and look whether cascades still keep their promise."""
        await Checking(self._runtime).keep_checking()

    async def _let_go(self, name: str) -> None:
        """A lane or account is back."""
        provider, _, rest = name.partition("/")
        params = {"provider": provider, "model": rest.rpartition("/")[0], "within_s": RECOVERY_S}
        if not rest:
            params = {"provider": name.partition("@")[0], "model": None, "within_s": RECOVERY_S}
        rows = await self._runtime.ledger.fetch_patiently(oncall.LET_GO, params, give_up=self._runtime.draining)
        if rows:
            emit("jobs.released", jobs=len(rows))

    async def _look(
        self, classes: Sequence[str] = CLASSES, begin: Callable[[str], Awaitable[_Shift | None]] | None = None
    ) -> tuple[int, int]:
        """Send what may be sent now. Returns how many were routed and refused."""
        began = time.monotonic()
        if len(classes) == len(CLASSES):  # a look at a part of the work says nothing about the rest
            self._begun += 1
            self._is_behind = False
        routed = refused = 0
        for klass in classes:
            shift = await (begin or self._begin)(klass)
            while shift is not None:
                rows = await self._next_jobs(klass, shift)
                if not rows:
                    break
                rows = await self._ask_once(klass, shift, rows)
                counts = await self._send(klass, shift, rows)
                routed, refused = routed + counts[0], refused + counts[1]
        if routed or refused:
            emit("chunk.dispatched", jobs=routed, routed=routed, refused=refused, seconds_s=time.monotonic() - began)
        return routed, refused

    async def _begin(self, klass: str) -> _Shift | None:
        asked = self._fetch(
            turns.LINES,
            {"priority": klass, "after_tenant": self._after[klass][0], "after_line": self._after[klass][1]},
        )
        # Side by side: somebody waits for interactive work.
        found, under_way = await asyncio.gather(asked, self._fetch(turns.ON_THEIR_WAY, {}))
        last = found[-1] if len(found) == turns.MOST_LINES else None
        if self._after[klass] != ("", "") and last is None:
            self._is_behind = True  # the lines before the place where this look began
        self._after[klass] = (last["tenant"], last["line"]) if last is not None else ("", "")
        for row in found:
            if row["run_state"] == "cancelled":
                await self._fetch(oncall.CANCEL_RUN, {"run_id": row["line"].partition(" ")[0]})
        lines = {
            (row["tenant"], row["line"]): row["weight"]
            for row in found
            if row["run_state"] == "open" and not row["is_paused"]
        }
        if not lines:
            return None
        shift = _Shift(lines, _room({row["provider"]: row["jobs"] for row in under_way if row["priority"] == klass}))
        if not any(shift.room[name] for name in PROVIDERS):
            # Only the batch lane has room, which little of what is queued may go to: no reason to look at it every tick.
            self._is_behind = True
            if not shift.room[BATCH_QUEUE] or time.monotonic() - self._looked_for_batches < LOOK_EVERY_S:
                return None
            self._looked_for_batches = time.monotonic()
        return shift

    async def _glance(self, klass: str) -> _Shift | None:
        """`_begin` for the few jobs that quick bells ring for, in one statement instead of three one after the other."""
        rows = await self._fetch(turns.GLANCE, {"priority": klass, "read": [AUTO, *self._cascades.intents]})
        jobs = [row for row in rows if row["id"] is not None]
        room = _room(rows[0]["under_way"] or {})
        is_usual = rows[0]["total"] <= turns.FEW and all(room.values())
        if not is_usual or any(row["run_state"] == "cancelled" for row in jobs):
            return await self._begin(klass)
        found: dict[Line, deque[Mapping[str, Any]]] = {}
        lines = {}
        for row in jobs:
            if row["run_state"] == "open" and not row["is_paused"]:
                line = (row["tenant"], row["line"])
                lines[line] = row["weight"]
                found.setdefault(line, deque()).append(row)
        return _Shift(lines, room, found=found) if lines else None

    async def _next_jobs(self, klass: str, shift: _Shift) -> list[dict[str, Any]]:
        """Jobs in the order of their turns; lines without any more are taken off the shift."""
        waiting = [line for line in shift.lines if _kind(line[1]) not in shift.full]
        seats = min(BATCH, max(shift.room.values()))
        weights = {line[0]: weight for line, weight in shift.lines.items()}
        order = self._turns[klass].share_out(waiting, weights, seats)
        if not order:
            self._is_behind = self._is_behind or bool(waiting)
            return []
        counts = Counter(order)
        if shift.found is not None:
            rows: Sequence[Mapping[str, Any]] = shift.take(counts)
        else:
            rows = await self._fetch(
                turns.NEXT,
                {
                    "priority": klass,
                    "tenants": [tenant for tenant, _ in counts],
                    "lines": [line for _, line in counts],
                    "counts": list(counts.values()),
                    "read": [AUTO, *self._cascades.intents],
                },
            )
        jobs: dict[Line, list[dict[str, Any]]] = {line: [] for line in counts}
        for row in rows:
            jobs[row["tenant"], row["line"]].append(dict(row))
        for line, count in counts.items():
            jobs[line].reverse()
            if len(jobs[line]) < count:
                self._turns[klass].hand_back(line, count - len(jobs[line]), weights)
                del shift.lines[line]
        return [jobs[line].pop() for line in order if jobs[line]]

    async def _ask_once(self, klass: str, shift: _Shift, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The jobs that have to be called for. The others are given an earlier answer or wait for that of another job."""
        reuse = self._runtime.policy.reuse
        asking = [row for row in rows if row["question"] is not None and _kind(row["line"]) not in shift.full]
        if not asking or reuse.ttl_s <= 0:
            return list(rows)
        await self._forget_old()
        found = await self._fetch(
            sharing.ASK,
            {
                "ids": [row["id"] for row in asking],
                "keys": [self._key(row) for row in asking],
                "waits": [
                    wait_s(priority=row["priority"], slack_s=row["slack_s"], stream=row["stream"]) for row in asking
                ],
                "ttl_s": reuse.ttl_s,
                "most_bytes": reuse.max_answer_bytes,
            },
        )
        part = {row["id"]: row["part"] for row in found}
        sources = {row["id"]: row["source"] for row in found if row["part"] == "answered"}
        if sources:
            await self._runtime.sharing.answer(sources)
        going = []
        for row in rows:
            if part.get(row["id"], "alone") in ("first", "alone"):
                going.append(row)
            else:  # it takes nobody's place
                line = (row["tenant"], row["line"])
                self._turns[klass].hand_back(line, 1, {line[0]: shift.lines.get(line, 1)})
        return going

    def _key(self, row: Mapping[str, Any]) -> str:
        policy, kind = self._learned.policy, (row["intent"], row["model"], row["quality"])
        standing, keyed = self._cascades.standing, self._keyed
        if keyed is None or policy is not keyed[0] or standing is not keyed[1] or len(self._outcomes) > MOST_KINDS:
            self._keyed = (policy, standing)
            self._outcomes.clear()
        if kind not in self._outcomes:
            own, _ = self._learned.plan(row["intent"], row["quality"])
            self._outcomes[kind] = outcome_key(own, row["intent"], row["model"], standing)
        return answer_key(row["question"], self._outcomes[kind])

    async def _forget_old(self) -> None:
        if time.monotonic() - self._forgot < FORGET_EVERY_S:
            return
        self._forgot = time.monotonic()
        reuse = self._runtime.policy.reuse
        await self._fetch(sharing.FORGET, {"ttl_s": reuse.ttl_s, "most": reuse.max_questions})

    async def _send(self, klass: str, shift: _Shift, rows: Sequence[dict[str, Any]]) -> tuple[int, int]:
        runtime = self._runtime
        lanes = self._lanes_now()
        providers = {name: out for name in PROVIDERS if (out := runtime.health.provider_outage(name)) is not None}
        snapshot = Snapshot(
            off=runtime.off, now=datetime.now(UTC), providers=providers, lanes=lanes, times=self._times.by_lane,
            heads=runtime.gates.open_heads,
        )  # fmt: skip
        routed: dict[str, Route] = {}
        details: dict[str, dict[str, Any]] = {}
        guesses = await self._tagger.guess(rows)
        policy = self._learned.policy
        refused: dict[str, NoRoute] = {}
        by_id = {row["id"]: row for row in rows}
        for job_id, likely in guesses.items():
            if likely.intent in policy.plans:
                by_id[job_id]["intent"] = likely.intent
        firsts = await self._cascades.first(rows, policy)
        for job_id, row in by_id.items():
            if _kind(row["line"]) in shift.full:
                self._put_back(klass, shift, row)
                continue
            request = _request(row)
            own, choice = self._learned.plan(request.intent, request.quality)
            found = route(request, own, snapshot, runtime.prices)
            if isinstance(found, NoRoute):
                refused[job_id] = found
                continue
            if isinstance(found, Later):
                shift.full.add(_kind(row["line"]))
                self._put_back(klass, shift, row)
                continue
            chosen = firsts.get(job_id)
            if chosen is not None and request.quality is not None and choice is not None:
                chosen = None if chosen.is_outdone(choice.shown) else chosen
            if chosen is not None:
                found = chosen.begin(found, snapshot)
            usual = found.candidates[0].model
            found, propensity = explore(found, request, share=policy.explore, draw=random.random())
            models = [candidate.model for candidate in found.candidates]
            found, weighed = with_lanes(found, request, own, snapshot, runtime.prices)
            if shift.room[found.candidates[0].carrier] <= 0:
                if found.candidates[0].model == usual:
                    shift.full.add(_kind(row["line"]))
                self._put_back(klass, shift, row)
                continue
            routed[job_id] = found
            details[job_id] = {
                "passed_over": dict(found.passed_over),
                "features": features(request),
                "candidates": models,
                "propensity": propensity,
                "plan": "declared" if choice is None else choice.kind,
                "prices": PRICE_VERSION,
            }
            if chosen is not None:
                details[job_id] |= chosen.as_detail()
            if weighed:
                details[job_id]["lanes"] = weighed
            guess = guesses.get(job_id)
            if guess is not None:
                details[job_id]["guess"] = {"intent": guess.likeliest, "confidence": round(guess.confidence, 4)}
            head = found.candidates[0]
            shift.room[head.carrier] -= 1
            lane = lane_name(head.provider, head.model, head.service)
            if lane in lanes:
                self._sent.append((time.monotonic(), lane))
            _use_up(lanes, lane)
            _use_up(providers, head.provider)
        await self._record_and_ring(routed, details, by_id, policy.version)
        await self._refuse(refused, policy.version)
        return len(routed), len(refused)

    def _lanes_now(self) -> dict[str, Outage]:
        """The outages, with what is on its way to them already taken off what they let through."""
        lanes = self._runtime.health.lane_outages()
        while self._sent and self._sent[0][0] < time.monotonic() - UNSEEN_S:
            self._sent.popleft()
        for _, lane in self._sent:
            _use_up(lanes, lane)
        return lanes

    def _put_back(self, klass: str, shift: _Shift, row: Mapping[str, Any]) -> None:
        """The job stays queued and its tenant keeps its turn."""
        self._is_behind = True
        line = (row["tenant"], row["line"])
        self._turns[klass].hand_back(line, 1, {line[0]: shift.lines.get(line, 1)})

    async def _fetch(self, sql: str, params: Mapping[str, Any]) -> Sequence[Any]:
        return await self._runtime.ledger.fetch_patiently(sql, params, give_up=self._runtime.draining)

    async def _record_and_ring(
        self,
        routed: Mapping[str, Route],
        details: Mapping[str, Mapping[str, Any]],
        rows: Mapping[str, Mapping[str, Any]],
        version: str,
    ) -> None:
        if not routed:
            return
        crash_point("before_route")
        moved = await self._fetch(
            queries.ROUTE,
            {
                "ids": list(routed),
                "intents": [rows[job_id]["intent"] for job_id in routed],
                "providers": [found.candidates[0].carrier for found in routed.values()],
                "routes": [_route_json(found.candidates) for found in routed.values()],
                "reasons": [found.reason for found in routed.values()],
                "details": [json.dumps(details[job_id]) for job_id in routed],
                "policy": version,
            },
        )
        crash_point("after_route")
        moved_ids = {row["id"] for row in moved}
        first = {job_id: found.candidates[0] for job_id, found in routed.items() if job_id in moved_ids}
        quick: dict[str, list[str]] = {}
        for job_id, candidate in first.items():
            if rows[job_id]["reply_to"] is not None:
                quick.setdefault(provider_queue(candidate.carrier, rows[job_id]["priority"]), []).append(job_id)
        for queue, job_ids in quick.items():
            await ring_quickly(self._runtime.redis, queue, job_ids)
        await self._runtime.ring(
            execute_doorbells(
                (job_id, candidate.carrier, rows[job_id]["priority"], rows[job_id]["intent"], candidate.model)
                for job_id, candidate in first.items()
                if rows[job_id]["reply_to"] is None
            )
        )

    async def _refuse(self, refused: Mapping[str, NoRoute], version: str) -> None:
        if not refused:
            return
        moved = await self._fetch(
            queries.REFUSE,
            {
                "ids": list(refused),
                "codes": [nothing.code for nothing in refused.values()],
                "errors": [nothing.reason for nothing in refused.values()],
                "policy": version,
            },
        )
        for row in moved:
            why = refused[row["id"]]
            emit("job.failed", job=row["id"], attempt=0, code=why.code)
            if row["reply_to"] is not None:
                end = {"state": "failed", "code": why.code, "error": why.reason, "attempt": 0, "usd": "0"}
                self._runtime.outbox.put(row["reply_to"], "end", row["id"], 0, json.dumps(end).encode())
        from redis.exceptions import RedisError

        ids = [row["id"] for row in moved]
        try:
            await publish_end(self._runtime.redis, ids, ids)
        except (RedisError, OSError) as exc:
            emit("service.away", service="redis", error=str(exc))


def _room(under_way: Mapping[str, int]) -> dict[str, int]:
    """Jobs of a class that may still be sent, by provider, from those that are on their way. 0 while little is left."""
    windows = {**dict.fromkeys(PROVIDERS, WINDOW), BATCH_QUEUE: BATCH_WINDOW}
    room = {name: window - under_way.get(name, 0) for name, window in windows.items()}
    return {name: left if left >= REFILL else 0 for name, left in room.items()}


def _kind(line: str) -> str:
    """What decides where jobs of a line go: intent, local-only, pinned model."""
    return line.partition(" ")[2]


def _request(row: Mapping[str, Any]) -> Request:
    return Request(
        intent=row["intent"],
        payload_bytes=row["payload_bytes"],
        model=row["model"],
        local_only=row["local_only"],
        needs=tuple(row["needs"] or ()),
        max_output_tokens=row["max_output_tokens"],
        slack_s=row["slack_s"],
        priority=row["priority"],
        due_s=row["due_s"],
        prefix_bytes=row["prefix_bytes"],
        quality=row["quality"],
    )


def features(request: Request) -> dict[str, Any]:
    """What routing read of the job: what a later replay decides by again."""
    return {
        "bytes": request.payload_bytes,
        "needs": list(request.needs),
        "max_output_tokens": request.max_output_tokens,
        "slack_s": request.slack_s,
        "due_s": request.due_s,
        "priority": request.priority,
        "model": request.model,
        "local_only": request.local_only,
        "quality": request.quality,
    }


def _use_up(outages: dict[str, Outage], name: str) -> None:
    """One of the calls that a lane or provider lets through now is on its way."""
    out = outages.get(name)
    if out is not None and not out.is_suspicion:
        outages[name] = replace(out, spare=out.spare - 1, spare_urgent=out.spare_urgent - 1)


@lru_cache(maxsize=4096)
def _route_json(candidates: tuple[Candidate, ...]) -> str:
    return json.dumps([candidate.as_json() for candidate in candidates])
