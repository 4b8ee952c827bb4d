"""The fleet's limiter as a worker sees it: reserve for a chunk in one call, settle with the truth in another.

The state and all arithmetic are in Redis (limiter.lua, explained in policies/limits.py), so that any number of worker
processes share one set of buckets. When Redis does not answer nothing is admitted: the caller hears `LimiterAway` within
`TIMEOUT_S` and parks its jobs. Waiting is the safe side: a share for each process would need a count of processes that
nobody has while Redis is away, and the broker is usually the same server.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha1, sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from policies.estimates import Estimates
from policies.limits import MEASURED, SLOT_LEASE_US, LimitSpec, Need, Outcome, Verdict, limit_class, spec_for
from waybill.names import ESTIMATES_KEY, LIMIT_LANES_KEY, LIMIT_PREFIX
from waybill.redislink import connect_async
from workers.scriptline import NoAnswer, ScriptLine
from workers.telemetry import emit

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from workers.providers.base import Limits

log = logging.getLogger("waybill.limiter")

TIMEOUT_S: Final = 1.5
"""Longest wait for Redis in one call; then nothing is admitted."""
LINGER_S: Final = 0.01
"""Calls that end within this time are settled together."""
SLOT_LEASE_S: Final = SLOT_LEASE_US / 1e6
SHARE_EVERY_S: Final = 10.0
"""How often learned estimates are exchanged."""
WAKE_MOST: Final = 200
"""Jobs of one lane woken in one step."""
LANES_KEPT_S: Final = 3600.0
"""A lane in which nobody has waited for this long is looked at no more."""
_RAMP_PROVIDERS: Final = frozenset({"openai"})
_SCRIPT: Final = Path(__file__).with_name("limiter.lua").read_text("utf-8")
_SHA: Final = sha1(_SCRIPT.encode(), usedforsecurity=False).hexdigest()
_KINDS: Final[Mapping[str, Any]] = {
    "a": "admitted",
    "r": "rate",
    "b": "busy",
    "x": "blocked",
    "q": "queue",
    "n": "never",
}


class LimiterAway(Exception):
    """Redis did not answer in time: nothing was admitted (what it may have reserved runs out by itself)."""


@dataclass(frozen=True, slots=True)
class LimitLane:
    """One account and class of models, ready to be asked about.

    Attributes:
        name: `provider:account:class`.
        keys: Of the script.
        config: The script's third argument.
    """

    name: str
    keys: tuple[str, ...]
    config: str


@dataclass(frozen=True, slots=True)
class Wanted:
    """One call that asks for admission.

    Attributes:
        job_id: Whose call it is.
        attempt: Its number; job and number name the slot.
        need: What it reserves.
        tenant: Takes turns with other tenants when it has to wait.
    """

    job_id: str
    attempt: int
    need: Need
    tenant: str = "default"

    @property
    def slot(self) -> str:
        """The reservation's name."""
        return f"{self.job_id}:{self.attempt}"


@dataclass(frozen=True, slots=True)
class Grant:
    """An admitted call; to be settled exactly once."""

    lane: LimitLane
    slot: str
    need: Need
    ticket: str


@dataclass(slots=True)
class Ended:
    """How an admitted call ended, for `Limiter.settle`. See policies.limits.Settlement."""

    outcome: Outcome
    used_input: int = 0
    used_output: int = 0
    retry_s: float = 0.0
    limits: Limits | None = None


@dataclass(slots=True)
class _Pending:
    grant: Grant
    entry: list[object]
    until: float
    """`time.monotonic()` after which the slot is gone and a settlement has no use."""


@dataclass(slots=True)
class Reservation:
    """What `reserve` found.

    Attributes:
        verdicts: For each call asked about, in order.
        grants: For the admitted ones, by slot.
        headroom: Share of the emptiest bucket that is left, 0..1.
    """

    verdicts: tuple[Verdict, ...]
    grants: dict[str, Grant] = field(default_factory=dict)
    headroom: float = 1.0


def account_name(key: str) -> str:
    """What an API key is called in names of Redis keys: the same in every process, and not to be turned back."""
    return sha256(key.encode()).hexdigest()[:12]


def lane_config(spec: LimitSpec, *, provider: str, slot_lease_s: float = SLOT_LEASE_S) -> str:
    """The script's description of a lane."""
    return json.dumps(
        {
            "q": spec.ceilings(),
            "burst": spec.burst_s,
            "share": spec.interactive_reserve,
            "most": spec.in_flight,
            "lease": int(slot_lease_s * 1e6),
            "ramp": provider in _RAMP_PROVIDERS,
        },
        separators=(",", ":"),
    )


