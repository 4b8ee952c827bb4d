"""Jobs on a ledger that are claimed and ready to reserve, without a fleet: for tests and the benchmark of budgets."""

from __future__ import annotations

import json
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from waybill.client import AsyncClient
from waybill.contract import AttemptState, Candidate, CostSource, Job, JobState
from waybill.ledger import budgets, queries
from waybill.ledger.engine import Ledger
from workers.writer import Settlement, parameters

CANDIDATE = Candidate("anthropic", "claude-haiku-5-5", "interactive", "test", Decimal("0.5"))


class _Quiet(AsyncClient):
    """Rings nobody: there is no fleet."""

    async def _ring(self, job_ids: Sequence[str]) -> None:
        return


async def set_budget(ledger: Ledger, cap: str, *, scope: str = "tenant", subject: str = "acme", **more: Any) -> int:
    """A budget; its id."""
    fields = {"period": "total", "at_cap": "stop", "alert_shares": [50, 80, 100], **more}
    rows = await ledger.fetch(budgets.SET, {"scope": scope, "subject": subject, "cap_usd": Decimal(cap), **fields})
    return int(rows[0]["id"])


async def claimed(
    ledger: Ledger, count: int, *, tenant: str = "acme", key_id: str | None = None
) -> list[dict[str, Any]]:
    """Rows of queries.CLAIM for new jobs."""
    jobs = [Job(intent="extraction", prompt=f"job {n}", tenant=tenant, key_id=key_id) for n in range(count)]
    client = _Quiet("postgresql://unused", "redis://unused")
    client._ledger_ = ledger
    ids = await client.submit_many(jobs)
    await ledger.fetch(
        queries.ROUTE,
        {
            "ids": ids,
            "intents": ["extraction"] * count,
            "providers": ["anthropic"] * count,
            "routes": [json.dumps([CANDIDATE.as_json()])] * count,
            "reasons": ["test"] * count,
            "details": ["{}"] * count,
            "policy": "test",
        },
    )
    rows = await ledger.fetch(
        queries.CLAIM, {"ids": ids, "providers": ["anthropic"], "owner": "test", "lease_s": 600.0}
    )
    return [dict(row) for row in rows]


async def settle(
    ledger: Ledger,
    rows: Sequence[dict[str, Any]],
    cost: Decimal | None,
    *,
    state: JobState = JobState.SUCCEEDED,
    attempt: AttemptState = AttemptState.SUCCEEDED,
    source: CostSource = CostSource.USAGE,
) -> None:
    """End the attempts of claimed rows."""
    found = [
        Settlement(
            job_id=row["id"],
            token=row["lease_token"],
            number=row["attempt"],
            state=state,
            outcome="accept",
            reason="test",
            attempt_state=attempt,
            cost_usd=cost,
            cost_source=source,
            body='{"text":"","data":null}' if state is JobState.SUCCEEDED else None,
        )
        for row in rows
    ]
    await ledger.fetch(queries.SETTLE, parameters(found))
