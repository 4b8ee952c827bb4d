"""Extraction that can only copy: which schemas it takes, what may be copied, and that every path of tokens is a span."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.copying import Copyable, Field, Kind, Spans, flat_fields

RECEIPT = (
    'Cafe  Blau GmbH\n12, Main St.\nTable 2 950 g beans "house blend"\nTotal EUR 1.234,50 on 3.11.2026, credit -30.00'
)
LETTERS = st.sampled_from([*'ab 1.,-/\n"\\', "é", "€", "日", "12", "3.11.2026", "Nov 3, 2026"])


def flat(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def tokens_of(rng: random.Random, text: str) -> dict[bytes, int]:
    """A vocabulary as tokenizers have it: every byte, and pieces of the text that may cut characters."""
    data = text.encode()
    pieces = [bytes([byte]) for byte in range(256)]
    for _ in range(30):
        start = rng.randrange(len(data) + 1)
        pieces.append(data[start : start + rng.randint(1, 6)])
    return {piece: number for number, piece in enumerate(dict.fromkeys(piece for piece in pieces if piece))}


def every_value(copyable: Copyable) -> set[bytes]:
    """All that may be copied, by the definition."""
    return {
        copyable.text[start:end]
        for start in copyable.starts
        for end in copyable.ends
        if end > start and not {*copyable.text[start:end]} & {*b'"\\'}
    }


@given(
    st.lists(LETTERS, max_size=25).map("".join), st.sampled_from(["text", "number", "integer", "date"]), st.randoms()
)
def test_every_path_of_tokens_is_a_span_and_can_end_as_a_whole_value(
    source: str, kind: Kind, rng: random.Random
) -> None:
    copyable = Copyable.of(kind, source)
    vocabulary = tokens_of(rng, copyable.text.decode())
    pieces = {token: piece for piece, token in vocabulary.items()}
    spans = Spans(copyable, vocabulary)
    state, copied = spans.start, b""
    for _ in range(40):
        moves = spans.moves(state)
        if copied and spans.may_end(state):
            assert copied in every_value(copyable)
            copied.decode()  # whole characters
        if not moves:
            break
        token = rng.choice(sorted(moves))
        copied += pieces[token]
        state = moves[token]
        assert copied in copyable.text
        assert all(copyable.text[:place].endswith(copied) for place in state)
        assert b'"' not in copied


@given(st.lists(LETTERS, max_size=12).map("".join), st.sampled_from(["text", "number", "date"]))
def test_every_value_has_a_path(source: str, kind: Kind) -> None:
    copyable = Copyable.of(kind, source)
    spans = Spans(copyable, {bytes([byte]): byte for byte in range(256)})
    for value in every_value(copyable):
        state = spans.start
        for byte in value:
            state = spans.moves(state)[byte]
        assert spans.may_end(state)


@pytest.mark.parametrize(
    ("kind", "has", "lacks"),
    [
        ("text", ["Cafe Blau GmbH", "Main St.", "house blend", "3.11.2026", "EUR 1.234,50"], ["afe", "Blau GmbH\n12", 'beans "house']),
        ("number", ["12", "2950", "2", "950", "1234.50", "-30.00", "30.00"], ["2026", "3.11", "1.234"]),
        ("integer", ["12", "2", "950"], ["1234.50", "30.00"]),
        ("date", ["2026-11-03", "2026-03-11"], ["3.11.2026"]),
    ],
)  # fmt: skip
def test_what_may_be_copied(kind: Kind, has: list[str], lacks: list[str]) -> None:
    found = {value.decode() for value in every_value(Copyable.of(kind, RECEIPT))}

    assert found >= set(has)
    assert found.isdisjoint(lacks)


def test_nothing_to_copy_is_no_state() -> None:
    assert not Spans(Copyable.of("number", "no figures here"), {b"n": 0}).start
    assert not Spans(Copyable.of("text", "  "), {b"n": 0}).start


def test_flat_objects_of_plain_values_are_taken() -> None:
    fields = flat_fields(
        flat(
            company={"type": "string", "description": "who sold"},
            total={"type": ["number", "null"]},
            day={"type": "string", "format": "date"},
            kind={"enum": ["meal", "travel", None]},
            paid={"type": "boolean"},
            note={"anyOf": [{"type": "string"}, {"type": "null"}], "default": None, "title": "Note"},
        )
        | {"required": ["company", "total", "day", "kind", "paid"], "title": "Receipt"}
    )

    assert fields == (
        Field("company", "text"),
        Field("total", "number", nullable=True),
        Field("day", "date"),
        Field("kind", "choice", ('"meal"', '"travel"'), nullable=True),
        Field("paid", "choice", ("true", "false")),
        Field("note", "text", nullable=True, may_lack=True),
    )


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "array", "items": {"type": "string"}},
        {"type": "object"},
        {"type": "object", "properties": {}},
        flat(items={"type": "array", "items": {"type": "string"}}),
        flat(seller=flat(name={"type": "string"})),
        flat(code={"type": "string", "pattern": "^[A-Z]+$"}),
        flat(code={"type": "string", "maxLength": 3}),
        flat(sum={"type": "number", "minimum": 0}),
        flat(at={"type": "string", "format": "date-time"}),
        flat(a={"type": ["string", "number"]}),
        flat(a={"$ref": "#/$defs/a"}),
        flat(a={"enum": [["x"]]}),
        flat(a={"type": "null"}),
        flat(a=True),
        flat(a={"type": "string"}) | {"minProperties": 1},
        flat(a={"type": "string"}) | {"required": ["b"]},
    ],
)
def test_a_schema_that_asks_for_more_is_not(schema: dict[str, Any]) -> None:
    assert flat_fields(schema) is None
