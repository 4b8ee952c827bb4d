"""Serves the exporter's text over HTTP: `GET /metrics` for Prometheus, and nothing else."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from waybill.ledger.engine import Ledger
from waybill.probe import beating
from waybill.redislink import connect_async
from waybill.settings import Settings
from workers.exporter import Exporter
from workers.policywatch import PolicyWatch
from workers.providers.registry import available
from workers.runtime import load_policy, policy_path
from workers.telemetry import configure, emit

if TYPE_CHECKING:
    from starlette.applications import Starlette

FRESH_S = 2.0
"""Two scrapers (or a person with curl) within this time get the same look."""
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@asynccontextmanager
async def exporting(settings: Settings) -> AsyncIterator[Exporter]:
    """An exporter over the ledger and Redis that the settings name; takes over a changed policy file at each look."""
    watch = PolicyWatch(policy_path(settings), load_policy(settings))
    ledger = Ledger(settings.require_database_url(), pool_size=1)
    redis = connect_async(settings.require_redis_url(), socket_connect_timeout=2, socket_timeout=5)
    try:
        yield Exporter(ledger, redis, watch, _without_workers(settings, watch))
    finally:
        await redis.aclose()
        await ledger.close()


def _without_workers(settings: Settings, watch: PolicyWatch) -> frozenset[str]:
    """Providers whose lanes are off. Where this process has none of the keys (a pod of its own) nothing is known."""
    state = available(settings, watch.policy)
    off = frozenset(name for name, why in state.items() if why is not None)
    if settings.providers is not None:
        return frozenset(state) - frozenset(settings.providers.split(","))
    return off if {"anthropic", "openai"} - off else frozenset()


async def read_once(settings: Settings) -> str:
    """All metrics, read once."""
    async with exporting(settings) as exporter:
        return await exporter.look()


def make_app(settings: Settings) -> Starlette:
    """The ASGI app."""
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with exporting(settings) as exporter, beating(settings.heartbeat_file, lambda: None):
            app.state.exporter = exporter
            app.state.told = (float("-inf"), "")
            app.state.lock = asyncio.Lock()
            emit("worker.ready", queues="-", concurrency=0)
            yield

    async def read(request: Request) -> Response:
        state = request.app.state
        async with state.lock:
            at, text = state.told
            if time.monotonic() - at > FRESH_S:
                text = await state.exporter.look()
                state.told = (time.monotonic(), text)
        return Response(text, headers={"content-type": CONTENT_TYPE})

    return Starlette(routes=[Route("/metrics", read)], lifespan=lifespan)


def run_metrics(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT."""
    import uvicorn

    configure(settings.log_level, settings.log_format)
    settings.require_database_url()
    settings.require_redis_url()
    uvicorn.run(
        make_app(settings),
        host=settings.metrics_address,
        port=settings.metrics_port,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=5,
    )
    return 0
