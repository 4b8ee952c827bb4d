"""S25: a JSON schema fetches nothing, does not recurse for ever, and no pattern of it takes long on any text."""

from __future__ import annotations

import json
import re
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.fallback import GiveUp, History
from policies.goodenough import Asked, Given, check_schema, judge
from policies.patterns import MOST_TEXT, problem, takes_long_texts
from tests.security.conftest import Api
from waybill.contract import Candidate

SLOW = (
    "(a+)+$", "(a*)*$", "(a|a)*$", "(a|aa)+$", "(.*)*x", "((a+)b?)+$", "(a+b?)*c", r"(\w+\s?)+$", "(x+x+)+y", r"(a)\1+",
    "(?:(?:a+)+)+$", "(a{1,9}){1,99}$", "a*a*a*a*b", "(?=(a+)+$)", "(.+)+", "([a-z]+.)*$", "(a?){40}a{40}", "x" * 600, "(",
)  # fmt: skip
FINE = (
    r"^\d{4}-\d{2}-\d{2}$", r"^[A-Z]{3}$", "^(cash|card|transfer)$", r"^[a-z0-9]+(\.[a-z0-9]+)*$", r"^\d{1,3}(,\d{3})*$",
    r"^[^@\s]+@[^@\s]+$", "^https?://", r"^(\d{2}:){5}\d{2}$", "^.*$", r"^\s*\S", "^(ab|cd)*$", r"^\+?[0-9 ]{5,20}$",
)  # fmt: skip


@pytest.mark.parametrize("pattern", SLOW)
def test_s25_patterns_that_may_explode_are_refused(pattern: str) -> None:
    assert problem(pattern) is not None


@pytest.mark.parametrize("pattern", FINE)
def test_s25_patterns_that_people_write_are_taken(pattern: str) -> None:
    assert problem(pattern) is None


PIECES = st.recursive(
    st.sampled_from(["a", "b", "[ab]", ".", r"\w", r"\d"]),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map("".join),
        inner.map(lambda p: f"({p})*"),
        inner.map(lambda p: f"({p})+"),
        inner.map(lambda p: f"({p})?"),
        inner.map(lambda p: f"({p}){{1,9}}"),
        st.tuples(inner, inner).map(lambda p: f"({p[0]}|{p[1]})"),
    ),
    max_leaves=6,
)


@given(PIECES, st.sampled_from(["a", "b", "ab", "aab", "1"]))
def test_s25_what_is_taken_is_quick_on_texts_made_to_hurt(pattern: str, unit: str) -> None:
    pattern = f"^{pattern}$"
    if problem(pattern) is not None:
        return
    length = 20_000 if takes_long_texts(pattern) else MOST_TEXT
    text = unit * (length // len(unit)) + "!"
    began = time.process_time()

    re.search(pattern, text)

    assert time.process_time() - began < 2


BAD: tuple[dict[str, Any], ...] = (
    {"$ref": "http://canary.example/s.json"},
    {"properties": {"a": {"$ref": "file:///etc/passwd"}}},
    {"$dynamicRef": "https://canary.example/x"},
    {"type": "string", "pattern": "(a+)+$"},
    {"patternProperties": {"(a|a)*$": {}}},
    {"type": "objekt"},
)


def test_s25_bad_schemas_are_refused_when_a_job_is_submitted(api: Api) -> None:
    key = api.key()
    for schema in BAD:
        job = api.post("/v1/jobs", key, json={"intent": "extraction", "prompt": "x", "json_schema": schema})
        chat = api.post(
            "/v1/chat/completions",
            key,
            json={
                "model": "gpt-6-luna",
                "messages": [{"role": "user", "content": "x"}],
                "response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}},
            },
        )

        assert (job.status_code, job.json()["error"]["param"]) == (400, "json_schema")
        assert (chat.status_code, chat.json()["error"]["type"]) == (400, "invalid_request_error")
    assert api.sql("select count(*) as n from jobs") == [{"n": 0}]


def judged(schema: dict[str, Any], answer: object) -> object:
    lane = Candidate("anthropic", "claude-haiku-5-5", "interactive", "test")
    history = History(route=(lane,), index=0, used=1, max_attempts=5)
    return judge(Asked(schema, ()), Given(json.dumps(answer), "complete", None, is_local=False), history)


@pytest.mark.parametrize("schema", BAD[:5])
def test_s25_a_worker_that_gets_one_all_the_same_fetches_nothing_and_ends_the_job(
    schema: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("something was fetched")

    monkeypatch.setattr("urllib.request.urlopen", never)
    text = "a" * 60 + "!"
    began = time.process_time()

    decision = judged(schema, {"a": text, text: 1} if "properties" in schema or "patternProperties" in schema else text)

    assert isinstance(decision, GiveUp)
    assert time.process_time() - began < 2


@pytest.mark.parametrize(
    "schema", [{"$ref": "#"}, {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}]
)
def test_s25_a_schema_that_refers_to_itself_ends(schema: dict[str, Any]) -> None:
    check_schema(schema)
    began = time.process_time()

    judged(schema, {"a": 1})

    assert time.process_time() - began < 5
