"""Message Batches (providers.md 1.8): nothing of a row can be seen before the whole batch has ended, results in any order.

The API keeps no name of ours for a batch. One whose creation nobody saw end is known by its rows' names once it has ended,
and until then by when it was made and how many rows it has.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import anthropic
import httpx2

from waybill.errors import ProviderError
from workers.providers import wire
from workers.providers.anthropic import said
from workers.providers.base import Call
from workers.providers.batches import SKEW_S, Line, Look, Row, json_lines
from workers.providers.errors import TRANSPORT_ERRORS, Said, interrupted, refused
from workers.providers.failures import failure
from workers.providers.wire import Progress

if TYPE_CHECKING:
    from workers.providers.anthropic import AnthropicProvider

_PATH: Final = "/v1/messages/batches"
_CAUGHT: Final = (anthropic.AnthropicError, *TRANSPORT_ERRORS)
_READ_TIMEOUT_S: Final = 120.0
_PAGE: Final = 100
_MOST_PAGES: Final = 10


class AnthropicBatches:
    """The batches of one account."""

    most_rows = 100_000
    most_bytes = 240_000_000

    def __init__(self, provider: AnthropicProvider) -> None:
        self._provider = provider

    def line(self, name: str, call: Call) -> Line:
        """See `BatchProvider.line`."""
        request = {"custom_id": name, "params": self._provider.request(call)}
        return Line(name, json.dumps(request, ensure_ascii=False, separators=(",", ":")).encode())

    async def create(self, marker: str, lines: Sequence[Line], *, timeout_s: float) -> str:
        """See `BatchProvider.create`; the rows' names are the marker."""
        body = b'{"requests":[' + b",".join(line.text for line in lines) + b"]}"
        made = await self._ask("post", _PATH, timeout_s=timeout_s, content=body)
        return wire.text_of(made.get("id"), "the batch's id", Progress("anthropic"))

    async def find(
        self, marker: str, names: Collection[str], *, rows: int, since: datetime, not_ours: Collection[str]
    ) -> str | None:
        """See `BatchProvider.find`."""
        candidate: str | None = None
        earliest = since - timedelta(seconds=SKEW_S)
        after: str | None = None
        for _ in range(_MOST_PAGES):
            query = f"?limit={_PAGE}" + (f"&after_id={after}" if after else "")
            page = await self._ask("get", f"{_PATH}{query}")
            data = [item for item in page.get("data") or [] if isinstance(item, dict)]
            for batch in data:
                name = str(batch.get("id"))
                if name in not_ours or _made_at(batch) < earliest or _total(batch) != rows:
                    continue
                if batch.get("processing_status") != "ended":
                    candidate = candidate or name
                    continue
                if await self._holds(name, names):
                    return name
            if not page.get("has_more") or not data or _made_at(data[-1]) < earliest:
                break
            after = str(data[-1].get("id"))
        # Only one batch of an account is ever looked for, so one with our time and our number of rows is taken for it;
        # its rows' names tell when it has ended.
        return candidate

    async def _holds(self, provider_id: str, names: Collection[str]) -> bool:
        content = await self._read(provider_id)
        return any(line.get("custom_id") in names for line in json_lines(content)[:1])

    async def look(self, provider_id: str) -> Look:
        """See `BatchProvider.look`."""
        batch = await self._ask("get", f"{_PATH}/{provider_id}")
        return Look("ended" if batch.get("processing_status") == "ended" else "working")

    async def results(self, provider_id: str, calls: Mapping[str, Call]) -> AsyncIterator[Row]:
        """See `BatchProvider.results`."""
        for line in json_lines(await self._read(provider_id)):
            name, result = line.get("custom_id"), line.get("result")
            if isinstance(name, str) and isinstance(result, dict):
                yield self._row(name, result, calls.get(name))

    async def cancel(self, provider_id: str) -> None:
        """See `BatchProvider.cancel`."""
        try:
            await self._ask("post", f"{_PATH}/{provider_id}/cancel", content=b"{}")
        except ProviderError as exc:
            if exc.code not in ("conflict", "bad_request"):  # it has ended meanwhile
                raise

    async def forget(self, provider_id: str) -> None:
        """Nothing: results go by themselves after 29 days, and are what a dispute about a bill is settled by."""

    def _row(self, name: str, result: dict[str, Any], call: Call | None) -> Row:
        kind = result.get("type")
        if kind == "expired":
            return Row(name, "expired", failure=failure("batch_expired", "anthropic did not get to it within 24 hours"))
        if kind == "canceled":
            return Row(
                name, "cancelled", failure=failure("batch_cancelled", "its batch was cancelled before it was done")
            )
        if call is None:
            return Row(name, "succeeded" if kind == "succeeded" else "errored")
        try:
            if kind == "succeeded":
                return Row(name, "succeeded", answer=self._provider.read_message(call, result.get("message")))
            raise refused("anthropic", _said_in_row(result), now=datetime.now(UTC))
        except ProviderError as exc:
            return Row(name, "errored", failure=exc)

    async def _read(self, provider_id: str) -> bytes:
        response = await self._send("get", f"{_PATH}/{provider_id}/results", timeout_s=_READ_TIMEOUT_S)
        return response.content

    async def _ask(
        self, method: str, path: str, *, timeout_s: float = _READ_TIMEOUT_S, content: bytes | None = None
    ) -> dict[str, Any]:
        response = await self._send(method, path, timeout_s=timeout_s, content=content)
        return wire.json_object(response.content, wire.plain_headers(response), Progress("anthropic"))

    async def _send(self, method: str, path: str, *, timeout_s: float, content: bytes | None = None) -> httpx2.Response:
        client = self._provider.client
        try:
            async with asyncio.timeout(timeout_s):
                if method == "get":
                    return await client.get(path, cast_to=httpx2.Response)
                options: Any = {"headers": {"content-type": "application/json"}}
                return await client.post(path, cast_to=httpx2.Response, content=content, options=options)
        except anthropic.APIStatusError as exc:
            raise refused("anthropic", said(exc), now=datetime.now(UTC)) from exc
        except _CAUGHT as exc:
            raise interrupted("anthropic", exc) from exc


def _said_in_row(result: dict[str, Any]) -> Said:
    body = result.get("error")
    inner = body.get("error") if isinstance(body, dict) else None
    inner = inner if isinstance(inner, dict) else {}
    details = inner.get("details")
    kind = str(inner.get("type") or "api_error")
    return Said(
        status=400 if kind == "invalid_request_error" else 500,
        type=kind,
        code=details.get("error_code") if isinstance(details, dict) else None,
        message=str(inner.get("message") or "no message"),
        request_id=body.get("request_id") if isinstance(body, dict) else None,
    )


def _made_at(batch: Mapping[str, Any]) -> datetime:
    try:
        return datetime.fromisoformat(str(batch.get("created_at")))
    except ValueError:
        return datetime.now(UTC)


def _total(batch: Mapping[str, Any]) -> int:
    counts = batch.get("request_counts")
    return sum(n for n in counts.values() if isinstance(n, int)) if isinstance(counts, dict) else -1
