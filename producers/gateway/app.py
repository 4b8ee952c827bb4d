"""The gateway's application: its routes, what they share, and how an error leaves it.

A module of the API exports `routes`; `ROUTE_MODULES` is the whole table.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING, Final, Protocol

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from policies.policyfile import Policy
from producers.dashboard import page
from producers.gateway import admin, batches, calls, document, files, jobs, messagebatches, models, webhooks
from producers.gateway.address import networks
from producers.gateway.clerk import Clerk
from producers.gateway.errors import Family, Kind, Refusal, response
from producers.gateway.keys import KeyRing, Turnstile
from producers.gateway.mailroom import Mailroom
from producers.gateway.postman import Postman
from waybill import trace
from waybill.client import AsyncClient
from waybill.errors import IdempotencyConflict, InvalidJob, ServiceUnavailable
from waybill.redislink import connect_async
from waybill.settings import Settings

if TYPE_CHECKING:
    from redis.asyncio import Redis

log = logging.getLogger("waybill.gateway")

ROUTE_MODULES: Final[tuple[ModuleType, ...]] = (
    document,
    models,
    calls,
    admin,
    jobs,
    files,
    batches,
    messagebatches,
    webhooks,
    page,
)
# Real clients are configured with and without /v1 in their base URL, and some add a second one (clients.md).
_BARE: Final = re.compile(
    r"/(?:v1/)*(?=(?:messages|chat/completions|responses|models|files|batches|embeddings)(?:/|$))"
)
_KIND_OF_STATUS: Final = {404: Kind.NOT_FOUND, 405: Kind.METHOD, 413: Kind.TOO_LARGE}


class PolicyNews(Protocol):
    """Who looks at the policy file (workers/policywatch.py)."""

    async def keep_looking(self, take: Callable[[Policy], None]) -> None:
        """Until cancelled: hand each new policy to `take`, in this loop."""
        ...


@dataclass(slots=True)
class Gateway:
    """What all routes share: `request.app.state.gateway`.

    Attributes:
        settings: Of this process.
        policy: The routing policy in force: which models and intents exist.
        off: Providers whose lanes are off here.
        client: Connections to ledger, Redis and broker.
        is_development: On loopback: as long as there are no keys everybody is tenant `default`.
        keyring: Who has which key.
        redis: For what waits for news of jobs.
        mailroom: Where the answers of this process's jobs come in.
        clerk: Carries batches through.
        news: Tells of changes of the policy file; None = it is read once.
    """

    settings: Settings
    policy: Policy
    off: frozenset[str]
    client: AsyncClient
    is_development: bool
    news: PolicyNews | None = None
    keyring: KeyRing = field(init=False)
    redis: Redis = field(init=False)
    mailroom: Mailroom = field(init=False)
    clerk: Clerk = field(init=False)

    def __post_init__(self) -> None:
        self.redis = connect_async(self.settings.require_redis_url(), socket_connect_timeout=2)
        self.keyring = KeyRing(self.client.ledger, self.settings.require_redis_url())
        self.mailroom = Mailroom(self.client)
        self.clerk = Clerk(self.client, self.policy, self.off)

    def take_policy(self, policy: Policy) -> None:
        """Put a changed policy in force. Requests under way end as they began."""
        self.policy = self.clerk.policy = policy

    @property
    def public_url(self) -> str:
        """Where clients reach this gateway; absolute links in answers begin with it."""
        settings = self.settings
        return (settings.gateway_public_url or f"http://{settings.gateway_address}:{settings.gateway_port}").rstrip("/")


def make_app(gateway: Gateway) -> ASGIApp:
    """The application; it closes the gateway's client when it is shut down."""

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        postman = Postman(gateway.client.ledger, private=networks(gateway.settings.webhook_networks))
        postman.start()
        await gateway.client.ledger.open()  # the first caller need not wait for a connection
        gateway.clerk.start()
        gateway.mailroom.start(gateway.redis)
        hearing = None if gateway.news is None else asyncio.create_task(gateway.news.keep_looking(gateway.take_policy))
        yield
        if hearing is not None:
            hearing.cancel()
        await postman.close()
        await gateway.clerk.close()
        await gateway.mailroom.close()
        await gateway.keyring.close()
        await gateway.redis.aclose()
        await gateway.client.close()

    table: list[BaseRoute] = [Route("/healthz", _healthy)]
    for module in ROUTE_MODULES:
        table += module.routes
    app = Starlette(
        routes=table,
        lifespan=lifespan,
        exception_handlers={
            Refusal: _refused,
            HTTPException: _refused,
            InvalidJob: _refused,
            ServiceUnavailable: _refused,
            Exception: _failed,
        },
    )
    app.state.gateway = gateway
    app.router.redirect_slashes = False
    return _OneSpelling(Turnstile(app, gateway.keyring))


class _OneSpelling:
    """Serves /messages and /v1/v1/messages as /v1/messages, and gives every request an id."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope.setdefault("state", {})["request_id"] = f"req_{secrets.token_hex(12)}"
            path = _BARE.sub("/v1/", scope["path"], count=1)
            if path != scope["path"] and _BARE.match(scope["path"]):
                scope = {**scope, "path": path, "raw_path": path.encode()}
            given = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"traceparent"), None)
            trace.GIVEN.set(given if trace.parse(given) else None)
        await self._app(scope, receive, send)


def family_of(request: Request) -> Family:
    """Whose errors a client of this path understands."""
    path = request.url.path
    if path.startswith("/v1/messages"):
        return "anthropic"
    if path.startswith("/v1/models") and "anthropic-version" in request.headers:
        return "anthropic"
    return "openai"


async def _refused(request: Request, exc: Exception) -> Response:
    return response(as_refusal(exc), family_of(request), request.state.request_id)


async def _failed(request: Request, exc: Exception) -> Response:
    log.error("a bug: %s on %s %s", type(exc).__name__, request.method, request.url.path)
    refusal = Refusal(Kind.SERVER_ERROR, "the gateway failed at this request; its log has the cause")
    return response(refusal, family_of(request), request.state.request_id)


def as_refusal(exc: Exception) -> Refusal:
    """The refusal for what a route raised."""
    match exc:
        case Refusal():
            return exc
        case HTTPException():
            return Refusal(_KIND_OF_STATUS.get(exc.status_code, Kind.INVALID), exc.detail)
        case IdempotencyConflict():
            return Refusal(Kind.CONFLICT, str(exc))
        case InvalidJob():
            return Refusal(Kind.INVALID, str(exc))
        case _:
            return Refusal(Kind.OVERLOADED, f"{exc}; nothing was accepted, try again", retry_after_s=2)


async def _healthy(_: Request) -> Response:
    return JSONResponse({"status": "ok"})
