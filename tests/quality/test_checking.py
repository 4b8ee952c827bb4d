"""Standing checks on a real ledger: who is drawn, what it may cost, what comes of it, and what follows for the cascade."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import pytest

from policies.policyfile import Policy, parse
from policies.pricing import PriceBook
from tests.quality.cascades import HAIKU, INTENT, OPUS, POLICY, SONNET
from tests.quality.ledgerrows import LedgerRows
from waybill.client import AsyncClient
from waybill.ledger.engine import Ledger
from waybill.settings import Settings
from workers.cascades import Cascades
from workers.checking import Checking, budget_key

AUDITS = budget_key("audits")


@dataclass
class Bench:
    """A ledger with a cascade in force, and a dispatcher's part that checks."""

    database_url: str
    redis_url: str
    ledger: LedgerRows
    cascade: int = 0

    def look(
        self,
        policy: str = "",
        *,
        dispatchers: int = 1,
        then: Callable[[Ledger], Coroutine[Any, Any, Any]] | None = None,
    ) -> Any:
        """One look of each dispatcher, all at once; what `then` returns."""
        parsed = parse(POLICY + policy, "test")
        return asyncio.run(self._look(parsed, dispatchers, then))

    async def _look(
        self, policy: Policy, dispatchers: int, then: Callable[[Ledger], Coroutine[Any, Any, Any]] | None
    ) -> Any:
        ledger = Ledger(self.database_url)
        settings = Settings.from_env({"WAYBILL_DATABASE_URL": self.database_url, "WAYBILL_REDIS_URL": self.redis_url})
        runtime: Any = SimpleNamespace(ledger=ledger, policy=policy, prices=PriceBook(policy), settings=settings)
        try:
            async with AsyncClient(self.database_url, self.redis_url) as client:
                await asyncio.gather(*(Checking(runtime).look(client) for _ in range(dispatchers)))
            return None if then is None else await then(ledger)
        finally:
            await ledger.close()

    def kept(self, text: str = "12", **fields: Any) -> str:
        """A job whose cheap answer the cascade kept."""
        return self.ledger.job(INTENT, [(HAIKU, "succeeded", "0.01")], text=text, cascade=self.cascade, **fields)

    def checks(self) -> dict[str, tuple[str, str]]:
        """Check and kind by the job that is checked; the latest where there are two."""
        rows = self.ledger.all("select about::text, job_id::text, kind from checks order by job_id")
        return {about: (check, kind) for about, check, kind in rows}

    def scores(self) -> dict[str, tuple[float, float]]:
        """What audits gave, by job."""
        rows = self.ledger.all("select about::text, score, flagship from checks where score is not null")
        return {about: (score, flagship) for about, score, flagship in rows}


@pytest.fixture
def bench(database_url: str, redis_url: str) -> Iterator[Bench]:
    with LedgerRows(database_url) as ledger:
        found = Bench(database_url, redis_url, ledger)
        [(found.cascade,)] = ledger.all(
            "insert into cascades (intent, chain, target, labels, quality, saving, source, model)"
            " values (%s, %s, 0.99, 500, 0.99, 0.5, 'test', '') returning id",
            INTENT, [HAIKU, SONNET, OPUS],
        )  # fmt: skip
        yield found


def is_drawn(job_id: str, share: float) -> bool:
    """The draw, worked out as the documentation says."""
    return int(hashlib.sha256(f"audits {job_id}".encode()).hexdigest()[:8], 16) < share * 2**32


def test_answers_that_the_cascade_kept_are_drawn_by_their_ids_once_whoever_looks(bench: Bench) -> None:
    kept = [bench.kept(prompt=f"case {n}") for n in range(60)]
    escalated = [(HAIKU, "weak", "0.01"), (OPUS, "succeeded", "0.2")]
    for n in range(20):
        bench.ledger.job(INTENT, escalated, cascade=bench.cascade, prompt=f"hard {n}")
        bench.ledger.job(INTENT, [(HAIKU, "succeeded", "0.01")], prompt=f"without {n}")
        bench.ledger.job(INTENT, [("smollm2-135m-instruct", "succeeded", "0")], cascade=bench.cascade)
    share = "[audits]\nshare = 0.3\nbudget_usd_per_day = 100"

    bench.look(share, dispatchers=2)
    first = bench.checks()
    bench.look(share)

    expected = {job_id for job_id in kept if is_drawn(job_id, 0.3)}
    assert 5 < len(expected) < 35
    assert first.keys() == expected
    assert bench.checks() == first
    jobs = bench.ledger.all(
        "select j.model, j.priority, j.key_id, c.share, c.cascade, j.due_at > now() + interval '20 hours'"
        " from checks c join jobs j on j.id = c.job_id group by 1, 2, 3, 4, 5, 6"
    )
    assert jobs == [(OPUS, "lo", AUDITS, 0.3, bench.cascade, True)]


