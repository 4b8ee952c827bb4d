"""Has a worker process write its heartbeat file (waybill/probe.py): alive by the asyncio loop, ready by the consumer's turns.

Two threads can be stuck. The asyncio loop runs the jobs: it writes the file, so a stuck loop stops the heartbeat. Celery's
hub takes the messages: while the broker is away it waits in a reconnect, which is no reason to be killed, but one not to
be called ready.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

from celery import Celery, bootsteps

from waybill.probe import beating, forget
from workers.runtime import Runtime

TURN_EVERY_S = 1.0
TURN_WITHIN_S = 15.0
"""The hub's timer is late by whatever the hub does between; decoding a full prefetch was never seen to take 1 s."""


class ConsumerTurns:
    """When the consumer's hub last turned."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last: float | None = None

    def note(self) -> None:
        """The hub turns now."""
        self._last = self._clock()

    def ended(self) -> None:
        """The consumer stops, to connect again or for good."""
        self._last = None

    def obstacle(self) -> str | None:
        """Why no message is taken; None = messages are taken."""
        if self._last is None:
            return "not consuming: starting, or the broker is away"
        silent_s = self._clock() - self._last
        return f"the consumer has not turned for {silent_s:.0f} s" if silent_s > TURN_WITHIN_S else None


class Watched:
    """A worker's lifespan that beats as long as it is open."""

    def __init__(self, runtime: Runtime, turns: ConsumerTurns, path: Path) -> None:
        self._runtime = runtime
        self._turns = turns
        self._path = path
        self._beating: AbstractAsyncContextManager[None] | None = None

    async def open(self) -> None:
        """Open the runtime, then begin to beat."""
        # A restarted container finds its predecessor's file; it is not this process's.
        forget(self._path)
        await self._runtime.open()
        self._beating = beating(self._path, self.obstacle)
        await self._beating.__aenter__()

    async def drain(self) -> None:
        """Pass on; the next heartbeat says so."""
        await self._runtime.drain()

    async def close(self) -> None:
        """Close the runtime while the heart still beats: the last settlements may take their time."""
        await self._runtime.close()
        if self._beating is not None:
            await self._beating.__aexit__(None, None, None)

    def obstacle(self) -> str | None:
        """Why this worker takes no jobs now; None = it does."""
        runtime = self._runtime
        if runtime.draining.is_set():
            return "draining"
        if runtime.provider_names and not runtime.providers:
            return "; ".join(f"{name} is off: {runtime.off[name]}" for name in runtime.provider_names)
        return self._turns.obstacle()


def watch(app: Celery, runtime: Runtime, path: Path) -> None:
    """Let a worker of `app` write its heartbeat to `path`."""
    turns = ConsumerTurns()

    class Turning(bootsteps.StartStopStep):  # type: ignore[misc]  # celery is untyped
        """Notes the hub's turns from the moment that queues are consumed."""

        requires = ("celery.worker.consumer.tasks:Tasks",)

        def start(self, c: Any) -> None:
            turns.note()
            self.entry = c.timer.call_repeatedly(TURN_EVERY_S, turns.note)

        def stop(self, c: Any) -> None:
            self.entry.cancel()
            turns.ended()

    app.steps["consumer"].add(Turning)
    app.lifespan = Watched(runtime, turns, path)
