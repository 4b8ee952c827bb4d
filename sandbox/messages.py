"""The Anthropic dialect: POST /v1/messages at API version 2026-10-21, its rules, answers, events and errors.

Rules kept: what the 2026-10-21 version refuses (sampling parameters even at their defaults, documents in assistant
turns, citations on user text), and what single models refuse (prefill, forced tools, thinking switched off).
"""

from __future__ import annotations

from typing import Any

from pydantic_core import to_json

from sandbox import claude_rules as rules
from sandbox.claude_prompt import read_prompt
from sandbox.claude_rules import OLD_VERSION, VERSION
from sandbox.content import pieces
from sandbox.exchange import (
    ApiError,
    Asking,
    Call,
    Event,
    Generation,
    Identity,
    Json,
    Stop,
    Usage,
    invalid,
)
from sandbox.models import Catalogue, Model
from sandbox.promptcache import PromptCache

_STOP_REASONS = {
    Stop.END: "end_turn",
    Stop.MAX_TOKENS: "max_tokens",
    Stop.STOP_SEQUENCE: "stop_sequence",
    Stop.TOOL_USE: "tool_use",
    Stop.REFUSAL: "refusal",
    Stop.CONTENT_FILTER: "refusal",
    Stop.CONTEXT_WINDOW: "model_context_window_exceeded",
}
_ERROR_TYPES = {
    "invalid_request": "invalid_request_error",
    "authentication": "authentication_error",
    "permission": "permission_error",
    "not_found": "not_found_error",
    "too_large": "request_too_large",
    "rate_limit": "rate_limit_error",
    "ramp_limit": "rate_limit_error",
    "spend_limit": "rate_limit_error",
    "overloaded": "overloaded_error",
    "unavailable": "api_error",
    "server_error": "api_error",
}
_ERROR_CODES = {"ramp_limit": "ramp_limit_exceeded", "spend_limit": "enforced_spend_limit_reached"}


class Messages:
    """POST /v1/messages, and the counting half of it for /v1/messages/count_tokens."""

    provider = "anthropic"
    endpoint = "messages"

    def __init__(self, catalogue: Catalogue, cache: PromptCache) -> None:
        self._catalogue = catalogue
        self._cache = cache

    def parse(self, body: Json, asking: Asking) -> Call:
        """Return the request understood; raises ApiError as the provider would."""
        self.check_version(asking)
        model = self._model(body)
        rules.check_fields(body, asking.version)
        limit = body.get("max_tokens")
        if limit is None:
            raise invalid("max_tokens: Field required")
        if not isinstance(limit, int) or isinstance(limit, bool) or limit < 0:
            raise invalid("max_tokens: Input should be a valid integer of at least 0")
        if limit > model.max_output:
            raise invalid(
                f"max_tokens: {limit} > {model.max_output}, which is the maximum allowed number of output tokens for "
                f"{model.id}"
            )
        blocks, user_text = read_prompt(body, model)
        total = sum(block.tokens for block in blocks)
        if total > model.context:
            raise invalid(f"prompt is too long: {total} tokens > {model.context} maximum")
        tools = rules.read_tools(body)
        forced = rules.forced_tool(body, model, tools)
        effort, schema = rules.output_config(body, model)
        thinking, shown = rules.read_thinking(body, model, effort, limit)
        plan = self._cache.plan_blocks(
            f"{asking.account}/{model.id}", blocks, minimum=model.min_cache_tokens, now_ns=asking.now_ns
        )
        return Call(
            model=model,
            requested_model=body["model"],
            stream=body.get("stream") is True,
            user_text=user_text,
            prompt_tokens=total,
            max_tokens=limit,
            effort=effort,
            thinking_tokens=thinking,
            show_thinking=shown,
            stop_sequences=rules.stop_sequences(body),
            schema=schema,
            tools=tools,
            forced_tool=forced,
            tier="default",
            multiplier_permille=rules.surcharge(body, model),
            cache=plan,
            body=body,
        )

    def count(self, body: Json, asking: Asking) -> int:
        """Return the prompt's tokens; for /v1/messages/count_tokens, which caches and bills nothing."""
        self.check_version(asking)
        rules.check_fields(body, asking.version)
        model = self._model(body)
        blocks, _ = read_prompt(body, model)
        return sum(block.tokens for block in blocks)

    def check_version(self, asking: Asking) -> None:
        """Refuse a request without a known `anthropic-version`."""
        version = asking.version
        if version is None:
            raise invalid("anthropic-version: header is required")
        if version not in (VERSION, OLD_VERSION):
            raise invalid(
                f"anthropic-version: {version!r} is not a version this sandbox speaks; send {VERSION} or {OLD_VERSION}"
            )

    def whole(self, call: Call, generation: Generation, identity: Identity) -> Json:
        """Return the message."""
        content: list[Json] = []
        if generation.usage.thinking:
            content.append(_thinking_block(call, identity))
        if generation.text:
            content.append({"type": "text", "text": generation.text, "citations": None})
        for place, one in enumerate(generation.tool_calls):
            content.append({**_tool_use(identity, place, one.name), "input": one.input})
        return {
            **_envelope(call, identity),
            "content": content,
            "stop_reason": _STOP_REASONS[generation.stop],
            "stop_sequence": generation.stop_sequence,
            "stop_details": _stop_details(generation.stop),
            "usage": _usage(generation.usage, call, generation.tier),
        }

    def events(self, call: Call, generation: Generation, identity: Identity) -> list[Event]:
        """Return the stream: message_start, the blocks, message_delta, message_stop."""
        begun = Usage(
            input=generation.usage.input,
            output=min(1, generation.usage.output),
            cache_write_short=generation.usage.cache_write_short,
            cache_write_long=generation.usage.cache_write_long,
            cache_read=generation.usage.cache_read,
        )
        start = {
            **_envelope(call, identity),
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "stop_details": None,
            "usage": _usage(begun, call, generation.tier),
        }
        events = [_event("message_start", message=start)]
        index = 0
        if generation.usage.thinking:
            block = _thinking_block(call, identity)
            events.append(_event("content_block_start", index=index, content_block={**block, "signature": ""}))
            if block["thinking"]:
                events.append(_delta(index, 0, type="thinking_delta", thinking=block["thinking"]))
            signature = _delta(index, generation.usage.thinking, type="signature_delta", signature=block["signature"])
            events += [signature, _event("content_block_stop", index=index)]
            index += 1
        if generation.text:
            events.append(
                _event(
                    "content_block_start", index=index, content_block={"type": "text", "text": "", "citations": None}
                )
            )
            events += [_delta(index, count, type="text_delta", text=part) for part, count in pieces(generation)]
            events.append(_event("content_block_stop", index=index))
            index += 1
        for place, one in enumerate(generation.tool_calls):
            start_block = {**_tool_use(identity, place, one.name), "input": {}}
            events.append(_event("content_block_start", index=index, content_block=start_block))
            share = generation.visible_tokens if place == 0 else 0
            written = to_json(one.input).decode()
            events.append(_delta(index, share, type="input_json_delta", partial_json=written))
            events.append(_event("content_block_stop", index=index))
            index += 1
        usage = _usage(generation.usage, call, generation.tier)
        for key in ("service_tier", "cache_creation", "speed", "inference_geo"):
            usage.pop(key)
        delta = {
            "stop_reason": _STOP_REASONS[generation.stop],
            "stop_sequence": generation.stop_sequence,
            "stop_details": _stop_details(generation.stop),
        }
        # Tokens that no block showed (an empty or refused answer) were still generated.
        hidden = generation.usage.output - sum(event.tokens for event in events)
        events.append(_event("message_delta", hidden, delta=delta, usage=usage))
        events.append(_event("message_stop"))
        return events

    def error_event(self, body: Json) -> Event:
        """Return the `error` event inside a stream."""
        return Event(body, 0, "error")

    def end_marker(self) -> bytes:
        """Nothing follows message_stop."""
        return b""

    def _model(self, body: Json) -> Model:
        name = body.get("model")
        if not isinstance(name, str) or not name:
            raise invalid("model: Field required")
        model = self._catalogue.find(name, self.provider)
        if model is None:
            raise ApiError(404, "not_found", f"model: {name}")
        return model


