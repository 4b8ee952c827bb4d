"""The dispatcher: loads a chunk of queued jobs, asks the routing policy, records the decisions, rings the provider queues."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from policies.routing import NoRoute, Request, Route, Snapshot, route
from waybill.broker import execute_doorbells
from waybill.contract import Candidate
from waybill.ledger import queries
from waybill.streaming import publish_end
from workers.crashpoint import crash_point
from workers.runtime import Runtime
from workers.telemetry import emit


async def dispatch(runtime: Runtime, job_ids: Sequence[str]) -> str:
    """Route up to 100 jobs. Jobs that are no longer queued are left alone, so a repeated doorbell does nothing.

    Returns:
        A line for Flower.
    """
    began = time.monotonic()
    rows = await runtime.ledger.fetch_patiently(queries.LOAD_QUEUED, {"ids": list(job_ids)}, give_up=runtime.draining)
    snapshot = Snapshot(off=runtime.off, now=datetime.now(UTC))
    routed: dict[str, Route] = {}
    refused: dict[str, NoRoute] = {}
    by_id = {row["id"]: dict(row) for row in rows}
    for job_id, row in by_id.items():
        request = Request(
            intent=row["intent"],
            payload_bytes=row["payload_bytes"],
            model=row["model"],
            local_only=row["local_only"],
            needs=tuple(row["needs"] or ()),
            max_output_tokens=row["max_output_tokens"],
            slack_s=row["slack_s"],
        )
        match route(request, runtime.policy, snapshot, runtime.prices):
            case Route() as found:
                routed[job_id] = found
            case NoRoute() as nothing:
                refused[job_id] = nothing
    await _record_and_ring(runtime, routed, by_id)
    await _refuse(runtime, refused)
    if rows:
        emit(
            "chunk.dispatched",
            jobs=len(job_ids),
            routed=len(routed),
            refused=len(refused),
            seconds_s=time.monotonic() - began,
        )
    return f"{len(routed)} routed, {len(refused)} refused"


async def _record_and_ring(runtime: Runtime, routed: dict[str, Route], rows: Mapping[str, Mapping[str, Any]]) -> None:
    if not routed:
        return
    crash_point("before_route")
    moved = await runtime.ledger.fetch_patiently(
        queries.ROUTE,
        {
            "ids": list(routed),
            "providers": [found.candidates[0].provider for found in routed.values()],
            "routes": [_route_json(found.candidates) for found in routed.values()],
            "reasons": [found.reason for found in routed.values()],
            "details": [json.dumps({"passed_over": dict(found.passed_over)}) for found in routed.values()],
            "policy": runtime.policy.version,
        },
        give_up=runtime.draining,
    )
    crash_point("after_route")
    first = {row["id"]: routed[row["id"]].candidates[0] for row in moved}
    await runtime.ring(
        execute_doorbells(
            (job_id, candidate.provider, rows[job_id]["priority"], rows[job_id]["intent"], candidate.model)
            for job_id, candidate in first.items()
        )
    )


@lru_cache(maxsize=4096)
def _route_json(candidates: tuple[Candidate, ...]) -> str:
    return json.dumps([candidate.as_json() for candidate in candidates])


async def _refuse(runtime: Runtime, refused: dict[str, NoRoute]) -> None:
    if not refused:
        return
    moved = await runtime.ledger.fetch_patiently(
        queries.REFUSE,
        {
            "ids": list(refused),
            "codes": [nothing.code for nothing in refused.values()],
            "errors": [nothing.reason for nothing in refused.values()],
            "policy": runtime.policy.version,
        },
        give_up=runtime.draining,
    )
    for row in moved:
        emit("job.failed", job=row["id"], attempt=0, code=refused[row["id"]].code, reason=refused[row["id"]].reason)
    from redis.exceptions import RedisError

    try:
        await publish_end(runtime.redis, [row["id"] for row in moved], [row["id"] for row in moved])
    except (RedisError, OSError) as exc:
        emit("service.away", service="redis", error=str(exc))