def test_nothing_is_drawn_at_share_0_nor_twice_after_a_command_nor_what_must_stay_local(bench: Bench) -> None:
    job_id = bench.kept()
    bench.look("[audits]\nshare = 0")
    assert bench.checks() == {}

    command = bench.ledger.job(INTENT, [(OPUS, "succeeded", "0.2")])
    bench.ledger.all("insert into checks (job_id, about, kind) values (%s, %s, 'shadow')", command, job_id)
    local = bench.kept(prompt="secret")
    bench.ledger.all("update jobs set local_only = true where id = %s", local)
    bench.ledger.all("delete from payloads where job_id = %s", bench.kept(prompt="erased"))
    bench.look("[audits]\nshare = 1")

    assert bench.checks() == {job_id: (command, "shadow")}


def test_the_budget_of_the_day_is_kept_and_those_under_way_count(bench: Bench) -> None:
    for n in range(10):
        bench.kept(prompt=f"case {n}")
    # 100 + 10 tokens, and a judge of 100 + 20 + 300 and 600: 0.015 USD at the flagship's batch price of 2 and 10 a million.
    bench.look("[audits]\nshare = 1\nbudget_usd_per_day = 0.02")
    [(count, reckoned)] = bench.ledger.all("select count(*), sum(reckoned_usd) from checks")
    bench.look("[audits]\nshare = 1\nbudget_usd_per_day = 0.02")

    assert 0 < count < 10
    assert reckoned <= Decimal("0.02")
    assert len(bench.checks()) == count
    [budget] = bench.ledger.all("select scope, subject, period, cap_usd, at_cap from budgets")
    assert budget == ("key", AUDITS, "day", Decimal("0.02"), "stop")

    bench.look("[audits]\nshare = 1\nbudget_usd_per_day = 1")

    assert len(bench.checks()) == 10


def test_what_is_spent_today_counts_and_what_was_spent_yesterday_does_not(bench: Bench) -> None:
    bench.kept()
    rules = "[audits]\nshare = 1\nbudget_usd_per_day = 1"
    bench.ledger.all(
        "insert into budgets (scope, subject, period, cap_usd, spent_usd, resets_at)"
        " values ('key', %s, 'day', 1, 1, now() + interval '1 hour')",
        AUDITS,
    )
    bench.look(rules)
    assert bench.checks() == {}

    bench.ledger.all("update budgets set resets_at = now() - interval '1 second'")
    bench.look(rules)

    assert len(bench.checks()) == 1


def test_answers_are_compared_and_free_texts_read_by_the_flagship_without_a_grade_for_the_model(bench: Bench) -> None:
    rules = "[audits]\nshare = 1\nbudget_usd_per_day = 100"
    same, other, gone = (bench.kept(text="12", prompt=name) for name in ("same", "other", "gone"))
    texts = [bench.kept(text=f"Stones are heavy, says {n}.", prompt=f"text {n}") for n in range(6)]
    bench.look(rules)
    for job_id, (check, _) in bench.checks().items():
        answer = {same: "12.0", other: "13", gone: None}.get(job_id, "Feathers are light.")
        bench.ledger.finish(check, OPUS, text=answer)
    bench.look(rules, dispatchers=2)

    assert bench.scores() == {same: (1.0, 1.0), other: (0.0, 1.0)}
    judges = {job_id: check for job_id, (check, kind) in bench.checks().items() if kind == "judge"}
    assert judges.keys() == set(texts)
    for job_id, check in judges.items():
        # The order is drawn by the job's id, so a judge that prefers the first one prefers neither model.
        [(payload,)] = bench.ledger.all("select body::jsonb ->> 'prompt' from payloads where job_id = %s", check)
        is_first = payload.index("Stones") < payload.index("Feathers")
        assert is_first == (hashlib.sha256(job_id.encode()).digest()[0] % 2 == 0)
        bench.ledger.finish(check, OPUS, text="", data={"first": 4 if is_first else 9, "second": 9 if is_first else 4})
    bench.look(rules)

    assert {bench.scores()[job_id] for job_id in texts} == {(0.4, 0.9)}
    assert bench.ledger.all("select count(*) from checks where ended_at is null") == [(0,)]
    assert bench.ledger.all("select count(*) from grades") == [(0,)]


