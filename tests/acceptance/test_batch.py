"""`waybill run` as a person uses it: the program itself, a real fleet, a sandbox whose bill is its own."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pytest

from producers import demo
from producers.demo import ANSWERS
from producers.policy import load_policy
from sandbox.testing import Running, spawned
from tests.fleet import ROOT, clean_environment, running_fleet
from waybill import AsyncClient, embedded
from waybill.settings import Settings

ROOMY = "*:rpm=1000000,itpm=1000000000,otpm=1000000000,tpm=1000000000"
PROMPT = "Give the name in this note as JSON.\n\n{text}"
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}},
    "required": ["name"],
    "additionalProperties": False,
}


@dataclass(frozen=True)
class Place:
    """A fleet, and a folder to work in."""

    folder: Path
    env: dict[str, str]
    sandbox: Running
    tenant: str = "default"

    def command(self, *args: str) -> list[str]:
        code = "import sys; from waybill.cli import main; sys.argv[0] = 'waybill'; main()"
        return [sys.executable, "-c", code, "run", "--tenant", self.tenant, *args]

    def run(self, *args: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*args), cwd=self.folder, env={**clean_environment(), "PYTHONPATH": str(ROOT), **(env or self.env)},
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip

    def popen(self, *args: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command(*args), cwd=self.folder, env={**clean_environment(), "PYTHONPATH": str(ROOT), **self.env},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def calls(self) -> int:
        """Answers that the sandbox has sold so far."""
        return sum(line["status"] == 200 for line in self.sandbox.log())

    def write(self, name: str, content: str) -> str:
        (self.folder / name).write_text(content, encoding="utf-8")
        return name


@pytest.fixture(scope="module")
def fleet(
    services: embedded.Services, ledger_template: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Place]:
    """One fleet for this file, over a sandbox that takes 50 ms an answer and gets every name right."""
    folder = tmp_path_factory.mktemp("batch")
    database_url = embedded.create_database(str(services.database_url), "batch", template=ledger_template)
    redis_url = str(services.redis_url)
    book = [
        {"match": f"note number {n} ", "model": "*", "answer": json.dumps({"name": f"Name {n}"})} for n in range(400)
    ]
    book.append({"match": "note number 3 ", "model": "claude-haiku-5-5", "answer": '{"nom": "Name 3"}'})
    lines = "".join(json.dumps(entry) + "\n" for entry in book) + ANSWERS.read_text(encoding="utf-8")
    (folder / "book.jsonl").write_text(lines, encoding="utf-8")
    with (
        spawned("--answers", str(folder / "book.jsonl"), "--latency", "fixed:50ms", "--limit", ROOMY) as sandbox,
        running_fleet(database_url, redis_url, sandbox.url, folder),
    ):
        yield Place(folder, {"WAYBILL_DATABASE_URL": database_url, "WAYBILL_REDIS_URL": redis_url}, sandbox)


@pytest.fixture
def place(fleet: Place, tmp_path: Path) -> Place:
    """The fleet with an empty bill and a tenant of the test's own, in an empty folder."""
    fleet.sandbox.reset()
    there = replace(fleet, folder=tmp_path, tenant=f"t{next(_tenants)}")
    there.write("prompt.txt", PROMPT)
    there.write("schema.json", json.dumps(SCHEMA))
    return there


_tenants = itertools.count(1)
ASK = ("--intent", "extraction", "--prompt", "prompt.txt", "--schema", "schema.json")


