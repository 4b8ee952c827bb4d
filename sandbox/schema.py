"""Fills a JSON schema from a text, as far as simple reading goes: the answer of a sandbox that has no recorded one.

The result always fits the schema's types, enums, constants and required fields. Values come from the text where a line
names the property ("Total: 9.90"), or where the text has something of the right kind (a date, a number); otherwise they
are stand-ins. Deterministic: the same schema and text give the same instance.
"""

from __future__ import annotations

import re
from functools import lru_cache
from hashlib import sha256
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError
from pydantic_core import from_json, to_json

_DATE = re.compile(r"\b(\d{4}-\d{2}-\d{2}|\d{1,2}[/.-]\d{1,2}[/.-]\d{2,4})\b")
_ISO_DATE = re.compile(r"\b\d{4}-\d{2}-\d{2}\b")
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_EMAIL = re.compile(r"[\w.+-]+@[\w-]+\.[\w.]+")
_MAX_DEPTH = 12
# However much a schema asks for.
_MAX_ITEMS = 100
_MAX_LENGTH = 10_000
_MAX_TEXT = 20_000


def complaint(schema: dict[str, Any]) -> str | None:
    """Return what is wrong with a JSON schema (draft 2020-12), or None; remembered, since clients repeat theirs."""
    return _complaint(to_json(schema))


@lru_cache(maxsize=1024)
def _complaint(written: bytes) -> str | None:
    try:
        Draft202012Validator.check_schema(from_json(written))
    except SchemaError as exc:
        return f"{'.'.join(str(part) for part in exc.absolute_path) or 'schema'}: {exc.message}"[:300]
    return None


def fill(schema: dict[str, Any], text: str) -> Any:
    """Return an instance of `schema`; a schema that refers to itself is cut off after twelve levels."""
    return _Filler(schema, text[:_MAX_TEXT]).value(schema, "", 0)


class _Filler:
    def __init__(self, root: dict[str, Any], text: str) -> None:
        self._root = root
        self._text = text
        self._lines = [line.strip() for line in text.splitlines() if line.strip()]

    def value(self, schema: Any, name: str, depth: int) -> Any:
        schema = self._resolved(schema)
        if "const" in schema:
            return schema["const"]
        if schema.get("enum"):
            return self._choice(schema["enum"], name)
        kind = schema.get("type")
        if isinstance(kind, list):
            kind = next((one for one in kind if one != "null"), "null")
        if kind is None:
            kind = "object" if "properties" in schema else "array" if "items" in schema else "string"
        if depth > _MAX_DEPTH:
            return {"object": {}, "array": [], "string": "", "number": 0, "integer": 0, "boolean": False}.get(kind)
        match kind:
            case "object":
                properties = schema.get("properties") or {}
                return {key: self.value(inner, key, depth + 1) for key, inner in properties.items()}
            case "array":
                count = min(_MAX_ITEMS, max(1, int(schema.get("minItems", 1)))) if schema.get("maxItems", 1) else 0
                return [self.value(schema.get("items", {}), name, depth + 1) for _ in range(count)]
            case "boolean":
                return self._boolean(name)
            case "integer":
                return self._bounded(schema, round(self._number(name)))
            case "number":
                return self._bounded(schema, self._number(name))
            case "null":
                return None
        return self._string(schema, name)

    def _resolved(self, schema: Any) -> dict[str, Any]:
        for _ in range(_MAX_DEPTH):
            if not isinstance(schema, dict):
                return {}
            if isinstance(reference := schema.get("$ref"), str):
                schema = self._target(reference)
                continue
            options = schema.get("anyOf") or schema.get("oneOf")
            if options:
                schema = next((one for one in options if one.get("type") != "null"), options[0])
                continue
            if parts := schema.get("allOf"):
                merged: dict[str, Any] = {}
                for part in parts:
                    resolved = self._resolved(part)
                    merged = {**merged, **resolved}
                return merged
            return schema
        return {}

    def _target(self, reference: str) -> Any:
        place: Any = self._root
        for part in reference.removeprefix("#/").split("/"):
            place = place.get(part) if isinstance(place, dict) else None
        return place

    def _named(self, name: str) -> str | None:
        """Return what follows the property's name on a line of the text."""
        if not name:
            return None
        words = re.escape(name).replace("_", r"[\s_-]?")
        found = re.search(rf"(?im)^\W*{words}\w*\s*[:=#]\s*(\S.*?)\s*$", self._text) or re.search(
            rf"(?i)\b{words}\b\s*(?:is|[:=])\s*(\S[^\n,;]*)", self._text
        )
        return found[1] if found else None

    def _string(self, schema: dict[str, Any], name: str) -> str:
        found = self._named(name)
        if schema.get("format") in ("date", "date-time"):
            date = _ISO_DATE.search(found or self._text)
            day = date[0] if date else "2026-01-01"
            return day if schema["format"] == "date" else f"{day}T00:00:00Z"
        if found is None:
            if "date" in name.lower() and (date := _DATE.search(self._text)):
                found = date[0]
            elif "mail" in name.lower() and (email := _EMAIL.search(self._text)):
                found = email[0]
            else:
                found = self._lines[0] if self._lines else name
        least = min(_MAX_LENGTH, int(schema.get("minLength", 0)))
        most = int(schema.get("maxLength", max(least, 200)))
        return found[:most].ljust(least, ".")

    def _number(self, name: str) -> float:
        found = _NUMBER.search((self._named(name) or "").replace(",", ""))
        if found is None:
            found = _NUMBER.search(self._text)
        if found is None or len(found[0]) > 15:
            return 0
        return float(found[0]) if "." in found[0] else int(found[0])

    def _bounded(self, schema: dict[str, Any], number: float) -> float:
        low, high = schema.get("minimum", schema.get("exclusiveMinimum")), schema.get("maximum")
        if isinstance(low, int | float) and number <= low:
            number = low + 1 if "exclusiveMinimum" in schema else low
        return min(number, high) if isinstance(high, int | float) else number

    def _boolean(self, name: str) -> bool:
        found = (self._named(name) or "").lower()
        return found.startswith(("yes", "true", "1", "on")) if found else bool(self._hash(name) % 2)

    def _choice(self, options: list[Any], name: str) -> Any:
        """Return the option the text names first, else one picked by the text's hash."""
        lowered = self._text.lower()
        named = [
            (place, option)
            for option in options
            if isinstance(option, str) and option and (place := lowered.find(option.lower())) >= 0
        ]
        return min(named)[1] if named else options[self._hash(name) % len(options)]

    def _hash(self, name: str) -> int:
        digest = sha256(f"{name}\n{self._text}".encode("utf-8", "surrogatepass")).digest()
        return int.from_bytes(digest[:4], "big")
