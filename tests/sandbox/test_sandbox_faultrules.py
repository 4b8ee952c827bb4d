"""When fault rules fall: by count, share, time and target."""

from __future__ import annotations

import pytest

from sandbox.faults import FaultError, Faults, Rule, Target, rule_from, rule_from_text

SECOND_NS = 1_000_000_000


def target(model: str = "claude-haiku-5-5", *, stream: bool = False, tier: str = "default", text: str = "") -> Target:
    return Target(model, "messages", tier, stream, text)


def falls(rule: Rule, count: int, seed: int = 7) -> list[bool]:
    faults = Faults(seed=seed)
    faults.add(rule, now_ns=0)
    return [faults.pick(target(), 0) is not None for _ in range(count)]


def test_the_nth_and_every_kth_request() -> None:
    assert falls(rule_from({"fault": "hang", "nth": [2, 4]}), 5) == [False, True, False, True, False]
    assert falls(rule_from({"fault": "hang", "every": 3}), 6) == [False, False, True, False, False, True]
    assert falls(rule_from({"fault": "hang", "times": 2}), 4) == [True, True, False, False]


def test_a_share_is_the_same_for_the_same_seed() -> None:
    rule = {"fault": "overloaded", "probability": 0.3}

    first, second = falls(rule_from(rule), 2000), falls(rule_from(rule), 2000)

    assert first == second
    assert 500 < sum(first) < 700
    assert falls(rule_from(rule), 2000, seed=8) != first


def test_times_run_from_when_the_rule_was_added() -> None:
    faults = Faults()
    faults.add(rule_from({"fault": "overloaded", "from_s": 2, "to_s": 4}), now_ns=100 * SECOND_NS)

    seen = [faults.pick(target(), (100 + second) * SECOND_NS) is not None for second in range(6)]

    assert seen == [False, False, True, True, False, False]


def test_requests_outside_the_target_are_not_counted() -> None:
    faults = Faults()
    rule = faults.add(rule_from({"fault": "overloaded", "model": "claude-haiku-*", "nth": 1}), now_ns=0)

    assert faults.pick(target("claude-opus-5-5"), 0) is None
    assert faults.pick(target("claude-haiku-4-5"), 0) is rule


def test_a_stream_fault_spares_whole_answers() -> None:
    faults = Faults()
    rule = faults.add(rule_from({"fault": "cut_stream"}), now_ns=0)

    assert faults.pick(target(stream=False), 0) is None
    assert faults.pick(target(stream=True), 0) is rule


def test_tier_and_text_narrow_a_rule() -> None:
    faults = Faults()
    rule = faults.add(rule_from({"fault": "overloaded", "tier": "flex", "match": "needle"}), now_ns=0)

    assert faults.pick(target(tier="flex", text="hay"), 0) is None
    assert faults.pick(target(tier="default", text="needle"), 0) is None
    assert faults.pick(target(tier="flex", text="a needle here"), 0) is rule


def test_the_command_line_form_says_the_same_as_json() -> None:
    written = rule_from_text("rate_limit:p=0.5,model=gpt-*,nth=1+5,retry_after_s=3,billed=false")

    assert (written.kind.name, written.probability, written.model, written.nth) == ("rate_limit", 0.5, "gpt-*", (1, 5))
    assert (written.retry_after_s, written.billed) == (3.0, False)


@pytest.mark.parametrize(
    "given, complaint",
    [
        ({"fault": "flood"}, "unknown fault 'flood'"),
        ({"fault": "hang", "often": True}, "unknown key 'often'"),
        ({"fault": "hang", "probability": 2}, "between 0 and 1"),
        ({"fault": "hang", "nth": 0}, "a number from 1 on"),
        ({"fault": "hang", "times": 1.5}, "a whole number"),
        ({"fault": "hang", "from_s": 5, "to_s": 5}, "not after"),
        ({"fault": "hang", "billed": "no"}, "true or false"),
        ([], "is a JSON object"),
    ],
)
def test_a_bad_rule_is_named(given: dict[str, object], complaint: str) -> None:
    with pytest.raises(FaultError, match=complaint):
        rule_from(given)


@pytest.mark.parametrize("text", ["hang:nth", "hang:every=often", "hang:billed=maybe"])
def test_a_bad_word_on_the_command_line_is_named(text: str) -> None:
    with pytest.raises(FaultError):
        rule_from_text(text)