def note(number: int) -> str:
    return f"This is note number {number} of many."


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line, parse_float=Decimal) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_folder_is_extracted_in_order_then_done_again_for_nothing(place: Place) -> None:
    notes = place.folder / "notes"
    (notes / "deep").mkdir(parents=True)
    for number in range(12):
        (notes / ("deep" if number > 9 else ".") / f"{number:02}.txt").write_text(note(number))
    (notes / "05.txt").write_bytes(b"\xff\xfe not text")
    (notes / "06.txt").write_text("  \n")
    (notes / "07.txt").write_text(note(7) + " \0 with a NUL")
    (notes / "away.txt").symlink_to("/etc/hostname")
    os.mkfifo(notes / "pipe.txt")

    first = place.run("notes", *ASK, "--output", "out.jsonl", "--report", "report.json")
    calls = place.calls()
    second = place.run("notes", *ASK, "--output", "again.jsonl", "--report", "again.json")

    assert first.returncode == 2, first.stderr
    rows = {row["file"]: row for row in read_rows(place.folder / "out.jsonl")}
    assert list(rows) == [
        *(f"{n:02}.txt" for n in range(10)), "away.txt", "deep/10.txt", "deep/11.txt", "pipe.txt",
    ]  # fmt: skip
    invalid = {file: row["_error"] for file, row in rows.items() if row["_status"] == "invalid"}
    assert set(invalid) == {"05.txt", "06.txt", "away.txt", "pipe.txt"}
    assert "UTF-8" in invalid["05.txt"]
    assert "`text` is empty" in invalid["06.txt"]
    assert "leaves the folder" in invalid["away.txt"]
    assert "not a regular file" in invalid["pipe.txt"]
    assert rows["07.txt"]["text"] == note(7) + " \0 with a NUL"
    good = {file: row for file, row in rows.items() if row["_status"] == "succeeded"}
    assert {file: row["answer"]["name"] for file, row in good.items()} == {
        file: f"Name {int(file[-6:-4])}" for file in good
    }
    assert rows["03.txt"]["_attempts"] == 2
    assert rows["03.txt"]["_model"] != rows["02.txt"]["_model"]
    assert "schema" in rows["03.txt"]["_reason"]

    report = json.loads((place.folder / "report.json").read_text())
    bill = Decimal(str(place.sandbox.bill()["total_usd"]))
    assert Decimal(report["usd"]) == bill == sum(row["_usd"] for row in rows.values())
    assert (report["jobs"], report["succeeded"], report["invalid"], report["attempts"]) == (10, 10, 4, 11)
    assert Decimal(report["flagship_usd"]) > bill

    assert second.returncode == 2, second.stderr
    assert place.calls() == calls
    assert (place.folder / "again.jsonl").read_text() == (place.folder / "out.jsonl").read_text()
    again = json.loads((place.folder / "again.json").read_text())
    assert (again["adopted"], again["usd_now"], again["usd"]) == (10, "0", report["usd"])
    assert "cost nothing now" in second.stdout


def test_ctrl_c_keeps_what_is_done_and_the_same_command_pays_for_each_row_once(place: Place) -> None:
    rows = [{"id": number, "text": note(number)} for number in range(400)]
    place.write("notes.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    args = ("notes.jsonl", *ASK, "--output", "out.jsonl")

    running = place.popen(*args)
    end = time.monotonic() + 60
    while place.calls() < 40 and time.monotonic() < end:
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=60)
    partial = read_rows(place.folder / "out.jsonl.partial") if running.returncode == 130 else []
    finished = place.run(*args)

    assert running.returncode == 130, (out, err)
    assert "same command" in err
    assert not (place.folder / "out.jsonl.partial").exists()
    assert all(row["answer"] == {"name": f"Name {row['id']}"} for row in partial)
    assert [row["id"] for row in partial] == sorted(row["id"] for row in partial)
    assert finished.returncode == 0, finished.stderr
    complete = read_rows(place.folder / "out.jsonl")
    assert [row["id"] for row in complete] == list(range(400))
    assert place.calls() == 401  # one each, and the escalated one
    assert sum(row["_usd"] for row in complete) == Decimal(str(place.sandbox.bill()["total_usd"]))


def test_changed_rows_are_done_again_and_the_others_adopted(place: Place) -> None:
    place.write("notes.csv", "id,text\n" + "".join(f"{n},{note(n)}\n" for n in (10, 11, 12)))
    args = ("notes.csv", *ASK, "--output", "out.parquet")
    place.run(*args)
    place.write("notes.csv", "id,text\n" + "".join(f"{n},{note(n)}\n" for n in (13, 10, 11, 11, 12)))

    result = place.run(*args)

    import pyarrow.parquet as pq

    assert result.returncode == 0, result.stderr
    rows = pq.read_table(place.folder / "out.parquet").to_pylist()
    assert [json.loads(row["answer"])["name"] for row in rows] == [f"Name {n}" for n in (13, 10, 11, 11, 12)]
    assert place.calls() == 4  # 13 is new; the second 11 is a job of its own that is given the answer of the first
    assert "3 of 5 rows were done before" in result.stdout


def test_a_text_that_all_rows_share_is_written_to_the_cache_once_and_read_by_the_others(place: Place) -> None:
    place.write("contract.txt", "The parties agree on what follows. " * 1200)
    place.write("rows.jsonl", "".join(json.dumps({"text": note(n)}) + "\n" for n in range(20, 32)))

    done = place.run("rows.jsonl", *ASK, "--context", "contract.txt", "--output", "out.jsonl")

    assert done.returncode == 0, done.stderr
    plain_url = place.env["WAYBILL_DATABASE_URL"].replace("+psycopg", "")
    with psycopg.connect(plain_url) as ledger:
        calls = ledger.execute(
            "select cache_write_tokens, cache_read_tokens from attempts a join jobs j on j.id = a.job_id where j.tenant = %s",
            (place.tenant,),
        ).fetchall()
    assert len(calls) == 12
    assert sum(written > 0 for written, _ in calls) == 1
    assert sum(read > 5000 for _, read in calls) == 11


