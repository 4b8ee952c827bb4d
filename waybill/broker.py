"""Rings doorbells: tiny Celery messages that carry job ids and nothing else. Losing one delays a job, never loses it.

Everything a Celery process must agree on (queues, serializer, acknowledgement, timeouts) is in `celery_config`, which the
workers use, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from waybill.errors import BrokerUnavailable
from waybill.names import (
    DISPATCH_CHUNK,
    DISPATCH_QUEUE,
    DISPATCH_TASK,
    EXECUTE_CHUNK,
    EXECUTE_TASK,
    all_queues,
    provider_queue,
)
from waybill.redislink import is_redis, kombu_address

if TYPE_CHECKING:
    from celery import Celery

VISIBILITY_S = 120
"""After this, kombu delivers an unacknowledged message again. Harmless: the claim finds the job taken and drops it."""


@dataclass(frozen=True, slots=True)
class Doorbell:
    """One message: which task, on which queue, for which jobs, and the line that Flower shows (no prompts)."""

    task: str
    queue: str
    job_ids: tuple[str, ...]
    label: str


def dispatch_doorbells(job_ids: Sequence[str]) -> list[Doorbell]:
    """Doorbells for the dispatcher, up to 100 jobs each."""
    return [
        Doorbell(DISPATCH_TASK, DISPATCH_QUEUE, tuple(chunk), f"{len(chunk)} jobs")
        for chunk in _chunks(job_ids, DISPATCH_CHUNK)
    ]


def execute_doorbells(jobs: Iterable[tuple[str, str, str, str, str]]) -> list[Doorbell]:
    """Doorbells for the provider queues, up to 10 jobs each, grouped by queue, intent and model.

    Args:
        jobs: (job id, provider, priority, intent, model).
    """
    groups: dict[tuple[str, str, str], list[str]] = {}
    for job_id, provider, priority, intent, model in jobs:
        groups.setdefault((provider_queue(provider, priority), intent, model), []).append(job_id)
    return [
        Doorbell(EXECUTE_TASK, queue, tuple(chunk), f"{intent} x{len(chunk)} on {model}: {' '.join(chunk)}")
        for (queue, intent, model), ids in groups.items()
        for chunk in _chunks(ids, EXECUTE_CHUNK)
    ]


def _chunks(items: Sequence[str], size: int) -> list[Sequence[str]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def celery_config(broker_url: str) -> dict[str, Any]:
    """Celery's settings. The reasons, one by one, are in docs/decisions/0003-celery-settings.md."""
    from kombu import entity

    exchange_type: Any = entity.Exchange  # kombu has no types
    queue_type: Any = entity.Queue
    exchange = exchange_type("waybill", type="direct")

    address, options = kombu_address(broker_url)
    return {
        "broker_url": address,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "broker_channel_error_retry": True,
        "broker_pool_limit": 4,
        "broker_pool_acquire_timeout": 5,
        "broker_transport_options": {
            "visibility_timeout": VISIBILITY_S,
            "unacked_restore_interval": 5,
            "unacked_restore_throttle": 1,
            "socket_timeout": 15,
            "socket_connect_timeout": 5,
            "socket_keepalive": True,
            "health_check_interval": 10,
            **options,
        }
        if is_redis(broker_url)
        else {},
        "result_backend": None,
        "task_ignore_result": True,
        "task_store_errors_even_if_ignored": False,
        "task_serializer": "json",
        "accept_content": ["json"],
        "task_queues": [queue_type(name, exchange, routing_key=name) for name in all_queues()],
        "task_default_queue": DISPATCH_QUEUE,
        "task_default_exchange": "waybill",
        "task_default_exchange_type": "direct",
        "task_default_routing_key": DISPATCH_QUEUE,
        "task_create_missing_queues": False,
        "task_acks_late": True,
        "task_reject_on_worker_lost": True,
        "task_acks_on_failure": True,
        "task_send_sent_event": False,
        "worker_send_task_events": True,
        "worker_prefetch_multiplier": 1,
        "worker_eta_task_limit": 100,
        "worker_hijack_root_logger": False,
        "worker_redirect_stdouts": False,
        "worker_enable_remote_control": True,
    }


class Broker:
    """Publishes doorbells. Blocking; thread-safe; connects when first used."""

    def __init__(self, broker_url: str) -> None:
        self._url = broker_url
        self._app: Celery | None = None

    def _celery(self) -> Celery:
        if self._app is None:
            from celery import Celery

            app = Celery("waybill-producer", set_as_current=False)
            app.conf.update(celery_config(self._url))
            self._app = app
        return self._app

    def ring(self, doorbells: Sequence[Doorbell]) -> None:
        """Publish them all in one pipelined round trip where the broker can.

        Raises:
            BrokerUnavailable: The broker does not answer; some may have been published.
        """
        if not doorbells:
            return
        from kombu.exceptions import OperationalError

        app = self._celery()
        try:
            with app.producer_or_acquire() as producer, producer.batch(max_size=500):
                for bell in doorbells:
                    app.send_task(
                        bell.task,
                        args=[list(bell.job_ids)],
                        queue=bell.queue,
                        producer=producer,
                        argsrepr=bell.label,
                        kwargsrepr="",
                        ignore_result=True,
                        add_to_parent=False,
                        retry=False,
                    )
        except (OperationalError, OSError) as exc:
            raise BrokerUnavailable(f"the broker does not answer: {exc}") from exc
        except Exception as exc:  # redis-py's errors reach us unwrapped when a pipeline is flushed
            if type(exc).__module__.startswith(("redis", "kombu", "amqp")):
                raise BrokerUnavailable(f"the broker does not answer: {exc}") from exc
            raise

    def close(self) -> None:
        """Close the connections."""
        if self._app is not None:
            self._app.close()
            self._app = None
