"""OpenAI's Responses dialect: only to be passed through, for clients that speak it themselves. Checks as strict as elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from waybill.contract import Usage
from workers.providers import wire
from workers.providers.base import Answer, Call, Stop
from workers.providers.failures import failure
from workers.providers.headers import openai_limits
from workers.providers.wire import Progress

_INCOMPLETE: Final[Mapping[str, Stop]] = {
    "max_output_tokens": Stop.TRUNCATED,
    "max_messages": Stop.TRUNCATED,
    "content_filter": Stop.REFUSED,
}


def usage_of(usage: object) -> Usage | None:
    """`usage` of a response; None when it is missing or nonsense. `input_tokens` includes what was cached."""
    if not isinstance(usage, Mapping) or usage.get("input_tokens") is None or usage.get("output_tokens") is None:
        return None
    try:
        details = wire.section(usage, "input_tokens_details")
        read, written = wire.count(details, "cached_tokens"), wire.count(details, "cache_write_tokens")
        written_12h = wire.count(wire.section(details, "cache_write_tokens_details"), "ttl_12h_tokens")
        rest = wire.count(usage, "input_tokens") - read - written
        if rest < 0 or written_12h > written:
            return None
        return Usage(
            input_tokens=rest,
            output_tokens=wire.count(usage, "output_tokens"),
            cache_read_tokens=read,
            cache_write_tokens=written - written_12h,
            cache_write_1h_tokens=written_12h,
            thinking_tokens=wire.count(wire.section(usage, "output_tokens_details"), "reasoning_tokens"),
        )
    except ValueError:
        return None


class ResponsesReply:
    """A response as its events build it up."""

    def __init__(self, progress: Progress) -> None:
        self.text = wire.Text()
        self._progress = progress
        self._final: dict[str, Any] | None = None
        self._is_refusal = False
        self._has_calls = False

    def take(self, event: dict[str, Any]) -> str:
        """Take an event; return the text in it. Unknown events are left alone."""
        progress = self._progress
        match event.get("type"):
            case "response.created":
                progress.began = True
            case "response.output_text.delta":
                text = self.text.add(wire.text_of(event.get("delta"), "a piece of text", progress))
                if text:
                    progress.note_text()
                return text
            case "response.refusal.delta" | "response.function_call_arguments.delta":
                progress.output = True
            case "response.completed" | "response.incomplete":
                self.end(wire.mapping(event.get("response"), "the response", progress))
        return ""

    def end(self, response: dict[str, Any]) -> None:
        """Take the whole response."""
        self._final = response
        self._progress.usage = usage_of(response.get("usage"))
        output = response.get("output")
        if not isinstance(output, list):
            raise wire.wrong_type("the output", self._progress)
        for place, item in enumerate(output):
            kind = wire.mapping(item, f"output item {place}", self._progress).get("type")
            self._has_calls = self._has_calls or kind in ("function_call", "custom_tool_call")
            for part in (item.get("content") or []) if kind == "message" else []:
                if wire.mapping(part, "a part", self._progress).get("type") == "refusal":
                    self._is_refusal = True

    def add_texts(self) -> None:
        """Take the text from the whole response, where no deltas came."""
        for item in (self._final or {}).get("output", []):
            for part in (item.get("content") or []) if item.get("type") == "message" else []:
                words = part.get("text") if part.get("type") == "output_text" else part.get("refusal")
                self.text.add(wire.text_of(words, "a piece of text", self._progress))

    def answer(self, headers: Mapping[str, str]) -> Answer:
        """The answer, once it is over.

        Raises:
            Broken: It ended without its terminal event or model, or for a reason we do not know.
        """
        progress, final = self._progress, self._final
        if final is None or not isinstance(final.get("model"), str):
            text = f"{progress.provider} ended its answer without response.completed or model"
            raise failure("no_terminal_event", text, seen=progress.seen)
        self.text.end()
        tier = final.get("service_tier")
        return Answer(
            text=self.text.whole,
            stop=self._stop(final),
            usage=progress.usage,
            served_model=final["model"],
            request_id=progress.request_id,
            service_tier=tier if isinstance(tier, str) else None,
            limits=openai_limits(headers),
            first_token_s=progress.first_token_s,
        )

    def _stop(self, final: Mapping[str, Any]) -> Stop:
        status = final.get("status")
        if status == "incomplete":
            details = final.get("incomplete_details")
            reason = details.get("reason") if isinstance(details, Mapping) else None
            stop = _INCOMPLETE.get(reason) if isinstance(reason, str) else None
            if stop is not None:
                return stop
        elif status == "completed":
            if self._is_refusal:
                return Stop.REFUSED
            return Stop.TOOL_USE if self._has_calls else Stop.COMPLETE
        text = f"{self._progress.provider} stopped for a reason Waybill does not know: {status!r}"
        raise failure("unknown_stop", text, seen=self._progress.seen)


def whole(call: Call, body: dict[str, Any], headers: Mapping[str, str], progress: Progress) -> Answer:
    """The checked answer in a response that was not streamed."""
    progress.usage = usage_of(body.get("usage"))
    progress.output = progress.usage is not None and progress.usage.output_tokens > 0
    if body.get("object") != "response":
        raise wire.wrong_type("the response", progress)
    if body.get("status") == "failed":
        error = body.get("error")
        message = error.get("message") if isinstance(error, Mapping) else "no message"
        raise failure("server_error", f"{progress.provider} failed: {message}", seen=progress.seen, status=200)
    reply = ResponsesReply(progress)
    reply.end(body)
    reply.add_texts()
    return wire.finished(call, replace(reply.answer(headers), first_token_s=None), progress)
