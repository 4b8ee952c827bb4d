"""The whole fleet over real documents: 328 receipts and the ZeroEval questions, checked row by row against the sandbox's
own log and bill, which know nothing of our code."""

from __future__ import annotations

import json
import random
from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from sqlalchemy import create_engine

from policies.grounding import Source
from sandbox.testing import Running, spawned
from tests.fleet import running_fleet
from waybill import Client, Job

SCHEMA = {
    "type": "object",
    "properties": {key: {"type": "string", "minLength": 1} for key in ("company", "date", "address", "total")},
    "required": ["company", "date", "address", "total"],
    "additionalProperties": False,
}

# What is tested here is the way of the answers; limits have tests of their own.
ROOMY = "*:rpm=1000000,itpm=1000000000,otpm=1000000000,tpm=1000000000"

# The sandbox serves these two under the ids that our policy routes to, with the recorded answers of older models.
RECORDED = {"claude-haiku-5-5": "claude-3-5-haiku-20241022", "claude-opus-5-5": "claude-3-5-sonnet-20241022"}


def receipts_book(rows: list[dict[str, Any]], path: Path) -> Counter[str]:
    """An answer book from the gold, with errors per model; how many receipts Haiku gets wrong in which way."""
    rng = random.Random(20261123)
    mistakes: Counter[str] = Counter()
    with path.open("w") as out:
        for row in rows:
            gold = json.loads(row["gold"])
            gold = {key: str(gold.get(key) or "n/a") for key in SCHEMA["required"]}
            kind = rng.choices(["right", "missing", "prose", "wrong"], [88, 5, 4, 3])[0]
            mistakes[kind] += 1
            haiku: Any = gold
            if kind == "missing":
                haiku = {key: value for key, value in gold.items() if key != "total"}
            elif kind == "prose":
                haiku = f"The total is {gold['total']}."
            elif kind == "wrong":
                haiku = gold | {"total": "0.00"}
            for model, answer in (("claude-haiku-5-5", haiku), ("*", gold)):
                text = answer if isinstance(answer, str) else json.dumps(answer)
                out.write(json.dumps({"match": row["text"], "model": model, "answer": text}) + "\n")
    return mistakes


def assert_books_agree(database_url: str, sandbox: Running) -> list[dict[str, Any]]:
    """Every attempt is one request of the sandbox's log, with the same model, tokens and cost; totals are equal."""
    engine = create_engine(database_url)
    with engine.connect() as connection:
        rows = [dict(row) for row in connection.exec_driver_sql("select * from attempts").mappings()]
        total = connection.exec_driver_sql("select sum(cost_usd) from attempts").scalar_one()
    engine.dispose()
    unbilled = [row for row in rows if row["state"] in ("throttled", "released") or row["service"] == "reuse"]
    assert all(row["cost_usd"] == 0 for row in unbilled)
    attempts = [row for row in rows if row not in unbilled]
    seen = {(line["job"], int(line["attempt"])): line for line in sandbox.log() if line["status"] == 200}
    assert len(seen) == len(attempts)
    for attempt in attempts:
        line = seen[str(attempt["job_id"]), attempt["number"]]
        assert line["model"] == attempt["model"] == attempt["served_model"]
        assert Decimal(line["usd"]) == attempt["cost_usd"], attempt
        assert attempt["cost_source"] == "usage"
    assert Decimal(str(sandbox.bill()["total_usd"])) == total
    return attempts


