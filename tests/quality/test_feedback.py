"""`Client.feedback`: a score for a job's answer, once per job, beside the model that gave it and what it cost."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest

from tests.quality.ledgerrows import LedgerRows
from waybill import Client, InvalidFeedback


@pytest.fixture
def client(database_url: str, redis_url: str) -> Iterator[Client]:
    with Client(database_url, redis_url) as connected:
        yield connected


@pytest.fixture
def ledger(database_url: str) -> Iterator[LedgerRows]:
    with LedgerRows(database_url) as rows:
        yield rows


def test_a_score_counts_for_the_model_that_answered_at_what_it_cost(client: Client, ledger: LedgerRows) -> None:
    job = ledger.job("extraction", [("claude-haiku-5-5", "weak", "0.01"), ("gpt-6-luna", "succeeded", "0.02")])

    model = client.feedback(job, 0.5, note="wrong date \x00")

    rows = ledger.all("select model, source, score, cost_usd, note, item from grades")
    assert model == "gpt-6-luna"
    assert rows == [("gpt-6-luna", "user", 0.5, Decimal("0.020000000000"), "wrong date \\x00", job)]


def test_scoring_again_replaces_the_score(client: Client, ledger: LedgerRows) -> None:
    job = ledger.job("extraction", [("gpt-6-luna", "succeeded", "0.02")])

    client.feedback(job, 1)
    client.feedback(job, 0)

    assert ledger.all("select score from grades") == [(0.0,)]


@pytest.mark.parametrize("score", [-0.1, 1.1, float("nan"), True, "1"])
def test_a_score_that_is_no_share_is_refused(client: Client, ledger: LedgerRows, score: Any) -> None:
    job = ledger.job("extraction", [("gpt-6-luna", "succeeded", "0.02")])

    with pytest.raises(InvalidFeedback, match="from 0"):
        client.feedback(job, score)


def test_a_job_without_an_answer_takes_no_score(client: Client) -> None:
    job = client.submit(intent="extraction", prompt="x")

    with pytest.raises(InvalidFeedback, match="queued and has no answer"):
        client.feedback(job, 1)


def test_another_tenants_job_does_not_exist(client: Client, ledger: LedgerRows) -> None:
    job = ledger.job("extraction", [("gpt-6-luna", "succeeded", "0.02")])

    with pytest.raises(LookupError):
        client.feedback(job, 1, tenant="other")
    with pytest.raises(LookupError):
        client.feedback("no-id", 1)
    assert ledger.all("select * from grades") == []