def test_fresh_pays_again_and_is_gone_on_with_afterwards(place: Place) -> None:
    place.write("notes.jsonl", json.dumps({"text": note(20)}) + "\n")
    args = ("notes.jsonl", *ASK, "--output", "out.jsonl")

    jobs = []
    for extra in ((), ("--fresh",), ()):
        assert place.run(*args, *extra).returncode == 0
        jobs.append(read_rows(place.folder / "out.jsonl")[0]["_job"])

    assert place.calls() == 2
    assert jobs[0] != jobs[1] == jobs[2]


def test_rows_that_failed_stay_failed_until_they_are_asked_for_again(place: Place) -> None:
    place.write("notes.jsonl", "".join(json.dumps({"text": note(n)}) + "\n" for n in (30, 31)))
    args = ("notes.jsonl", *ASK, "--output", "out.jsonl")
    place.sandbox.fault("refusal")

    failed = place.run(*args)
    before = read_rows(place.folder / "out.jsonl")
    place.sandbox.clear_faults()
    adopted = place.run(*args)
    again = place.run(*args, "--retry-failed")
    after = read_rows(place.folder / "out.jsonl")

    assert (failed.returncode, adopted.returncode, again.returncode) == (1, 1, 0), again.stderr
    assert {(row["_status"], row["_attempts"]) for row in before} == {("failed", 3)}
    assert all("refused" in row["_error"] for row in before)
    assert {(row["_status"], row["_attempts"]) for row in after} == {("succeeded", 4)}
    assert [row["_job"] for row in after] == [row["_job"] for row in before]
    assert sum(row["_usd"] for row in after) == Decimal(str(place.sandbox.bill()["total_usd"]))


def test_a_budget_stops_a_run_and_a_higher_one_goes_on_with_it(place: Place) -> None:
    rows = "\n".join(json.dumps({"text": f"Note {number} of the budget: Ann."}) for number in range(30))
    place.write("budget.jsonl", rows)
    command = ("budget.jsonl", "--intent", "extraction", "--prompt", "prompt.txt", "--schema", "schema.json",
               "--output", "budget-out.jsonl")  # fmt: skip
    before = place.calls()

    stopped = place.run(*command, "--budget", "0.00001")
    calls = place.calls() - before
    finished = place.run(*command, "--budget", "5", "--retry-failed")

    assert (stopped.returncode, calls) == (1, 0), stopped.stderr
    assert finished.returncode == 0, finished.stderr
    told = [json.loads(line) for line in (place.folder / "budget-out.jsonl").read_text().splitlines()]
    assert [row["_status"] for row in told] == ["succeeded"] * 30


async def test_the_demo_runs_four_intents_and_its_figures_are_the_bill(place: Place) -> None:
    env = place.env
    async with AsyncClient(env["WAYBILL_DATABASE_URL"], env["WAYBILL_REDIS_URL"], tenant=place.tenant) as client:
        outcome = await demo.run_demo(client, place.folder / "out", policy=load_policy(Settings()))

    summary = outcome.summary
    documents = sum(one.rows for one in outcome.outcomes)
    private = [row for row in read_rows(place.folder / "out" / "classification.jsonl") if row["private"]]
    assert set(summary["by_intent"]) == {"extraction", "summarization", "reasoning", "classification"}
    assert summary["jobs"] == documents
    assert Decimal(summary["usd"]) == Decimal(str(place.sandbox.bill()["total_usd"]))
    assert Decimal(summary["usd"]) == sum(Decimal(one.report["usd"]) for one in outcome.outcomes)
    assert len(summary["by_model"]) >= 4
    # This fleet has no local lane: what must stay local is not answered, and was shown to nobody.
    assert {row["_status"] for row in private} == {"failed"}
    assert {row["_error"].partition(":")[0] for row in private} == {"no_route"}
    assert all(row["_attempts"] == 0 for row in private)
    assert summary["succeeded"] == documents - len(private)
    assert all(one.exit_code == 0 for one in outcome.outcomes[:3])


@pytest.mark.parametrize(
    "service, remedy",
    [("WAYBILL_DATABASE_URL", "Postgres does not answer"), ("WAYBILL_REDIS_URL", "Redis does not answer")],
)
def test_a_dead_service_is_one_line_and_nothing_is_submitted(place: Place, service: str, remedy: str) -> None:
    place.write("notes.jsonl", json.dumps({"text": note(1)}) + "\n")
    dead = {"WAYBILL_DATABASE_URL": "postgresql://u:p@127.0.0.1:9/x", "WAYBILL_REDIS_URL": "redis://127.0.0.1:9/0"}

    result = place.run("notes.jsonl", *ASK, "--output", "o.jsonl", env={**place.env, service: dead[service]})

    assert result.returncode == 1
    assert remedy in result.stderr
    assert service in result.stderr
    assert result.stderr.count("\n") == 1
    assert place.calls() == 0
