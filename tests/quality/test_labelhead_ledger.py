"""Which paid answers a head is fitted on, when it is fitted anew, and that nothing of a deleted text is kept."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

import pytest

from policies.catalog import HEAD
from policies.labelhead import Head
from policies.policyfile import Policy, parse
from tests.quality.ledgerrows import LedgerRows
from tests.quality.test_labelhead import TOPICS, letters
from tests.quality.test_labelhead_fleet import HAIKU, POLICY
from tests.quality.test_savings import waybill
from waybill.ledger import heads
from waybill.ledger.engine import Ledger, Row
from workers.heads import HeadFitter

LABELS = list(TOPICS)


@pytest.fixture
def rows(database_url: str) -> Iterator[LedgerRows]:
    with LedgerRows(database_url) as found:
        yield found


@pytest.fixture
async def ledger(database_url: str) -> AsyncIterator[Ledger]:
    made = Ledger(database_url)
    await made.open()
    yield made
    await made.close()


@pytest.fixture
def policy() -> Policy:
    return parse(POLICY, "policy.toml")


def answered(rows: LedgerRows, count: int, *, seed: int = 1, attempts: Any = None, **fields: Any) -> list[str]:
    asked = {"labels": LABELS, **fields}
    return [
        rows.job(
            "classification", attempts or [(HAIKU, "succeeded", "0.001")], text=label, data=label, prompt=f"{text} {seed}", **asked
        )
        for text, label in zip(*letters(count, seed), strict=True)
    ]  # fmt: skip


async def test_a_head_is_fitted_from_a_hundred_labels_on_and_anew_as_they_grow(
    rows: LedgerRows, ledger: Ledger, policy: Policy, database_url: str
) -> None:
    fitter = HeadFitter()
    answered(rows, 99)
    await fitter.look(ledger, policy)
    assert rows.all("select * from heads") == []

    answered(rows, 1, seed=2)
    await fitter.look(ledger, policy)
    [(version, labels)] = rows.all("select version, labels from heads")
    assert labels == 100

    answered(rows, 49, seed=3)
    await fitter.look(ledger, policy)
    assert rows.all("select version from heads") == [(version,)]
    answered(rows, 1, seed=4)
    await fitter.look(ledger, policy)
    [(newer, labels)] = rows.all("select version, labels from heads")
    assert newer != version
    assert labels == 150
    assert f"head {newer} of classification" in waybill(database_url, "policy", "outcomes").stdout


async def test_only_paid_labels_that_nobody_called_wrong_are_learned_and_a_sample_judges(
    rows: LedgerRows, ledger: Ledger, policy: Policy
) -> None:
    answered(rows, 120)
    answered(rows, 20, seed=2, attempts=[("smollm2-135m-instruct", "succeeded", "0")])
    answered(rows, 20, seed=3, labels=[])
    [wrong, *_] = answered(rows, 5, seed=4)
    rows.all(
        "insert into grades (item, job_id, tenant, intent, model, source, score)"
        " values (%s::text, %s::uuid, 'default', 'classification', %s, 'user', 0)", wrong, wrong, HAIKU,
    )  # fmt: skip
    unsure = answered(rows, 30, seed=5, attempts=[(HEAD, "weak", "0"), (HAIKU, "succeeded", "0.001")])
    for job in unsure[:10]:  # those that were drawn
        rows.all(
            "insert into decisions (job_id, attempt, outcome, reason, detail, policy_version)"
            " values (%s, 1, 'escalate', 'audited', %s, 'p')", job, json.dumps({"local": {}}),
        )  # fmt: skip

    await HeadFitter().look(ledger, policy)

    [(labels, content)] = rows.all("select labels, model from heads")
    assert labels == 120 + 4 + 30
    assert len(Head.from_bytes(content).records()) == 120 + 4 + 10


class Forgetful(Ledger):
    """A ledger on which a tenant is erased while a head is being fitted."""

    async def fetch(self, sql: str, params: Mapping[str, Any] | None = None) -> list[Row]:
        found = await super().fetch(sql, params or {})
        if sql == heads.READ:
            await super().fetch(
                "delete from payloads where job_id = (select min(job_id::text)::uuid from payloads) returning 1", {}
            )
        return list(found)


async def test_a_head_is_not_kept_when_a_text_was_deleted_meanwhile(
    rows: LedgerRows, ledger: Ledger, policy: Policy, database_url: str
) -> None:
    answered(rows, 120)
    forgetful = Forgetful(database_url)
    await forgetful.open()

    await HeadFitter().look(forgetful, policy)
    await forgetful.close()
    assert rows.all("select * from heads") == []

    await HeadFitter().look(ledger, policy)
    assert rows.all("select labels from heads") == [(119,)]
