"""OpenAI Chat Completions: its requests and answers to and from the neutral form."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from policies.catalog import Model
from policies.dialects import sse
from policies.dialects.functions import read_choice, read_form, read_tool
from policies.dialects.neutral import (
    Counts,
    End,
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
    collect,
    flag,
    image_of,
    image_url,
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

_READ: Final = (
    "model", "messages", "tools", "tool_choice", "parallel_tool_calls", "response_format", "max_tokens",
    "max_completion_tokens", "temperature", "top_p", "stop", "reasoning_effort", "user", "safety_identifier", "stream",
    "stream_options", "metadata",
)  # fmt: skip
_DEFAULTS: Final[Mapping[str, tuple[object, ...]]] = {
    "n": (1,), "store": (False,), "service_tier": ("auto", "default"), "logprobs": (False,), "top_logprobs": (0,),
    "frequency_penalty": (0,), "presence_penalty": (0,), "modalities": (["text"],), "verbosity": ("medium",),
}  # fmt: skip
_STOP_OF_FINISH: Final[Mapping[str, StopReason]] = {
    "stop": "end", "length": "length", "tool_calls": "tools", "function_call": "tools", "content_filter": "refusal",
}  # fmt: skip
_FINISH_OF_STOP: Final[Mapping[StopReason, str]] = {
    "end": "stop", "length": "length", "stop_sequence": "stop", "tools": "tool_calls", "refusal": "content_filter",
}  # fmt: skip


# --- requests ---------------------------------------------------------------------------------------------------------


def read(body: Mapping[str, Any]) -> Prompt:
    """The request in the neutral form.

    Raises:
        Unsupported: A parameter is malformed, or means nothing outside OpenAI.
    """
    refuse_unknown(body, _READ, _DEFAULTS)
    system: list[str] = []
    turns: list[Turn] = []
    for place, message in enumerate(items(body.get("messages"), "messages")):
        _read_message(obj(message, f"messages[{place}]"), f"messages[{place}]", system, turns)
    options = body.get("stream_options") or {}
    limit = body.get("max_completion_tokens")
    return Prompt(
        turns=tuple(turns),
        system="\n\n".join(system),
        tools=tuple(read_tool(tool, f"tools[{n}]", inner="function") for n, tool in enumerate(body.get("tools") or [])),
        choice=read_choice(body.get("tool_choice"), inner="function"),
        parallel_tools=flag(body.get("parallel_tool_calls"), "parallel_tool_calls") is not False,
        form=read_form(body.get("response_format"), "response_format", inner="json_schema"),
        max_output_tokens=whole(body.get("max_tokens") if limit is None else limit, "max_completion_tokens"),
        temperature=number(body.get("temperature"), "temperature"),
        top_p=number(body.get("top_p"), "top_p"),
        stops=strings(body.get("stop"), "stop"),
        effort=body.get("reasoning_effort"),
        user=body.get("safety_identifier") or body.get("user"),
        stream=flag(body.get("stream"), "stream") is True,
        include_usage=bool(obj(options, "stream_options").get("include_usage")),
    )


def _read_message(message: dict[str, Any], where: str, system: list[str], turns: list[Turn]) -> None:
    role = message.get("role")
    content = message.get("content")
    match role:
        case "system" | "developer":
            system.append("".join(part.text for part in _parts(content, f"{where}.content") if isinstance(part, Text)))
        case "user":
            turns.append(Turn("user", _parts(content, f"{where}.content")))
        case "assistant":
            if is_given(message.get("audio")):
                raise Unsupported(f"{where}.audio", "cannot be carried over to a model of the other provider")
            parts: list[Part] = list(_parts(content, f"{where}.content")) if content else []
            if message.get("refusal"):
                parts.append(Text(text(message["refusal"], f"{where}.refusal")))
            parts += [_call(call, f"{where}.tool_calls[{n}]") for n, call in enumerate(message.get("tool_calls") or [])]
            turns.append(Turn("assistant", tuple(parts)))
        case "tool":
            call_id = text(message.get("tool_call_id"), f"{where}.tool_call_id")
            shown = tuple(p for p in _parts(content, f"{where}.content") if isinstance(p, Text | Image))
            turns.append(Turn("user", (ToolResult(call_id, shown),)))
        case _:
            raise malformed(f"{where}.role", f"{role!r} is none of system, developer, user, assistant, tool")


def _parts(content: Any, where: str) -> tuple[Part, ...]:
    if isinstance(content, str):
        return (Text(content),)
    parts: list[Part] = []
    for place, part in enumerate(items(content, where)):
        at = f"{where}[{place}]"
        kind = obj(part, at).get("type")
        if kind == "text":
            parts.append(Text(text(part.get("text"), f"{at}.text")))
        elif kind == "refusal":
            parts.append(Text(text(part.get("refusal"), f"{at}.refusal")))
        elif kind == "image_url":
            image = obj(part.get("image_url"), f"{at}.image_url")
            if image.get("detail") not in (None, "auto"):
                raise Unsupported(f"{at}.image_url.detail", "has no counterpart at the other provider; leave it out")
            parts.append(image_of(text(image.get("url"), f"{at}.image_url.url"), f"{at}.image_url.url"))
        elif kind in ("input_audio", "file"):
            raise Unsupported(at, f"{kind} cannot be carried over to a model of the other provider")
        else:
            raise malformed(f"{at}.type", f"{kind!r} is not known")
    return tuple(parts)


def _call(call: Any, where: str) -> ToolCall:
    if obj(call, where).get("type", "function") != "function":
        raise Unsupported(where, "only function calls can be carried over")
    function = obj(call.get("function"), f"{where}.function")
    return ToolCall(
        text(call.get("id"), f"{where}.id"),
        text(function.get("name"), f"{where}.function.name"),
        text(function.get("arguments") or "{}", f"{where}.function.arguments"),
    )


def write(prompt: Prompt, model: Model, *, compatible: bool = False) -> dict[str, Any]:
    """The request for `model`.

    Args:
        prompt: What is asked.
        model: Of the lane.
        compatible: The server is not OpenAI's: only what all of them know is sent.

    Raises:
        Unsupported: The model does not take a parameter.
    """
    body: dict[str, Any] = {"model": model.id}
    system = prompt.system
    if prompt.form is not None:
        strict = closed(prompt.form.schema) if prompt.form.schema is not None and model.json_schema else None
        if prompt.form.schema is None:
            if model.json_schema and not compatible:
                body["response_format"] = {"type": "json_object"}
            else:
                system = f"{system}\n\nAnswer with one JSON object. No other text, no code fence.".strip()
        elif strict is None:
            system = f"{system}\n\n{instruction(prompt.form.schema)}".strip()
        else:
            form = {"name": prompt.form.name, "schema": strict.schema, "strict": strict.all_required}
            body["response_format"] = {"type": "json_schema", "json_schema": form}
    messages = [{"role": "system", "content": system}] if system else []
    for turn in prompt.turns:
        messages += _messages(turn)
    body["messages"] = messages
    if prompt.tools:
        body["tools"] = [_write_tool(tool) for tool in prompt.tools]
        if prompt.choice.mode == "named":
            body["tool_choice"] = {"type": "function", "function": {"name": prompt.choice.name}}
        elif prompt.choice.mode != "auto":
            body["tool_choice"] = {"none": "none", "any": "required"}[prompt.choice.mode]
        if not prompt.parallel_tools:
            body["parallel_tool_calls"] = False
    if prompt.max_output_tokens is not None:
        limit = min(prompt.max_output_tokens, model.max_output_tokens)
        body["max_tokens" if compatible else "max_completion_tokens"] = limit
    if prompt.stops:
        body["stop"] = list(prompt.stops)
    effort = prompt.effort
    if effort == "none" and effort not in model.efforts:
        effort = model.efforts[0] if model.efforts else None
    if effort is not None:
        body["reasoning_effort"] = _effort(effort, model)
    for name, value in (("temperature", prompt.temperature), ("top_p", prompt.top_p)):
        if value is None or value == 1:
            continue
        if not model.temperature and effort != "none":
            raise Unsupported(name, f"{model.id} takes no {name} unless its reasoning is switched off; leave it out")
        body[name] = value
    if prompt.user is not None and not compatible:
        body["safety_identifier"] = prompt.user
    return body


def _effort(effort: str, model: Model) -> str:
    if effort in model.efforts:
        return effort
    if effort in ("xhigh", "max") and model.efforts:
        return model.efforts[-1]
    taken = ", ".join(model.efforts) or "none at all"
    raise Unsupported("effort", f"{model.id} does not take effort {effort!r}; it takes: {taken}")


def _messages(turn: Turn) -> Iterator[dict[str, Any]]:
    calls = [part for part in turn.parts if isinstance(part, ToolCall)]
    shown = [part for part in turn.parts if isinstance(part, Text | Image)]
    for part in turn.parts:
        if isinstance(part, ToolResult):
            if any(isinstance(inner, Image) for inner in part.parts):
                raise Unsupported("messages", "a tool result with an image cannot be carried over to an OpenAI model")
            words = "".join(inner.text for inner in part.parts if isinstance(inner, Text))
            yield {
                "role": "tool",
                "tool_call_id": part.id,
                "content": f"Error: {words}" if part.is_error else words,
            }
    if not shown and not calls:
        return
    content: Any
    if all(isinstance(part, Text) for part in shown):
        content = "".join(part.text for part in shown if isinstance(part, Text))
    else:
        content = [
            {"type": "text", "text": part.text}
            if isinstance(part, Text)
            else {"type": "image_url", "image_url": {"url": image_url(part)}}
            for part in shown
        ]
    message: dict[str, Any] = {"role": turn.role, "content": content if shown else None}
    if calls:
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in calls
        ]
    yield message


def _write_tool(tool: Tool) -> dict[str, Any]:
    function: dict[str, Any] = {"name": tool.name, "parameters": dict(tool.schema)}
    if tool.description:
        function["description"] = tool.description
    if tool.strict:
        function["strict"] = True
    return {"type": "function", "function": function}


# --- answers ----------------------------------------------------------------------------------------------------------


class Reader:
    """Takes a completion's chunks (or the whole completion) apart."""

    def __init__(self) -> None:
        self._finish: str | None = None
        self._open = -1
        self._refused = False

    def take(self, chunk: Mapping[str, Any]) -> list[Piece]:
        """The pieces in a chunk. Only the first choice is read."""
        choices = chunk.get("choices")
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            return []
        choice = choices[0]
        self._finish = choice.get("finish_reason") or self._finish
        delta = choice.get("delta") or {}
        return self._pieces(delta) if isinstance(delta, dict) else []

    def whole(self, body: Mapping[str, Any]) -> list[Piece]:
        """The pieces of a completion that was not streamed."""
        choices = [{**choice, "delta": choice.get("message")} for choice in body.get("choices") or []]
        return self.take({"choices": choices})

    def stop(self) -> tuple[StopReason, str | None]:
        """Why it ended, and the stop sequence where it is known."""
        stop: StopReason = _STOP_OF_FINISH.get(self._finish or "stop", "end")
        return ("refusal" if self._refused else stop), None

    def _pieces(self, delta: Mapping[str, Any]) -> list[Piece]:
        pieces: list[Piece] = []
        if isinstance(delta.get("content"), str) and delta["content"]:
            pieces.append(TextPiece(delta["content"]))
        if isinstance(delta.get("refusal"), str) and delta["refusal"]:
            self._refused = True
            pieces.append(RefusalPiece(delta["refusal"]))
        for place, call in enumerate(delta.get("tool_calls") or []):
            if not isinstance(call, dict):
                continue
            index = call.get("index", place)
            function = call.get("function") or {}
            if index != self._open and (call.get("id") or function.get("name")):
                self._open = index
                pieces.append(ToolStart(str(call.get("id") or f"call_{index}"), str(function.get("name") or "")))
            if function.get("arguments"):
                pieces.append(ToolPiece(str(function["arguments"])))
        return pieces


