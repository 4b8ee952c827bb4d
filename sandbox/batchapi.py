"""The batch endpoints on the wire: Anthropic's Message Batches, OpenAI's Files and Batches. What a batch does: batches.py."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from pydantic_core import from_json, to_json

from sandbox import failures
from sandbox.batches import VALIDATING_NS, Batch, Row
from sandbox.exchange import ApiError, Asking, Dialect, Identity, Json, invalid
from sandbox.faults import Target

if TYPE_CHECKING:
    from sandbox.connection import Exchange
    from sandbox.server import Sandbox

MAX_BODY_BYTES = 256 * 1024 * 1024
MAX_FILE_BYTES = 200 * 1024 * 1024
MAX_REQUESTS = {"anthropic": 100_000, "openai": 50_000}
_CUSTOM_ID = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_ENDPOINTS = {"/v1/chat/completions", "/v1/responses"}
_SECOND_NS = 10**9
CLAUDE, FILES, GPT = "/v1/messages/batches", "/v1/files", "/v1/batches"

# What the caller is sent: a JSON object or the lines of a file.
Sent = Json | bytes


@dataclass(frozen=True, slots=True)
class _File:
    id: str
    account: str
    name: str
    purpose: str
    content: bytes
    created_ns: int


class BatchApi:
    """Serves the batch endpoints of a sandbox."""

    def __init__(self, sandbox: Sandbox, dialects: dict[str, Dialect]) -> None:
        self._sandbox = sandbox
        self._dialects = dialects
        self._files: dict[str, _File] = {}

    def clear(self) -> None:
        """Forget all files."""
        self._files.clear()

    @staticmethod
    def serves(path: str) -> bool:
        """Whether a path is one of the batch endpoints."""
        return any(path == root or path.startswith(f"{root}/") for root in (CLAUDE, FILES, GPT))

    async def serve(self, exchange: Exchange, account: str, identity: Identity) -> Sent | None:
        """The answer to one request; None when a fault has ended the exchange already.

        Raises:
            ApiError: It is refused.
        """
        body = await exchange.body(MAX_BODY_BYTES) if exchange.method == "POST" else b""
        provider = "anthropic" if exchange.path.startswith(CLAUDE) else "openai"
        creates = exchange.method == "POST" and exchange.path in (CLAUDE, GPT, FILES)
        rule = None
        if self._sandbox.faults:
            target = Target("", "batches" if creates else "batch_reads", "batch", False, "")
            rule = self._sandbox.faults.pick(target, self._sandbox.clock.now_ns())
        hidden_s = 0.0
        if rule is not None and rule.kind.name == "batch_hidden":
            hidden_s, rule = rule.delay_s, None
        if rule is not None and not rule.is_billed:
            await self._spoil(exchange, rule.kind.name, provider, rule)
            return None
        answer = self._route(exchange, account, identity, body, hidden_s)
        if rule is not None:  # it was carried out, and only the answer is lost
            await self._spoil(exchange, rule.kind.name, provider, rule)
            return None
        return answer

    async def _spoil(self, exchange: Exchange, name: str, provider: str, rule: Any) -> None:
        if name == "hang":
            await exchange.until_client_leaves()
        elif name == "reset":
            await exchange.reset()
        else:
            raise failures.error_of(rule, provider)

    def _route(self, exchange: Exchange, account: str, identity: Identity, body: bytes, hidden_s: float) -> Sent:
        path, method = exchange.path, exchange.method
        root = next(root for root in (CLAUDE, FILES, GPT) if path == root or path.startswith(f"{root}/"))
        name, _, verb = path.removeprefix(root).strip("/").partition("/")
        calls: dict[tuple[str, str, bool, str], Callable[[], Sent]] = {
            (CLAUDE, "POST", False, ""): lambda: self._create_claude(exchange, account, identity, body, hidden_s),
            (CLAUDE, "GET", False, ""): lambda: self._list(exchange, account, "anthropic"),
            (CLAUDE, "GET", True, ""): lambda: self._claude(exchange, self._batch(account, "anthropic", name)),
            (CLAUDE, "GET", True, "results"): lambda: self._results(account, name),
            (CLAUDE, "POST", True, "cancel"): lambda: self._cancel(exchange, account, "anthropic", name),
            (CLAUDE, "DELETE", True, ""): lambda: self._delete(account, name),
            (FILES, "POST", False, ""): lambda: self._upload(exchange, account, identity, body),
            (FILES, "GET", False, ""): lambda: self._list_files(exchange, account),
            (FILES, "GET", True, ""): lambda: _file_info(self._file(account, name)),
            (FILES, "GET", True, "content"): lambda: self._file(account, name).content,
            (FILES, "DELETE", True, ""): lambda: self._delete_file(account, name),
            (GPT, "POST", False, ""): lambda: self._create_gpt(account, identity, body, hidden_s),
            (GPT, "GET", False, ""): lambda: self._list(exchange, account, "openai"),
            (GPT, "GET", True, ""): lambda: self._gpt(self._batch(account, "openai", name)),
            (GPT, "POST", True, "cancel"): lambda: self._cancel(exchange, account, "openai", name),
        }
        call = calls.get((root, method, bool(name), verb))
        if call is None:
            raise ApiError(404, "not_found", f"{method} {path} is not served by this sandbox", code="unknown_url")
        return call()

    # -- Anthropic -------------------------------------------------------------------------------------------------

    def _create_claude(
        self, exchange: Exchange, account: str, identity: Identity, body: bytes, hidden_s: float
    ) -> Json:
        given = _json(body)
        requests = given.get("requests")
        if set(given) - {"requests"} or not isinstance(requests, list) or not requests:
            raise invalid("requests: Field required, and the only one; a list that is not empty")
        if len(requests) > MAX_REQUESTS["anthropic"]:
            raise ApiError(413, "too_large", f"requests: at most {MAX_REQUESTS['anthropic']} requests make a batch")
        dialect, now_ns = self._dialects["/v1/messages"], self._sandbox.clock.now_ns()
        asking = Asking(account, now_ns, exchange.header(b"anthropic-version"))
        rows, seen = [], set()
        for place, request in enumerate(requests):
            custom_id = request.get("custom_id") if isinstance(request, dict) else None
            if not isinstance(custom_id, str) or not _CUSTOM_ID.fullmatch(custom_id):
                raise invalid(f"requests.{place}.custom_id: String should match pattern '^[a-zA-Z0-9_-]{{1,64}}$'")
            if custom_id in seen:
                raise invalid(f"requests.{place}.custom_id: {custom_id} is used twice")
            seen.add(custom_id)
            rows.append(self._row(dialect, custom_id, request.get("params"), asking))
        queued, _ = self._sandbox.batches.waiting(account, "anthropic", now_ns)
        if queued + len(rows) > self._sandbox.batches.pace.queued_requests:
            raise ApiError(429, "rate_limit", "Too many requests wait in batches of this organization.")
        batch = self._add(f"msgbatch_{identity.answer_id}", account, dialect, rows, hidden_s)
        return self._claude(exchange, batch)

    def _claude(self, exchange: Exchange, batch: Batch) -> Json:
        status = (
            "ended" if batch.ended_ns is not None else "canceling" if batch.cancel_ns is not None else "in_progress"
        )
        host = exchange.header(b"host") or "127.0.0.1"
        return {
            "id": batch.id,
            "type": "message_batch",
            "processing_status": status,
            "request_counts": {
                "processing": batch.count(""),
                **{name: batch.count(name) for name in ("succeeded", "errored", "canceled", "expired")},
            },
            "created_at": _rfc3339(batch.created_ns),
            "expires_at": _rfc3339(batch.expires_ns),
            "ended_at": _rfc3339(batch.ended_ns),
            "cancel_initiated_at": _rfc3339(batch.cancel_ns),
            "archived_at": None,
            "results_url": f"http://{host}{CLAUDE}/{batch.id}/results" if batch.ended_ns is not None else None,
        }

    def _results(self, account: str, name: str) -> bytes:
        batch = self._batch(account, "anthropic", name)
        if batch.ended_ns is None:
            raise ApiError(404, "not_found", f"batch {name} has not ended; it has no results yet")
        return _lines([row.line for row in batch.results(self._sandbox.settings.seed)])

    def _delete(self, account: str, name: str) -> Json:
        batch = self._batch(account, "anthropic", name)
        if batch.ended_ns is None:
            raise invalid(f"batch {name} is in progress; cancel it first")
        self._sandbox.batches.remove(name)
        return {"id": name, "type": "message_batch_deleted"}

    # -- OpenAI ----------------------------------------------------------------------------------------------------

    def _upload(self, exchange: Exchange, account: str, identity: Identity, body: bytes) -> Json:
        fields = _multipart(exchange.header(b"content-type") or "", body)
        purpose = fields.get("purpose", ("", b""))[1].decode("utf-8", "replace")
        if purpose != "batch":
            raise invalid(f"purpose: {purpose!r} is not supported by this sandbox; it takes batch", param="purpose")
        if "file" not in fields:
            raise invalid("file: is required", param="file")
        name, content = fields["file"]
        if len(content) > MAX_FILE_BYTES:
            raise ApiError(413, "too_large", f"a batch file has at most {MAX_FILE_BYTES} bytes")
        return _file_info(self._keep(f"file-{identity.answer_id}", account, name, "batch", content))

    def _keep(self, file_id: str, account: str, name: str, purpose: str, content: bytes) -> _File:
        self._files[file_id] = _File(file_id, account, name, purpose, content, self._sandbox.clock.now_ns())
        return self._files[file_id]

    def _file(self, account: str, name: str) -> _File:
        found = self._files.get(name)
        if found is None or found.account != account:
            raise ApiError(404, "not_found", f"No such File object: {name}", param="id")
        return found

    def _list_files(self, exchange: Exchange, account: str) -> Json:
        purpose = _query(exchange, "purpose")
        found = [
            _file_info(file)
            for file in self._files.values()
            if file.account == account and purpose in (None, file.purpose)
        ]
        return _page(found[::-1], exchange, limit=10_000)

    def _delete_file(self, account: str, name: str) -> Json:
        self._files.pop(self._file(account, name).id)
        return {"id": name, "object": "file", "deleted": True}

    def _create_gpt(self, account: str, identity: Identity, body: bytes, hidden_s: float) -> Json:
        given = _json(body)
        allowed = {"input_file_id", "endpoint", "completion_window", "metadata", "output_expires_after"}
        if unknown := sorted(set(given) - allowed):
            raise invalid(f"Unknown parameter: '{unknown[0]}'.", param=unknown[0], code="unknown_parameter")
        if given.get("completion_window") != "24h":
            raise invalid("completion_window: only '24h' is supported", param="completion_window")
        endpoint = given.get("endpoint")
        if endpoint not in _ENDPOINTS:
            raise invalid(f"endpoint: this sandbox serves {', '.join(sorted(_ENDPOINTS))}", param="endpoint")
        file = self._file(account, str(given.get("input_file_id")))
        dialect = self._dialects[endpoint]
        rows, problems = self._rows_of(file, endpoint, dialect, account)
        batch = self._add(f"batch_{identity.answer_id}", account, dialect, rows, hidden_s, problems)
        batch.input_file_id, batch.metadata = file.id, given.get("metadata")
        return self._gpt(batch)

    def _rows_of(self, file: _File, endpoint: str, dialect: Dialect, account: str) -> tuple[list[Row], list[Json]]:
        """The rows of an input file, or what is wrong with it."""
        rows: list[Row] = []
        problems: list[Json] = []
        seen: set[str] = set()
        models: set[str] = set()
        asking = Asking(account, self._sandbox.clock.now_ns())

        def problem(code: str, message: str, line: int | None = None) -> None:
            problems.append({"code": code, "message": message, "param": None, "line": line})

        for number, text in enumerate(file.content.splitlines(), start=1):
            try:
                line = from_json(text)
                custom_id, body = line["custom_id"], line["body"]
                fits = line["method"] == "POST" and line["url"] == endpoint and isinstance(body, dict)
            except (ValueError, KeyError, TypeError):
                problem("invalid_json_line", "This line is not a request of the batch format.", number)
                continue
            if not fits:
                problem("mismatched_url", f"method and url must be POST {endpoint}.", number)
            elif custom_id in seen:
                problem("duplicate_custom_id", f"The custom_id {custom_id!r} is used twice.", number)
            else:
                seen.add(custom_id)
                models.add(str(body.get("model")))
                rows.append(self._row(dialect, str(custom_id), body, asking))
        if len(models) > 1:
            problem("mismatched_model", f"All requests of a file must name one model, not {', '.join(sorted(models))}.")
        if not rows and not problems:
            problem("empty_file", "The file has no requests.")
        if len(rows) > MAX_REQUESTS["openai"]:
            problem("too_many_tasks", f"A file has at most {MAX_REQUESTS['openai']} requests.")
        call = next((row.call for row in rows if row.call is not None), None)
        if call is not None:
            batches = self._sandbox.batches
            _, waiting = batches.waiting(account, "openai", asking.now_ns, call.model.id)
            more = sum(row.call.prompt_tokens for row in rows if row.call is not None)
            if waiting + more > batches.pace.enqueued_tokens:
                problem(
                    "token_limit_exceeded",
                    f"Enqueued token limit reached for {call.model.id}. Limit: {batches.pace.enqueued_tokens} enqueued "
                    "tokens. Please try again once some in_progress batches have been completed.",
                )
        return rows, problems

    def _gpt(self, batch: Batch) -> Json:
        now_ns = self._sandbox.clock.now_ns()
        status = self._status(batch, now_ns)
        if batch.ended_ns is not None and batch.output_file_id is None and batch.error_file_id is None:
            self._write_files(batch)

        def second(moment_ns: int | None) -> int | None:
            return None if moment_ns is None else moment_ns // _SECOND_NS

        ended = second(batch.ended_ns)
        model = next((row.call.model.id for row in batch.rows if row.call is not None), None)
        return {
            "id": batch.id,
            "object": "batch",
            "endpoint": f"/v1/{'responses' if batch.dialect.endpoint == 'responses' else 'chat/completions'}",
            "model": model,
            "errors": {"object": "list", "data": batch.problems} if status == "failed" else None,
            "input_file_id": batch.input_file_id,
            "completion_window": "24h",
            "status": status,
            "output_file_id": batch.output_file_id,
            "error_file_id": batch.error_file_id,
            "created_at": second(batch.created_ns),
            "in_progress_at": second(batch.created_ns + VALIDATING_NS)
            if status not in ("validating", "failed")
            else None,
            "expires_at": second(batch.expires_ns),
            "finalizing_at": ended,
            "completed_at": ended if status == "completed" else None,
            "failed_at": second(batch.created_ns) if status == "failed" else None,
            "expired_at": ended if status == "expired" else None,
            "cancelling_at": second(batch.cancel_ns),
            "cancelled_at": ended if status == "cancelled" else None,
            "request_counts": {
                "total": 0 if batch.problems else len(batch.rows),
                "completed": batch.count("succeeded"),
                "failed": batch.count("errored", "expired", "canceled"),
            },
            "metadata": batch.metadata,
        }

    def _status(self, batch: Batch, now_ns: int) -> str:
        if now_ns < batch.created_ns + VALIDATING_NS:
            return "validating"
        if batch.problems:
            return "failed"
        if batch.ended_ns is None:
            return "cancelling" if batch.cancel_ns is not None else "in_progress"
        if batch.cancel_ns is not None:
            return "cancelled"
        return "expired" if batch.count("expired") else "completed"

    def _write_files(self, batch: Batch) -> None:
        rows = batch.results(self._sandbox.settings.seed)
        good = [row.line for row in rows if row.outcome == "succeeded"]
        bad = [row.line for row in rows if row.outcome != "succeeded"]
        stem = batch.id.removeprefix("batch_")
        if good:
            name = f"{batch.id}_output.jsonl"
            batch.output_file_id = self._keep(f"file-out-{stem}", batch.account, name, "batch_output", _lines(good)).id
        if bad:
            name = f"{batch.id}_error.jsonl"
            batch.error_file_id = self._keep(f"file-err-{stem}", batch.account, name, "batch_output", _lines(bad)).id

    # -- both ------------------------------------------------------------------------------------------------------

    def _row(self, dialect: Dialect, custom_id: str, body: Any, asking: Asking) -> Row:
        if not isinstance(body, dict):
            return Row(custom_id, None, invalid("params: must be an object"))
        try:
            if body.get("stream"):
                raise invalid("stream: is not supported in a batch", param="stream")
            call = dialect.parse(body, asking)
        except ApiError as error:
            return Row(custom_id, None, error)
        row = Row(custom_id, call)
        if self._sandbox.faults:
            target = Target(call.model.id, "batch", "batch", False, call.user_text)
            row.rule = self._sandbox.faults.pick(target, asking.now_ns)
        return row

    def _add(
        self,
        batch_id: str,
        account: str,
        dialect: Dialect,
        rows: list[Row],
        hidden_s: float,
        problems: list[Json] | None = None,
    ) -> Batch:
        now_ns, batches = self._sandbox.clock.now_ns(), self._sandbox.batches
        ends_ns = batches.plan(rows, batch_id, now_ns)
        visible_ns = now_ns + int(hidden_s * _SECOND_NS)
        return batches.add(
            Batch(batch_id, account, dialect, rows, now_ns, ends_ns, visible_ns, problems=list(problems or []))
        )

    def _batch(self, account: str, provider: str, name: str) -> Batch:
        found = self._sandbox.batches.find(account, provider, name, self._sandbox.clock.now_ns())
        if found is None:
            raise ApiError(404, "not_found", f"No batch found with id '{name}'.")
        return found

    def _cancel(self, exchange: Exchange, account: str, provider: str, name: str) -> Json:
        batch = self._batch(account, provider, name)
        if not batch.waits and provider == "openai":
            raise ApiError(409, "invalid_request", f"Cannot cancel a batch with status '{self._gpt(batch)['status']}'.")
        self._sandbox.batches.cancel(batch, self._sandbox.clock.now_ns())
        return self._gpt(batch) if provider == "openai" else self._claude(exchange, batch)

    def _list(self, exchange: Exchange, account: str, provider: str) -> Json:
        found = self._sandbox.batches.of(account, provider, self._sandbox.clock.now_ns())
        shown = [self._gpt(batch) if provider == "openai" else self._claude(exchange, batch) for batch in found]
        return _page(shown, exchange, limit=20)


def row_line(provider: str, row: Row, answer: Json | None, identity: Identity, error: ApiError | None) -> Json:
    """A row as the results file has it: its answer, its error, or why it was not done."""
    if provider == "anthropic":
        key = {"succeeded": "message", "errored": "error"}.get(row.outcome)
        return {"custom_id": row.custom_id, "result": {"type": row.outcome, **({key: answer} if key else {})}}
    line: Json = {"id": f"batch_req_{identity.answer_id}", "custom_id": row.custom_id, "response": None, "error": None}
    if answer is not None:
        status = 200 if error is None else error.status
        return {**line, "response": {"status_code": status, "request_id": identity.request_id, "body": answer}}
    code, message = {
        "expired": ("batch_expired", "This request could not be executed before the completion window expired."),
        "canceled": ("batch_cancelled", "This request was not executed because its batch was cancelled."),
    }[row.outcome]
    return {**line, "error": {"code": code, "message": message}}


def _page(items: list[Json], exchange: Exchange, *, limit: int) -> Json:
    after = _query(exchange, "after_id") or _query(exchange, "after")
    start = next((place for place, item in enumerate(items, start=1) if item["id"] == after), 0)
    asked = _query(exchange, "limit")
    size = min(int(asked), limit * 50) if asked is not None and asked.isdigit() and int(asked) else limit
    page = items[start : start + size]
    return {
        "object": "list",
        "data": page,
        "has_more": start + size < len(items),
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
    }


def _query(exchange: Exchange, name: str) -> str | None:
    values = parse_qs(exchange.query.decode("latin-1")).get(name)
    return values[0] if values else None


def _json(body: bytes) -> Json:
    try:
        given = from_json(body, allow_inf_nan=False)
    except ValueError as exc:
        raise invalid(f"the request body is not valid JSON: {exc}") from exc
    if not isinstance(given, dict):
        raise invalid("the request body must be a JSON object")
    return given


def _multipart(content_type: str, body: bytes) -> dict[str, tuple[str, bytes]]:
    """The parts of a form by name: file name ("" for a field) and content."""
    found = re.search(r'boundary="?([^";]+)"?', content_type)
    if found is None:
        raise invalid("the body must be multipart/form-data")
    parts: dict[str, tuple[str, bytes]] = {}
    for part in body.split(b"--" + found.group(1).encode("latin-1"))[1:-1]:
        head, _, content = part.partition(b"\r\n\r\n")
        words = head.decode("utf-8", "replace")
        name = re.search(r'\bname="([^"]*)"', words)
        file_name = re.search(r'\bfilename="([^"]*)"', words)
        if name is not None:
            parts[name.group(1)] = (file_name.group(1) if file_name else "", content.removesuffix(b"\r\n"))
    return parts


def _file_info(file: _File) -> Json:
    return {
        "id": file.id,
        "object": "file",
        "bytes": len(file.content),
        "created_at": file.created_ns // _SECOND_NS,
        "expires_at": None,
        "filename": file.name,
        "purpose": file.purpose,
        "status": "processed",
    }


def _lines(items: list[Json]) -> bytes:
    return b"".join(to_json(item) + b"\n" for item in items)


def _rfc3339(moment_ns: int | None) -> str | None:
    if moment_ns is None:
        return None
    return datetime.fromtimestamp(moment_ns / 1e9, UTC).isoformat().replace("+00:00", "Z")
