"""Carries a request in a provider's own dialect through a lane: bytes unchanged where client and lane speak the same one.

Every event is read all the same, by the same checks as any other call: type, terminal event, stop reason, usage. Frames
are held back until the first piece of output, so that a fallback costs the client nothing, and the terminal ones until the
answer is checked and stored: they travel in `Answer.tail`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import httpx2

from policies.dialects import sse
from policies.dialects.carry import READERS, WRITERS, Carried, carry, read
from policies.dialects.neutral import Counts, Dialect, End, Image, Piece, Prompt, Text, TextPiece, Unsupported
from waybill.contract import Message, Usage
from workers.providers import wire
from workers.providers.base import Answer, Call, Frames, Limits, Stop
from workers.providers.errors import Said, refused
from workers.providers.failures import failure
from workers.providers.wire import Progress


class Reply(Protocol):
    """An answer as its events build it up, checked."""

    text: wire.Text

    def take(self, event: dict[str, Any]) -> str:
        """Take an event."""
        ...


@dataclass(frozen=True, slots=True)
class Lane:
    """What an adapter lends to a passage: how to send, and how to check.

    Attributes:
        name: For messages.
        send: (path, body, headers) -> the whole response.
        open: (path, body, headers) -> an open stream with `response` and `close()`.
        reply: (dialect, progress) -> a fresh reply.
        whole: (dialect, call, body, headers, progress) -> the checked answer of a body that was not streamed.
        answer: (reply, call, headers) -> the checked answer of a stream.
        limits: (headers) -> what they say of the provider's limits.
        compatible: An OpenAI-compatible server that is not OpenAI's.
        model_name: What the server calls its model; None = the catalogue's id.
    """

    name: str
    send: Callable[[str, dict[str, Any], Mapping[str, str]], Any]
    open: Callable[[str, dict[str, Any], Mapping[str, str]], Any]
    reply: Callable[[Dialect, Progress], Any]
    whole: Callable[[Dialect, Call, dict[str, Any], Mapping[str, str], Progress], Answer]
    answer: Callable[[Any, Call, Mapping[str, str]], Answer]
    limits: Callable[[Mapping[str, str]], Limits]
    compatible: bool = False
    model_name: str | None = None


PATHS: Mapping[Dialect, str] = {"chat": "/chat/completions", "responses": "/responses", "messages": "/v1/messages"}
_ID_HEADERS = ("request-id", "x-request-id")


class ErrorEvent(Exception):
    """The provider said inside a 200 stream that it failed."""

    def __init__(self, said: Said) -> None:
        super().__init__(said.message)
        self.said = said


def carried(call: Call, *, compatible: bool = False) -> Carried:
    """The body for the lane.

    Raises:
        Rejected: It cannot be carried over to this model; another lane may take it.
    """
    assert call.wire is not None  # only calls with one come here
    try:
        return carry(
            call.wire.dialect,
            call.wire.body,
            call.model,
            service=call.service,
            effort=call.effort,
            limit=call.max_output_tokens,
            drop=call.wire.drop,
            compatible=compatible,
        )
    except Unsupported as exc:
        raise failure("bad_request", str(exc)) from exc


def headers_of(call: Call, sent: Carried) -> dict[str, str]:
    """Our own headers, and Anthropic's version and betas where the client's dialect is the lane's."""
    headers = wire.call_headers(call)
    if sent.is_native and call.wire is not None and sent.dialect == "messages":
        if call.wire.version is not None:
            headers["anthropic-version"] = call.wire.version
        if call.wire.betas:
            headers["anthropic-beta"] = ",".join(call.wire.betas)
    return headers


async def call_whole(lane: Lane, call: Call, progress: Progress) -> Answer:
    """Send and wait for the whole answer, in the client's dialect (`Answer.wire`)."""
    sent = carried(call, compatible=lane.compatible)
    body = {**sent.body, "model": lane.model_name or sent.body["model"]}
    async with asyncio.timeout(call.timeout_s):
        response: httpx2.Response = await lane.send(PATHS[sent.dialect], body, headers_of(call, sent))
    headers = wire.plain_headers(response)
    progress.request_id = next((headers[name] for name in _ID_HEADERS if name in headers), None)
    return _read_whole(lane, call, sent, wire.json_object(response.content, headers, progress), headers, progress)


