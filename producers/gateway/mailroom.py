"""The gateway's side of the mail: one reader for all jobs of this process, a box for each, and a look at the ledger.

A box holds what its client has not taken yet, and is bounded: a client that reads slower than a model writes for
megabytes is cut off, and finds its answer in the ledger. A job whose mail was lost is found by looking at the ledger.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections import deque
from math import inf
from typing import TYPE_CHECKING, Final

from waybill.client import AsyncClient
from waybill.contract import FINAL_STATES
from waybill.errors import ServiceUnavailable
from waybill.mail import RESEND_S, SEND_TIMEOUT_S, Letter, read_mail

if TYPE_CHECKING:
    from redis.asyncio import Redis

log = logging.getLogger("waybill.gateway")

BOX_BYTES: Final = 4 * 1024 * 1024
ALL_BYTES: Final = 128 * 1024 * 1024
QUIET_S: Final = RESEND_S + SEND_TIMEOUT_S + 3.0
"""A stream whose job is over may have letters on their way, as long as its worker sends them again; so long after the last one
nothing more is hoped for."""
LOOK_EVERY_S: Final = 1.0
"""How often the ledger is asked about jobs that no mail has ended: refused, cancelled, dead, lost, or with lost letters."""


class Box:
    """Mail of one job.

    Attributes:
        job_id: The job.
        is_final: The ledger says that it is over or does not know it, and no end letter came.
        overflowed: The client did not keep up; letters were dropped.
        since: When the ledger took the job; inf before that, as it cannot be lost yet, and -1 once it is over or lost.
        heard: When the last letter came.
    """

    def __init__(self, job_id: str) -> None:
        self.job_id = job_id
        self.is_final = False
        self.overflowed = False
        self.bytes = 0
        self.since = inf
        self.heard = -inf
        self._letters: deque[Letter] = deque()
        self._arrived = asyncio.Event()

    def put(self, letter: Letter) -> None:
        """A letter came."""
        self._letters.append(letter)
        self.bytes += len(letter.data)
        self.heard = time.monotonic()
        self._arrived.set()

    def say_final(self) -> None:
        """The ledger says that the job is over."""
        self.is_final = True
        self._arrived.set()

    def overflow(self) -> None:
        """Drop what is here: the client is too slow."""
        self._letters.clear()
        self.bytes = 0
        self.overflowed = True
        self._arrived.set()

    async def next(self, timeout_s: float) -> Letter | None:
        """The next letter; None when none came in time, or when there will be none (`is_final`, `overflowed`)."""
        if not self._letters and not self.is_final and not self.overflowed:
            self._arrived.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._arrived.wait()
        if not self._letters:
            return None
        letter = self._letters.popleft()
        self.bytes -= len(letter.data)
        return letter


class Mailroom:
    """All boxes of this process. `name` goes into `jobs.reply_to`."""

    def __init__(self, client: AsyncClient) -> None:
        self.name = f"gw-{secrets.token_hex(8)}"
        self._client = client
        self._boxes: dict[str, Box] = {}
        self._tasks: list[asyncio.Task[None]] = []

    def start(self, redis: Redis) -> None:
        """Begin to read. Call in the loop."""
        self._tasks = [
            asyncio.create_task(self._read(redis), name="mail"),
            asyncio.create_task(self._look(), name="mail-ledger"),
        ]

    async def close(self) -> None:
        """Stop."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def open(self, job_id: str) -> Box:
        """A box for a job that is about to be submitted."""
        box = self._boxes[job_id] = Box(job_id)
        return box

    def drop(self, box: Box) -> None:
        """Nobody waits for it any more."""
        self._boxes.pop(box.job_id, None)

    async def _read(self, redis: Redis) -> None:
        async for letters in read_mail(redis, self.name):
            for letter in letters:
                box = self._boxes.get(letter.job_id)
                if box is not None and not box.overflowed:
                    box.put(letter)
                    if box.bytes > BOX_BYTES:
                        box.overflow()
            if letters and sum(box.bytes for box in self._boxes.values()) > ALL_BYTES:
                max(self._boxes.values(), key=lambda box: box.bytes).overflow()
            await asyncio.sleep(0)  # what came goes on to its clients before more is asked for

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            now = time.monotonic()
            waiting = [job_id for job_id, box in self._boxes.items() if now - box.since > LOOK_EVERY_S]
            for start in range(0, len(waiting), 1000):
                asked = waiting[start : start + 1000]
                try:
                    states = await self._client.states(asked)
                except ServiceUnavailable as exc:
                    log.warning("service.away service=ledger error=%s", exc)
                    break
                for job_id in asked:
                    box, state = self._boxes.get(job_id), states.get(job_id)
                    if box is not None and (state is None or state in FINAL_STATES):
                        # The end letter of a job that has just ended may be on its way: the next look says so.
                        if box.since < 0 and now - box.heard > QUIET_S:
                            box.say_final()
                        box.since = -1.0
