"""What workers send to the gateway that waits for a job: pieces of the answer, and its end. Both ends of it.

One Redis stream for each gateway process, named by `jobs.reply_to`. An entry holds any number of letters, one field each:
`kind:job:attempt:number` -> bytes. Workers send all that has come up since their last send in one entry, gateways read
all jobs' letters with one command: what a piece costs falls as the load grows. Letters of an attempt are numbered: what is
sent again, because nobody knows whether it came, is known by its number, and a gap is seen; the ledger has every answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, cast

from waybill.names import mail_key

if TYPE_CHECKING:
    from redis.asyncio import Redis

log = logging.getLogger("waybill.mail")

Kind = Literal["head", "data", "end"]
"""head: who answers (JSON). data: frames, ready for the client. end: the job is final (JSON), the ledger has it."""

KEEP_S: Final = 600
"""The stream of a gateway that is gone disappears after this."""
MAX_ENTRIES: Final = 50_000
SEND_TIMEOUT_S: Final = 2.0
RESEND_S: Final = 15.0
"""So long is it tried to send the same letters; a client that has waited longer for a piece finds its answer in the ledger."""
MAX_WAITING_BYTES: Final = 64 * 1024 * 1024
"""What may wait in a worker while Redis does not take it. Beyond that all of it is lost, and the readers are told."""


@dataclass(frozen=True, slots=True)
class Letter:
    """One piece of mail.

    Attributes:
        kind: What it is.
        job_id, attempt: Whose.
        number: From 0 for each attempt; a number that is missing means letters were lost.
        data: As `kind` says.
    """

    kind: Kind
    job_id: str
    attempt: int
    number: int
    data: bytes

    def json(self) -> dict[str, Any]:
        """The data of a head or end."""
        found: dict[str, Any] = json.loads(self.data)
        return found


_Letter = tuple[Kind, str, int, bytearray]


class Outbox:
    """A worker's side: `put` returns at once, one task sends."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._waiting: dict[str, list[_Letter]] = {}
        self._last: dict[str, _Letter] = {}
        """Of those that wait, by job; a job has one gateway that waits for it."""
        self._bytes = 0
        self._numbers: dict[tuple[str, int], int] = {}
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._closing = False

    def start(self) -> None:
        """Begin to send. Call in the loop."""
        self._task = asyncio.create_task(self._run(), name="outbox")

    def put(self, reply_to: str, kind: Kind, job_id: str, attempt: int, data: bytes) -> None:
        """Send a letter soon. Pieces of one attempt that wait side by side become one letter."""
        self._bytes += len(data)
        last = self._last.get(job_id)
        if kind == "data" and last is not None and last[0] == "data" and last[2] == attempt:
            last[3].extend(data)
        else:
            self._last[job_id] = letter = (kind, job_id, attempt, bytearray(data))
            self._waiting.setdefault(reply_to, []).append(letter)
        self._wake.set()
        if self._bytes > MAX_WAITING_BYTES:
            self._lose(self._take())

    async def close(self) -> None:
        """Send what is left and stop."""
        self._closing = True
        self._wake.set()
        if self._task is not None:
            await self._task

    async def _run(self) -> None:
        while self._waiting or not self._closing:
            await self._wake.wait()
            self._wake.clear()
            if self._waiting:
                await self._send(self._take())

    def _take(self) -> dict[str, dict[str, bytes]]:
        """What waits, named, by whom it is for."""
        waiting, self._waiting, self._last, self._bytes = self._waiting, {}, {}, 0
        return {
            reply_to: {self._name(*letter[:3]): bytes(letter[3]) for letter in letters}
            for reply_to, letters in waiting.items()
        }

    async def _send(self, entries: Mapping[str, dict[str, bytes]]) -> None:
        from redis.exceptions import RedisError

        began, pause_s = time.monotonic(), 0.1
        while True:
            try:
                async with asyncio.timeout(SEND_TIMEOUT_S):
                    async with self._redis.pipeline(transaction=False) as pipe:
                        for reply_to, fields in entries.items():
                            key = mail_key(reply_to)
                            pipe.xadd(key, cast("Any", fields), maxlen=MAX_ENTRIES, approximate=True)
                            pipe.expire(key, KEEP_S)
                        await pipe.execute()
                return None
            except (RedisError, OSError, TimeoutError) as exc:
                log.warning("service.away service=redis error=%s", type(exc).__name__)
            if self._closing or time.monotonic() - began > RESEND_S:
                return self._lose(entries)
            await asyncio.sleep(pause_s)
            pause_s = min(2.0, pause_s * 2)

    def _lose(self, entries: Mapping[str, dict[str, bytes]]) -> None:
        """These letters have their numbers and will not come: the readers see the gap, and the ledger has the answers."""
        log.warning("mail.lost letters=%d", sum(len(fields) for fields in entries.values()))

    def _name(self, kind: Kind, job_id: str, attempt: int) -> str:
        number = self._numbers.get((job_id, attempt), 0)
        if kind == "end":
            self._numbers.pop((job_id, attempt), None)
        else:
            self._numbers[job_id, attempt] = number + 1
        return f"{kind}:{job_id}:{attempt}:{number}"

    def forget(self, job_id: str, attempt: int) -> None:
        """An attempt is over without an end letter: its number is needed no more."""
        self._numbers.pop((job_id, attempt), None)


async def read_mail(redis: Redis, reply_to: str, *, block_s: float = 2.0) -> AsyncIterator[list[Letter]]:
    """Yield letters as they come, many at a time; an empty list whenever nothing came for `block_s`.

    Goes on where it was when Redis comes back.
    """
    from redis.exceptions import RedisError

    key, last, since_trim = mail_key(reply_to), "0-0", 0
    while True:
        try:
            # redis-py types this for all its reply formats at once; ours is [[key, [(id, {field: value}), ...]]].
            answer: Any = await redis.xread({key: last}, count=500, block=int(block_s * 1000))
        except (RedisError, OSError) as exc:
            log.warning("service.away service=redis error=%s", type(exc).__name__)
            await asyncio.sleep(0.2)
            continue
        if not answer:
            yield []
            continue
        letters: list[Letter] = []
        entries = answer[0][1]
        for entry_id, fields in entries:
            last = entry_id
            for name, data in fields.items():
                kind, job_id, attempt, number = name.decode().split(":")
                letters.append(Letter(kind, job_id, int(attempt), int(number), data))
        yield letters
        since_trim += len(entries)
        if since_trim >= 1000:
            since_trim = 0
            with contextlib.suppress(RedisError, OSError):
                await redis.xtrim(key, minid=last, approximate=True)
