"""The dashboard's routes: the page and its two files for anybody, what it shows for keys with the scope `admin`.

A browser cannot send a key with a page's address, so the page itself holds nothing: its script asks with the key that was
typed in and kept for the length of the tab.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from producers.dashboard.watch import Watch
from producers.gateway.errors import Kind, Refusal
from producers.gateway.principal import Principal, authenticate
from waybill.ledger.story import read_story, tell

FOLDER: Final = Path(__file__).parent / "static"
FILES: Final = {
    "": ("index.html", "text/html"),
    "/app.css": ("app.css", "text/css"),
    "/app.js": ("app.js", "text/javascript"),
}
LIVE_EVERY_S: Final = 2.0
HEADERS: Final = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:;"
        " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}
PRIVATE: Final = {**HEADERS, "cache-control": "no-store"}


def _file(name: str, kind: str) -> Any:
    async def serve(_: Request) -> Response:
        return FileResponse(FOLDER / name, media_type=kind, headers=HEADERS)

    return serve


async def _watch(request: Request) -> Watch:
    """The gateway's one watch, for those who may see the whole fleet."""
    principal = await authenticate(request)
    if "admin" not in principal.scopes:
        raise Refusal(Kind.PERMISSION, "the dashboard shows all tenants' work: it needs a key with the scope admin")
    state = request.app.state
    gateway = state.gateway
    if not hasattr(state, "dashboard"):
        state.dashboard = Watch(
            gateway.client.ledger, gateway.client._redis, gateway.policy, gateway.settings.flower_public_url
        )
    watch: Watch = state.dashboard
    watch.policy = gateway.policy
    return watch


async def state(request: Request) -> Response:
    """The state of the fleet, once."""
    watch = await _watch(request)
    return Response(_json(await watch.look()), media_type="application/json", headers=PRIVATE)


async def live(request: Request) -> Response:
    """The state of the fleet, again and again: server-sent events."""
    watch = await _watch(request)

    async def events() -> AsyncIterator[str]:
        while not await request.is_disconnected():
            yield f"event: state\ndata: {_json(await watch.look())}\n\n"
            await asyncio.sleep(LIVE_EVERY_S)

    return StreamingResponse(events(), media_type="text/event-stream", headers={**PRIVATE, "x-accel-buffering": "no"})


async def job(request: Request) -> Response:
    """A job's story, for its tenant's keys with the scope `jobs` and for `admin`."""
    principal = await authenticate(request)
    try:
        story = await read_story(request.app.state.gateway.client.ledger, request.path_params["job"])
    except LookupError as exc:
        raise Refusal(Kind.NOT_FOUND, str(exc.args[0])) from None
    if not _may_see(principal, story["job"]["tenant"]):
        # The same words as for a job that is not there: whether it exists is not told to others.
        raise Refusal(Kind.NOT_FOUND, f"no job {request.path_params['job']} in this ledger")
    shown = tell(story).replace(f", tenant {story['job']['tenant']}", "", 1)
    return JSONResponse({"id": story["job"]["id"], "state": story["job"]["state"], "story": shown}, headers=PRIVATE)


def _may_see(principal: Principal, tenant: str) -> bool:
    return "admin" in principal.scopes or ("jobs" in principal.scopes and principal.tenant == tenant)


async def _slash(_: Request) -> Response:
    return RedirectResponse("/dashboard", status_code=307)


def _json(value: Any) -> str:
    return json.dumps(value, default=_plain, separators=(",", ":"))


def _plain(value: Any) -> Any:
    return (
        float(value) if isinstance(value, Decimal) else value.isoformat() if hasattr(value, "isoformat") else str(value)
    )


routes = [
    *(Route(f"/dashboard{path}", _file(*file), include_in_schema=False) for path, file in FILES.items()),
    Route("/dashboard/", _slash, include_in_schema=False),
    Route("/dashboard/state", state, include_in_schema=False),
    Route("/dashboard/live", live, include_in_schema=False),
    Route("/dashboard/jobs/{job}", job, include_in_schema=False),
]
