"""The loop: gather rows, take a batch that is due, do the next thing with it.

Any number of these may run. A batch belongs to one at a time, under a hold that is renewed while something is done with it;
whatever a process that died was doing, the next holder finds out from the ledger and the provider.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from policies.batching import ONE_MODEL, Gathering, hold_s
from waybill.contract import new_job_id
from waybill.errors import LedgerUnavailable, ProviderError
from waybill.ledger import providerbatches
from workers.batchlane.following import follow
from workers.batchlane.sending import find_again, send
from workers.crashpoint import crash_point
from workers.providers.batches import BatchProvider
from workers.providers.registry import batches_of
from workers.telemetry import emit

if TYPE_CHECKING:
    from workers.runtime import Runtime

log = logging.getLogger("waybill.batches")

TICK_S: Final = 1.0
AT_ONCE: Final = 4
"""Batches that one process works on side by side."""
_BYTES_PER_TOKEN: Final = 3.0
_AGAIN_S: Final = 5.0


@dataclass(slots=True)
class HeldBatch:
    """A batch that is ours to work on.

    Attributes:
        id: Ours; the marker under which it can be found again.
        account: Whose it is, from the moment it is sent.
        state: `gathered`, `sending` or `sent`.
        rows: Rows it was gathered or sent with.
        sent_at: When it was last asked to be created (seconds since the epoch, the ledger's clock).
        sent_s: How long ago that was.
    """

    id: str
    provider: str
    part: str
    account: str | None
    state: str
    rows: int
    provider_id: str | None
    not_ours: list[str]
    tries: int
    is_cancelled: bool
    sent_at: float | None
    age_s: float
    sent_s: float | None

    @property
    def marker(self) -> str:
        """Another one for each try: a try that failed as a whole must not be taken for the next."""
        return f"{self.id}.{self.tries}"


class BatchLane:
    """One per process; belongs to its event loop."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self._wake = asyncio.Event()
        self._apis: dict[tuple[str, str], BatchProvider] = {}
        self._held: dict[str, asyncio.Task[None]] = {}

    @property
    def holder(self) -> str:
        """Who we are."""
        return self.runtime.owner

    def hear(self) -> None:
        """A doorbell rang: there may be rows to gather."""
        self._wake.set()

    def api(self, provider: str, account: str) -> BatchProvider | None:
        """The batch endpoints of an account; None where the account is not (or no longer) known here."""
        if (provider, account) not in self._apis:
            adapter = self.runtime.accounts.get(provider, {}).get(account)
            found = None if adapter is None else batches_of(adapter)
            if found is None:
                return None
            self._apis[provider, account] = found
        return self._apis[provider, account]

    async def run(self) -> None:
        """Until cancelled."""
        keeping = asyncio.create_task(self._keep())
        try:
            while not self.runtime.draining.is_set():
                self._wake.clear()
                try:
                    await self.gather()
                    await self.take()
                except LedgerUnavailable as exc:
                    emit("service.away", service="ledger", error=str(exc))
                except Exception:  # a bug, or a row that cannot be gathered: said each time, and no reason to stop
                    log.exception("the batch lane's round failed")
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), TICK_S)
                if self._wake.is_set():
                    await asyncio.sleep(0.1)  # many doorbells are one look
        finally:
            keeping.cancel()
            for task in self._held.values():
                task.cancel()

    async def gather(self) -> None:
        """Claim rows for new batches where enough wait, or some have waited long enough."""
        runtime, rules = self.runtime, self.runtime.policy.batches
        groups = await runtime.ledger.fetch(providerbatches.WAITING, {"one_model": list(ONE_MODEL)})
        if not groups:
            return
        under_way = {
            (row["provider"], row["part"]): row for row in await runtime.ledger.fetch(providerbatches.UNDER_WAY, {})
        }
        for group in groups:
            provider, part = group["provider"], group["part"]
            found = Gathering(group["rows"], group["payload_bytes"], group["waited_s"], group["tightest_s"])
            if provider not in runtime.accounts or runtime.health.provider_outage(provider) is not None:
                continue
            if hold_s(found, rules) > 0:
                continue
            before = under_way.get((provider, part))
            model = runtime.policy.models.get(part)
            most_bytes = rules.enqueued_tokens * (model.bytes_per_token if model else _BYTES_PER_TOKEN)
            left_bytes = int(most_bytes) - (before["payload_bytes"] if before else 0)
            # Where a batch cannot be got rid of, more of them would not be either.
            if left_bytes <= 0 or (before is not None and before["is_stuck"]):
                continue
            crash_point("batch_before_gather")
            batch_id = new_job_id(time.time_ns() // 1_000_000, os.urandom(10))
            [made] = await runtime.ledger.fetch(
                providerbatches.GATHER,
                {
                    "id": batch_id,
                    "provider": provider,
                    "part": part,
                    "one_model": list(ONE_MODEL),
                    "most_rows": rules.max_rows,
                    "most_bytes": min(rules.max_bytes, left_bytes),
                },
            )
            if made["rows"]:
                emit("batch.gathered", batch=batch_id, lane=f"{provider}/{part or '*'}/batch", rows=made["rows"])
            crash_point("batch_after_gather")

    async def take(self) -> None:
        """Hold batches that are due and start to work on them."""
        room = AT_ONCE - len(self._held)
        if room <= 0:
            return
        rows = await self.runtime.ledger.fetch(
            providerbatches.HOLD, {"holder": self.holder, "hold_s": self.runtime.settings.lease_s, "most": room}
        )
        for row in rows:
            batch = HeldBatch(**row)
            self._held[batch.id] = asyncio.create_task(self._work(batch))

    async def _work(self, batch: HeldBatch) -> None:
        wait_s, error = _AGAIN_S, None
        try:
            match batch.state:
                case "gathered":
                    wait_s, error = await send(self, batch)
                case "sending":
                    wait_s, error = await find_again(self, batch)
                case _:
                    wait_s, error = await follow(self, batch)
        except ProviderError as exc:
            wait_s, error = max(exc_wait_s(exc), _AGAIN_S), str(exc)
        except LedgerUnavailable as exc:
            emit("service.away", service="ledger", error=str(exc))
        except Exception as exc:
            log.exception("batch %s: %s failed", batch.id, batch.state)
            error = f"a bug: {type(exc).__name__}"
        finally:
            self._held.pop(batch.id, None)
        if error is not None:
            emit("batch.delayed", batch=batch.id, state=batch.state, wait_s=wait_s)
        with suppress(LedgerUnavailable):
            await self.change(
                providerbatches.LET_GO, batch, wait_s=wait_s, error=None if error is None else error[:500]
            )
        if wait_s <= 0:
            self.hear()

    async def change(self, sql: str, batch: HeldBatch, **values: Any) -> bool:
        """Carry out a statement on a batch we hold; False = it was no longer ours, or not in the state for it."""
        rows = await self.runtime.ledger.fetch(sql, {"id": batch.id, "holder": self.holder, **values})
        return bool(rows)

    async def _keep(self) -> None:
        """Renew the holds; a batch that was taken from us is let go of at once."""
        pause_s = self.runtime.settings.lease_s / 3
        while True:
            await asyncio.sleep(pause_s)
            ours = dict(self._held)
            if not ours:
                continue
            try:
                rows = await self.runtime.ledger.fetch(
                    providerbatches.KEEP,
                    {"ids": list(ours), "holder": self.holder, "hold_s": self.runtime.settings.lease_s},
                )
            except LedgerUnavailable:
                continue
            kept = {row["id"] for row in rows}
            for batch_id, task in ours.items():
                if batch_id not in kept and self._held.get(batch_id) is task:
                    emit("lease.lost", job=batch_id, attempt=0)
                    task.cancel()


def exc_wait_s(exc: ProviderError) -> float:
    """What the provider asked for, else 0."""
    return float(getattr(exc, "retry_after_s", None) or 0.0)
