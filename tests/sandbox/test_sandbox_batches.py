"""Both batch APIs through the unmodified SDKs: timing by the clock, order, mixes of outcomes, limits, half price."""

from __future__ import annotations

import io
import json
from decimal import Decimal
from typing import Any

import anthropic
import openai
import pytest
from anthropic import Anthropic
from openai import OpenAI

from sandbox.testing import Running

HAIKU, LUNA = "claude-haiku-5-5", "gpt-6-luna"
DAY_S = 86400


def claude_requests(count: int, model: str = HAIKU) -> list[Any]:
    return [
        {
            "custom_id": f"row-{n}",
            "params": {"model": model, "max_tokens": 400, "messages": [{"role": "user", "content": f"Note {n}."}]},
        }
        for n in range(count)
    ]


def gpt_file(gpt: OpenAI, count: int, model: str = LUNA, **extra: str) -> str:
    lines = [
        {
            "custom_id": extra.get("custom_id", f"row-{n}"),
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {"model": model, "messages": [{"role": "user", "content": f"Note {n}."}]},
        }
        for n in range(count)
    ]
    content = "\n".join(json.dumps(line) for line in lines).encode()
    return gpt.files.create(file=("in.jsonl", io.BytesIO(content)), purpose="batch").id


def gpt_batch(gpt: OpenAI, file_id: str, **fields: Any) -> Any:
    return gpt.batches.create(input_file_id=file_id, endpoint="/v1/chat/completions", completion_window="24h", **fields)


def gpt_lines(gpt: OpenAI, file_id: str | None) -> list[dict[str, Any]]:
    return [json.loads(line) for line in gpt.files.content(file_id or "").text.splitlines()]


def test_a_claude_batch_shows_nothing_before_its_end_then_everything_out_of_order(
    box: Running, claude: Anthropic
) -> None:
    box.batch_pace(turnaround_s=3600)

    batch = claude.messages.batches.create(requests=claude_requests(20))
    box.advance(3000)
    under_way = claude.messages.batches.retrieve(batch.id)
    box.advance(700)
    ended = claude.messages.batches.retrieve(batch.id)
    results = list(claude.messages.batches.results(batch.id))

    assert (under_way.processing_status, under_way.request_counts.processing) == ("in_progress", 20)
    assert under_way.results_url is None
    assert (ended.processing_status, ended.request_counts.succeeded) == ("ended", 20)
    names = [result.custom_id for result in results]
    assert sorted(names) == sorted(f"row-{n}" for n in range(20))
    assert names != [f"row-{n}" for n in range(20)]
    for result in results:
        assert result.result.type == "succeeded"
        assert result.result.message.usage.service_tier == "batch"


def test_a_batch_costs_half_of_what_the_same_calls_cost(box: Running, claude: Anthropic, gpt: OpenAI) -> None:
    for n in range(5):
        claude.messages.create(model=HAIKU, max_tokens=400, messages=[{"role": "user", "content": f"Note {n}."}])
        gpt.chat.completions.create(model=LUNA, messages=[{"role": "user", "content": f"Note {n}."}])
    full = Decimal(box.bill()["total_usd"])
    box.reset()

    box.batch_pace(turnaround_s=0)
    claude.messages.batches.create(requests=claude_requests(5))
    gpt_batch(gpt, gpt_file(gpt, 5))

    bill = box.bill()
    assert Decimal(bill["total_usd"]) * 2 == full
    assert {line["tier"] for line in bill["by_tier"]} == {"batch"}


def test_an_expired_claude_batch_keeps_what_was_done(box: Running, claude: Anthropic) -> None:
    box.batch_pace(turnaround_s=60)
    box.fault("batch_expired", endpoint="batch", nth=[2, 3])
    box.fault("overloaded", endpoint="batch", nth=[4])

    batch = claude.messages.batches.create(requests=claude_requests(6))
    box.advance(3600)
    early = claude.messages.batches.retrieve(batch.id)
    box.advance(DAY_S - 3600)
    counts = claude.messages.batches.retrieve(batch.id).request_counts
    kinds = {result.custom_id: result.result.type for result in claude.messages.batches.results(batch.id)}

    assert early.processing_status == "in_progress"
    assert (counts.succeeded, counts.errored, counts.expired, counts.processing) == (3, 1, 2, 0)
    assert (kinds["row-1"], kinds["row-2"]) == ("expired", "expired")
    assert box.bill()["requests"] == 3


def test_a_cancelled_batch_bills_what_was_done_by_then(box: Running, claude: Anthropic) -> None:
    box.batch_pace(turnaround_s=1000)

    batch = claude.messages.batches.create(requests=claude_requests(40))
    box.advance(500)
    cancelling = claude.messages.batches.cancel(batch.id)
    box.advance(2)
    ended = claude.messages.batches.retrieve(batch.id)

    assert cancelling.processing_status == "canceling"
    assert ended.processing_status == "ended"
    assert 5 < ended.request_counts.succeeded < 35
    assert ended.request_counts.succeeded + ended.request_counts.canceled == 40
    assert box.bill()["requests"] == ended.request_counts.succeeded