def row_body(call: Call) -> dict[str, Any]:
    """The body of a batch's row. Headers of its own it has none, and its tier is the batch's.

    Raises:
        Rejected: It cannot be carried over to this model, or not in a batch.
    """
    sent = carried(call)
    if sent.dialect == "responses" or (call.wire is not None and call.wire.betas):
        raise failure(
            "bad_request", "the request cannot be a row of a batch: it needs an endpoint or headers of its own"
        )
    return {
        name: value for name, value in sent.body.items() if name not in ("service_tier", "stream", "stream_options")
    }


def read_row(lane: Lane, call: Call, given: dict[str, Any], progress: Progress) -> Answer:
    """The checked answer in a batch's row, in the client's dialect too (`Answer.wire`)."""
    return _read_whole(lane, call, carried(call), given, {}, progress)


def _read_whole(
    lane: Lane, call: Call, sent: Carried, given: dict[str, Any], headers: Mapping[str, str], progress: Progress
) -> Answer:
    answer = lane.whole(sent.dialect, call, given, headers, progress)
    if sent.is_native:
        return replace(answer, wire=given)
    reader = READERS[sent.dialect]()
    writer = _writer(call, sent.include_usage)
    for piece in reader.whole(given):
        writer.add(piece)
    return replace(answer, wire=writer.whole(_end(reader, answer)))


async def stream_frames(lane: Lane, call: Call, progress: Progress) -> AsyncIterator[Frames | Answer]:
    """Yield frames in the client's dialect as they come, then the checked Answer with the terminal frames."""
    sent = carried(call, compatible=lane.compatible)
    body = {**sent.body, "model": lane.model_name or sent.body["model"], "stream": True}
    if sent.dialect == "chat":
        body["stream_options"] = {**(sent.body.get("stream_options") or {}), "include_usage": True}
    stream: Any = None
    try:
        async with asyncio.timeout(call.timeout_s):
            stream = await lane.open(PATHS[sent.dialect], body, headers_of(call, sent))
        headers = wire.plain_headers(stream.response)
        progress.request_id = next((headers[name] for name in _ID_HEADERS if name in headers), None)
        progress.limits = lane.limits(headers)
        wire.check_content_type(headers, "text/event-stream", progress)
        passage = _Passage(call, sent, lane.reply(sent.dialect, progress), progress)
        cutter = sse.Frames()
        async for data in wire.Events(stream.response.aiter_bytes(), call, progress):
            assert isinstance(data, bytes)  # aiter_bytes gives nothing else
            ready = b"".join(passage.take(frame) for frame in cutter.feed(data))
            if ready:
                yield Frames(ready)
        answer = lane.answer(passage.reply, call, headers)
        yield passage.finished(answer)
    except ErrorEvent as exc:
        raise refused(lane.name, exc.said, now=wire.utc_now(), seen=progress.seen) from exc
    finally:
        if stream is not None:
            await stream.close()


class _Passage:
    """The frames of one stream on their way through."""

    def __init__(self, call: Call, sent: Carried, reply: Reply, progress: Progress) -> None:
        self.reply = reply
        self._call, self._sent, self._progress = call, sent, progress
        self._reader = READERS[sent.dialect]()
        self._writer = _writer(call, sent.include_usage)
        self._held = b"" if sent.is_native else self._writer.start()
        self._tail: list[bytes] = []
        self._pieces: list[Piece] = []
        self._whole: dict[str, Any] | None = None
        self._is_over = False

    def take(self, frame: bytes) -> bytes:
        """Take a frame; return what may go out now."""
        event = sse.event_of(frame)
        if event is None:
            if self._sent.is_native and self._is_over and sse.data_of(frame) is not None:
                self._tail.append(frame)
            return b""
        event = wire.mapping(event, "an event", self._progress)
        said = _error_in(event, self._progress.request_id)
        if said is not None:
            raise ErrorEvent(said)
        self.reply.take(event)
        pieces = self._reader.take(event)
        self._is_over = self._is_over or _is_last(self._sent.dialect, event)
        if self._sent.is_native:
            self._pieces += pieces
            if event.get("type") in ("response.completed", "response.incomplete"):
                self._whole = event.get("response")
            out = b"" if self._is_unasked(event) else frame
            if self._is_over:
                self._tail.append(out)
                return b""
        else:
            out = b"".join(self._writer.add(piece) for piece in pieces)
        if not self._progress.output and not pieces:
            self._held += out
            return b""
        out, self._held = self._held + out, b""
        return out

    def finished(self, answer: Answer) -> Answer:
        """The answer with its terminal frames and its whole form."""
        end = _end(self._reader, answer)
        if self._sent.is_native:
            if self._whole is None:
                for piece in self._pieces:
                    self._writer.add(piece)
                self._whole = self._writer.whole(end)
            return replace(answer, tail=self._held + b"".join(self._tail), wire=self._whole)
        tail = self._held + self._writer.end(end)
        return replace(answer, tail=tail, wire=self._writer.whole(end))

    def _is_unasked(self, event: Mapping[str, Any]) -> bool:
        """The chunk with usage that only we asked for."""
        return self._sent.dialect == "chat" and not self._sent.include_usage and event.get("choices") == []


