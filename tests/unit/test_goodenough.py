"""What becomes a result: complete answers that fit; everything else escalates while somebody is left to ask."""

from __future__ import annotations

import json
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from policies.fallback import Accept, Escalate, GiveUp, History
from policies.goodenough import Asked, Given, LocalCheck, check_schema, fingerprint, judge
from policies.localgate import Gate
from waybill.contract import Candidate

SCHEMA = {
    "type": "object",
    "properties": {"total": {"type": "string"}},
    "required": ["total"],
    "additionalProperties": False,
}
LABELS = ("billing", "shipping")
RECEIPT = Asked(SCHEMA, source="Cafe Blau, 3.11.2026, total EUR 1.234,00")
OPEN = LocalCheck(
    Gate({"billing": -1.0, "shipping": -3.0}, threshold=0.8, records=400, precision=0.99, lower=0.97), "p", "m", 0.5
)


def history(models: int = 2, **more: Any) -> History:
    route = [Candidate("p", f"m{i}", "interactive", "why", Decimal(1)) for i in range(models)]
    return History(route=route, index=0, used=1, max_attempts=5, **more)


@pytest.mark.parametrize(
    ("asked", "given", "data"),
    [
        (Asked(), Given("Some text.", "complete"), None),
        (Asked(SCHEMA), Given('{"total": "9.00"}', "complete"), {"total": "9.00"}),
        (Asked(labels=LABELS), Given(' "Billing". ', "complete"), "billing"),
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
        (Asked(), Given("I'm sorry, but I can't help with that.", "complete"), "refuses in words"),
        (Asked(), Given("As an AI language model I do not have access to your files.", "complete"), "refuses in words"),
        (RECEIPT, Given('{"total": "9.50"}', "complete"), "/total is not in the source"),
        (RECEIPT, Given('{"total": "N/A"}', "complete"), "/total is only a placeholder"),
    ],
)
def test_a_weak_answer_escalates_and_says_why(asked: Asked, given: Given, problem: str) -> None:
    decision = judge(asked, given, history())

    assert isinstance(decision, Escalate)
    assert decision.index == 1
    assert not decision.has_passed
    assert problem in decision.reason


def test_a_weak_answer_of_the_last_model_is_final() -> None:
    decision = judge(Asked(SCHEMA), Given("no", "complete"), history(models=1))

    assert isinstance(decision, GiveUp)
    assert decision.code == "weak_answer"


@pytest.mark.parametrize("total", ["1234.00", "EUR 1,234", "1 234.00"])
def test_a_value_may_be_normalised(total: str) -> None:
    decision = judge(RECEIPT, Given(json.dumps({"total": total}), "complete"), history())

    assert isinstance(decision, Accept)


def test_a_value_that_no_model_finds_is_accepted_from_the_last_one_with_the_reason() -> None:
    decision = judge(RECEIPT, Given('{"total": "N/A"}', "complete"), history(models=1))

    assert isinstance(decision, Accept)
    assert "placeholder, and no other model may be asked" in decision.reason


def test_a_long_text_that_begins_with_an_apology_is_an_answer() -> None:
    letter = "I'm sorry that we cannot deliver before Monday. " + "The parts come by ship. " * 40

    assert isinstance(judge(Asked(), Given(letter, "complete"), history()), Accept)


def local(billing: float, shipping: float) -> Given:
    text = "billing" if billing > shipping else "shipping"
    return Given(text, "complete", is_local=True, label_logprobs={"billing": billing, "shipping": shipping})


def test_without_calibration_every_local_label_goes_on_and_is_kept_for_comparison() -> None:
    decision = judge(Asked(labels=LABELS), local(-0.1, -9.0), history(), LocalCheck(prompt="p", model="m"))

    assert isinstance(decision, Escalate)
    assert "in shadow (no labels yet)" in decision.reason
    assert decision.detail is not None
    assert decision.detail["local"]["logprobs"] == {"billing": -0.1, "shipping": -9.0}
    assert (decision.detail["local"]["prompt"], decision.detail["local"]["model"]) == ("p", "m")


def test_an_open_gate_keeps_the_calibrated_label() -> None:
    decision = judge(Asked(labels=LABELS), local(-1.0, -1.2), history(), OPEN)

    assert isinstance(decision, Accept)
    assert (decision.data, decision.text) == ("shipping", "shipping")
    assert "right 99.0%" in decision.reason


