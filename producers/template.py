"""A prompt with `{field}` in it -> the prompt of one row. Substitution and nothing else: no attributes, no formats.

`{{` and `}}` stand for literal braces. What is put in is never looked at again, so a document cannot bring fields
of its own.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

from producers.refusal import Refused

_TOKEN = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")


class FieldProblem(ValueError):
    """A row cannot be put into the prompt; the message names the field."""


@dataclass(frozen=True, slots=True)
class Template:
    """A parsed prompt.

    Attributes:
        parts: Alternating: literal text, then the name of a field or None.
        fields: The names used, each once, in order of first use.
    """

    parts: tuple[tuple[str, str | None], ...]
    fields: tuple[str, ...]

    @property
    def version(self) -> str:
        """A short name of the template's wording: what was learned of one wording does not hold for another."""
        return hashlib.sha256(json.dumps(self.parts).encode()).hexdigest()[:12]

    def render(self, row: Mapping[str, Any], *, filled: tuple[str, ...] | None = None) -> str:
        """The prompt of one row.

        Args:
            row: The input's columns. Text goes in as it is, other values as JSON would write them.
            filled: Fields that must not be empty; None = all that the prompt uses.

        Raises:
            FieldProblem: A used field is missing, or empty though it must not be.
        """
        texts = {name: self._text(row, name) for name in self.fields}
        for name in self.fields if filled is None else filled:
            text = texts[name] if name in texts else as_text(row.get(name))
            if not text.strip():
                raise FieldProblem(f"`{name}` is empty")
        return "".join(literal + (texts[name] if name is not None else "") for literal, name in self.parts)

    @staticmethod
    def _text(row: Mapping[str, Any], name: str) -> str:
        if name not in row:
            raise FieldProblem(f"has no `{name}`")
        return as_text(row[name])


def parse(text: str, source: str) -> Template:
    """Read a prompt.

    Args:
        text: The prompt's text.
        source: Its name, for messages.

    Raises:
        Refused: A lone or empty brace, with line and column.
    """
    parts: list[tuple[str, str | None]] = []
    literal, end = "", 0
    for token in _TOKEN.finditer(text):
        literal += text[end : token.start()]
        end = token.end()
        if token[0] in ("{{", "}}"):
            literal += token[0][0]
        elif token[1]:
            parts.append((literal, token[1]))
            literal = ""
        else:
            line, column = text.count("\n", 0, token.start()) + 1, token.start() - text.rfind("\n", 0, token.start())
            raise Refused(
                f"{source}:{line}:{column}: {token[0]!r} names no field; write {{{{ and }}}} for literal braces,"
                " {text} for a field"
            )
    parts.append((literal + text[end:], None))
    return Template(tuple(parts), tuple(dict.fromkeys(name for _, name in parts if name is not None)))


def escape(text: str) -> str:
    """The template that renders to exactly `text`."""
    return text.replace("{", "{{").replace("}", "}}")


def as_text(value: Any) -> str:
    """How a value stands in a prompt: text as it is, nothing for None, everything else as JSON.

    Raises:
        FieldProblem: Bytes that are not UTF-8.
    """
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as exc:
            raise FieldProblem(f"is not UTF-8 text (byte 0x{value[exc.start]:02x} at {exc.start})") from None
    if isinstance(value, Decimal | datetime | date | time | timedelta):
        return plain(value)
    return json.dumps(value, ensure_ascii=False, default=plain)


def plain(value: Any) -> str:
    """A value that JSON has no form for, as text: dates in ISO form, numbers in full, bytes in base64."""
    if isinstance(value, Decimal):
        return format(value, "f")
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return str(value)
