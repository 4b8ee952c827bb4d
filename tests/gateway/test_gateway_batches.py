"""Code written for the providers' batch APIs, unchanged, through a real fleet: Files and Batches, Message Batches, jobs API."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import anthropic
import httpx2
import openai
import pytest

from sandbox.testing import Running
from tests.gateway.conftest import Ledger

HELLO: list[Any] = [{"role": "user", "content": "Say hello."}]


def lines(*rows: dict[str, Any]) -> bytes:
    return b"\n".join(json.dumps(row).encode() for row in rows)


def chat_row(custom_id: str, model: str = "gpt-6-luna", **body: Any) -> dict[str, Any]:
    return {
        "custom_id": custom_id,
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"model": model, "messages": HELLO, **body},
    }


def until(look: Callable[[], Any], is_so: Callable[[Any], bool], timeout_s: float = 180) -> Any:
    end = time.monotonic() + timeout_s
    while not is_so(found := look()):
        assert time.monotonic() < end, f"not in time: {found}"
        time.sleep(0.1)
    return found


def submit(gpt: openai.OpenAI, content: bytes, endpoint: Any = "/v1/chat/completions", **more: Any) -> Any:
    file = gpt.files.create(file=content, purpose="batch")  # the SDK names it `upload`
    return gpt.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h", **more)


def ended(gpt: openai.OpenAI, batch_id: str) -> Any:
    finals = ("completed", "failed", "expired", "cancelled")
    return until(lambda: gpt.batches.retrieve(batch_id), lambda batch: batch.status in finals)


def test_files_and_batches_from_upload_to_both_result_files(gpt: openai.OpenAI, ledger: Ledger) -> None:
    batch = submit(
        gpt,
        lines(
            chat_row("a"),
            chat_row("b", model="claude-haiku-5-5"),  # crossed
            chat_row("c", model="gpt-2"),
            chat_row("d", stream=True),
        ),
        metadata={"team": "x"},
    )
    assert batch.status in ("validating", "in_progress")

    done = ended(gpt, batch.id)

    assert (done.status, done.metadata) == ("completed", {"team": "x"})
    counts = done.request_counts
    assert (counts.total, counts.completed, counts.failed) == (4, 2, 2)
    output = [json.loads(line) for line in gpt.files.content(done.output_file_id).text.splitlines()]
    errors = [json.loads(line) for line in gpt.files.content(done.error_file_id).text.splitlines()]
    assert [row["custom_id"] for row in output] == ["a", "b"]
    assert all(row["response"]["status_code"] == 200 for row in output)
    assert "gpt-6-luna" in output[0]["response"]["body"]["choices"][0]["message"]["content"]
    assert "claude-haiku-5-5" in output[1]["response"]["body"]["choices"][0]["message"]["content"]
    assert {row["custom_id"]: row["response"]["status_code"] for row in errors} == {"c": 404, "d": 400}
    assert gpt.files.retrieve(done.output_file_id).bytes == len(gpt.files.content(done.output_file_id).content)
    rows = ledger.rows(
        "select priority, state from jobs where run_id = (select run_id from batches where id = %s)", batch.id
    )
    assert sorted(rows) == [("lo", "succeeded")] * 2
    assert batch.id in [one.id for one in gpt.batches.list(limit=5)]


def test_responses_batch(gpt: openai.OpenAI) -> None:
    row = {"custom_id": "r", "method": "POST", "url": "/v1/responses", "body": {"model": "gpt-6-luna", "input": "Hi"}}

    done = ended(gpt, submit(gpt, lines(row), "/v1/responses").id)

    [result] = [json.loads(line) for line in gpt.files.content(done.output_file_id).text.splitlines()]
    assert result["response"]["body"]["object"] == "response"


@pytest.mark.parametrize(
    ("content", "code", "line"),
    [
        (lines(chat_row("a"), chat_row("a")), "duplicate_custom_id", 2),
        (lines(chat_row("a")) + b"\n{not json", "invalid_json_line", 2),
        (lines({**chat_row("a"), "url": "/v1/responses"}), "mismatched_endpoint", 1),
        (lines({**chat_row("a"), "method": "GET"}), "invalid_method", 1),
        (lines({**chat_row(""), "body": 3}), "invalid_custom_id", 1),
        (b"\n\n", "empty_file", None),
    ],
)
def test_a_file_that_is_no_batch_fails_as_a_whole(
    gpt: openai.OpenAI, content: bytes, code: str, line: int | None
) -> None:
    done = ended(gpt, submit(gpt, content).id)

    assert done.status == "failed"
    assert (done.errors.data[0].code, done.errors.data[0].line) == (code, line)
    assert done.output_file_id is None


def test_files_are_listed_read_and_deleted(gpt: openai.OpenAI) -> None:
    content = b"x" * 2_500_000  # several parts
    file = gpt.files.create(file=("any name.txt", content), purpose="batch")

    assert (file.filename, file.bytes) == ("any name.txt", len(content))
    assert gpt.files.content(file.id).content == content
    assert file.id in [one.id for one in gpt.files.list(purpose="batch")]
    assert gpt.files.delete(file.id).deleted
    with pytest.raises(openai.NotFoundError):
        gpt.files.retrieve(file.id)
    with pytest.raises(openai.BadRequestError):
        gpt.files.create(file=b"x", purpose="fine-tune")
    with pytest.raises(openai.NotFoundError):
        gpt.batches.create(input_file_id="file-none", endpoint="/v1/chat/completions", completion_window="24h")
    with pytest.raises(openai.BadRequestError):
        gpt.batches.create(input_file_id=file.id, endpoint="/v1/embeddings", completion_window="24h")


def test_message_batches_from_create_to_results(claude: anthropic.Anthropic, gateway: str) -> None:
    params: Any = {"model": "claude-haiku-5-5", "max_tokens": 500, "messages": HELLO}
    batch = claude.messages.batches.create(
        requests=[
            {"custom_id": "a", "params": params},
            {"custom_id": "b", "params": {**params, "model": "gpt-6-luna"}},  # crossed
            {"custom_id": "c", "params": {**params, "model": "claude-none"}},
        ]
    )
    assert (batch.processing_status, batch.results_url) == ("in_progress", None)
    assert batch.request_counts.processing == 3

    done = until(lambda: claude.messages.batches.retrieve(batch.id), lambda b: b.processing_status == "ended")

    assert str(done.results_url).startswith(f"{gateway}/v1/messages/batches/")
    counts = done.request_counts
    assert (counts.processing, counts.succeeded, counts.errored) == (0, 2, 1)
    results = {row.custom_id: row.result for row in claude.messages.batches.results(batch.id)}
    assert "claude-haiku-5-5" in results["a"].message.content[-1].text  # type: ignore[union-attr]
    assert "gpt-6-luna" in results["b"].message.content[-1].text  # type: ignore[union-attr]
    assert results["c"].type == "errored"
    assert results["c"].error.error.type == "not_found_error"
    assert batch.id in [one.id for one in claude.messages.batches.list(limit=5)]
    assert claude.messages.batches.cancel(batch.id).processing_status == "ended"
    assert claude.messages.batches.delete(batch.id).id == batch.id
    with pytest.raises(anthropic.NotFoundError):
        claude.messages.batches.retrieve(batch.id)


def test_rows_cost_half_on_whichever_batch_or_flex_lane_they_are_done(
    gpt: openai.OpenAI, claude: anthropic.Anthropic, ledger: Ledger
) -> None:
    tools: Any = [{"name": "weather", "description": "Of a city.", "input_schema": {"type": "object"}}]
    params: Any = {"max_tokens": 500, "messages": [{"role": "user", "content": "Half the price, please."}]}
    messages = claude.messages.batches.create(
        requests=[
            {"custom_id": "own", "params": {**params, "model": "claude-haiku-5-5"}},
            {
                "custom_id": "tool",
                "params": {**params, "model": "claude-haiku-5-5", "tools": tools, "tool_choice": {"type": "any"}},
            },
            {"custom_id": "crossed", "params": {**params, "model": "gpt-6-luna"}},
        ]
    )
    chats = submit(gpt, lines(chat_row("own", max_completion_tokens=99), chat_row("crossed", "claude-haiku-5-5")))
    row = {"method": "POST", "url": "/v1/responses", "body": {"model": "gpt-6-luna", "input": "Half, please."}}
    responses = submit(gpt, lines({"custom_id": "own", **row}), "/v1/responses")

    until(lambda: claude.messages.batches.retrieve(messages.id), lambda b: b.processing_status == "ended")
    done = [ended(gpt, one.id) for one in (chats, responses)]

    results: Any = {row.custom_id: row.result for row in claude.messages.batches.results(messages.id)}
    assert {name: result.type for name, result in results.items()} == dict.fromkeys(
        ("own", "tool", "crossed"), "succeeded"
    )
    assert results["tool"].message.content[-1].type == "tool_use"
    assert [one.request_counts.completed for one in done] == [2, 1]
    lanes = ledger.rows(
        """select r.custom_id, a.provider, a.service, a.cost_usd / a.list_usd from batch_rows r
           join batches b on b.id = r.batch_id join jobs j on j.run_id = b.run_id and j.seq = r.seq
           join attempts a on a.job_id = j.id where b.id = any(%s)""",
        [messages.id, chats.id, responses.id],
    )
    assert len(lanes) == 6
    assert {service for _, _, service, _ in lanes} <= {"batch", "flex"}
    assert {(provider, service) for _, provider, service, _ in lanes} >= {("anthropic", "batch")}
    assert all(abs(float(ratio) - 0.5) < 0.01 for *_, ratio in lanes), lanes


def test_a_wrong_custom_id_refuses_a_message_batch(claude: anthropic.Anthropic) -> None:
    params: Any = {"model": "claude-haiku-5-5", "max_tokens": 500, "messages": HELLO}
    for ids in (["a b"], ["x" * 65], ["a", "a"], [""]):
        with pytest.raises(anthropic.BadRequestError, match="custom_id"):
            claude.messages.batches.create(requests=[{"custom_id": i, "params": params} for i in ids])


def test_cancelled_batches_end_with_every_request_told(
    gpt: openai.OpenAI, claude: anthropic.Anthropic, provider: Running
) -> None:
    def hello(n: int) -> list[Any]:
        return [
            {"role": "user", "content": f"Say hello to number {n}."}
        ]  # each its own call, none answered from memory

    provider.latency("fixed:3s")  # no batch is done before it is cancelled
    ours = submit(gpt, lines(*(chat_row(f"r{n}", messages=hello(n)) for n in range(300))))
    theirs = claude.messages.batches.create(
        requests=[
            {"custom_id": f"r{n}", "params": {"model": "claude-haiku-5-5", "max_tokens": 500, "messages": hello(n)}}
            for n in range(300)
        ]
    )

    assert gpt.batches.cancel(ours.id).status in ("cancelling", "cancelled")
    claude.messages.batches.cancel(theirs.id)

    done = ended(gpt, ours.id)
    assert done.status == "cancelled"
    assert done.request_counts.completed + done.request_counts.failed == done.request_counts.total == 300
    message_batch = until(lambda: claude.messages.batches.retrieve(theirs.id), lambda b: b.processing_status == "ended")
    assert sum(message_batch.request_counts.model_dump().values()) == 300
    assert len(list(claude.messages.batches.results(theirs.id))) == 300
    with pytest.raises(openai.ConflictError):
        gpt.batches.cancel(ours.id)


def test_lists_page_by_page(claude: anthropic.Anthropic, gpt: openai.OpenAI) -> None:
    params: Any = {"model": "claude-haiku-5-5", "max_tokens": 500, "messages": HELLO}
    mine = [claude.messages.batches.create(requests=[{"custom_id": "a", "params": params}]).id for _ in range(3)]
    ours = [submit(gpt, lines(chat_row("a"))).id for _ in range(3)]

    seen = [batch.id for batch in claude.messages.batches.list(limit=2)]  # the SDK turns the pages
    gpt_seen = [batch.id for batch in gpt.batches.list(limit=2)]

    assert seen[:3] == mine[::-1]
    assert len(seen) == len(set(seen))
    assert gpt_seen[:3] == ours[::-1]
    assert len(gpt_seen) == len(set(gpt_seen))


def test_a_job_by_the_jobs_api_with_result_events_and_feedback(gateway: str) -> None:
    with httpx2.Client(base_url=gateway, timeout=60) as http:
        body = {"intent": "summarization", "prompt": "Summarize: a b c.", "stream": True, "metadata": {"row": "7"}}
        job = http.post("/v1/jobs", json=body).json()
        result = http.get(f"/v1/jobs/{job['id']}/result?wait=30").json()
        events = http.get(f"/v1/jobs/{job['id']}/events").text
        feedback = http.post(f"/v1/jobs/{job['id']}/feedback", json={"score": 1}).json()
        shown = http.get(f"/v1/jobs/{job['id']}").json()

    assert (result["state"], result["metadata"]) == ("succeeded", {"row": "7"})
    assert result["text"]
    assert float(result["usd"]) > 0
    assert "event: end" in events
    assert feedback["model"] == shown["lane"].split("/")[1]


def test_a_run_by_upload_comes_back_line_by_line(gateway: str) -> None:
    rows = [{"intent": "summarization", "prompt": f"Summarize: {n}.", "quality": 0.9} for n in range(5)]
    wrong = [{**rows[0], "quality": 1.5}, {**rows[0], "model": "gpt-6-luna"}]
    with httpx2.Client(base_url=gateway, timeout=60) as http:
        run = http.post("/v1/runs?name=nightly", content=lines(*rows, *wrong)).json()
        quality = http.get("/v1/jobs", params={"run": run["id"]}).json()["data"][0]["quality"]
        until(lambda: http.get(f"/v1/runs/{run['id']}").json(), lambda r: r["unfinished"] == 0)
        results = [json.loads(line) for line in http.get(f"/v1/runs/{run['id']}/results").text.splitlines()]

    assert [error["line"] for error in run["errors"]] == [6, 7]
    assert quality == 0.9
    assert [row["line"] for row in results] == [1, 2, 3, 4, 5]
    assert all(row["state"] == "succeeded" for row in results)