def test_an_open_gate_sends_on_what_it_is_unsure_of() -> None:
    unsure = judge(Asked(labels=LABELS), local(-1.0, -3.1), history(), OPEN)

    assert isinstance(unsure, Escalate)
    assert "unsure of 'billing'" in unsure.reason
    assert unsure.detail is None  # records are a sample of all jobs, not those it is unsure of


@pytest.mark.parametrize("shipping", [-1.2, -3.1], ids=["sure", "unsure"])
def test_an_audited_job_goes_past_every_local_model(shipping: float) -> None:
    route = [
        Candidate(provider, f"m{at}", "local", "why") for at, provider in enumerate(("local", "local", "anthropic"))
    ]
    drawn = replace(OPEN, draw=0.01)

    decision = judge(Asked(labels=LABELS), local(-1.0, shipping), replace(history(), route=route), drawn)
    only_local = judge(Asked(labels=LABELS), local(-1.0, -1.2), replace(history(), route=route[:2]), drawn)

    assert isinstance(decision, Escalate)
    assert decision.index == 2
    assert decision.detail is not None
    assert decision.detail["local"]["logprobs"] == {"billing": -1.0, "shipping": shipping}
    assert isinstance(only_local, Accept)


def test_a_local_label_stands_when_nobody_else_may_be_asked() -> None:
    decision = judge(Asked(labels=LABELS), local(-1.0, -1.1), history(models=1), LocalCheck())

    assert isinstance(decision, Accept)
    assert "no other model may be asked" in decision.reason


FIELDS = {"type": "object", "properties": {"shop": {"type": "string"}, "total": {"type": ["number", "null"]}}}
SURE = LocalCheck(Gate(threshold=-3.0, records=400, precision=0.99, lower=0.97), "p", "m", 0.5)


def copied(shop: float, total: float) -> Given:
    logprobs = {"shop": shop, "total": total}
    return Given('{"shop": "Cafe Blau", "total": 9.50}', "complete", is_local=True, value_logprobs=logprobs)


def test_copied_values_are_kept_for_comparison_without_their_text() -> None:
    decision = judge(
        Asked(FIELDS, source="Cafe Blau 9.50"), copied(-0.5, -0.25), history(), LocalCheck(prompt="p", model="m")
    )

    assert isinstance(decision, Escalate)
    assert "in shadow (no labels yet)" in decision.reason
    assert decision.detail is not None
    kept = decision.detail["local"]
    assert (kept["score"], kept["fields"], kept["prompt"], kept["model"]) == (-0.75, 2, "p", "m")
    assert kept["values"].keys() == {"shop", "total"}
    assert "Blau" not in json.dumps(kept) + decision.reason


@pytest.mark.parametrize(("total", "kind"), [(-2.0, Accept), (-2.6, Escalate)])
def test_the_sum_of_their_log_probabilities_decides(total: float, kind: type) -> None:
    decision = judge(Asked(FIELDS, source="Cafe Blau 9.50"), copied(-0.5, total), history(), SURE)

    assert isinstance(decision, kind)
    if isinstance(decision, Accept):
        assert decision.data == {"shop": "Cafe Blau", "total": 9.5}
        assert decision.text is None
    assert judge(Asked(FIELDS), copied(-0.5, total), history(models=1), LocalCheck()) == Accept(
        {"shop": "Cafe Blau", "total": 9.5},
        f"the sum of log-probabilities is {total - 0.5:.2f} (no labels yet), and no other model may be asked",
    )


def test_two_models_that_say_the_same_settle_it() -> None:
    compared = Asked(compare=True)

    first = judge(compared, Given("The answer: 14", "complete"), history(3))
    same = judge(compared, Given("the  answer: 14.", "complete", earlier=(fingerprint("The answer: 14"),)), history(3))
    other = judge(compared, Given("15", "complete", earlier=(fingerprint("14"),)), history(3))
    last = judge(compared, Given("15", "complete", earlier=(fingerprint("14"),)), history(1))

    assert isinstance(first, Escalate)
    assert first.detail == {"said": fingerprint("The answer: 14")}
    assert first.has_passed
    assert isinstance(same, Accept)
    assert "two models" in same.reason
    assert isinstance(other, Escalate)
    assert isinstance(last, Accept)
    assert "the models differ" in last.reason


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
