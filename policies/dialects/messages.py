"""Anthropic Messages: its requests and answers to and from the neutral form."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from policies.catalog import Model
from policies.dialects import sse
from policies.dialects.neutral import (
    Choice,
    Counts,
    End,
    Form,
    Image,
    Part,
    Piece,
    Prompt,
    RefusalPiece,
    StopReason,
    Text,
    TextPiece,
    Tool,
    ToolCall,
    ToolPiece,
    ToolResult,
    ToolStart,
    Turn,
    Unsupported,
    arguments_object,
    collect,
    dumps,
    flag,
    image_of,
    is_given,
    items,
    malformed,
    number,
    obj,
    refuse_unknown,
    strings,
    text,
    whole,
)
from policies.dialects.schema import closed, instruction

DEFAULT_MAX_TOKENS: Final = 16_384
"""Claude demands a limit; a client of another dialect that gave none gets this one, or the model's if it is lower."""

_READ: Final = (
    "model", "messages", "max_tokens", "system", "tools", "tool_choice", "stop_sequences", "temperature", "top_p",
    "thinking", "output_config", "output_format", "metadata", "stream", "cache_control",
)  # fmt: skip
_DEFAULTS: Final[Mapping[str, tuple[object, ...]]] = {
    "service_tier": ("auto", "standard_only"), "speed": ("standard",), "inference_geo": ("global",),
}  # fmt: skip
_STOPS: Final[Mapping[str, StopReason]] = {
    "end_turn": "end", "stop_sequence": "stop_sequence", "max_tokens": "length", "tool_use": "tools",
    "model_context_window_exceeded": "length", "refusal": "refusal", "pause_turn": "end",
}  # fmt: skip
_STOP_REASONS: Final[Mapping[StopReason, str]] = {
    "end": "end_turn", "length": "max_tokens", "stop_sequence": "stop_sequence", "tools": "tool_use",
    "refusal": "refusal",
}  # fmt: skip
_BAD_ID: Final = re.compile(r"[^a-zA-Z0-9_-]")


# --- requests ---------------------------------------------------------------------------------------------------------


def read(body: Mapping[str, Any]) -> Prompt:
    """The request in the neutral form.

    `cache_control` marks are not carried over: the other provider caches by itself. Thinking blocks of earlier turns
    are left out: only the model that wrote them can read them.

    Raises:
        Unsupported: A parameter is malformed, or means nothing outside Anthropic.
    """
    refuse_unknown(body, _READ, _DEFAULTS)
    turns: list[Turn] = []
    for place, message in enumerate(items(body.get("messages"), "messages")):
        where = f"messages[{place}]"
        role = obj(message, where).get("role")
        if role not in ("user", "assistant"):
            raise malformed(f"{where}.role", f"{role!r} is neither user nor assistant")
        parts = _parts(message.get("content"), f"{where}.content")
        if parts:
            turns.append(Turn(role, parts))
    if turns and turns[-1].role == "assistant":
        raise Unsupported("messages", "must end with a user turn: a prefilled answer cannot be carried over")
    output = obj(body.get("output_config") or {}, "output_config")
    refuse_unknown(output, ("effort", "format"), {})
    choice = obj(body.get("tool_choice") or {}, "tool_choice")
    return Prompt(
        turns=tuple(turns),
        system=_system(body.get("system")),
        tools=tuple(_tool(tool, f"tools[{n}]") for n, tool in enumerate(body.get("tools") or [])),
        choice=_choice(choice),
        parallel_tools=flag(choice.get("disable_parallel_tool_use"), "tool_choice.disable_parallel_tool_use")
        is not True,
        form=_form(output.get("format") or body.get("output_format")),
        max_output_tokens=whole(body.get("max_tokens"), "max_tokens"),
        temperature=number(body.get("temperature"), "temperature"),
        top_p=number(body.get("top_p"), "top_p"),
        stops=strings(body.get("stop_sequences"), "stop_sequences"),
        effort=_effort(body.get("thinking"), output.get("effort")),
        user=obj(body.get("metadata") or {}, "metadata").get("user_id"),
        stream=flag(body.get("stream"), "stream") is True,
    )


def _system(system: Any) -> str:
    if system is None or isinstance(system, str):
        return system or ""
    blocks = [obj(block, f"system[{n}]") for n, block in enumerate(items(system, "system"))]
    return "\n\n".join(text(block.get("text"), f"system[{n}].text") for n, block in enumerate(blocks))


