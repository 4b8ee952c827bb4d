"""`waybill gateway`: the one API, as a process of its own."""

from __future__ import annotations

import click

from waybill.settings import Settings


@click.command()
def gateway() -> None:
    """Serve the OpenAI and Anthropic dialects until SIGTERM; address and port are WAYBILL_GATEWAY_ADDRESS and _PORT."""
    from producers.gateway.serve import run_gateway
    from workers.policywatch import PolicyWatch
    from workers.providers.registry import available, without_workers
    from workers.runtime import load_policy, policy_path
    from workers.telemetry import configure

    settings = Settings.from_env()
    policy = load_policy(settings)
    if settings.providers is not None:
        off = without_workers(settings.providers.split(","))
    else:
        off = {name: why for name, why in available(settings, policy).items() if why is not None}
    configure(settings.log_level, settings.log_format)
    run_gateway(settings, policy, frozenset(off), PolicyWatch(policy_path(settings), policy))
