"""The program around the provider: command line, admin pages, log, extra models, and that it stands alone."""

from __future__ import annotations

import ast
import asyncio
import hashlib
import json
import re
import signal
import subprocess
import sys
import threading
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from anthropic import Anthropic, APIConnectionError, AsyncAnthropic
from click.testing import CliRunner
from openai import OpenAI

import sandbox
from sandbox.command import sandbox as command
from sandbox.faults import KINDS
from sandbox.latency import latency_from
from sandbox.models import ModelFileError, read_models
from sandbox.requestlog import RequestLog
from sandbox.testing import Running, running, spawned

HAIKU = "claude-haiku-5-5"


def test_it_imports_nothing_of_the_rest_of_the_repository() -> None:
    ours = {"waybill", "policies", "producers", "workers"}
    imported = set()
    for path in Path(sandbox.__path__[0]).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add((node.module or "").split(".")[0])

    assert not imported & {*ours, "anthropic", "openai", "genai_prices"}


def test_the_program_serves_both_sdks_and_logs_to_its_file(tmp_path: Path) -> None:
    log, book, models = tmp_path / "log.jsonl", tmp_path / "book.jsonl", tmp_path / "models.toml"
    book.write_text('{"match": "ping me", "model": "gpt-4o-2024-08-06", "answer": "pong"}\n', "utf-8")
    models.write_text(
        '[[model]]\nid = "gpt-4o-2024-08-06"\nprovider = "openai"\ninput = 2.50\noutput = "10"\n', "utf-8"
    )

    with spawned("--log", str(log), "--answers", str(book), "--models", str(models), "--latency", "none") as box:
        with OpenAI(base_url=box.openai_url, api_key="sandbox-1", max_retries=0) as gpt:
            answer = gpt.chat.completions.create(
                model="gpt-4o-2024-08-06",
                messages=[{"role": "user", "content": "ping me"}],
                temperature=0,
                max_tokens=100,
                extra_headers={"x-waybill-job": "job-1", "x-waybill-attempt": "2"},
            )
        bill = box.bill()

    assert answer.choices[0].message.content == "pong"
    # 3 prompt tokens at 2.50 and 1 at 10 USD per million
    assert (answer.usage and answer.usage.prompt_tokens, answer.usage and answer.usage.completion_tokens) == (4, 1)
    assert bill["total_usd"] == "0.00002"
    entry = json.loads(log.read_text("utf-8"))
    assert (entry["job"], entry["attempt"], entry["delivered"], entry["usd"]) == ("job-1", "2", True, "0.00002")
    assert entry["text_sha256"] == hashlib.sha256(b"ping me").hexdigest()
    assert "ping me" not in json.dumps(entry)


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it_cleanly_and_it_says_what_it_would_have_cost(tmp_path: Path, stop: signal.Signals) -> None:
    port_file = tmp_path / "port"
    arguments = ["--port", "0", "--port-file", str(port_file), "--latency", "none"]
    repository = Path(sandbox.__path__[0]).parent
    with subprocess.Popen(
        [sys.executable, "-m", "sandbox", *arguments], cwd=repository, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        greeting = [process.stdout.readline() for _ in range(7)]
        port = int(port_file.read_text("ascii"))
        with Anthropic(base_url=f"http://127.0.0.1:{port}", api_key="sandbox-1", max_retries=0) as client:
            client.messages.create(model=HAIKU, max_tokens=0, messages=[{"role": "user", "content": "Hi"}])
        process.send_signal(stop)
        last = process.stdout.read()
        status = process.wait(20)

    assert f"base_url='http://127.0.0.1:{port}/v1'" in "".join(greeting)
    assert status == 0
    # "Hi" is 4 tokens here at 0.10 USD per million.
    assert last.splitlines()[-1] == "1 requests, bill 0.0000004 USD"
    assert not port_file.exists()


@pytest.mark.parametrize(
    "arguments, complaint",
    [
        (["--latency", "soon"], "write none, fixed:50ms"),
        (["--fault", "flood"], "unknown fault 'flood'"),
        (["--limit", "claude-haiku-5.5:rpm=many"], "not a list of name=number"),
        (["--limit", "nobody:rpm=5"], "with a class of"),
        (["--limit", "*:speed=5"], "unknown limit 'speed'"),
    ],
)
def test_a_bad_option_is_one_clear_line(arguments: list[str], complaint: str) -> None:
    result = CliRunner().invoke(command, arguments)

    assert result.exit_code == 1
    assert complaint in result.output
    assert "Traceback" not in result.output


def test_a_taken_port_is_one_clear_line(box: Running) -> None:
    result = CliRunner().invoke(command, ["--port", str(box.port)])

    assert result.exit_code == 1
    assert "choose another --port" in result.output


@pytest.mark.parametrize(
    "written, complaint",
    [
        ("[[model]", "cannot be read as TOML"),
        ("", "has no"),
        ('[[model]]\nid = "x"', "lacks 'provider'"),
        ('[[model]]\nid = "x"\nprovider = "acme"\ninput = 1\noutput = 1', "provider is 'acme'"),
        ('[[model]]\nid = "x"\nprovider = "openai"\ninput = "free"\noutput = 1', "input is 'free'"),
        ('[[model]]\nid = "x"\nprovider = "openai"\ninput = 1\noutput = 1\nwings = 2', "unknown key 'wings'"),
        ('[[model]]\nid = "x"\nprovider = "openai"\ninput = -1\noutput = 1', "not negative"),
        ('[[model]]\nid = "x"\nprovider = "openai"\ninput = 1\noutput = 1\ncontext = 0', "context is 0"),
    ],
)
def test_a_bad_model_file_is_named(tmp_path: Path, written: str, complaint: str) -> None:
    path = tmp_path / "models.toml"
    path.write_text(written, "utf-8")

    with pytest.raises(ModelFileError, match=complaint):
        read_models(path)


def test_admin_calls_refuse_what_they_do_not_understand(box: Running) -> None:
    for call in (
        lambda: box.fault("flood"),
        lambda: box.limit("nobody", rpm=5),
        lambda: box.limit("*", rpm=0),
        lambda: box.advance(-1),
        lambda: box.latency("soon"),
    ):
        with pytest.raises(ValueError):
            call()


def test_state_and_reset(box: Running, claude: Anthropic) -> None:
    box.fault("hang", nth=99)
    claude.messages.create(model=HAIKU, max_tokens=10, messages=[{"role": "user", "content": "Hi"}])
    state = box.state()

    box.reset()

    assert (state["requests"], state["in_flight"], len(state["faults"])) == (1, 0, 1)
    assert state["faults"][0]["seen"] == 1
    after = box.state()
    assert (after["requests"], after["faults"], after["meters"]) == (0, [], [])
    assert box.bill()["total_usd"] == "0"


def test_the_log_can_be_read_on_from_a_number(box: Running, claude: Anthropic) -> None:
    for _ in range(3):
        claude.messages.create(model=HAIKU, max_tokens=10, messages=[{"role": "user", "content": "Hi"}])

    assert [entry["seq"] for entry in box.log(since=1)] == [2, 3]
    assert box.log(since=3) == []


def test_memory_keeps_only_the_latest_lines() -> None:
    log = RequestLog(keep=3)

    for number in range(10):
        log.add({"n": number})

    kept = [json.loads(line)["seq"] for line in log.since(0).splitlines()]
    assert kept == [8, 9, 10]
    assert [json.loads(line)["seq"] for line in log.since(8, 1).splitlines()] == [9]


def test_the_bill_is_the_sum_of_the_log(box: Running, claude: Anthropic, gpt: OpenAI) -> None:
    for number in range(5):
        claude.messages.create(model=HAIKU, max_tokens=900, messages=[{"role": "user", "content": f"Hi {number}"}])
        gpt.responses.create(model="gpt-6-luna", input=f"Hi {number}", service_tier="flex" if number % 2 else "default")

    assert Decimal(box.bill()["total_usd"]) == sum(Decimal(entry["usd"]) for entry in box.log())


def test_latency_words() -> None:
    assert latency_from("fixed:50ms").fixed_s == 0.05
    assert latency_from("fixed:1.5s").fixed_s == 1.5
    assert latency_from("none").fixed_s == 0.0
    assert latency_from("model:0.2").scale == 0.2


async def test_side_by_side_requests_with_a_new_prefix_all_pay_the_write(box: Running) -> None:
    box.latency("fixed:200ms")
    system: list[Any] = [{"type": "text", "text": "p" * 5000, "cache_control": {"type": "ephemeral"}}]

    async with AsyncAnthropic(base_url=box.url, api_key="sandbox-1", max_retries=0) as client:

        async def ask() -> int:
            message = await client.messages.create(
                model=HAIKU, max_tokens=900, system=system, messages=[{"role": "user", "content": "Hi"}]
            )
            return message.usage.cache_read_input_tokens or 0

        together = await asyncio.gather(*(ask() for _ in range(4)))
        after = await ask()

    assert together == [0, 0, 0, 0]
    assert after == 2004


def test_two_sandboxes_never_share_a_request_id() -> None:
    ids = set()
    for _ in range(2):
        with running() as box, Anthropic(base_url=box.url, api_key="sandbox-1", max_retries=0) as client:
            message = client.messages.create(model=HAIKU, max_tokens=10, messages=[{"role": "user", "content": "Hi"}])
            ids.add(message.id)

    assert len(ids) == 2


def test_the_example_in_the_documentation_runs() -> None:
    page = (Path(sandbox.__path__[0]).parent / "docs" / "sandbox.md").read_text("utf-8")
    examples = re.findall(r"```python\n(.*?)```", page, re.DOTALL)

    assert examples
    for example in examples:
        exec(compile(example, "docs/sandbox.md", "exec"), {})  # noqa: S102 - our own page


def test_the_documentation_names_every_fault_and_page() -> None:
    page = (Path(sandbox.__path__[0]).parent / "docs" / "sandbox.md").read_text("utf-8")

    assert [name for name in KINDS if f"`{name}`" not in page] == []


def test_stopping_drops_what_is_in_flight_and_logs_it() -> None:
    caught: list[Exception] = []
    with running() as box:
        box.fault("hang")

        def ask() -> None:
            with Anthropic(base_url=box.url, api_key="sandbox-1", max_retries=0, timeout=20) as client:
                try:
                    client.messages.create(model=HAIKU, max_tokens=9, messages=[{"role": "user", "content": "Hi"}])
                except APIConnectionError as exc:
                    caught.append(exc)

        asking = threading.Thread(target=ask)
        asking.start()
        while box.state()["in_flight"] == 0:
            assert asking.is_alive()
    asking.join(20)

    assert len(caught) == 1
    assert box.provider is not None
    assert [json.loads(line)["fault"] for line in box.provider.log.since(0).splitlines()] == ["hang"]
