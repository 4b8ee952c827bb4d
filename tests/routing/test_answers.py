"""Agreement of answers: what is the same is seen as the same, what differs is not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.evaluate.answers import NOTHING, SHAPE_SIZE, normalise, shape


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("14", "$14.00"),
        ("1,250", "1250"),
        ("10%", "10"),
        ("b", "(B)"),
        ("C.", "c"),
        ("'nada'", "nada"),
        ("{'a': 1, 'b': [2, 3]}", '{"b": [2, 3], "a": 1}'),
        ("[1,2, 3]", "[1, 2, 3]"),
        ("\\frac{1}{2}", "1/2"),
        ("\\boxed{7}", "7"),
        ("find(x=1, y='a')", "find(y='a', x=1)"),
        ("New  York", "new york."),
        ("'800'", "800"),
    ],
)
def test_equal_answers_in_different_dress_agree(one: str, other: str) -> None:
    assert normalise(one) == normalise(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("14", "15"),
        ("A", "B"),
        ("[1, 2]", "[2, 1]"),
        ("[1]", "1"),
        ("f(x=1)", "g(x=1)"),
        ("True", "1"),
        ("-3", "3"),
        ("yes", "no"),
    ],
)
def test_different_answers_do_not_agree(one: str, other: str) -> None:
    assert normalise(one) != normalise(other)


@pytest.mark.parametrize("blank", ["", "   ", "None", "n/a", "null"])
def test_an_answer_without_content_is_nothing(blank: str) -> None:
    assert normalise(blank) == NOTHING


def test_an_empty_string_literal_is_an_answer() -> None:
    assert normalise("''") not in {NOTHING, None}


def test_no_answer_is_not_an_empty_answer() -> None:
    assert normalise(None) is None


@given(st.text(max_size=300))
def test_any_text_has_a_form_and_a_shape(text: str) -> None:
    normal = normalise(text)

    assert normal == normalise(text + " ")
    assert len(shape(text, normal, "prompt")) == SHAPE_SIZE


@given(st.integers(min_value=-(10**5), max_value=10**5))
def test_a_number_agrees_with_itself_however_written(number: int) -> None:
    assert normalise(str(number)) == normalise(f"{number}.0") == normalise(f" {number:,} ")


def test_a_deeply_nested_answer_is_text_not_a_crash() -> None:
    assert (normalise("[" * 3_000) or "").startswith("t:")
