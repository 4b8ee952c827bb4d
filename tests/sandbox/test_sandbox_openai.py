"""The unmodified openai SDK against the sandbox: Chat Completions and Responses, whole and streamed."""

from __future__ import annotations

import json
import re
from decimal import Decimal
from typing import Any

import httpx2
import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from sandbox.testing import Running

LUNA = "gpt-6-luna"
SCHEMA = {
    "type": "object",
    "properties": {"company": {"type": "string"}, "total": {"type": "number"}},
    "required": ["company", "total"],
    "additionalProperties": False,
}
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}}


def user(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


def test_chat_answers_with_usage_that_includes_reasoning(gpt: OpenAI, box: Running) -> None:
    answer = gpt.chat.completions.create(model=LUNA, messages=user("What is the capital of France?"))

    assert answer.choices[0].message.content == "Paris."
    assert answer.choices[0].finish_reason == "stop"
    assert answer.service_tier == "default"
    usage = answer.usage
    assert usage is not None
    assert usage.completion_tokens_details is not None
    assert usage.completion_tokens > (usage.completion_tokens_details.reasoning_tokens or 0) == 128
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    expected = (usage.prompt_tokens * Decimal("0.10") + usage.completion_tokens * Decimal("0.50")) / 1_000_000
    assert Decimal(box.bill()["total_usd"]) == expected


def test_a_chat_stream_ends_with_a_usage_chunk_without_choices(gpt: OpenAI) -> None:
    ask: dict[str, Any] = {"model": LUNA, "messages": user("count to ten")}
    whole = gpt.chat.completions.create(**ask)

    chunks = list(gpt.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True}))

    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content == "one two three four five six seven eight nine ten"
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"


def test_a_chat_stream_without_the_option_has_no_usage(gpt: OpenAI) -> None:
    chunks = list(gpt.chat.completions.create(model=LUNA, messages=user("Hi"), stream=True))

    assert all(chunk.usage is None and chunk.choices for chunk in chunks)


def test_responses_answer_and_stream_alike(gpt: OpenAI) -> None:
    whole = gpt.responses.create(model=LUNA, input="count to ten", store=False)

    with gpt.responses.stream(model=LUNA, input="count to ten", store=False) as stream:
        names = [event.type for event in stream]
        final = stream.get_final_response()

    assert whole.output_text == final.output_text == "one two three four five six seven eight nine ten"
    assert whole.status == final.status == "completed"
    assert whole.usage == final.usage
    assert names[:2] == ["response.created", "response.in_progress"]
    assert names.count("response.output_text.delta") > 1
    assert names[-1] == "response.completed"


async def test_the_async_sdk_works_too(box: Running) -> None:
    async with AsyncOpenAI(base_url=box.openai_url, api_key="sandbox-1", max_retries=0) as client:
        answer = await client.responses.create(model=LUNA, input="capital of France")

    assert answer.output_text == "Paris."


def test_structured_output_on_both_endpoints(gpt: OpenAI) -> None:
    text = "Company: ACME\nTotal: 9.90"
    named: Any = {"name": "receipt", "strict": True, "schema": SCHEMA}
    form: Any = {"format": {"type": "json_schema", **named}}

    chat = gpt.chat.completions.create(
        model=LUNA, messages=user(text), response_format={"type": "json_schema", "json_schema": named}
    )
    response = gpt.responses.create(model=LUNA, input=text, text=form)

    assert json.loads(chat.choices[0].message.content or "") == {"company": "ACME", "total": 9.9}
    assert json.loads(response.output_text) == {"company": "ACME", "total": 9.9}