def lane_keys(name: str, prefix: str = LIMIT_PREFIX) -> tuple[str, ...]:
    """The script's keys for `provider:account:class`; the braces keep them on one node of a cluster."""
    base = f"{prefix}{{{name}}}"
    return (base, f"{base}:slots", f"{base}:hi", f"{base}:lo", f"{base}:woken", f"{base}:turns")


async def run_script(line: ScriptLine, lane: LimitLane, what: str, about: object, *, now_us: int = 0) -> Any:
    """Call the script; load it where the server does not know it (restarted, failed over).

    Raises:
        LimiterAway: No answer in time.
    """
    from redis.exceptions import NoScriptError, ResponseError

    arguments = (len(lane.keys), *lane.keys, what, now_us, lane.config, json.dumps(about, separators=(",", ":")))
    try:
        try:
            return await line.ask("EVALSHA", _SHA, *arguments)
        except NoScriptError:
            return await line.ask("EVAL", _SCRIPT, *arguments)
    except (NoAnswer, ResponseError) as exc:
        # A refusal is a server that is loading, read-only after a failover or out of memory: it passes, as silence does.
        raise LimiterAway(f"the limiter's Redis gives no answer: {exc}") from exc


def script_line(url: str, timeout_s: float = TIMEOUT_S) -> tuple[Redis, ScriptLine]:
    """A connection for the script, and the client it comes from (to be closed)."""
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff

    # Without retries: a call that timed out may have been carried out and must not be repeated behind our back.
    redis = connect_async(
        url,
        socket_connect_timeout=timeout_s,
        retry=Retry(NoBackoff(), 0),
        decode_responses=True,
        max_connections=2,
        protocol=2,  # answers as the script gives them, whatever redis-py prefers
    )
    return redis, ScriptLine(redis, timeout_s=timeout_s)