class Writer:
    """Writes an answer as chunks, or whole."""

    def __init__(self, answer_id: str, model: str, created: int, *, include_usage: bool = False) -> None:
        self._base = {"id": f"chatcmpl-{answer_id}", "created": created, "model": model}
        self._include_usage = include_usage
        self._pieces: list[Piece] = []
        self._tools = -1

    def start(self) -> bytes:
        """What comes before the first piece."""
        return self._chunk({"role": "assistant", "content": "", "refusal": None})

    def add(self, piece: Piece) -> bytes:
        """A piece as frames."""
        self._pieces.append(piece)
        match piece:
            case TextPiece(words):
                return self._chunk({"content": words})
            case RefusalPiece(words):
                return self._chunk({"refusal": words})
            case ToolStart(id=call_id, name=name):
                self._tools += 1
                function = {"name": name, "arguments": ""}
                return self._chunk(
                    {"tool_calls": [{"index": self._tools, "id": call_id, "type": "function", "function": function}]}
                )
            case ToolPiece(arguments):
                return self._chunk({"tool_calls": [{"index": self._tools, "function": {"arguments": arguments}}]})

    def close(self) -> bytes:
        """What ends the last piece; nothing in this dialect."""
        return b""

    def end(self, end: End) -> bytes:
        """The terminal frames."""
        frames = self._chunk({}, _FINISH_OF_STOP[end.stop])
        if self._include_usage:
            event = {**self._base, "object": "chat.completion.chunk", "choices": [], "usage": usage(end.counts)}
            frames += sse.frame(event)
        return frames + sse.DONE

    def whole(self, end: End) -> dict[str, Any]:
        """The answer as one completion."""
        got = collect(self._pieces)
        message: dict[str, Any] = {"role": "assistant", "content": got.text or None, "refusal": got.refusal or None}
        if not got.text and not got.tools and not got.refusal:
            message["content"] = ""
        message["annotations"] = []
        if got.tools:
            message["tool_calls"] = [
                {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                for call in got.tools
            ]
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": _FINISH_OF_STOP[end.stop]}
        return {**self._base, "object": "chat.completion", "choices": [choice], "usage": usage(end.counts)}

    def _chunk(self, delta: dict[str, Any], finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        event: dict[str, Any] = {**self._base, "object": "chat.completion.chunk", "choices": [choice]}
        if self._include_usage:
            event["usage"] = None
        return sse.frame(event)


def usage(counts: Counts | None) -> dict[str, Any] | None:
    """Counts as this dialect says them: the prompt includes what was cached."""
    if counts is None:
        return None
    return {
        "prompt_tokens": counts.prompt,
        "completion_tokens": counts.output,
        "total_tokens": counts.prompt + counts.output,
        "prompt_tokens_details": {"cached_tokens": counts.cache_read, "cache_write_tokens": counts.cache_write},
        "completion_tokens_details": {"reasoning_tokens": counts.thinking},
    }
