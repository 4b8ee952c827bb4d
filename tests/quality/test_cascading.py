"""A learned cascade plays in the fleet what was measured, and nothing but what the policy's chain and the lanes allow."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.cascading import LearnedCascade, Said, begin, prompt_of, stand_in, weigh
from policies.evaluate.cascade import Cascade, fit_cascade
from policies.evaluate.outcomes import Outcomes
from policies.evaluate.packing import BadCascade, pack, unpack
from policies.fallback import Accept, Escalate, History
from policies.health import Outage
from policies.policyfile import parse
from policies.routing import Route, Snapshot
from tests.quality.cascades import HAIKU, INTENT, OPUS, POLICY, SONNET, invent
from waybill.contract import Candidate, Job, Message, Wire

OPEN = Snapshot(off={}, now=datetime(2026, 11, 25, tzinfo=UTC))


@pytest.fixture(scope="module")
def fitted() -> Cascade:
    return fit_cascade(invent(500, seed=1), target=0.97, seed=0, as_chain=True)


@pytest.fixture(scope="module")
def learned(fitted: Cascade) -> LearnedCascade:
    return LearnedCascade(7, INTENT, 0.97, unpack(pack(fitted.warm())))


@pytest.fixture(scope="module")
def asked() -> Outcomes:
    return invent(200, seed=2)


def path(learned: LearnedCascade, outcomes: Outcomes, item: int) -> tuple[int, ...]:
    """The models that it asks about an item, as the fleet would, one answer at a time."""
    models = outcomes.models
    following: str | None
    [following] = learned.first([outcomes.prompts[item]])
    answers: list[Said] = []
    calls = []
    while following is not None:
        calls.append(models.index(following))
        text = outcomes.answers[item][calls[-1]]
        assert text is not None
        answers.append(Said.of(following, text, outcomes.prompts[item]))
        kept = [Said.from_json(answer.as_json()) for answer in answers]
        following = learned.following(outcomes.prompts[item], kept) if calls[-1] else None
    return tuple(calls)


def test_it_asks_whom_the_measured_policy_asked(fitted: Cascade, learned: LearnedCascade, asked: Outcomes) -> None:
    played = fitted.play(asked, fitted.chosen)

    paths = [path(learned, asked, item) for item in range(len(asked))]

    assert paths == list(played.calls)
    assert len(set(paths)) >= 2  # it does choose
    assert 1 - played.cost.mean() / asked.costs[:, 0].mean() > 0.2


def test_as_a_chain_models_are_asked_in_order_and_the_last_answer_is_kept(fitted: Cascade, asked: Outcomes) -> None:
    played = fitted.play(asked, fitted.chosen)

    for calls, final in zip(played.calls, played.final, strict=True):
        cheap = [model for model in calls if model]
        assert cheap == sorted(cheap)
        assert final == calls[-1]


def test_what_is_no_cascade_is_said_to_be_none(fitted: Cascade) -> None:
    with pytest.raises(BadCascade, match="fit it again"):
        unpack(b"nothing of the kind")
    with pytest.raises(ValueError, match="only a warm cascade"):
        pack(fitted)


def _candidate(model: str, service: str = "interactive", provider: str = "anthropic") -> Candidate:
    return Candidate(provider, model, service, "as declared")


ROUTE = Route((_candidate(HAIKU), _candidate(SONNET), _candidate(OPUS)), "as declared", {})


def _names(found: Route) -> list[str]:
    return [candidate.model for candidate in found.candidates]


def test_the_first_model_goes_first_and_weaker_ones_last(learned: LearnedCascade) -> None:
    found = begin(ROUTE, learned, SONNET, OPEN)

    assert _names(found) == [SONNET, OPUS, HAIKU]
    assert {candidate.cascade for candidate in found.candidates} == {7}
    assert (
        found.reason
        == found.candidates[0].reason
        == f"cascade 7 asks {SONNET} first: the cheapest way shown to keep 0.97"
    )
    assert Candidate.from_json(found.candidates[0].as_json()) == found.candidates[0]


def test_a_model_that_is_out_gives_way_to_the_next_stronger_one(learned: LearnedCascade) -> None:
    out = replace(OPEN, lanes={f"anthropic/{SONNET}/interactive": Outage("open", 5.0, 5.0)})

    assert _names(begin(ROUTE, learned, SONNET, out)) == [OPUS, HAIKU, SONNET]


def test_local_models_keep_their_place(learned: LearnedCascade) -> None:
    found = replace(ROUTE, candidates=(_candidate("small", "local", "local"), *ROUTE.candidates))

    assert _names(begin(found, learned, SONNET, OPEN)) == ["small", SONNET, OPUS, HAIKU]


def test_it_decides_only_where_the_policy_allows_all_of_its_models(learned: LearnedCascade) -> None:
    policy = parse(POLICY, "p.toml")
    short = parse(POLICY.replace(f'"{SONNET}", ', ""), "p.toml")
    moved = parse(POLICY.replace(f'flagship = "{OPUS}"', f'flagship = "{SONNET}"'), "p.toml")

    assert learned.obstacle(policy.plans[INTENT], policy) is None
    assert learned.obstacle(short.plans[INTENT], short) == f"{SONNET} is not in the plan's chain"
    assert f"the flagship is {SONNET}" in str(learned.obstacle(moved.plans[INTENT], moved))
    assert "no plan" in str(learned.obstacle(None, policy))


@pytest.mark.parametrize(("quality", "keeps"), [(None, True), (0.9, True), (0.97, True), (0.98, False), (1, False)])
def test_it_decides_about_jobs_that_want_no_more_than_it_was_fitted_for(
    learned: LearnedCascade, quality: float | None, keeps: bool
) -> None:
    assert learned.keeps(quality) is keeps


@pytest.mark.parametrize(
    ("first", "shown", "outdone"),
    [
        (SONNET, HAIKU, True),  # cheaper than what it would ask
        (SONNET, SONNET, True),  # it might still go on to the flagship
        (HAIKU, SONNET, False),
        (HAIKU, None, False),
        (HAIKU, "another", False),
    ],
)
def test_a_single_model_that_is_enough_for_the_job_goes_before_it(
    learned: LearnedCascade, first: str, shown: str | None, outdone: bool
) -> None:
    assert learned.is_outdone(first, shown) is outdone


def _history(index: int = 0, *, used: int = 1, streamed: bool = False) -> History:
    return History(ROUTE.candidates, index, used, 5, streamed=streamed)


def _unsure(learned: LearnedCascade, asked: Outcomes) -> int:
    """An item about which it asks Haiku, then somebody else."""
    return next(
        i for i in range(len(asked)) if path(learned, asked, i)[:1] == (1,) and len(path(learned, asked, i)) > 1
    )


def test_an_answer_that_does_not_settle_it_goes_on_and_leaves_numbers_only(
    learned: LearnedCascade, asked: Outcomes
) -> None:
    item = _unsure(learned, asked)
    text = str(asked.answers[item][1])
    known = {"prompt": asked.prompts[item], "text": text, "earlier": [], "flagship": OPUS}

    decision = weigh(Accept(None), learned, history=_history(), **known)  # type: ignore[arg-type]

    assert isinstance(decision, Escalate)
    assert ROUTE.candidates[decision.index].model == asked.models[path(learned, asked, item)[1]]
    assert decision.detail == Said.of(HAIKU, text, asked.prompts[item]).as_json()
    assert decision.has_passed, "no sign that the lane is out of order"
    for history in (_history(used=5), _history(streamed=True), _history(2)):
        assert isinstance(weigh(Accept(None), learned, history=history, **known), Accept)  # type: ignore[arg-type]


def test_the_flagships_answer_is_kept(learned: LearnedCascade) -> None:
    kept = weigh(Accept(None, "fits"), learned, prompt="p", text="1", earlier=[], history=_history(2), flagship=OPUS)

    assert kept == Accept(None, "fits; cascade 7 keeps it")


def test_without_its_cascade_a_job_goes_on_to_the_flagship() -> None:
    known = {"prompt": "p", "text": "1", "earlier": [], "flagship": OPUS}

    decision = weigh(Accept(None), None, history=_history(), **known)  # type: ignore[arg-type]
    kept = weigh(Accept(None), None, history=_history(2), **known)  # type: ignore[arg-type]

    assert isinstance(decision, Escalate)
    assert decision.index == 2
    assert kept == Accept(None)


def test_the_prompt_is_instructions_and_the_last_turn() -> None:
    job = Job(
        intent=INTENT,
        system="be brief",
        messages=(Message(role="user", content="a"), Message(role="user", content="b")),
    )

    assert prompt_of(job.payload()) == "be brief\nb"
    assert prompt_of(Job(intent=INTENT, prompt="p").payload()) == "p"


def test_the_flagship_stands_in_for_a_cascade_that_has_drifted(learned: LearnedCascade) -> None:
    local = replace(ROUTE, candidates=(_candidate("small", "local", "local"), *ROUTE.candidates))
    out = replace(OPEN, lanes={f"anthropic/{OPUS}/interactive": Outage("open", 5.0, 5.0)})

    found = stand_in(ROUTE, learned, OPEN)

    assert _names(found) == [OPUS, HAIKU, SONNET]
    assert found.reason == f"cascade 7 has drifted: {OPUS} until another one is fitted"
    assert {candidate.cascade for candidate in found.candidates} == {None}
    assert _names(stand_in(local, learned, OPEN)) == ["small", OPUS, HAIKU, SONNET]
    assert stand_in(ROUTE, learned, out) is ROUTE


TEXT = st.text(min_size=1, max_size=30).filter(lambda text: "\0" not in text)


def _wired(dialect: Any, body: dict[str, Any]) -> str:
    return Job(intent=INTENT, wire=Wire(dialect=dialect, body=body, text_bytes=1)).payload()


@given(TEXT, TEXT, TEXT)
def test_a_request_in_any_dialect_is_read_as_the_same_job_in_our_own_form(system: str, first: str, last: str) -> None:
    own = Job(
        intent=INTENT,
        system=system,
        messages=(
            Message(role="user", content=first),
            Message(role="assistant", content="a"),
            Message(role="user", content=last),
        ),
    ).payload()
    turns = [
        {"role": "user", "content": first},
        {"role": "assistant", "content": "a"},
        {"role": "user", "content": last},
    ]
    chat = {"model": "auto", "messages": [{"role": "system", "content": system}, *turns]}
    parted = {
        "model": "auto",
        "max_tokens": 9,
        "system": system,
        "messages": [*turns[:2], {"role": "user", "content": [{"type": "text", "text": last}]}],
    }

    assert prompt_of(_wired("chat", chat)) == prompt_of(own)
    assert prompt_of(_wired("messages", parted)) == prompt_of(own)
    assert prompt_of(_wired("responses", {"model": "auto", "instructions": system, "input": turns})) == prompt_of(own)


@pytest.mark.parametrize(
    "more",
    [
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]},
        {
            "messages": [
                {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://x.example/a.png"}}]}
            ]
        },
        {"modalities": ["text"], "prediction": {"type": "content", "content": "x"}},
    ],
)
def test_what_is_more_than_a_text_or_cannot_be_read_is_no_cascades_business(more: dict[str, Any]) -> None:
    body = {"model": "auto", "messages": [{"role": "user", "content": "hello"}]}

    assert prompt_of(_wired("chat", body)) == "hello"
    assert prompt_of(_wired("chat", body | more)) is None
