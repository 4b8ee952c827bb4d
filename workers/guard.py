"""A guarded way from the broker into a worker: whatever somebody puts on a queue, the worker goes on and nothing is executed.

kombu and Celery trust their broker. A list entry that is not JSON ends the worker process, a forged message can start
callbacks, and one broadcast shuts a worker down. Here each entry is looked at before Celery sees it: what is not exactly
a doorbell of ours goes to the quarantine list in Redis with the reason. A doorbell carries ids only and the ledger decides
what becomes of them, so putting one aside never loses a job: control rings again.

Of the remote control only looking is left, which is what Flower does. guard_rabbitmq.py has the same for RabbitMQ.
"""

from __future__ import annotations

import base64
import binascii
import functools
import hashlib
import json
import re
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import redis
from kombu.transport import redis as transport

from waybill.names import (
    DISPATCH_CHUNK,
    DISPATCH_TASK,
    EXECUTE_TASK,
    QUARANTINE_KEY,
    all_queues,
)
from workers.telemetry import emit

MAX_MESSAGE_BYTES: Final = 64 * 1024
"""A doorbell for a hundred jobs has about 7 kB."""
QUARANTINE_ENTRIES: Final = 1000
QUOTED_BYTES: Final = 200
"""How much of a refused entry is kept: enough to see what sent it, not enough to carry a prompt around."""
LOOKING: Final = frozenset(
    {
        "active",
        "active_queues",
        "clock",
        "conf",
        "enable_events",
        "ping",
        "query_task",
        "registered",
        "report",
        "reserved",
        "revoked",
        "scheduled",
        "stats",
    }
)
"""Broadcasts that change nothing in a worker (`enable_events`: Flower sends it every few seconds; events are on)."""

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z")
QUEUES: Final = frozenset(all_queues())
"""Where doorbells arrive; what comes elsewhere is a broadcast."""
_EMBED_KEYS = ("callbacks", "errbacks", "chain", "chord")


class Refused(ValueError):
    """The entry is no doorbell; the message says why, from a closed set of reasons."""


def check_doorbell(raw: bytes) -> None:
    """Raise Refused unless `raw`, an entry of one of our queues, is a doorbell of a task and of ids that can be ours."""
    message = _envelope(raw)
    check_task(message["headers"], _body(message))


def check_task(headers: Mapping[str, Any], body: object) -> None:
    """Raise Refused unless a task with ids that can be ours is meant."""
    if headers.get("task") not in (DISPATCH_TASK, EXECUTE_TASK):
        raise Refused("unknown task")
    if not isinstance(headers.get("id"), str):
        raise Refused("no task id")
    if any(headers.get(name) for name in ("eta", "expires", "compression", "stamped_headers")) or any(
        headers.get("timelimit") or ()
    ):
        raise Refused("an option that no doorbell has")
    if not (isinstance(body, list) and len(body) == 3):
        raise Refused("not the arguments of a task")
    arguments, keywords, embedded = body
    if keywords or not isinstance(embedded, dict) or any(embedded.get(key) for key in _EMBED_KEYS):
        raise Refused("callbacks or keywords that no doorbell has")
    if not (isinstance(arguments, list) and len(arguments) == 1 and isinstance(arguments[0], list)):
        raise Refused("not a list of job ids")
    ids = arguments[0]
    if not 0 < len(ids) <= DISPATCH_CHUNK or not all(isinstance(one, str) and _UUID.match(one) for one in ids):
        raise Refused("not a list of job ids")


def check_broadcast(message: object) -> None:
    """Raise Refused unless a decoded broadcast is well-formed and only looks."""
    if not isinstance(message, dict):
        raise Refused("not a message")
    check_command(_body(_checked_envelope(message)))


def check_command(body: object) -> None:
    """Raise Refused unless the body of a broadcast is a command that only looks."""
    if not isinstance(body, dict) or not isinstance(body.get("arguments", {}), dict | None):
        raise Refused("not a command")
    if body.get("method") not in LOOKING:
        raise Refused("a command that changes a worker")


def _envelope(raw: bytes) -> dict[str, Any]:
    if len(raw) > MAX_MESSAGE_BYTES:
        raise Refused("too large")
    try:
        message = json.loads(raw)
    except (ValueError, RecursionError):
        raise Refused("not JSON") from None
    if not isinstance(message, dict):
        raise Refused("not a message")
    envelope = _checked_envelope(message)
    address = envelope["properties"].get("delivery_info")
    # Both go back into Redis when a delivery is given up, so they must lead to a queue of ours.
    if not isinstance(address, dict) or address.get("routing_key") not in QUEUES:
        raise Refused("addressed to no queue of ours")
    if address.get("exchange") not in ("waybill", ""):
        raise Refused("addressed to no queue of ours")
    return envelope


def _checked_envelope(message: dict[str, Any]) -> dict[str, Any]:
    headers, properties = message.get("headers"), message.get("properties")
    if not isinstance(headers, dict) or not isinstance(properties, dict):
        raise Refused("not a message")
    if not isinstance(properties.get("delivery_tag"), str):
        raise Refused("not a message")
    if message.get("content-type") != "application/json" or message.get("content-encoding") != "utf-8":
        raise Refused("content that is not JSON")
    return message


