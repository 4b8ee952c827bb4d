"""A real fleet routes by what its ledger has learned, guesses the intent of untagged jobs and keeps what it decided by."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from sandbox.testing import running
from tests.fleet import redis_database, running_fleet
from tests.quality.ledgerrows import LedgerRows
from waybill import Client, embedded

SCHEMA = {
    "type": "object",
    "properties": {"total": {"type": "string"}},
    "required": ["total"],
    "additionalProperties": False,
}
UNTAGGED = (
    "Summarize the following article in two sentences.\n\nArticle: The bridge was closed on Monday. It reopens in May."
)


@pytest.fixture(scope="module")
def place(
    services: embedded.Services, ledger_template: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Client, LedgerRows]]:
    """A fleet whose ledger has seen Sonnet fail half of 60 summaries that Opus got right."""
    database_url = embedded.create_database(str(services.database_url), "learning", template=ledger_template)
    redis_url = redis_database(services, "learning")
    with LedgerRows(database_url) as ledger:
        for model, right, usd in (("claude-sonnet-5-5", "i %% 2", 0.01), ("claude-opus-5-5", "1", 0.05)):
            ledger.all(
                "insert into grades (item, tenant, intent, model, source, score, cost_usd) select 'import/' || i,"  # noqa: S608
                f" 'default', 'summarization', %s, 'import', {right}, {usd} from generate_series(1, 60) i",
                model,
            )
        logs = tmp_path_factory.mktemp("logs")
        with (
            running() as sandbox,
            running_fleet(database_url, redis_url, sandbox.url, logs),
            Client(database_url, redis_url) as client,
        ):
            yield client, ledger


def test_a_model_that_was_shown_to_be_worse_gives_way_to_the_safer_plan(place: tuple[Client, LedgerRows]) -> None:
    client, _ = place

    result = client.result(client.submit(intent="summarization", prompt="Stones are heavy."), timeout_s=30)

    assert result.model == "claude-opus-5-5"
    assert "no cheaper model is shown to keep 0.99" in result.reason


def test_a_job_is_routed_by_the_quality_it_states_for_itself(place: tuple[Client, LedgerRows]) -> None:
    client, ledger = place
    asked = [client.submit(intent="summarization", prompt="Iron rusts.", quality=share) for share in (0.3, 0.97)]

    cheap, safe = (client.result(job, timeout_s=30) for job in asked)

    assert (cheap.model, safe.model) == ("claude-sonnet-5-5", "claude-opus-5-5")
    assert "(the job's target 0.3, 60 labels)" in cheap.reason
    assert "no cheaper model is shown to keep 0.97 of claude-opus-5-5 (the job's target)" in safe.reason
    rows = ledger.all(
        "select j.quality, d.detail -> 'features' ->> 'quality', d.detail ->> 'plan' from jobs j join decisions d on d.job_id = j.id"
        " where j.id = any(%s::uuid[]) and d.outcome = 'route' order by 1",
        asked,
    )
    assert rows == [(0.3, "0.3", "cheap"), (0.97, "0.97", "flagship")]


def test_without_outcomes_a_stated_quality_leaves_the_files_order(place: tuple[Client, LedgerRows]) -> None:
    client, _ = place

    result = client.result(client.submit(intent="extraction", prompt="total: 9", quality=0.5), timeout_s=30)

    assert result.model == "claude-haiku-5-5"
    assert "too few outcomes to choose by for the job's own 0.5: the file's order holds" in result.reason


def test_an_untagged_job_goes_by_the_intent_that_its_prompt_shows(place: tuple[Client, LedgerRows]) -> None:
    client, ledger = place

    job = client.submit(prompt=UNTAGGED)
    client.result(job, timeout_s=30)

    assert ledger.all("select intent from jobs where id = %s", job) == [("summarization",)]
    [(detail,)] = ledger.all("select detail from decisions where job_id = %s and outcome = 'route'", job)
    assert detail["guess"]["intent"] == "summarization"


def test_an_untagged_job_with_labels_is_classification(place: tuple[Client, LedgerRows]) -> None:
    client, ledger = place

    job = client.submit(prompt="My parcel is late", labels=("billing", "delivery"))
    client.result(job, timeout_s=30)

    assert ledger.all("select intent from jobs where id = %s", job) == [("classification",)]


def test_a_prompt_that_shows_nothing_goes_to_the_default_plan(place: tuple[Client, LedgerRows]) -> None:
    client, ledger = place

    job = client.submit(prompt="zxqv 88 qqq")
    result = client.result(job, timeout_s=30)

    assert (result.model, ledger.all("select intent from jobs where id = %s", job)) == ("claude-opus-5-5", [("auto",)])


def test_a_decision_keeps_what_it_was_made_from(place: tuple[Client, LedgerRows]) -> None:
    client, ledger = place

    job = client.submit(intent="extraction", prompt="total: 9", json_schema=SCHEMA)
    client.result(job, timeout_s=30)

    [(detail,)] = ledger.all("select detail from decisions where job_id = %s and outcome = 'route'", job)
    assert detail["features"]["needs"] == ["json_schema"]
    assert detail["candidates"][0] == "claude-haiku-5-5"
    assert detail["propensity"] == 1.0
    assert detail["prices"].startswith("genai-prices")
    assert json.dumps(detail)