def _parts(content: Any, where: str) -> tuple[Part, ...]:
    if isinstance(content, str):
        return (Text(content),)
    parts: list[Part] = []
    for place, block in enumerate(items(content, where)):
        at = f"{where}[{place}]"
        match obj(block, at).get("type"):
            case "text":
                parts.append(Text(text(block.get("text"), f"{at}.text")))
            case "image":
                parts.append(_image(obj(block.get("source"), f"{at}.source"), f"{at}.source"))
            case "tool_use":
                arguments = dumps(obj(block.get("input") or {}, f"{at}.input"))
                parts.append(
                    ToolCall(text(block.get("id"), f"{at}.id"), text(block.get("name"), f"{at}.name"), arguments)
                )
            case "tool_result":
                inner = _parts(block.get("content") or "", f"{at}.content")
                shown = tuple(part for part in inner if isinstance(part, Text | Image))
                call_id = text(block.get("tool_use_id"), f"{at}.tool_use_id")
                parts.append(ToolResult(call_id, shown, block.get("is_error") is True))
            case "thinking" | "redacted_thinking":
                continue
            case str(kind):
                raise Unsupported(f"{at}.type", f"{kind} cannot be carried over to a model of the other provider")
            case kind:
                raise malformed(f"{at}.type", f"{kind!r} is not known")
    return tuple(parts)


def _image(source: dict[str, Any], where: str) -> Image:
    match source.get("type"):
        case "base64":
            media_type = text(source.get("media_type"), f"{where}.media_type")
            return Image(media_type, text(source.get("data"), f"{where}.data"))
        case "url":
            return image_of(text(source.get("url"), f"{where}.url"), f"{where}.url")
        case kind:
            raise Unsupported(f"{where}.type", f"{kind!r} cannot be carried over; send the image inline")


def _tool(tool: Any, where: str) -> Tool:
    if obj(tool, where).get("type") not in (None, "custom"):
        raise Unsupported(f"{where}.type", "only custom tools can be carried over")
    return Tool(
        text(tool.get("name"), f"{where}.name"),
        text(tool.get("description") or "", f"{where}.description"),
        obj(tool.get("input_schema") or {"type": "object", "properties": {}}, f"{where}.input_schema"),
        tool.get("strict") is True,
    )


def _choice(choice: Mapping[str, Any]) -> Choice:
    match choice.get("type"):
        case None | "auto":
            return Choice()
        case "none":
            return Choice("none")
        case "any":
            return Choice("any")
        case "tool":
            return Choice("named", text(choice.get("name"), "tool_choice.name"))
        case kind:
            raise malformed("tool_choice.type", f"{kind!r} is none of auto, any, tool, none")


def _form(form: Any) -> Form | None:
    if form is None:
        return None
    if obj(form, "output_config.format").get("type") != "json_schema":
        raise malformed("output_config.format.type", "must be json_schema")
    return Form(obj(form.get("schema"), "output_config.format.schema"), strict=True)


def _effort(thinking: Any, effort: Any) -> str | None:
    if thinking is not None:
        match obj(thinking, "thinking").get("type"):
            case "disabled":
                return "none"
            case "enabled" if effort is None:
                budget = whole(thinking.get("budget_tokens"), "thinking.budget_tokens") or 0
                return "low" if budget <= 4_096 else "medium" if budget <= 16_384 else "high"
            case "enabled" | "adaptive":
                pass
            case kind:
                raise Unsupported("thinking.type", f"{kind!r} cannot be carried over to a model of the other provider")
    return None if effort is None else text(effort, "output_config.effort")


