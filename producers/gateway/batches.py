"""OpenAI's Batches API on the fleet: each line of the input file becomes a batch-priority job of a run (clerk.py does that)."""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Mapping
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from producers.gateway.body import read_object
from producers.gateway.errors import Kind, Refusal
from producers.gateway.files import cursor_of, find_file, limit_of, listing, seconds
from producers.gateway.jobs import check_budgets
from producers.gateway.principal import Principal, authorize
from waybill.contract import new_job_id
from waybill.ledger import batches, oncall
from waybill.ledger.engine import Ledger

ENDPOINTS: Final = {"/v1/chat/completions": "chat", "/v1/responses": "responses"}
_FIELDS: Final = ("input_file_id", "endpoint", "completion_window", "metadata")


async def create(request: Request) -> Response:
    """Accept a batch; its file is read afterwards (`validating`)."""
    who = await authorize(request, "jobs")
    body = await read_object(request, 1_000_000)
    for name in body:
        if name not in _FIELDS and body[name] is not None:
            raise Refusal(Kind.INVALID, f"Unknown parameter: {name[:50]!r}.", param=name[:50], code="unknown_parameter")
    if body.get("completion_window") != "24h":
        raise Refusal(Kind.INVALID, "must be '24h'", param="completion_window")
    endpoint = body.get("endpoint")
    if not isinstance(endpoint, str) or endpoint not in ENDPOINTS:
        raise Refusal(Kind.INVALID, f"must be one of {', '.join(ENDPOINTS)}", param="endpoint")
    metadata = check_metadata(body.get("metadata"))
    file_id = body.get("input_file_id")
    if not isinstance(file_id, str):
        raise Refusal(Kind.INVALID, "must be the id of a file", param="input_file_id")
    ledger = request.app.state.gateway.client.ledger
    file = await find_file(ledger, who.tenant, file_id, param="input_file_id")
    if file["purpose"] != "batch":
        raise Refusal(Kind.INVALID, "is not a file with the purpose `batch`", param="input_file_id")
    await check_budgets(request, who)
    batch_id = await store(request, who, "openai", endpoint, file_id, metadata, total=0)
    return JSONResponse(await shown(ledger, await find(ledger, who.tenant, "openai", batch_id)))


def check_metadata(value: Any) -> dict[str, str] | None:
    """OpenAI's rule: 16 texts at most.

    Raises:
        Refusal: It is something else.
    """
    if value is None:
        return None
    is_fine = (
        isinstance(value, dict)
        and len(value) <= 16
        and all(isinstance(v, str) and len(k) <= 64 and len(v) <= 512 and "\0" not in k + v for k, v in value.items())
    )
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        is_fine = False
    if not is_fine:
        raise Refusal(
            Kind.INVALID, "takes up to 16 texts: keys up to 64, values up to 512 characters", param="metadata"
        )
    return dict(value)


