"""Every fault, as the real SDKs meet it, and what the bill and the log say of it afterwards."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import anthropic
import httpx2
import openai
import pytest
from anthropic import Anthropic
from openai import OpenAI

from sandbox.faults import KINDS
from sandbox.testing import Running

HAIKU, LUNA = "claude-haiku-5-5", "gpt-6-luna"
MESSAGES: list[Any] = [{"role": "user", "content": "count to ten"}]


def ask_claude(client: Anthropic, **more: Any) -> Any:
    return client.messages.create(model=HAIKU, max_tokens=900, messages=MESSAGES, **more)


def ask_gpt(client: OpenAI, **more: Any) -> Any:
    return client.chat.completions.create(model=LUNA, messages=MESSAGES, **more)


def ask_responses(client: OpenAI, **more: Any) -> Any:
    return client.responses.create(model=LUNA, input="count to ten", **more)


# -- errors before a model runs ----------------------------------------------------------------------------------------

CLAUDE_ERRORS: list[tuple[str, type[anthropic.APIStatusError], int, str, str | None, bool]] = [
    ("rate_limit", anthropic.RateLimitError, 429, "rate_limit_error", None, True),
    ("rate_limit_bare", anthropic.RateLimitError, 429, "rate_limit_error", None, False),
    ("ramp_limit", anthropic.RateLimitError, 429, "rate_limit_error", "ramp_limit_exceeded", True),
    ("spend_limit", anthropic.RateLimitError, 429, "rate_limit_error", "enforced_spend_limit_reached", False),
    ("overloaded", anthropic.InternalServerError, 529, "overloaded_error", None, False),
    ("server_error", anthropic.InternalServerError, 500, "api_error", None, False),
    ("unavailable", anthropic.InternalServerError, 503, "api_error", None, False),
    ("unauthorized", anthropic.AuthenticationError, 401, "authentication_error", None, False),
    ("forbidden", anthropic.PermissionDeniedError, 403, "permission_error", None, False),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fault, error, status, kind, code, waits", CLAUDE_ERRORS, ids=[c[0] for c in CLAUDE_ERRORS])
def test_errors_in_anthropics_words(
    claude: Anthropic,
    box: Running,
    fault: str,
    error: type[anthropic.APIStatusError],
    status: int,
    kind: str,
    code: str | None,
    waits: bool,
    stream: bool,
) -> None:
    box.fault(fault, retry_after_s=7)

    with pytest.raises(error) as raised:
        ask_claude(claude, stream=stream)

    assert (raised.value.status_code, raised.value.type, raised.value.error_code) == (status, kind, code)
    assert raised.value.response.headers.get("retry-after") == ("7" if waits else None)
    assert "anthropic-ratelimit-requests-remaining" in raised.value.response.headers
    assert box.bill()["requests"] == 0


OPENAI_ERRORS: list[tuple[str, type[openai.APIStatusError], int, str, bool]] = [
    ("rate_limit", openai.RateLimitError, 429, "rate_limit_exceeded", True),
    ("rate_limit_bare", openai.RateLimitError, 429, "rate_limit_exceeded", False),
    ("ramp_limit", openai.RateLimitError, 429, "slow_down", True),
    ("insufficient_quota", openai.RateLimitError, 429, "insufficient_quota", False),
    ("flex_unavailable", openai.RateLimitError, 429, "resource_unavailable", False),
    ("overloaded", openai.InternalServerError, 503, "server_is_overloaded", False),
    ("server_error", openai.InternalServerError, 500, "server_error", False),
    ("unauthorized", openai.AuthenticationError, 401, "invalid_api_key", False),
    ("forbidden", openai.PermissionDeniedError, 403, "permission_denied", False),
]


@pytest.mark.parametrize("fault, error, status, code, waits", OPENAI_ERRORS, ids=[c[0] for c in OPENAI_ERRORS])
def test_errors_in_openais_words(
    gpt: OpenAI, box: Running, fault: str, error: type[openai.APIStatusError], status: int, code: str, waits: bool
) -> None:
    box.fault(fault, retry_after_s=7)

    with pytest.raises(error) as raised:
        ask_gpt(gpt)

    assert (raised.value.status_code, raised.value.code) == (status, code)
    assert raised.value.response.headers.get("retry-after") == ("7" if waits else None)
    assert box.bill()["requests"] == 0


# -- the answer never comes, or is no answer ---------------------------------------------------------------------------


def test_a_hang_ends_when_the_client_gives_up(claude: Anthropic, gpt: OpenAI, box: Running) -> None:
    box.fault("hang")

    with pytest.raises(anthropic.APITimeoutError):
        ask_claude(claude, timeout=0.2)
    with pytest.raises(openai.APITimeoutError):
        ask_gpt(gpt, timeout=0.2)

    assert box.bill()["requests"] == 0


def test_a_hang_can_be_one_the_model_ran_behind(claude: Anthropic, box: Running) -> None:
    box.fault("hang", billed=True)

    with pytest.raises(anthropic.APITimeoutError):
        ask_claude(claude, timeout=0.2)

    assert box.bill()["requests"] == 1


def test_a_reset_connection(claude: Anthropic, gpt: OpenAI, box: Running) -> None:
    box.fault("reset")

    with pytest.raises(anthropic.APIConnectionError):
        ask_claude(claude)
    with pytest.raises(openai.APIConnectionError):
        ask_gpt(gpt)


def test_a_proxys_page_with_status_200(claude: Anthropic, gpt: OpenAI, box: Running) -> None:
    box.fault("html")

    assert "<html>" in ask_claude(claude)
    assert "<html>" in ask_gpt(gpt)
    assert box.bill()["requests"] == 0


def test_a_cut_body_is_billed(claude: Anthropic, gpt: OpenAI, box: Running) -> None:
    box.fault("cut_json")

    with pytest.raises(json.JSONDecodeError):
        ask_claude(claude)
    with pytest.raises(json.JSONDecodeError):
        ask_gpt(gpt)

    assert [(entry["billed"], entry["delivered"]) for entry in box.log()] == [(True, False), (True, False)]


def test_a_body_shorter_than_it_says(claude: Anthropic, box: Running) -> None:
    box.fault("short_body")

    with pytest.raises(anthropic.APIConnectionError):
        ask_claude(claude)


@pytest.mark.parametrize("fault", ["usage_missing", "usage_null"])
def test_no_usage(claude: Anthropic, gpt: OpenAI, box: Running, fault: str) -> None:
    box.fault(fault)

    assert ask_claude(claude).usage is None
    assert ask_gpt(gpt).usage is None
    assert ask_responses(gpt).usage is None
    assert box.bill()["requests"] == 3


@pytest.mark.parametrize("fault, seen", [("usage_negative", lambda n: n < 0), ("usage_string", lambda n: n == "ten")])
def test_usage_that_cannot_be(claude: Anthropic, gpt: OpenAI, box: Running, fault: str, seen: Any) -> None:
    box.fault(fault)

    assert seen(ask_claude(claude).usage.output_tokens)
    assert seen(ask_gpt(gpt).usage.completion_tokens)
    assert seen(ask_responses(gpt).usage.output_tokens)


def test_usage_is_spoiled_in_streams_too(claude: Anthropic, gpt: OpenAI, box: Running) -> None:
    box.fault("usage_missing")

    events = list(ask_claude(claude, stream=True))
    chunks = list(ask_gpt(gpt, stream=True, stream_options={"include_usage": True}))

    assert [e.message.usage for e in events if e.type == "message_start"] == [None]
    assert [e.usage for e in events if e.type == "message_delta"] == [None]
    assert all(chunk.usage is None for chunk in chunks)


def test_an_empty_answer(claude: Anthropic, gpt: OpenAI, box: Running) -> None:
    box.fault("empty")

    assert ask_claude(claude).content == []
    assert ask_gpt(gpt).choices[0].message.content == ""


def test_a_refusal_and_a_cut_by_max_tokens(claude: Anthropic, gpt: OpenAI, box: Running) -> None:
    box.fault("refusal", times=2)
    refused = ask_claude(claude).stop_reason, ask_gpt(gpt).choices[0].message.refusal is not None
    box.clear_faults()
    box.fault("max_tokens")
    cut = ask_claude(claude).stop_reason, ask_gpt(gpt).choices[0].finish_reason, ask_responses(gpt).status

    assert refused == ("refusal", True)
    assert cut == ("max_tokens", "length", "incomplete")


# -- streams that go wrong half way ------------------------------------------------------------------------------------


def test_a_cut_stream_is_billed_for_what_was_produced(claude: Anthropic, box: Running) -> None:
    whole = ask_claude(claude).usage.output_tokens
    box.fault("cut_stream")

    with pytest.raises(httpx2.TransportError):
        list(ask_claude(claude, stream=True))

    entry = box.log()[-1]
    assert 0 < entry["usage"]["output_tokens"] < whole
    assert (entry["billed"], entry["delivered"], entry["status"]) == (True, False, 200)
    assert Decimal(entry["usd"]) > 0


def test_a_cut_stream_on_openai(gpt: OpenAI, box: Running) -> None:
    box.fault("cut_stream")

    with pytest.raises(openai.APIConnectionError):
        list(ask_gpt(gpt, stream=True))
    with pytest.raises(openai.APIConnectionError):
        list(ask_responses(gpt, stream=True))


def test_a_clean_early_end_raises_nothing(claude: Anthropic, gpt: OpenAI, box: Running) -> None:
    box.fault("early_end")

    events = [event.type for event in ask_claude(claude, stream=True)]
    chunks = list(ask_gpt(gpt, stream=True))
    names = [event.type for event in ask_responses(gpt, stream=True)]

    assert "message_stop" not in events
    assert all(chunk.choices[0].finish_reason is None for chunk in chunks)
    assert "response.completed" not in names
    assert not any(entry["delivered"] for entry in box.log())


def test_a_stream_that_stops_without_ending(claude: Anthropic, gpt: OpenAI, box: Running) -> None:
    box.fault("hang_stream")

    with pytest.raises(httpx2.ReadTimeout):
        list(ask_claude(claude, stream=True, timeout=0.3))
    with pytest.raises(openai.APITimeoutError):
        list(ask_gpt(gpt, stream=True, timeout=0.3))


def test_an_event_that_is_not_json(claude: Anthropic, gpt: OpenAI, box: Running) -> None:
    box.fault("garbled_sse")

    with pytest.raises(json.JSONDecodeError):
        list(ask_claude(claude, stream=True))
    with pytest.raises(json.JSONDecodeError):
        list(ask_gpt(gpt, stream=True))


def test_an_error_event_inside_a_200(claude: Anthropic, gpt: OpenAI, box: Running) -> None:
    box.fault("error_event")

    with pytest.raises(anthropic.APIStatusError) as raised:
        list(ask_claude(claude, stream=True))
    with pytest.raises(openai.APIError):
        list(ask_gpt(gpt, stream=True))
    with pytest.raises(openai.APIError):
        list(ask_responses(gpt, stream=True))

    assert (raised.value.status_code, raised.value.type) == (200, "overloaded_error")


def test_slow_is_slow_and_good(claude: Anthropic, box: Running) -> None:
    box.fault("slow", delay_s=0.2)

    assert ask_claude(claude).stop_reason == "end_turn"
    assert box.log()[-1]["duration_ms"] >= 190


def test_every_fault_is_tried_here() -> None:
    with open(__file__, encoding="utf-8") as source:  # noqa: PTH123
        written = source.read()

    elsewhere = {
        "tier_downgrade",
        "content_filter",
        "batch_expired",
        "batch_hidden",
    }  # test_sandbox_openai.py, ..._batches.py
    assert [name for name in KINDS if f'"{name}"' not in written and name not in elsewhere] == []


# -- a client that leaves ----------------------------------------------------------------------------------------------


def test_a_client_that_leaves_a_stream_pays_for_what_was_produced(claude: Anthropic, box: Running) -> None:
    whole = ask_claude(claude).usage.output_tokens
    box.latency("model:0.5")

    stream = ask_claude(claude, stream=True)
    for event in stream:
        if event.type == "content_block_delta" and event.delta.type == "text_delta":
            break
    stream.close()

    entry = wait_for_entry(box, 2)
    assert 0 < entry["usage"]["output_tokens"] < whole
    assert (entry["delivered"], entry["billed"]) == (False, True)


def test_a_client_that_leaves_before_a_whole_answer_pays_for_all_of_it(claude: Anthropic, box: Running) -> None:
    whole = ask_claude(claude).usage.output_tokens
    box.latency("fixed:300ms")

    with pytest.raises(anthropic.APITimeoutError):
        ask_claude(claude, timeout=0.1)

    entry = wait_for_entry(box, 2)
    assert entry["usage"]["output_tokens"] == whole
    assert (entry["delivered"], entry["billed"]) == (False, True)


def wait_for_entry(box: Running, seq: int) -> dict[str, Any]:
    """Ask for the log until the entry is there; it is written when the sandbox notices that the client left."""
    for _ in range(2000):
        if entries := box.log(since=seq - 1):
            return entries[0]
    raise AssertionError(f"no log entry {seq}")
