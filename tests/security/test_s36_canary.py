"""S36-S38: what was asked and the keys are seen nowhere but where they belong. A real fleet carries canaries; everything is searched."""

from __future__ import annotations

import base64
import json
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis
from psycopg import sql

from sandbox.testing import Running, running
from tests.fleet import ROOT, RunningFleet, clean_environment, redis_database, running_fleet
from waybill import Client, Job
from waybill.cli.up import free_port, waybill_argv
from waybill.settings import Settings

PROMPT = "CANARY-PROMPT-5f2a the patient Lindqvist was seen on Tuesday"
SYSTEM = "CANARY-SYSTEM-77d1 you are the records clerk of ward nine"
TENANT = "CANARY-TENANT-0c4e"
KEY = "sk-canary-9b1d5e2f7a"
PASSWORD = "canary-flower-8e3c"
CANARIES = ("CANARY", KEY, "Lindqvist", "records clerk", PASSWORD)


class Quoting(BaseHTTPRequestHandler):
    """A provider that quotes key and prompt in its errors, as real ones do."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        key = self.headers.get("x-api-key") or self.headers.get("authorization")
        words = f"key {key} may not send {asked['messages'][0]['content']!r} under {asked.get('system')!r}"
        body = json.dumps({"type": "error", "error": {"type": "invalid_request_error", "message": words}}).encode()
        self.send_response(400)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        """Quiet."""


@pytest.fixture(scope="module")
def quoting() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Quoting)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Running]:
    with running() as provider:
        yield provider


@pytest.fixture(scope="module")
def scene(
    services: Any, ledger_template: str, quoting: str, sandbox: Running, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[RunningFleet, str, str, list[str], Path]]:
    """A fleet in which Anthropic quotes and OpenAI is the sandbox, after it carried three jobs."""
    from waybill import embedded

    database_url = embedded.create_database(str(services.database_url), "canary", template=ledger_template)
    redis_url = redis_database(services, "canary")
    logs = tmp_path_factory.mktemp("logs")
    env = {
        "ANTHROPIC_BASE_URL": quoting,
        "ANTHROPIC_API_KEY": KEY,
        "WAYBILL_LOG_LEVEL": "DEBUG",
        "WAYBILL_LOG_FORMAT": "json",
    }
    with (
        running_fleet(database_url, redis_url, sandbox.url, logs, env=env) as fleet,
        Client(database_url, redis_url) as client,
    ):
        schema = {"type": "object", "properties": {"total": {"type": "number"}}, "required": ["total"]}
        jobs = [
            Job(intent="extraction", prompt=PROMPT, system=SYSTEM, tenant=TENANT),
            Job(intent="extraction", prompt=PROMPT, system=SYSTEM, tenant=TENANT, json_schema=schema),
            Job(intent="reasoning", prompt=PROMPT, system=SYSTEM, tenant=TENANT, model="claude-haiku-5-5"),
        ]
        ids = client.submit_many(jobs)
        outcomes = list(client.results(ids, timeout_s=60))
        assert any(outcome.error for outcome in outcomes), "the pinned job was refused"
        assert any(outcome.result for outcome in outcomes)
        yield fleet, database_url, redis_url, ids, logs


def test_logs_of_all_processes_hold_events_and_no_canary(scene: tuple[RunningFleet, str, str, list[str], Path]) -> None:
    _, _, _, ids, logs = scene
    told = {path.name: path.read_text() for path in logs.glob("*.log")}
    assert ids[0] in told["anthropic.log"], "events name their job"
    assert any(
        json.loads(line).get("event") == "job.rerouted" for line in told["anthropic.log"].splitlines() if line[0] == "{"
    )

    for name, text in told.items():
        for canary in CANARIES:
            assert canary not in text, f"{canary} in {name}"


def test_redis_holds_no_canary(scene: tuple[RunningFleet, str, str, list[str], Path]) -> None:
    with redis.Redis.from_url(scene[2]) as connection:
        dumped = {}
        for key in connection.scan_iter("*"):
            kind = connection.type(key)
            dumped[key] = {
                b"hash": connection.hgetall, b"string": connection.get, b"set": connection.smembers,
                b"list": lambda k: connection.lrange(k, 0, -1), b"zset": lambda k: connection.zrange(k, 0, -1),
                b"stream": connection.xrange,
            }[kind](key)  # fmt: skip
    assert dumped

    for canary in CANARIES:
        assert canary not in str(dumped)


def test_the_ledger_has_the_prompt_in_payloads_only_and_a_key_nowhere(
    scene: tuple[RunningFleet, str, str, list[str], Path],
) -> None:
    found: dict[str, set[str]] = {canary: set() for canary in CANARIES}
    with psycopg.connect(scene[1].replace("postgresql+psycopg", "postgresql")) as connection:
        tables = [row[0] for row in connection.execute("select tablename from pg_tables where schemaname = 'public'")]
        for table in tables:
            rows = connection.execute(sql.SQL("select t::text from {} t").format(sql.Identifier(table))).fetchall()
            for canary in CANARIES:
                if any(canary in row[0] for row in rows):
                    found[canary].add(table)
        said = connection.execute("select error from attempts where error_code = 'bad_request'").fetchall()

    assert found.pop("CANARY") <= {"payloads", "jobs", "results"}, (
        "tenants stand in jobs, the sandbox may echo in its answer"
    )
    assert found.pop(KEY) == set()
    assert found.pop("Lindqvist") <= {"payloads", "results"}
    assert said
    assert all("[key] may not send '[text of the request]'" in row[0] for row in said), said


def test_metrics_hold_no_canary(scene: tuple[RunningFleet, str, str, list[str], Path]) -> None:
    env = {**clean_environment(), **scene[0].env}
    done = subprocess.run(
        [*waybill_argv(), "metrics", "--once"], env=env, cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "waybill_provider_calls_total{" in done.stdout

    for canary in CANARIES:
        assert canary not in done.stdout + done.stderr


def test_no_command_line_holds_a_secret(scene: tuple[RunningFleet, str, str, list[str], Path]) -> None:
    seen = b"".join(
        Path(f"/proc/{scene[0].pid(name)}/cmdline").read_bytes() for name in ("anthropic", "openai", "control")
    )
    assert b"worker" in seen

    for secret in (KEY.encode(), b"postgresql", b"redis://"):
        assert secret not in seen


def test_flower_shows_tasks_without_canaries(scene: tuple[RunningFleet, str, str, list[str], Path]) -> None:
    fleet, database_url, redis_url, _, _ = scene
    port = free_port()
    env = {
        **clean_environment(), **fleet.env, "WAYBILL_FLOWER_PORT": str(port), "WAYBILL_FLOWER_PASSWORD": PASSWORD,
    }  # fmt: skip
    flower = subprocess.Popen(
        [*waybill_argv(), "flower"], env=env, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    login = base64.b64encode(f"waybill:{PASSWORD}".encode()).decode()

    def read(path: str) -> str:
        request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers={"authorization": f"Basic {login}"})
        with urllib.request.urlopen(request, timeout=5) as answer:
            return str(answer.read().decode())

    try:
        end = time.monotonic() + 40
        while True:
            try:
                read("/api/workers")
                break
            except OSError:
                assert time.monotonic() < end, "Flower did not come up"
                time.sleep(0.2)
        end = time.monotonic() + 60
        with Client(database_url, redis_url) as client:
            # Flower hears of a task only when it listens already: again, until it does.
            while len(tasks := read("/api/tasks")) < 10:
                assert time.monotonic() < end, "Flower saw no task"
                job = Job(intent="extraction", prompt=f"{PROMPT} {time.monotonic()}", tenant=TENANT)
                client.result(client.submit(job), timeout_s=30)
                time.sleep(0.2)
        pages = tasks + read("/tasks") + read("/workers") + read("/broker")
    finally:
        flower.terminate()
        flower.wait(30)

    for canary in CANARIES:
        assert canary not in pages


def test_printed_settings_show_no_secret() -> None:
    settings = Settings(
        database_url=f"postgresql://u:{PASSWORD}@h/d", redis_url=f"redis://:{PASSWORD}@h/0", anthropic_api_key=KEY,  # type: ignore[arg-type]
        flower_password=PASSWORD,
    )  # fmt: skip

    for shown in (repr(settings), str(settings), settings.model_dump_json()):
        assert KEY not in shown
        assert PASSWORD not in shown
