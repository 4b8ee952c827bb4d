"""Jobs on a ledger that are claimed and ready to reserve, without a fleet: for tests and the benchmark of budgets."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from waybill.contract import AttemptState, Candidate, CostSource, JobState, new_job_id
from waybill.ledger import budgets, queries
from waybill.ledger.engine import Ledger
from workers.writer import Settlement, parameters

CANDIDATE = Candidate("anthropic", "claude-haiku-5-5", "interactive", "test", Decimal("0.5"))


async def set_budget(ledger: Ledger, cap: str, *, scope: str = "tenant", subject: str = "acme", **more: Any) -> int:
    """A budget; its id."""
    fields = {"period": "total", "at_cap": "stop", "alert_shares": [50, 80, 100], **more}
    rows = await ledger.fetch(budgets.SET, {"scope": scope, "subject": subject, "cap_usd": Decimal(cap), **fields})
    return int(rows[0]["id"])


async def claimed(
    ledger: Ledger, count: int, *, tenant: str = "acme", key_id: str | None = None
) -> list[dict[str, Any]]:
    """Rows of queries.CLAIM for new jobs."""
    ids = [new_job_id(time.time_ns() // 1_000_000, os.urandom(10)) for _ in range(count)]
    same = {
        "run_ids": None, "seqs": None, "tenants": tenant, "intents": "extraction", "priorities": "hi", "keys": None,
        "hashes": "-", "bytes": 10, "max_outputs": None, "models": None, "local_onlys": False, "needs": "",
        "streams": False, "deadlines": None, "payloads": '{"intent":"extraction","prompt":"x"}', "key_ids": key_id,
    }  # fmt: skip
    await ledger.fetch(queries.INSERT_JOBS, {"ids": ids} | {name: [value] * count for name, value in same.items()})
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
