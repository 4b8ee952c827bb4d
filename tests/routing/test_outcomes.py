"""Outcomes that cannot be used are refused in one line that names the thing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from policies.evaluate.folds import draw_folds, split_rows
from policies.evaluate.outcomes import NO_INTENT, BadOutcomes, check_trainable, pair_outcomes

Columns = dict[str, list[Any]]


def _pair(columns: Columns, **changes: Any) -> Any:
    return pair_outcomes(columns, **{"flagship": "big", "pool": ["small", "tiny"], "name": "a.parquet", **changes})


def test_items_are_paired_with_the_flagship_first(invented: Callable[..., Columns]) -> None:
    outcomes = _pair(invented(50))

    assert outcomes.models == ("big", "small", "tiny")
    assert outcomes.scores.shape == (50, 3)
    assert outcomes.relative().shape == (50, 2)


def test_an_item_which_a_model_lacks_is_left_out_and_counted(invented: Callable[..., Columns]) -> None:
    columns = invented(50)
    columns["score"][1] = None

    outcomes = _pair(columns)

    assert (len(outcomes), outcomes.left_out) == (49, 1)


def test_hidden_tags_are_gone(invented: Callable[..., Columns]) -> None:
    assert set(_pair(invented(20), tagged=False).intents) == {NO_INTENT}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"flagship": "huge"}, "flagship huge has no outcomes; models in the file: big, small, tiny"),
        ({"pool": ["small", "absent"]}, "model absent has no outcomes"),
        ({"pool": []}, "--pool is empty"),
        ({"pool": ["big"]}, "--pool names the flagship big"),
    ],
)
def test_a_missing_model_is_named(invented: Callable[..., Columns], change: dict[str, Any], says: str) -> None:
    with pytest.raises(BadOutcomes, match=says):
        _pair(invented(20), **change)


def test_an_unknown_column_is_named_with_the_missing_one(invented: Callable[..., Columns]) -> None:
    columns = invented(5)
    columns["grade"] = columns.pop("score")

    with pytest.raises(BadOutcomes, match="missing columns: score; unknown columns: grade"):
        _pair(columns)


@pytest.mark.parametrize(("column", "value", "says"), [("score", 7.0, "score 7"), ("cost_usd", -1.0, "cost_usd -1")])
def test_a_value_out_of_range_is_named(invented: Callable[..., Columns], column: str, value: float, says: str) -> None:
    columns = invented(5)
    columns[column][0] = value

    with pytest.raises(BadOutcomes, match=f"item i0, model big: {says}"):
        _pair(columns)


def test_two_outcomes_of_one_model_are_refused(invented: Callable[..., Columns]) -> None:
    columns = {name: values + values[:1] for name, values in invented(5).items()}
    columns["score"][-1] = 1 - columns["score"][0]

    with pytest.raises(BadOutcomes, match="item i0 has two outcomes of big"):
        _pair(columns)


def test_the_same_row_twice_counts_once(invented: Callable[..., Columns]) -> None:
    columns = {name: values + values[:7] for name, values in invented(5).items()}

    assert len(_pair(columns)) == 5


def test_a_score_in_words_is_named(invented: Callable[..., Columns]) -> None:
    columns = invented(5)
    columns["score"][2] = "good"

    with pytest.raises(BadOutcomes, match="item i0, model tiny: score 'good' is not a number"):
        _pair(columns)


def test_a_score_that_is_no_number_says_how_a_missing_label_is_written(invented: Callable[..., Columns]) -> None:
    columns = invented(5)
    columns["score"][0] = float("nan")

    with pytest.raises(BadOutcomes, match=r"score nan is outside 0\.\.1; write null where an answer was not judged"):
        _pair(columns)


def test_tags_are_needed_only_where_they_are_used(invented: Callable[..., Columns]) -> None:
    columns = invented(20)
    del columns["intent"]

    with pytest.raises(BadOutcomes, match="missing columns: intent; add --no-intent to do without"):
        _pair(columns)
    assert set(_pair(columns, tagged=False).intents) == {NO_INTENT}


def test_no_labels_are_said_to_be_none(invented: Callable[..., Columns]) -> None:
    columns = invented(5)
    columns["score"] = [None] * len(columns["score"])

    with pytest.raises(BadOutcomes, match="flagship big has no labels"):
        _pair(columns)


def test_one_class_only_cannot_be_learned_from(invented: Callable[..., Columns]) -> None:
    columns = invented(50)
    columns["score"] = [1.0] * len(columns["score"])

    with pytest.raises(BadOutcomes, match=r"every score is 1 \(one class only\)"):
        check_trainable(_pair(columns), "a.parquet")


def test_equal_prompts_never_stand_on_both_sides() -> None:
    prompts = [f"p{number % 30}" for number in range(100)]

    first, second = split_rows(prompts, share=0.5, seed=3)
    folds = draw_folds(prompts, count=5, seed=3)

    assert not {prompts[row] for row in first} & {prompts[row] for row in second}
    assert len(first) + len(second) == 100
    assert all(len({int(folds[row]) for row in range(100) if prompts[row] == p}) == 1 for p in set(prompts))
