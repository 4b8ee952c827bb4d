"""`waybill config`: what is configured here, where each value comes from, and whether it can be used. Secrets are never shown."""

from __future__ import annotations

import difflib
import json
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

import click
from pydantic import SecretStr

from waybill.errors import ConfigError
from waybill.names import ENV_PREFIX
from waybill.redislink import connect
from waybill.settings import Settings

NOT_SETTINGS = frozenset(
    f"{ENV_PREFIX}{name}"
    for name in (
        "LOCAL", "SLOW", "DEPLOY", "CHROMIUM", "SCREENSHOTS", "FAULT_SEED", "CRASH_AT", "LOCAL_LANE", "CELERY", "PYTHON",
    )
)  # fmt: skip
"""Variables of ./run and of the tests."""


@click.group()
def config() -> None:
    """Show and check the configuration."""


def masked(value: Any) -> str:
    """A setting as it may be shown."""
    if isinstance(value, SecretStr):
        secret = value.get_secret_value()
        if "://" in secret:
            from sqlalchemy import make_url
            from sqlalchemy.exc import ArgumentError

            try:
                return make_url(secret).render_as_string(hide_password=True)
            except (ArgumentError, ValueError):
                return "***"
        return ", ".join(["***"] * len(secret.split(",")))
    return "-" if value is None else str(value)


def listed(environ: Mapping[str, str]) -> list[dict[str, str]]:
    """Every setting with its variable, shown value and source.

    Raises:
        ConfigError: A value cannot be used.
    """
    settings = Settings.from_env(environ)
    rows = []
    for name in Settings.model_fields:
        variable = Settings.variable(name)
        source = "environment" if environ.get(variable) else "default"
        rows.append({"variable": variable, "value": masked(getattr(settings, name)), "source": source})
    return rows


def unknown(environ: Mapping[str, str]) -> list[str]:
    """One line for each variable that looks like ours and is not."""
    known = {Settings.variable(name) for name in Settings.model_fields}
    lines = []
    for variable in sorted(environ):
        if variable.startswith(ENV_PREFIX) and variable not in known | NOT_SETTINGS:
            near = difflib.get_close_matches(variable, known, 1)
            lines.append(f"{variable} is no setting" + (f"; did you mean {near[0]}?" if near else ""))
    return lines


@config.command()
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def show(as_json: bool) -> None:
    """Show every setting, secrets masked, and where its value comes from."""
    rows = listed(os.environ)
    if as_json:
        click.echo(json.dumps(rows))
        return
    width = max(len(row["variable"]) for row in rows)
    for row in rows:
        click.echo(f"{row['variable']:<{width}}  {row['source']:<11}  {row['value']}")
    for line in unknown(os.environ):
        click.echo(f"! {line}", err=True)


@config.command()
@click.option("--connect", is_flag=True, help="Ask the ledger and Redis, too.")
def check(connect: bool) -> None:
    """Check settings, policy and prices; with --connect the services. Exit code 1 when something is wrong."""
    wrong = 0

    def tell(name: str, trouble: str | None, well: str = "") -> None:
        nonlocal wrong
        wrong += trouble is not None
        click.echo(f"wrong  {name}: {trouble}" if trouble else f"ok     {name}{': ' if well else ''}{well}")

    try:
        settings = Settings.from_env()
        tell("settings", None)
    except ConfigError as exc:
        tell("settings", str(exc))
        sys.exit(1)
    for line in unknown(os.environ):
        tell("environment", line)
    _check_policy(settings, tell)
    if connect:
        _check_services(settings, tell)
    sys.exit(1 if wrong else 0)


def _check_policy(settings: Settings, tell: Any) -> None:
    try:
        from datetime import UTC, datetime

        from policies.pricing import PriceBook
        from waybill.contract import Usage
        from workers.providers.registry import available
        from workers.runtime import load_policy, policy_path
    except ModuleNotFoundError:
        tell("policy", None, "not checked: the fleet's code is not here")
        return
    try:
        policy = load_policy(settings)
    except ConfigError as exc:
        tell("policy", str(exc))
        return
    tell("policy", None, f"{policy_path(settings).name}, version {policy.version}")
    prices = PriceBook(policy)
    for model_id in sorted({m for plan in policy.plans.values() for m in plan.chain} | {policy.flagship}):
        if policy.models[model_id].provider == "local":
            continue
        price = prices.cost(model_id, "interactive", Usage(input_tokens=1000, output_tokens=1000), datetime.now(UTC))
        tell(f"price of {model_id}", None if price is not None else f'unknown; add [prices."{model_id}"] to the policy')
    for provider, why in available(settings, policy).items():
        tell(f"provider {provider}", None, "on" if why is None else f"off, {why}")


def _check_services(settings: Settings, tell: Any) -> None:
    import asyncio

    async def ask_ledger() -> str:
        from waybill.ledger.engine import Ledger

        ledger = Ledger(settings.require_database_url(), pool_size=1)
        try:
            rows = await ledger.fetch("select version_num from alembic_version")
        finally:
            await ledger.close()
        return str(rows[0]["version_num"]) if rows else "empty"

    def ask_redis() -> str:
        with connect(settings.require_redis_url(), socket_connect_timeout=5, socket_timeout=5) as connection:
            return str(connection.info("server").get("redis_version"))

    asking: dict[str, Callable[[], str]] = {"ledger": lambda: asyncio.run(ask_ledger()), "redis": ask_redis}
    for name, ask in asking.items():
        try:
            tell(name, None, f"{'schema' if name == 'ledger' else 'version'} {ask()}")
        except ConfigError as exc:
            tell(name, str(exc))
        except Exception as exc:  # noqa: BLE001  # whatever a driver raises, it is not reached; its words may quote the URL
            tell(name, f"does not answer ({type(exc).__name__})")
