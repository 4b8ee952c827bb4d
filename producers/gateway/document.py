"""The API as an OpenAPI document (`/openapi.json`), made from the routes themselves, and a page to read it (`/docs`).

A route's summary is the first line of its handler's docstring. What the bodies of the dialects hold is the providers' own
documentation; here stand the fields that every client sends. Every status that a route can answer is named, so that a test can
find one that is not. The dashboard's files and its feed are no part of it: they belong to its own page and change with it.
The page loads nothing from anywhere else.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, Final

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Route

from producers.gateway.admin import NewBudget, NewKey, NewTenant, TenantChange
from producers.gateway.jobs import Feedback
from producers.gateway.webhooks import NewWebhook

_PARAMETER: Final = re.compile(r"\{(\w+)(?::\w+)?\}")
_TURNS: Final[dict[str, Any]] = {
    "type": "array",
    "minItems": 1,
    "items": {"type": "object", "properties": {"role": {"type": "string"}}, "required": ["role"]},
}
_MODEL: Final[dict[str, Any]] = {"type": "string", "description": "A model, `waybill/INTENT` or `auto`."}
_WAYBILL: Final[dict[str, Any]] = {"type": "object", "description": "Waybill's own options; docs/gateway.md."}


def _body(required: Sequence[str], **properties: Any) -> dict[str, Any]:
    known = {"model": _MODEL, "stream": {"type": "boolean"}, "waybill": _WAYBILL, **properties}
    return {"type": "object", "properties": known, "required": ["model", *required]}


def _fields(model: type[BaseModel]) -> dict[str, Any]:
    found = model.model_json_schema()
    return {"type": "object", "additionalProperties": False} | {k: found[k] for k in ("properties", "required")}


_TEXT: Final[dict[str, Any]] = {"type": "string", "minLength": 1}
_BODIES: Final[dict[str, dict[str, Any]]] = {
    "/v1/chat/completions": _body(
        ["messages"], messages=_TURNS, max_completion_tokens={"type": "integer", "minimum": 1}
    ),
    "/v1/responses": _body(
        ["input"], input={"anyOf": [{"type": "string", "minLength": 1}, {"type": "array", "minItems": 1}]}
    ),
    "/v1/messages": _body(["messages", "max_tokens"], messages=_TURNS, max_tokens={"type": "integer", "minimum": 1}),
    "/v1/messages/count_tokens": _body(["messages"], messages=_TURNS),
    "/v1/jobs": {
        "type": "object",
        "properties": {
            "prompt": _TEXT,
            "intent": _TEXT,
            "model": _TEXT,
            "quality": {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
            "priority": {"enum": ["interactive", "batch"]},
        },
        "required": ["prompt"],
    },
    "/v1/jobs/{id}/feedback": _fields(Feedback),
    "/v1/batches": {
        "type": "object",
        "properties": {
            "input_file_id": _TEXT,
            "endpoint": {"enum": ["/v1/chat/completions", "/v1/responses"]},
            "completion_window": {"const": "24h"},
        },
        "required": ["input_file_id", "endpoint", "completion_window"],
    },
    "/v1/messages/batches": {
        "type": "object",
        "properties": {
            "requests": {
                "type": "array",
                "minItems": 1,
                "items": {
                    "type": "object",
                    "properties": {"custom_id": _TEXT, "params": {"type": "object"}},
                    "required": ["custom_id", "params"],
                },
            }
        },
        "required": ["requests"],
    },
    "/v1/webhooks": _fields(NewWebhook),
    "/v1/admin/keys": _fields(NewKey),
    "/v1/admin/tenants": _fields(NewTenant),
    "/v1/admin/tenants/{name}": _fields(TenantChange),
    "/v1/admin/budgets": _fields(NewBudget),
}
_SUCCESSES: Final[Mapping[tuple[str, str], tuple[int, ...]]] = {
    ("POST", "/v1/jobs"): (200, 202),
    ("GET", "/v1/jobs/{id}/result"): (200, 202),
    ("POST", "/v1/runs"): (202,),
    ("POST", "/v1/webhooks"): (201,),
    ("POST", "/v1/webhooks/{id}/test"): (202,),
    ("POST", "/v1/webhooks/deliveries/{id}/redeliver"): (202,),
    ("POST", "/v1/admin/keys"): (201,),
    ("POST", "/v1/admin/tenants"): (201,),
}
"""Where it is not 200 alone."""
_ALWAYS: Final = (400, 401, 403, 429, 500)
"""A request or a key that is wrong, or asks too often; a bug of ours."""
_JOB_ENDED: Final = (404, 409, 413, 504)
"""How a job may have ended: no such model, cancelled, too long, too late."""
_MORE: Final[Mapping[tuple[str, str], tuple[int, ...]]] = {
    ("POST", "/v1/chat/completions"): _JOB_ENDED,
    ("POST", "/v1/responses"): _JOB_ENDED,
    ("POST", "/v1/messages"): (402, *_JOB_ENDED),
    ("POST", "/v1/messages/count_tokens"): (404,),
    ("POST", "/v1/messages/batches"): (402,),
    ("POST", "/v1/jobs"): (409,),
    ("GET", "/v1/jobs/{id}/result"): _JOB_ENDED,
    ("POST", "/v1/runs"): (409, 413),
    ("POST", "/v1/files"): (413,),
    ("POST", "/v1/batches"): (404,),
    ("POST", "/v1/batches/{id}/cancel"): (409,),
    ("POST", "/v1/admin/tenants"): (409,),
    ("POST", "/v1/admin/budgets"): (404,),
    ("DELETE", "/v1/admin/budgets"): (404,),
}
_OPEN: Final = ("/healthz",)
"""Paths that ask nobody for a key and nothing of the ledger."""
_ERROR: Final[dict[str, Any]] = {
    "description": "An error in the dialect's own shape; docs/gateway.md has the table.",
    "content": {"application/json": {"schema": {"type": "object"}}},
}


def document(routes: Sequence[BaseRoute], url: str) -> dict[str, Any]:
    """The OpenAPI document of these routes."""
    paths: dict[str, Any] = {}
    for route in routes:
        if isinstance(route, Route) and route.include_in_schema:
            path = _PARAMETER.sub(r"{\1}", route.path)
            for method in sorted((route.methods or {"GET"}) - {"HEAD"}):
                paths.setdefault(path, {})[method.lower()] = _operation(route, path, method)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Waybill",
            "version": "1",
            "description": "One API in front of the fleet: OpenAI and Anthropic dialects, jobs, batches, keys, budgets.",
        },
        "servers": [{"url": url}],
        "security": [{"bearer": []}, {"key": []}, {}],
        "components": {
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            }
        },
        "paths": paths,
    }


def _operation(route: Route, path: str, method: str) -> dict[str, Any]:
    summary = (route.endpoint.__doc__ or "").strip().partition("\n")[0]
    operation: dict[str, Any] = {
        "operationId": f"{method.lower()}_{re.sub(r'[^a-z0-9]+', '_', path.lower()).strip('_')}",
        "summary": summary or path,
        "responses": {
            **{
                str(status): {"description": "As the summary says."}
                for status in _SUCCESSES.get((method, path), (200,))
            },
            **{str(status): _ERROR for status in _refusals(method, path)},
        },
    }
    names = _PARAMETER.findall(route.path)
    if names:
        operation["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
            for name in names
        ]
    if path in _BODIES and method in ("POST", "PATCH"):
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": _BODIES[path]}}}
    return operation


def _refusals(method: str, path: str) -> list[int]:
    """The statuses of the errors that a route can answer."""
    if path in _OPEN:
        return []
    found = {*_ALWAYS, *_MORE.get((method, path), ())}
    if "{" in path:
        found.add(404)
    if method in ("POST", "PATCH") and path in _BODIES:
        found.add(413)
    # Which dialect's word for "later": the listing of models speaks both.
    if not path.startswith("/v1/messages"):
        found.add(503)
    if path.startswith(("/v1/messages", "/v1/models")):
        found.add(529)
    return sorted(found)


async def get_document(request: Request) -> Response:
    """This document."""
    return JSONResponse(_of(request))


async def get_page(request: Request) -> Response:
    """A page to read it."""
    found = _of(request)
    rows = "".join(
        f"<tr><td><code>{method.upper()}</code></td><td><code>{escape(path)}</code></td>"
        f"<td>{escape(operation['summary'])}</td></tr>"
        for path, operations in found["paths"].items()
        for method, operation in operations.items()
    )
    url = escape(found["servers"][0]["url"])
    page = _PAGE.replace("URL", url).replace("ROWS", rows)
    return HTMLResponse(page, headers={"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'"})


def _of(request: Request) -> dict[str, Any]:
    return document(request.app.routes, request.app.state.gateway.public_url)


_PAGE: Final = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Waybill API</title>
<style>
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; width: 100% }
td { border-top: 1px solid color-mix(in srgb, currentColor 20%, transparent); padding: .4rem .6rem; vertical-align: top }
pre { padding: .8rem; overflow: auto; background: color-mix(in srgb, currentColor 8%, transparent) }
</style></head><body>
<h1>Waybill API</h1>
<p>Two dialects, one fleet. Point the SDK you have at it:</p>
<pre>openai.OpenAI(base_url="URL/v1", api_key=...)
anthropic.Anthropic(base_url="URL", api_key=...)</pre>
<p>In <code>model</code> stands a model, <code>waybill/INTENT</code> or <code>auto</code>. Options go into headers
<code>x-waybill-*</code>. The whole as <a href="/openapi.json">OpenAPI document</a>.</p>
<table>ROWS</table>
</body></html>
"""

routes = [
    Route("/openapi.json", get_document, include_in_schema=False),
    Route("/docs", get_page, include_in_schema=False),
]
