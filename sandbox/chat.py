"""The OpenAI dialect of POST /v1/chat/completions: its rules, answers and chunks."""

from __future__ import annotations

from typing import Any

from pydantic_core import to_json

from sandbox import openai
from sandbox.content import THINKING_TOKENS, pieces
from sandbox.exchange import Asking, Call, Event, Generation, Identity, Json, Stop, Usage, invalid
from sandbox.models import Catalogue
from sandbox.promptcache import PromptCache

_FIELDS = {
    "model", "messages", "audio", "frequency_penalty", "function_call", "functions", "logit_bias", "logprobs",
    "max_completion_tokens", "max_tokens", "metadata", "modalities", "moderation", "n", "parallel_tool_calls",
    "prediction", "presence_penalty", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention",
    "reasoning_effort", "response_format", "safety_identifier", "seed", "service_tier", "stop", "store", "stream",
    "stream_options", "temperature", "tool_choice", "tools", "top_logprobs", "top_p", "user", "verbosity",
    "web_search_options",
}  # fmt: skip
_ROLES = ("developer", "system", "user", "assistant", "tool")
_FINISH = {
    Stop.END: "stop",
    Stop.MAX_TOKENS: "length",
    Stop.STOP_SEQUENCE: "stop",
    Stop.TOOL_USE: "tool_calls",
    Stop.REFUSAL: "stop",
    Stop.CONTENT_FILTER: "content_filter",
    Stop.CONTEXT_WINDOW: "length",
}
REFUSAL = "I'm sorry, but I can't help with that."


class Chat:
    """POST /v1/chat/completions."""

    provider = "openai"
    endpoint = "chat"

    def __init__(self, catalogue: Catalogue, cache: PromptCache) -> None:
        self._catalogue = catalogue
        self._cache = cache

    def parse(self, body: Json, asking: Asking) -> Call:
        """Return the request understood; raises ApiError as the provider would."""
        model = openai.find_model(body, self._catalogue)
        openai.check_fields(body, _FIELDS)
        effort = openai.effort_of(body.get("reasoning_effort"), model, "reasoning_effort")
        openai.check_sampling(body, model, effort)
        limit_key = "max_completion_tokens"
        if body.get("max_tokens") is not None:
            if not model.legacy:
                raise invalid(
                    f"Unsupported parameter: 'max_tokens' is not supported with {model.id}. Use "
                    "'max_completion_tokens' instead.",
                    param="max_tokens",
                    code="unsupported_parameter",
                )
            limit_key = "max_tokens"
        if body.get("n") not in (None, 1):
            raise invalid("Invalid 'n': the sandbox makes one choice.", param="n")
        stream = body.get("stream") is True
        options = body.get("stream_options")
        if options is not None and not stream:
            raise invalid(
                "The 'stream_options' parameter is only allowed when 'stream' is enabled.", param="stream_options"
            )
        tools = tuple(
            openai.read_tool(_function(tool, place), place) for place, tool in enumerate(body.get("tools") or [])
        )
        schema, json_mode = _format(body)
        prompt = openai.Prompt(model)
        if tools:
            prompt.add_json(body["tools"])
        if schema is not None:
            prompt.add_json(schema)
        _read_messages(body, prompt)
        openai.check_context(prompt.tokens, model)
        return Call(
            model=model,
            requested_model=body["model"],
            stream=stream,
            user_text=prompt.user_text,
            prompt_tokens=prompt.tokens,
            max_tokens=openai.allowance(body, limit_key, model),
            effort=effort,
            thinking_tokens=THINKING_TOKENS[effort],
            stop_sequences=_stops(body),
            schema=schema,
            json_mode=json_mode,
            tools=tools,
            forced_tool=openai.forced_tool(body.get("tool_choice"), tools, _named_function),
            tier=openai.tier_of(body),
            include_usage=bool((options or {}).get("include_usage")),
            cache=prompt.plan(body, asking, self._cache),
            body=body,
        )

    def whole(self, call: Call, generation: Generation, identity: Identity) -> Json:
        """Return the completion."""
        message: Json = {"role": "assistant", "content": generation.text, "refusal": None, "annotations": []}
        if generation.tool_calls:
            message["content"] = None
            message["tool_calls"] = [
                _tool_call(identity, place, one.name, one.input) for place, one in enumerate(generation.tool_calls)
            ]
        if generation.stop is Stop.REFUSAL:
            message["content"], message["refusal"] = None, REFUSAL
        return {
            "id": f"chatcmpl-{identity.answer_id}",
            "object": "chat.completion",
            "created": identity.created,
            "model": call.requested_model,
            "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": _FINISH[generation.stop]}],
            "usage": _usage(generation.usage),
            "service_tier": generation.tier,
            "system_fingerprint": None,
        }

    def events(self, call: Call, generation: Generation, identity: Identity) -> list[Event]:
        """Return the chunks; with include_usage a last one without choices carries the usage."""
        base = {
            "id": f"chatcmpl-{identity.answer_id}",
            "object": "chat.completion.chunk",
            "created": identity.created,
            "model": call.requested_model,
            "service_tier": generation.tier,
            "system_fingerprint": None,
        }

        def chunk(delta: Json, count: int = 0, finish: str | None = None) -> Event:
            choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
            return Event({**base, "choices": [choice], **({"usage": None} if call.include_usage else {})}, count)

        deltas: list[tuple[Json, int]] = []
        if generation.stop is Stop.REFUSAL:
            deltas.append(({"refusal": REFUSAL}, generation.visible_tokens))
        elif generation.tool_calls:
            for place, one in enumerate(generation.tool_calls):
                whole = _tool_call(identity, place, one.name, one.input)
                named = {**whole, "index": place, "function": {"name": one.name, "arguments": ""}}
                deltas.append(({"tool_calls": [named]}, 0))
                arguments = {"index": place, "function": {"arguments": whole["function"]["arguments"]}}
                deltas.append(({"tool_calls": [arguments]}, generation.visible_tokens if place == 0 else 0))
        else:
            deltas += [({"content": part}, count) for part, count in pieces(generation)]
        events = [chunk({"role": "assistant", "content": "" if generation.text else None, "refusal": None})]
        # Reasoning is not shown on this endpoint: the first delta simply comes that much later.
        hidden = generation.usage.output - sum(count for _, count in deltas)
        for delta, count in deltas:
            events.append(chunk(delta, count + hidden))
            hidden = 0
        events.append(chunk({}, hidden, _FINISH[generation.stop]))
        if call.include_usage:
            events.append(Event({**base, "choices": [], "usage": _usage(generation.usage)}))
        return events

    def error_event(self, body: Json) -> Event:
        """Return the error as a chunk."""
        return Event(body)

    def end_marker(self) -> bytes:
        """Return the line that ends every stream of chunks."""
        return b"data: [DONE]\n\n"