class Limiter:
    """One worker process's access to the fleet's buckets. Belongs to one event loop."""

    def __init__(
        self,
        url: str,
        specs: Mapping[str, LimitSpec],
        *,
        scope: str = "",
        timeout_s: float = TIMEOUT_S,
        slot_lease_s: float = SLOT_LEASE_S,
    ) -> None:
        """Opens nothing yet.

        Args:
            url: Of Redis.
            specs: From the policy file, by model id, class or `*`.
            timeout_s: Longest wait for one answer.
            slot_lease_s: How long a call counts as under way when nobody says that it is.
            scope: Added to the keys. Processes with different scopes do not know of each other: for comparisons only.
        """
        self._redis, self._line = script_line(url, timeout_s)
        self.estimates = Estimates()
        self._specs = specs
        self._slot_lease_s = slot_lease_s
        self._prefix = f"{LIMIT_PREFIX}{scope}:" if scope else LIMIT_PREFIX
        self._lanes: dict[tuple[str, str, str], LimitLane] = {}
        self._held: dict[str, Grant] = {}
        self._begun: set[str] = set()
        self._pending: deque[_Pending] = deque()
        self._wake = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._closing = False
        self._is_away = False

    def start(self) -> None:
        """Begin to settle and renew. Call in the loop."""
        self._tasks = [
            asyncio.create_task(self._settle_for_ever(), name="limiter-settle"),
            asyncio.create_task(self._renew_for_ever(), name="limiter-renew"),
            asyncio.create_task(self._share_for_ever(), name="limiter-share"),
        ]

    async def close(self) -> None:
        """Settle what is left, as far as Redis answers, and disconnect."""
        self._closing = True
        self._wake.set()
        for task in self._tasks[1:]:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=2 * TIMEOUT_S)
            self._tasks[0].cancel()
        await self._line.close()
        await self._redis.aclose()

    def take_specs(self, specs: Mapping[str, LimitSpec]) -> None:
        """Limits of a changed policy file: in force for every reservation from now on."""
        self._specs = specs
        self._lanes.clear()

    def spec(self, model_id: str) -> LimitSpec:
        """The policy file's limits for a model."""
        return spec_for(model_id, self._specs)

    def lane(self, provider: str, account: str, model_id: str) -> LimitLane:
        """The lane of a model in an account."""
        known = self._lanes.get((provider, account, model_id))
        if known is None:
            name = f"{provider}:{account}:{limit_class(model_id)}"
            config = lane_config(self.spec(model_id), provider=provider, slot_lease_s=self._slot_lease_s)
            known = self._lanes[provider, account, model_id] = LimitLane(name, lane_keys(name, self._prefix), config)
        return known

    async def reserve(self, lane: LimitLane, calls: Sequence[Wanted], *, is_batch: bool) -> Reservation:
        """Reserve for all of `calls`, each all or nothing.

        Raises:
            LimiterAway: Nothing is admitted.
        """
        if not calls:
            return Reservation(())
        about = {
            "batch": is_batch,
            "calls": [
                [c.slot, c.need.input, c.need.output, c.need.least_input, c.need.least_output, c.job_id] for c in calls
            ],
        }
        answer: str = await run_script(self._line, lane, "reserve", about)
        ticket, headroom, said = answer.split(";")
        found = Reservation(
            tuple(
                Verdict(_KINDS[kind], int(wait)) for kind, _, wait in (word.partition(":") for word in said.split(","))
            ),
            headroom=float(headroom),
        )
        for call, verdict in zip(calls, found.verdicts, strict=True):
            if verdict.kind == "admitted":
                found.grants[call.slot] = self._held[call.slot] = Grant(lane, call.slot, call.need, ticket)
        return found

    def settle(self, grant: Grant, ended: Ended) -> None:
        """Tell how an admitted call ended. Returns at once; it is sent with others that end at about the same time."""
        if self._held.pop(grant.slot, None) is None:
            return
        if grant.slot in self._begun:
            self._begun.discard(grant.slot)
            if ended.outcome == "ok":  # all that its headers and its success say has been told
                ended = Ended("done", ended.used_input, ended.used_output)
        self._tell(grant, ended)

    def begun(self, grant: Grant, limits: Limits) -> None:
        """Tell that the answer to an admitted call begins, with what its headers say. Returns at once."""
        if grant.slot in self._held and grant.slot not in self._begun:
            self._begun.add(grant.slot)
            self._tell(grant, Ended("begun", limits=limits))

    def _tell(self, grant: Grant, ended: Ended) -> None:
        jitter = 1 + 0.1 * random.random()
        limits, remaining = _said(ended.limits)
        entry = [
            grant.slot,
            grant.need.input,
            grant.need.output,
            ended.used_input,
            ended.used_output,
            ended.outcome,
            int(ended.retry_s * jitter * 1e6),
            limits,
            remaining,
            grant.ticket,
        ]
        self._pending.append(_Pending(grant, entry, time.monotonic() + self._slot_lease_s))
        self._wake.set()

    async def settled(self) -> None:
        """Return when everything told so far has been sent, or Redis is away."""
        while self._pending and not self._is_away:
            await asyncio.sleep(LINGER_S)

    async def stand_in_line(self, lane: LimitLane, calls: Sequence[Wanted], *, is_batch: bool) -> None:
        """Put jobs that were parked into the lane's line; control wakes them when the buckets admit them.

        Tenants take turns in it. A job that was woken in vain is next again.

        Raises:
            LimiterAway: They are not in the line; the ledger's own time wakes them.
        """
        jobs = [[c.job_id, c.need.input, c.need.output, c.tenant] for c in calls]
        await run_script(self._line, lane, "wait", {"batch": is_batch, "jobs": jobs})
        await self._plainly("HSET", LIMIT_LANES_KEY, json.dumps([lane.name, lane.keys, lane.config]), time.time())

    async def forget(self, lane: LimitLane, jobs: Sequence[str]) -> None:
        """Jobs that were woken for this lane need nothing of it any more.

        Raises:
            LimiterAway: Redis does not answer; the promise ends by itself after ten seconds.
        """
        if jobs:
            await self._plainly("HDEL", lane.keys[4], *jobs)

    async def give_up_places(self, lane: LimitLane, job_ids: Sequence[str]) -> None:
        """Jobs that were woken will not come: what is kept for them is free for others.

        Raises:
            LimiterAway: It is free a few seconds later.
        """
        await self._plainly("HDEL", lane.keys[4], *job_ids)

    async def _plainly(self, *command: Any) -> Any:
        from redis.exceptions import ResponseError

        try:
            return await self._line.ask(*command)
        except (NoAnswer, ResponseError) as exc:
            raise LimiterAway(f"the limiter's Redis gives no answer: {exc}") from exc

    async def _settle_for_ever(self) -> None:
        while not self._closing or self._pending:
            await self._wake.wait()
            self._wake.clear()
            if not self._closing:
                await asyncio.sleep(LINGER_S)
            while self._pending:
                if not await self._settle_batch() and self._closing:
                    return

    async def _settle_batch(self) -> bool:
        """Send what is pending of the lane that waits longest. False when Redis is away (it is kept and sent again)."""
        lane = self._pending[0].grant.lane
        batch = [pending for pending in self._pending if pending.grant.lane is lane][:100]
        try:
            await run_script(self._line, lane, "settle", [pending.entry for pending in batch])
        except LimiterAway as exc:
            self._away(exc)
            # The slots of these have run out, which gives nothing back: a settlement would change nothing any more.
            now = time.monotonic()
            self._pending = deque(pending for pending in self._pending if pending.until > now)
            await asyncio.sleep(0.5)
            return False
        self._back()
        sent = {id(pending) for pending in batch}
        self._pending = deque(pending for pending in self._pending if id(pending) not in sent)
        return True

    async def _renew_for_ever(self) -> None:
        """Keep the slots of calls that take long."""
        while True:
            await asyncio.sleep(self._slot_lease_s / 3)
            by_lane: dict[str, list[Grant]] = {}
            for grant in self._held.values():
                by_lane.setdefault(grant.lane.name, []).append(grant)
            try:
                for grants in by_lane.values():
                    await run_script(self._line, grants[0].lane, "renew", [grant.slot for grant in grants])
            except LimiterAway as exc:
                self._away(exc)

    async def _share_for_ever(self) -> None:
        """Exchange what was learned about token counts."""
        shared: dict[str, str] = {}
        while True:
            try:
                found: Sequence[str] = await self._plainly("HGETALL", ESTIMATES_KEY)
                self.estimates.adopt(dict(zip(found[::2], found[1::2], strict=True)))
                mine = self.estimates.snapshot()
                news = {name: text for name, text in mine.items() if shared.get(name) != text}
                if news:
                    await self._plainly("HSET", ESTIMATES_KEY, *(part for pair in news.items() for part in pair))
                    shared = mine
            except LimiterAway as exc:
                self._away(exc)
            await asyncio.sleep(SHARE_EVERY_S)

    def _away(self, exc: LimiterAway) -> None:
        if not self._is_away:
            emit("service.away", service="limiter", error=str(exc))
        self._is_away = True

    def _back(self) -> None:
        self._is_away = False


