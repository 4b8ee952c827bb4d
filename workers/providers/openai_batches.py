"""OpenAI's Files and Batches (providers.md 2.6): one model a file, `output` and `error` file, our marker in `metadata`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import httpx2
import openai

from waybill.errors import ProviderError
from workers.providers import wire
from workers.providers.base import Call
from workers.providers.batches import SKEW_S, Line, Look, Row, json_lines
from workers.providers.errors import TRANSPORT_ERRORS, Said, interrupted, refused
from workers.providers.failures import failure
from workers.providers.openai import said
from workers.providers.wire import Progress

if TYPE_CHECKING:
    from workers.providers.openai import OpenAIProvider

MARKER: Final = "waybill_batch"
_ENDPOINT: Final = "/v1/chat/completions"
_CAUGHT: Final = (openai.OpenAIError, *TRANSPORT_ERRORS)
_READ_TIMEOUT_S: Final = 120.0
_PAGE: Final = 100
_MOST_PAGES: Final = 10
_WORKING: Final = frozenset({"validating", "in_progress", "finalizing", "cancelling"})


class OpenAIBatches:
    """The batches of one account."""

    most_rows = 50_000
    most_bytes = 190_000_000

    def __init__(self, provider: OpenAIProvider) -> None:
        self._provider = provider

    def line(self, name: str, call: Call) -> Line:
        """See `BatchProvider.line`. The tier is the batch's own and must not be asked for."""
        body = self._provider.request(call)
        body.pop("service_tier", None)
        request = {"custom_id": name, "method": "POST", "url": _ENDPOINT, "body": body}
        return Line(name, json.dumps(request, ensure_ascii=False, separators=(",", ":")).encode())

    async def create(self, marker: str, lines: Sequence[Line], *, timeout_s: float) -> str:
        """See `BatchProvider.create`. A file that was uploaded for nothing costs nothing."""
        content = b"\n".join(line.text for line in lines) + b"\n"
        client = self._provider.client
        try:
            async with asyncio.timeout(timeout_s):
                file = await client.files.create(file=(f"waybill-{marker}.jsonl", content), purpose="batch")
                made = await client.batches.create(
                    input_file_id=file.id,
                    endpoint=_ENDPOINT,
                    completion_window="24h",
                    metadata={MARKER: marker},
                )
        except _CAUGHT as exc:
            raise _sorted(exc) from exc
        return wire.text_of(made.id, "the batch's id", Progress("openai"))

    async def find(
        self, marker: str, names: Collection[str], *, rows: int, since: datetime, not_ours: Collection[str]
    ) -> str | None:
        """See `BatchProvider.find`."""
        earliest_s = since.timestamp() - SKEW_S
        after: str | None = None
        for _ in range(_MOST_PAGES):
            query = f"?limit={_PAGE}" + (f"&after={after}" if after else "")
            page = await self._ask("get", f"/batches{query}")
            data = [item for item in page.get("data") or [] if isinstance(item, dict)]
            for batch in data:
                marked = batch.get("metadata")
                # One that failed as a whole was never done; it is sent again under the same marker.
                if isinstance(marked, dict) and marked.get(MARKER) == marker and batch.get("id") not in not_ours:
                    return str(batch["id"])
            if not page.get("has_more") or not data or int(data[-1].get("created_at") or 0) < earliest_s:
                break
            after = str(data[-1].get("id"))
        return None

    async def look(self, provider_id: str) -> Look:
        """See `BatchProvider.look`."""
        batch = await self._ask("get", f"/batches/{provider_id}")
        status = batch.get("status")
        if status == "failed":
            return _refused(batch)
        return Look("working" if status in _WORKING else "ended")

    async def results(self, provider_id: str, calls: Mapping[str, Call]) -> AsyncIterator[Row]:
        """See `BatchProvider.results`: both files are read."""
        batch = await self._ask("get", f"/batches/{provider_id}")
        for key in ("output_file_id", "error_file_id"):
            if batch.get(key):
                response = await self._send("get", f"/files/{batch[key]}/content")
                for line in json_lines(response.content):
                    if isinstance(line.get("custom_id"), str):
                        yield self._row(line, calls.get(line["custom_id"]))

    async def cancel(self, provider_id: str) -> None:
        """See `BatchProvider.cancel`."""
        try:
            await self._ask("post", f"/batches/{provider_id}/cancel")
        except ProviderError as exc:
            if exc.code not in ("conflict", "bad_request"):  # it has ended meanwhile
                raise

    async def forget(self, provider_id: str) -> None:
        """See `BatchProvider.forget`: input, output and error file."""
        batch = await self._ask("get", f"/batches/{provider_id}")
        for key in ("input_file_id", "output_file_id", "error_file_id"):
            if batch.get(key):
                await self._send("delete", f"/files/{batch[key]}")

    def _row(self, line: dict[str, Any], call: Call | None) -> Row:
        name, error, response = line["custom_id"], line.get("error"), line.get("response")
        code = error.get("code") if isinstance(error, dict) else None
        if code == "batch_expired":
            return Row(name, "expired", failure=failure("batch_expired", "openai did not get to it within 24 hours"))
        if code == "batch_cancelled":
            return Row(
                name, "cancelled", failure=failure("batch_cancelled", "its batch was cancelled before it was done")
            )
        response = response if isinstance(response, dict) else {}
        status, body = response.get("status_code"), response.get("body")
        if call is None:
            return Row(name, "succeeded" if status == 200 else "errored")
        request_id = response.get("request_id")
        try:
            if status == 200:
                return Row(name, "succeeded", answer=self._provider.read_completion(call, body, request_id))
            inner = body.get("error") if isinstance(body, dict) else error
            raise refused("openai", _said_in_row(status, inner, request_id), now=datetime.now(UTC))
        except ProviderError as exc:
            return Row(name, "errored", failure=exc)

    async def _ask(self, method: str, path: str) -> dict[str, Any]:
        response = await self._send(method, path)
        return wire.json_object(response.content, wire.plain_headers(response), Progress("openai"))

    async def _send(self, method: str, path: str) -> httpx2.Response:
        client = self._provider.client
        call = {"get": client.get, "post": client.post, "delete": client.delete}[method]
        try:
            async with asyncio.timeout(_READ_TIMEOUT_S):
                response: httpx2.Response = await call(path, cast_to=httpx2.Response)  # type: ignore[operator]  # a table of methods
                return response
        except _CAUGHT as exc:
            raise _sorted(exc) from exc


def _sorted(exc: Exception) -> ProviderError:
    if isinstance(exc, openai.APIError) and not isinstance(exc, openai.APIConnectionError):
        return refused("openai", said(exc, Progress("openai")), now=datetime.now(UTC))
    return interrupted("openai", exc)


def _refused(batch: Mapping[str, Any]) -> Look:
    errors = batch.get("errors")
    data = errors.get("data") if isinstance(errors, dict) else None
    first = data[0] if isinstance(data, list) and data and isinstance(data[0], dict) else {}
    code = str(first.get("code") or "failed")
    message = f"openai failed the batch ({code}): {first.get('message') or 'no message'}"
    return Look("refused", failure("bad_request", message[:500]), is_full=code == "token_limit_exceeded")


def _said_in_row(status: object, error: object, request_id: object) -> Said:
    error = error if isinstance(error, dict) else {}
    return Said(
        status=status if isinstance(status, int) else 500,
        type=error.get("type") if isinstance(error.get("type"), str) else None,
        code=error.get("code") if isinstance(error.get("code"), str) else None,
        message=str(error.get("message") or "no message"),
        request_id=request_id if isinstance(request_id, str) else None,
    )
