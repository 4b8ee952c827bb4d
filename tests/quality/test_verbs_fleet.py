"""The verbs that learn and report, with a real fleet over receipts and questions: savings agree with the sandbox's own log."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from sandbox.bill import cost_usd
from sandbox.exchange import Usage
from sandbox.models import Catalogue
from sandbox.testing import spawned
from tests.acceptance.test_real_documents import RECORDED, ROOMY, SCHEMA, receipts_book
from tests.fleet import redis_database, running_fleet
from tests.quality.ledgerrows import LedgerRows
from tests.quality.place import Place
from waybill import Client, Job, embedded

SAMPLE = 400 if os.environ.get("WAYBILL_SLOW") == "1" else 30
"""Of each kind; all of them with WAYBILL_SLOW=1."""


@pytest.fixture(scope="module")
def place(
    services: embedded.Services, ledger_template: str, shared_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Place]:
    """A fleet that has carried receipts (with mistakes of the cheap model) and questions with recorded answers."""
    folder = tmp_path_factory.mktemp("verbs")
    database_url = embedded.create_database(str(services.database_url), "verbs", template=ledger_template)
    redis_url = redis_database(services, "verbs")
    receipts = pq.read_table(shared_data / "docs-sroie-receipts.parquet").to_pylist()[:SAMPLE]
    table = pq.read_table(shared_data / "outcomes" / "zeroeval.parquet").to_pylist()
    receipts_book(receipts, folder / "book.jsonl")
    with (folder / "book.jsonl").open("a") as book:
        for model, old in RECORDED.items():
            for row in [row for row in table if row["model"] == old][:SAMPLE]:
                answer = row["answer"] or f"{row['item_id']} scored {row['score']}"
                book.write(json.dumps({"match": f"[{row['item_id']}]", "model": model, "answer": answer}) + "\n")
    questions = [row for row in table if row["model"] == RECORDED["claude-opus-5-5"]][:SAMPLE]
    jobs = [
        Job(intent="extraction", prompt=f"Read this receipt.\n\n{row['text']}", json_schema=SCHEMA, priority="lo")
        for row in receipts
    ] + [
        Job(intent="reasoning", prompt=f"[{row['item_id']}]\n{row['prompt']}", priority="lo", deadline_s=3000)
        for row in questions
    ]
    env = {"WAYBILL_DATABASE_URL": database_url, "WAYBILL_REDIS_URL": redis_url}
    with (
        spawned("--answers", str(folder / "book.jsonl"), "--latency", "fixed:5ms", "--limit", ROOMY) as sandbox,
        running_fleet(database_url, redis_url, sandbox.url, folder),
        Client(database_url, redis_url) as client,
        LedgerRows(database_url) as ledger,
    ):
        ids = client.submit_many(jobs)
        outcomes = list(client.results(ids, timeout_s=600))
        assert all(outcome.result for outcome in outcomes)
        prompts = {job_id: job.prompt or "" for job_id, job in zip(ids, jobs, strict=True)}
        yield Place(env, client, sandbox, ledger, folder, prompts)


def figures(place: Place) -> dict[str, Any]:
    done = place.waybill("savings", "--since", "1d", "--json", "s.json", "--plot", "s.html")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads((place.folder / "s.json").read_text())
    return found


def test_savings_agree_with_the_sandboxes_own_log(place: Place) -> None:
    found = figures(place)

    calls = [call for line in place.sandbox.log() if (call := _call(line)) is not None]
    last = {line["job"]: line for line in sorted(calls, key=lambda line: int(line["attempt"]))}
    opus = Catalogue().find("claude-opus-5-5", "anthropic")
    assert opus is not None
    by_prompt = {place.prompts[job]: line for job, line in last.items()}
    # The same question again is answered from memory, without a call; the flagship would have been paid twice.
    assert set(by_prompt) == set(place.prompts.values())
    flagship = sum((cost_usd(opus, _usage(by_prompt[asked])) for asked in place.prompts.values()), start=Decimal(0))
    answered = sum((Decimal(line["usd"]) for line in last.values()), start=Decimal(0))
    spent = sum((Decimal(line["usd"]) for line in calls), start=Decimal(0))
    assert Decimal(found["usd"]) == spent == Decimal(str(place.sandbox.bill()["total_usd"]))
    assert Decimal(found["spent"]["answers"]) == answered
    assert Decimal(found["spent"]["rejected answers"]) == spent - answered > 0
    assert found["saved_against_flagship"] == pytest.approx(float(1 - spent / flagship), abs=1e-6)
    assert "<svg" in (place.folder / "s.html").read_text()


def _call(line: dict[str, Any]) -> dict[str, Any] | None:
    """A call that was sold, singly or as a row of a batch, which the log names `job-attempt`."""
    if line.get("status") == 200 and line.get("job"):
        return line
    if line.get("endpoint") == "batch" and line.get("outcome") == "succeeded":
        job, _, attempt = line["job"].rpartition("-")
        return {**line, "job": job, "attempt": attempt}
    return None


def _usage(line: dict[str, Any]) -> Usage:
    names = ("input_tokens", "cache_write_tokens", "cache_write_long_tokens", "cache_read_tokens", "output_tokens")
    told = dict.fromkeys((*names, "thinking_tokens"), 0) | line["usage"]
    return Usage(
        input=told["input_tokens"],
        cache_write_short=told["cache_write_tokens"],
        cache_write_long=told["cache_write_long_tokens"],
        cache_read=told["cache_read_tokens"],
        output=told["output_tokens"],
        thinking=told["thinking_tokens"],
    )


def test_a_shadow_run_keeps_its_budget_and_grades_both_models(place: Place) -> None:
    before = Decimal(figures(place)["usd"])

    poor = place.waybill("policy", "shadow", "--intent", "extraction", "--budget", "0.000001")
    done = place.waybill("policy", "shadow", "--intent", "extraction", "--sample", "8", "--budget", "0.2")

    assert "reckoned at more" in poor.stderr
    assert done.returncode == 0, done.stderr
    grades = place.ledger.all(
        "select model, count(*), avg(score) from grades where source = 'shadow' group by model order by 1"
    )
    flagship = next(row for row in grades if row[0] == "claude-opus-5-5")
    assert flagship[1:] == (8, 1.0)
    assert sum(row[1] for row in grades if row[0] != "claude-opus-5-5") == 8
    after = figures(place)
    checks = Decimal(after["spent"]["shadows and judges"])
    assert 0 < checks <= Decimal("0.2")
    assert Decimal(after["usd"]) == before + checks
    assert after["by_intent"]["extraction"]["quality"]["graded"] == 8


def test_free_texts_are_judged_by_the_flagship(place: Place) -> None:
    place.client.result(
        place.client.submit(intent="summarization", prompt="Stones are heavy, feathers are not."), timeout_s=60
    )

    done = place.waybill("policy", "shadow", "--intent", "summarization", "--budget", "1")

    assert done.returncode == 0, done.stderr
    assert "1 judged" in done.stdout
    rows = place.ledger.all("select model, score from grades where source = 'judge' order by model")
    assert [row[0] for row in rows] == ["claude-opus-5-5", "claude-sonnet-5-5"]


def test_replay_reckons_another_policy_without_a_call(place: Place) -> None:
    (place.folder / "new.toml").write_text(
        'version = "new"\nflagship = "claude-opus-5-5"\n[intents.extraction]\nchain = ["claude-opus-5-5"]\nreason = "r"\n'
        '[intents.reasoning]\nchain = ["claude-haiku-5-5"]\nreason = "r"\n'
    )
    before = len(place.sandbox.log())

    done = place.waybill("policy", "replay", "--policy", "new.toml", "--since", "1d", "--json", "r.json")

    assert done.returncode == 0, done.stderr
    found = json.loads((place.folder / "r.json").read_text())
    asked = len(set(place.prompts.values()))  # an answer from memory was no decision
    assert found["jobs"] >= asked
    assert found["moved"] >= asked
    assert found["after"]["late"] is None or found["after"]["late"]["mean"] == 0
    assert "no job of reasoning began with claude-haiku-5-5" in done.stdout
    assert len(place.sandbox.log()) == before


def test_compare_shows_price_and_agreement_before_a_run(place: Place) -> None:
    (place.folder / "prompt.txt").write_text("Read this receipt.\n\n{text}")
    (place.folder / "schema.json").write_text(json.dumps(SCHEMA))
    rows = [json.loads(line)["match"] for line in (place.folder / "book.jsonl").read_text().splitlines()]
    texts = list(dict.fromkeys(rows))[:10]
    (place.folder / "in.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    ask = ("compare", "in.jsonl", "--intent", "extraction", "--prompt", "prompt.txt", "--schema", "schema.json")

    done = place.waybill(*ask, "--models", "gpt-6-luna,claude-opus-5-5", "--sample", "6")
    alone = place.waybill(*ask, "--models", "gpt-6-luna")

    assert done.returncode == 0, done.stderr
    assert "6 of 10 rows" in done.stdout
    assert "100.0%" in done.stdout
    assert "at least two models" in alone.stderr


def test_an_imported_evaluation_changes_the_plan_and_says_what_lacks(place: Place, shared_data: Path) -> None:
    done = place.waybill(
        "policy", "import", str(shared_data / "outcomes" / "zeroeval.parquet"),
        "--model", "claude-3-5-sonnet-20241022=claude-opus-5-5",
    )  # fmt: skip
    shown = place.waybill("policy", "outcomes", "--json", "o.json")
    wrong = place.waybill("policy", "import", str(shared_data / "docs-sroie-receipts.parquet"))

    assert done.returncode == 0, done.stderr
    assert "11,008 grades" in done.stdout
    assert shown.returncode == 0, shown.stderr
    assert json.loads((place.folder / "o.json").read_text())["target"] == 0.99
    assert "missing columns" in wrong.stderr
