"""Quick bells: doorbells for jobs that somebody waits for, past Celery. As every doorbell they are hints.

A Celery message costs its receiver about 3 ms of CPU (receiving, three task events, the acknowledgement), twice for each
job; a push and a blocking pop of a Redis list cost 0.3 ms (docs/decisions/0101-quick-bells.md). Batches keep Celery, where a
message carries up to 100 jobs and Flower shows it. A bell that is lost (its hearer died before the claim, nobody listens) is
rung again by the dispatcher's own look within a second, or by control within seconds.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any, Final

from waybill.names import bell_key

if TYPE_CHECKING:
    from redis.asyncio import Redis

log = logging.getLogger("waybill.bells")

MOST_UNHEARD: Final = 10_000
AT_ONCE: Final = 100


async def ring_quickly(redis: Redis, queue: str, job_ids: Sequence[str]) -> bool:
    """Ring at the dispatcher or at a provider's workers; False when Redis does not take it."""
    from redis.exceptions import RedisError

    push: Any = redis.rpush  # redis-py types this for its blocking client, too
    trim: Any = redis.ltrim
    try:
        if await push(bell_key(queue), *job_ids) > MOST_UNHEARD:
            await trim(bell_key(queue), -MOST_UNHEARD, -1)
    except (RedisError, OSError) as exc:
        log.warning("service.away service=redis error=%s", type(exc).__name__)
        return False
    return True


async def hear(redis: Redis, queues: Sequence[str]) -> AsyncIterator[list[str]]:
    """Yield job ids as bells ring, all that wait at once (up to 100)."""
    from redis.exceptions import RedisError

    keys = [bell_key(queue) for queue in queues]
    while True:
        try:
            # One command for the first and all that wait with it (Redis 7): whoever rang waits for each round trip.
            found: Any = await redis.blmpop(2, len(keys), *keys, direction="LEFT", count=AT_ONCE)
        except (RedisError, OSError) as exc:
            log.warning("service.away service=redis error=%s", type(exc).__name__)
            await asyncio.sleep(0.2)
            continue
        if found is not None:
            yield [job_id.decode() for job_id in found[1]]