def write(prompt: Prompt, model: Model) -> dict[str, Any]:
    """The request for `model` at API version 2026-10-21.

    Raises:
        Unsupported: The model does not take a parameter.
    """
    limit = prompt.max_output_tokens or DEFAULT_MAX_TOKENS
    body: dict[str, Any] = {"model": model.id, "max_tokens": min(limit, model.max_output_tokens)}
    system = prompt.system
    output: dict[str, Any] = {}
    if prompt.form is not None:
        strict = None
        if prompt.form.schema is not None:
            strict = closed(prompt.form.schema) if model.json_schema else None
        if prompt.form.schema is None:
            system = f"{system}\n\nAnswer with one JSON object. No other text, no code fence.".strip()
        elif strict is None:
            system = f"{system}\n\n{instruction(prompt.form.schema)}".strip()
        else:
            output["format"] = {"type": "json_schema", "schema": strict.schema}
    if system:
        body["system"] = system
    body["messages"] = _messages(prompt.turns)
    _write_tools(body, prompt, model)
    if prompt.stops:
        if any(not stop.strip() for stop in prompt.stops):
            raise Unsupported("stop", "Claude takes no stop sequence of white space only")
        body["stop_sequences"] = list(prompt.stops)
    if prompt.effort in ("none", "minimal"):
        if model.thinking == "default":
            body["thinking"] = {"type": "disabled"}
        elif model.thinking == "always":
            output["effort"] = model.efforts[0]
    elif prompt.effort is not None and model.efforts:
        if prompt.effort not in model.efforts:
            taken = ", ".join(model.efforts)
            raise Unsupported("effort", f"{model.id} does not take effort {prompt.effort!r}; it takes: {taken}")
        output["effort"] = prompt.effort
    for name, value in (("temperature", prompt.temperature), ("top_p", prompt.top_p)):
        if value is not None and value != 1:
            raise Unsupported(name, f"{model.id} takes no {name}; leave it out")
    if output:
        body["output_config"] = output
    if prompt.user is not None:
        body["metadata"] = {"user_id": prompt.user}
    return body


def _messages(turns: tuple[Turn, ...]) -> list[dict[str, Any]]:
    """Turns of one role in a row become one: tool results must stand in the turn right after their calls."""
    messages: list[dict[str, Any]] = []
    for turn in turns:
        blocks = [block for part in turn.parts if (block := _block(part)) is not None]
        if not blocks:
            continue
        if messages and messages[-1]["role"] == turn.role:
            messages[-1]["content"] += blocks
        else:
            messages.append({"role": turn.role, "content": blocks})
    return messages


def _block(part: Part) -> dict[str, Any] | None:
    match part:
        case Text(words):
            return {"type": "text", "text": words} if words.strip() else None
        case Image(url=url) if url:
            return {"type": "image", "source": {"type": "url", "url": url}}
        case Image(media_type=media_type, data=data):
            return {"type": "image", "source": {"type": "base64", "media_type": media_type, "data": data}}
        case ToolCall(id=call_id, name=name, arguments=arguments):
            given = arguments_object(arguments, "messages: the arguments of a tool call")
            return {"type": "tool_use", "id": _BAD_ID.sub("_", call_id), "name": name, "input": given}
        case ToolResult(id=call_id, parts=parts, is_error=is_error):
            blocks = [block for inner in parts if (block := _block(inner)) is not None]
            result: dict[str, Any] = {"type": "tool_result", "tool_use_id": _BAD_ID.sub("_", call_id)}
            return {**result, "content": blocks, **({"is_error": True} if is_error else {})}


def _write_tools(body: dict[str, Any], prompt: Prompt, model: Model) -> None:
    if not prompt.tools:
        return
    body["tools"] = [
        {
            "name": tool.name,
            **({"description": tool.description} if tool.description else {}),
            "input_schema": {"type": "object", **tool.schema},
            **({"strict": True} if tool.strict else {}),
        }
        for tool in prompt.tools
    ]
    mode = prompt.choice.mode
    if mode in ("any", "named") and not model.forced_tool_choice:
        raise Unsupported("tool_choice", f"{model.id} cannot be forced to use a tool; use auto, or a JSON schema")
    choice: dict[str, Any] = {"type": {"named": "tool"}.get(mode, mode)}
    if mode == "named":
        choice["name"] = prompt.choice.name
    if not prompt.parallel_tools and mode != "none":
        choice["disable_parallel_tool_use"] = True
    if choice != {"type": "auto"}:
        body["tool_choice"] = choice


# --- answers ----------------------------------------------------------------------------------------------------------


class Reader:
    """Takes a message's events (or the whole message) apart."""

    def __init__(self) -> None:
        self._stop: str | None = None
        self._sequence: str | None = None

    def take(self, event: Mapping[str, Any]) -> list[Piece]:
        """The pieces in an event."""
        match event.get("type"):
            case "content_block_start":
                return self._block(event.get("content_block") or {})
            case "content_block_delta":
                delta = event.get("delta") or {}
                match delta.get("type"):
                    case "text_delta":
                        return [TextPiece(str(delta.get("text") or ""))]
                    case "input_json_delta" if delta.get("partial_json"):
                        return [ToolPiece(str(delta["partial_json"]))]
            case "message_delta":
                delta = event.get("delta") or {}
                self._stop = delta.get("stop_reason") or self._stop
                self._sequence = delta.get("stop_sequence") or self._sequence
        return []

    def whole(self, body: Mapping[str, Any]) -> list[Piece]:
        """The pieces of a message that was not streamed."""
        self._stop, self._sequence = body.get("stop_reason"), body.get("stop_sequence")
        return [piece for block in body.get("content") or [] for piece in self._block(block)]

    def stop(self) -> tuple[StopReason, str | None]:
        """Why it ended, and the stop sequence."""
        return _STOPS.get(self._stop or "end_turn", "end"), self._sequence

    def _block(self, block: Mapping[str, Any]) -> list[Piece]:
        match block.get("type"):
            case "text" if block.get("text"):
                return [TextPiece(str(block["text"]))]
            case "tool_use":
                start: list[Piece] = [ToolStart(str(block.get("id")), str(block.get("name")))]
                return [*start, ToolPiece(dumps(block["input"]))] if block.get("input") else start
        return []


