"""`waybill worker|dispatcher|control|flower`: one process each, what Kubernetes runs and what `waybill up` supervises."""

from __future__ import annotations

import os
import sys

import click

from waybill.errors import ConfigError
from waybill.names import DISPATCH_QUEUE
from waybill.settings import Settings


@click.command()
@click.option("--queues", required=True, help="Comma-separated, e.g. anthropic.hi,anthropic.lo.")
@click.option("--name", default=None, help="Node name in Flower and logs; default: the first queue's provider.")
@click.option("--concurrency", type=click.IntRange(1, 5000), default=None, help="Messages in flight (10 jobs each).")
def worker(queues: str, name: str | None, concurrency: int | None) -> None:
    """Run one worker process for the given queues until SIGTERM, then drain and stop."""
    from workers.app import run_worker

    wanted = [queue.strip() for queue in queues.split(",") if queue.strip()]
    sys.exit(
        run_worker(
            Settings.from_env(),
            wanted,
            name=name or (wanted[0].partition(".")[0] if wanted else ""),
            concurrency=concurrency,
        )
    )


@click.command()
@click.option(
    "--concurrency", type=click.IntRange(1, 100), default=4, show_default=True, help="Chunks of 100 in flight."
)
def dispatcher(concurrency: int) -> None:
    """Run one dispatcher process: takes new jobs, routes them, rings the provider queues."""
    from workers.app import run_worker

    sys.exit(run_worker(Settings.from_env(), [DISPATCH_QUEUE], name="dispatcher", concurrency=concurrency))


@click.command()
def control() -> None:
    """Run the housekeeping: parked jobs, lost workers, lost doorbells. Any number may run."""
    from workers.control import run_control

    sys.exit(run_control(Settings.from_env()))


@click.command()
def flower() -> None:
    """Run Flower behind a password, read-only. Jobs show as ids, intent, model and cost; prompts never reach the broker."""
    settings = Settings.from_env()
    if settings.flower_password is None:
        raise ConfigError("WAYBILL_FLOWER_PASSWORD is not set; Flower never starts open")
    if os.environ.get("FLOWER_UNAUTHENTICATED_API"):
        raise ConfigError("FLOWER_UNAUTHENTICATED_API is set, which opens Flower's API to everybody; unset it")
    from workers.flower_view import run_flower

    run_flower(settings)