async def store(
    request: Request,
    who: Principal,
    dialect: str,
    endpoint: str,
    file_id: str,
    metadata: Mapping[str, str] | None,
    *,
    total: int,
) -> str:
    """Write a batch down for the clerk. Returns its id."""
    prefix = "batch_" if dialect == "openai" else "msgbatch_"
    batch_id = prefix + secrets.token_hex(12)
    kept = {
        name: value
        for name, value in request.headers.items()
        if name in ("anthropic-version", "anthropic-beta") or (name.startswith("x-waybill-") and "key" not in name)
    }
    await request.app.state.gateway.client.ledger.fetch(
        batches.CREATE,
        {
            "id": batch_id,
            "run": new_job_id(time.time_ns() // 1_000_000, os.urandom(10)),
            "tenant": who.tenant,
            "key_id": who.key_id,
            "dialect": dialect,
            "endpoint": endpoint,
            "file": file_id,
            "headers": json.dumps(kept),
            "metadata": None if metadata is None else json.dumps(metadata),
            "total": total,
        },
    )
    request.app.state.gateway.clerk.hurry()
    return batch_id


async def find(ledger: Ledger, tenant: str, dialect: str, batch_id: str) -> Any:
    """A tenant's batch.

    Raises:
        Refusal: It has none of this id.
    """
    params = {"tenant": tenant, "dialect": dialect, "id": batch_id, "after": None, "before": None, "limit": 1}
    rows = await ledger.fetch(batches.LIST, params) if "\0" not in batch_id else []
    if not rows:
        raise Refusal(Kind.NOT_FOUND, f"No batch found with id '{batch_id[:100]}'.", param="id")
    return rows[0]


async def shown(ledger: Ledger, row: Mapping[str, Any]) -> dict[str, Any]:
    """A batch as OpenAI shows it."""
    counts = row["counts"]
    if counts is None:
        [jobs] = await ledger.fetch(batches.COUNTS, {"runs": [row["run"]]})
        [refused] = await ledger.fetch(batches.REFUSED, {"id": row["id"]})
        counts = {"succeeded": jobs["succeeded"], "errored": jobs["failed"] + refused["rows"]}
    failed = sum(counts.get(name, 0) for name in ("errored", "canceled", "expired"))
    ended, status = seconds(row["ended_at"]), row["status"]
    return {
        "id": row["id"],
        "object": "batch",
        "endpoint": row["endpoint"],
        "model": row["model"],
        "errors": None if row["errors"] is None else {"object": "list", "data": row["errors"]},
        "input_file_id": row["input_file_id"],
        "completion_window": "24h",
        "status": status,
        "output_file_id": row["output_file_id"],
        "error_file_id": row["error_file_id"],
        "created_at": seconds(row["created_at"]),
        "in_progress_at": seconds(row["in_progress_at"]),
        "expires_at": seconds(row["expires_at"]),
        "finalizing_at": seconds(row["finalizing_at"]),
        "completed_at": ended if status == "completed" else None,
        "failed_at": ended if status == "failed" else None,
        "expired_at": ended if status == "expired" else None,
        "cancelling_at": seconds(row["cancelling_at"]),
        "cancelled_at": ended if status == "cancelled" else None,
        "request_counts": {"total": row["total"], "completed": counts.get("succeeded", 0), "failed": failed},
        "metadata": row["metadata"],
    }


async def get(request: Request) -> Response:
    """How far it is."""
    who = await authorize(request, "jobs")
    ledger = request.app.state.gateway.client.ledger
    return JSONResponse(await shown(ledger, await find(ledger, who.tenant, "openai", request.path_params["id"])))


async def list_all(request: Request) -> Response:
    """The tenant's batches, newest first."""
    who = await authorize(request, "jobs")
    ledger = request.app.state.gateway.client.ledger
    limit = limit_of(request, 100, 20)
    params = {"tenant": who.tenant, "dialect": "openai", "id": None, "after": cursor_of(request, "after")}
    rows = await ledger.fetch(batches.LIST, {**params, "before": None, "limit": limit + 1})
    return JSONResponse(listing([await shown(ledger, row) for row in rows], limit))


async def stop(request: Request, who: Principal, batch_id: str) -> bool:
    """Stop what has not ended. Returns False when all of it had."""
    ledger = request.app.state.gateway.client.ledger
    rows = await ledger.fetch(batches.CANCEL, {"id": batch_id, "tenant": who.tenant})
    if rows:
        await ledger.fetch(oncall.CANCEL_RUN, {"run_id": rows[0]["run"]})
        request.app.state.gateway.clerk.hurry()
    return bool(rows)


async def cancel(request: Request) -> Response:
    """Stop it; what is done stays done."""
    who = await authorize(request, "jobs")
    ledger, batch_id = request.app.state.gateway.client.ledger, request.path_params["id"]
    row = await find(ledger, who.tenant, "openai", batch_id)
    if not await stop(request, who, batch_id):
        raise Refusal(Kind.CONFLICT, f"Cannot cancel a batch with status '{row['status']}'.")
    return JSONResponse(await shown(ledger, await find(ledger, who.tenant, "openai", batch_id)))


routes = [
    Route("/v1/batches", list_all, methods=["GET"]),
    Route("/v1/batches", create, methods=["POST"]),
    Route("/v1/batches/{id}", get, methods=["GET"]),
    Route("/v1/batches/{id}/cancel", cancel, methods=["POST"]),
]
