"""Decides what the model says: a recorded answer if the book has one, else a deterministic one that fits the request.

Also decides how it ends: tool calls, stop sequences, and what `max_tokens` leaves of it. Thinking is spent first, as
with the real models, so a small `max_tokens` may leave no text at all.
"""

from __future__ import annotations

import json
from typing import Any

from sandbox import tokens
from sandbox.answers import Answer, AnswerBook
from sandbox.exchange import Call, Generation, Stop, ToolCall, Usage
from sandbox.faults import Rule
from sandbox.schema import fill

_EXCERPT_WORDS = 40


def generate(call: Call, book: AnswerBook, fault: Rule | None) -> Generation:
    """Return the complete answer to `call`.

    Args:
        call: The request; its cache plan gives the prompt side of the usage.
        book: Recorded answers.
        fault: refusal, content_filter, max_tokens and empty change what the model says; the others do not.
    """
    recorded = book.find(call.user_text, call.model.id)
    text, calls, stop = _content(call, recorded)
    thinking = call.thinking_tokens
    if recorded is not None and recorded.thinking_tokens is not None:
        thinking = recorded.thinking_tokens
    stop_sequence = None
    if stop is Stop.END and call.stop_sequences:
        text, stop_sequence = _stopped(text, call.stop_sequences)
        stop = Stop.STOP_SEQUENCE if stop_sequence is not None else stop
    visible = _visible_tokens(call, text, calls)
    if recorded is not None and recorded.output_tokens is not None:
        thinking = min(thinking, recorded.output_tokens)
        visible = recorded.output_tokens - thinking

    if fault is not None:
        match fault.kind.name:
            case "refusal":
                text, calls, stop, visible = "", (), Stop.REFUSAL, min(visible, 12)
            case "content_filter":
                text, calls, stop, visible = "", (), Stop.CONTENT_FILTER, min(visible, 12)
            case "empty":
                text, calls, stop, visible = "", (), Stop.END, 0

    allowed, reason = _allowance(call)
    if fault is not None and fault.kind.name == "max_tokens":
        allowed, reason = min(allowed, thinking + visible // 2), Stop.MAX_TOKENS
    if thinking + visible > allowed:
        kept = max(0, allowed - thinking)
        text = text[: len(text) * kept // max(visible, 1)]
        calls = ()
        thinking, visible, stop = min(thinking, allowed), kept, reason
        stop_sequence = None
    plan = call.cache
    written = plan.write_short_tokens + plan.write_long_tokens
    return Generation(
        text=text,
        stop=stop,
        usage=Usage(
            input=max(0, call.prompt_tokens - plan.read_tokens - written),
            output=thinking + visible,
            cache_write_short=plan.write_short_tokens,
            cache_write_long=plan.write_long_tokens,
            cache_read=plan.read_tokens,
            thinking=thinking,
        ),
        visible_tokens=visible,
        tool_calls=calls,
        stop_sequence=stop_sequence,
        latency_s=None if recorded is None else recorded.latency_s,
        source="self" if recorded is None else "book",
    )


def _content(call: Call, recorded: Answer | None) -> tuple[str, tuple[ToolCall, ...], Stop]:
    if call.max_tokens == 0:  # Claude's way to warm the cache without an answer
        return "", (), Stop.MAX_TOKENS
    if recorded is not None:
        stop = Stop(recorded.stop or "end")
        if stop is Stop.TOOL_USE:
            return "", _recorded_calls(recorded.text), stop
        if stop in (Stop.REFUSAL, Stop.CONTENT_FILTER):
            return "", (), stop
        return recorded.text, (), stop
    if call.forced_tool and call.tools:
        tool = next((tool for tool in call.tools if tool.name == call.forced_tool), call.tools[0])
        return "", (ToolCall(tool.name, _object(fill(tool.schema, call.user_text))),), Stop.TOOL_USE
    if call.schema is not None:
        return json.dumps(fill(call.schema, call.user_text), ensure_ascii=False), (), Stop.END
    if call.json_mode:
        return json.dumps({"answer": _prose(call)}, ensure_ascii=False), (), Stop.END
    return _prose(call), (), Stop.END


def _prose(call: Call) -> str:
    words = call.user_text.split(None, 20_000)
    excerpt = " ".join(words[:_EXCERPT_WORDS])
    more = " ..." if len(words) > _EXCERPT_WORDS else ""
    return (
        f"This is the sandbox speaking as {call.requested_model}; no model ran and no answer is recorded for this text."
        f" It has {len(words)} words: {excerpt}{more}"
    )


def _recorded_calls(text: str) -> tuple[ToolCall, ...]:
    """Read `{"name", "input"}` or a list of such; anything else becomes the input of a tool named "answer"."""
    try:
        given = json.loads(text)
    except json.JSONDecodeError:
        given = {"text": text}
    calls = given if isinstance(given, list) else [given]
    return tuple(
        ToolCall(str(one["name"]), _object(one.get("input", {})))
        if isinstance(one, dict) and "name" in one
        else ToolCall("answer", _object(one))
        for one in calls
    )


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {"value": value}


def _stopped(text: str, sequences: Any) -> tuple[str, str | None]:
    """Cut `text` before the stop sequence that comes first in it."""
    found = [(place, sequence) for sequence in sequences if sequence and (place := text.find(sequence)) >= 0]
    if not found:
        return text, None
    place, sequence = min(found)
    return text[:place], sequence


def _visible_tokens(call: Call, text: str, calls: tuple[ToolCall, ...]) -> int:
    if call.max_tokens == 0:
        return 0
    size = tokens.byte_length(text) + sum(
        tokens.byte_length(one.name) + len(json.dumps(one.input, ensure_ascii=False).encode("utf-8", "surrogatepass"))
        for one in calls
    )
    # Even an empty answer costs a token: the one that ends it.
    return max(1, tokens.estimate(size, call.model.bytes_per_token))


def _allowance(call: Call) -> tuple[int, Stop]:
    """Return how many tokens may be generated and what it is called when they run out."""
    limit = call.model.max_output if call.max_tokens is None else call.max_tokens
    room = max(0, call.model.context - call.prompt_tokens)
    return (limit, Stop.MAX_TOKENS) if limit <= room else (room, Stop.CONTEXT_WINDOW)
