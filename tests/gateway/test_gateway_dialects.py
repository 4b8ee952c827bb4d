"""The unmodified SDKs through the gateway, straight and with the dialects crossed: whole, streamed, tools, JSON, images."""

from __future__ import annotations

import json
import re
from decimal import Decimal
from typing import Any

import anthropic
import httpx2
import openai
import pytest
from pydantic import BaseModel

from sandbox.testing import Running
from tests.gateway.conftest import Ledger

BOTH = pytest.mark.parametrize("model", ["claude-haiku-5-5", "gpt-6-luna"])
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
HELLO: list[Any] = [{"role": "user", "content": "Say hello."}]
WEATHER = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


class Person(BaseModel):
    name: str
    city: str


@BOTH
def test_whole_answers_carry_job_model_reason_and_cost(
    gpt: openai.OpenAI, ledger: Ledger, provider: Running, model: str
) -> None:
    raw = gpt.chat.completions.with_raw_response.create(model=model, messages=HELLO)
    completion = raw.parse()

    assert model in str(completion.choices[0].message.content)
    assert completion.choices[0].finish_reason == "stop"
    job = raw.headers["x-waybill-job"]
    assert raw.headers["x-waybill-model"] == model
    assert raw.headers["x-waybill-reason"] == "pinned"
    ((usd, tokens, state),) = ledger.rows(
        "select a.cost_usd, a.output_tokens, j.state from attempts a join jobs j on j.id = a.job_id where j.id = %s",
        job,
    )
    assert Decimal(raw.headers["x-waybill-cost-usd"]) == usd > 0
    assert completion.usage is not None
    assert (completion.usage.completion_tokens, "succeeded") == (tokens, state)


@BOTH
def test_chat_streams(gpt: openai.OpenAI, model: str) -> None:
    stream = gpt.chat.completions.create(
        model=model, messages=HELLO, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)

    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert f"as {model};" in text
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    last = chunks[-1].usage
    assert last is not None
    assert last.completion_tokens > 0
    assert Decimal(last.cost_usd) > 0  # type: ignore[attr-defined]


@BOTH
def test_chat_stream_without_usage_has_no_usage_chunk(gpt: openai.OpenAI, model: str) -> None:
    chunks = list(gpt.chat.completions.create(model=model, messages=HELLO, stream=True))

    assert all(chunk.choices for chunk in chunks)
    assert not any(chunk.usage for chunk in chunks)


@BOTH
def test_messages_stream_helper(claude: anthropic.Anthropic, model: str) -> None:
    with claude.messages.stream(model=model, max_tokens=500, messages=HELLO) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()

    assert f"as {model};" in text
    assert final.stop_reason == "end_turn"
    assert final.usage.output_tokens > 0
    assert final.content[-1].text == text  # type: ignore[union-attr]


@BOTH
def test_responses_stream(gpt: openai.OpenAI, model: str) -> None:
    with gpt.responses.stream(model=model, input="Say hello.") as stream:
        types = [event.type for event in stream]
        final = stream.get_final_response()

    assert types[0] == "response.created"
    assert types[-1] == "response.completed"
    assert f"as {model};" in final.output_text
    assert final.usage is not None
    assert final.usage.output_tokens > 0


@BOTH
async def test_async_clients(gateway: str, model: str) -> None:
    async with (
        anthropic.AsyncAnthropic(base_url=gateway, api_key="any", max_retries=0) as claude,
        openai.AsyncOpenAI(base_url=f"{gateway}/v1", api_key="any", max_retries=0) as gpt,
    ):
        message = await claude.messages.create(model=model, max_tokens=500, messages=HELLO)
        completion = await gpt.chat.completions.create(model=model, messages=HELLO)

    assert message.content[-1].text == completion.choices[0].message.content  # type: ignore[union-attr]


@BOTH
def test_json_of_a_pydantic_model(gpt: openai.OpenAI, claude: anthropic.Anthropic, model: str) -> None:
    prompt = "Name: Ada Lovelace\nCity: London"
    chat = gpt.chat.completions.parse(
        model=model, messages=[{"role": "user", "content": prompt}], response_format=Person
    )
    response = gpt.responses.parse(model=model, input=prompt, text_format=Person)
    message = claude.messages.parse(
        model=model, max_tokens=500, messages=[{"role": "user", "content": prompt}], output_format=Person
    )

    assert isinstance(chat.choices[0].message.parsed, Person)
    assert isinstance(response.output_parsed, Person)
    assert isinstance(message.parsed_output, Person)


