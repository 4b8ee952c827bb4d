"""The OpenAI dialect of POST /v1/responses: its rules, answers and events. Nothing is stored, whatever `store` says."""

from __future__ import annotations

from typing import Any

from pydantic_core import to_json

from sandbox import openai
from sandbox.chat import REFUSAL
from sandbox.content import THINKING_TOKENS, pieces
from sandbox.exchange import Asking, Call, Event, Generation, Identity, Json, Stop, Usage, invalid
from sandbox.models import Catalogue
from sandbox.promptcache import PromptCache

_FIELDS = {
    "model", "input", "access_programs", "background", "background_options", "context_management", "conversation",
    "image", "include", "instructions", "max_output_tokens", "max_tool_calls", "metadata", "moderation",
    "parallel_tool_calls", "previous_response_id", "prompt", "prompt_cache_key", "prompt_cache_options",
    "prompt_cache_retention", "reasoning", "safety_identifier", "service_tier", "store", "stream", "stream_options",
    "temperature", "text", "tool_choice", "tools", "top_logprobs", "top_p", "truncation", "user",
}  # fmt: skip
_STATEFUL = ("previous_response_id", "conversation", "background", "prompt")
_INCOMPLETE = {
    Stop.MAX_TOKENS: "max_output_tokens",
    Stop.CONTEXT_WINDOW: "max_output_tokens",
    Stop.CONTENT_FILTER: "content_filter",
}


class Responses:
    """POST /v1/responses."""

    provider = "openai"
    endpoint = "responses"

    def __init__(self, catalogue: Catalogue, cache: PromptCache) -> None:
        self._catalogue = catalogue
        self._cache = cache

    def parse(self, body: Json, asking: Asking) -> Call:
        """Return the request understood; raises ApiError as the provider would, or for what the sandbox lacks."""
        model = openai.find_model(body, self._catalogue)
        openai.check_fields(body, _FIELDS)
        for key in _STATEFUL:
            if body.get(key):
                raise invalid(
                    f"'{key}' needs stored state, which the sandbox does not keep; send the whole input.", param=key
                )
        reasoning = body.get("reasoning") or {}
        effort = openai.effort_of(reasoning.get("effort"), model, "reasoning.effort")
        openai.check_sampling(body, model, effort)
        tools = tuple(
            openai.read_tool(_function(tool, place), place) for place, tool in enumerate(body.get("tools") or [])
        )
        schema, json_mode = _format(body)
        prompt = openai.Prompt(model)
        if tools:
            prompt.add_json(body["tools"])
        if schema is not None:
            prompt.add_json(schema)
        if isinstance(instructions := body.get("instructions"), str):
            prompt.add("developer", instructions)
        _read_input(body.get("input"), prompt)
        openai.check_context(prompt.tokens, model)
        return Call(
            model=model,
            requested_model=body["model"],
            stream=body.get("stream") is True,
            user_text=prompt.user_text,
            prompt_tokens=prompt.tokens,
            max_tokens=openai.allowance(body, "max_output_tokens", model),
            effort=effort,
            thinking_tokens=THINKING_TOKENS[effort],
            schema=schema,
            json_mode=json_mode,
            tools=tools,
            forced_tool=openai.forced_tool(body.get("tool_choice"), tools, lambda choice: choice.get("name")),
            tier=openai.tier_of(body),
            cache=prompt.plan(body, asking, self._cache),
            body=body,
        )

    def whole(self, call: Call, generation: Generation, identity: Identity) -> Json:
        """Return the response."""
        reason = _INCOMPLETE.get(generation.stop)
        status = "incomplete" if reason else "completed"
        return {
            **_envelope(call, generation, identity, status),
            "completed_at": None if reason else identity.created,
            "incomplete_details": {"reason": reason} if reason else None,
            "output": _output(generation, identity, status),
            "usage": _usage(generation.usage),
        }

    def events(self, call: Call, generation: Generation, identity: Identity) -> list[Event]:
        """Return the events from response.created to response.completed or response.incomplete."""
        writer = _Writer()
        begun = {
            **_envelope(call, generation, identity, "in_progress"),
            "incomplete_details": None,
            "output": [],
            "usage": None,
        }
        writer.add("response.created", response=begun)
        writer.add("response.in_progress", response=begun)
        answer = self.whole(call, generation, identity)
        for place, item in enumerate(answer["output"]):
            writer.item(place, item, generation)
        # Tokens that no item showed (all of max_output_tokens went into reasoning) were still generated.
        final = "response.incomplete" if answer["incomplete_details"] else "response.completed"
        writer.add(final, generation.usage.output - writer.tokens, response=answer)
        return writer.events

    def error_event(self, body: Json) -> Event:
        """Return an `error` event: its fields are at its top, and the SDK looks for an `error` object in it too."""
        return Event({**body["error"], "type": "error", "sequence_number": 99, **body}, 0, "error")

    def end_marker(self) -> bytes:
        """Nothing follows response.completed."""
        return b""


