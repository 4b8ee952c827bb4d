"""The answer book: which entry wins, on any text, and that a bad book says what is wrong with it."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.answers import Answer, AnswerBook, BookError, read_book


def book(*rows: tuple[str, str, str]) -> AnswerBook:
    return AnswerBook((match, model, Answer(text)) for match, model, text in rows)


def found(answers: AnswerBook, text: str, model: str = "m") -> str | None:
    answer = answers.find(text, model)
    return None if answer is None else answer.text


def test_the_longest_match_wins_even_over_the_very_model() -> None:
    answers = book(("receipt 17", "m", "short"), ("receipt 17, page 2", "*", "long"))

    assert found(answers, "see receipt 17, page 2 please") == "long"
    assert found(answers, "see receipt 17 please") == "short"


def test_the_very_model_wins_over_any_model() -> None:
    answers = book(("hello world", "*", "any"), ("hello world", "m", "mine"))

    assert found(answers, "hello world", "m") == "mine"
    assert found(answers, "hello world", "other") == "any"


def test_a_longer_match_for_another_model_does_not_hide_a_shorter_one() -> None:
    answers = book(("alpha beta gamma", "other", "theirs"), ("alpha beta", "*", "ours"))

    assert found(answers, "alpha beta gamma", "m") == "ours"


def test_an_empty_match_is_the_answer_to_everything_else() -> None:
    assert found(book(("", "*", "default"), ("x marks", "*", "found")), "nothing here") == "default"


def test_a_match_counts_inside_words() -> None:
    assert found(book(("INV-0042", "*", "yes")), "xINV-00423") == "yes"


# A small alphabet makes texts that contain each other; the space makes words.
texts = st.text("ab ", max_size=12)


@given(rows=st.lists(st.tuples(texts, st.sampled_from(["m", "n", "*"])), max_size=40), text=st.text("ab ", max_size=40))
def test_the_index_finds_what_a_search_through_all_entries_finds(rows: list[tuple[str, str]], text: str) -> None:
    entries = [(match, model, f"{number}") for number, (match, model) in enumerate(rows)]
    last = {(match, model): answer for match, model, answer in entries}
    fitting = {
        answer: (len(match), model == "m")
        for (match, model), answer in last.items()
        if match in text and model in ("m", "*")
    }

    answer = found(book(*entries), text)

    assert (answer is None) == (not fitting)
    assert answer is None or fitting[answer] == max(fitting.values())


def test_ten_thousand_entries_are_searched_quickly() -> None:
    answers = book(*((f"receipt-{number:05d}", "*", str(number)) for number in range(10_000)))
    text = "Company: ACME\nTotal: 9.90\n" * 40 + "receipt-04711"

    started = time.process_time()
    for _ in range(50):
        assert found(answers, text) == "4711"
    each_s = (time.process_time() - started) / 50

    # A search through all of them takes about 8 ms on this size; the index well under one.
    assert each_s < 0.004


def test_a_jsonl_book_keeps_every_column(tmp_path: Path) -> None:
    path = tmp_path / "book.jsonl"
    row = {
        "match": "q\u2028x", "model": "m", "answer": {"a": 1}, "output_tokens": 9, "thinking_tokens": 4,
        "stop_reason": "length", "latency_ms": 250,
    }  # fmt: skip
    path.write_text(json.dumps(row, ensure_ascii=False) + "\n\n", "utf-8")

    answer = read_book(path).find("q\u2028x", "m")

    assert answer == Answer('{"a": 1}', output_tokens=9, stop="max_tokens", thinking_tokens=4, latency_s=0.25)


def test_a_parquet_book_reads_like_a_jsonl_one(tmp_path: Path) -> None:
    path = tmp_path / "book.parquet"
    columns = {"match": ["one two", "three"], "model": ["m", None], "answer": ["1", "3"], "output_tokens": [5, None]}
    pq.write_table(pa.table(columns), path)

    answers = read_book(path)

    assert answers.find("one two", "m") == Answer("1", output_tokens=5)
    assert answers.find("three", "anything") == Answer("3")


@pytest.mark.parametrize(
    "line, complaint",
    [
        ("not json", "line 1 is not JSON"),
        ("[1]", "line 1: is not an object"),
        ('{"model": "m", "answer": "x"}', "has no 'match'"),
        ('{"match": "m"}', "has no 'answer'"),
        ('{"match": 5, "answer": "x"}', "match is 5"),
        ('{"match": "m", "answer": "x", "stop_reason": "tired"}', "stop_reason is 'tired'"),
        ('{"match": "m", "answer": "x", "output_tokens": -1}', "output_tokens is -1"),
        ('{"match": "m", "answer": "x", "latency_ms": "long"}', "latency_ms is 'long'"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, line: str, complaint: str) -> None:
    path = tmp_path / "book.jsonl"
    path.write_text(line, "utf-8")

    with pytest.raises(BookError, match=complaint):
        read_book(path)