@BOTH
@pytest.mark.parametrize("stream", [False, True])
def test_chat_tools_there_and_back(gpt: openai.OpenAI, model: str, stream: bool) -> None:
    tools: Any = [{"type": "function", "function": {"name": "weather", "parameters": WEATHER}}]
    asked: Any = {"model": model, "messages": HELLO, "tools": tools, "tool_choice": "required"}
    if stream:
        with gpt.chat.completions.stream(**asked) as events:
            list(events)
            message = events.get_final_completion().choices[0].message
    else:
        message = gpt.chat.completions.create(**asked).choices[0].message
    assert message.tool_calls is not None
    (call,) = message.tool_calls
    assert call.function.name == "weather"  # type: ignore[union-attr]
    assert "city" in json.loads(call.function.arguments)  # type: ignore[union-attr]

    result = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
    followed = gpt.chat.completions.create(
        model=model, messages=[*HELLO, message.model_dump(exclude_none=True), result], tools=tools
    )
    assert followed.choices[0].message.content


@BOTH
@pytest.mark.parametrize("stream", [False, True])
def test_messages_tools_there_and_back(claude: anthropic.Anthropic, model: str, stream: bool) -> None:
    tools: Any = [{"name": "weather", "description": "of a city", "input_schema": WEATHER}]
    asked: Any = {"model": model, "max_tokens": 500, "messages": HELLO, "tools": tools, "tool_choice": {"type": "any"}}
    if stream:
        with claude.messages.stream(**asked) as events:
            message = events.get_final_message()
    else:
        message = claude.messages.create(**asked)
    assert message.stop_reason == "tool_use"
    call = message.content[-1]
    assert call.type == "tool_use"
    assert "city" in call.input

    blocks = [block.model_dump(exclude_none=True) for block in message.content]
    result = {"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": "sunny"}]}
    turns: Any = [*HELLO, {"role": "assistant", "content": blocks}, {"role": "user", "content": [result]}]
    followed = claude.messages.create(model=model, max_tokens=500, messages=turns, tools=tools)
    assert followed.content[-1].type == "text"


@BOTH
def test_responses_tools_there_and_back(gpt: openai.OpenAI, model: str) -> None:
    tools: Any = [{"type": "function", "name": "weather", "parameters": WEATHER, "strict": False}]
    response = gpt.responses.create(model=model, input="Weather?", tools=tools, tool_choice="required")
    call = next(item for item in response.output if item.type == "function_call")
    items: Any = [
        {"role": "user", "content": "Weather?"},
        *[item.model_dump(exclude_none=True) for item in response.output],
        {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"},
    ]
    followed = gpt.responses.create(model=model, input=items, tools=tools)

    assert call.name == "weather"
    assert followed.output_text


@BOTH
def test_images_reach_the_model(gpt: openai.OpenAI, claude: anthropic.Anthropic, provider: Running, model: str) -> None:
    before = len(provider.log())
    gpt.chat.completions.create(
        model=model,
        messages=[
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "What is this?"},
                    {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}},
                ],
            }
        ],
    )
    source: Any = {"type": "base64", "media_type": "image/png", "data": PNG}
    claude.messages.create(
        model=model, max_tokens=500, messages=[{"role": "user", "content": [{"type": "image", "source": source}]}]
    )

    chat, messages = provider.log()[before:]
    for entry in (chat, messages):
        usage = entry["usage"]
        # The sandbox's flat price of an image; the names are the lane's own.
        assert usage.get("prompt_tokens", usage.get("input_tokens")) >= 1600, usage