def test_receipts_are_extracted_routed_priced_and_escalated(
    database_url: str, redis_url: str, shared_data: Path, tmp_path: Path
) -> None:
    rows = pq.read_table(shared_data / "docs-sroie-receipts.parquet").to_pylist()
    mistakes = receipts_book(rows, tmp_path / "book.jsonl")

    with (
        spawned("--answers", str(tmp_path / "book.jsonl"), "--latency", "fixed:20ms", "--limit", ROOMY) as sandbox,
        running_fleet(database_url, redis_url, sandbox.url, tmp_path),
        Client(database_url, redis_url) as client,
    ):
        jobs = [
            Job(
                intent="extraction",
                prompt=f"Read this receipt and give company, date, address and total.\n\n{row['text']}",
                json_schema=SCHEMA,
                priority="lo",
                metadata={"doc_id": row["doc_id"]},
            )
            for row in rows
        ]
        ids = client.submit_many(jobs)
        outcomes = {outcome.job_id: outcome for outcome in client.results(ids, timeout_s=120)}
        attempts = assert_books_agree(database_url, sandbox)

    assert len(outcomes) == len(set(ids)) == 328
    for job_id, row, job in zip(ids, rows, jobs, strict=True):
        result = outcomes[job_id].result
        assert result is not None
        assert result.metadata == {"doc_id": row["doc_id"]}
        assert set(result.data) == set(SCHEMA["required"])
        assert result.usd == sum(a["cost_usd"] for a in attempts if str(a["job_id"]) == job_id)
        # The gold itself is not always in the scan: then every model is asked, and the last one's answer stands.
        stands = all(Source(job.prompt).holds(value) for value in result.data.values())
        if result.lane.endswith("/reuse"):
            continue  # the same receipt twice: its answer is given again
        expected = "gpt-6-luna" if result.attempts == 2 else "claude-haiku-5-5" if stands else "claude-sonnet-5-5"
        assert result.model == expected
        assert result.attempts == (1 if expected == "claude-haiku-5-5" else 2 if stands else 3)
    # Answers that are no JSON, lack a field or hold a total that was made up: not one became a result, but where the
    # scan happens to hold the made-up number ("change 0.00").
    for job_id, job in zip(ids, jobs, strict=True):
        result = outcomes[job_id].result
        assert result is not None
        assert result.data["total"] != "0.00" or Source(job.prompt).holds("0.00")
    escalated = sum(a["state"] == "weak" for a in attempts)
    assert escalated > mistakes["missing"] + mistakes["prose"]
    reused = sum(outcomes[i].result.lane.endswith("/reuse") for i in ids)  # type: ignore[union-attr]
    assert len(attempts) == 328 - reused + escalated


def test_recorded_answers_of_real_models_come_back_as_recorded(
    database_url: str, redis_url: str, shared_data: Path, tmp_path: Path
) -> None:
    table = pq.read_table(shared_data / "outcomes" / "zeroeval.parquet").to_pylist()
    by_model = {model: {r["item_id"]: r for r in table if r["model"] == old} for model, old in RECORDED.items()}
    questions = list(by_model["claude-opus-5-5"].values())
    assert len(questions) == 1376
    prompts = [f"[{row['item_id']}]\n{row['prompt']}" for row in questions]
    with (tmp_path / "book.jsonl").open("w") as out:
        for model, rows in by_model.items():
            for row in rows.values():
                # Where a model's answer was not recorded, its score stands in, so that every row can be told apart.
                answer = row["answer"] or f"{row['item_id']} scored {row['score']}"
                out.write(json.dumps({"match": f"[{row['item_id']}]", "model": model, "answer": answer}) + "\n")

    with (
        spawned("--answers", str(tmp_path / "book.jsonl"), "--latency", "fixed:5ms", "--limit", ROOMY) as sandbox,
        running_fleet(database_url, redis_url, sandbox.url, tmp_path),
        Client(database_url, redis_url) as client,
    ):
        ids = client.submit_many([Job(intent="reasoning", prompt=prompt, priority="lo") for prompt in prompts])
        outcomes = {outcome.job_id: outcome for outcome in client.results(ids, timeout_s=150)}
        attempts = assert_books_agree(database_url, sandbox)

    assert len(outcomes) == len(attempts) == 1376
    for job_id, row in zip(ids, questions, strict=True):
        result = outcomes[job_id].result
        assert result is not None, outcomes[job_id].error
        assert result.model == "claude-opus-5-5"
        assert result.text == (row["answer"] or f"{row['item_id']} scored {row['score']}")