async def speak(provider: Any, call: Call) -> AsyncIterator[Frames | Answer]:
    """Let a model that only knows turns of text answer a request of some dialect (the local lane).

    Raises:
        Rejected: The request holds what such a model cannot take.
    """
    assert call.wire is not None  # only calls with one come here
    try:
        prompt = read(call.wire.dialect, call.wire.body, call.wire.drop)
        turns = _turns(prompt)
    except Unsupported as exc:
        raise failure("bad_request", str(exc)) from exc
    schema = prompt.form.schema if prompt.form is not None else None
    plain = replace(call, wire=None, messages=turns, system=prompt.system or None, json_schema=schema)
    writer = _writer(call, prompt.include_usage)
    held = writer.start()
    async for item in provider.stream(plain):
        if isinstance(item, Answer):
            end = _end_of(item, "length" if item.stop is Stop.TRUNCATED else "end", None)
            tail = held + writer.end(end)
            yield replace(item, tail=tail, wire=writer.whole(end))
            return
        yield Frames(held + writer.add(TextPiece(item)))
        held = b""


def _turns(prompt: Prompt) -> tuple[Message, ...]:
    if prompt.tools:
        raise Unsupported("tools", "the local model takes no tools")
    turns = []
    for turn in prompt.turns:
        words = "".join(part.text for part in turn.parts if isinstance(part, Text))
        if any(isinstance(part, Image) for part in turn.parts):
            raise Unsupported("messages", "the local model takes no images")
        if any(not isinstance(part, Text) for part in turn.parts):
            raise Unsupported("messages", "the local model takes no tool calls")
        turns.append(Message(role=turn.role, content=words))
    return tuple(turns)


def _writer(call: Call, include_usage: bool) -> Any:
    assert call.wire is not None  # only calls with one come here
    asked = str(call.wire.body.get("model") or call.model.id)
    shown = call.model.id if "/" in asked or asked == "auto" else asked
    answer_id = f"{call.job_id.replace('-', '')[-24:]}{call.attempt:02d}"
    return WRITERS[call.wire.dialect](answer_id, shown, int(time.time()), include_usage=include_usage)


def _end(reader: Any, answer: Answer) -> End:
    stop, sequence = reader.stop()
    return _end_of(answer, stop, sequence)


def _end_of(answer: Answer, stop: Any, sequence: str | None) -> End:
    return End(stop, _counts(answer.usage), sequence)


def _counts(usage: Usage | None) -> Counts | None:
    if usage is None:
        return None
    return Counts(
        input=usage.input_tokens,
        output=usage.output_tokens,
        cache_read=usage.cache_read_tokens,
        cache_write=usage.cache_write_tokens + usage.cache_write_1h_tokens,
        thinking=usage.thinking_tokens,
    )


def _is_last(dialect: Dialect, event: Mapping[str, Any]) -> bool:
    """Whether nothing but terminal events follows."""
    match dialect:
        case "messages":
            return event.get("type") in ("message_delta", "message_stop")
        case "responses":
            return event.get("type") in ("response.completed", "response.incomplete", "response.failed")
        case "chat":
            choices = event.get("choices")
            if not isinstance(choices, list):
                return False
            return not choices or all(isinstance(c, dict) and c.get("finish_reason") for c in choices)


def _error_in(event: Mapping[str, Any], request_id: str | None) -> Said | None:
    """The error that an event is, in any dialect."""
    error = event.get("error")
    if event.get("type") == "response.failed":
        error = (event.get("response") or {}).get("error")
    elif event.get("type") == "error" and not isinstance(error, Mapping):
        error = event  # Responses: the fields stand at the top
    if not isinstance(error, Mapping):
        return None
    details = error.get("details")
    code = details.get("error_code") if isinstance(details, Mapping) else error.get("code")
    kind = error.get("type")
    return Said(
        status=200,
        type=kind if isinstance(kind, str) and kind != "error" else None,
        code=code if isinstance(code, str) else None,
        message=str(error.get("message") or ""),
        request_id=request_id,
    )
