"""The guard of guard.py before RabbitMQ: each delivery is looked at before kombu and Celery see it, and rejected or passed on."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import Any, Final

import redis
from kombu.transport import pyamqp

from waybill.redislink import connect
from workers.guard import MAX_MESSAGE_BYTES, QUEUES, Refused, check_command, check_task, keep_quarantined, quarantined
from workers.telemetry import emit

QUARANTINE_WAIT_S: Final = 5.0
"""How long a worker stands still for the quarantine at most; what was refused is in the log already."""


def check_delivery(queue: str, message: Any) -> None:
    """Raise Refused unless a delivery of `queue` is a doorbell, or, of another queue, a broadcast that only looks."""
    raw = _bytes(message.body)
    if len(raw) > MAX_MESSAGE_BYTES:
        raise Refused("too large")
    if (message.properties.get("content_type"), message.properties.get("content_encoding")) != (
        "application/json",
        "utf-8",
    ):
        raise Refused("content that is not JSON")
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError):
        raise Refused("not JSON") from None
    if queue in QUEUES:
        check_task(message.properties.get("application_headers") or {}, body)
    else:
        check_command(body)


class GuardedChannel(pyamqp.Channel):
    """A channel whose consumers hear of what passes the guard only."""

    def basic_consume(
        self,
        queue: str = "",
        *args: Any,
        no_ack: bool = False,
        callback: Callable[[Any], Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Consume behind the guard. What is refused is rejected for good, where an answer is expected at all."""
        guarded = None if callback is None else functools.partial(self._deliver, queue, no_ack, callback)
        return super().basic_consume(queue, *args, no_ack=no_ack, callback=guarded, **kwargs)

    def _deliver(self, queue: str, no_ack: bool, callback: Callable[[Any], Any], message: Any) -> Any:
        try:
            check_delivery(queue, message)
        except Refused as refused:
            entry = quarantined(queue, _bytes(message.body), str(refused))
            if not no_ack:
                self.basic_reject(message.delivery_tag, requeue=False)
            try:
                keep_quarantined(self.connection.quarantine, entry)
            except (redis.RedisError, OSError) as exc:  # the event has said it
                emit("service.away", service="redis", error=str(exc))
            return None
        return callback(message)


class GuardedConnection(pyamqp.Connection):
    """A connection that knows where the quarantine is."""

    Channel = GuardedChannel

    def __init__(self, *args: Any, quarantine_url: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.quarantine = connect(
            quarantine_url, socket_timeout=QUARANTINE_WAIT_S, socket_connect_timeout=QUARANTINE_WAIT_S
        )


class GuardedTransport(pyamqp.Transport):
    """For amqp:// brokers; its option `quarantine_url` is the Redis that keeps what was refused."""

    Connection = GuardedConnection


def _bytes(body: bytes | str | None) -> bytes:
    return body.encode() if isinstance(body, str) else body or b""


TRANSPORT: Final = f"{__name__}:{GuardedTransport.__name__}"
