"""What counts as the same question: everything that can change an answer, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from policies.policyfile import parse
from policies.reuse import WAIT_BATCH_S, WAIT_INTERACTIVE_S, answer_key, outcome_key, wait_s
from tests.fleet import ROOT
from waybill import Job
from waybill.question import NOT_ASKED, question, stable_part

POLICY = parse((ROOT / "policies" / "default.toml").read_text(), "default.toml")

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
names = st.from_regex(r"[a-z][a-z0-9]{0,5}", fullmatch=True)
# What a caller can set, each with values that may meet one another often.
ASKED: dict[str, st.SearchStrategy[Any]] = {
    "intent": names,
    "prompt": texts,
    "system": st.none() | texts,
    "context": st.none() | texts,
    "json_schema": st.none() | st.dictionaries(names, st.sampled_from([1, {"type": "string"}]), max_size=2),
    "model": st.none() | names,
    "local_only": st.booleans(),
    "max_output_tokens": st.none() | st.integers(1, 9),
    "tenant": st.sampled_from(["a", "b"]),
}
APART: dict[str, st.SearchStrategy[Any]] = {
    "priority": st.sampled_from(["hi", "lo"]),
    "deadline_s": st.none() | st.floats(1, 100),
    "latency": st.sampled_from([None, "interactive", "day"]),
    "idempotency_key": st.none() | names,
    "stream": st.booleans(),
    "metadata": st.dictionaries(names, names, max_size=1),
    "key_id": st.none() | names,
}


def test_every_field_of_a_job_is_either_asked_or_named_as_not() -> None:
    # Fields made here by hand, because a job takes only one of each pair.
    assert set(ASKED) | set(APART) | {"messages", "labels", "reuse", "wire", "quality"} == set(Job.model_fields)
    assert set(APART) | {"reuse"} == NOT_ASKED


@given(st.fixed_dictionaries(ASKED), st.fixed_dictionaries(ASKED), st.fixed_dictionaries(APART))
def test_two_jobs_have_the_same_question_exactly_when_all_that_is_asked_is_the_same(
    one: dict[str, Any], other: dict[str, Any], apart: dict[str, Any]
) -> None:
    assert question(Job(**one)) == question(Job(**one, **apart))
    assert (question(Job(**one)) == question(Job(**other))) == (Job(**one) == Job(**other))


def test_the_quality_that_a_job_states_is_part_of_the_question() -> None:
    asked = {question(Job(prompt="x", quality=quality)) for quality in (None, 0.9, 0.97, 1)}

    assert len(asked) == 4


@given(st.fixed_dictionaries(ASKED), st.data())
def test_changing_any_single_field_changes_the_question(fields: dict[str, Any], data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(ASKED)))
    changed = {**fields, name: data.draw(ASKED[name].filter(lambda value: value != fields[name]))}

    assert question(Job(**fields)) != question(Job(**changed))


@given(st.fixed_dictionaries(ASKED))
def test_tenants_share_neither_answers_nor_prefixes(fields: dict[str, Any]) -> None:
    mine, theirs = Job(**{**fields, "tenant": "a"}), Job(**{**fields, "tenant": "b"})

    assert question(mine) != question(theirs)
    if stable_part(mine) is not None:
        assert stable_part(mine) != stable_part(theirs)


def test_a_request_of_a_dialect_is_asked_whole_but_for_how_it_is_delivered() -> None:
    def job(**body: Any) -> Job:
        return Job(intent="direct", wire={"dialect": "chat", "body": {"model": "m", **body}, "text_bytes": 1})

    assert question(job(n=1)) == question(job(n=1, stream=True, stream_options={"include_usage": True}))
    assert question(job(n=1)) != question(job(n=2))


def test_the_order_of_turns_labels_and_schema_keys_is_part_of_the_question() -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    swapped = [turns[2], turns[1], turns[0]]
    pairs: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"messages": turns}, {"messages": swapped}),
        ({"prompt": "x", "labels": ("a", "b")}, {"prompt": "x", "labels": ("b", "a")}),
        ({"prompt": "x", "json_schema": {"a": 1, "b": 2}}, {"prompt": "x", "json_schema": {"b": 2, "a": 1}}),
    ]

    for one, other in pairs:
        assert question(Job(intent="extraction", **one)) != question(Job(intent="extraction", **other))


def test_a_job_that_wants_its_own_answer_has_no_question() -> None:
    assert question(Job(intent="extraction", prompt="x", reuse=False)) is None


def test_whatever_the_policy_makes_of_the_intent_is_part_of_the_key() -> None:
    plan = POLICY.plans["extraction"]
    others = [
        replace(POLICY, version="another"),
        *(
            replace(POLICY, plans={**POLICY.plans, "extraction": changed})
            for changed in (
                replace(plan, chain=plan.chain[::-1]),
                replace(plan, effort="high"),
                replace(plan, max_output_tokens=99),
            )
        ),
    ]
    base = answer_key("q", outcome_key(POLICY, "extraction", None, {}))

    assert base != answer_key("p", outcome_key(POLICY, "extraction", None, {}))
    assert base != answer_key("q", outcome_key(POLICY, "extraction", "claude-haiku-5-5", {}))
    assert all(answer_key("q", outcome_key(policy, "extraction", None, {})) != base for policy in others)


def test_figures_in_a_plans_reason_do_not_make_answers_old() -> None:
    plan = replace(POLICY.plans["extraction"], reason="keeps 0.993 of claude-opus-5-5 (312 labels)")
    moved = replace(POLICY, plans={**POLICY.plans, "extraction": plan})

    assert outcome_key(moved, "extraction", None, {}) == outcome_key(POLICY, "extraction", None, {})


def test_answers_of_a_cascade_go_with_it() -> None:
    keys = [
        outcome_key(POLICY, intent, None, cascades)
        for intent in ("reasoning", "auto")
        for cascades in ({}, {"reasoning": "7"}, {"reasoning": "7!"}, {"reasoning": "8"})
    ]

    assert len(set(keys)) == len(keys)
    assert outcome_key(POLICY, "extraction", None, {"reasoning": "7"}) == outcome_key(POLICY, "extraction", None, {})


def test_an_untagged_job_may_follow_any_plan_so_any_change_makes_its_answers_old() -> None:
    plan = replace(POLICY.plans["extraction"], chain=POLICY.plans["extraction"].chain[1:])
    changed = replace(POLICY, plans={**POLICY.plans, "extraction": plan})

    assert outcome_key(changed, "auto", None, {}) != outcome_key(POLICY, "auto", None, {})
    assert outcome_key(changed, "summarization", None, {}) == outcome_key(POLICY, "summarization", None, {})


@given(st.sampled_from(["hi", "lo"]), st.none() | st.floats(-10, 1e6), st.booleans())
def test_nobody_waits_longer_than_the_bound_or_than_half_of_what_is_left(
    priority: str, slack_s: float | None, stream: bool
) -> None:
    found = wait_s(priority=priority, slack_s=slack_s, stream=stream)

    assert 0 <= found <= (WAIT_INTERACTIVE_S if priority == "hi" else WAIT_BATCH_S)
    assert slack_s is None or found <= max(0.0, slack_s / 2)
    assert not (stream and found)
