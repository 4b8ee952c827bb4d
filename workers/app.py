"""The Celery app: composition root of a worker process. Two tasks, explicit queues, our asyncio pool."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Sequence
from typing import Any

from celery import Celery
from celery.signals import worker_ready

from waybill.broker import celery_config
from waybill.errors import ConfigError
from waybill.names import (
    BATCH_PROVIDERS,
    BATCH_QUEUE,
    CLASSES,
    DISPATCH_QUEUE,
    DISPATCH_TASK,
    EXECUTE_TASK,
    all_queues,
)
from waybill.redislink import is_redis, sentinels
from waybill.settings import Settings
from workers.batchlane.lane import BatchLane
from workers.dispatch import Dispatcher
from workers.eventfeed import EventFeed
from workers.execute import execute, hear_urgent
from workers.guard import SENTINEL_TRANSPORT, TRANSPORT
from workers.guard_rabbitmq import TRANSPORT as RABBITMQ_TRANSPORT
from workers.heartbeat import watch
from workers.pool import AsyncPool, async_task
from workers.preflight import check_services
from workers.runtime import Runtime, load_policy
from workers.telemetry import configure, emit


def make_app(settings: Settings, queues: Sequence[str]) -> Celery:
    """The app of a process that serves `queues`.

    Raises:
        ConfigError: A queue that does not exist, a policy that is wrong, a URL that is missing.
    """
    unknown = [queue for queue in queues if queue not in all_queues()]
    if unknown or not queues:
        raise ConfigError(f"no queue {', '.join(unknown) or '(none given)'}; there are: {', '.join(all_queues())}")
    names = tuple(dict.fromkeys(name for queue in queues for name in _providers_of(queue)))
    app = Celery("waybill", set_as_current=True)
    broker_url = settings.require_broker_url()
    app.conf.update(celery_config(broker_url))
    if is_redis(broker_url):
        app.conf.broker_transport = TRANSPORT if sentinels(broker_url) is None else SENTINEL_TRANSPORT
    else:
        app.conf.broker_transport = RABBITMQ_TRANSPORT
        app.conf.broker_transport_options = {
            **app.conf.broker_transport_options,
            "quarantine_url": settings.require_redis_url(),
        }
    runtime = Runtime(settings=settings, policy=load_policy(settings), provider_names=names)
    app.lifespan = runtime
    app.steps["consumer"].add(EventFeed)
    if settings.heartbeat_file is not None:
        watch(app, runtime, settings.heartbeat_file)
    dispatcher = Dispatcher(runtime)
    if DISPATCH_QUEUE in queues:
        runtime.background += [
            dispatcher.look_by_itself,
            dispatcher.hear_quickly,
            dispatcher.keep_learning,
            dispatcher.keep_cascades,
            dispatcher.keep_checking,
        ]
        runtime.background.append(dispatcher.keep_times)
    urgent = [queue for queue in queues if queue.endswith(f".{CLASSES[0]}")]
    if urgent:
        runtime.background.append(functools.partial(hear_urgent, runtime, urgent))
    async_task(app, DISPATCH_TASK, dispatcher.hear)
    batch_lane = BatchLane(runtime) if BATCH_QUEUE in queues else None
    if batch_lane is not None:
        runtime.background.append(batch_lane.run)

    async def hear(job_ids: Sequence[str]) -> Any:
        told = await execute(runtime, job_ids)
        if batch_lane is not None:
            batch_lane.hear()
        return told

    async_task(app, EXECUTE_TASK, hear)
    return app


def _providers_of(queue: str) -> tuple[str, ...]:
    """Whose adapters a queue's process needs."""
    if queue == DISPATCH_QUEUE:
        return ()
    return BATCH_PROVIDERS if queue == BATCH_QUEUE else (queue.partition(".")[0],)


def run_worker(settings: Settings, queues: Sequence[str], *, name: str, concurrency: int | None = None) -> int:
    """Run a worker process until SIGTERM or SIGINT; returns its exit code.

    Raises:
        ConfigError: A service, a queue or the policy is not fit to be used.
    """
    configure(settings.log_level, settings.log_format)
    app = make_app(settings, queues)
    check_services(settings)
    limit = concurrency or settings.concurrency
    worker = app.Worker(
        hostname=f"{name}@{os.uname().nodename}",
        pool=AsyncPool,
        concurrency=limit,
        queues=",".join(queues),
        loglevel=getattr(logging, settings.log_level),
        without_gossip=True,
        without_mingle=True,
        quiet=True,
        task_events=settings.task_events,
    )
    worker_ready.connect(
        lambda **_: emit("worker.ready", queues=",".join(queues), concurrency=limit), weak=False, sender=None
    )
    worker.start()
    return int(worker.exitcode or 0)
