"""Anthropic's Message Batches API on the fleet. The requests are kept as a file of ours until the batch has ended."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from producers.gateway.batches import find, stop, store
from producers.gateway.batchlines import anthropic_lines
from producers.gateway.body import read_object
from producers.gateway.errors import Kind, Refusal
from producers.gateway.files import FileWriter, cursor_of, limit_of
from producers.gateway.jobs import check_budgets
from producers.gateway.principal import authorize
from waybill.ledger import batches

MOST_BODY_BYTES: Final = 64 * 1024 * 1024
"""A quarter of Anthropic's limit: the body is one JSON value, which has to be held whole. Split larger ones."""
MOST_REQUESTS: Final = 100_000
INPUT: Final = "message_batch"
"""Purpose of the file that keeps the requests; no client sees it."""
_CUSTOM_ID: Final = re.compile(r"[a-zA-Z0-9_-]{1,64}")


async def create(request: Request) -> Response:
    """Accept a batch. What is wrong with one request becomes its result; a wrong custom_id refuses the batch."""
    who = await authorize(request, "jobs")
    body = await read_object(request, MOST_BODY_BYTES)
    for name in body:
        if name != "requests":
            raise Refusal(Kind.INVALID, "Extra inputs are not permitted", param=str(name)[:50])
    requests = body.get("requests")
    if not isinstance(requests, list) or not requests:
        raise Refusal(Kind.INVALID, "must be a list that is not empty", param="requests")
    if len(requests) > MOST_REQUESTS:
        raise Refusal(Kind.TOO_LARGE, f"requests: a batch has at most {MOST_REQUESTS:,} requests")
    seen: set[str] = set()
    for place, one in enumerate(requests):
        custom_id, params = (one.get("custom_id"), one.get("params")) if isinstance(one, dict) else (None, None)
        if not isinstance(custom_id, str) or not _CUSTOM_ID.fullmatch(custom_id):
            raise Refusal(Kind.INVALID, "should match '^[a-zA-Z0-9_-]{1,64}$'", param=f"requests.{place}.custom_id")
        if custom_id in seen:
            raise Refusal(Kind.INVALID, f"{custom_id} is used twice", param=f"requests.{place}.custom_id")
        if not isinstance(params, dict) or set(one) - {"custom_id", "params"}:
            raise Refusal(
                Kind.INVALID, "has custom_id and params, an object, and nothing else", param=f"requests.{place}"
            )
        seen.add(custom_id)
    await check_budgets(request, who)
    ledger = request.app.state.gateway.client.ledger
    writer = FileWriter(ledger, who.tenant, INPUT)
    await writer.begin("requests.jsonl")
    try:
        for start in range(0, len(requests), 500):
            part = requests[start : start + 500]
            await writer.add(b"".join(json.dumps(one).encode() + b"\n" for one in part))
        await writer.end()
    except BaseException:
        await writer.drop()
        raise
    batch_id = await store(request, who, "anthropic", "/v1/messages", writer.id, None, total=len(requests))
    return JSONResponse(_shown(request, await find(ledger, who.tenant, "anthropic", batch_id)))


def _shown(request: Request, row: Mapping[str, Any]) -> dict[str, Any]:
    """A batch as Anthropic shows it: counts move only when all of it has ended."""
    ended = row["ended_at"] is not None
    counts = row["counts"] or {}
    names = ("succeeded", "errored", "canceled", "expired")
    status = "ended" if ended else "canceling" if row["cancelling_at"] is not None else "in_progress"
    return {
        "id": row["id"],
        "type": "message_batch",
        "processing_status": status,
        "request_counts": {
            "processing": 0 if ended else row["total"],
            **{name: counts.get(name, 0) for name in names},
        },
        "created_at": _text(row["created_at"]),
        "expires_at": _text(row["expires_at"]),
        "ended_at": _text(row["ended_at"]),
        "cancel_initiated_at": _text(row["cancelling_at"]),
        "archived_at": None,
        # SDKs follow it as it stands, with the key: it must be absolute, and ours.
        "results_url": f"{_origin(request)}/v1/messages/batches/{row['id']}/results" if ended else None,
    }


def _origin(request: Request) -> str:
    """How this client reaches us: as configured, else as it did just now."""
    gateway = request.app.state.gateway
    if gateway.settings.gateway_public_url:
        return str(gateway.public_url)
    return f"{request.url.scheme}://{request.headers.get('host') or request.url.netloc}"


def _text(at: datetime | None) -> str | None:
    return None if at is None else at.isoformat().replace("+00:00", "Z")


async def get(request: Request) -> Response:
    """How far it is."""
    who = await authorize(request, "jobs")
    ledger = request.app.state.gateway.client.ledger
    return JSONResponse(_shown(request, await find(ledger, who.tenant, "anthropic", request.path_params["id"])))


async def list_all(request: Request) -> Response:
    """The tenant's batches, newest first."""
    who = await authorize(request, "jobs")
    limit = limit_of(request, 1000, 20)
    params = {
        "tenant": who.tenant,
        "dialect": "anthropic",
        "id": None,
        "after": cursor_of(request, "after_id"),
        "before": cursor_of(request, "before_id"),
        "limit": limit + 1,
    }
    rows = await request.app.state.gateway.client.ledger.fetch(batches.LIST, params)
    page = [_shown(request, row) for row in rows[:limit]]
    return JSONResponse(
        {
            "data": page,
            "has_more": len(rows) > limit,
            "first_id": page[0]["id"] if page else None,
            "last_id": page[-1]["id"] if page else None,
        }
    )


async def results(request: Request) -> Response:
    """What became of each request, as JSON Lines."""
    who = await authorize(request, "jobs")
    client = request.app.state.gateway.client
    row = await find(client.ledger, who.tenant, "anthropic", request.path_params["id"])
    if row["ended_at"] is None:
        raise Refusal(Kind.NOT_FOUND, f"batch {row['id']} has not ended; it has no results yet")
    return StreamingResponse(anthropic_lines(client, row), media_type="application/x-jsonl")


async def cancel(request: Request) -> Response:
    """Stop it; what is done stays done. Harmless when it has ended."""
    who = await authorize(request, "jobs")
    ledger, batch_id = request.app.state.gateway.client.ledger, request.path_params["id"]
    await find(ledger, who.tenant, "anthropic", batch_id)
    await stop(request, who, batch_id)
    return JSONResponse(_shown(request, await find(ledger, who.tenant, "anthropic", batch_id)))


async def delete(request: Request) -> Response:
    """Forget a batch that has ended. Its jobs and what they cost stay on the ledger."""
    who = await authorize(request, "jobs")
    ledger, batch_id = request.app.state.gateway.client.ledger, request.path_params["id"]
    await find(ledger, who.tenant, "anthropic", batch_id)
    if not await ledger.fetch(batches.REMOVE, {"id": batch_id, "tenant": who.tenant}):
        raise Refusal(Kind.INVALID, f"batch {batch_id} is in progress; cancel it first")
    return JSONResponse({"id": batch_id, "type": "message_batch_deleted"})


routes = [
    Route("/v1/messages/batches", list_all, methods=["GET"]),
    Route("/v1/messages/batches", create, methods=["POST"]),
    Route("/v1/messages/batches/{id}", get, methods=["GET"]),
    Route("/v1/messages/batches/{id}", delete, methods=["DELETE"]),
    Route("/v1/messages/batches/{id}/results", results, methods=["GET"]),
    Route("/v1/messages/batches/{id}/cancel", cancel, methods=["POST"]),
]
