"""Extraction that can only copy: which fields of a schema a small model may fill so, and which bytes may come next.

The program writes the names of the fields; the model chooses values. A text is a verbatim span of the source (blanks collapsed), from
the beginning of a word to the end of one; a number is one that stands in the source, in a way its separators can be read; a date is
one of the source's, written YYYY-MM-DD; of an enum or a boolean the likeliest option is taken. A field that need not be filled may be
null. So every value is grounded by construction, and what is left to judge is whether the right one was chosen.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from policies.grounding import dates_in

Kind = Literal["text", "number", "integer", "date", "choice"]

MOST_FIELDS: Final = 32
_TELLS_NOTHING: Final = frozenset({"title", "description", "examples", "default", "$schema", "$comment"})
_OF_OBJECT: Final = frozenset({"type", "properties", "required", "additionalProperties"})
_KINDS: Final[Mapping[str, Kind]] = {"string": "text", "number": "number", "integer": "integer"}
_LONGEST_PIECE: Final = 32
"""Bytes of the longest token that is looked for."""


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a flat object.

    Attributes:
        choices: Of a `choice`: the values, as JSON.
        nullable: Whether it may be null.
        may_lack: Whether it may be left out.
    """

    name: str
    kind: Kind
    choices: tuple[str, ...] = ()
    nullable: bool = False
    may_lack: bool = False


def flat_fields(schema: Mapping[str, Any]) -> tuple[Field, ...] | None:
    """The fields, in the schema's order; None where the schema asks for more than a flat object of plain values.

    Nested objects, lists, references, bounds of length or size, patterns and formats other than `date` are more: such answers are
    held to the schema by a grammar, as those of other intents are.
    """
    properties = schema.get("properties")
    if (
        schema.keys() - _TELLS_NOTHING - _OF_OBJECT
        or schema.get("type") != "object"
        or not isinstance(properties, dict)
    ):
        return None
    required = schema.get("required", ())
    if not 0 < len(properties) <= MOST_FIELDS or not set(required) <= properties.keys():
        return None
    fields = [_field(name, asked, may_lack=name not in required) for name, asked in properties.items()]
    return None if None in fields else tuple(field for field in fields if field is not None)


def _field(name: str, asked: Any, *, may_lack: bool) -> Field | None:
    if not isinstance(asked, dict):
        return None
    said = {key: value for key, value in asked.items() if key not in _TELLS_NOTHING}
    if "anyOf" in said and len(said) == 1:  # "a string or null" as pydantic writes it
        options = [option for option in said["anyOf"] if option != {"type": "null"}]
        inner = _field(name, options[0], may_lack=may_lack) if len(options) == 1 else None
        return None if inner is None or inner.nullable else Field(name, inner.kind, inner.choices, True, may_lack)
    types = said.pop("type", None)
    types = set(types) if isinstance(types, list) else {types}
    if "enum" in said:
        values = said.pop("enum")
        if (
            said
            or not values
            or not all(value is None or isinstance(value, str | int | float | bool) for value in values)
        ):
            return None
        choices = tuple(json.dumps(value, ensure_ascii=False) for value in values if value is not None)
        return Field(name, "choice", choices, None in values, may_lack) if choices else None
    nullable = "null" in types
    types.discard("null")
    wanted = said.pop("format", None)
    if said or len(types) != 1:
        return None
    [kind] = types
    if kind == "boolean" and wanted is None:
        return Field(name, "choice", ("true", "false"), nullable, may_lack)
    if kind not in _KINDS or wanted not in (None, "date") or (wanted == "date" and kind != "string"):
        return None
    return Field(name, "date" if wanted == "date" else _KINDS[kind], (), nullable, may_lack)


