"""The sandbox's own pages: what to point the SDKs at, the bill, the log, faults, limits, the clock.

Not part of any provider's API and without a key: the server listens on loopback.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from pydantic_core import from_json, to_json

from sandbox.connection import BodyTooLargeError, Exchange
from sandbox.faults import KINDS, FaultError, rules_from
from sandbox.latency import latency_from

if TYPE_CHECKING:
    from sandbox.server import Sandbox

_MAX_BODY_BYTES = 1024 * 1024
_LIMITS = ("requests", "input_tokens", "output_tokens", "tokens")


class AdminError(ValueError):
    """The call is wrong; the message says what to send instead."""


class Admin:
    """Routes and answers of everything outside /v1."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self._pages: dict[str, Callable[[], Any]] = {
            "/healthz": lambda: {"ok": True},
            "/bill": self._bill,
            "/admin/state": self._state,
            "/admin/faults": self._faults,
        }
        self._actions: dict[tuple[str, str], Callable[[Exchange], Awaitable[Any]]] = {
            ("GET", "/"): self._help,
            ("POST", "/admin/reset"): self._reset,
            ("POST", "/admin/faults"): self._add_faults,
            ("DELETE", "/admin/faults"): self._remove_faults,
            ("POST", "/admin/limits"): self._limits,
            ("POST", "/admin/latency"): self._latency,
            ("POST", "/admin/clock"): self._clock,
            ("POST", "/admin/batches"): self._batches,
        }

    async def serve(self, exchange: Exchange) -> None:
        """Answer one admin request."""
        if (exchange.method, exchange.path) == ("GET", "/log"):
            await self._log(exchange)
            return
        status = 200
        try:
            if exchange.method == "GET" and (page := self._pages.get(exchange.path)) is not None:
                answer = page()
            elif (action := self._actions.get((exchange.method, exchange.path))) is not None:
                answer = await action(exchange)
            else:
                known = ", ".join(self._known())
                status, answer = 404, {"error": f"{exchange.method} {exchange.path} is unknown; known are {known}"}
        except (AdminError, FaultError) as exc:
            status, answer = 400, {"error": str(exc)}
        await exchange.respond(status, [(b"content-type", b"application/json")], to_json(answer, indent=2) + b"\n")

    def _known(self) -> list[str]:
        pages = [f"GET {path}" for path in (*self._pages, "/log")]
        return [*pages, *(f"{method} {path}" for method, path in self._actions)]

    async def _help(self, exchange: Exchange) -> Any:
        host = exchange.header(b"host") or "127.0.0.1"
        return {
            "what": "a model provider on loopback: no model runs, no key is checked, nothing costs money",
            "anthropic": {"base_url": f"http://{host}", "api_key": "sandbox-1"},
            "openai": {"base_url": f"http://{host}/v1", "api_key": "sandbox-1"},
            "pages": self._known(),
            "faults": {kind.name: kind.text for kind in KINDS.values()},
        }

    def _bill(self) -> Any:
        self._sandbox.batches.look_at_all(self._sandbox.clock.now_ns())
        return self._sandbox.bill.shown()

    def _state(self) -> Any:
        sandbox = self._sandbox
        now_ns = sandbox.clock.now_ns()
        meters = []
        for (account, limit_class), meter in sandbox.meters.items():
            meter.refill(now_ns)
            levels = {name: getattr(meter, name).remaining for name in meter.shown}
            meters.append({"account": account, "class": limit_class, "remaining": levels})
        return {
            "requests": sandbox.log.count,
            "in_flight": sandbox.in_flight,
            "uptime_s": round((now_ns - sandbox.started_ns) / 1e9, 3),
            "clock_offset_s": sandbox.clock.offset_ns / 1e9,
            "cache_entries": len(sandbox.cache),
            "batches": len(sandbox.batches),
            "answers": len(sandbox.book),
            "models": [model.id for model in sandbox.catalogue],
            "faults": sandbox.faults.shown(),
            "meters": meters,
        }

    async def _reset(self, exchange: Exchange) -> Any:
        await exchange.body(_MAX_BODY_BYTES)
        self._sandbox.reset()
        return {"reset": ["bill", "log", "faults", "limits' levels", "cache", "batches", "clock"]}

    def _faults(self) -> Any:
        return {"faults": self._sandbox.faults.shown()}

    async def _add_faults(self, exchange: Exchange) -> Any:
        now_ns = self._sandbox.clock.now_ns()
        rules = list(rules_from(await _body(exchange)))
        return {"added": [self._sandbox.faults.add(rule, now_ns=now_ns).shown() for rule in rules]}

    async def _remove_faults(self, exchange: Exchange) -> Any:
        return {"removed": self._sandbox.faults.remove(_number(exchange, "id"))}

    async def _limits(self, exchange: Exchange) -> Any:
        given = dict(await _body(exchange))
        limit_class = given.pop("class", "*")
        known = {"*", *(model.limit_class for model in self._sandbox.catalogue)}
        if limit_class not in known:
            raise AdminError(f"unknown class {limit_class!r}; known are {', '.join(sorted(known))}")
        self._sandbox.meters.set(limit_class, **checked_limits(given))
        limits = self._sandbox.meters.limits(limit_class)
        return {"class": limit_class, **{name: getattr(limits, name) for name in _LIMITS}}

    async def _latency(self, exchange: Exchange) -> Any:
        given = (await _body(exchange)).get("latency")
        try:
            self._sandbox.latency = latency_from(str(given))
        except ValueError as exc:
            raise AdminError(str(exc)) from exc
        return {"latency": given}

    async def _clock(self, exchange: Exchange) -> Any:
        advance_s = (await _body(exchange)).get("advance_s")
        if not isinstance(advance_s, int | float) or isinstance(advance_s, bool) or not 0 <= advance_s < 1e9:
            raise AdminError(f'advance_s is {advance_s!r}; write seconds from 0 on, like {{"advance_s": 300}}')
        self._sandbox.clock.offset_ns += int(advance_s * 1e9)
        return {"clock_offset_s": self._sandbox.clock.offset_ns / 1e9}

    async def _batches(self, exchange: Exchange) -> Any:
        given = await _body(exchange)
        pace = self._sandbox.batches.pace
        known = {"turnaround_s": 86400.0, "enqueued_tokens": 1e15, "queued_requests": 1e9}
        for name, value in given.items() if isinstance(given, dict) else [("the body", given)]:
            if name not in known:
                raise AdminError(f"unknown key {name!r}; known are {', '.join(known)}")
            if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= known[name]:
                raise AdminError(f"{name} is {value!r}; write a number from 0 to {known[name]:g}")
        self._sandbox.batches.pace = replace(pace, **given)
        return asdict(self._sandbox.batches.pace)

    async def _log(self, exchange: Exchange) -> None:
        self._sandbox.batches.look_at_all(self._sandbox.clock.now_ns())
        try:
            lines = self._sandbox.log.since(_number(exchange, "since") or 0, _number(exchange, "limit"))
        except AdminError as exc:
            await exchange.respond(400, [(b"content-type", b"application/json")], to_json({"error": str(exc)}))
            return
        await exchange.respond(200, [(b"content-type", b"application/x-ndjson")], lines)


