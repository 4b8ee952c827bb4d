"""Sends an answer at its pace, whole or as a stream, and does to it what a fault wants done.

Says afterwards how many output tokens were produced and whether the client got everything: bill and log go by it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from pydantic_core import to_json

from sandbox import failures
from sandbox.connection import Exchange, Headers
from sandbox.exchange import Call, Dialect, Event, Generation, Identity, Json
from sandbox.faults import Rule

JSON_TYPE: tuple[bytes, bytes] = (b"content-type", b"application/json")
_STREAM_TYPE: Headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]


@dataclass(frozen=True, slots=True)
class Delivery:
    """One answer on its way out."""

    exchange: Exchange
    dialect: Dialect
    call: Call
    generation: Generation
    rule: Rule | None
    identity: Identity
    headers: Headers
    # first_s and per_token_s: the pace (latency.py).
    first_s: float
    per_token_s: float
    # began: called when the first byte is due; prompts written to the cache can be read from then on.
    began: Callable[[], None]

    @property
    def fault(self) -> str:
        """The fault's name, or ""."""
        return "" if self.rule is None else self.rule.kind.name


@dataclass(frozen=True, slots=True)
class Delivered:
    """What became of it."""

    # produced: output tokens generated; for a stream, until it was cut or the client left.
    produced: int
    # complete: the last byte was handed to a connection that was still there. It may yet be lost on the way.
    complete: bool


async def deliver_whole(delivery: Delivery) -> Delivered:
    """Send a complete answer. It is generated to its end even when the client leaves meanwhile."""
    exchange, generation = delivery.exchange, delivery.generation
    produced = generation.usage.output
    await _pause(delivery.first_s)
    delivery.began()
    await _pause(delivery.per_token_s * produced)
    body = delivery.dialect.whole(delivery.call, generation, delivery.identity)
    if delivery.fault.startswith("usage_"):
        _spoil(body, delivery.fault)
    payload = to_json(body)
    if delivery.fault == "short_body":
        await exchange.start(200, [JSON_TYPE, *delivery.headers, (b"content-length", b"%d" % len(payload))])
        await exchange.write(_cut(payload, delivery.rule), more=True)
        await exchange.close()
        return Delivered(produced, complete=False)
    if delivery.fault == "cut_json":
        payload = _cut(payload, delivery.rule)
    await exchange.respond(200, [JSON_TYPE, *delivery.headers], payload)
    return Delivered(produced, complete=not exchange.client_left and delivery.fault != "cut_json")


async def deliver_stream(delivery: Delivery) -> Delivered:
    """Send the events one by one at the model's pace; generation ends when the client leaves."""
    exchange, dialect, rule = delivery.exchange, delivery.dialect, delivery.rule
    await _pause(delivery.first_s)
    if exchange.client_left:
        return Delivered(0, complete=False)
    delivery.began()
    events = dialect.events(delivery.call, delivery.generation, delivery.identity)
    if delivery.fault.startswith("usage_"):
        for event in events:
            _spoil(event.data, delivery.fault)
    cut = None
    if rule is not None and rule.kind.on == "stream":
        cut = max(1, min(len(events) - 1, int(len(events) * rule.at)))
    await exchange.start(200, [*_STREAM_TYPE, *delivery.headers])
    produced = 0
    # Events that are due at once leave in one write.
    due = bytearray()
    for place, event in enumerate(events):
        if place == cut:
            if delivery.fault != "garbled_sse":
                break
            due += _garbled(event)
        if event.tokens and delivery.per_token_s:
            if due:
                await exchange.write(bytes(due), more=True)
                due.clear()
            await asyncio.sleep(event.tokens * delivery.per_token_s)
            if exchange.client_left:
                return Delivered(produced, complete=False)
        produced += event.tokens
        due += _frame(event)
    match delivery.fault if cut is not None else "":
        case "cut_stream":
            await exchange.write(bytes(due), more=True)
            await exchange.reset()
        case "hang_stream":
            await exchange.write(bytes(due), more=True)
            await exchange.until_client_leaves()
        case "early_end":
            await exchange.write(bytes(due))
        case "error_event":
            error = failures.overloaded(dialect.provider)
            body = failures.body_of(error, dialect.provider, delivery.identity.request_id)
            await exchange.write(bytes(due + _frame(dialect.error_event(body))))
        case _:
            await exchange.write(bytes(due + dialect.end_marker()))
            return Delivered(produced, complete=not exchange.client_left)
    return Delivered(produced, complete=False)


async def _pause(seconds: float) -> None:
    if seconds > 0:
        await asyncio.sleep(seconds)


def _cut(payload: bytes, rule: Rule | None) -> bytes:
    return payload[: max(1, min(len(payload) - 1, int(len(payload) * (rule.at if rule else 0.5))))]


def _frame(event: Event) -> bytes:
    data = b"data: " + to_json(event.data) + b"\n\n"
    return b"event: " + event.name.encode() + b"\n" + data if event.name else data


def _garbled(event: Event) -> bytes:
    """Return an event of the same name whose data breaks off inside a string."""
    name = b"event: " + event.name.encode() + b"\n" if event.name else b""
    return name + b'data: {"type": "content_bl\xef\xbf\xbd\n\n'


def _spoil(data: Json, how: str) -> None:
    """Damage the usage wherever an answer or an event carries it."""
    for holder in (data, data.get("message"), data.get("response")):
        if isinstance(holder, dict) and holder.get("usage") is not None:
            match how:
                case "usage_missing":
                    del holder["usage"]
                case "usage_null":
                    holder["usage"] = None
                case _:
                    holder["usage"] = _distorted(holder["usage"], how)


def _distorted(usage: Json, how: str) -> Json:
    distorted: Json = {}
    for key, value in usage.items():
        if isinstance(value, dict):
            distorted[key] = _distorted(value, how)
        elif isinstance(value, int):
            distorted[key] = -value - 1 if how == "usage_negative" else "ten"
        else:
            distorted[key] = value
    return distorted
