"""OpenAI Responses: its requests to the neutral form, and answers from it. Lanes of this dialect get bodies unchanged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

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
    Text,
    TextPiece,
    ToolCall,
    ToolPiece,
    ToolResult,
    ToolStart,
    Turn,
    Unsupported,
    flag,
    image_of,
    items,
    malformed,
    number,
    obj,
    refuse_unknown,
    text,
    whole,
)

_READ: Final = (
    "model", "input", "instructions", "tools", "tool_choice", "parallel_tool_calls", "text", "reasoning",
    "max_output_tokens", "temperature", "top_p", "metadata", "user", "safety_identifier", "stream", "stream_options",
)  # fmt: skip
_DEFAULTS: Final[Mapping[str, tuple[object, ...]]] = {
    "store": (False,), "service_tier": ("auto", "default"), "truncation": ("disabled",), "top_logprobs": (0,),
    "background": (False,), "include": (["reasoning.encrypted_content"],),
}  # fmt: skip


# --- requests ---------------------------------------------------------------------------------------------------------


def read(body: Mapping[str, Any]) -> Prompt:
    """The request in the neutral form. Reasoning items of earlier turns are left out: only their own model reads them.

    Raises:
        Unsupported: A parameter is malformed, or means nothing outside OpenAI.
    """
    refuse_unknown(body, _READ, _DEFAULTS)
    system: list[str] = []
    turns: list[Turn] = []
    if body.get("instructions"):
        system.append(text(body["instructions"], "instructions"))
    given = body.get("input")
    if isinstance(given, str):
        turns.append(Turn("user", (Text(given),)))
    else:
        for place, item in enumerate(items(given, "input")):
            _read_item(obj(item, f"input[{place}]"), f"input[{place}]", system, turns)
    form = obj(body.get("text") or {}, "text")
    refuse_unknown(form, ("format",), {"verbosity": ("medium",)})
    reasoning = obj(body.get("reasoning") or {}, "reasoning")
    refuse_unknown(reasoning, ("effort",), {"summary": ("auto",)})
    return Prompt(
        turns=tuple(turns),
        system="\n\n".join(system),
        tools=tuple(read_tool(tool, f"tools[{n}]") for n, tool in enumerate(body.get("tools") or [])),
        choice=read_choice(body.get("tool_choice")),
        parallel_tools=flag(body.get("parallel_tool_calls"), "parallel_tool_calls") is not False,
        form=read_form(form.get("format"), "text.format"),
        max_output_tokens=whole(body.get("max_output_tokens"), "max_output_tokens"),
        temperature=number(body.get("temperature"), "temperature"),
        top_p=number(body.get("top_p"), "top_p"),
        effort=reasoning.get("effort"),
        user=body.get("safety_identifier") or body.get("user"),
        stream=flag(body.get("stream"), "stream") is True,
    )


def _read_item(item: dict[str, Any], where: str, system: list[str], turns: list[Turn]) -> None:
    match item.get("type", "message"):
        case "message":
            role = item.get("role")
            parts = _parts(item.get("content"), f"{where}.content")
            if role in ("system", "developer"):
                system.append("".join(part.text for part in parts if isinstance(part, Text)))
            elif role in ("user", "assistant"):
                turns.append(Turn(role, parts))
            else:
                raise malformed(f"{where}.role", f"{role!r} is none of user, assistant, system, developer")
        case "function_call":
            call = ToolCall(
                text(item.get("call_id"), f"{where}.call_id"),
                text(item.get("name"), f"{where}.name"),
                text(item.get("arguments") or "{}", f"{where}.arguments"),
            )
            turns.append(Turn("assistant", (call,)))
        case "function_call_output":
            shown = tuple(p for p in _parts(item.get("output") or "", f"{where}.output") if isinstance(p, Text | Image))
            turns.append(Turn("user", (ToolResult(text(item.get("call_id"), f"{where}.call_id"), shown),)))
        case "reasoning":
            return
        case kind:
            raise Unsupported(f"{where}.type", f"{kind!r} cannot be carried over to a model of the other provider")


def _parts(content: Any, where: str) -> tuple[Part, ...]:
    if isinstance(content, str):
        return (Text(content),)
    parts: list[Part] = []
    for place, part in enumerate(items(content, where)):
        at = f"{where}[{place}]"
        match obj(part, at).get("type"):
            case "input_text" | "output_text" | "text":
                parts.append(Text(text(part.get("text"), f"{at}.text")))
            case "refusal":
                parts.append(Text(text(part.get("refusal"), f"{at}.refusal")))
            case "input_image":
                if part.get("detail") not in (None, "auto"):
                    raise Unsupported(f"{at}.detail", "has no counterpart at the other provider; leave it out")
                if part.get("image_url") is None:
                    raise Unsupported(at, "an image by file_id cannot be carried over; send it inline")
                parts.append(image_of(text(part["image_url"], f"{at}.image_url"), f"{at}.image_url"))
            case str(kind):
                raise Unsupported(f"{at}.type", f"{kind} cannot be carried over to a model of the other provider")
            case kind:
                raise malformed(f"{at}.type", f"{kind!r} is not known")
    return tuple(parts)


# --- answers ----------------------------------------------------------------------------------------------------------


class Reader:
    """Takes a response's events (or the whole response) apart."""

    def __init__(self) -> None:
        self._response: Mapping[str, Any] = {}
        self._refused = False

    def take(self, event: Mapping[str, Any]) -> list[Piece]:
        """The pieces in an event."""
        match event.get("type"):
            case "response.output_text.delta":
                return [TextPiece(str(event.get("delta") or ""))]
            case "response.refusal.delta":
                self._refused = True
                return [RefusalPiece(str(event.get("delta") or ""))]
            case "response.output_item.added":
                item = event.get("item") or {}
                if item.get("type") == "function_call":
                    return [ToolStart(str(item.get("call_id")), str(item.get("name")))]
            case "response.function_call_arguments.delta":
                return [ToolPiece(str(event.get("delta") or ""))]
            case "response.completed" | "response.incomplete":
                self._response = event.get("response") or {}
        return []

    def whole(self, body: Mapping[str, Any]) -> list[Piece]:
        """The pieces of a response that was not streamed."""
        self._response = body
        pieces: list[Piece] = []
        for item in body.get("output") or []:
            if item.get("type") == "function_call":
                pieces += [
                    ToolStart(str(item.get("call_id")), str(item.get("name"))),
                    ToolPiece(str(item.get("arguments") or "{}")),
                ]
            elif item.get("type") == "message":
                for part in item.get("content") or []:
                    if part.get("type") == "output_text":
                        pieces.append(TextPiece(str(part.get("text") or "")))
                    elif part.get("type") == "refusal":
                        self._refused = True
                        pieces.append(RefusalPiece(str(part.get("refusal") or "")))
        return pieces

    def stop(self) -> tuple[Literal["end", "length", "tools", "refusal"], str | None]:
        """Why it ended."""
        reason = (self._response.get("incomplete_details") or {}).get("reason")
        if self._refused or reason == "content_filter":
            return "refusal", None
        if reason is not None:
            return "length", None
        output = self._response.get("output") or []
        has_calls = any(isinstance(item, Mapping) and item.get("type") == "function_call" for item in output)
        return ("tools" if has_calls else "end"), None


