"""Getting a batch to its provider, once.

`sending` is written before the provider is asked, with nothing else in that state for the account. Whoever finds a batch in
it (after a crash, or when the answer did not come) looks for it in the provider's list before it is sent again.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from psycopg import IntegrityError

from policies.batching import backoff_s
from policies.health import Seen
from waybill.errors import ProviderError, Rejected, Throttled, Unavailable
from waybill.ledger import providerbatches
from workers.affording import afford
from workers.batchlane.rows import OpenRow, forget_rows, hand_back, lose_rows, open_rows
from workers.concluding import conclude
from workers.crashpoint import crash_point
from workers.health import account_field
from workers.providers.batches import BatchProvider, Line
from workers.telemetry import emit

if TYPE_CHECKING:
    from workers.batchlane.lane import BatchLane, HeldBatch
    from workers.runtime import Runtime

BUSY_S: Final = 1.0
OUT_S: Final = 5.0
_NO_ACCOUNT_S: Final = 60.0

# Seconds until the batch is looked at again, and why it is not further.
Outcome = tuple[float, str | None]


async def send(lane: BatchLane, batch: HeldBatch) -> Outcome:
    """Send a gathered batch."""
    runtime = lane.runtime
    out = runtime.health.provider_outage(batch.provider)
    if out is not None and batch.tries == 0:  # one that was refused is itself the probe that tells when that is over
        return OUT_S, out.reason
    account, api = _account(lane, batch.provider)
    if api is None:
        return _NO_ACCOUNT_S, f"no account of {batch.provider} is known here"
    rows = await _affordable(lane, batch, await open_rows(runtime, batch.id))
    going, lines = _lines(runtime, api, rows)
    left = [row for row in rows if row not in going]
    await hand_back(runtime, batch.id, left, "not sent with this batch: it left the lane, or the batch was full")
    if not lines:
        await lane.change(providerbatches.ENDED, batch)
        return 0.0, None
    try:
        row = await runtime.ledger.fetch(
            providerbatches.SENDING, {"id": batch.id, "holder": lane.holder, "account": account, "rows": len(lines)}
        )
    except IntegrityError:
        row = ()
    if not row:
        return BUSY_S, None  # another batch of this account is just being sent
    batch.state, batch.account, batch.tries = "sending", account, row[0]["tries"]
    crash_point("batch_before_create")
    try:
        provider_id = await api.create(batch.marker, lines, timeout_s=runtime.policy.batches.lost_after_s)
    except ProviderError as exc:
        return await _not_taken(lane, batch, going, exc)
    crash_point("batch_after_create")
    if not await lane.change(providerbatches.SENT, batch, provider_id=provider_id):
        # We were taken for dead, and somebody else has found it, or sends it again: then this one is one too many.
        return await _one_too_many(lane, batch, api, provider_id)
    crash_point("batch_after_sent")
    runtime.health.learn(account_field(batch.provider, account), Seen(runtime.health.now()))
    emit("batch.sent", batch=batch.id, lane=f"{batch.provider}/{batch.part or '*'}/batch", rows=len(lines))
    return runtime.policy.batches.poll_s, None


async def find_again(lane: BatchLane, batch: HeldBatch) -> Outcome:
    """Find out whether a batch whose creation nobody saw end is at the provider."""
    rules = lane.runtime.policy.batches
    api = lane.api(batch.provider, batch.account or "")
    if api is None:
        return _NO_ACCOUNT_S, f"the key that it was sent with is not known here (account {batch.account})"
    names = {row["name"] for row in await lane.runtime.ledger.fetch(providerbatches.NAMES, {"id": batch.id})}
    others = await lane.runtime.ledger.fetch(
        providerbatches.KNOWN_IDS, {"provider": batch.provider, "since": batch.sent_at}
    )
    found = await api.find(
        batch.marker,
        names,
        rows=batch.rows,
        since=datetime.fromtimestamp(batch.sent_at or 0, UTC),
        not_ours={*batch.not_ours, *(row["provider_id"] for row in others)},
    )
    if found is not None:
        await lane.change(providerbatches.SENT, batch, provider_id=found)
        emit("batch.found", batch=batch.id, rows=batch.rows)
        return 0.0, None
    # Twice: a creation may go on for `lost_after_s` in a process that we take for dead, and lists may lag behind.
    if (batch.sent_s or 0.0) < 2 * rules.lost_after_s:
        return min(rules.poll_s, rules.lost_after_s / 4), "it is not known whether the provider has it"
    await lane.change(providerbatches.NOT_SENT, batch)
    return 0.0, None


async def _not_taken(lane: BatchLane, batch: HeldBatch, rows: list[OpenRow], exc: ProviderError) -> Outcome:
    """The provider did not answer, or said no."""
    runtime = lane.runtime
    if exc.billed is not False:
        return min(runtime.policy.batches.poll_s, 1.0), f"it is not known whether the provider has it: {exc}"
    await lane.change(providerbatches.NOT_SENT, batch)
    if isinstance(exc, Rejected) and exc.account_wide:
        account = account_field(batch.provider, batch.account or "")
        runtime.health.learn(account, Seen(runtime.health.now(), failed=True, why=str(exc)))
        wait_s = backoff_s(batch.tries - 1, is_paused=True)
        emit("batch.paused", batch=batch.id, lane=f"{batch.provider}/*/batch", wait_s=wait_s, code=exc.code)
        return wait_s, f"the lane is paused: {exc}"
    if isinstance(exc, Throttled | Unavailable):
        asked = exc.retry_after_s if isinstance(exc, Throttled) else None
        return max(asked or 0.0, backoff_s(batch.tries - 1, is_paused=False)), str(exc)
    # As a whole it is refused, and will be again: its rows go on as after any refused request.
    await lose_rows(runtime, batch.id, rows, exc)
    await lane.change(providerbatches.ENDED, batch)
    return 0.0, None


async def _one_too_many(lane: BatchLane, batch: HeldBatch, api: BatchProvider, provider_id: str) -> Outcome:
    rows = await lane.runtime.ledger.fetch(
        providerbatches.KNOWN_IDS, {"provider": batch.provider, "since": batch.sent_at}
    )
    if provider_id not in {row["provider_id"] for row in rows}:
        await api.cancel(provider_id)
        emit("batch.doubled", batch=batch.id)
    return BUSY_S, None


def _account(lane: BatchLane, provider: str) -> tuple[str, BatchProvider | None]:
    """The account to send with: one that is not refused, where there is one."""
    runtime = lane.runtime
    names = list(runtime.accounts.get(provider, {}))
    usable = runtime.health.usable(provider, names) or names
    return (usable[0], lane.api(provider, usable[0])) if usable else ("", None)


async def _affordable(lane: BatchLane, batch: HeldBatch, rows: list[OpenRow]) -> list[OpenRow]:
    """Without the rows whose budgets do not pay for them; those are parked."""
    asking = {row.attempt.job_id for row in rows if row.attempt.has_budget and row.is_live}
    if not asking:
        return rows
    _, parked = await afford(lane.runtime, [row.attempt for row in rows if row.attempt.job_id in asking])
    await forget_rows(lane.runtime, batch.id, [row for row in rows if row.attempt.job_id in parked])
    return [row for row in rows if row.attempt.job_id not in parked]


def _lines(runtime: Runtime, api: BatchProvider, rows: list[OpenRow]) -> tuple[list[OpenRow], list[Line]]:
    """The rows that can be sent, as many as the provider takes, and how they are written.

    One that cannot be written gets the decision that follows a refused request; it is told so with those that are left.
    """
    going: list[OpenRow] = []
    lines: list[Line] = []
    size = 0
    for row in rows:
        attempt = row.attempt
        if not row.is_live or attempt.decision is not None or attempt.call is None or len(lines) >= api.most_rows:
            continue
        try:
            line = api.line(row.name, attempt.call)
        except ProviderError as exc:
            attempt.failure = exc
            conclude(runtime, attempt)
            continue
        if size + len(line.text) > api.most_bytes:
            continue
        size += len(line.text) + 1
        going.append(row)
        lines.append(line)
    return going, lines
