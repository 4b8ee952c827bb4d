from __future__ import annotations

from contextlib import closing
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from producers.rowkeys import Occurrences, digest, idempotency_key, row_digest, work_digest
from waybill.contract import Job

WORK: dict[str, Any] = {"tenant": "t", "intent": "extraction", "system": None, "json_schema": None, "labels": ()}


def row(**changes: Any) -> str:
    values: dict[str, Any] = {"row_id": None, "local_only": False, "generation": ""} | changes
    return row_digest(values.pop("work", "w"), values.pop("prompt", "p"), **values)


@settings(deadline=None)  # the machine may be busy
@given(st.lists(st.sampled_from("abc"), max_size=30), st.integers(0, 30))
def test_equal_rows_have_keys_of_their_own_that_do_not_depend_on_the_chunks(rows: list[str], cut: int) -> None:
    digests = [digest(one) for one in rows]
    with closing(Occurrences()) as whole, closing(Occurrences()) as parts:
        numbers = whole.number(digests)

        assert numbers == parts.number(digests[:cut]) + parts.number(digests[cut:])
    keys = [idempotency_key(one, number) for one, number in zip(digests, numbers, strict=True)]
    assert len(set(keys)) == len(rows)


def test_a_row_keeps_its_key_when_others_come_before_it() -> None:
    a, b, c = digest("a"), digest("b"), digest("c")
    with closing(Occurrences()) as before, closing(Occurrences()) as after:
        first = dict(zip((a, b), before.number([a, b]), strict=True))
        second = dict(zip((c, b, a), after.number([c, b, a]), strict=True))

    assert first[a] == second[a]
    assert first[b] == second[b]


@pytest.mark.parametrize(
    "change",
    [
        {"work": "other"}, {"prompt": "other"}, {"row_id": "1"}, {"row_id": ""}, {"local_only": True},
        {"generation": "f.1"},
    ],
)  # fmt: skip
def test_what_changes_an_answer_changes_the_key(change: dict[str, Any]) -> None:
    assert row() == row()
    assert row(**change) != row()


@pytest.mark.parametrize(
    "change",
    [
        {"intent": "reasoning"}, {"system": "be short"}, {"context": "a contract"}, {"quality": 0.97}, {"json_schema": {"type": "object"}},
        {"labels": ("a", "b")},
        {"model": "claude-haiku-5-5"}, {"max_output_tokens": 10}, {"tenant": "u"},
    ],
)  # fmt: skip
def test_what_is_asked_is_part_of_the_work(change: dict[str, Any]) -> None:
    assert work_digest(WORK | change) != work_digest(WORK)


def test_how_fast_and_in_which_class_is_no_part_of_the_work() -> None:
    assert work_digest(WORK | {"deadline_s": 5.0, "priority": "hi"}) == work_digest(WORK)


def test_the_order_of_labels_counts_and_the_order_of_schema_keys_does_not() -> None:
    assert work_digest(WORK | {"labels": ("a", "b")}) != work_digest(WORK | {"labels": ("b", "a")})
    assert work_digest(WORK | {"json_schema": {"a": 1, "b": 2}}) == work_digest(
        WORK | {"json_schema": {"b": 2, "a": 1}}
    )


def test_a_key_is_one_that_the_contract_takes() -> None:
    Job(intent="x", prompt="p", idempotency_key=idempotency_key(row(), 10**9))