def _said(limits: Limits | None) -> tuple[list[int], list[int]]:
    """Limits and what remains in the order of MEASURED; 0 and -1 = not said.

    Claude's combined `tokens` is the tighter of its two others, not a limit of its own: it is left out where they are
    given.
    """
    if limits is None:
        return [0] * len(MEASURED), [-1] * len(MEASURED)
    has_parts = limits.input_tokens_limit is not None or limits.output_tokens_limit is not None
    most = (
        limits.requests_limit,
        limits.input_tokens_limit,
        limits.output_tokens_limit,
        None if has_parts else limits.tokens_limit,
    )
    left = (
        limits.requests_remaining,
        limits.input_tokens_remaining,
        limits.output_tokens_remaining,
        None if has_parts else limits.tokens_remaining,
    )
    return [value or 0 for value in most], [-1 if value is None else value for value in left]


class Pump:
    """Control's side: which waiting jobs may try again now. Any number may run; a job is handed out once."""

    def __init__(self, url: str) -> None:
        """Opens nothing yet."""
        self._redis, self._line = script_line(url)
        self._empty: dict[str, str] = {}

    async def wake(self) -> list[tuple[LimitLane, list[str]]]:
        """Take out of all lines the jobs that the buckets admit now.

        Raises:
            LimiterAway: Redis does not answer.
        """
        woken: list[tuple[LimitLane, list[str]]] = []
        found: Sequence[str] = await self._ask("HGETALL", LIMIT_LANES_KEY)
        for member, joined in zip(found[::2], found[1::2], strict=True):
            if self._empty.get(member) == joined:
                # Nobody has joined since the line was seen empty.
                if time.time() - float(joined) > LANES_KEPT_S:
                    await self._ask("HDEL", LIMIT_LANES_KEY, member)
                continue
            name, keys, config = json.loads(member)
            lane = LimitLane(name, tuple(keys), config)
            waiting, *jobs = await run_script(self._line, lane, "wake", {"most": WAKE_MOST})
            if waiting == 0:
                self._empty[member] = joined
            else:
                self._empty.pop(member, None)
            if jobs:
                woken.append((lane, jobs))
        return woken

    async def count(self) -> int:
        """How many stand in all lines.

        Raises:
            LimiterAway: Redis does not answer.
        """
        return sum([int(await self._ask("ZCARD", line)) for line in await self._lines()])

    async def standing(self) -> set[str]:
        """The ids of those who stand in all lines.

        Raises:
            LimiterAway: Redis does not answer.
        """
        places = [place for line in await self._lines() for place in await self._ask("ZRANGE", line, 0, -1)]
        return {place.partition(" ")[0] for place in places}

    async def _lines(self) -> list[str]:
        lanes: Sequence[str] = await self._ask("HKEYS", LIMIT_LANES_KEY)
        return [line for member in lanes for line in json.loads(member)[1][2:4]]

    async def forget(self, lane: LimitLane, jobs: Sequence[str]) -> None:
        """Jobs that were woken but wait no more (cancelled, finished): nothing is promised to them."""
        if jobs:
            await self._ask("HDEL", lane.keys[4], *jobs)

    async def close(self) -> None:
        """Disconnect."""
        await self._line.close()
        await self._redis.aclose()

    async def _ask(self, *command: Any) -> Any:
        from redis.exceptions import ResponseError

        try:
            return await self._line.ask(*command)
        except (NoAnswer, ResponseError) as exc:
            raise LimiterAway(f"the limiter's Redis gives no answer: {exc}") from exc
