"""Replay: the estimate is right where the ledger explored, says where it knows nothing, and its intervals cover the truth."""

from __future__ import annotations

import random
from datetime import UTC, datetime

import pytest

from policies.agreement import agreement
from policies.policyfile import parse
from policies.pricing import PriceBook
from policies.replay import Played, replay
from producers.replay import run_replay
from waybill.contract import Usage

NOW = datetime(2026, 11, 25, tzinfo=UTC)


def explored(count: int, seed: int) -> list[Played]:
    """Hard jobs (three in ten) cost more and went to `b` more often: means alone would mislead, propensities do not."""
    rng = random.Random(seed)
    played = []
    for _ in range(count):
        hard = rng.random() < 0.3
        chance_b = 0.8 if hard else 0.2
        model = "b" if rng.random() < chance_b else "a"
        usd = (4.0 if hard else 1.0) * (1.0 if model == "a" else 3.0) + rng.uniform(-0.2, 0.2)
        played.append(Played("x", model, chance_b if model == "b" else 1 - chance_b, usd))
    return played


def test_the_truth_lies_within_the_interval_although_choices_followed_hardness() -> None:
    truth = (0.3 * 4.0 + 0.7 * 1.0) * 3.0
    covered = 0
    naive_off = 0
    for seed in range(40):
        played = explored(800, seed)
        found = replay(played, ["b"] * len(played), [None] * len(played)).usd
        covered += found.low <= truth <= found.high
        own = [job.usd for job in played if job.model == "b"]
        naive_off += abs(sum(own) / len(own) - truth) > 1.0

    assert covered >= 36
    assert naive_off == 40


def test_the_same_choices_cost_what_they_cost() -> None:
    played = [Played("x", "a", 1.0, float(usd)) for usd in (1, 2, 3)]

    found = replay(played, ["a"] * 3, [None] * 3)

    assert found.usd.mean == pytest.approx(2.0)
    assert found.late is None
    assert found.score is None


def test_a_model_never_seen_is_taken_at_its_list_price_and_named() -> None:
    played = [Played("x", "a", 1.0, 1.0, late=0.0, score=1.0)] * 10

    found = replay(played, ["c"] * 10, [0.25] * 10)

    assert found.usd.mean == pytest.approx(0.25)
    assert found.unknown == {("x", "c"): 10}
    assert found.late is None
    assert (found.score, found.ungraded) == (None, 10)


def test_quality_rests_on_the_graded_jobs() -> None:
    graded = [Played("x", "a", 1.0, 1.0, score=s) for s in (1.0, 1.0, 0.0, 1.0)]
    played = [*graded, *[Played("x", "a", 1.0, 1.0)] * 36]

    found = replay(played, ["a"] * 40, [None] * 40)

    assert found.score is not None
    assert found.score.mean == pytest.approx(0.75)


def test_another_policy_file_is_asked_the_recorded_questions() -> None:
    policy = parse(
        'version = "n"\nflagship = "claude-opus-5-5"\n[intents.extraction]\nchain = ["gpt-6-luna"]\nreason = "r"\n',
        "n.toml",
    )
    features = {
        "bytes": 400, "needs": ["json_schema"], "max_output_tokens": None, "slack_s": None, "priority": "lo", "model": None,
        "local_only": False,
    }  # fmt: skip

    def row(**changes: object) -> dict[str, object]:
        detail = {"features": features, "candidates": ["claude-haiku-5-5"], "propensity": 1.0}
        return {
            "intent": "extraction", "state": "succeeded", "payload_bytes": 400, "detail": detail, "usd": 0.001, "unpriced": 0,
            "late": None, "score": None, "input_tokens": 100, "output_tokens": 50, **changes,
        }  # fmt: skip

    found = run_replay([row(), row(detail={}), row(intent="poetry"), row(unpriced=1)], policy, now=NOW)

    assert (found.jobs, found.left_out, found.unroutable, found.moved) == (1, 2, 1, 1)
    assert "poetry" in str(found.refusal)
    price = PriceBook(policy).cost("gpt-6-luna", "interactive", Usage(100, 50), NOW)
    assert price is not None
    assert found.after.usd.mean == pytest.approx(float(price))


@pytest.mark.parametrize(
    ("first", "second", "share"),
    [
        ("billing", "billing", 1.0),
        ({"a": "14.00", "b": "x"}, {"a": 14, "b": "X"}, 1.0),
        ({"a": "1", "b": "x"}, {"a": "2", "b": "x"}, 0.5),
        ("14", "15", 0.0),
        ("A fine day.", "a fine  day", 1.0),
        ("A fine day.", "Rain all day.", None),
    ],
)
def test_agreement_is_seen_in_normal_form(first: object, second: object, share: float | None) -> None:
    assert agreement(first, second) == share
