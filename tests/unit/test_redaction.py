"""What a provider says about an error is kept without keys and without what was asked."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from workers.redaction import WINDOW, hide


def test_keys_go_known_ones_and_what_looks_like_one() -> None:
    said = "Incorrect API key provided: sk-proj-abc123456789. Header was Bearer tOkEn, account my-own-key-7"

    assert hide(said, (), ("my-own-key-7",)) == "Incorrect API key provided: [key]. Header was [key] account [key]"


def test_a_quoted_prompt_goes_and_the_message_stays() -> None:
    prompt = "Dear Ms Lindqvist, the invoice 4711 is overdue since March."

    said = hide("invalid value 'Ms Lindqvist, the invoice 4711 is' at messages.0", (prompt,))

    assert said == "invalid value '[text of the request]' at messages.0"


def test_words_that_any_message_has_stay() -> None:
    assert hide("the model is overloaded", ("is the model good?",)) == "the model is overloaded"


@given(st.text(min_size=WINDOW + 4, max_size=80), st.text(max_size=20), st.text(max_size=20))
def test_no_long_piece_of_the_request_is_left(prompt: str, before: str, after: str) -> None:
    said = hide(f"{before}{prompt}{after}", (prompt,))

    # Every second piece of WINDOW + step characters would be found; what is left is shorter.
    assert prompt not in said