def _body(message: Mapping[str, Any]) -> object:
    encoded, encoding = message.get("body"), message["properties"].get("body_encoding")
    if not isinstance(encoded, str):
        raise Refused("no body")
    try:
        if encoding == "base64":
            return json.loads(base64.b64decode(encoded, validate=True))
        if encoding in (None, "utf-8"):
            return json.loads(encoded)
    except (ValueError, RecursionError, binascii.Error):
        raise Refused("a body that is not JSON") from None
    raise Refused("an unknown encoding")


def quarantined(queue: str, raw: bytes, reason: str) -> str:
    """Say that a message was refused, and return what the quarantine keeps of it."""
    emit("message.refused", queue=queue, reason=reason, bytes=len(raw))
    return json.dumps(
        {
            "at": round(time.time(), 3),
            "queue": queue,
            "reason": reason,
            "bytes": len(raw),
            "sha256": hashlib.sha256(raw).hexdigest(),
            "begins": raw[:QUOTED_BYTES].decode(errors="backslashreplace"),
        }
    )


def keep_quarantined(client: Any, entry: str) -> None:
    """Put an entry first into the quarantine, which keeps the latest."""
    pipe = client.pipeline(transaction=False)
    pipe.lpush(QUARANTINE_KEY, entry).ltrim(QUARANTINE_KEY, 0, QUARANTINE_ENTRIES - 1).execute()


class _GuardedRedis(redis.Redis):
    """A client whose pops give only doorbells; a refused entry looks like a pop that found nothing."""

    def __init__(self, *args: Any, put_aside: Callable[[str, bytes, str], None], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._put_aside = put_aside

    def parse_response(self, connection: Any, command_name: str | bytes, **options: Any) -> Any:
        response = super().parse_response(connection, command_name, **options)  # type: ignore[no-untyped-call]
        if command_name not in ("BRPOP", "RPOP") or not response:
            return response
        queue, raw = response if command_name == "BRPOP" else ("", response)
        try:
            check_doorbell(raw)
        except Refused as refused:
            self._put_aside(_text(queue), raw, str(refused))
            return None
        return response


def _text(value: bytes | str) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


class GuardedQoS(transport.QoS):
    """Deliveries that are under way. Of a connection that was lost nothing can be acknowledged or put back any more.

    kombu raises AttributeError there, which ends the worker at the first restart of Redis under load. Nothing is lost
    by going on: the entry is delivered again after the visibility timeout and finds its jobs taken, and control rings
    for jobs that nobody has heard of.
    """

    def ack(self, delivery_tag: str) -> None:
        """Acknowledge, where the connection of the delivery still exists."""
        if not self._is_lost():
            super().ack(delivery_tag)  # type: ignore[no-untyped-call]  # kombu's

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Give back or drop, where the connection of the delivery still exists."""
        if not self._is_lost():
            super().reject(delivery_tag, requeue)  # type: ignore[no-untyped-call]  # kombu's

    def restore_unacked(self, client: Any = None) -> None:
        """Put back what was not acknowledged, where the broker still listens."""
        try:
            if not self._is_lost():
                super().restore_unacked(client)  # type: ignore[no-untyped-call]  # kombu's
        except (redis.RedisError, OSError) as exc:
            emit("service.away", service="broker", error=f"deliveries could not be handed back: {exc}")
        finally:
            self._delivered.clear()

    def _is_lost(self) -> bool:
        connection = self.channel.connection
        return connection is None or connection.client is None


class _Guarded(transport.Channel):
    """What is put before kombu's channels."""

    QoS = GuardedQoS

    def _get_client(self) -> Any:
        super()._get_client()  # type: ignore[no-untyped-call]  # kombu's; refuses an old redis-py
        return functools.partial(_GuardedRedis, put_aside=self._put_aside)

    def _put_aside(self, queue: str, raw: bytes, reason: str) -> None:
        entry = quarantined(queue, raw, reason)
        try:
            with self.conn_or_acquire() as client:
                keep_quarantined(client, entry)
        except (redis.RedisError, OSError) as exc:  # a full or lost Redis: the event above has said it
            emit("service.away", service="redis", error=str(exc))

    def _deliver_fanout_message(self, message: Any, exchange: str) -> Any:
        try:
            check_broadcast(message)
        except Refused as refused:
            self._put_aside(exchange, json.dumps(message).encode(), str(refused))
            return True
        return super()._deliver_fanout_message(message, exchange)  # type: ignore[no-untyped-call]  # kombu's


class GuardedChannel(_Guarded):
    """kombu's Redis channel behind the guard."""


class GuardedSentinelChannel(_Guarded, transport.SentinelChannel):
    """The same where Sentinels name the server."""


class GuardedTransport(transport.Transport):
    """For redis:// and rediss:// brokers; `broker_transport` of the worker's app names it."""

    Channel = GuardedChannel


class GuardedSentinelTransport(transport.SentinelTransport):
    """For redis+sentinel:// brokers."""

    Channel = GuardedSentinelChannel


TRANSPORT: Final = f"{__name__}:{GuardedTransport.__name__}"
SENTINEL_TRANSPORT: Final = f"{__name__}:{GuardedSentinelTransport.__name__}"