def test_tool_calls_recorded_and_forced(gpt: OpenAI) -> None:
    tool: Any = {"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}
    flat: Any = {"type": "function", "name": "weather", "parameters": PARAMETERS, "strict": False}

    chat = gpt.chat.completions.create(model=LUNA, messages=user("call the weather"), tools=[tool])
    response = gpt.responses.create(model=LUNA, input="City: Bergen", tools=[flat], tool_choice="required")

    calls = chat.choices[0].message.tool_calls
    assert calls is not None
    assert calls[0].type == "function"
    assert json.loads(calls[0].function.arguments) == {"city": "Oslo"}
    assert chat.choices[0].finish_reason == "tool_calls"
    call = response.output[-1]
    assert call.type == "function_call"
    assert json.loads(call.arguments) == {"city": "Bergen"}


def test_streamed_tool_calls_are_put_together_by_the_sdk(gpt: OpenAI) -> None:
    tool: Any = {"type": "function", "function": {"name": "weather", "parameters": PARAMETERS, "strict": False}}
    flat: Any = {"type": "function", "name": "weather", "parameters": PARAMETERS, "strict": False}

    with gpt.chat.completions.stream(model=LUNA, messages=user("call the weather"), tools=[tool]) as chat:
        message = chat.get_final_completion().choices[0].message
    with gpt.responses.stream(model=LUNA, input="call the weather", tools=[flat]) as stream:
        response = stream.get_final_response()

    assert message.tool_calls is not None
    assert json.loads(message.tool_calls[0].function.arguments) == {"city": "Oslo"}
    assert response.output[-1].type == "function_call"


def test_refusals_and_filters(gpt: OpenAI) -> None:
    refused = gpt.chat.completions.create(model=LUNA, messages=user("the forbidden thing"))
    filtered = gpt.chat.completions.create(model=LUNA, messages=user("the filtered thing"))
    response = gpt.responses.create(model=LUNA, input="the filtered thing")

    assert refused.choices[0].message.refusal
    assert refused.choices[0].message.content is None
    assert filtered.choices[0].finish_reason == "content_filter"
    assert response.status == "incomplete"
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "content_filter"


def test_reasoning_may_eat_the_whole_allowance(gpt: OpenAI) -> None:
    chat = gpt.chat.completions.create(model=LUNA, messages=user("Hi"), max_completion_tokens=50)
    response = gpt.responses.create(model=LUNA, input="Hi", max_output_tokens=50)

    assert (chat.choices[0].finish_reason, chat.choices[0].message.content) == ("length", "")
    assert (response.status, response.output_text) == ("incomplete", "")
    assert response.usage is not None
    assert response.usage.output_tokens == 50


REFUSED: list[tuple[str, str, dict[str, Any]]] = [
    ("unsupported_parameter", "temperature", {"temperature": 1.0}),
    ("unsupported_parameter", "max_completion_tokens", {"max_tokens": 100}),
    ("unsupported_value", "reasoning_effort", {"model": "gpt-6.2-astra", "reasoning_effort": "minimal"}),
    ("unknown_parameter", "Unknown parameter", {"extra_body": {"wings": 2}}),
    ("invalid_value", "too large", {"max_completion_tokens": 200_000}),
    (
        "invalid_json_schema",
        "additionalProperties",
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "x", "strict": True, "schema": {"type": "object", "properties": {}}},
            }
        },
    ),
]


@pytest.mark.parametrize("code, complaint, change", REFUSED, ids=[f"{c}-{m}" for c, m, _ in REFUSED])
def test_what_the_models_refuse(gpt: OpenAI, code: str, complaint: str, change: dict[str, Any]) -> None:
    ask: dict[str, Any] = {"model": LUNA, "messages": user("Hi")}

    with pytest.raises(openai.BadRequestError, match=complaint) as refused:
        gpt.chat.completions.create(**{**ask, **change})

    assert refused.value.code == code
    assert refused.value.type == "invalid_request_error"
    assert (refused.value.request_id or "").startswith("req_")


def test_temperature_is_taken_without_reasoning(gpt: OpenAI) -> None:
    answer = gpt.chat.completions.create(model=LUNA, messages=user("Hi"), temperature=0.2, reasoning_effort="none")

    assert answer.usage is not None
    assert answer.usage.completion_tokens_details is not None
    assert answer.usage.completion_tokens_details.reasoning_tokens == 0


