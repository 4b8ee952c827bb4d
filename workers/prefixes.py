"""Leader first: of the fleet's calls with a new prefix one goes ahead, the others go when its answer begins.

A provider's cache can be read only once the answer that writes it has begun; calls sent side by side all pay for the
write. The state is in Redis (prefixes.lua), for each lane, account and prefix, and is a hint: without Redis nobody waits.
A process asks once for all its calls that wait for the same prefix, and not at all while it knows the prefix to be warm.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from waybill.names import PREFIX_KEY
from workers.telemetry import emit

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis.asyncio import Redis

SCRIPT: Final = (Path(__file__).parent / "prefixes.lua").read_text("ascii")
POLL_S: Final = 0.1
"""How often a process looks whether the leader of another one has begun."""
TIMEOUT_S: Final = 1.0
MARGIN: Final = 0.9
"""Share of an entry's life for which it is relied on."""
RENEW: Final = 0.25
"""After this share of it the fleet is told again that the entry was used."""
PLAIN_S: Final = 600.0
"""A prefix that the provider would not keep is sent without marks for so long."""
MOST_PLACES: Final = 10_000

State = Literal["warm", "plain", "lead", "late"]


@dataclass(frozen=True, slots=True)
class Entered:
    """How a call may go on.

    Attributes:
        state: `warm`: the prefix can be read. `plain`: the provider does not keep it. `lead`: this call writes it, the
            others wait for `begun` or `drop`. `late`: the leader did not begin in time, or Redis is away.
        is_long: For `warm`: marked for the longer lifetime.
        gap_s: Mean time between uses; None = new.
        others: Calls of this process that are there with the same prefix.
    """

    state: State
    is_long: bool = False
    gap_s: float | None = None
    others: int = 0


@dataclass(slots=True)
class _Place:
    """What this process knows of a prefix in one lane and account. Times are the loop's."""

    state: State = "late"
    until: float = 0.0
    told: float = 0.0
    is_long: bool = False
    gap_s: float | None = None
    present: int = 0
    busy: asyncio.Event | None = None
    """Set and replaced when whoever asks or leads in this process is done."""

    def free(self) -> None:
        """Let the next one ask."""
        if self.busy is not None:
            self.busy.set()
            self.busy = None


@dataclass(slots=True)
class Prefixes:
    """One per process; belongs to its event loop."""

    redis: Redis
    owner: str = field(default_factory=lambda: secrets.token_hex(8))
    _places: OrderedDict[str, _Place] = field(default_factory=OrderedDict)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _script: Callable[..., object] | None = None

    async def enter(self, name: str, *, wait_s: float, lead_s: float) -> Entered:
        """Wait until the call may go. Whoever gets `lead` must call `begun`, `drop` or `plain`.

        Args:
            name: Lane, account and prefix.
            wait_s: The longest wait.
            lead_s: After this a leader counts as lost.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + wait_s
        place = self._place(name)
        place.present += 1
        what = "enter"
        try:
            while True:
                now = loop.time()
                if place.until > now:
                    return self._entered(place, place.state)
                if place.busy is None:
                    place.busy = asyncio.Event()
                    is_leading = False
                    try:
                        state = await self._ask(name, place, what, lead_s)
                        is_leading = state == "lead"
                        if is_leading:
                            return self._entered(place, "lead")
                    finally:
                        if not is_leading:
                            place.free()
                    if state in ("warm", "plain"):
                        continue
                    if state is None or loop.time() >= end:
                        return self._entered(place, "late")
                    what = "look"
                    await asyncio.sleep(min(POLL_S, max(0.0, end - loop.time())))
                    continue
                if now >= end:
                    return self._entered(place, "late")
                try:
                    async with asyncio.timeout_at(end):
                        await place.busy.wait()
                except TimeoutError:
                    return self._entered(place, "late")
                what = "look"
        finally:
            place.present -= 1

    def begun(self, name: str, *, life_s: float, is_long: bool) -> None:
        """The answer that writes the prefix, or reads it, has begun: others may read from now on."""
        place = self._place(name)
        now = asyncio.get_running_loop().time()
        was_leading = place.busy is not None
        place.state, place.is_long, place.until = "warm", is_long, now + MARGIN * life_s
        place.free()
        if was_leading or now - place.told > RENEW * life_s:
            place.told = now
            self._tell(name, "warm", MARGIN * life_s, is_long=is_long)

    def drop(self, name: str) -> None:
        """The leader wrote nothing: the next one may lead."""
        self._place(name).free()
        self._tell(name, "drop", 0)

    def plain(self, name: str) -> None:
        """The provider does not keep this prefix: nobody needs to wait for it."""
        place = self._place(name)
        place.state, place.until = "plain", asyncio.get_running_loop().time() + PLAIN_S
        place.free()
        self._tell(name, "plain", PLAIN_S)

    async def close(self) -> None:
        """Let what is being told arrive."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=TIMEOUT_S)

    def _place(self, name: str) -> _Place:
        place = self._places.get(name)
        if place is None:
            place = self._places[name] = _Place()
            while len(self._places) > MOST_PLACES:
                oldest = next(iter(self._places))
                if self._places[oldest].present or self._places[oldest].busy is not None:
                    break
                del self._places[oldest]
        self._places.move_to_end(name)
        return place

    def _entered(self, place: _Place, state: State) -> Entered:
        return Entered(state, place.is_long, place.gap_s, place.present - 1)

    async def _ask(self, name: str, place: _Place, what: str, lead_s: float) -> str | None:
        """The state by Redis; None when it does not answer."""
        found = await self._call(name, what, lead_s)
        if found is None:
            return None
        state, left_ms, gap_ms, is_long = found
        place.gap_s = gap_ms / 1000 if gap_ms >= 0 else None
        if state in ("warm", "plain"):
            place.state = "warm" if state == "warm" else "plain"
            place.is_long = is_long == "1"
            place.until = asyncio.get_running_loop().time() + left_ms / 1000
        return state

    def _tell(self, name: str, what: str, seconds: float, *, is_long: bool = False) -> None:
        async def tell() -> None:
            await self._call(name, what, seconds, is_long=is_long)

        task = asyncio.create_task(tell(), name="prefix-told")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _call(
        self, name: str, what: str, seconds: float, *, is_long: bool = False
    ) -> tuple[str, int, int, str] | None:
        from redis.exceptions import RedisError

        if self._script is None:
            self._script = self.redis.register_script(SCRIPT)
        script: Callable[..., Any] = self._script
        arguments = [what, self.owner, int(seconds * 1000), "1" if is_long else "0"]
        try:
            async with asyncio.timeout(TIMEOUT_S):
                state, left_ms, gap_ms, long = await script(keys=[f"{PREFIX_KEY}{name}"], args=arguments)
        except (RedisError, OSError, TimeoutError) as exc:
            emit("service.away", service="prefixes", error=f"{type(exc).__name__}: {exc}")
            return None
        return state.decode(), int(left_ms), int(gap_ms), long.decode()
