"""What OpenAI's two dialects say alike: functions as tools, the choice among them, the form of the answer.

Chat puts a name and what belongs to it into an object inside (`inner`), Responses beside the type.
"""

from __future__ import annotations

from typing import Any

from policies.dialects.neutral import Choice, Form, Tool, Unsupported, malformed, obj, text


def read_tool(tool: Any, where: str, *, inner: str = "") -> Tool:
    """One of `tools`."""
    if obj(tool, where).get("type") != "function":
        raise Unsupported(f"{where}.type", "only function tools can be carried over")
    function, at = _inside(tool, where, inner)
    return Tool(
        text(function.get("name"), f"{at}.name"),
        text(function.get("description") or "", f"{at}.description"),
        obj(function.get("parameters") or {"type": "object", "properties": {}}, f"{at}.parameters"),
        function.get("strict") is True,
    )


def read_choice(choice: Any, *, inner: str = "") -> Choice:
    """`tool_choice`."""
    if choice is None or choice == "auto":
        return Choice()
    if choice == "none":
        return Choice("none")
    if choice == "required":
        return Choice("any")
    if isinstance(choice, dict) and choice.get("type", "function") == "function":
        function, at = _inside(choice, "tool_choice", inner)
        return Choice("named", text(function.get("name"), f"{at}.name"))
    raise Unsupported("tool_choice", "cannot be carried over; use auto, none, required or one function")


def read_form(form: Any, where: str, *, inner: str = "") -> Form | None:
    """The form of the answer; None = text."""
    if form is None:
        return None
    kind = obj(form, where).get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        return Form(None)
    if kind != "json_schema":
        raise malformed(f"{where}.type", f"{kind!r} is none of text, json_object, json_schema")
    named, at = _inside(form, where, inner)
    return Form(
        obj(named.get("schema"), f"{at}.schema"), str(named.get("name") or "answer"), named.get("strict") is True
    )


def _inside(outer: dict[str, Any], where: str, inner: str) -> tuple[dict[str, Any], str]:
    """The object that holds the name, and its path."""
    if not inner:
        return outer, where
    at = f"{where}.{inner}"
    return obj(outer.get(inner), at), at
