"""The token stream between a worker and a waiting client, both ends: one Redis stream per job.

An entry is `d` (a delta of the answer), `r` (the answer starts again on another model, only before anything was shown),
or `e` (the end; the ledger has the result). Entries are hints: the whole answer is in the ledger.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Final

from waybill.names import done_channel, stream_key

if TYPE_CHECKING:
    from redis.asyncio import Redis

KEEP_S: Final = 600
"""A stream nobody reads disappears after this."""
MAX_ENTRIES: Final = 100_000


async def publish_delta(redis: Redis, job_id: str, text: str) -> None:
    """Append a piece of the answer."""
    key = stream_key(job_id)
    async with redis.pipeline(transaction=False) as pipe:
        pipe.xadd(key, {"d": text}, maxlen=MAX_ENTRIES, approximate=True)
        pipe.expire(key, KEEP_S)
        await pipe.execute()


async def publish_end(redis: Redis, job_ids: list[str], streamed: list[str]) -> None:
    """Say that these jobs are final; `streamed` are those among them whose stream has a reader to release."""
    async with redis.pipeline(transaction=False) as pipe:
        for job_id in job_ids:
            pipe.publish(done_channel(job_id), "1")
        for job_id in streamed:
            pipe.xadd(stream_key(job_id), {"e": "1"})
            pipe.expire(stream_key(job_id), KEEP_S)
        await pipe.execute()


async def read_deltas(redis: Redis, job_id: str, *, block_s: float = 1.0) -> AsyncIterator[str | None]:
    """Yield deltas as they come; None whenever nothing came for `block_s`, so that the caller can look at the ledger.

    Ends at the end entry.
    """
    last = "0-0"
    while True:
        # redis-py types this for all its reply formats at once; ours is [[key, [(id, {field: value}), ...]]].
        answer: Any = await redis.xread({stream_key(job_id): last}, count=200, block=int(block_s * 1000))
        if not answer:
            yield None
            continue
        for entry_id, fields in answer[0][1]:
            last = entry_id
            if b"e" in fields:
                return
            if b"d" in fields:
                yield fields[b"d"].decode()
