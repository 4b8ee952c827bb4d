"""The unmodified anthropic SDK against the sandbox: answers, streams, rules, caching, limits."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import anthropic
import httpx2
import pytest
from anthropic import Anthropic, AsyncAnthropic

from sandbox.testing import Running

HAIKU = "claude-haiku-5-5"
SCHEMA = {
    "type": "object",
    "properties": {"company": {"type": "string"}, "total": {"type": "number"}},
    "required": ["company", "total"],
    "additionalProperties": False,
}
WEATHER: Any = {
    "name": "weather",
    "description": "Tells the weather",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


def user(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


def text_of(message: anthropic.types.Message) -> str:
    return "".join(block.text for block in message.content if block.type == "text")


def test_a_recorded_answer_comes_with_its_own_usage(claude: Anthropic, box: Running) -> None:
    message = claude.messages.create(model=HAIKU, max_tokens=500, messages=user("What is the capital of France?"))

    assert text_of(message) == "Paris, says Haiku."
    assert message.stop_reason == "end_turn"
    assert message.usage.output_tokens == 200
    assert message.usage.output_tokens_details is not None
    assert message.usage.output_tokens_details.thinking_tokens == 150
    assert message.usage.service_tier == "standard"
    # 0.10 and 0.50 USD per million: (input * 0.10 + 200 * 0.50) / 1e6
    expected = (Decimal(message.usage.input_tokens) * Decimal("0.10") + 200 * Decimal("0.50")) / 1_000_000
    assert Decimal(box.bill()["total_usd"]) == expected


def test_a_stream_says_the_same_as_a_whole_answer(claude: Anthropic) -> None:
    ask: dict[str, Any] = {"model": HAIKU, "max_tokens": 900, "messages": user("count to ten")}
    whole = claude.messages.create(**ask)

    with claude.messages.stream(**ask) as stream:
        pieces = list(stream.text_stream)
        final = stream.get_final_message()

    assert len(pieces) > 1
    assert "".join(pieces) == text_of(whole) == text_of(final)
    assert final.stop_reason == whole.stop_reason
    assert final.usage.output_tokens == whole.usage.output_tokens
    assert final.usage.input_tokens == whole.usage.input_tokens


def test_events_come_in_the_documented_order(claude: Anthropic) -> None:
    events = [e.type for e in claude.messages.create(model=HAIKU, max_tokens=900, messages=user("Hi"), stream=True)]

    assert events[0] == "message_start"
    assert events[-2:] == ["message_delta", "message_stop"]
    assert events.count("content_block_start") == events.count("content_block_stop") == 2  # thinking, then text


async def test_the_async_sdk_works_too(box: Running) -> None:
    async with AsyncAnthropic(base_url=box.url, api_key="sandbox-1", max_retries=0) as client:
        message = await client.messages.create(model=HAIKU, max_tokens=900, messages=user("capital of France"))

    assert text_of(message) == "Paris, says Haiku."


def test_structured_output_fits_the_schema(claude: Anthropic) -> None:
    message = claude.messages.create(
        model=HAIKU,
        max_tokens=900,
        messages=user("Company: ACME\nTotal: 9.90"),
        output_config={"format": {"type": "json_schema", "schema": SCHEMA}},
    )

    assert json.loads(text_of(message)) == {"company": "ACME", "total": 9.9}


def test_a_tool_call_from_the_book_and_a_forced_one(claude: Anthropic) -> None:
    recorded = claude.messages.create(model=HAIKU, max_tokens=900, messages=user("call the weather"), tools=[WEATHER])
    forced = claude.messages.create(
        model=HAIKU,
        max_tokens=900,
        messages=user("City: Bergen"),
        tools=[WEATHER],
        tool_choice={"type": "tool", "name": "weather"},
    )

    for message, city in ((recorded, "Oslo"), (forced, "Bergen")):
        call = message.content[-1]
        assert call.type == "tool_use"
        assert (call.name, call.input, message.stop_reason) == ("weather", {"city": city}, "tool_use")


def test_a_streamed_tool_call_is_put_together_by_the_sdk(claude: Anthropic) -> None:
    with claude.messages.stream(
        model=HAIKU, max_tokens=900, messages=user("call the weather"), tools=[WEATHER]
    ) as stream:
        call = stream.get_final_message().content[-1]

    assert call.type == "tool_use"
    assert call.input == {"city": "Oslo"}


def test_a_refusal_is_a_200_with_its_own_stop_reason(claude: Anthropic) -> None:
    message = claude.messages.create(model=HAIKU, max_tokens=900, messages=user("the forbidden thing"))

    assert message.stop_reason == "refusal"
    assert message.stop_details is not None
    assert text_of(message) == ""


def test_thinking_is_spent_first_and_may_leave_no_text(claude: Anthropic) -> None:
    message = claude.messages.create(model="claude-opus-5-5", max_tokens=64, messages=user("Hi"))

    assert (message.stop_reason, text_of(message), message.usage.output_tokens) == ("max_tokens", "", 64)


def test_thinking_switched_off_on_haiku_costs_nothing(claude: Anthropic) -> None:
    message = claude.messages.create(model=HAIKU, max_tokens=900, messages=user("Hi"), thinking={"type": "disabled"})

    assert message.usage.output_tokens_details is not None
    assert message.usage.output_tokens_details.thinking_tokens == 0
    assert [block.type for block in message.content] == ["text"]


def test_a_stop_sequence_ends_the_answer(claude: Anthropic) -> None:
    message = claude.messages.create(
        model=HAIKU, max_tokens=900, messages=user("count to ten"), stop_sequences=["four"]
    )

    assert (text_of(message), message.stop_reason, message.stop_sequence) == ("one two three ", "stop_sequence", "four")


def test_counting_tokens_agrees_with_the_usage_and_bills_nothing(claude: Anthropic, box: Running) -> None:
    counted = claude.messages.count_tokens(model=HAIKU, messages=user("Hello there"), system="Be brief.")
    bill = box.bill()["requests"]
    message = claude.messages.create(model=HAIKU, max_tokens=900, messages=user("Hello there"), system="Be brief.")

    assert bill == 0
    assert counted.input_tokens == message.usage.input_tokens


def test_models_can_be_listed_and_fetched(claude: Anthropic) -> None:
    listed = [model.id for model in claude.models.list()]

    assert {"claude-opus-5-5", "claude-sonnet-5-5", HAIKU, "claude-haiku-4-5"} <= set(listed)
    assert claude.models.retrieve(HAIKU).max_tokens == 128_000


REFUSED: list[tuple[str, dict[str, Any]]] = [
    ("temperature", {"extra_body": {"temperature": 1.0}}),
    ("top_p", {"extra_body": {"top_p": 0.5}}),
    ("top_k", {"extra_body": {"top_k": 5}}),
    ("Extra inputs", {"extra_body": {"output_format": {}}}),
    ("prefill", {"messages": [*user("Hi"), {"role": "assistant", "content": "{"}]}),
    (
        "document",
        {"messages": [*user("Hi"), {"role": "assistant", "content": [{"type": "document", "source": {}}]}, *user("x")]},
    ),
    ("citations", {"messages": [{"role": "user", "content": [{"type": "text", "text": "x", "citations": [{}]}]}]}),
    ("tool_choice", {"model": "claude-opus-5-5", "tools": [WEATHER], "tool_choice": {"type": "any"}}),
    ("always thinks", {"model": "claude-opus-5-5", "thinking": {"type": "disabled"}}),
    ("maximum allowed", {"max_tokens": 128_001, "timeout": 60}),
    ("at least one message", {"messages": []}),
    ("non-empty", {"messages": user("")}),
    ("role", {"messages": [{"role": "robot", "content": "x"}]}),
    ("maximum of 4", {"system": [{"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}] * 5}),
    (
        "additionalProperties",
        {"output_config": {"format": {"type": "json_schema", "schema": {"type": "object", "properties": {}}}}},
    ),
    ("effort", {"output_config": {"effort": "extreme"}}),
    ("budget_tokens", {"thinking": {"type": "enabled", "budget_tokens": 5}}),
]


@pytest.mark.parametrize("complaint, change", REFUSED, ids=[complaint for complaint, _ in REFUSED])
def test_what_the_current_version_refuses(claude: Anthropic, complaint: str, change: dict[str, Any]) -> None:
    ask: dict[str, Any] = {"model": HAIKU, "max_tokens": 100, "messages": user("Hi")}

    with pytest.raises(anthropic.BadRequestError, match=complaint) as refused:
        claude.messages.create(**{**ask, **change})

    assert refused.value.type == "invalid_request_error"
    assert (refused.value.request_id or "").startswith("req_")


def test_an_older_model_takes_prefill(claude: Anthropic) -> None:
    answered = claude.messages.create(
        model="claude-haiku-4-5", max_tokens=100, messages=[*user("Hi"), {"role": "assistant", "content": "{"}]
    )

    assert answered.stop_reason in ("end_turn", "max_tokens")


def test_an_unknown_model_is_a_404_and_costs_nothing(claude: Anthropic, box: Running) -> None:
    for name in ("claude-hypothetical-9", "gpt-6-luna"):
        with pytest.raises(anthropic.NotFoundError) as refused:
            claude.messages.create(model=name, max_tokens=100, messages=user("Hi"))
        assert refused.value.type == "not_found_error"

    assert box.bill()["requests"] == 0


def test_keys_are_not_checked_but_one_must_be_sent(box: Running) -> None:
    body: dict[str, Any] = {"model": HAIKU, "max_tokens": 10, "messages": user("Hi")}
    bare = httpx2.post(f"{box.url}/v1/messages", json=body, headers={"anthropic-version": "2026-10-21"})
    with (
        Anthropic(base_url=box.url, api_key="invalid-1", max_retries=0) as client,
        pytest.raises(anthropic.AuthenticationError),
    ):
        client.messages.create(**body)

    assert bare.status_code == 401
    assert bare.json()["error"]["type"] == "authentication_error"


def test_a_request_without_a_version_is_refused(claude: Anthropic) -> None:
    with pytest.raises(anthropic.BadRequestError, match="anthropic-version"):
        claude.messages.create(
            model=HAIKU, max_tokens=10, messages=user("Hi"), extra_headers={"anthropic-version": "1999-01-01"}
        )


# -- limits ------------------------------------------------------------------------------------------------------------


def test_every_response_carries_all_twelve_headers(claude: Anthropic) -> None:
    raw = claude.messages.with_raw_response.create(model=HAIKU, max_tokens=100, messages=user("Hi"))

    for bucket in ("requests", "tokens", "input-tokens", "output-tokens"):
        assert int(raw.headers[f"anthropic-ratelimit-{bucket}-limit"]) > 0
        assert int(raw.headers[f"anthropic-ratelimit-{bucket}-remaining"]) >= 0
        reset = datetime.fromisoformat(raw.headers[f"anthropic-ratelimit-{bucket}-reset"])
        assert reset.tzinfo == UTC
        assert abs(reset - datetime.now(UTC)) < timedelta(seconds=90)


def test_an_empty_bucket_is_a_429_that_says_when_to_come_back(claude: Anthropic, box: Running) -> None:
    box.limit("claude-haiku-5.5", rpm=1)
    ask: dict[str, Any] = {"model": HAIKU, "max_tokens": 100, "messages": user("Hi")}
    claude.messages.create(**ask)

    with pytest.raises(anthropic.RateLimitError) as refused:
        claude.messages.create(**ask)
    wait_s = int(refused.value.response.headers["retry-after"])
    box.advance(wait_s)
    again = claude.messages.create(**ask)
    box.limit("claude-haiku-5.5", rpm=4000)

    assert refused.value.type == "rate_limit_error"
    assert refused.value.response.headers["anthropic-ratelimit-requests-remaining"] == "0"
    assert 55 <= wait_s <= 60
    assert again.stop_reason is not None


def test_each_key_has_its_own_limits(claude: Anthropic, box: Running) -> None:
    box.limit("claude-haiku-5.5", rpm=1)
    ask: dict[str, Any] = {"model": HAIKU, "max_tokens": 100, "messages": user("Hi")}
    claude.messages.create(**ask)

    with Anthropic(base_url=box.url, api_key="sandbox-2", max_retries=0) as other:
        answered = other.messages.create(**ask)
    box.limit("claude-haiku-5.5", rpm=4000)

    assert answered.stop_reason is not None
    assert len(box.bill()["by_account"]) == 2


def test_cache_reads_do_not_count_as_input(claude: Anthropic) -> None:
    system: list[Any] = [{"type": "text", "text": "rule " * 2000, "cache_control": {"type": "ephemeral"}}]
    ask: dict[str, Any] = {"model": HAIKU, "max_tokens": 500, "messages": user("count to ten"), "system": system}
    left = "anthropic-ratelimit-input-tokens-remaining"

    written = claude.messages.with_raw_response.create(**ask)
    read = claude.messages.with_raw_response.create(**ask)

    assert int(written.headers[left]) <= 4_000_000 - 4000
    assert int(read.headers[left]) > int(written.headers[left]) - 100
    assert read.parse().usage.cache_read_input_tokens == written.parse().usage.cache_creation_input_tokens == 4004


# -- caching -----------------------------------------------------------------------------------------------------------


def cached(text: str, **control: str) -> list[Any]:
    return [{"type": "text", "text": text, "cache_control": {"type": "ephemeral", **control}}]


def test_a_prefix_is_written_once_read_again_and_lost_after_its_time(claude: Anthropic, box: Running) -> None:
    ask: dict[str, Any] = {"model": HAIKU, "max_tokens": 500, "messages": user("Hi"), "system": cached("s" * 5000)}

    first = claude.messages.create(**ask).usage
    box.advance(299)
    second = claude.messages.create(**ask).usage
    box.advance(301)
    third = claude.messages.create(**ask).usage

    assert (
        first.cache_creation_input_tokens == second.cache_read_input_tokens == third.cache_creation_input_tokens == 2004
    )
    assert first.cache_read_input_tokens == second.cache_creation_input_tokens == 0
    assert first.input_tokens == second.input_tokens
    assert first.cache_creation is not None
    assert first.cache_creation.ephemeral_5m_input_tokens == first.cache_creation_input_tokens


def test_an_hour_lasts_an_hour_and_costs_more(claude: Anthropic, box: Running) -> None:
    ask: dict[str, Any] = {
        "model": HAIKU, "max_tokens": 500, "messages": user("Hi"), "system": cached("h" * 5000, ttl="1h"),
    }  # fmt: skip

    first = claude.messages.create(**ask).usage
    box.advance(3500)
    second = claude.messages.create(**ask).usage

    assert first.cache_creation is not None
    assert first.cache_creation.ephemeral_1h_input_tokens == second.cache_read_input_tokens == 2004
    assert box.bill()["by_model"][HAIKU]["cache_write_long_tokens"] == 2004


def test_automatic_caching_marks_the_last_block(claude: Anthropic) -> None:
    ask: dict[str, Any] = {
        "model": HAIKU, "max_tokens": 500, "messages": user("a" * 5000), "cache_control": {"type": "ephemeral"},
    }  # fmt: skip

    first, second = claude.messages.create(**ask).usage, claude.messages.create(**ask).usage

    assert first.cache_creation_input_tokens == second.cache_read_input_tokens == 2004
    assert (first.input_tokens, second.input_tokens) == (0, 0)


def test_warming_generates_nothing(claude: Anthropic) -> None:
    system = cached("w" * 5000)
    warm = claude.messages.create(model=HAIKU, max_tokens=0, messages=user("."), system=system)
    after = claude.messages.create(model=HAIKU, max_tokens=500, messages=user("."), system=system)

    assert (warm.content, warm.usage.output_tokens) == ([], 0)
    assert after.usage.cache_read_input_tokens == warm.usage.cache_creation_input_tokens == 2004


def test_below_the_models_minimum_nothing_happens(claude: Anthropic) -> None:
    # 4,096 tokens on Haiku 4.5, 512 on Haiku 5.5
    ask: dict[str, Any] = {"max_tokens": 500, "messages": user("Hi"), "system": cached("m" * 5000)}

    small = claude.messages.create(model="claude-haiku-4-5", **ask).usage
    enough = claude.messages.create(model=HAIKU, **ask).usage

    assert (small.cache_creation_input_tokens, small.cache_read_input_tokens) == (0, 0)
    assert enough.cache_creation_input_tokens == 2004