def test_bytes_are_unchanged_where_dialects_match(gateway: str, provider: Running) -> None:
    """The same request to the sandbox itself and through the gateway: the same frames but for ids, times and cost."""
    body = {"model": "claude-haiku-5-5", "max_tokens": 500, "messages": HELLO, "stream": True}
    headers = {"anthropic-version": "2026-10-21", "x-api-key": "sandbox-key"}
    with httpx2.Client() as http:
        direct = http.post(f"{provider.url}/v1/messages", json=body, headers=headers).text
        through = http.post(f"{gateway}/v1/messages", json=body, headers=headers).text

    def shape(text: str) -> list[Any]:
        text = re.sub(r"sandbox[0-9a-f]{22}", "signature", text)
        events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: ")]
        return [{**event, "message": None, "content_block": None, "usage": None} for event in events]

    assert shape(direct) == shape(through)
    assert "cost_usd" in through


def test_an_intent_takes_the_policys_chain(gpt: openai.OpenAI) -> None:
    raw = gpt.chat.completions.with_raw_response.create(model="waybill/extraction", messages=HELLO)
    auto = gpt.chat.completions.with_raw_response.create(
        model="auto", messages=HELLO, extra_headers={"x-waybill-intent": "extraction"}
    )

    assert (raw.headers["x-waybill-model"], raw.headers["x-waybill-reason"]) == ("claude-haiku-5-5", "policy")
    assert auto.headers["x-waybill-model"] == "claude-haiku-5-5"


def test_options_in_extra_body_reach_the_job_and_not_the_provider(gpt: openai.OpenAI, ledger: Ledger) -> None:
    raw = gpt.chat.completions.with_raw_response.create(
        model="gpt-6-luna",
        messages=HELLO,
        extra_body={"waybill": {"intent": "summarization", "deadline": 60, "labels": {"team": "a"}}},
    )

    ((intent, payload),) = ledger.rows(
        "select j.intent, p.body from jobs j join payloads p on p.job_id = j.id where j.id = %s",
        raw.headers["x-waybill-job"],
    )
    assert intent == "summarization"
    assert json.loads(payload)["metadata"] == {"team": "a"}
    assert "waybill" not in json.loads(payload)["wire"]["body"]


@pytest.mark.parametrize("how", ["header", "extra_body", "metadata"])
def test_a_stated_quality_reaches_the_decision_and_not_the_provider(
    gpt: openai.OpenAI, ledger: Ledger, how: str
) -> None:
    given: dict[str, Any] = {
        "header": {"extra_headers": {"x-waybill-quality": "0.95"}},
        "extra_body": {"extra_body": {"waybill": {"quality": 0.95}}},
        "metadata": {"metadata": {"waybill_quality": "0.95"}},
    }[how]
    raw = gpt.chat.completions.with_raw_response.create(model="waybill/extraction", messages=HELLO, **given)

    ((quality, reason, payload),) = ledger.rows(
        "select j.quality, d.reason, p.body from jobs j join payloads p on p.job_id = j.id"
        " join decisions d on d.job_id = j.id and d.outcome = 'route' where j.id = %s",
        raw.headers["x-waybill-job"],
    )
    assert quality == 0.95
    assert "for the job's own 0.95: the file's order holds" in reason
    assert "quality" not in json.dumps(json.loads(payload)["wire"])


def test_same_idempotency_key_is_one_job(claude: anthropic.Anthropic, ledger: Ledger) -> None:
    asked: Any = {"model": "claude-haiku-5-5", "max_tokens": 400, "messages": HELLO}
    key = {"idempotency-key": "once-only"}
    first = claude.messages.with_raw_response.create(**asked, extra_headers=key)
    second = claude.messages.with_raw_response.create(**asked, extra_headers=key)
    with claude.messages.stream(**asked, extra_headers=key) as stream:
        streamed = stream.get_final_message()

    assert first.headers["x-waybill-job"] == second.headers["x-waybill-job"]
    assert first.parse().content[-1] == second.parse().content[-1]
    assert streamed.content[-1].text == first.parse().content[-1].text  # type: ignore[union-attr]


def test_counts_tokens(claude: anthropic.Anthropic) -> None:
    short = claude.messages.count_tokens(model="claude-haiku-5-5", messages=HELLO)
    long = claude.messages.count_tokens(
        model="claude-haiku-5-5", messages=[{"role": "user", "content": "Say hello. " * 100}]
    )

    assert 0 < short.input_tokens < long.input_tokens