def test_a_cascade_that_its_audits_contradict_is_taken_out_of_force_once(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    for n in range(40):
        bench.kept(prompt=f"case {n}")
    for n in range(40):
        bench.ledger.job(INTENT, [(OPUS, "succeeded", "0.2")], cascade=bench.cascade, prompt=f"hard {n}")
    rules = "[audits]\nshare = 1\nbudget_usd_per_day = 100"
    bench.look(rules)
    for n, (check, _) in enumerate(bench.checks().values()):
        bench.ledger.finish(check, OPUS, text="12" if n % 4 else "13")
    bench.look(rules)

    async def in_force(ledger: Ledger) -> Cascades:
        found = Cascades()
        await found.look(ledger)
        return found

    with caplog.at_level(logging.INFO, "waybill"):
        found = bench.look(rules, dispatchers=2, then=in_force)

    [(reason, ended)] = bench.ledger.all("select drift, ended_at from cascades")
    assert reason.startswith("40 audits of kept answers (50% of its jobs): 0.8750 of the flagship")
    assert ended is None
    told = [record for record in caplog.records if getattr(record, "event", "") == "cascade.drifted"]
    assert [record.fields for record in told] == [{"intent": INTENT, "reason": reason}]  # type: ignore[attr-defined]
    assert found.intents == []
    # Nothing is audited any more that it does not decide.
    count = len(bench.checks())
    bench.kept(prompt="late")
    bench.look(rules)
    assert len(bench.checks()) == count


JUDGED = "[judging]\nshare = 1\nbudget_usd_per_day = 100\n[audits]\nshare = 0"


def test_free_texts_of_other_models_are_judged_into_grades_once_however_often_it_is_begun(bench: Bench) -> None:
    texts = [
        bench.ledger.job("notes", [(SONNET, "succeeded", "0.05")], text=f"Stones, {n}.", prompt=f"n{n}")
        for n in range(4)
    ]
    bench.ledger.job("notes", [(OPUS, "succeeded", "0.2")], text="The flagship's own.")
    bench.kept(text="Under a cascade.")
    formed = bench.ledger.job("notes", [(SONNET, "succeeded", "0.05")], text="{}", data={})
    bench.ledger.all("update jobs set needs = '{json_schema}' where id = %s", formed)

    bench.look()
    assert bench.checks() == {}  # nobody has asked for it

    bench.look(JUDGED, dispatchers=2)
    assert bench.checks().keys() == set(texts)
    same = texts[0]
    for job_id, (check, _) in bench.checks().items():
        bench.ledger.finish(check, OPUS, text="stones, 0." if job_id == same else "Feathers.", usd="0.11")
    bench.look(JUDGED, dispatchers=2)
    judges = {job_id: check for job_id, (check, kind) in bench.checks().items() if kind == "judge"}
    assert judges.keys() == set(texts) - {same}
    for job_id, check in judges.items():
        is_first = hashlib.sha256(job_id.encode()).digest()[0] % 2 == 0
        bench.ledger.finish(
            check, OPUS, text="", data={"first": 6 if is_first else 8, "second": 8 if is_first else 6}, usd="0.07"
        )
    bench.look(JUDGED, dispatchers=2)
    bench.look(JUDGED)

    grades = bench.ledger.all(
        "select item, model, source, score, cost_usd from grades where item <> %s order by item, model", same
    )
    assert grades == [
        row
        for job_id in sorted(judges)
        for row in (
            (job_id, OPUS, "judge", 0.8, Decimal("0.11")),  # what its answer cost, not the verdict
            (job_id, SONNET, "judge", 0.6, Decimal("0.05")),
        )
    ]
    alike = bench.ledger.all("select model, source, score from grades where item = %s order by model", same)
    assert alike == [(OPUS, "shadow", 1.0), (SONNET, "shadow", 1.0)]  # no reader is needed
    assert bench.ledger.all("select count(*), count(ended_at), count(score) from checks") == [(7, 7, 0)]
    assert bench.ledger.all("select distinct subject from budgets") == [(budget_key("judging"),)]
    assert bench.ledger.all("select distinct key_id from jobs where key_id is not null") == [(budget_key("judging"),)]


def test_a_request_in_a_providers_dialect_is_asked_again_whole_and_judged_by_its_words(bench: Bench) -> None:
    body = {
        "model": "auto", "stream": True, "stream_options": {"include_usage": True},
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is a stone?"}],
    }  # fmt: skip
    wire = {"dialect": "chat", "body": body, "text_bytes": 30}
    asked = bench.ledger.job("notes", [(SONNET, "succeeded", "0.05")], text="Heavy.", wire=wire)
    picture = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://x.example/a.png"}}]}
    seen = bench.ledger.job(
        "notes", [(SONNET, "succeeded", "0.05")], text="Grey.", wire={**wire, "body": {**body, "messages": [picture]}}
    )
    for job_id in (asked, seen):  # a request in a dialect has no prompt of its own
        bench.ledger.all("update payloads set body = (body::jsonb - 'prompt')::text where job_id = %s", job_id)

    bench.look(JUDGED)
    [(about, (check, _))] = bench.checks().items()
    [(payload, stream)] = bench.ledger.all(
        "select p.body::jsonb, j.stream from payloads p join jobs j on j.id = p.job_id where j.id = %s", check
    )
    bench.ledger.finish(check, OPUS, text="It is hard.")
    bench.look(JUDGED)
    [(question,)] = bench.ledger.all(
        "select body::jsonb ->> 'prompt' from payloads where job_id = %s", bench.checks()[asked][0]
    )

    assert about == asked
    assert (payload["wire"]["body"], payload["model"], stream) == (
        {"model": "auto", "messages": body["messages"]}, OPUS, False,
    )  # fmt: skip
    assert "<task>\nBe brief.\n\nWhat is a stone?\n</task>" in question
    assert "Heavy." in question
    assert "It is hard." in question
