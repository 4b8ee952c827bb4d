"""Hands answers on to jobs that asked the same question (waybill/ledger/sharing.py), and tells whoever waits for them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from waybill.broker import Broker, dispatch_doorbells
from waybill.contract import JobState
from waybill.errors import BrokerUnavailable, LedgerUnavailable
from waybill.ledger import sharing
from waybill.ledger.engine import Ledger
from waybill.mail import Outbox
from waybill.streaming import publish_end
from workers.telemetry import emit

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from waybill.ledger.engine import Row

AT_ONCE: Final = 500


@dataclass(frozen=True, slots=True)
class Sharing:
    """What handing on needs.

    Attributes:
        owner: Kept with the attempts as their worker.
    """

    ledger: Ledger
    redis: Redis
    broker: Broker
    owner: str

    async def answer(self, sources: Mapping[str, str]) -> None:
        """Give each of these jobs the answer of the job it is mapped to."""
        await self._serve(sharing.ANSWER, {"ids": list(sources), "sources": list(sources.values())})

    async def hand_on(self, ended: Sequence[str]) -> None:
        """Serve whoever waits for these final jobs. Control looks after those that this does not reach."""
        with suppress(LedgerUnavailable):
            while await self._serve(sharing.HAND_ON, {"ended": list(ended), "limit": AT_ONCE}) == AT_ONCE:
                pass

    async def sweep(self) -> None:
        """Serve everybody whose wait is over.

        Raises:
            LedgerUnavailable: Postgres does not answer.
        """
        while await self._serve(sharing.SWEEP, {"limit": AT_ONCE}) == AT_ONCE:
            pass

    async def _serve(self, sql: str, params: Mapping[str, object]) -> int:
        rows = await self.ledger.fetch(sql, {**params, "owner": self.owner})
        answered = [row["id"] for row in rows if row["is_answered"]]
        freed = [row["id"] for row in rows if not row["is_answered"]]
        if answered:
            emit("answers.reused", jobs=len(answered))
            await _tell(self.redis, answered, [row["id"] for row in rows if row["stream"]])
            await self._post([row for row in rows if row["reply_to"] is not None])
        if freed:
            try:
                await asyncio.to_thread(self.broker.ring, dispatch_doorbells(freed))
            except BrokerUnavailable as exc:  # the dispatcher looks by itself
                emit("service.away", service="broker", error=str(exc))
        return len(rows)

    async def _post(self, rows: Sequence[Row]) -> None:
        """Tell the gateways that wait; whoever this does not reach looks into the ledger."""
        outbox = Outbox(self.redis)
        outbox.start()
        for row in rows:
            end = {
                "state": JobState.SUCCEEDED.value,
                "reason": "reuse",
                "usd": "0",
                "attempt": row["attempt"],
                "answer": json.loads(row["body"]).get("wire"),
            }
            outbox.put(row["reply_to"], "end", row["id"], row["attempt"], json.dumps(end).encode())
        await outbox.close()


async def _tell(redis: Redis, job_ids: list[str], streamed: list[str]) -> None:
    from redis.exceptions import RedisError

    try:
        await publish_end(redis, job_ids, streamed)
    except (RedisError, OSError) as exc:
        emit("service.away", service="redis", error=str(exc))
