"""What a prompt alone tells: its form is always finite, and the scorer orders by difference, not by hardness."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.evaluate.features import SURFACE_SIZE, surface
from policies.evaluate.folds import draw_folds
from policies.evaluate.precall import fit_precall


@given(prompt=st.text(max_size=200) | st.text(alphabet="0123456789.,?\nA) $%_", max_size=900))
def test_every_prompt_has_a_finite_form(prompt: str) -> None:
    form = surface(prompt)

    assert len(form) == SURFACE_SIZE
    assert np.isfinite(form).all()


def test_a_number_of_a_thousand_digits_has_a_form() -> None:
    assert np.isfinite(surface("7" * 1_000)).all()


def test_options_count_apart_from_the_question() -> None:
    question = "Which metal is liquid at 20 degrees?"

    alone, listed = surface(question), surface(f"{question}\nA. iron\nB. mercury\nC. 12 others\nAnswer:")

    assert alone[1:5] == listed[1:5]  # length, words and digits are those of the question
    assert alone != listed


def test_a_question_both_fail_is_no_reason_to_pay() -> None:
    """`hopeless` prompts are hard for both models, `worth` only for the cheap one: worth paying for is the second."""
    rng = np.random.default_rng(4)
    kinds = rng.choice(["hopeless", "worth", "easy"], 600)
    words = rng.choice(["lamp", "tree", "boat"], 600)
    prompts = [f"{kind} case of the {word}" for kind, word in zip(kinds, words, strict=True)]
    flagship = np.where(kinds == "hopeless", 0.0, 1.0)
    cheap = np.where(kinds == "easy", 1.0, 0.0)

    precall, unseen = fit_precall(
        prompts, ["x"] * 600, np.column_stack([flagship, cheap]), [draw_folds(prompts, count=5, seed=0)]
    )
    hopeless, worth, easy = precall.score(
        [f"{kind} case of the lamp" for kind in ("hopeless", "worth", "easy")], ["x"] * 3
    )

    assert worth[0] < -0.6  # the cheap model is expected far below the flagship
    assert abs(hopeless[0]) < 0.2
    assert abs(easy[0]) < 0.2
    assert hopeless[1] < 0.3 < 0.7 < easy[1]  # the flagship's own chance
    assert unseen.shape == (600, 2)


def test_scores_between_right_and_wrong_count_in_part() -> None:
    prompts = ["half right"] * 100 + ["quite wrong"] * 100
    scores = np.column_stack([np.ones(200), np.repeat([0.5, 0.0], 100)])

    precall, _ = fit_precall(prompts, ["x"] * 200, scores, [])

    half, wrong = precall.score(["half right", "quite wrong"], ["x"] * 2)
    assert half[0] == pytest.approx(-0.5, abs=0.1)
    assert wrong[0] == pytest.approx(-1.0, abs=0.1)