def error_body(error: ApiError, request_id: str) -> Json:
    """Return the error in Anthropic's shape."""
    shown: Json = {"type": _ERROR_TYPES[error.kind], "message": error.message}
    if error.kind in _ERROR_CODES:
        shown["details"] = {"error_code": _ERROR_CODES[error.kind]}
    return {"type": "error", "error": shown, "request_id": request_id}


def model_info(model: Model) -> Json:
    """Return a model as GET /v1/models shows it."""
    line = model.id.split("-")[1] if model.id.startswith("claude-") else None
    return {
        "type": "model",
        "id": model.id,
        "display_name": model.id.replace("-", " ").title(),
        "created_at": f"{model.created}T00:00:00Z",
        "lifecycle": "deprecated" if model.shutdown else "active",
        "deprecated_at": None,
        "retires_at": f"{model.shutdown}T00:00:00Z" if model.shutdown else None,
        "line": line if line in ("haiku", "sonnet", "opus", "fable", "mythos") else None,
        "max_input_tokens": model.context,
        "max_tokens": model.max_output,
        "capabilities": None,
    }


def _envelope(call: Call, identity: Identity) -> Json:
    return {
        "id": f"msg_{identity.answer_id}",
        "type": "message",
        "role": "assistant",
        "model": call.requested_model,
        "container": None,
        "diagnostics": None,
    }


def _usage(usage: Usage, call: Call, tier: str) -> Json:
    return {
        "input_tokens": usage.input,
        "cache_creation_input_tokens": usage.cache_write,
        "cache_read_input_tokens": usage.cache_read,
        "cache_creation": {
            "ephemeral_5m_input_tokens": usage.cache_write_short,
            "ephemeral_1h_input_tokens": usage.cache_write_long,
        },
        "output_tokens": usage.output,
        "output_tokens_details": {"thinking_tokens": usage.thinking},
        "server_tool_use": None,
        "service_tier": "standard" if tier == "default" else tier,
        "speed": call.body.get("speed") or "standard",
        "inference_geo": call.body.get("inference_geo") or "global",
    }


def _stop_details(stop: Stop) -> Json | None:
    if stop not in (Stop.REFUSAL, Stop.CONTENT_FILTER):
        return None
    return {"type": "refusal", "category": "general_harms", "explanation": "Refused on request of the sandbox's user."}


def _thinking_block(call: Call, identity: Identity) -> Json:
    text = "The sandbox does not think; it only counts as if it did." if call.show_thinking else ""
    return {"type": "thinking", "thinking": text, "signature": f"sandbox{identity.answer_id}"}


def _tool_use(identity: Identity, place: int, name: str) -> Json:
    return {"type": "tool_use", "id": f"toolu_{identity.answer_id}{place:02d}", "name": name}


def _event(name: str, tokens: int = 0, **data: Any) -> Event:
    return Event({"type": name, **data}, tokens, name)


def _delta(index: int, count: int, **delta: Any) -> Event:
    return _event("content_block_delta", count, index=index, delta=delta)