class _Writer:
    def __init__(self) -> None:
        self.events: list[Event] = []
        self.tokens = 0

    def add(self, event: str, count: int = 0, **data: Any) -> None:
        self.events.append(Event({"type": event, "sequence_number": len(self.events), **data}, count, event))
        self.tokens += count

    def item(self, place: int, item: Json, generation: Generation) -> None:
        """Write one output item: added, its parts as they grow, done."""
        where = {"item_id": item["id"], "output_index": place}
        match item["type"]:
            case "reasoning":
                self.add("response.output_item.added", output_index=place, item=item)
                self.add("response.output_item.done", generation.usage.thinking, output_index=place, item=item)
            case "function_call":
                begun = {**item, "arguments": "", "status": "in_progress"}
                self.add("response.output_item.added", output_index=place, item=begun)
                share = generation.usage.output - self.tokens
                self.add("response.function_call_arguments.delta", share, **where, delta=item["arguments"])
                self.add(
                    "response.function_call_arguments.done", **where, name=item["name"], arguments=item["arguments"]
                )
                self.add("response.output_item.done", output_index=place, item=item)
            case _:
                self._message(place, item, where, generation)

    def _message(self, place: int, item: Json, where: Json, generation: Generation) -> None:
        begun = {**item, "content": [], "status": "in_progress"}
        self.add("response.output_item.added", output_index=place, item=begun)
        for number, part in enumerate(item["content"]):
            at = {**where, "content_index": number}
            if part["type"] == "refusal":
                self.add("response.content_part.added", **at, part={"type": "refusal", "refusal": ""})
                self.add("response.refusal.delta", generation.visible_tokens, **at, delta=part["refusal"])
                self.add("response.refusal.done", **at, refusal=part["refusal"])
            else:
                self.add("response.content_part.added", **at, part={**part, "text": ""})
                for text, count in pieces(generation):
                    self.add("response.output_text.delta", count, **at, delta=text, logprobs=[])
                self.add("response.output_text.done", **at, text=part["text"], logprobs=[])
            self.add("response.content_part.done", **at, part=part)
        self.add("response.output_item.done", output_index=place, item=item)


def _output(generation: Generation, identity: Identity, status: str) -> list[Json]:
    output: list[Json] = []
    if generation.usage.thinking:
        output.append({"type": "reasoning", "id": f"rs_{identity.answer_id}", "summary": []})
    for place, one in enumerate(generation.tool_calls):
        output.append(
            {
                "type": "function_call",
                "id": f"fc_{identity.answer_id}{place:02d}",
                "call_id": f"call_{identity.answer_id}{place:02d}",
                "name": one.name,
                "arguments": to_json(one.input).decode(),
                "status": "completed",
            }
        )
    part: Json | None = None
    if generation.stop is Stop.REFUSAL:
        part = {"type": "refusal", "refusal": REFUSAL}
    elif generation.text:
        part = {"type": "output_text", "text": generation.text, "annotations": [], "logprobs": []}
    if part is not None:
        output.append(
            {
                "type": "message",
                "id": f"msg_{identity.answer_id}",
                "role": "assistant",
                "status": status,
                "content": [part],
            }
        )
    return output


