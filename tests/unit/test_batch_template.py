from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from producers.refusal import Refused
from producers.template import FieldProblem, escape, parse

names = st.text(st.characters(exclude_characters="{}", exclude_categories=["Cs"]), min_size=1, max_size=12)


@settings(deadline=None)  # the machine may be busy
@given(st.text())
def test_an_escaped_text_renders_to_itself(text: str) -> None:
    template = parse(escape(text), "p")

    assert template.fields == ()
    assert template.render({}) == text


@settings(deadline=None)  # the machine may be busy
@given(names, st.text(min_size=1).filter(str.strip), st.text(), st.text())
def test_a_value_goes_in_as_it_is_and_is_never_read_as_a_template(
    name: str, value: str, before: str, after: str
) -> None:
    template = parse(escape(before) + "{" + name + "}" + escape(after), "p")

    assert template.render({name: value, "other": "x"}) == before + value + after


@pytest.mark.parametrize("field", ["x.__class__", "x[0]", "x!r", "x:>10", "0", "7*7", "x y"])
def test_nothing_in_braces_is_evaluated(field: str) -> None:
    template = parse("{" + field + "}", "p")

    assert template.fields == (field,)
    assert template.render({field: "literal"}) == "literal"
    with pytest.raises(FieldProblem, match="has no"):
        template.render({"x": "value"})


def test_a_document_cannot_bring_fields_of_its_own() -> None:
    assert parse("{a}{b}", "p").render({"a": "{b} {{b}} %s", "b": "secret"}) == "{b} {{b}} %ssecret"


@pytest.mark.parametrize(
    "text, where", [("one {", "1:5"), ("a\nb } c", "2:3"), ("{}", "1:1"), ("{ {x}", "1:1"), ("{{x}", "1:4")]
)
def test_a_lone_brace_is_refused_with_its_place_and_the_remedy(text: str, where: str) -> None:
    with pytest.raises(Refused, match=r"\{\{ and \}\}") as refused:
        parse(text, "prompt.txt")

    assert str(refused.value).startswith(f"prompt.txt:{where}: ")


def test_values_that_are_no_text_go_in_as_json_writes_them() -> None:
    row = {"n": 3, "d": Decimal("0.10"), "l": ["ä", 1], "t": True, "z": {"a": None}, "b": b"bytes"}

    assert parse("{n}|{d}|{l}|{t}|{z}|{b}", "p").render(row) == '3|0.10|["ä", 1]|true|{"a": null}|bytes'


@pytest.mark.parametrize("empty", ["", "  \n", None])
def test_an_empty_field_is_a_problem_unless_others_were_named(empty: str | None) -> None:
    template = parse("{a}{b}", "p")

    with pytest.raises(FieldProblem, match="`b` is empty"):
        template.render({"a": "x", "b": empty})
    assert template.render({"a": "x", "b": empty}, filled=("a",)).startswith("x")
