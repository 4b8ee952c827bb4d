"""What workers send to the gateway that waits for a job: pieces of the answer, and its end. Both ends of it.

One Redis stream for each gateway process, named by `jobs.reply_to`. An entry holds any number of letters, one field each:
`kind:job:attempt:number` -> bytes. Workers send all that has come up since their last send in one entry, gateways read
all jobs' letters with one command: what a piece costs falls as the load grows. Letters of an attempt are numbered, so a
gap is seen; the ledger has every answer, so a letter that is lost costs a moment, not an answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

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
"""A Redis that hangs must not hold up the calls."""
MAX_WAITING_BYTES: Final = 64 * 1024 * 1024


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


class Outbox:
    """A worker's side: `put` returns at once, one task sends."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._waiting: dict[str, list[tuple[Kind, str, int, bytearray]]] = {}
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
        letters = self._waiting.setdefault(reply_to, [])
        self._bytes += len(data)
        if kind == "data":
            for letter in reversed(letters):
                if letter[1] == job_id:
                    if letter[0] == "data" and letter[2] == attempt:
                        letter[3].extend(data)
                        self._wake.set()
                        return
                    break
        letters.append((kind, job_id, attempt, bytearray(data)))
        self._wake.set()

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
                waiting, self._waiting, self._bytes = self._waiting, {}, 0
                await self._send(waiting)

    async def _send(self, waiting: Mapping[str, list[tuple[Kind, str, int, bytearray]]]) -> None:
        from redis.exceptions import RedisError

        try:
            async with asyncio.timeout(SEND_TIMEOUT_S):
                async with self._redis.pipeline(transaction=False) as pipe:
                    for reply_to, letters in waiting.items():
                        key = mail_key(reply_to)
                        fields: Any = {self._name(*letter[:3]): bytes(letter[3]) for letter in letters}
                        pipe.xadd(key, fields, maxlen=MAX_ENTRIES, approximate=True)
                        pipe.expire(key, KEEP_S)
                    await pipe.execute()
        except (RedisError, OSError, TimeoutError) as exc:
            # What was to be sent is lost; the readers see the gap, and the ledger has the answers.
            log.warning("service.away service=redis error=%s", type(exc).__name__)

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
