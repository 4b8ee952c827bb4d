"""The local gate: calibration takes the labels' prior off; only labels open it; what drifts closes it."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.agreement import value_forms
from policies.fallback import Escalate, History
from policies.goodenough import Asked, Given, LocalCheck, fingerprint, judge
from policies.localgate import SHUT, Record, Scored, calibrated, clopper_pearson_lower, work_out, work_out_scored
from policies.policyfile import parse
from waybill.contract import Candidate
from workers.gates import Gates
from workers.heads import Heads
from workers.learning import compare

ROUTE = [Candidate("local", "small", "local", "why"), Candidate("anthropic", "large", "interactive", "why")]

POLICY = """
version = "1"
flagship = "claude-opus-5-5"
quality = 0.95
[intents.extraction]
chain = ["claude-opus-5-5"]
reason = "r"
"""


def records(count: int, *, right: float, bias: float = 0.0, seed: int = 1, knows: bool = True) -> list[Record]:
    """Two balanced labels; the model is right with chance `right`, the surer the likelier if it `knows`, and prefers
    `a` by `bias`."""
    rng = random.Random(seed)
    found = []
    for number in range(count):
        paid = "ab"[number % 2]
        is_right = rng.random() < right
        said = paid if is_right else "ab"[1 - number % 2]
        margin = rng.uniform(1, 6) if is_right or not knows else rng.uniform(0, 1.5)
        found.append(Record({"a": bias + margin * (said == "a"), "b": margin * (said == "b")}, paid))
    return found


def test_nothing_is_kept_without_labels() -> None:
    assert work_out([], target=0.99) == SHUT
    assert not work_out(records(20, right=1.0), target=0.99).is_open


def test_enough_right_labels_open_it() -> None:
    gate = work_out(records(400, right=0.9), target=0.99)

    assert gate.is_open
    assert 0.2 <= gate.kept < 0.95
    assert gate.lower >= 1 - 0.01 / 0.2


def test_a_model_that_is_as_sure_when_it_is_wrong_never_opens_it() -> None:
    assert not any(work_out(records(400, right=0.9, seed=seed, knows=False), target=0.99).is_open for seed in range(5))


def test_calibration_takes_a_preference_for_a_label_off() -> None:
    gate = work_out(records(400, right=1.0, bias=9.0), target=0.99)

    assert gate.is_open
    assert gate.read({"a": 9.0, "b": 3.0})[0] == "b"
    assert calibrated({"a": 9.0, "b": 3.0}, {})[0] == "a"


def test_drift_closes_it() -> None:
    drifted = records(240, right=0.9) + records(160, right=0.4, seed=2)
    wrong_and_sure = [Record(each.logprobs, "ab"[each.paid == "a"]) for each in records(160, right=1.0)]

    assert work_out(records(400, right=0.95), target=0.99).is_open
    assert not work_out(records(240, right=0.95) + wrong_and_sure, target=0.99).is_open
    assert work_out(drifted, target=0.99).kept < work_out(records(400, right=0.9), target=0.99).kept


def test_the_promise_holds_on_jobs_not_seen() -> None:
    """Over 40 draws: what an open gate keeps costs no more than a hundredth of all answers, in nine of ten draws."""
    broken = opened = 0
    for seed in range(40):
        gate = work_out(records(400, right=0.92, seed=seed), target=0.99)
        if gate.threshold is None:
            continue
        opened += 1
        fresh = records(2000, right=0.92, seed=1000 + seed)
        read = [(*gate.read(record.logprobs), record.paid) for record in fresh]
        lost = sum(label != paid for label, share, paid in read if share >= gate.threshold) / len(fresh)
        broken += lost > 0.01
    assert opened >= 30
    assert broken <= opened * 0.1


def test_answers_that_are_equally_sure_are_kept_or_sent_on_together() -> None:
    certain = [Scored(1.0, number < 300) for number in range(400)]

    assert not work_out_scored(certain, target=0.9).is_open
    gate = work_out_scored(certain[:300], target=0.9)
    assert (gate.kept, gate.threshold) == (1.0, 1.0)


def test_a_gate_that_opened_stays_open_while_nothing_drifts() -> None:
    """The records of an open gate are those that the checks keep of its jobs (judge), the latest 400 of them."""
    shadow = records(400, right=0.97)
    window, gate, draws = list(shadow), work_out(shadow, target=0.95), random.Random(3)
    for seed in range(20):
        for fresh in records(400, right=0.97, seed=100 + seed):
            label, _ = gate.read(fresh.logprobs)
            decision = judge(
                Asked(labels=("a", "b")), Given(label, "complete", is_local=True, label_logprobs=fresh.logprobs),
                History(route=ROUTE, index=0, used=1, max_attempts=5), LocalCheck(gate, draw=draws.random()),
            )  # fmt: skip
            if isinstance(decision, Escalate) and decision.detail is not None:
                window = [*window[1:], fresh]
        gate = work_out(window, target=0.95)
        assert gate.is_open, f"closed after {400 * (seed + 1)} jobs: {gate.describe()}"
    assert sum(each in shadow for each in window) < 100


@settings(deadline=None)  # importing scipy counts against the first example
@given(of=st.integers(1, 300), share=st.floats(0, 1))
def test_the_bound_is_that_of_clopper_and_pearson(of: int, share: float) -> None:
    from scipy.stats import beta

    right = round(of * share)

    expected = 0.0 if right == 0 else beta.ppf(0.1, right, of - right + 1)
    assert clopper_pearson_lower(right, of, 0.9) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("paid", "share"),
    [
        ({"shop": "cafe blau", "day": "2018-12-25", "total": "9.50", "note": None}, 1.0),
        ({"shop": "Cafe Blau", "day": "25 Dec 2018", "total": 9.5}, 1.0),
        ({"shop": "Cafe Blau", "day": "2018-12-25", "total": 9.05, "note": "n/a"}, 0.75),
        ({"shop": "Bar Blau", "day": "2018-12-25", "total": 9.5, "note": "paid"}, 0.5),
        ("nothing", 0.25),
    ],
)
def test_copied_values_are_compared_with_the_paid_ones_one_by_one(paid: object, share: float) -> None:
    said = value_forms({"shop": "Cafe Blau", "day": "25/12/2018", "total": 9.50, "note": None})
    local = {"score": -1.5, "values": {name: fingerprint(form) for name, form in said.items()}, "fields": 4}

    score, record = compare(local, paid)

    assert score == pytest.approx(share)
    assert record["right"] == (share == 1.0)


def test_the_gate_of_copied_values_opens_by_their_log_probability() -> None:
    """As rows of grades.AUDITS, of one prompt and model."""
    rng = random.Random(5)
    policy = parse(POLICY, "p.toml")
    gates = Gates(policy, Heads())
    rows = []
    for _ in range(400):
        score = -rng.expovariate(0.3)
        right = rng.random() < (0.999 if score > -3 else 0.3)
        rows.append({"intent": "extraction", "detail": {"score": score, "right": right, "prompt": "p", "model": "m"}})

    gates.update(rows)

    gate = gates.standing["extraction", "p", "m"]
    assert gate.threshold is not None
    assert -4 < gate.threshold < 0
    gates.update([{**row, "detail": {**row["detail"], "right": False}} for row in rows[:100]] + rows[100:])
    assert not gates.standing["extraction", "p", "m"].is_open
