from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from producers.feeder import Feeder, Patience, Work
from producers.inputs import JsonLines, Row
from producers.rowkeys import Occurrences
from producers.template import parse
from producers.window import Window
from waybill.client import AsyncClient
from waybill.contract import Job
from waybill.errors import LedgerUnavailable

CLIENT = AsyncClient("postgresql://u@127.0.0.1:9/none", "redis://127.0.0.1:9/0")


def entries(*rows: Row, **changes: Any) -> list[Job | str]:
    """The job of each row, or its problem."""
    values: dict[str, Any] = {
        "template": parse("Read {text}", "p"), "job": {"intent": "extraction", "system": "s"}, "digest": "d",
        "generation": "", "run_id": "r", "filled": None, "id_column": None, "local_only_column": None,
        "max_prompt_bytes": 100, "retry_failed": False,
    }  # fmt: skip
    feeder = Feeder(
        CLIENT, Work(**(values | changes)), JsonLines(Path("x")), None, Window(), Patience(list[str | None]().append)
    )
    return [entry.job or str(entry.problem) for entry in feeder._entries(list(rows), Occurrences())]


def row(number: int = 0, **fields: Any) -> Row:
    return Row(number, f"line {number + 1}", fields)


def test_a_bad_row_is_a_problem_with_its_place_and_the_others_are_jobs() -> None:
    found = entries(
        row(0, text="good"), row(1, text=" "), row(2, other=1), row(3, text="x" * 100), row(4, text="lone \ud800"),
        Row(5, "line 6", problem="is not JSON"), row(6, text="nul \0"),
    )  # fmt: skip

    assert [one.prompt for one in found if isinstance(one, Job)] == ["Read good", "Read nul \0"]
    problems = [one for one in found if isinstance(one, str)]
    assert problems[0] == "line 2: `text` is empty"
    assert problems[1] == "line 3: has no `text`"
    assert problems[2].startswith("line 4: the prompt has 106 bytes, the limit is 100 (WAYBILL_MAX_PAYLOAD_BYTES)")
    assert "lone surrogate U+D800" in problems[3]
    assert problems[4] == "line 6: is not JSON"


def test_equal_rows_are_jobs_of_their_own_and_the_same_rows_have_the_same_keys() -> None:
    rows = [row(0, text="a"), row(1, text="b"), row(2, text="a")]

    keys = [job.idempotency_key for job in entries(*rows) if isinstance(job, Job)]

    assert len(set(keys)) == 3
    assert keys == [job.idempotency_key for job in entries(*rows) if isinstance(job, Job)]
    assert set(keys).isdisjoint(job.idempotency_key for job in entries(*rows, generation="f.1") if isinstance(job, Job))


@pytest.mark.parametrize(
    "value, expected", [(True, True), ("Yes", True), ("1", True), (1, True), (False, False), ("", False), (None, False)]
)
def test_a_row_says_whether_it_must_stay_local(value: object, expected: bool) -> None:
    (job,) = entries(row(text="a", private=value), local_only_column="private")

    assert isinstance(job, Job)
    assert job.local_only is expected


def test_a_wanted_quality_is_for_rows_that_may_leave() -> None:
    job = {"intent": "extraction", "quality": 0.97}
    found = entries(
        row(0, text="a", private=True), row(1, text="b", private=False), local_only_column="private", job=job
    )

    assert [(one.local_only, one.quality) for one in found if isinstance(one, Job)] == [(True, None), (False, 0.97)]


def test_an_unclear_wish_for_privacy_is_never_guessed() -> None:
    (problem,) = entries(row(text="a", private="perhaps"), local_only_column="private")

    assert problem == "line 1: `private` is 'perhaps'; write true or false"


def test_the_row_and_its_id_travel_with_the_job() -> None:
    (job,) = entries(row(text="a", nr=17), id_column="nr")

    assert isinstance(job, Job)
    assert job.metadata == {"row": "line 1", "id": "17", "prompt_version": job.metadata["prompt_version"]}


async def test_an_outage_is_waited_out_and_said() -> None:
    said: list[str | None] = []
    waits: list[float] = []
    outages = [LedgerUnavailable("gone")] * 7

    async def ask() -> int:
        if outages:
            raise outages.pop()
        return 42

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    assert await Patience(said.append, sleep)(ask) == 42
    assert said == ["Postgres does not answer, waiting for it"] * 7 + [None]
    assert waits == [0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
