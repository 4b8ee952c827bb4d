"""Price cliffs: where they are, which model goes first before one, and what is said where none is cheaper."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from policies.estimates import LEAST_ROOM, SIZED, Estimates
from policies.fallback import History, Retry, with_more_room
from policies.policyfile import parse
from policies.pricing import PriceBook, price
from policies.routing import Request, Route, Snapshot, route
from tests.fleet import ROOT
from waybill.contract import Candidate, Usage

POLICY = parse((ROOT / "policies" / "default.toml").read_text(), "default.toml")
BOOK = PriceBook(POLICY)
NOW = datetime(2026, 11, 25, tzinfo=UTC)


def sent(tokens: int, **fields: object) -> Route:
    """The route of an extraction with a prompt of about so many of Claude's tokens."""
    request = Request("extraction", int(tokens * 2.5 / 1.1), **fields)  # type: ignore[arg-type]  # fields of Request
    found = route(request, POLICY, Snapshot({}, NOW), BOOK)
    assert isinstance(found, Route)
    return found


@pytest.mark.parametrize(
    "model, band",
    [("claude-haiku-5-5", 100_000), ("gpt-6-luna", 272_000), ("claude-opus-5-5", None), ("gpt-6.2-sol", 272_000)],
)
def test_cliffs_are_read_from_the_price_list(model: str, band: int | None) -> None:
    assert BOOK.band(model, "interactive", NOW) == band


@pytest.mark.parametrize("tokens", [100_000, 100_001, 272_000, 272_001])
@pytest.mark.parametrize("model", ["claude-haiku-5-5", "gpt-6-luna"])
def test_a_candidate_is_priced_by_its_band(model: str, tokens: int) -> None:
    usage = Usage(input_tokens=tokens, output_tokens=1000)

    assert BOOK.cost(model, "interactive", usage, NOW) == price(POLICY, model, "interactive", usage, NOW)


def test_a_short_prompt_takes_the_chain_as_it_is() -> None:
    assert [candidate.model for candidate in sent(90_000).candidates] == list(POLICY.plans["extraction"].chain)


def test_over_the_cliff_the_next_cheaper_model_goes_first_and_says_why() -> None:
    found = sent(120_000)

    assert [candidate.model for candidate in found.candidates][:2] == ["gpt-6-luna", "claude-haiku-5-5"]
    assert found.candidates[0].estimate_usd < found.candidates[1].estimate_usd
    assert "costs 5.0 times as much on claude-haiku-5-5, whose price jumps at 100,000" in found.reason
    assert found.reason == found.candidates[0].reason


def test_without_a_cheaper_model_the_reason_says_that_parts_would_be_cheaper() -> None:
    found = sent(120_000, model="claude-haiku-5-5")

    assert [candidate.model for candidate in found.candidates] == ["claude-haiku-5-5"]
    assert "parts below that would be cheaper" in found.reason


def test_a_prefix_that_may_be_written_makes_the_estimate_an_upper_one() -> None:
    plain, written = sent(50_000), sent(50_000, prefix_bytes=100_000)

    assert written.candidates[0].estimate_usd > plain.candidates[0].estimate_usd


def observed(lengths: list[int]) -> Estimates:
    estimates = Estimates()
    for length in lengths:
        estimates.observe("m", "extraction", 1000, Usage(input_tokens=300, output_tokens=length))
    return estimates


def test_a_limit_is_taken_from_history_once_there_is_enough() -> None:
    assert observed([400] * (SIZED - 1)).output_room("m", "extraction", 4096) == 4096
    assert observed([400] * SIZED).output_room("m", "extraction", 4096) == 800
    assert observed([10] * SIZED).output_room("m", "extraction", 4096) == LEAST_ROOM
    assert observed([400] * SIZED).output_room("m", "extraction", 600) == 600
    assert observed([400] * SIZED).output_room("m", "other", 4096) == 4096


HISTORY = History(
    route=(Candidate("anthropic", "m", "interactive", ""),), index=0, used=1, max_attempts=5, same_lane=1, slack_s=None
)


def test_an_answer_cut_by_our_limit_is_asked_for_again_with_the_whole() -> None:
    found = with_more_room(HISTORY, sent=800, most=4096)

    assert isinstance(found, Retry)
    assert found.delay_s == 0
    assert "again with 4096" in found.reason


def test_an_answer_cut_by_the_jobs_own_limit_is_judged_as_it_is() -> None:
    assert with_more_room(HISTORY, sent=4096, most=4096) is None
    assert with_more_room(replace(HISTORY, used=5), sent=800, most=4096) is None
    assert with_more_room(replace(HISTORY, streamed=True), sent=800, most=4096) is None
