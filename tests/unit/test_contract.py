"""The request survives storage unchanged, whatever text it holds, and a wrong one is refused by field."""

from __future__ import annotations

import json
import re
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from waybill.contract import FINAL_STATES, JOB_EDGES, Job, JobState, new_job_id

ROOT = Path(__file__).parent.parent.parent
texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=200)


@given(
    texts,
    st.none() | texts,
    st.dictionaries(st.text("abc", min_size=1, max_size=5), texts.map(lambda t: t[:50]), max_size=3),
)
def test_a_request_comes_back_from_storage_as_it_was(prompt: str, system: str | None, metadata: dict[str, str]) -> None:
    job = Job(intent="extraction", prompt=prompt, system=system, metadata=metadata)

    payload = job.payload()

    assert payload.isascii()
    assert "\x00" not in payload
    assert Job.from_payload(payload) == job


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"prompt": ""}, "needs either `prompt`"),
        ({"prompt": "x", "messages": [{"role": "user", "content": "y"}]}, "needs either `prompt`"),
        ({"messages": [{"role": "assistant", "content": "y"}]}, "must end with a user turn"),
        ({"prompt": "a\ud800b"}, "lone surrogate U+D800 at character 1"),
        ({"prompt": "x", "intent": "Extract it"}, "pattern"),
        ({"prompt": "x", "labels": ["a"]}, "2 to 100 different labels"),
        ({"prompt": "x", "labels": ["a", "a"]}, "2 to 100 different labels"),
        ({"prompt": "x", "labels": ["a", "b"], "json_schema": {}}, "not both"),
        ({"prompt": "x", "colour": "red"}, "Extra inputs are not permitted"),
        ({"prompt": "x", "deadline_s": float("nan")}, "deadline_s"),
        ({"prompt": "x", "max_output_tokens": -1}, "greater than or equal to 1"),
    ],
)
def test_a_wrong_request_is_refused_by_field(fields: dict[str, object], says: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(says)):
        Job(**({"intent": "extraction"} | fields))  # type: ignore[arg-type]


def test_a_schema_of_7000_levels_is_refused_without_recursing() -> None:
    schema: dict[str, object] = {}
    for _ in range(7000):
        schema = {"properties": {"a": schema}}

    with pytest.raises(ValidationError, match="nested deeper than 64 levels"):
        Job(intent="extraction", prompt="x", json_schema=schema)


@given(st.integers(0, 2**48 - 2), st.binary(min_size=10, max_size=10), st.binary(min_size=10, max_size=10))
def test_job_ids_are_version_7_and_sort_by_time(now_ms: int, one: bytes, other: bytes) -> None:
    earlier, later = new_job_id(now_ms, one), new_job_id(now_ms + 1, other)

    assert UUID(earlier).version == 7
    assert earlier < later


def test_final_states_are_left_only_by_hand_and_all_states_can_be_reached() -> None:
    by_hand = {edge for edge in JOB_EDGES if edge[0] in FINAL_STATES}
    assert by_hand == {(JobState.DEAD, JobState.QUEUED), (JobState.FAILED, JobState.QUEUED)}

    reached, new = {JobState.QUEUED}, {JobState.QUEUED}
    while new:
        new = {after for before, after in JOB_EDGES if before in new} - reached
        reached |= new
    assert reached == set(JobState)


def test_the_drawn_state_machine_has_exactly_the_edges_of_the_code() -> None:
    chart = (ROOT / "docs" / "state_machine.md").read_text()
    drawn = set(re.findall(r"^\s*(\w+) --> (\w+)", chart, flags=re.MULTILINE))

    states = {str(state.value) for state in JobState}
    assert {edge for edge in drawn if set(edge) <= states} == {(str(a.value), str(b.value)) for a, b in JOB_EDGES}


def test_the_migrations_let_through_exactly_the_edges_of_the_code() -> None:
    text = "".join(path.read_text() for path in sorted((ROOT / "migrations" / "versions").glob("*.py")))
    allowed = set(re.findall(r"^\s+\('(\w+)', '(\w+)'\),?$", text, flags=re.MULTILINE))

    assert allowed == {(str(a.value), str(b.value)) for a, b in JOB_EDGES}


def test_payloads_are_small() -> None:
    assert json.loads(Job(intent="extraction", prompt="x").payload()) == {"intent": "extraction", "prompt": "x"}
