"""The fleet's breakers as a process sees them. What they do to attempts is in workers/detour.py.

State and arithmetic are policies/health.py's. All lanes are fields of one Redis hash. A process decides from its own copy,
which its own calls change at once and which is exchanged with the others every `EXCHANGE_S`, or at once after a failure: so
a healthy lane costs no round trip at all. A change is written by compare-and-set, and made again on what somebody else has
written first. Only probes and the ramp of a recovering lane ask Redis on the way of a job. While Redis is away everybody
goes on with what was known last.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from policies.health import ACCOUNT, LANE, RAMP_S, Breaker, Outage, Pace, Seen, grant, observe, outage
from waybill.contract import Candidate, lane_name
from waybill.errors import LedgerUnavailable
from waybill.ledger import turns
from waybill.names import HEALTH_KEY
from workers.telemetry import emit

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from waybill.ledger.engine import Ledger

EXCHANGE_S: Final = 0.5
EXCHANGE_MOST_S: Final = 3.0
HOLDS_S: Final = 1.0
GAP_S: Final = 0.05
"""Shortest pause between two exchanges."""
ASK_S: Final = 1.0
"""Longest wait for Redis on the way of a job."""
HELD_MOST_S: Final = 120.0
_PENDING: Final = 2000

# Several fields at once, each only if it still is what we have seen ('' = absent). Returns 1 or 0 for each.
_SWAP: Final = """
local done = {}
for n = 1, #ARGV, 3 do
  if (redis.call('HGET', KEYS[1], ARGV[n]) or '') == ARGV[n + 1] then
    redis.call('HSET', KEYS[1], ARGV[n], ARGV[n + 2])
    done[#done + 1] = 1
  else
    done[#done + 1] = 0
  end
end
return done
"""


def account_field(provider: str, account: str) -> str:
    """The breaker of an account, beside those of lanes (whose names have slashes)."""
    return f"{provider}@{account}"


def _pace(name: str) -> Pace:
    return ACCOUNT if "@" in name else LANE


@dataclass(slots=True)
class Health:
    """One process's copy. Belongs to one event loop."""

    redis: Redis
    ledger: Ledger
    accounts: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Accounts of each provider this process knows of."""
    on_recovery: Callable[[str], Awaitable[None]] | None = None
    """Called with a lane's or account's name when it is back."""
    drained: dict[str, Outage] = field(default_factory=dict)
    behind_s: float = 0.0
    _views: dict[str, Breaker] = field(default_factory=dict)
    _texts: dict[str, str] = field(default_factory=dict)
    _pending: dict[str, deque[tuple[Seen, float]]] = field(default_factory=dict)
    _unread: Counter[str] = field(default_factory=Counter)
    _held: Counter[str] = field(default_factory=Counter)
    _offset_s: float = field(default_factory=lambda: time.time() - time.monotonic())
    _wake: asyncio.Event = field(default_factory=asyncio.Event)
    _task: asyncio.Task[None] | None = None
    _away: bool = False
    _closing: bool = False

    async def start(self) -> None:
        """Read once what the others know, then keep up with them."""
        for provider, accounts in self.accounts.items():
            for account in accounts:
                # So that the dispatcher, which may have no keys, knows which accounts there are.
                self._pending.setdefault(account_field(provider, account), deque(maxlen=_PENDING))
        await self._read_holds()
        await self._exchange_quietly()
        self._task = asyncio.create_task(self._keep_up(), name="lane-health")

    async def close(self) -> None:
        """Tell the rest and stop."""
        # Not by cancelling: a client that is connecting may take a cancellation for a failed connection and go on.
        self._closing = True
        self._wake.set()
        if self._task is not None:
            await asyncio.wait([self._task], timeout=2 * EXCHANGE_MOST_S)
            self._task.cancel()

    def now(self) -> float:
        """Redis's clock, as far as it is known."""
        return time.monotonic() + self._offset_s

    # --- asking -------------------------------------------------------------------------------------------------------

    def outage(self, candidate: Candidate) -> Outage | None:
        """What stands against a lane, its account or its provider; None = nothing. Costs no round trip."""
        return self.provider_outage(candidate.provider) or self._named(
            lane_name(candidate.provider, candidate.model, candidate.service)
        )

    def provider_outage(self, provider: str) -> Outage | None:
        """A drain, or all accounts refused."""
        if provider in self.drained:
            return self.drained[provider]
        found: list[Outage] = []
        for name in self._account_fields(provider):
            out = self._named(name)
            if out is None:
                return None
            found.append(out)
        return min(found, key=lambda out: (not out.spare, out.wait_s), default=None)

    def _account_fields(self, provider: str) -> list[str]:
        """Breakers of a provider's accounts: those this process has, else those that any worker has."""
        own = [account_field(provider, account) for account in self.accounts.get(provider, ())]
        return own or [name for name in self._views if name.startswith(account_field(provider, ""))]

    def lane_outages(self) -> dict[str, Outage]:
        """All lanes that are not simply to be taken, by name."""
        named = {name: self._named(name) for name in self._views if "@" not in name}
        return {name: out for name, out in named.items() if out is not None}

    def usable(self, provider: str, accounts: Sequence[str]) -> list[str]:
        """The accounts without those that are refused; all of them when all are (then one of them is being probed)."""
        well = [a for a in accounts if self._named(account_field(provider, a)) is None]
        return well or list(accounts)

    def _named(self, name: str) -> Outage | None:
        view = self._views.get(name)
        if view is None or (view.state == "closed" and view.streak == 0):
            return None
        return outage(view, self.now(), _pace(name))

    async def take(self, candidate: Candidate, *, urgent: bool) -> bool:
        """Ask for one of the calls that a lane which is not well lets through."""
        if candidate.provider in self.drained:
            return False
        names = [lane_name(candidate.provider, candidate.model, candidate.service)]
        if self.provider_outage(candidate.provider) is not None:
            names = [account_field(candidate.provider, a) for a in self.accounts.get(candidate.provider, ())][
                :1
            ] + names
        for name in names:
            if not await self._take(name, urgent=urgent):
                return False
        return True

    async def _take(self, name: str, *, urgent: bool) -> bool:
        view, granted = grant(self._views.get(name, Breaker()), 1, self.now(), urgent=urgent, pace=_pace(name))
        if view.state == "closed" or not granted:
            return bool(granted)
        from redis.exceptions import RedisError

        try:
            async with asyncio.timeout(ASK_S):
                for _ in range(3):
                    text = await self._get(name)
                    shared, granted = grant(Breaker.from_json(text), 1, self.now(), urgent=urgent, pace=_pace(name))
                    if not granted or shared.state == "closed":
                        return bool(granted)
                    changed = shared.to_json()
                    if (await self._swap([(name, text, changed)]))[0]:
                        self._views[name], self._texts[name] = shared, changed
                        self._unread[name] = len(self._pending.get(name, ()))
                        return True
                return False  # others take as quickly as we ask
        except (RedisError, OSError, TimeoutError):
            self._views[name] = view
            return True

    def delay_s(self, lane: str, wait_s: float, *, is_returning: bool = False) -> float:
        """How long a job that is held back waits: one after the other, so that there is always one to be the next probe."""
        if is_returning:
            return random.uniform(0.5, RAMP_S / 2)
        self._held[lane] += 1
        return min(HELD_MOST_S, wait_s + 0.2 + self._held[lane] - 1)

    # --- learning -----------------------------------------------------------------------------------------------------

    def learn(self, name: str, seen: Seen) -> None:
        """Take in what a call told; the others hear it soon, of a failure at once."""
        self._pending.setdefault(name, deque(maxlen=_PENDING)).append((seen, self.now()))
        self._unread[name] += 1
        view = self._views.get(name, Breaker())
        if view.state == "closed" and view.streak == 0 and not (seen.failed or seen.malformed):
            return  # one good answer more of a lane that is well: it is read with the next exchange
        if self._catch_up(name).state != view.state or seen.failed:
            self._wake.set()

    def _catch_up(self, name: str) -> Breaker:
        """The view with all that was learned and not yet read."""
        before = after = self._views.get(name, Breaker())
        pending = self._pending.get(name, ())
        unread = min(self._unread.pop(name, 0), len(pending))
        for seen, at in islice(pending, len(pending) - unread, None):
            after = observe(after, seen, at, _pace(name))
        self._views[name] = after
        if after.state != before.state:
            self._tell_change(name, before, after)
        return after

    def knows_trouble(self, name: str) -> bool:
        """Whether a breaker is anything but closed."""
        return name in self._views and self._views[name].state != "closed"

    def _tell_change(self, name: str, before: Breaker, after: Breaker) -> None:
        emit("lane.changed", lane=name, before=before.state, state=after.state, reason=after.reason or "-")
        if after.state in ("recovering", "closed"):
            self._held.pop(name, None)

    async def _keep_up(self) -> None:
        holds_due = 0.0
        while not self._closing:
            if time.monotonic() >= holds_due:
                holds_due = time.monotonic() + HOLDS_S
                await self._read_holds()
            await self._exchange_quietly()
            slept = time.monotonic()
            await asyncio.sleep(GAP_S)
            self.behind_s = time.monotonic() - slept - GAP_S
            try:
                await asyncio.wait_for(self._wake.wait(), EXCHANGE_S - GAP_S)
            except TimeoutError:
                continue
            finally:
                self._wake.clear()
        await self._exchange_quietly()

    async def _read_holds(self) -> None:
        try:
            rows = await self.ledger.fetch(turns.DRAINED)
        except LedgerUnavailable:
            return  # what was known last stays; the jobs need the ledger anyway
        self.drained = {row["name"]: Outage(f"drained ({row['reason']})", 1.0, is_drained=True) for row in rows}

    async def _exchange_quietly(self) -> None:
        from redis.exceptions import RedisError

        try:
            async with asyncio.timeout(EXCHANGE_MOST_S):
                if not await self._exchange():
                    await self._exchange()
            self._away = False
        except (RedisError, OSError, TimeoutError) as exc:
            if not self._away:
                emit("service.away", service="lane-health", error=str(exc) or type(exc).__name__)
            self._away = True

    async def _exchange(self) -> bool:
        """Read all, write what is pending. False when somebody else wrote in between (then it stays pending)."""
        async with self.redis.pipeline(transaction=False) as pipe:
            pipe.time()
            pipe.hgetall(HEALTH_KEY)
            (seconds, micros), found = await pipe.execute()
        self._offset_s = int(seconds) + int(micros) / 1e6 - time.monotonic()
        texts = {_text(name): _text(text) for name, text in found.items()}
        shared: dict[str, Breaker] = {}
        for name in {*texts, *self._texts, *self._pending}:
            if texts.get(name) == self._texts.get(name) and name in self._views and name not in self._pending:
                continue
            # A field that has gone was cleared by hand, or Redis was lost: nothing is known about that lane any more.
            shared[name] = Breaker.from_json(texts.get(name, ""))
        changes: list[tuple[str, str, str]] = []
        taken: dict[str, int] = {}
        for name, pending in self._pending.items():
            taken[name] = len(pending)
            if texts.get(name) == self._texts.get(name):
                shared[name] = self._catch_up(name)  # nobody else has written: our view is that and what is pending
            else:
                for seen, at in pending:
                    shared[name] = observe(shared[name], seen, at, _pace(name))
            changes.append((name, texts.get(name, ""), shared[name].to_json()))
        written = await self._swap(changes) if changes else []
        for (name, _, text), done in zip(changes, written, strict=True):
            if not done:
                shared.pop(name)  # our own view already has what is pending
                texts.pop(name, None)  # so that the next exchange begins with what the others have written
                continue
            texts[name] = text
            pending = self._pending[name]
            for _ in range(min(taken[name], len(pending))):
                pending.popleft()
            if not pending:
                del self._pending[name]
        self._texts = texts
        await self._adopt(shared)
        return all(written)

    async def _adopt(self, shared: Mapping[str, Breaker]) -> None:
        back: list[str] = []
        for name, after in shared.items():
            before = self._views.get(name, Breaker())
            if name in self._pending:
                # Calls ended while we were writing; they are in our view and come with the next exchange.
                for seen, at in self._pending[name]:
                    after = observe(after, seen, at, _pace(name))
            self._unread.pop(name, None)
            self._views[name] = after
            if before.state != after.state:
                self._tell_change(name, before, after)
            if before.state not in ("closed", after.state) and after.state in ("recovering", "closed"):
                back.append(name)
        if self.on_recovery is not None:
            for name in back:
                await self.on_recovery(name)

    async def _get(self, name: str) -> str:
        text: Any = await self.redis.hget(HEALTH_KEY, name)
        return _text(text) if text is not None else ""

    async def _swap(self, changes: Sequence[tuple[str, str, str]]) -> list[int]:
        flat = [part for change in changes for part in change]
        done: Any = await self.redis.eval(_SWAP, 1, HEALTH_KEY, *flat)
        return [int(one) for one in done]


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
