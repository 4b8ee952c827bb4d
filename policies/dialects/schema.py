"""Turns a job's JSON schema into what the providers' strict modes take, or says that it cannot. Pure.

Strict modes take a subset of JSON Schema: every object closed, no numeric or length bounds, no open maps, no recursion
(anthropic 2.12.0 `lib/_parse/_transform.py`; OpenAI's structured-output rules). What is dropped here is not lost: the
judge checks the answer against the job's own schema afterwards. Dropped bounds go into the description, where a model
reads them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

LABEL_KEY: Final = "label"

_KEPT: Final = frozenset({"type", "enum", "const", "title", "description", "required", "format", "$ref", "minItems"})
_FORMATS: Final = frozenset(
    {"date-time", "time", "date", "duration", "email", "hostname", "uri", "ipv4", "ipv6", "uuid"}
)
_PRIMITIVES: Final = frozenset({"string", "integer", "number", "boolean", "null"})
# Say nothing about which answers are valid.
_ANNOTATIONS: Final = frozenset(
    {"$schema", "$id", "$comment", "default", "examples", "deprecated", "readOnly", "writeOnly"}
)
# Narrow a value whose form is still held to; dropped here, kept as words, checked by the judge.
_BOUNDS: Final = frozenset(
    {
        "minimum",
        "maximum",
        "exclusiveMinimum",
        "exclusiveMaximum",
        "multipleOf",
        "minLength",
        "maxLength",
        "pattern",
        "maxItems",
        "uniqueItems",
        "minProperties",
        "maxProperties",
    }
)


@dataclass(frozen=True, slots=True)
class Closed:
    """A schema in the strict subset.

    Attributes:
        schema: Every answer that fits it fits the job's schema but for the dropped bounds.
        all_required: Whether no object has an optional property. OpenAI's strict mode demands it; making the optional
            ones required instead would push a model to invent values, so such a schema is sent there without `strict`.
    """

    schema: dict[str, Any]
    all_required: bool


class _InexpressibleError(Exception):
    """The schema uses something that no strict mode takes."""


def closed(schema: Mapping[str, Any]) -> Closed | None:
    """`schema` in the strict subset, or None when it cannot be expressed there.

    None means: root is not an object, open maps (`additionalProperties` with a schema, `patternProperties`), recursion,
    `oneOf`/`allOf`/`not`/`if`, tuples. The adapter then asks in words (`instruction`) and the judge checks.
    """
    if schema.get("type") != "object":
        return None
    optional: list[str] = []
    try:
        result = _close(schema, optional)
        definitions = {
            key: {name: _close(child, optional) for name, child in schema[key].items()}
            for key in ("$defs", "definitions")
            if isinstance(schema.get(key), Mapping)
        }
    except _InexpressibleError:
        return None
    if _has_loop_or_leads_nowhere(result, definitions):
        return None
    return Closed({**result, **definitions}, all_required=not optional)


def label_schema(labels: tuple[str, ...]) -> dict[str, Any]:
    """An object with one key whose value is one of `labels`; `label` is read back by the adapter."""
    return {
        "type": "object",
        "properties": {LABEL_KEY: {"type": "string", "enum": list(labels)}},
        "required": [LABEL_KEY],
        "additionalProperties": False,
    }


def instruction(schema: Mapping[str, Any]) -> str:
    """The request for JSON in words, for schemas and servers that cannot be held to one."""
    return "Answer with one JSON value that fits this JSON Schema. No other text, no code fence.\n" + json.dumps(
        schema, ensure_ascii=False, separators=(",", ":")
    )


def _close(schema: Any, optional: list[str]) -> dict[str, Any]:
    if not isinstance(schema, Mapping):
        raise _InexpressibleError  # `true` and `false` are schemas too
    unknown = schema.keys() - _KEPT - _BOUNDS - _ANNOTATIONS
    unknown -= {"properties", "additionalProperties", "items", "anyOf", "$defs", "definitions"}
    if unknown:
        raise _InexpressibleError
    result: dict[str, Any] = {key: schema[key] for key in schema if key in _KEPT}
    bounds = {key: schema[key] for key in schema if key in _BOUNDS}
    if "format" in result and result["format"] not in _FORMATS:
        bounds["format"] = result.pop("format")
    if result.get("minItems", 0) not in (0, 1):
        bounds["minItems"] = result.pop("minItems")
    if bounds:
        words = ", ".join(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in bounds.items())
        result["description"] = f"{result.get('description', '')} ({words})".strip()
    if "anyOf" in schema:
        if not isinstance(schema["anyOf"], list):
            raise _InexpressibleError
        result["anyOf"] = [_close(child, optional) for child in schema["anyOf"]]
        return result
    kind = result.get("type")
    if {"$ref", "enum", "const"} & result.keys():
        if isinstance(kind, list):
            del result["type"]  # the listed values say more
        return result
    if isinstance(kind, list):
        # One alternative for each type: what both dialects document for "or null".
        rest = {key: value for key, value in schema.items() if key not in ("type", "title", "description")}
        del result["type"]
        return {
            **{key: result[key] for key in ("title", "description") if key in result},
            "anyOf": [_close({**rest, "type": name}, optional) for name in kind],
        }
    if kind == "object":
        _close_object(schema, result, optional)
    elif kind == "array":
        result["items"] = _close(schema.get("items"), optional)
    elif kind not in _PRIMITIVES:
        raise _InexpressibleError
    return result


def _close_object(schema: Mapping[str, Any], result: dict[str, Any], optional: list[str]) -> None:
    properties = schema.get("properties")
    if not isinstance(properties, Mapping) or not properties:
        raise _InexpressibleError  # an open map; closing it would leave only {}
    if isinstance(schema.get("additionalProperties"), Mapping):
        raise _InexpressibleError
    required = schema.get("required", [])
    optional.extend(name for name in properties if name not in required)
    result["properties"] = {name: _close(child, optional) for name, child in properties.items()}
    result["additionalProperties"] = False


def _has_loop_or_leads_nowhere(root: object, definitions: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether a definition reaches itself through `$ref`, or a `$ref` names something that is not defined here."""
    edges = {
        f"#/{group}/{name}": _references(child)
        for group, children in definitions.items()
        for name, child in children.items()
    }
    if not (_references(root).union(*edges.values()) <= edges.keys()):
        return True
    reached = {name: set(targets) for name, targets in edges.items()}
    for _ in edges:
        for targets in reached.values():
            targets |= {far for near in tuple(targets) for far in edges[near]}
    return any(name in targets for name, targets in reached.items())


def _references(node: object) -> set[str]:
    """Every `$ref` below `node`."""
    found: set[str] = set()
    stack = [node]
    while stack:
        item = stack.pop()
        if isinstance(item, Mapping):
            target = item.get("$ref")
            if isinstance(target, str):
                found.add(target)
            stack.extend(item.values())
        elif isinstance(item, list):
            stack.extend(item)
    return found