def checked_limits(given: dict[str, Any]) -> dict[str, int]:
    """Return limits per minute; the short names rpm, itpm, otpm and tpm mean the same as the long ones.

    Raises:
        AdminError: an unknown name or a value that is no whole number above 0.
    """
    short = {"rpm": "requests", "itpm": "input_tokens", "otpm": "output_tokens", "tpm": "tokens"}
    limits = {}
    for name, value in given.items():
        if short.get(name, name) not in _LIMITS:
            raise AdminError(f"unknown limit {name!r}; known are {', '.join([*short, *_LIMITS])}")
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise AdminError(f"{name} is {value!r}; write a whole number above 0")
        limits[short.get(name, name)] = value
    return limits


async def _body(exchange: Exchange) -> Any:
    try:
        return from_json(await exchange.body(_MAX_BODY_BYTES))
    except BodyTooLargeError as exc:
        raise AdminError(f"the body is larger than {_MAX_BODY_BYTES} bytes") from exc
    except ValueError as exc:
        raise AdminError(f"the body is not JSON: {exc}") from exc


def _number(exchange: Exchange, name: str) -> int | None:
    given = parse_qs(exchange.query.decode("latin-1")).get(name)
    if given is None:
        return None
    try:
        return int(given[-1])
    except ValueError as exc:
        raise AdminError(f"{name} is {given[-1]!r}; write a number") from exc
