"""Keys, tenants and budgets over HTTP, for keys with the scope `admin`: the same statements as the `waybill` commands.

    GET, POST /v1/admin/keys       DELETE /v1/admin/keys/{id}
    GET, POST /v1/admin/tenants    PATCH /v1/admin/tenants/{name}
    GET, POST, DELETE /v1/admin/budgets

An admin key works on all tenants. A field that is not known is a 400, never ignored.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from producers.gateway.body import read_object
from producers.gateway.errors import Kind, Refusal
from producers.gateway.principal import authorize
from waybill.errors import ConfigError
from waybill.ledger import budgets, keys

M = TypeVar("M", bound=BaseModel)
_TENANT = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$"


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class NewKey(_Strict):
    """POST /v1/admin/keys."""

    tenant: str = Field(pattern=_TENANT)
    name: str = Field(default="", max_length=200)
    scopes: list[Literal["call", "jobs", "admin"]] = Field(default=["call", "jobs"], min_length=1)
    days: int | None = Field(default=None, ge=1, le=3650)
    requests_per_minute: int | None = Field(default=None, ge=1, le=1_000_000)
    concurrency: int | None = Field(default=None, ge=1, le=100_000)


class NewTenant(_Strict):
    """POST /v1/admin/tenants."""

    name: str = Field(pattern=_TENANT)
    weight: int = Field(default=1, ge=1, le=100)


class TenantChange(_Strict):
    """PATCH /v1/admin/tenants/{name}."""

    suspended: bool


class NewBudget(_Strict):
    """POST /v1/admin/budgets: sets or changes one."""

    scope: Literal["tenant", "key", "run"]
    subject: str = Field(min_length=1, max_length=100)
    cap_usd: Decimal = Field(ge=0, le=1_000_000_000, allow_inf_nan=False)
    period: Literal["total", "day", "month"] = "month"
    at_cap: Literal["stop", "park", "cheaper"] = "stop"
    alert_shares: list[int] = Field(default=[50, 80, 100], max_length=20)


async def parsed(request: Request, model: type[M]) -> M:
    """The body as a model.

    Raises:
        Refusal: Naming the field that is wrong.
    """
    body = await read_object(request)
    try:
        return model.model_validate(body)
    except ValidationError as exc:
        first = exc.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise Refusal(Kind.INVALID, first["msg"].removeprefix("Value error, "), param=where or None) from None


def plain(rows: Any) -> list[dict[str, Any]]:
    """Rows as JSON has them: times as text, money exact as text."""
    return [
        {
            name: value.isoformat()
            if isinstance(value, datetime)
            else str(value)
            if isinstance(value, Decimal)
            else value
            for name, value in row.items()
        }
        for row in rows
    ]


def _list(rows: Any) -> JSONResponse:
    return JSONResponse({"object": "list", "data": plain(rows)})


async def list_keys(request: Request) -> Response:
    """All open keys, without what opens anything."""
    await authorize(request, "admin")
    ledger = request.app.state.gateway.client.ledger
    return _list(await ledger.fetch(keys.LIST, {"tenant": request.query_params.get("tenant"), "all": False}))


async def create_key(request: Request) -> Response:
    """A new key; the only answer that ever has it."""
    await authorize(request, "admin")
    asked = await parsed(request, NewKey)
    made = keys.make_key()
    await request.app.state.gateway.client.ledger.fetch(
        keys.CREATE,
        {
            "id": made.id,
            "tenant": asked.tenant,
            "name": asked.name,
            "hash": made.hash,
            "hint": made.hint,
            "scopes": keys.check_scopes(asked.scopes),
            "requests_per_minute": asked.requests_per_minute,
            "concurrency": asked.concurrency,
            "expires_at": None if asked.days is None else datetime.now(UTC) + timedelta(days=asked.days),
        },
    )
    body = {"id": made.id, "tenant": asked.tenant, "name": asked.name, "scopes": asked.scopes, "key": made.secret}
    return JSONResponse(body, status_code=201, headers={"cache-control": "no-store"})


async def revoke_key(request: Request) -> Response:
    """Close a key."""
    await authorize(request, "admin")
    key_id = request.path_params["id"]
    ledger = request.app.state.gateway.client.ledger
    if not await ledger.fetch(keys.REVOKE, {"id": key_id, "tenant": None}):
        raise Refusal(Kind.NOT_FOUND, f"there is no open key {key_id!r}")
    return JSONResponse({"id": key_id, "revoked": True})


async def list_tenants(request: Request) -> Response:
    """All tenants with what they spent in 30 days."""
    await authorize(request, "admin")
    return _list(await request.app.state.gateway.client.ledger.fetch(keys.TENANTS, {"name": None}))


async def add_tenant(request: Request) -> Response:
    """A new tenant."""
    await authorize(request, "admin")
    asked = await parsed(request, NewTenant)
    ledger = request.app.state.gateway.client.ledger
    if not await ledger.fetch(keys.ADD_TENANT, {"name": asked.name, "weight": asked.weight}):
        raise Refusal(Kind.CONFLICT, f"tenant {asked.name!r} is there already")
    return JSONResponse({"name": asked.name, "weight": asked.weight}, status_code=201)


async def change_tenant(request: Request) -> Response:
    """Suspend or reopen a tenant."""
    await authorize(request, "admin")
    asked = await parsed(request, TenantChange)
    name = request.path_params["name"]
    ledger = request.app.state.gateway.client.ledger
    if not await ledger.fetch(keys.SUSPEND, {"name": name, "suspended": asked.suspended}):
        raise Refusal(Kind.NOT_FOUND, f"there is no tenant {name!r}")
    return JSONResponse({"name": name, "suspended": asked.suspended})


async def list_budgets(request: Request) -> Response:
    """All budgets with what is spent and reserved."""
    await authorize(request, "admin")
    return _list(await request.app.state.gateway.client.ledger.fetch(budgets.LIST, {"scope": None, "subjects": None}))


async def set_budget(request: Request) -> Response:
    """Set or change a budget; those who waited for it ask again."""
    await authorize(request, "admin")
    asked = await parsed(request, NewBudget)
    if any(not 1 <= share <= 100 for share in asked.alert_shares):
        raise Refusal(Kind.INVALID, "must be percents from 1 to 100", param="alert_shares")
    ledger = request.app.state.gateway.client.ledger
    if asked.scope == "tenant":
        try:
            keys.check_tenant(asked.subject)
        except ConfigError as exc:
            raise Refusal(Kind.INVALID, str(exc), param="subject") from None
    elif not await ledger.fetch(_SUBJECTS[asked.scope], {"id": asked.subject}):
        raise Refusal(Kind.NOT_FOUND, f"there is no {asked.scope} {asked.subject!r}", param="subject")
    fields = {**asked.model_dump(), "alert_shares": sorted(set(asked.alert_shares))}
    rows = await ledger.fetch(budgets.SET, fields)
    await ledger.fetch(budgets.LET_ASK, {"id": rows[0]["id"]})
    mine = await ledger.fetch(budgets.LIST, {"scope": asked.scope, "subjects": [asked.subject]})
    return JSONResponse(plain([row for row in mine if row["id"] == rows[0]["id"]])[0])


_SUBJECTS = {
    "key": "select from api_keys where id = %(id)s",
    "run": "select from runs where id::text = %(id)s",
}


async def remove_budget(request: Request) -> Response:
    """Lift a budget: ?scope=...&subject=...[&period=...]."""
    await authorize(request, "admin")
    query = request.query_params
    for name in ("scope", "subject"):
        if name not in query:
            raise Refusal(Kind.INVALID, "is missing from the query", param=name)
    ledger = request.app.state.gateway.client.ledger
    params = {"scope": query["scope"], "subject": query["subject"], "period": query.get("period")}
    for row in await ledger.fetch(budgets.LIST, {"scope": query["scope"], "subjects": [query["subject"]]}):
        await ledger.fetch(budgets.LET_ASK, {"id": row["id"]})
    if not await ledger.fetch(budgets.REMOVE, params):
        raise Refusal(Kind.NOT_FOUND, "there is no such budget")
    return JSONResponse({**params, "removed": True})


routes = [
    Route("/v1/admin/keys", list_keys, methods=["GET"]),
    Route("/v1/admin/keys", create_key, methods=["POST"]),
    Route("/v1/admin/keys/{id}", revoke_key, methods=["DELETE"]),
    Route("/v1/admin/tenants", list_tenants, methods=["GET"]),
    Route("/v1/admin/tenants", add_tenant, methods=["POST"]),
    Route("/v1/admin/tenants/{name}", change_tenant, methods=["PATCH"]),
    Route("/v1/admin/budgets", list_budgets, methods=["GET"]),
    Route("/v1/admin/budgets", set_budget, methods=["POST"]),
    Route("/v1/admin/budgets", remove_budget, methods=["DELETE"]),
]
