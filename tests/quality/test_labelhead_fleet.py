"""A real fleet fits a head on what its ledger holds of paid answers, and answers with it until it is shown to be wrong."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator

import pytest

from sandbox.testing import running
from tests.fleet import redis_database, running_fleet
from tests.quality.ledgerrows import LedgerRows
from tests.quality.place import Place
from tests.quality.test_labelhead import TOPICS, letters
from waybill import Client, Job, embedded

pytestmark = pytest.mark.timeout(600)
HAIKU, HEAD = "claude-haiku-5-5", "label-head"
LABELS = tuple(TOPICS)
POLICY = f"""
version = "heads"
flagship = "claude-opus-5-5"
quality = 0.95
[intents.classification]
chain = ["{HEAD}", "{HAIKU}"]
reason = "as declared"
max_output_tokens = 1024
"""


@pytest.fixture(scope="module")
def place(
    services: embedded.Services, ledger_template: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Place]:
    """A fleet whose ledger holds 600 letters that Haiku has labelled for two tenants."""
    folder = tmp_path_factory.mktemp("heads")
    (folder / "policy.toml").write_text(POLICY)
    database_url = embedded.create_database(str(services.database_url), "heads", template=ledger_template)
    redis_url = redis_database(services, "heads")
    with LedgerRows(database_url) as ledger:
        for number, (text, label) in enumerate(zip(*letters(600, seed=1), strict=True)):
            ledger.job(
                "classification", [(HAIKU, "succeeded", "0.001")], text=label, data=label, prompt=text,
                labels=list(LABELS), tenant=("default", "other")[number % 2],
            )  # fmt: skip
        policy = {"WAYBILL_POLICY_FILE": str(folder / "policy.toml")}
        env = {"WAYBILL_DATABASE_URL": database_url, "WAYBILL_REDIS_URL": redis_url, **policy}
        with (
            running() as sandbox,
            # The local lane runs here without a model file: its language model is in no chain.
            running_fleet(
                database_url, redis_url, sandbox.url, folder,
                env={**policy, "WAYBILL_LOCAL_SERVER_URL": f"{sandbox.url}/v1"},
            ),
            Client(database_url, redis_url) as client,
        ):  # fmt: skip
            yield Place(env, client, sandbox, ledger, folder)


def job(text: str, **fields: object) -> Job:
    return Job(**{"intent": "classification", "prompt": text, "labels": LABELS, **fields})


def served_by(place: Place, model: str, timeout_s: float = 90) -> str:
    """Ask until a model answers without another having been asked; the job's id."""
    end = time.monotonic() + timeout_s
    number = 0
    while True:
        number += 1
        job_id = place.client.submit(job(f"payment charged twice on my card, invoice {time.monotonic_ns()}"))
        place.client.result(job_id, timeout_s=30)
        if place.ledger.all("select model from attempts where job_id = %s", job_id) == [(model,)]:
            return job_id
        assert time.monotonic() < end, place.waybill("why", job_id).stdout
        time.sleep(0.5)


def test_an_open_head_answers_and_nobody_else_is_called(place: Place) -> None:
    told = place.waybill("why", served_by(place, HEAD)).stdout
    texts, labels = letters(60, seed=7, noise=0.3)

    ids = place.client.submit_many([job(text) for text in texts])
    results = {outcome.job_id: outcome.result for outcome in place.client.results(ids, timeout_s=120)}

    by_head = [job_id for job_id in ids if results[job_id].model == HEAD]
    called = {line["job"] for line in place.sandbox.log() if line["status"] == 200}
    assert len(by_head) >= 30
    assert called.isdisjoint(by_head)
    assert called >= set(ids) - set(by_head)
    truth = dict(zip(ids, labels, strict=True))
    assert sum(results[job_id].data == truth[job_id] for job_id in by_head) >= 0.95 * len(by_head)
    assert place.ledger.all(
        "select distinct provider, model, state, cost_usd from attempts where job_id = any(%s::uuid[])", by_head
    ) == [("local", HEAD, "succeeded", 0)]
    assert "local/label-head/local" in told
    assert "such answers are right" in told
    assert "s of CPU" in told
    saved = place.ledger.all("select min(flagship_usd) from attempts where job_id = any(%s::uuid[])", by_head)
    assert saved[0][0] > 0


def test_other_instructions_have_no_head_and_go_on(place: Place) -> None:
    served_by(place, HEAD)

    result = place.client.result(
        place.client.submit(job("my parcel is late", system="Say whom it is for.")), timeout_s=30
    )

    assert result.model == HAIKU
    [(detail,)] = place.ledger.all(
        "select string_agg(outcome || ' ' || reason, '; ' order by id) from decisions where job_id = %s", result.job_id
    )
    assert "no head is fitted for the job's instructions and labels" in detail


def test_a_local_only_job_is_answered_by_the_head_and_never_leaves(place: Place) -> None:
    served_by(place, HEAD)
    before = len(place.sandbox.log())

    job_id = place.client.submit(job("parcel courier tracking address lost shipment", local_only=True))
    result = place.client.result(job_id, timeout_s=30)

    assert (result.model, result.data) == (HEAD, "delivery")
    assert [line for line in place.sandbox.log()[before:] if line["job"] == job_id] == []


@pytest.mark.skipif(
    os.environ.get("WAYBILL_SLOW") != "1", reason="waits for four looks at the ledger; set WAYBILL_SLOW=1"
)
def test_audits_that_disagree_close_it_and_erasing_a_tenant_deletes_it(place: Place) -> None:
    served_by(place, HEAD)
    [(version, prompt, tenants)] = place.ledger.all("select version, prompt, tenants from heads")
    assert tenants == ["default", "other"]
    sure = {label: 0.0 if label == "billing" else -1e4 for label in LABELS}  # surer than it ever was
    wrong = {"logprobs": sure, "label": "billing", "paid": "account", "prompt": prompt, "model": version}
    place.ledger.all(
        "insert into grades (item, tenant, intent, model, source, score, cost_usd, detail)"
        " select 'drift/' || i, 'default', 'classification', %s, 'audit', 0, 0, %s from generate_series(1, 100) i",
        HEAD, json.dumps(wrong),
    )  # fmt: skip

    closed = place.waybill("why", served_by(place, HAIKU)).stdout

    assert "label-head: none is shown to be right yet" in closed.replace("\n" + " " * 15, " ")

    place.ledger.all("delete from grades where item like 'drift/%%'")
    served_by(place, HEAD)
    erased = place.waybill("erase", "other", "--yes")

    assert erased.returncode == 0, erased.stderr
    assert "1 label head(s) are deleted" in erased.stdout
    assert place.ledger.all("select version from heads where version = %s or 'other' = any(tenants)", version) == []
    end = time.monotonic() + 90
    while not (left := place.ledger.all("select tenants, labels from heads")):  # fitted anew on what others still have
        assert time.monotonic() < end
        time.sleep(0.5)
    assert left[0][0] == ["default"]
    assert left[0][1] < 450
