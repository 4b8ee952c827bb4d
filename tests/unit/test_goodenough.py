"""What becomes a result: complete answers that fit; everything else escalates while somebody is left to ask."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Any

import pytest

from policies.fallback import Accept, Escalate, GiveUp, History
from policies.goodenough import Asked, Given, check_schema, judge
from waybill.contract import Candidate

SCHEMA = {
    "type": "object",
    "properties": {"total": {"type": "string"}},
    "required": ["total"],
    "additionalProperties": False,
}
LABELS = ("billing", "shipping")


def history(models: int = 2, **more: Any) -> History:
    route = [Candidate("p", f"m{i}", "interactive", "why", Decimal(1)) for i in range(models)]
    return History(route=route, index=0, used=1, max_attempts=5, **more)


@pytest.mark.parametrize(
    ("asked", "given", "data"),
    [
        (Asked(), Given("Some text.", "complete"), None),
        (Asked(SCHEMA), Given('{"total": "9.00"}', "complete"), {"total": "9.00"}),
        (Asked(labels=LABELS), Given(' "Billing". ', "complete"), "billing"),
        (Asked(labels=LABELS), Given("billing", "complete", math.log(0.95), is_local=True), "billing"),
    ],
)
def test_a_fitting_answer_is_accepted(asked: Asked, given: Given, data: object) -> None:
    decision = judge(asked, given, history())

    assert isinstance(decision, Accept)
    assert decision.data == data


@pytest.mark.parametrize(
    ("asked", "given", "problem"),
    [
        (Asked(), Given("  ", "complete"), "empty"),
        (Asked(), Given("cut off he", "truncated"), "cut at max_output_tokens"),
        (Asked(), Given("", "refused"), "refused"),
        (Asked(SCHEMA), Given("The total is 9.", "complete"), "is not JSON"),
        (Asked(SCHEMA), Given("[" * 50_000, "complete"), "is not JSON"),
        (Asked(SCHEMA), Given('{"sum": 1}', "complete"), "does not fit the schema"),
        (Asked(labels=LABELS), Given("returns", "complete"), "none of the labels"),
        (Asked(labels=LABELS), Given("billing", "complete", math.log(0.6), is_local=True), "unsure"),
    ],
)
def test_a_weak_answer_escalates_and_says_why(asked: Asked, given: Given, problem: str) -> None:
    decision = judge(asked, given, history())

    assert isinstance(decision, Escalate)
    assert decision.index == 1
    assert problem in decision.reason


def test_a_weak_answer_of_the_last_model_is_final() -> None:
    decision = judge(Asked(SCHEMA), Given("no", "complete"), history(models=1))

    assert isinstance(decision, GiveUp)
    assert decision.code == "weak_answer"


def test_an_unsure_local_label_stands_when_nobody_else_may_be_asked() -> None:
    decision = judge(Asked(labels=LABELS), Given("billing", "complete", -1.0, is_local=True), history(models=1))

    assert isinstance(decision, Accept)
    assert "unsure" in decision.reason


def test_a_quoted_answer_in_a_reason_is_short_and_one_line() -> None:
    decision = judge(Asked(SCHEMA), Given("x\n\x1b[31m" * 500, "complete"), history())

    assert isinstance(decision, Escalate)
    assert len(decision.reason) < 200
    assert "\n" not in decision.reason
    assert "\x1b" not in decision.reason


@pytest.mark.parametrize(
    "schema",
    [{"type": "objekt"}, {"$ref": "http://example.com/s.json"}, {"properties": {"a": {"$ref": "file:///etc/passwd"}}}],
)
def test_broken_or_outward_schemas_are_refused(schema: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"is not a JSON schema|only references inside"):
        check_schema(schema)
