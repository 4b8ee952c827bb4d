"""Webhooks over HTTP: register, list, test, remove, and look after deliveries.

GET, POST /v1/webhooks                     DELETE /v1/webhooks/{id}
POST /v1/webhooks/{id}/test                POST /v1/webhooks/{id}/enable
GET /v1/webhooks/{id}/deliveries           POST /v1/webhooks/deliveries/{id}/redeliver
"""

from __future__ import annotations

import json
import secrets
from datetime import UTC, datetime
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from producers.gateway.address import AddressRefused, check, networks
from producers.gateway.admin import parsed, plain
from producers.gateway.errors import Kind, Refusal
from producers.gateway.principal import authorize
from waybill.ledger import webhooks
from waybill.webhooks import make_secret

MOST: Final = 20
"""Webhooks of one tenant."""


class NewWebhook(BaseModel):
    """POST /v1/webhooks."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str = Field(min_length=1, max_length=2000)
    events: list[Literal["job.finished", "run.finished", "batch.finished", "budget.alert"]] = Field(min_length=1)
    description: str = Field(default="", max_length=200)


async def create(request: Request) -> Response:
    """A new webhook. Its secret is in this answer and in no other."""
    who = await authorize(request, "jobs")
    asked = await parsed(request, NewWebhook)
    gateway = request.app.state.gateway
    try:
        await check(asked.url, private=networks(gateway.settings.webhook_networks))
    except AddressRefused as exc:
        raise Refusal(Kind.INVALID, str(exc), param="url") from None
    ledger = gateway.client.ledger
    if len(await ledger.fetch(webhooks.LIST, {"tenant": who.tenant, "id": None})) >= MOST:
        raise Refusal(Kind.INVALID, f"a tenant has at most {MOST} webhooks; remove one first")
    webhook_id, secret = f"wh_{secrets.token_hex(12)}", make_secret()
    fields = {**asked.model_dump(), "events": sorted(set(asked.events))}
    await ledger.fetch(webhooks.CREATE, {"id": webhook_id, "tenant": who.tenant, "secret": secret, **fields})
    body = {"id": webhook_id, "object": "webhook", **fields, "secret": secret}
    return JSONResponse(body, status_code=201, headers={"cache-control": "no-store"})


async def list_all(request: Request) -> Response:
    """The tenant's webhooks."""
    who = await authorize(request, "jobs")
    rows = await request.app.state.gateway.client.ledger.fetch(webhooks.LIST, {"tenant": who.tenant, "id": None})
    return JSONResponse({"object": "list", "data": plain(rows)})


async def remove(request: Request) -> Response:
    """Forget a webhook and its deliveries."""
    who = await authorize(request, "jobs")
    await _changed(request, webhooks.REMOVE, who.tenant)
    return JSONResponse({"id": request.path_params["id"], "object": "webhook", "deleted": True})


async def enable(request: Request) -> Response:
    """Switch a webhook on again that was switched off by a 410."""
    who = await authorize(request, "jobs")
    await _changed(request, webhooks.ENABLE, who.tenant)
    return JSONResponse({"id": request.path_params["id"], "object": "webhook", "enabled": True})


async def _changed(request: Request, statement: str, tenant: str) -> None:
    params = {"id": request.path_params["id"], "tenant": tenant}
    if not await request.app.state.gateway.client.ledger.fetch(statement, params):
        raise _unknown(request)


def _unknown(request: Request) -> Refusal:
    return Refusal(Kind.NOT_FOUND, f"there is no webhook {request.path_params['id']!r}")


async def test(request: Request) -> Response:
    """Send a `webhook.test` event."""
    who = await authorize(request, "jobs")
    now = datetime.now(UTC).isoformat()
    rows = await request.app.state.gateway.client.ledger.fetch(
        webhooks.ADD,
        {
            "tenant": who.tenant,
            "webhook": request.path_params["id"],
            "event": "webhook.test",
            "subject": secrets.token_hex(8),
            "payload": json.dumps({"type": "webhook.test", "timestamp": now, "data": {}}),
        },
    )
    if not rows:
        raise _unknown(request)
    return JSONResponse({"id": rows[0]["id"], "object": "webhook.delivery", "state": "waiting"}, status_code=202)


async def deliveries(request: Request) -> Response:
    """The latest hundred deliveries of a webhook."""
    who = await authorize(request, "jobs")
    ledger = request.app.state.gateway.client.ledger
    params = {"tenant": who.tenant, "id": request.path_params["id"]}
    if not await ledger.fetch(webhooks.LIST, params):
        raise _unknown(request)
    return JSONResponse(
        {"object": "list", "data": plain(await ledger.fetch(webhooks.DELIVERIES, {**params, "limit": 100}))}
    )


async def redeliver(request: Request) -> Response:
    """Send a delivery again, under its own id."""
    who = await authorize(request, "jobs")
    await _changed(request, webhooks.REDELIVER, who.tenant)
    body = {"id": request.path_params["id"], "object": "webhook.delivery", "state": "waiting"}
    return JSONResponse(body, status_code=202)


routes = [
    Route("/v1/webhooks", list_all, methods=["GET"]),
    Route("/v1/webhooks", create, methods=["POST"]),
    Route("/v1/webhooks/deliveries/{id}/redeliver", redeliver, methods=["POST"]),
    Route("/v1/webhooks/{id}", remove, methods=["DELETE"]),
    Route("/v1/webhooks/{id}/test", test, methods=["POST"]),
    Route("/v1/webhooks/{id}/enable", enable, methods=["POST"]),
    Route("/v1/webhooks/{id}/deliveries", deliveries, methods=["GET"]),
]
