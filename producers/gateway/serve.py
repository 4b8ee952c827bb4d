"""Runs the gateway: refuses to start open to others, binds the port, serves until told to stop."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import signal
import sys

import psycopg
import uvicorn

from policies.policyfile import Policy
from producers.gateway.address import networks
from producers.gateway.app import Gateway, PolicyNews, make_app
from waybill.client import AsyncClient
from waybill.errors import ConfigError, LedgerUnavailable
from waybill.ledger import keys
from waybill.ledger.engine import Ledger
from waybill.settings import Settings

log = logging.getLogger("waybill.gateway")

DEVELOPMENT_NOTE = (
    "DEVELOPMENT MODE: no keys. Every program on this machine is tenant 'default' and may spend; nothing else gets in."
)


def is_loopback(address: str) -> bool:
    """Whether only this machine can reach the address."""
    if address == "localhost":
        return True
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def make_gateway(settings: Settings, policy: Policy, off: frozenset[str], news: PolicyNews | None = None) -> Gateway:
    """The gateway as configured.

    Raises:
        ConfigError: It would be open to others.
    """
    try:
        networks(settings.webhook_networks)
    except ValueError as exc:
        raise ConfigError(f"WAYBILL_WEBHOOK_NETWORKS: {exc}; write networks with commas, such as 10.1.0.0/16") from None
    is_private = is_loopback(settings.gateway_address)
    if not is_private:
        _require_keys(settings)
    client = AsyncClient(
        settings.require_database_url(), settings.require_redis_url(), broker_url=settings.require_broker_url()
    )
    return Gateway(settings, policy, off, client, is_development=is_private, news=news)


def _require_keys(settings: Settings) -> None:
    """Stop unless somebody has a key."""

    async def exist() -> bool:
        ledger = Ledger(settings.require_database_url(), pool_size=1)
        try:
            return bool((await ledger.fetch(keys.ANY))[0]["there"])
        finally:
            await ledger.close()

    where = f"WAYBILL_GATEWAY_ADDRESS={settings.gateway_address} lets others in, and"
    try:
        found = asyncio.run(exist())
    except LedgerUnavailable as exc:
        raise ConfigError(f"{where} the ledger, which has the keys, cannot be asked: {exc}") from None
    except psycopg.Error:
        raise ConfigError(f"{where} this ledger has no table of keys; run `waybill db upgrade`") from None
    if not found:
        raise ConfigError(f"{where} there are no keys; make one with `waybill keys create TENANT`, or use 127.0.0.1")


def run_gateway(settings: Settings, policy: Policy, off: frozenset[str], news: PolicyNews) -> None:
    """Serve until SIGTERM or Ctrl-C. The caller has set logging up.

    Raises:
        ConfigError: It would be open to others, or the port is taken.
    """
    gateway = make_gateway(settings, policy, off, news)
    config = uvicorn.Config(
        make_app(gateway),
        host=settings.gateway_address,
        port=settings.gateway_port,
        loop="auto",
        http="httptools",
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=int(settings.drain_s) + 1,
        backlog=2048,
    )
    try:
        bound = config.bind_socket()
        bound.listen(2048)  # who connects from here on waits for the first turn of the loop
    except (OSError, SystemExit):
        raise ConfigError(
            f"cannot listen on {settings.gateway_address}:{settings.gateway_port}; set WAYBILL_GATEWAY_PORT to a free port"
        ) from None
    if gateway.is_development:
        log.warning(DEVELOPMENT_NOTE)
    log.info("gateway.ready url=%s", gateway.public_url)
    # uvicorn raises the signal again after it has ended well, and a supervisor takes death by a signal for a failure.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        uvicorn.Server(config).run(sockets=[bound])
    finally:
        bound.close()
