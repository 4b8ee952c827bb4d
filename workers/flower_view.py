"""Flower as the task view: behind a password, read-only, bounded in memory."""

from __future__ import annotations

import os

from celery import Celery

from waybill.broker import celery_config
from waybill.settings import Settings


def run_flower(settings: Settings) -> None:
    """Serve Flower until it is stopped."""
    assert settings.flower_password is not None  # the command has checked it
    # By environment, not by argument: arguments show in `ps`.
    os.environ["FLOWER_BASIC_AUTH"] = f"{settings.flower_user}:{settings.flower_password.get_secret_value()}"
    app = Celery("waybill-flower")
    app.conf.update(celery_config(settings.require_broker_url()))
    # Flower asks every worker about a dozen things at once, each on a connection of its own; with the few of a producer
    # its event receiver gets none and the task list stays empty.
    app.conf.broker_pool_limit = 30
    app.start(
        argv=[
            "flower",
            f"--address={settings.flower_address}",
            f"--port={settings.flower_port}",
            "--read_only=True",
            "--max_tasks=5000",
            "--purge_offline_workers=300",
            "--enable_events=False",
            "--tasks_columns=name,uuid,state,args,result,received,started,runtime,worker",
            "--inspect_timeout=2000",
        ]
    )
