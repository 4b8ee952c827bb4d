"""Who asks: the one place where a request becomes a tenant with scopes.

In development mode (loopback, no keys) everybody on this machine is the tenant `default`. A browser page must not be able
to use that: its requests carry a foreign `Host` (DNS rebinding) or `Origin`, and are refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from starlette.requests import Request

from producers.gateway.errors import Kind, Refusal

ALL_SCOPES: Final = frozenset({"call", "jobs", "admin"})
_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1", "testserver"})


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks.

    Attributes:
        tenant: Whose job it becomes.
        key_id: Of the key used; None in development mode.
        scopes: What it may do.
    """

    tenant: str
    key_id: str | None
    scopes: frozenset[str]


def key_of(request: Request) -> str | None:
    """The key of a request: `Authorization: Bearer` or `x-api-key`, whatever the dialect (both are seen in both)."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token.strip():
        return token.strip()
    return request.headers.get("x-api-key") or None


async def authenticate(request: Request) -> Principal:
    """Who asks.

    Raises:
        Refusal: Nobody we know, or its key makes too many requests.
    """
    gateway = request.app.state.gateway
    if gateway.is_development and not await gateway.keyring.any_exist():
        return _developer(request)
    record = await gateway.keyring.find(key_of(request))
    await gateway.keyring.enter(record, request.state.request_id)
    return Principal(record.tenant, record.id, record.scopes)


async def authorize(request: Request, scope: str) -> Principal:
    """Who asks, where the key must have a scope.

    Raises:
        Refusal: Nobody we know, or the key may not.
    """
    who = await authenticate(request)
    if "\0" in request.url.path:
        raise Refusal(Kind.NOT_FOUND, "no id has a NUL character in it")
    if b"%00" in request.scope.get("query_string", b""):
        raise Refusal(Kind.INVALID, "a NUL character in the query")
    if scope not in who.scopes:
        raise Refusal(Kind.PERMISSION, f"this key may not do that; it lacks the scope `{scope}`")
    return who


def _developer(request: Request) -> Principal:
    host = urlsplit(f"//{request.headers.get('host', '')}").hostname or ""
    origin = request.headers.get("origin")
    if host not in _LOOPBACK or (origin is not None and urlsplit(origin).hostname not in _LOOPBACK):
        raise Refusal(
            Kind.PERMISSION,
            "development mode answers this machine only: call it as 127.0.0.1 or localhost, not from another site's page",
        )
    return Principal("default", None, ALL_SCOPES)