@dataclass(frozen=True, slots=True)
class Copyable:
    """A text with the places where a value may begin and end, in bytes of UTF-8."""

    text: bytes
    starts: tuple[int, ...]
    ends: frozenset[int]

    @classmethod
    def of(cls, kind: Kind, source: str) -> Copyable:
        """What a value of this kind may be copied from."""
        match kind:
            case "number":
                return cls._of_list(_numbers(source))
            case "integer":
                return cls._of_list(each for each in _numbers(source) if "." not in each)
            case "date":
                return cls._of_list(f"{year:04}-{month:02}-{day:02}" for year, month, day in sorted(dates_in(source)))
            case _:
                return cls._of_words(" ".join(source.split()))

    @classmethod
    def _of_words(cls, text: str) -> Copyable:
        # A lone surrogate has no bytes; it separates words like a blank.
        text = text.encode("utf-8", "replace").decode("utf-8")
        places = [0]
        for char in text:
            places.append(places[-1] + len(char.encode()))
        inside = [at for at in range(1, len(text)) if text[at - 1].isalnum() and text[at].isalnum()]
        edges = set(range(len(text) + 1)).difference(inside)
        starts = tuple(places[at] for at in sorted(edges) if at < len(text) and not text[at].isspace())
        ends = frozenset(places[at] for at in edges if at > 0 and not text[at - 1].isspace())
        return cls(text.encode(), starts, ends)

    @classmethod
    def _of_list(cls, values: Iterable[str]) -> Copyable:
        text, starts, ends = b"", [], set()
        for value in dict.fromkeys(values):
            starts.append(len(text))
            text += value.encode()
            ends.add(len(text))
            text += b'"'  # no value goes beyond it
        return cls(text, tuple(starts), frozenset(ends))


State = frozenset[int]
"""Where in the text the bytes so far may have been copied from: the places after them."""


class Spans:
    """The automaton: which tokens continue a span of the text."""

    def __init__(self, copyable: Copyable, vocabulary: Mapping[bytes, int]) -> None:
        """Prepare; what may follow a place is worked out when it is asked for.

        Args:
            vocabulary: A token of each piece of text.
        """
        self._from = copyable
        self._vocabulary = vocabulary
        self._steps: dict[int, list[tuple[int, int]]] = {}

    @property
    def start(self) -> State:
        """Before the first token; empty where there is nothing to copy."""
        return frozenset(self._from.starts)

    def moves(self, state: State) -> dict[int, State]:
        """The tokens that may come next, and the state after each."""
        found: dict[int, set[int]] = {}
        for place in state:
            for token, after in self._steps_from(place):
                found.setdefault(token, set()).add(after)
        return {token: frozenset(places) for token, places in found.items()}

    def may_end(self, state: State) -> bool:
        """Whether what was copied so far is whole."""
        return not state.isdisjoint(self._from.ends)

    def _steps_from(self, place: int) -> list[tuple[int, int]]:
        steps = self._steps.get(place)
        if steps is None:
            text = self._from.text
            # What ends a value in JSON, or would have to be escaped there, is in no value.
            stop = next((at for at in range(place, min(place + _LONGEST_PIECE, len(text))) if text[at] in _ENDS), None)
            last = min(place + _LONGEST_PIECE, len(text)) if stop is None else stop
            pieces = ((self._vocabulary.get(text[place:after]), after) for after in range(place + 1, last + 1))
            steps = self._steps[place] = [(token, after) for token, after in pieces if token is not None]
        return steps


_ENDS: Final = frozenset(b'"\\') | frozenset(range(32))


_BLANKS: Final = "' \N{RIGHT SINGLE QUOTATION MARK}\N{NO-BREAK SPACE}\N{NARROW NO-BREAK SPACE}"
_NUMBER: Final = re.compile(rf"\d{{1,3}}(?:[{_BLANKS}]\d{{3}})+(?!\d)(?:[.,]\d+)?|\d+(?:[.,]\d+)*")
_GROUPED: Final = (re.compile(r"(\d{1,3}(?:,\d{3})+)(?:\.(\d+))?"), re.compile(r"(\d{1,3}(?:\.\d{3})+)(?:,(\d+))?"))
_PLAIN: Final = re.compile(r"(\d+)(?:[.,](\d+))?")


def _numbers(source: str) -> Iterator[str]:
    """Each number in the source, in each way its separators can be read, and with its sign where one stands before it."""
    for found in _NUMBER.finditer(source):
        signs = ("", "-") if source[: found.start()].endswith(("-", "\u2212")) else ("",)
        joined = re.sub(f"[{_BLANKS}]", "", found[0])
        # "2 950" is a number or two.
        for written in dict.fromkeys((joined, *re.split(f"[{_BLANKS}]", found[0]))):
            yield from (sign + value for value in _readings(written) for sign in signs)


def _readings(written: str) -> Iterator[str]:
    """1,234.50 and 1.234,50 are one amount; 1,234 is a thousand or a decimal; 3.11.2026 is neither."""
    for form in (*_GROUPED, _PLAIN):
        if found := form.fullmatch(written):
            whole = re.sub(r"\D", "", found[1]).lstrip("0") or "0"
            yield f"{whole}.{found[2]}" if found[2] else whole