def test_claude_refuses_bad_names_and_more_than_may_be_queued(box: Running, claude: Anthropic) -> None:
    twice = [*claude_requests(1), *claude_requests(1)]
    long_name = claude_requests(1)
    long_name[0]["custom_id"] = "x" * 65

    with pytest.raises(anthropic.BadRequestError, match="used twice"):
        claude.messages.batches.create(requests=twice)
    with pytest.raises(anthropic.BadRequestError, match="custom_id"):
        claude.messages.batches.create(requests=long_name)
    box.batch_pace(queued_requests=10, turnaround_s=60)
    claude.messages.batches.create(requests=claude_requests(8))
    try:
        with pytest.raises(anthropic.RateLimitError):
            claude.messages.batches.create(requests=claude_requests(3))
    finally:
        box.batch_pace(queued_requests=100_000)


def test_a_gpt_batch_says_default_and_is_billed_as_batch(box: Running, gpt: OpenAI) -> None:
    box.batch_pace(turnaround_s=60)

    batch = gpt_batch(gpt, gpt_file(gpt, 6), metadata={"mark": "m1"})
    box.advance(1)
    under_way = gpt.batches.retrieve(batch.id)
    box.advance(60)
    done = gpt.batches.retrieve(batch.id)
    lines = gpt_lines(gpt, done.output_file_id)

    assert (batch.status, under_way.status, done.status) == ("validating", "in_progress", "completed")
    assert done.metadata == {"mark": "m1"}
    assert done.error_file_id is None
    assert {line["custom_id"] for line in lines} == {f"row-{n}" for n in range(6)}
    assert {line["response"]["body"]["service_tier"] for line in lines} == {"default"}
    assert {line["tier"] for line in box.bill()["by_tier"]} == {"batch"}


def test_an_expired_gpt_batch_has_an_output_and_an_error_file(box: Running, gpt: OpenAI) -> None:
    box.batch_pace(turnaround_s=60)
    box.fault("batch_expired", endpoint="batch", nth=[1])
    box.fault("server_error", endpoint="batch", nth=[2])

    batch = gpt_batch(gpt, gpt_file(gpt, 5))
    box.advance(DAY_S)
    expired = gpt.batches.retrieve(batch.id)
    bad = {line["custom_id"]: line for line in gpt_lines(gpt, expired.error_file_id)}

    assert expired.status == "expired"
    assert len(gpt_lines(gpt, expired.output_file_id)) == 3
    assert bad["row-0"]["error"]["code"] == "batch_expired"
    assert bad["row-2"]["response"]["status_code"] == 500


@pytest.mark.parametrize(
    ("files", "code"),
    [
        (lambda gpt: gpt_file(gpt, 2, custom_id="same"), "duplicate_custom_id"),
        (lambda gpt: gpt.files.create(file=("x", io.BytesIO(b"no json")), purpose="batch").id, "invalid_json_line"),
    ],
)
def test_a_gpt_batch_with_an_unusable_file_fails(box: Running, gpt: OpenAI, files: Any, code: str) -> None:
    batch = gpt_batch(gpt, files(gpt))
    box.advance(1)
    failed = gpt.batches.retrieve(batch.id)

    assert failed.status == "failed"
    assert failed.errors is not None
    assert [error.code for error in failed.errors.data or []] == [code]
    assert box.bill()["requests"] == 0


def test_gpt_batches_share_one_cap_of_enqueued_tokens(box: Running, gpt: OpenAI) -> None:
    box.batch_pace(turnaround_s=60, enqueued_tokens=100)
    try:
        first = gpt_batch(gpt, gpt_file(gpt, 8))
        second = gpt_batch(gpt, gpt_file(gpt, 40))
        box.advance(1)

        assert gpt.batches.retrieve(first.id).status == "in_progress"
        errors = gpt.batches.retrieve(second.id).errors
        assert errors is not None
        assert [error.code for error in errors.data or []] == ["token_limit_exceeded"]
    finally:
        box.batch_pace(enqueued_tokens=2_000_000_000)


def test_a_batch_just_made_can_be_hidden_for_a_while(box: Running, claude: Anthropic) -> None:
    box.fault("batch_hidden", endpoint="batches", times=1, delay_s=10)

    batch = claude.messages.batches.create(requests=claude_requests(1))

    with pytest.raises(anthropic.NotFoundError):
        claude.messages.batches.retrieve(batch.id)
    assert claude.messages.batches.list().data == []
    box.advance(11)
    assert claude.messages.batches.retrieve(batch.id).id == batch.id


def test_a_batch_whose_answer_was_lost_is_there_all_the_same(box: Running, claude: Anthropic, gpt: OpenAI) -> None:
    box.fault("reset", endpoint="batches", times=1, billed=True)

    with pytest.raises((anthropic.APIConnectionError, OSError)):
        claude.messages.batches.create(requests=claude_requests(3))

    [found] = claude.messages.batches.list().data
    assert sum(found.request_counts.model_dump().values()) == 3


def test_a_billing_error_refuses_the_batch(box: Running, gpt: OpenAI) -> None:
    file_id = gpt_file(gpt, 1)
    box.fault("insufficient_quota", endpoint="batches")

    with pytest.raises(openai.RateLimitError) as caught:
        gpt_batch(gpt, file_id)

    assert caught.value.code == "insufficient_quota"
    assert box.state()["batches"] == 0


def test_accounts_do_not_see_each_others_batches(box: Running, claude: Anthropic) -> None:
    batch = claude.messages.batches.create(requests=claude_requests(1))

    with (
        Anthropic(base_url=box.url, api_key="sandbox-other", max_retries=0) as other,
        pytest.raises(anthropic.NotFoundError),
    ):
        other.messages.batches.retrieve(batch.id)