class Writer:
    """Writes an answer as events, or whole."""

    def __init__(self, answer_id: str, model: str, created: int, *, include_usage: bool = False) -> None:
        self._base = {"id": f"msg_{answer_id}", "type": "message", "role": "assistant", "model": model}
        self._pieces: list[Piece] = []
        self._index = -1
        self._open = ""

    def start(self) -> bytes:
        """What comes before the first piece. The prompt's tokens are not known yet: message_delta has them."""
        message: dict[str, Any] = {
            **self._base,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {"input_tokens": 0, "output_tokens": 0},
        }
        return sse.frame({"type": "message_start", "message": message}, "message_start")

    def add(self, piece: Piece) -> bytes:
        """A piece as frames."""
        self._pieces.append(piece)
        match piece:
            case TextPiece(words) | RefusalPiece(words):
                head = self._begin("text", {"type": "text", "text": ""}) if self._open != "text" else b""
                return head + self._delta({"type": "text_delta", "text": words})
            case ToolStart(id=call_id, name=name):
                block = {"type": "tool_use", "id": _BAD_ID.sub("_", call_id), "name": name, "input": {}}
                return self._begin("tool", block)
            case ToolPiece(arguments):
                return self._delta({"type": "input_json_delta", "partial_json": arguments})

    def close(self) -> bytes:
        """What ends the last block."""
        if not self._open:
            return b""
        self._open = ""
        return sse.frame({"type": "content_block_stop", "index": self._index}, "content_block_stop")

    def end(self, end: End) -> bytes:
        """The terminal frames."""
        delta = {"stop_reason": _STOP_REASONS[end.stop], "stop_sequence": end.stop_sequence}
        event = {"type": "message_delta", "delta": delta, "usage": usage(end.counts)}
        return self.close() + sse.frame(event, "message_delta") + sse.frame({"type": "message_stop"}, "message_stop")

    def whole(self, end: End) -> dict[str, Any]:
        """The answer as one message."""
        got = collect(self._pieces)
        content: list[dict[str, Any]] = []
        if got.text or got.refusal:
            content.append({"type": "text", "text": got.text + got.refusal})
        content += [
            {
                "type": "tool_use",
                "id": _BAD_ID.sub("_", call.id),
                "name": call.name,
                "input": _lenient(call.arguments),
            }
            for call in got.tools
        ]
        return {
            **self._base,
            "content": content,
            "stop_reason": _STOP_REASONS[end.stop],
            "stop_sequence": end.stop_sequence,
            "usage": usage(end.counts),
        }

    def _begin(self, kind: str, block: dict[str, Any]) -> bytes:
        closing = self.close()
        self._index += 1
        self._open = kind
        event = {"type": "content_block_start", "index": self._index, "content_block": block}
        return closing + sse.frame(event, "content_block_start")

    def _delta(self, delta: dict[str, Any]) -> bytes:
        event = {"type": "content_block_delta", "index": self._index, "delta": delta}
        return sse.frame(event, "content_block_delta")


def _lenient(arguments: str) -> dict[str, Any]:
    """Arguments as an object; a paid answer is kept even where the model wrote no JSON."""
    try:
        return arguments_object(arguments, "arguments")
    except Unsupported:
        return {"arguments": arguments} if is_given(arguments) else {}


def usage(counts: Counts | None) -> dict[str, Any]:
    """Counts as this dialect says them: input is the uncached rest."""
    counts = counts or Counts()
    return {
        "input_tokens": counts.input,
        "cache_creation_input_tokens": counts.cache_write,
        "cache_read_input_tokens": counts.cache_read,
        "output_tokens": counts.output,
        "output_tokens_details": {"thinking_tokens": counts.thinking},
    }