def test_an_unknown_model_is_a_404(gpt: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as refused:
        gpt.chat.completions.create(model="gpt-99", messages=user("Hi"))

    assert refused.value.code == "model_not_found"


def test_models_can_be_listed(gpt: OpenAI) -> None:
    assert {"gpt-5.5", LUNA, "gpt-6.2-astra"} <= {model.id for model in gpt.models.list()}
    assert gpt.models.retrieve("gpt-5.5-2026-04-23").id == "gpt-5.5"


def test_flex_is_served_as_flex_and_costs_half(gpt: OpenAI, box: Running) -> None:
    dear = gpt.responses.create(model=LUNA, input="count to ten")
    cheap = gpt.responses.create(model=LUNA, input="count to ten", service_tier="flex")

    assert (dear.service_tier, cheap.service_tier) == ("default", "flex")
    by_tier = {line["tier"]: Decimal(line["usd"]) for line in box.bill()["by_tier"]}
    assert by_tier["flex"] * 2 == by_tier["default"]


def test_a_downgraded_tier_is_billed_as_served(gpt: OpenAI, box: Running) -> None:
    box.fault("tier_downgrade", tier="priority")

    answer = gpt.responses.create(model=LUNA, input="Hi", service_tier="priority")

    assert answer.service_tier == "default"
    assert [line["tier"] for line in box.bill()["by_tier"]] == ["default"]


def test_limits_are_shown_in_go_durations(gpt: OpenAI) -> None:
    raw = gpt.chat.completions.with_raw_response.create(model=LUNA, messages=user("Hi"), max_completion_tokens=1000)

    for bucket in ("requests", "tokens"):
        assert int(raw.headers[f"x-ratelimit-limit-{bucket}"]) == (4000 if bucket == "requests" else 4_000_000)
        assert re.fullmatch(r"(\d+h)?(\d+m)?(\d+(\.\d+)?s)?|\d+ms", raw.headers[f"x-ratelimit-reset-{bucket}"])
    # The allowed output is taken up front.
    assert int(raw.headers["x-ratelimit-remaining-tokens"]) <= 4_000_000 - 1000


def test_an_empty_bucket_is_a_429_with_code_and_wait(gpt: OpenAI, box: Running) -> None:
    box.limit("gpt-6-luna", tpm=1000)
    ask: dict[str, Any] = {"model": LUNA, "messages": user("Hi"), "max_completion_tokens": 900}

    gpt.chat.completions.create(**ask)
    with pytest.raises(openai.RateLimitError) as refused:
        gpt.chat.completions.create(**ask)
    box.limit("gpt-6-luna", tpm=4_000_000)

    assert (refused.value.code, refused.value.type) == ("rate_limit_exceeded", "tokens")
    headers = refused.value.response.headers
    assert int(headers["retry-after"]) * 1000 >= int(headers["retry-after-ms"]) > 0


def test_long_prompts_are_cached_by_themselves(gpt: OpenAI, box: Running) -> None:
    ask: dict[str, Any] = {"model": LUNA, "instructions": "i" * 6000, "input": "Hi", "reasoning": {"effort": "none"}}

    first, second = gpt.responses.create(**ask).usage, gpt.responses.create(**ask).usage
    box.advance(1801)
    third = gpt.responses.create(**ask).usage

    assert first is not None
    assert second is not None
    assert third is not None
    # 6,016 bytes are 1,504 tokens: eleven steps of 128
    assert (first.input_tokens_details.cached_tokens, first.input_tokens_details.cache_write_tokens) == (0, 1408)
    assert (second.input_tokens_details.cached_tokens, second.input_tokens_details.cache_write_tokens) == (1408, 0)
    assert third.input_tokens_details.cached_tokens == 0
    assert first.input_tokens == second.input_tokens


def test_explicit_mode_without_breakpoints_pays_no_write(gpt: OpenAI) -> None:
    usage = gpt.responses.create(model=LUNA, input="e" * 6000, prompt_cache_options={"mode": "explicit"}).usage

    assert usage is not None
    assert usage.input_tokens_details.cache_write_tokens == 0


def test_older_models_cache_without_a_charge(gpt: OpenAI) -> None:
    ask: dict[str, Any] = {"model": "gpt-5.5", "messages": user("o" * 6000)}

    first, second = gpt.chat.completions.create(**ask).usage, gpt.chat.completions.create(**ask).usage

    assert first is not None
    assert second is not None
    assert first.prompt_tokens_details is not None
    assert second.prompt_tokens_details is not None
    assert first.prompt_tokens_details.cache_write_tokens == 0
    assert second.prompt_tokens_details.cached_tokens == 1408


def test_a_missing_or_bad_key_is_a_401(box: Running) -> None:
    bare = httpx2.get(f"{box.openai_url}/models")
    with (
        OpenAI(base_url=box.openai_url, api_key="invalid", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError) as refused,
    ):
        client.models.list()

    assert bare.status_code == 401
    assert refused.value.code == "invalid_api_key"
