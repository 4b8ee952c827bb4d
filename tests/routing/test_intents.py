"""The intent classifier: learns, abstains, travels as bytes, and says what is wrong with labels."""

from __future__ import annotations

from typing import Any

import pytest

from policies.intents.classifier import BadModel, Classifier, Guess, fit_classifier
from policies.intents.measure import BadIntents, check_labels, measure_intents
from policies.intents.phrases import own_prompts


@pytest.fixture(scope="module")
def own() -> Classifier:
    pairs = own_prompts()
    return fit_classifier([prompt for prompt, _ in pairs], [intent for _, intent in pairs], with_own=False)


@pytest.mark.parametrize(
    ("prompt", "intent"),
    [
        (
            "Please summarise the minutes below in three sentences.\n\nThe board met on Monday. It approved the budget.",
            "summarization",
        ),
        (
            "Our new phone arrived broken and nobody answers.\nIs the sentiment of this message positive or negative?",
            "classification",
        ),
        ("Extract the invoice number and the amount as JSON.\nInvoice 77, Fjord Cables, amount 120.00", "extraction"),
        ("Paraphrase the following sentence: The ferry leaves at nine.", "rewrite"),
        ("Write a short story about a lighthouse keeper.", "generation"),
        ("Choose the correct option:\nA. copper\nB. oak\nC. wool", "reasoning"),
    ],
)
def test_plain_requests_are_understood(own: Classifier, prompt: str, intent: str) -> None:
    assert own.guess(prompt).likeliest == intent


def test_it_abstains_on_what_is_no_request(own: Classifier) -> None:
    assert own.guess("lorem ipsum dolor").intent is None


def test_any_prompt_gets_a_guess(own: Classifier) -> None:
    for prompt in ("", "\n\n", "?", "x" * 50_000):
        guess = own.guess(prompt)
        assert 0 < guess.confidence <= 1


def test_bytes_bring_the_same_guesses_back(own: Classifier) -> None:
    content = own.to_bytes()
    again = Classifier.from_bytes(content)

    for prompt, _ in own_prompts()[::7]:
        one, other = own.guess(prompt), again.guess(prompt)
        assert one.likeliest == other.likeliest
        assert one.confidence == pytest.approx(other.confidence, abs=0.01)
    assert content == own.to_bytes()
    assert len(content) < 1_000_000


@pytest.mark.parametrize("content", [b"", b"not a model", b"PK\x03\x04broken"])
def test_other_bytes_are_refused(content: bytes) -> None:
    with pytest.raises(BadModel, match="waybill policy train-intents"):
        Classifier.from_bytes(content)


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"prompt": ["a"], "label": ["x"]}, "missing columns: intent; columns in the file: prompt, label"),
        ({"prompt": ["a"] * 12, "intent": ["x"] * 12}, "one class only"),
        ({"prompt": ["a"] * 12, "intent": [None] * 12}, "no labels"),
        ({"prompt": [], "intent": []}, "no rows"),
        ({"prompt": ["a", None], "intent": ["x", "y"]}, "row 1: prompt is null"),
        ({"prompt": ["a", "b"], "intent": ["x", "y"]}, "too few"),
    ],
)
def test_unusable_labels_are_refused_in_one_line(columns: dict[str, list[Any]], says: str) -> None:
    with pytest.raises(BadIntents, match=says) as caught:
        check_labels(columns, name="a.parquet", to_learn=True)
    assert "\n" not in str(caught.value)


def test_measures_by_hand() -> None:
    guesses = [
        Guess("a", 0.9, "a"),
        Guess("a", 0.8, "a"),
        Guess("b", 0.7, None),
        Guess("b", 0.6, None),
        Guess("a", 0.5, None),
    ]

    report = measure_intents(["a", "a", "b", "a", "b"], guesses, ms_per_prompt=1.0)

    assert report.accuracy == pytest.approx(3 / 5)
    assert report.accuracy_at_80_coverage == pytest.approx(3 / 4)
    assert report.f1 == {"a": pytest.approx(2 / 3), "b": pytest.approx(1 / 2)}
    assert (report.coverage, report.accuracy_answered) == (pytest.approx(0.4), 1.0)