def _envelope(call: Call, generation: Generation, identity: Identity, status: str) -> Json:
    body = call.body
    return {
        "id": f"resp_{identity.answer_id}",
        "object": "response",
        "created_at": identity.created,
        "status": status,
        "background": False,
        "error": None,
        "instructions": body.get("instructions"),
        "max_output_tokens": call.max_tokens,
        "metadata": body.get("metadata") or {},
        "model": call.requested_model,
        "parallel_tool_calls": body.get("parallel_tool_calls") is not False,
        "previous_response_id": None,
        "prompt_cache_key": body.get("prompt_cache_key"),
        "reasoning": {"effort": call.effort, "summary": None},
        "service_tier": generation.tier,
        "store": body.get("store") is not False,
        "temperature": body.get("temperature"),
        "text": body.get("text") or {"format": {"type": "text"}},
        "tool_choice": body.get("tool_choice") or "auto",
        "tools": body.get("tools") or [],
        "top_p": body.get("top_p"),
        "truncation": body.get("truncation") or "disabled",
        "user": None,
    }


def _usage(usage: Usage) -> Json:
    return {
        "input_tokens": usage.prompt,
        "input_tokens_details": {
            "cached_tokens": usage.cache_read,
            "cache_write_tokens": usage.cache_write,
            "cache_write_tokens_details": {
                "ttl_30m_tokens": usage.cache_write_short,
                "ttl_12h_tokens": usage.cache_write_long,
            },
        },
        "output_tokens": usage.output,
        "output_tokens_details": {"reasoning_tokens": usage.thinking},
        "total_tokens": usage.prompt + usage.output,
    }


def _function(tool: Any, place: int) -> Any:
    if not isinstance(tool, dict) or tool.get("type") != "function":
        raise invalid(f"Invalid value for 'tools[{place}].type': only 'function' is served here.", param="tools")
    return tool


def _format(body: Json) -> tuple[Json | None, bool]:
    text = body.get("text") or {}
    form = text.get("format")
    kind = form.get("type") if isinstance(form, dict) else None
    if form is None or kind == "text":
        return None, False
    if kind == "json_object":
        return None, True
    if kind != "json_schema":
        raise invalid("Invalid value for 'text.format.type'.", param="text.format.type")
    return openai.read_schema(form, "text.format"), False


def _read_input(given: Any, prompt: openai.Prompt) -> None:
    if isinstance(given, str) and given:
        prompt.add("user", given)
        return
    if not isinstance(given, list) or not given:
        raise invalid("Missing required parameter: 'input'.", param="input", code="missing_required_parameter")
    for place, item in enumerate(given):
        where = f"input[{place}]"
        if not isinstance(item, dict):
            raise invalid(f"Invalid type for '{where}': expected an object.", param=where)
        if item.get("type", "message") != "message":
            prompt.add_json({key: value for key, value in item.items() if key not in ("id", "status")})
            continue
        role = item.get("role")
        if role not in ("user", "assistant", "system", "developer"):
            raise invalid(f"Invalid value for '{where}.role'.", param=f"{where}.role")
        content = item.get("content")
        if isinstance(content, str):
            prompt.add(role, content)
            continue
        if not isinstance(content, list):
            raise invalid(f"Invalid type for '{where}.content'.", param=f"{where}.content")
        for inner, part in enumerate(content):
            _read_part(part, role, f"{where}.content[{inner}]", prompt)


def _read_part(part: Any, role: str, where: str, prompt: openai.Prompt) -> None:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in ("input_text", "output_text") and isinstance(part.get("text"), str):
        prompt.add(role, part["text"], part.get("prompt_cache_breakpoint"))
    elif kind in ("input_image", "input_file", "input_audio"):
        prompt.add_attachment(part)
    elif kind == "refusal":
        prompt.add(role, str(part.get("refusal")))
    else:
        raise invalid(f"Invalid value for '{where}.type': {kind!r}.", param=f"{where}.type")
