"""What a Claude request may hold beside its prompt: the rules of API version 2026-10-21 and of single models."""

from __future__ import annotations

from typing import Any

from sandbox.content import THINKING_TOKENS
from sandbox.exchange import Json, Tool, invalid
from sandbox.models import Model
from sandbox.schema import complaint

VERSION = "2026-10-21"
# OLD_VERSION: still spoken; sampling parameters are allowed at it.
OLD_VERSION = "2023-06-01"
_FIELDS = {
    "model", "max_tokens", "messages", "system", "tools", "tool_choice", "thinking", "output_config", "cache_control",
    "stop_sequences", "metadata", "service_tier", "speed", "inference_geo", "diagnostics", "container", "stream",
    "user_profile_id", "workspace_id",
}  # fmt: skip
# What a field is, where another type would only fail later; null counts as absent.
_SHAPES: dict[str, type] = {
    "model": str, "messages": list, "tools": list, "tool_choice": dict, "thinking": dict, "output_config": dict,
    "cache_control": dict, "stop_sequences": list, "stream": bool, "service_tier": str, "speed": str,
    "inference_geo": str,
}  # fmt: skip
_SAMPLING = ("temperature", "top_p", "top_k")


def check_fields(body: Json, version: str | None) -> None:
    """Refuse parameters this version does not have."""
    if version == VERSION:
        for key in _SAMPLING:
            if key in body:
                raise invalid(f"{key}: not supported at API version {VERSION}; leave it out, also at its default value")
    for key in body:
        if key not in _FIELDS and key not in _SAMPLING:
            raise invalid(f"{key}: Extra inputs are not permitted")
    for key, shape in _SHAPES.items():
        if body.get(key) is not None and not isinstance(body[key], shape):
            raise invalid(f"{key}: Input should be a valid {shape.__name__}")
    if (body.get("service_tier") or "auto") not in ("auto", "standard_only"):
        raise invalid("service_tier: Input should be 'auto' or 'standard_only'")


def surcharge(body: Json, model: Model) -> int:
    """Return the price factor of fast mode and US-only inference, in thousandths."""
    permille = 1000
    if body.get("speed") == "fast":
        if model.fast_factor is None:
            raise invalid(f"speed: 'fast' is not supported on {model.id}")
        permille = int(permille * model.fast_factor)
    if body.get("inference_geo") == "us":
        permille = permille * 11 // 10
    return permille


def stop_sequences(body: Json) -> tuple[str, ...]:
    """Return the texts that end an answer."""
    given = body.get("stop_sequences") or []
    if not all(isinstance(one, str) and one for one in given):
        raise invalid("stop_sequences: each stop sequence must be a non-empty string")
    return tuple(given)


def read_tools(body: Json) -> tuple[Tool, ...]:
    """Return the tools; server tools have no schema and are never called here."""
    tools = []
    for place, tool in enumerate(body.get("tools") or []):
        if not isinstance(tool, dict) or not isinstance(tool.get("name"), str):
            raise invalid(f"tools.{place}.name: Field required")
        schema = tool.get("input_schema")
        if tool.get("type", "custom") == "custom" and not isinstance(schema, dict):
            raise invalid(f"tools.{place}.input_schema: Field required")
        if isinstance(schema, dict) and (wrong := complaint(schema)):
            raise invalid(f"tools.{place}.input_schema: JSON schema is invalid: {wrong}")
        tools.append(Tool(tool["name"], schema if isinstance(schema, dict) else {}))
    return tuple(tools)


def forced_tool(body: Json, model: Model, tools: tuple[Tool, ...]) -> str:
    """Return "" for no forced tool, "*" for any, or a name; refuses it on models that always think."""
    choice = body.get("tool_choice")
    if choice is None:
        return ""
    kind = choice.get("type")
    if kind not in ("auto", "any", "tool", "none"):
        raise invalid("tool_choice.type: Input should be 'auto', 'any', 'tool' or 'none'")
    if kind in ("auto", "none"):
        return ""
    if not model.forced_tools:
        raise invalid(
            f"tool_choice: type '{kind}' is not supported on {model.id}, which always thinks; use 'auto', or "
            "output_config.format for JSON"
        )
    if not tools:
        raise invalid("tool_choice: a tool is required but no tools were given")
    if kind == "any":
        return "*"
    if choice.get("name") not in [tool.name for tool in tools]:
        raise invalid(f"tool_choice.name: tool {choice.get('name')!r} is not among the tools")
    return str(choice["name"])


def output_config(body: Json, model: Model) -> tuple[str, Json | None]:
    """Return the effort and, for structured output, the schema."""
    config = body.get("output_config") or {}
    effort = config.get("effort") or model.default_effort
    if effort not in model.efforts:
        raise invalid(f"output_config.effort: Input should be one of {', '.join(model.efforts)}")
    form = config.get("format")
    if form is None:
        return effort, None
    if not isinstance(form, dict) or form.get("type") != "json_schema" or not isinstance(form.get("schema"), dict):
        raise invalid("output_config.format: Input should be {type: 'json_schema', schema: {...}}")
    if wrong := complaint(form["schema"]):
        raise invalid(f"output_config.format.schema: JSON schema is invalid: {wrong}")
    _check_closed(form["schema"], "output_config.format.schema")
    return effort, form["schema"]


def _check_closed(schema: Any, where: str) -> None:
    """Refuse a schema with an open object: structured output needs `additionalProperties: false` on every one."""
    if isinstance(schema, list):
        for place, one in enumerate(schema):
            _check_closed(one, f"{where}.{place}")
    elif isinstance(schema, dict):
        if schema.get("type") == "object" and schema.get("additionalProperties") is not False:
            raise invalid(f"{where}: For 'object' type, 'additionalProperties' must be explicitly set to false")
        for key, inner in schema.items():
            if key in ("properties", "$defs", "definitions") and isinstance(inner, dict):
                for name, one in inner.items():
                    _check_closed(one, f"{where}.{key}.{name}")
            elif key in ("items", "anyOf", "allOf", "oneOf"):
                _check_closed(inner, f"{where}.{key}")


def read_thinking(body: Json, model: Model, effort: str, limit: int) -> tuple[int, bool]:
    """Return the thinking tokens and whether their text is shown; refuses what the model does not take."""
    config = body.get("thinking")
    if config is None:
        return (THINKING_TOKENS[effort] if model.thinking in ("always", "on") else 0), False
    kind = config.get("type")
    if kind not in ("adaptive", "enabled", "disabled", "between_tools"):
        raise invalid("thinking.type: Input should be 'adaptive', 'enabled', 'disabled' or 'between_tools'")
    shown = config.get("display") == "summarized"
    if kind == "disabled":
        if model.thinking == "always":
            raise invalid(f"thinking.type: 'disabled' is not supported on {model.id}; it always thinks")
        if model.thinking == "on" and effort in ("xhigh", "max"):
            raise invalid("thinking.type: 'disabled' is only supported at effort 'high' or below")
        return 0, False
    if model.thinking == "none":
        raise invalid(f"thinking: {model.id} does not think")
    if kind == "between_tools":
        return THINKING_TOKENS["low"], False
    if kind == "enabled":
        budget = config.get("budget_tokens")
        if not isinstance(budget, int) or budget < 1024 or budget >= limit:
            raise invalid("thinking.enabled.budget_tokens: Input should be at least 1024 and less than max_tokens")
        return min(budget, THINKING_TOKENS["high"]), shown
    return THINKING_TOKENS[effort], shown
