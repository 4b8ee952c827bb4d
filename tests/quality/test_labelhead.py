"""The label head: it learns, it knows what it would have said of an item it had not seen, and it keeps no text."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.labelhead import BadHead, Head, fit_head
from policies.localgate import calibrated, work_out_scored

TOPICS = {
    "billing": "invoice amount charged refund payment card overdue bill",
    "delivery": "parcel courier late tracking address delivered lost shipment",
    "account": "password login email locked profile username reset device",
}
NOISE = "the my please since yesterday hello could you help again still about"


def letters(count: int, seed: int, *, noise: float = 0.5) -> tuple[list[str], list[str]]:
    """Texts of some words of their topic among others, all different."""
    rng = random.Random(seed)
    texts, labels = [], []
    for number in range(count):
        label = rng.choice(list(TOPICS))
        words = [rng.choice((NOISE if rng.random() < noise else TOPICS[label]).split()) for _ in range(9)]
        texts.append(" ".join([*words, f"no {number}"]))
        labels.append(label)
    return texts, labels


def fitted(count: int = 200, seed: int = 1) -> Head:
    texts, labels = letters(count, seed)
    return fit_head(texts, labels, [True] * count)


def best(logprobs: dict[str, float]) -> str:
    return max(logprobs, key=logprobs.__getitem__)


def test_it_learns_what_the_paid_model_says() -> None:
    head = fitted()
    texts, labels = letters(200, seed=2)

    assert np.mean([best(head.logprobs(text)) == label for text, label in zip(texts, labels, strict=True)]) > 0.95


def test_its_records_say_what_it_would_have_said_without_the_item() -> None:
    texts, labels = letters(80, seed=3, noise=0.8)
    head = fit_head(texts, labels, [True] * 80)

    for at in (0, 17, 54):
        others = [i for i in range(80) if i != at]
        without = fit_head([texts[i] for i in others], [labels[i] for i in others], [True] * 79)
        # At the same temperature, so that only what was seen makes a difference.
        raised = {
            label: value * head.temperature / without.temperature
            for label, value in without.logprobs(texts[at]).items()
        }
        said, share = calibrated(raised, {})
        assert head.records()[at].right == (said == labels[at])
        assert head.records()[at].score == pytest.approx(share, abs=0.06)


def test_labels_that_mean_nothing_do_not_open_its_gate() -> None:
    texts, labels = letters(500, seed=4)
    random.Random(1).shuffle(labels)

    head = fit_head(texts, labels, [True] * 500)

    assert np.mean([each.right for each in head.records()]) < 0.45
    assert not work_out_scored(head.records(), target=0.95).is_open


def test_labels_that_it_learns_open_its_gate_and_few_do_not() -> None:
    assert work_out_scored(fitted(500).records(), target=0.97).is_open
    assert not work_out_scored(fitted(60).records(), target=0.97).is_open


def test_only_what_stands_for_all_jobs_is_a_record() -> None:
    texts, labels = letters(120, seed=5)

    head = fit_head(texts, labels, [number % 3 == 0 for number in range(120)])

    assert len(head.records()) == 40
    assert [head.labels[at] for at in head.paid] == labels[::3]


def test_it_is_kept_as_bytes_without_any_text() -> None:
    head = fitted(150)
    content = head.to_bytes()
    again = Head.from_bytes(content)
    text = "my parcel is late, where is the courier"

    assert again.logprobs(text) == pytest.approx(head.logprobs(text), abs=0.02)
    assert again.to_bytes() == content == fitted(150).to_bytes()
    assert not any(word.encode() in content for word in TOPICS["delivery"].split() if word != "delivery")


@settings(max_examples=30, deadline=None)
@given(
    labels=st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=8), min_size=2, max_size=5, unique=True),
    text=st.text(max_size=40),
)
def test_any_label_and_any_text_will_do(labels: list[str], text: str) -> None:
    texts = [f"{'abc' * (number % len(labels))} {number}" for number in range(20)]
    head = fit_head(texts, [labels[number % len(labels)] for number in range(20)], [True] * 20)

    again = Head.from_bytes(head.to_bytes())

    assert set(again.labels) == set(labels)
    assert sum(np.exp(value) for value in again.logprobs(text).values()) == pytest.approx(1.0)


def test_what_cannot_be_fitted_or_read_is_refused() -> None:
    with pytest.raises(ValueError, match="all of 2 items have the same label"):
        fit_head(["a", "b"], ["x", "x"], [True, True])
    with pytest.raises(BadHead):
        Head.from_bytes(b"PK\x03\x04 no head")
