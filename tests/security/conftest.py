"""A gateway over a ledger of its own, without a fleet: what the checklist asks happens before any job runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from policies.policyfile import parse
from producers.gateway.app import Gateway, make_app
from producers.gateway.serve import make_gateway
from waybill.ledger import keys
from waybill.ledger.engine import Ledger
from waybill.settings import Settings

POLICY = parse((Path(__file__).parents[2] / "policies" / "default.toml").read_text(encoding="utf-8"), "default.toml")


class Api:
    """The gateway as clients meet it, and its ledger."""

    def __init__(self, database_url: str, redis_url: str) -> None:
        self.database_url, self.redis_url = database_url, redis_url
        settings = Settings.from_env({"WAYBILL_DATABASE_URL": database_url, "WAYBILL_REDIS_URL": redis_url})
        self.gateway: Gateway = make_gateway(settings, POLICY, frozenset({"local"}))
        self.http = TestClient(make_app(self.gateway), raise_server_exceptions=False)

    def sql(self, statement: str, params: dict[str, Any] | None = None) -> list[dict[str, Any]]:
        """Ask the ledger."""

        async def ask() -> list[dict[str, Any]]:
            ledger = Ledger(self.database_url, pool_size=1)
            try:
                return [dict(row) for row in await ledger.fetch(statement, params)]
            finally:
                await ledger.close()

        return asyncio.run(ask())

    def key(
        self,
        tenant: str = "acme",
        *scopes: str,
        expires_at: datetime | None = None,
        rpm: int | None = None,
        concurrency: int | None = None,
    ) -> str:
        """A new key."""
        made = keys.make_key()
        self.sql(
            keys.CREATE,
            {
                "id": made.id, "tenant": tenant, "name": "", "hash": made.hash, "hint": made.hint,
                "scopes": list(scopes or keys.DEFAULT_SCOPES), "requests_per_minute": rpm, "concurrency": concurrency,
                "expires_at": expires_at,
            },
        )  # fmt: skip
        return made.secret

    def get(self, path: str, key: str | None = None, **more: Any) -> Any:
        """GET with a key."""
        return self.http.get(path, headers=bearer(key), **more)

    def post(self, path: str, key: str | None = None, **more: Any) -> Any:
        """POST with a key."""
        return self.http.post(path, headers=bearer(key) | more.pop("headers", {}), **more)


def bearer(key: str | None) -> dict[str, str]:
    """The header of a key."""
    return {} if key is None else {"authorization": f"Bearer {key}"}


@pytest.fixture
def api(database_url: str, redis_url: str) -> Iterator[Api]:
    """One gateway."""
    found = Api(database_url, redis_url)
    with found.http:
        yield found


@pytest.fixture
def closed(api: Api) -> Callable[..., str]:
    """Makes keys; there is one already, so that nobody gets in without."""
    api.key("somebody")
    return api.key
