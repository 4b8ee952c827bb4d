"""Routing by the policy's chains: pins and local-only jobs are never overruled, and every refusal says why."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from policies.policyfile import parse
from policies.pricing import PriceBook
from policies.routing import NoRoute, Request, Route, Snapshot, route

POLICY = parse((Path(__file__).parent.parent.parent / "policies" / "default.toml").read_text(), "default.toml")
BOOK = PriceBook(POLICY)
NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
ALL_ON = Snapshot({}, NOW)

requests = st.builds(
    Request,
    intent=st.sampled_from([*POLICY.intents(), "unheard-of"]),
    payload_bytes=st.integers(0, 8_000_000),
    model=st.none() | st.sampled_from([*POLICY.models, "no-such-model"]),
    local_only=st.booleans(),
    needs=st.sampled_from([(), ("json_schema",), ("labels",)]),
    max_output_tokens=st.none() | st.integers(1, 200_000),
)
snapshots = st.builds(
    Snapshot,
    st.dictionaries(st.sampled_from(["anthropic", "openai", "local"]), st.just("no key"), max_size=3),
    st.just(NOW),
)


def models(found: Route | NoRoute) -> list[str]:
    assert isinstance(found, Route), found
    return [candidate.model for candidate in found.candidates]


def test_an_intent_gets_its_chain_in_order_with_reasons() -> None:
    found = route(Request("extraction", 2000), POLICY, ALL_ON, BOOK)

    assert models(found) == ["claude-haiku-5-5", "gpt-6-luna", "claude-sonnet-5-5"]
    assert isinstance(found, Route)
    assert all(candidate.reason and candidate.estimate_usd > 0 for candidate in found.candidates)


def test_a_provider_that_is_off_is_passed_over_and_named() -> None:
    found = route(Request("extraction", 2000), POLICY, Snapshot({"anthropic": "no ANTHROPIC_API_KEY"}, NOW), BOOK)

    assert models(found) == ["gpt-6-luna"]
    assert isinstance(found, Route)
    assert found.passed_over == {
        "claude-haiku-5-5": "no ANTHROPIC_API_KEY",
        "claude-sonnet-5-5": "no ANTHROPIC_API_KEY",
    }


def test_a_pinned_model_is_the_only_candidate() -> None:
    assert models(route(Request("extraction", 2000, model="gpt-5.5"), POLICY, ALL_ON, BOOK)) == ["gpt-5.5"]


def test_a_local_only_job_with_a_pin_elsewhere_is_refused() -> None:
    found = route(Request("extraction", 2000, model="gpt-5.5", local_only=True), POLICY, ALL_ON, BOOK)

    assert isinstance(found, NoRoute)
    assert "must stay on local models" in found.reason


def test_unknown_intent_and_model_are_named_with_the_known_ones() -> None:
    intent = route(Request("extracton", 10), POLICY, ALL_ON, BOOK)
    model = route(Request("extraction", 10, model="gpt-7"), POLICY, ALL_ON, BOOK)

    assert isinstance(intent, NoRoute)
    assert isinstance(model, NoRoute)
    assert (intent.code, model.code) == ("unknown_intent", "unknown_model")
    assert "extraction" in intent.reason
    assert "gpt-6-luna" in model.reason


def test_a_document_too_long_for_a_model_passes_it_over() -> None:
    found = route(Request("classification", 200_000), POLICY, ALL_ON, BOOK)

    assert models(found) == ["claude-haiku-5-5", "gpt-6-luna"]


@given(requests, snapshots)
def test_a_route_never_leaves_what_the_job_and_the_fleet_allow(request: Request, snapshot: Snapshot) -> None:
    found = route(request, POLICY, snapshot, BOOK)

    if isinstance(found, NoRoute):
        assert found.reason
        return
    ids = models(found)
    assert len(ids) == len(set(ids))
    for candidate in found.candidates:
        assert candidate.provider not in snapshot.off
        assert not request.local_only or candidate.provider == "local"
        assert request.model is None or candidate.model == request.model