def _usage(usage: Usage) -> Json:
    return {
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.output,
        "total_tokens": usage.prompt + usage.output,
        "prompt_tokens_details": {
            "cached_tokens": usage.cache_read,
            "cache_write_tokens": usage.cache_write,
            "audio_tokens": 0,
        },
        "completion_tokens_details": {
            "reasoning_tokens": usage.thinking,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def _tool_call(identity: Identity, place: int, name: str, given: Json) -> Json:
    return {
        "id": f"call_{identity.answer_id}{place:02d}",
        "type": "function",
        "function": {"name": name, "arguments": to_json(given).decode()},
    }


def _function(tool: Any, place: int) -> Any:
    if not isinstance(tool, dict) or tool.get("type") != "function":
        raise invalid(f"Invalid value for 'tools[{place}].type': only 'function' is served here.", param="tools")
    return tool.get("function")


def _named_function(choice: Json) -> Any:
    function = choice.get("function")
    return function.get("name") if isinstance(function, dict) else None


def _stops(body: Json) -> tuple[str, ...]:
    stop = body.get("stop")
    stops = [stop] if isinstance(stop, str) else stop or []
    if not isinstance(stops, list) or not all(isinstance(one, str) for one in stops):
        raise invalid("Invalid type for 'stop': expected a string or an array of strings.", param="stop")
    return tuple(stops)


def _format(body: Json) -> tuple[Json | None, bool]:
    form = body.get("response_format")
    kind = form.get("type") if form else None
    if form is None or kind == "text":
        return None, False
    if kind == "json_object":
        return None, True
    if kind != "json_schema":
        raise invalid("Invalid value for 'response_format.type'.", param="response_format.type")
    return openai.read_schema(form.get("json_schema"), "response_format"), False


def _read_messages(body: Json, prompt: openai.Prompt) -> None:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise invalid("Invalid 'messages': expected a non-empty array.", param="messages")
    for place, message in enumerate(messages):
        where = f"messages[{place}]"
        role = message.get("role") if isinstance(message, dict) else None
        if role not in _ROLES:
            raise invalid(f"Invalid value for '{where}.role'. Supported values are {', '.join(_ROLES)}.", param=where)
        content = message.get("content")
        if isinstance(content, str):
            prompt.add(role, content)
        elif isinstance(content, list):
            for inner, part in enumerate(content):
                _read_part(part, role, f"{where}.content[{inner}]", prompt)
        elif role != "assistant":
            raise invalid(f"Invalid value for '{where}.content': expected a string.", param=f"{where}.content")
        if message.get("tool_calls"):
            prompt.add_json(message["tool_calls"])


def _read_part(part: Any, role: str, where: str, prompt: openai.Prompt) -> None:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in ("text", "refusal"):
        if not isinstance(part.get(kind), str):
            raise invalid(f"Missing required parameter: '{where}.{kind}'.", param=where)
        prompt.add(role, part[kind], part.get("prompt_cache_breakpoint"))
    elif kind in ("image_url", "input_audio", "file"):
        prompt.add_attachment(part)
    else:
        raise invalid(f"Invalid value for '{where}.type': {kind!r}.", param=where)
