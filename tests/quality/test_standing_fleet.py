"""A real fleet checks samples of its answers by itself: in the batch lane, booked as checks, with what follows from them."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal

import pytest

from producers.fitting import fit
from sandbox.testing import spawned
from tests.fleet import RunningFleet, redis_database, running_fleet
from tests.quality.cascades import HAIKU, INTENT, OPUS, POLICY, SONNET, invent
from tests.quality.ledgerrows import LedgerRows
from tests.quality.place import Place
from waybill import Client, Job, embedded

pytestmark = pytest.mark.timeout(900)
JOBS = 40
ROOMY = "*:rpm=1000000,itpm=1000000000,otpm=1000000000,tpm=1000000000"
NOTES = 6
RULES = f"""
[intents.notes]
chain = ["{SONNET}", "{OPUS}"]
reason = "free text"
[audits]
share = 1
budget_usd_per_day = 5
[judging]
share = 1
budget_usd_per_day = 5
[batches]
linger_s = 0.3
poll_s = 0.3
"""


@dataclass(frozen=True, kw_only=True)
class StandingPlace(Place):
    """With the fleet's processes, to be killed."""

    fleet: RunningFleet


@pytest.fixture(scope="module")
def place(
    services: embedded.Services, ledger_template: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[StandingPlace]:
    """A fleet with a learned cascade, in a world where Haiku has become wrong about easy sums and looks as before."""
    folder = tmp_path_factory.mktemp("standing")
    (folder / "policy.toml").write_text(POLICY + RULES)
    with (folder / "book.jsonl").open("w") as book:
        for n in range(JOBS + 1):
            for model, answer in ((HAIKU, "123"), (SONNET, "123"), (OPUS, "456")):
                book.write(json.dumps({"match": _prompt(n), "model": model, "answer": answer}) + "\n")
    database_url = embedded.create_database(str(services.database_url), "standing", template=ledger_template)
    redis_url = redis_database(services, "cascade")
    policy = {"WAYBILL_POLICY_FILE": str(folder / "policy.toml")}
    env = {"WAYBILL_DATABASE_URL": database_url, "WAYBILL_REDIS_URL": redis_url, **policy}
    with LedgerRows(database_url) as ledger:
        fitted = fit(invent(300, seed=3), target=0.95, seed=0, name="made")
        ledger.all(
            "insert into cascades (intent, chain, target, labels, quality, saving, source, model)"
            " values (%s, %s, 0.95, 300, 0.95, 0.5, 'test', %s)",
            INTENT, list(fitted.chain), fitted.content,
        )  # fmt: skip
        with (
            spawned("--answers", str(folder / "book.jsonl"), "--latency", "fixed:2ms", "--limit", ROOMY) as sandbox,
            running_fleet(database_url, redis_url, sandbox.url, folder, env=policy) as fleet,
            Client(database_url, redis_url) as client,
        ):
            sandbox.batch_pace(turnaround_s=0.5)
            yield StandingPlace(env, client, sandbox, ledger, folder, fleet=fleet)


def _prompt(n: int) -> str:
    return f"add the simple numbers of case 9-{n:03} red blue"


def until(happened: Callable[[], bool], what: str, timeout_s: float = 180) -> None:
    """Wait for it."""
    end = time.monotonic() + timeout_s
    while not happened():
        assert time.monotonic() < end, f"{what} did not happen within {timeout_s:g} s"
        time.sleep(0.5)


def test_audits_find_that_a_cascade_has_drifted_and_the_flagship_takes_its_place(place: StandingPlace) -> None:
    jobs = [Job(intent=INTENT, prompt=_prompt(n), priority="lo") for n in range(JOBS)]
    outcomes = list(place.client.results(place.client.submit_many(jobs), timeout_s=200))

    assert {outcome.result and outcome.result.model for outcome in outcomes} == {HAIKU}
    until(lambda: bool(place.ledger.all("select id from cascades where drift is not null")), "the drift")
    kinds = place.ledger.all(
        "select c.kind, a.service, a.model, count(*) from checks c join attempts a on a.job_id = c.job_id group by 1, 2, 3"
    )
    assert kinds == [("shadow", "batch", OPUS, JOBS)]
    [(spent,)] = place.ledger.all("select sum(a.cost_usd) from checks c join attempts a on a.job_id = c.job_id")
    [(budget,)] = place.ledger.all("select spent_usd from budgets where subject = 'standing:audits'")
    assert 0 < budget <= spent

    def answered() -> str:
        job = Job(intent=INTENT, prompt=_prompt(JOBS), priority="lo", reuse=False)
        return place.client.result(place.client.submit(job), timeout_s=60).model

    until(lambda: answered() == OPUS, "an answer of the flagship", 60)
    shown = place.waybill("policy", "outcomes").stdout
    assert f"drifted, {OPUS} answers in its place" in shown
    assert f"{JOBS} audits of kept answers" in shown
    savings = place.waybill("savings", "--since", "1d", "--json", "s.json")
    assert savings.returncode == 0, savings.stderr
    found = json.loads((place.folder / "s.json").read_text())
    assert Decimal(found["spent"]["shadows and judges"]) == spent
    assert found["by_intent"][INTENT]["quality"]["mean_score"] == 0.0


@pytest.mark.skipif(
    os.environ.get("WAYBILL_SLOW") != "1", reason="waits for five looks at the ledger; set WAYBILL_SLOW=1"
)
def test_free_texts_are_judged_by_themselves_and_once_when_the_dispatcher_dies_amid_it(place: StandingPlace) -> None:
    prompts = [f"Write what you know of stone {n}." for n in range(NOTES)]
    notes = place.client.submit_many([Job(intent="notes", prompt=prompt, priority="lo") for prompt in prompts])
    assert all(outcome.result for outcome in place.client.results(notes, timeout_s=200))
    about = "select c.kind, count(*) from checks c where c.about = any(%s::uuid[]) group by 1 order by 1"

    until(lambda: bool(place.ledger.all(about, notes)), "the first check")
    place.fleet.kill("dispatcher")
    place.fleet.start("dispatcher")
    graded = "select model, count(*) from grades where source = 'judge' group by 1 order by 1"
    until(lambda: place.ledger.all(graded) == [(OPUS, NOTES), (SONNET, NOTES)], "the grades")

    assert place.ledger.all(about, notes) == [("judge", NOTES), ("shadow", NOTES)]
    services = place.ledger.all(
        "select a.service, count(*) from checks c join attempts a on a.job_id = c.job_id"
        " where c.about = any(%s::uuid[]) group by 1",
        notes,
    )
    assert services == [("batch", 2 * NOTES)]
    [(spent,)] = place.ledger.all(
        "select sum(a.cost_usd) from checks c join attempts a on a.job_id = c.job_id where c.about = any(%s::uuid[])",
        notes,
    )
    [(booked,)] = place.ledger.all(
        "select b.spent_usd + coalesce(sum(c.spent_usd), 0) from budgets b left join charges c on c.budget_id = b.id"
        " where b.subject = 'standing:judging' group by b.id"
    )
    assert 0 < spent == booked
