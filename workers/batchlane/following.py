"""Following a batch at its provider until its results are home: asked about, cancelled when nobody waits, read, settled."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from policies.batching import backoff_s, poll_s
from waybill.errors import ProviderError, Rejected
from waybill.ledger import providerbatches
from workers.batchlane.rows import CHUNK, OpenRow, lose_rows, open_rows, settle_rows
from workers.crashpoint import crash_point
from workers.providers.batches import BatchProvider, Row
from workers.providers.failures import failure
from workers.telemetry import emit

if TYPE_CHECKING:
    from workers.batchlane.lane import BatchLane, HeldBatch
    from workers.batchlane.sending import Outcome

GONE_AFTER_S: Final = 600.0
"""A provider that does not know a batch it made: just after creation that is usual, after this long it is lost."""
_NO_ACCOUNT_S: Final = 60.0


async def follow(lane: BatchLane, batch: HeldBatch) -> Outcome:
    """Ask how a batch is, and do what follows."""
    runtime, provider_id = lane.runtime, batch.provider_id or ""
    api = lane.api(batch.provider, batch.account or "")
    if api is None:
        return _NO_ACCOUNT_S, f"the key that it was sent with is not known here (account {batch.account})"
    [left] = await runtime.ledger.fetch(providerbatches.LIVE, {"id": batch.id})
    if left["live"] == 0 and left["open"] > 0 and not batch.is_cancelled:
        await _cancel(lane, batch, api)
    try:
        look = await api.look(provider_id)
    except Rejected as exc:
        if exc.code != "not_found":
            raise
        if (batch.sent_s or 0.0) < GONE_AFTER_S:
            return max(1.0, (batch.sent_s or 0.0) / 4), f"the provider does not know it (yet): {exc}"
        rows = await open_rows(runtime, batch.id)
        gone = failure("batch_missing", f"{batch.provider} no longer knows the batch {provider_id}")
        await lose_rows(runtime, batch.id, rows, gone)
        await lane.change(providerbatches.ENDED, batch)
        return 0.0, None
    match look.state:
        case "working":
            age_s = 0.0 if batch.is_cancelled or left["live"] == 0 else batch.sent_s or 0.0
            return poll_s(age_s, runtime.policy.batches), None
        case "refused":
            return await _refused(lane, batch, look.failure, is_full=look.is_full)
        case "ended":
            return await _collect(lane, batch, api)


async def _cancel(lane: BatchLane, batch: HeldBatch, api: BatchProvider) -> None:
    crash_point("batch_before_cancel")
    await api.cancel(batch.provider_id or "")
    await lane.change(providerbatches.CANCELLING, batch)
    emit("batch.cancelled", batch=batch.id, rows=batch.rows)


async def _refused(lane: BatchLane, batch: HeldBatch, why: ProviderError | None, *, is_full: bool) -> Outcome:
    if is_full:
        await lane.change(providerbatches.NOT_SENT, batch)
        return backoff_s(batch.tries + 1, is_paused=False), f"too much is enqueued: {why}"
    rows = await open_rows(lane.runtime, batch.id)
    await lose_rows(lane.runtime, batch.id, rows, why or failure("bad_request", f"{batch.provider} failed the batch"))
    await lane.change(providerbatches.ENDED, batch)
    return 0.0, None


async def _collect(lane: BatchLane, batch: HeldBatch, api: BatchProvider) -> Outcome:
    """Settle every row of a batch that has ended. What an earlier holder has settled is not open any more."""
    runtime, provider_id = lane.runtime, batch.provider_id or ""
    crash_point("batch_before_results")
    waiting = {row.name: row for row in await open_rows(runtime, batch.id)}
    calls = {name: row.attempt.call for name, row in waiting.items() if row.attempt.call is not None}
    ready: list[tuple[OpenRow, Row]] = []
    strangers = settled = 0
    async for result in api.results(provider_id, calls):
        row = waiting.pop(result.name, None)
        if row is None:
            strangers += 1  # settled before, said twice, or no row of ours
            continue
        ready.append((row, result))
        if len(ready) >= CHUNK:
            await settle_rows(runtime, batch.id, ready)
            settled, ready = settled + len(ready), []
            crash_point("batch_mid_results")
    if strangers and not ready and not settled and len(waiting) == batch.rows:
        # Taken for ours by its time and size, and it is somebody else's: go on looking.
        await lane.change(providerbatches.NOT_OURS, batch, provider_id=provider_id)
        return 0.0, f"{provider_id} is not this batch"
    await settle_rows(runtime, batch.id, ready)
    missing = failure("batch_missing", f"{batch.provider} says nothing about this row of {provider_id}")
    await lose_rows(runtime, batch.id, list(waiting.values()), missing)
    crash_point("batch_before_end")
    if await lane.change(providerbatches.ENDED, batch):
        emit("batch.ended", batch=batch.id, rows=batch.rows, missing=len(waiting))
        await api.forget(provider_id)
    return 0.0, None