class Writer:
    """Writes an answer as events, or whole."""

    def __init__(self, answer_id: str, model: str, created: int, *, include_usage: bool = False) -> None:
        self._id, self._model, self._created = answer_id, model, created
        self._output: list[dict[str, Any]] = []
        self._open: dict[str, Any] | None = None
        self._number = 0

    def start(self) -> bytes:
        """What comes before the first piece."""
        begun = self._envelope("in_progress", None)
        return self._event("response.created", response=begun) + self._event("response.in_progress", response=begun)

    def add(self, piece: Piece) -> bytes:
        """A piece as frames."""
        match piece:
            case TextPiece(words):
                head = self._message("output_text")
                return head + self._grow("response.output_text.delta", "text", words, logprobs=[])
            case RefusalPiece(words):
                return self._message("refusal") + self._grow("response.refusal.delta", "refusal", words)
            case ToolStart(id=call_id, name=name):
                closing = self.close()
                item = {
                    "type": "function_call",
                    "id": f"fc_{self._id}{len(self._output):02d}",
                    "call_id": call_id,
                    "name": name,
                    "arguments": "",
                    "status": "in_progress",
                }
                self._open = item
                return closing + self._event("response.output_item.added", output_index=len(self._output), item=item)
            case ToolPiece(arguments):
                item = self._open or {}
                item["arguments"] = item.get("arguments", "") + arguments
                return self._event("response.function_call_arguments.delta", **self._where(), delta=arguments)

    def close(self) -> bytes:
        """What ends the item that is open."""
        item = self._open
        if item is None:
            return b""
        frames = b""
        if item["type"] == "function_call":
            item["arguments"] = item["arguments"] or "{}"
            frames += self._event(
                "response.function_call_arguments.done",
                **self._where(),
                name=item["name"],
                arguments=item["arguments"],
            )
        else:
            part = item["content"][0]
            at = {**self._where(), "content_index": 0}
            if part["type"] == "refusal":
                frames += self._event("response.refusal.done", **at, refusal=part["refusal"])
            else:
                frames += self._event("response.output_text.done", **at, text=part["text"], logprobs=[])
            frames += self._event("response.content_part.done", **at, part=part)
        done = {**item, "status": "completed"}
        frames += self._event("response.output_item.done", output_index=len(self._output), item=done)
        self._output.append(done)
        self._open = None
        return frames

    def end(self, end: End) -> bytes:
        """The terminal frames."""
        closing = self.close()
        answer = self.whole(end)
        name = "response.incomplete" if answer["incomplete_details"] else "response.completed"
        return closing + self._event(name, response=answer)

    def whole(self, end: End) -> dict[str, Any]:
        """The answer as one response."""
        self.close()
        reason = {"length": "max_output_tokens", "refusal": "content_filter"}.get(end.stop)
        if end.stop == "refusal" and any(
            part.get("type") == "refusal" for item in self._output for part in item.get("content", [])
        ):
            reason = None
        answer = self._envelope("incomplete" if reason else "completed", end.counts)
        answer["incomplete_details"] = {"reason": reason} if reason else None
        return {**answer, "output": self._output}

    def _message(self, kind: str) -> bytes:
        if self._open is not None and self._open["type"] == "message" and self._open["content"][0]["type"] == kind:
            return b""
        closing = self.close()
        key = "refusal" if kind == "refusal" else "text"
        part: dict[str, Any] = {"type": kind, key: ""}
        if kind == "output_text":
            part |= {"annotations": [], "logprobs": []}
        item = {
            "type": "message",
            "id": f"msg_{self._id}{len(self._output):02d}",
            "role": "assistant",
            "status": "in_progress",
            "content": [],
        }
        added = self._event("response.output_item.added", output_index=len(self._output), item=item)
        self._open = {**item, "content": [part]}
        return closing + added + self._event("response.content_part.added", **self._where(), content_index=0, part=part)

    def _grow(self, name: str, key: str, words: str, **more: Any) -> bytes:
        assert self._open is not None  # _message has opened it
        self._open["content"][0][key] += words
        return self._event(name, **self._where(), content_index=0, delta=words, **more)

    def _where(self) -> dict[str, Any]:
        return {"item_id": (self._open or {}).get("id", ""), "output_index": len(self._output)}

    def _event(self, event: str, /, **data: Any) -> bytes:
        frame = sse.frame({"type": event, "sequence_number": self._number, **data}, event)
        self._number += 1
        return frame

    def _envelope(self, status: str, counts: Counts | None) -> dict[str, Any]:
        return {
            "id": f"resp_{self._id}",
            "object": "response",
            "created_at": self._created,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": None,
            "instructions": None,
            "metadata": {},
            "model": self._model,
            "output": [],
            "parallel_tool_calls": True,
            "previous_response_id": None,
            "store": False,
            "temperature": None,
            "tool_choice": "auto",
            "tools": [],
            "top_p": None,
            "usage": usage(counts),
        }


def usage(counts: Counts | None) -> dict[str, Any] | None:
    """Counts as this dialect says them: the input includes what was cached."""
    if counts is None:
        return None
    return {
        "input_tokens": counts.prompt,
        "input_tokens_details": {"cached_tokens": counts.cache_read, "cache_write_tokens": counts.cache_write},
        "output_tokens": counts.output,
        "output_tokens_details": {"reasoning_tokens": counts.thinking},
        "total_tokens": counts.prompt + counts.output,
    }
