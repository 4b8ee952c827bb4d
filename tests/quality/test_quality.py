"""Plans from graded outcomes: a cheaper model only where its quality is shown, else the safer plan."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.evaluate.bounds import paired_quality
from policies.policyfile import Policy, parse
from policies.quality import ENOUGH, Choice, Standing, Sums, cautious_quality, choose, learn

TEXT = """
version = "t"
flagship = "claude-opus-5-5"
quality = 0.99
[intents.extraction]
chain = ["claude-haiku-5-5", "gpt-6-luna", "claude-opus-5-5"]
reason = "as declared"
"""
POLICY = parse(TEXT, "t.toml")
LOCAL = """
[models.small]
provider = "local"
context_tokens = 4096
"""


def sums(scores: list[float], flagship: list[float]) -> Sums:
    s, f = np.array(scores), np.array(flagship)
    return Sums(
        labels=len(s), score=s.sum(), squares=(s * s).sum(), pairs=len(f), flagship=f.sum(),
        flagship_squares=(f * f).sum(), difference=(s - f).sum(), difference_squares=((s - f) ** 2).sum(),
        product=((s - f) * f).sum(),
    )  # fmt: skip


def standings(haiku_right: int, labels: int, *, haiku_usd: str = "1", weak: int = 0) -> list[Standing]:
    haiku = [1.0] * haiku_right + [0.0] * (labels - haiku_right)
    opus = [1.0] * labels
    return [
        Standing("extraction", "claude-haiku-5-5", sums(haiku, opus), labels, Decimal(haiku_usd), labels, weak),
        Standing("extraction", "claude-opus-5-5", sums(opus, opus), labels, Decimal(40)),
    ]


def chosen(found: list[Standing], policy: Policy = POLICY) -> tuple[str, str]:
    learned, choices = learn(policy, found)
    return choices["extraction"].kind, learned.plans["extraction"].chain[0]


def test_without_grades_the_file_decides() -> None:
    learned, choices = learn(POLICY, [])

    assert learned.plans == POLICY.plans
    assert choices["extraction"].kind == "declared"


def test_few_grades_do_not_overrule_the_file() -> None:
    assert chosen(standings(0, ENOUGH - 1)) == ("declared", "claude-haiku-5-5")


def test_a_cheap_model_that_was_always_right_is_taken_once_that_is_shown() -> None:
    assert chosen(standings(300, 300)) == ("cheap", "claude-haiku-5-5")


def test_agreement_on_a_handful_shows_nothing_and_says_what_lacks() -> None:
    choice = choose(POLICY, POLICY.plans["extraction"], {(s.intent, s.model): s for s in standings(60, 60)})

    assert (choice.kind, choice.plan.chain[0]) == ("flagship", "claude-opus-5-5")
    assert choice.shortfall is not None
    assert "intent extraction" in choice.shortfall
    assert "lacks about" in choice.shortfall


def test_a_worse_model_sends_the_intent_to_the_flagship() -> None:
    assert chosen(standings(280, 300)) == ("flagship", "claude-opus-5-5")


def test_answers_that_failed_the_check_make_it_a_cascade_and_cost_the_escalation() -> None:
    assert chosen(standings(300, 300, weak=30))[0] == "cascade"
    assert chosen(standings(300, 300, haiku_usd="39", weak=30))[0] == "flagship"


def test_a_model_that_costs_as_much_as_the_flagship_is_not_taken() -> None:
    choice = choose(
        POLICY, POLICY.plans["extraction"], {(s.intent, s.model): s for s in standings(300, 300, haiku_usd="40")}
    )

    assert choice.kind == "flagship"
    assert "costs as much" in str(choice.shortfall)


def test_nothing_outside_the_chain_is_chosen() -> None:
    other = replace(standings(300, 300)[0], model="claude-sonnet-5-5", usd=Decimal("0.1"))

    assert chosen([*standings(280, 300), other]) == ("flagship", "claude-opus-5-5")


def test_a_chain_without_the_flagship_falls_back_to_its_last_model() -> None:
    policy = parse(TEXT.replace(', "claude-opus-5-5"]', "]"), "t.toml")

    assert chosen(standings(280, 300), policy) == ("flagship", "gpt-6-luna")


def test_without_a_target_nothing_is_learned() -> None:
    assert chosen(standings(0, 300), parse(TEXT.replace("quality = 0.99\n", ""), "t.toml"))[0] == "declared"


def test_an_intents_own_target_overrules_the_common_one() -> None:
    lenient = parse(TEXT + "quality = 0.9\n", "t.toml")

    assert chosen(standings(290, 300), lenient) == ("cheap", "claude-haiku-5-5")


# --- a quality that a job states for itself ---


def own(found: list[Standing], quality: float, policy: Policy = POLICY) -> Choice:
    return choose(policy, policy.plans["extraction"], {(each.intent, each.model): each for each in found}, quality)


def test_a_job_that_wants_less_takes_a_cheaper_model_that_is_shown_to_keep_that() -> None:
    found = standings(285, 300)

    assert chosen(found) == ("flagship", "claude-opus-5-5")
    lenient = own(found, 0.9)
    assert (lenient.kind, lenient.shown, lenient.plan.chain[0]) == ("cheap", "claude-haiku-5-5", "claude-haiku-5-5")
    assert "(the job's target 0.9, 300 labels)" in lenient.plan.reason


def test_a_job_that_wants_more_goes_to_the_safer_plan() -> None:
    found = standings(300, 300)

    assert chosen(found) == ("cheap", "claude-haiku-5-5")
    strict = own(found, 0.999)
    assert (strict.kind, strict.shown, strict.plan.chain[0]) == ("flagship", None, "claude-opus-5-5")
    assert "no cheaper model is shown to keep 0.999 of claude-opus-5-5 (the job's target)" in strict.plan.reason


def test_without_outcomes_enough_the_files_order_holds_and_the_reason_says_so() -> None:
    for found in ([], standings(0, ENOUGH - 1)):
        choice = own(found, 0.5)

        assert (choice.kind, choice.plan.chain) == ("declared", POLICY.plans["extraction"].chain)
        assert choice.plan.reason == (
            "as declared; too few outcomes to choose by for the job's own 0.5: the file's order holds"
        )


def test_a_jobs_target_counts_where_the_policy_has_none() -> None:
    silent = parse(TEXT.replace("quality = 0.99\n", ""), "t.toml")

    assert own(standings(150, 300), 0.9, silent).plan.chain[0] == "claude-opus-5-5"
    assert own(standings(300, 300), 0.9, silent).plan.chain[0] == "claude-haiku-5-5"


def test_local_answers_are_for_jobs_that_want_no_more_than_their_gate_was_opened_for() -> None:
    policy = parse(TEXT.replace('chain = ["claude', 'chain = ["small", "claude') + LOCAL, "t.toml")

    for found in ([], standings(300, 300)):
        assert own(found, 0.99, policy).plan.chain[0] == "small"
        assert "small" not in own(found, 0.995, policy).plan.chain
    only = parse(TEXT.replace('"claude-haiku-5-5", "gpt-6-luna", "claude-opus-5-5"', '"small"') + LOCAL, "t.toml")
    assert own([], 0.995, only).plan.chain == ("small",)


@given(
    st.integers(30, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))),
    st.integers(0, 400),
    st.lists(st.floats(0.01, 1), min_size=2, max_size=5).map(sorted),
)
def test_wanting_more_never_costs_less_and_never_leaves_the_chain(
    haiku: tuple[int, int], luna_right: int, targets: list[float]
) -> None:
    right, labels = haiku
    luna = [1.0] * min(luna_right, labels) + [0.0] * max(0, labels - luna_right)
    found = [
        *standings(right, labels),
        Standing("extraction", "gpt-6-luna", sums(luna, [1.0] * labels), labels, Decimal(5), labels),
    ]
    price = {"claude-haiku-5-5": 1, "gpt-6-luna": 5, "claude-opus-5-5": 40}

    choices = [own(found, target) for target in targets]

    assert all(set(choice.plan.chain) == set(POLICY.plans["extraction"].chain) for choice in choices)
    costs = [price[choice.plan.chain[0]] for choice in choices]
    assert costs == sorted(costs)


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from([0.0, 0.5, 1.0])), min_size=3, max_size=80))
def test_sums_give_the_same_bound_as_the_items_with_one_loss_more(pairs: list[tuple[float, float]]) -> None:
    model, flagship = [s for s, _ in pairs], [f for _, f in pairs]
    if sum(flagship) == 0:
        return

    found = cautious_quality(sums(model, flagship), None)

    items = paired_quality(np.array([*model, 0.0]) - np.array([*flagship, 1.0]), np.array([*flagship, 1.0]))
    assert found is not None
    assert found.ratio == pytest.approx(items.ratio)
    assert found.standard_error == pytest.approx(items.standard_error)


def test_unpaired_grades_count_but_need_more_labels() -> None:
    flagship = sums([1.0] * 300, [1.0] * 300)
    alone = replace(sums([1.0] * 300, [1.0] * 300), pairs=0, flagship=0.0)

    paired, unpaired = cautious_quality(flagship, None), cautious_quality(alone, flagship)

    assert paired is not None
    assert unpaired is not None
    assert unpaired.standard_error >= paired.standard_error
