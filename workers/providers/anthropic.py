"""Claude over the Messages API (version 2026-10-21): translates a Call, checks the answer, classifies errors.

Facts from providers.md section 1. Sampling parameters are refused by that API version and never sent. A JSON answer is
asked for with `output_config.format`: forcing a tool is refused by the 5.5 models. A breakpoint stands after what many jobs
share (system, then context), never on the prompt itself: there it would be written each time and read never.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final

import anthropic
import httpx2
from anthropic import AsyncAnthropic, AsyncStream, DefaultAioHttpClient

from policies.catalog import Model
from policies.dialects.schema import closed, instruction, label_schema
from waybill.contract import Usage
from workers.providers import passthrough, wire
from workers.providers.base import Answer, Call, Frames, Stop
from workers.providers.errors import TRANSPORT_ERRORS, Said, interrupted, refused
from workers.providers.failures import failure
from workers.providers.headers import anthropic_limits
from workers.providers.wire import Progress

_STOPS: Final[Mapping[str, Stop]] = {
    "end_turn": Stop.COMPLETE,
    "stop_sequence": Stop.COMPLETE,
    "max_tokens": Stop.TRUNCATED,
    "model_context_window_exceeded": Stop.TRUNCATED,
    "refusal": Stop.REFUSED,
    "tool_use": Stop.TOOL_USE,
}
_EFFORT_OFF: Final = "none"
_CAUGHT: Final = (anthropic.AnthropicError, *TRANSPORT_ERRORS)


class AnthropicProvider:
    """One account at Anthropic."""

    name = "anthropic"

    def __init__(self, api_key: str, base_url: str | None = None) -> None:
        """Opens nothing yet; connections belong to the loop of the first call.

        Raises:
            ConfigError: The key or the URL cannot work.
        """
        wire.check_access(self.name, api_key, base_url)
        self.client = AsyncAnthropic(
            api_key=api_key,
            base_url=base_url,
            max_retries=0,
            timeout=wire.TRANSPORT_TIMEOUT,
            http_client=DefaultAioHttpClient(limits=wire.CONNECTION_LIMITS, timeout=wire.TRANSPORT_TIMEOUT),
            # The fleet has its own telemetry, and an environment variable must not put prompts into somebody's spans.
            open_telemetry=False,
        )

    def request(self, call: Call) -> dict[str, Any]:
        """The body of the call, for a batch.

        Raises:
            Rejected: It cannot be a row of one.
        """
        return message_request(call) if call.wire is None else passthrough.row_body(call)

    def read_message(self, call: Call, message: object) -> Answer:
        """The checked answer in a batch's row.

        Raises:
            Broken: It may not be stored as success.
        """
        progress = Progress(self.name)
        body = wire.mapping(message, "the message", progress)
        if call.wire is None:
            return _whole(call, body, {}, progress)
        return passthrough.read_row(self._lane(), call, body, progress)

    async def call(self, call: Call) -> Answer:
        """Send and wait for the whole answer; see `Provider.call`."""
        progress = Progress(self.name)
        try:
            if call.wire is not None:
                return await passthrough.call_whole(self._lane(), call, progress)
            request = message_request(call)
            async with asyncio.timeout(call.timeout_s):
                raw = await self.client.messages.with_raw_response.create(
                    **request, extra_headers=wire.call_headers(call), timeout=wire.TRANSPORT_TIMEOUT
                )
            headers = wire.plain_headers(raw.http_response)
            progress.request_id = headers.get("request-id")
            body = wire.json_object(raw.http_response.content, headers, progress)
            return _whole(call, body, headers, progress)
        except _CAUGHT as exc:
            raise self._sorted(exc, progress, streaming=False) from exc

    async def stream(self, call: Call) -> AsyncIterator[str | Frames | Answer]:
        """Yield pieces of text, then the checked Answer; see `Provider.stream`.

        A label is held back until it is whole and checked.
        """
        progress = Progress(self.name)
        stream: AsyncStream[object] | None = None
        try:
            if call.wire is not None:
                async for item in passthrough.stream_frames(self._lane(), call, progress):
                    yield item
                return
            request = message_request(call)
            async with asyncio.timeout(call.timeout_s):
                raw = await self.client.messages.with_raw_response.create(
                    **request, stream=True, extra_headers=wire.call_headers(call), timeout=wire.TRANSPORT_TIMEOUT
                )
                # Undecoded events: the SDK's typed ones are not validated, and cost three times the CPU.
                stream = await raw.parse(to=AsyncStream[object])
            headers = wire.plain_headers(raw.http_response)
            progress.request_id = headers.get("request-id")
            progress.limits = anthropic_limits(headers)
            wire.check_content_type(headers, "text/event-stream", progress)
            reply = _Reply(progress)
            async for event in wire.Events(stream, call, progress):
                piece = reply.take(wire.mapping(event, "an event", progress))
                if piece and not call.labels:
                    yield piece
            rest = reply.text.end()
            if rest and not call.labels:
                yield rest
            answer = wire.finished(call, reply.answer(headers), progress)
            if call.labels and answer.text:
                yield answer.text
            yield answer
        except _CAUGHT as exc:
            raise self._sorted(exc, progress, streaming=True) from exc
        finally:
            if stream is not None:
                await stream.close()

    async def close(self) -> None:
        """Close the connections; calls on their way fail."""
        await self.client.close()

    def _lane(self) -> passthrough.Lane:
        return passthrough.Lane(
            name=self.name,
            send=self._send,
            open=self._open,
            reply=lambda _, progress: _Reply(progress),
            whole=lambda _, call, body, headers, progress: _whole(call, body, headers, progress),
            answer=lambda reply, _, headers: reply.answer(headers),
            limits=anthropic_limits,
        )

    async def _send(self, path: str, body: dict[str, Any], headers: Mapping[str, str]) -> httpx2.Response:
        options: Any = {"headers": headers, "timeout": wire.TRANSPORT_TIMEOUT}
        return await self.client.post(path, cast_to=httpx2.Response, body=body, options=options)

    async def _open(self, path: str, body: dict[str, Any], headers: Mapping[str, str]) -> AsyncStream[object]:
        options: Any = {"headers": headers, "timeout": wire.TRANSPORT_TIMEOUT}
        return await self.client.post(
            path, cast_to=object, body=body, options=options, stream=True, stream_cls=AsyncStream[object]
        )

    def _sorted(self, exc: Exception, progress: Progress, *, streaming: bool) -> Exception:
        """`exc` as one of our four kinds."""
        if isinstance(exc, anthropic.APIStatusError):
            return refused(self.name, said(exc), now=datetime.now(UTC), seen=progress.seen)
        return interrupted(self.name, exc, seen=progress.seen, streaming=streaming)


def said(exc: anthropic.APIStatusError) -> Said:
    """An SDK error as what the provider said."""
    return Said(
        status=exc.status_code,
        type=exc.type if isinstance(exc.type, str) else None,
        code=exc.error_code,
        message=exc.api_message if isinstance(exc.api_message, str) else exc.message,
        headers=exc.response.headers,
        request_id=exc.request_id,
    )


def message_request(call: Call) -> dict[str, Any]:
    """The keyword arguments of `messages.create` for `call`. Pure.

    Raises:
        Rejected: The model does not take the effort asked for.
    """
    model = call.model
    request: dict[str, Any] = {
        "model": model.id,
        "max_tokens": min(call.max_output_tokens, model.max_output_tokens),
        "messages": _turns(call),
    }
    system = call.system or ""
    output: dict[str, Any] = {}
    schema = label_schema(call.labels) if call.labels else call.json_schema
    if schema is not None:
        strict = closed(schema) if model.json_schema else None
        if strict is None:
            system = f"{system}\n\n{instruction(schema)}".strip()
        else:
            output["format"] = {"type": "json_schema", "schema": strict.schema}
    effort, thinking = _thinking(call.effort, model)
    if effort is not None:
        output["effort"] = effort
    if thinking is not None:
        request["thinking"] = thinking
    if output:
        request["output_config"] = output
    if system:
        mark = None if call.context else _mark(call)
        request["system"] = [{"type": "text", "text": system, **mark}] if mark else system
    return request


def _turns(call: Call) -> list[dict[str, Any]]:
    """The conversation; the context is a block of its own before the first user turn."""
    turns: list[dict[str, Any]] = [{"role": m.role, "content": m.content} for m in call.messages]
    if call.context:
        block = {"type": "text", "text": call.context, **(_mark(call) or {})}
        if turns[0]["role"] == "user":
            turns[0]["content"] = [block, {"type": "text", "text": turns[0]["content"]}]
        else:
            turns.insert(0, {"role": "user", "content": [block]})
    return turns


def _mark(call: Call) -> dict[str, Any] | None:
    if call.caching is None or not call.caching.mark:
        return None
    control = {"type": "ephemeral"}
    return {"cache_control": {**control, "ttl": "1h"} if call.caching.is_long else control}


def _thinking(effort: str | None, model: Model) -> tuple[str | None, dict[str, str] | None]:
    """The wire's effort and thinking settings.

    `none` switches thinking off where the model allows it; where it always thinks, the weakest effort comes nearest.
    """
    if effort is None:
        return None, None
    if effort == _EFFORT_OFF:
        if model.thinking == "always":
            return (model.efforts[0] if model.efforts else None), None
        return None, ({"type": "disabled"} if model.thinking == "default" else None)
    if effort not in model.efforts:
        taken = ", ".join((_EFFORT_OFF, *model.efforts))
        raise failure("bad_request", f"{model.id} does not take effort {effort!r}; it takes: {taken}")
    return effort, None


def usage_of(usage: object) -> Usage | None:
    """`usage` of a message; None when it is missing or nonsense. `input_tokens` is the uncached rest on this wire."""
    if not isinstance(usage, Mapping) or usage.get("input_tokens") is None or usage.get("output_tokens") is None:
        return None
    try:
        written = wire.count(usage, "cache_creation_input_tokens")
        split = wire.section(usage, "cache_creation")
        written_1h = wire.count(split, "ephemeral_1h_input_tokens")
        written_5m = wire.count(split, "ephemeral_5m_input_tokens")
        if written_1h + written_5m == 0:
            written_5m = written
        return Usage(
            input_tokens=wire.count(usage, "input_tokens"),
            output_tokens=wire.count(usage, "output_tokens"),
            cache_read_tokens=wire.count(usage, "cache_read_input_tokens"),
            cache_write_tokens=written_5m,
            cache_write_1h_tokens=written_1h,
            thinking_tokens=wire.count(wire.section(usage, "output_tokens_details"), "thinking_tokens"),
        )
    except ValueError:
        return None


def _whole(call: Call, body: dict[str, Any], headers: Mapping[str, str], progress: Progress) -> Answer:
    """The checked answer in a message that was not streamed."""
    reply = _Reply(progress)
    reply.merge_usage(body.get("usage"), is_final=True)
    progress.output = progress.usage is not None and progress.usage.output_tokens > 0
    if body.get("type") != "message" or not isinstance(body.get("content"), list):
        raise wire.wrong_type("the message", progress)
    reply.model = wire.text_of(body.get("model"), "the model", progress)
    for block in body["content"]:
        if wire.mapping(block, "a content block", progress).get("type") == "text":
            reply.text.add(wire.text_of(block.get("text"), "a text block", progress))
    reply.text.end()
    reply.stop_reason = body.get("stop_reason")
    reply.is_over = True
    answer = reply.answer(headers)
    return wire.finished(call, replace(answer, first_token_s=None), progress)


class _Reply:
    """A message as its events build it up."""

    def __init__(self, progress: Progress) -> None:
        self.text = wire.Text()
        self.model: str | None = None
        self.stop_reason: object = None
        self.is_over = False
        self._usage: dict[str, object] = {}
        self._progress = progress

    def take(self, event: dict[str, Any]) -> str:
        """Take an event; return the text to hand on ("" for none). Unknown events are left alone."""
        match event.get("type"):
            case "content_block_delta":
                return self._delta(wire.mapping(event.get("delta"), "a delta", self._progress))
            case "content_block_start":
                block = wire.mapping(event.get("content_block"), "a content block", self._progress)
                return self._text(block.get("text")) if block.get("type") == "text" else ""
            case "message_start":
                message = wire.mapping(event.get("message"), "the message", self._progress)
                self._progress.began = True
                self.model = wire.text_of(message.get("model"), "the model", self._progress)
                self.merge_usage(message.get("usage"), is_final=False)
            case "message_delta":
                delta = wire.mapping(event.get("delta"), "a delta", self._progress)
                self.stop_reason = delta.get("stop_reason") or self.stop_reason
                self.merge_usage(event.get("usage"), is_final=True)
            case "message_stop":
                self.is_over = True
        return ""

    def merge_usage(self, usage: object, *, is_final: bool) -> None:
        """Later counts replace earlier ones (they are cumulative), null ones do not.

        Counts that are not final are not what was charged: an answer cut before them is booked as an estimate.
        """
        if isinstance(usage, Mapping):
            self._usage.update({key: value for key, value in usage.items() if value is not None})
            if is_final:
                self._progress.usage = usage_of(self._usage)

    def answer(self, headers: Mapping[str, str]) -> Answer:
        """The answer, once it is over.

        Raises:
            Broken: It ended without its terminal event, or for a reason we do not know.
        """
        progress = self._progress
        if not self.is_over or self.model is None or self.stop_reason is None:
            text = f"{progress.provider} ended its answer without message_stop, model or stop_reason"
            raise failure("no_terminal_event", text, seen=progress.seen)
        stop = _STOPS.get(self.stop_reason) if isinstance(self.stop_reason, str) else None
        if stop is None:
            text = f"{progress.provider} stopped for a reason Waybill does not know: {self.stop_reason!r}"
            raise failure("unknown_stop", text, seen=progress.seen)
        tier = self._usage.get("service_tier")
        return Answer(
            text=self.text.whole,
            stop=stop,
            usage=progress.usage,
            served_model=self.model,
            request_id=progress.request_id,
            service_tier=tier if isinstance(tier, str) else None,
            limits=anthropic_limits(headers),
            first_token_s=progress.first_token_s,
        )

    def _delta(self, delta: dict[str, Any]) -> str:
        if delta.get("type") == "text_delta":
            return self._text(delta.get("text"))
        self._progress.output = True  # thinking is billed as output too
        return ""

    def _text(self, piece: object) -> str:
        text = self.text.add(wire.text_of(piece, "a piece of text", self._progress))
        if text:
            self._progress.note_text()
        return text
