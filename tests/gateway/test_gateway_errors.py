"""What a client meets when something is wrong: the class that its SDK would raise at the provider, with what to do."""

from __future__ import annotations

from typing import Any

import anthropic
import httpx2
import openai
import pytest

from sandbox.testing import Running
from tests.gateway.conftest import Ledger

HELLO: list[Any] = [{"role": "user", "content": "Say hello."}]


def test_unknown_model_is_not_found_in_every_dialect(gpt: openai.OpenAI, claude: anthropic.Anthropic) -> None:
    with pytest.raises(openai.NotFoundError) as chat:
        gpt.chat.completions.create(model="claude-3-5-sonnet-latest", messages=HELLO)
    with pytest.raises(openai.NotFoundError):
        gpt.responses.create(model="waybill/nothing", input="hello")
    with pytest.raises(anthropic.NotFoundError) as messages:
        claude.messages.create(model="gpt-2", max_tokens=10, messages=HELLO)

    assert chat.value.code == "model_not_found"
    assert messages.value.type == "not_found_error"
    assert messages.value.request_id


@pytest.mark.parametrize(
    "extra",
    [
        {"logit_bias": {"1": 2}},
        {"n": 2},
        {"seed": 7},
        {"frequency_penalty": 0.5},
        {"prompt_cache_key": "k"},
        {"top_logprobs": 3, "logprobs": True},
        {"temperature": 0.2},
        {"verbosity": "low"},
    ],
)
def test_what_cannot_be_carried_over_is_a_400_that_names_it(gpt: openai.OpenAI, extra: dict[str, Any]) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        gpt.chat.completions.create(model="claude-haiku-5-5", messages=HELLO, **extra)

    assert any(name in str(caught.value) for name in extra)


def test_a_parameter_may_be_dropped_where_the_client_says_so(gpt: openai.OpenAI, claude: anthropic.Anthropic) -> None:
    drop = {"x-waybill-drop": "seed, temperature"}
    gpt.chat.completions.create(model="claude-haiku-5-5", messages=HELLO, seed=7, temperature=0.1, extra_headers=drop)
    gpt.chat.completions.create(model="gpt-6-luna", messages=HELLO, temperature=0.1, extra_headers=drop)
    claude.messages.create(
        model="gpt-6-luna",
        max_tokens=500,
        messages=HELLO,
        extra_body={"temperature": 0.1, "waybill": {"drop": ["temperature"]}},
    )


@pytest.mark.parametrize(
    "extra",
    [
        {"n": 1, "tools": [], "store": False, "stop": None, "logit_bias": {}},
        {"temperature": 1, "top_p": 1.0, "service_tier": "auto", "modalities": ["text"], "frequency_penalty": 0},
    ],
)
def test_null_empty_and_default_mean_not_given(gpt: openai.OpenAI, extra: dict[str, Any]) -> None:
    gpt.chat.completions.create(model="claude-haiku-5-5", messages=HELLO, **extra)


@pytest.mark.parametrize(
    ("path", "extra"),
    [
        ("/v1/responses", {"input": "x", "previous_response_id": "resp_1"}),
        ("/v1/responses", {"input": "x", "background": True}),
        ("/v1/responses", {"input": "x", "store": True}),
        ("/v1/responses", {"input": "x", "tools": [{"type": "web_search"}]}),
        ("/v1/messages", {"max_tokens": 10, "messages": HELLO, "thread": {"type": "create"}}),
        (
            "/v1/messages",
            {"max_tokens": 10, "messages": HELLO, "tools": [{"type": "web_search_20260209", "name": "s"}]},
        ),
        ("/v1/messages", {"max_tokens": 10, "messages": HELLO, "speed": "fast"}),
        ("/v1/messages", {"messages": HELLO}),
        ("/v1/chat/completions", {"messages": []}),
        ("/v1/chat/completions", {"messages": HELLO, "service_tier": "priority"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "\ud800"}]}),
        ("/v1/chat/completions", {"messages": HELLO, "waybill": {"dedline": 3}}),
        ("/v1/chat/completions", {"messages": HELLO, "waybill": {"quality": 0.9}}),  # beside a model
        ("/v1/chat/completions", {"messages": HELLO, "model": "auto", "waybill": {"quality": 1.01}}),
        ("/v1/chat/completions", {"messages": HELLO, "model": "auto", "waybill": {"quality": "nan"}}),
        ("/v1/messages", {"max_tokens": 10, "messages": HELLO, "model": "auto", "waybill": {"quality": "good"}}),
    ],
)
def test_what_no_lane_takes_is_a_clear_400(gateway: str, path: str, extra: dict[str, Any]) -> None:
    import json

    model = "claude-haiku-5-5" if "messages" in path else "gpt-6-luna"
    answer = httpx2.post(f"{gateway}{path}", content=json.dumps({"model": model, **extra}))

    assert answer.status_code == 400, answer.text
    body = answer.json()
    if path == "/v1/messages":
        assert (body["type"], body["error"]["type"]) == ("error", "invalid_request_error")
    else:
        assert body["error"]["type"] == "invalid_request_error"
    assert len(body["error"]["message"]) > 10
    assert answer.headers["x-should-retry"] == "false"


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"nonsense", b'{"model": 7}', b'{"model": "gpt-6-luna"}'])
def test_a_body_that_is_none_is_a_400(gateway: str, body: bytes) -> None:
    for path in ("/v1/chat/completions", "/v1/responses", "/v1/messages", "/v1/messages/count_tokens"):
        assert httpx2.post(f"{gateway}{path}", content=body).status_code == 400


def test_a_400_of_the_provider_reaches_the_client_as_one(gpt: openai.OpenAI, claude: anthropic.Anthropic) -> None:
    with pytest.raises(openai.BadRequestError):
        gpt.chat.completions.create(model="gpt-6-luna", messages=HELLO, temperature=0.1)
    with pytest.raises(anthropic.BadRequestError):
        claude.messages.create(model="claude-opus-5-5", max_tokens=400, messages=HELLO, thinking={"type": "disabled"})
    with pytest.raises(anthropic.BadRequestError):
        claude.messages.create(
            model="claude-opus-5-5", max_tokens=400, messages=HELLO, thinking={"type": "disabled"}, stream=True
        )


def test_an_old_api_version_keeps_its_rules(gateway: str) -> None:
    """anthropic 0.x sends temperature with 2023-06-01: the version goes along, so the provider decides."""
    body = {"model": "claude-haiku-4-5", "max_tokens": 500, "messages": HELLO, "temperature": 0.1}
    old = httpx2.post(f"{gateway}/v1/messages?beta=true", json=body, headers={"anthropic-version": "2023-06-01"})
    new = httpx2.post(f"{gateway}/v1/messages", json=body, headers={"anthropic-version": "2026-10-21"})

    assert (old.status_code, new.status_code) == (200, 400)


@pytest.mark.parametrize(("count", "noted"), [("0", False), ("2", True), ("NOT_GIVEN", False), ("-1", False)])
def test_a_retry_of_the_clients_sdk_is_told_by_why(gpt: openai.OpenAI, ledger: Ledger, count: str, noted: bool) -> None:
    raw = gpt.chat.completions.with_raw_response.create(
        model="gpt-6-luna", messages=HELLO, extra_headers={"x-stainless-retry-count": count}
    )

    found = ledger.rows(
        "select reason from decisions where outcome = 'client_retry' and job_id = %s", raw.headers["x-waybill-job"]
    )
    assert [f"(retry {count})" in reason for (reason,) in found] == [True] * noted


def test_throttling_is_waited_out_and_no_error(claude: anthropic.Anthropic, provider: Running) -> None:
    provider.fault("rate_limit", times=1, retry_after_s=1, model="claude-*")

    message = claude.messages.create(model="claude-haiku-5-5", max_tokens=400, messages=HELLO)

    assert message.stop_reason == "end_turn"


def test_throttling_past_the_deadline_is_429_with_retry_after(
    gpt: openai.OpenAI, claude: anthropic.Anthropic, provider: Running
) -> None:
    provider.fault("rate_limit", retry_after_s=40)
    soon = {"x-waybill-deadline": "3"}

    with pytest.raises(anthropic.RateLimitError) as messages:
        claude.messages.create(model="claude-sonnet-5", max_tokens=400, messages=HELLO, extra_headers=soon)
    with pytest.raises(openai.RateLimitError) as chat:
        gpt.chat.completions.create(model="gpt-5.6-terra", messages=HELLO, extra_headers=soon)

    assert 1 <= int(messages.value.response.headers["retry-after"]) <= 44
    assert int(chat.value.response.headers["retry-after"]) >= 1
    assert chat.value.code == "rate_limit_exceeded"


def test_an_overload_falls_back_before_the_first_delta(
    claude: anthropic.Anthropic, provider: Running, ledger: Ledger
) -> None:
    provider.fault("overloaded", model="claude-haiku-5-5", times=1)

    with claude.messages.stream(model="waybill/extraction", max_tokens=400, messages=HELLO) as stream:
        final = stream.get_final_message()
        job = stream.response.headers["x-waybill-job"]

    assert final.model == "gpt-6-luna"
    assert stream.response.headers["x-waybill-reason"] == "fallback"
    assert ledger.rows("select model, state from attempts where job_id = %s order by number", job) == [
        ("claude-haiku-5-5", "failed"),
        ("gpt-6-luna", "succeeded"),
    ]


def test_a_broken_stream_is_an_error_and_never_a_success(
    claude: anthropic.Anthropic, gpt: openai.OpenAI, provider: Running, ledger: Ledger
) -> None:
    for fault in ("early_end", "cut_stream"):
        provider.fault(fault, times=1, at=0.6)
        with (
            pytest.raises(anthropic.APIStatusError),
            claude.messages.stream(model="claude-haiku-5-5", max_tokens=400, messages=HELLO) as stream,
        ):
            stream.get_final_message()
        provider.clear_faults()
        provider.fault(fault, times=1, at=0.6)
        with pytest.raises(openai.APIError):
            list(gpt.chat.completions.create(model="gpt-6-luna", messages=HELLO, stream=True))
        provider.clear_faults()

    states = ledger.rows(
        "select j.state, a.state, a.cost_usd > 0 from jobs j join attempts a on a.job_id = j.id"
        " where j.error_code = 'stream_broken'"
    )
    assert len(states) == 4
    assert set(states) == {("failed", "broken", True)}


def test_a_broken_stream_begins_anew_where_the_client_asked_for_it(
    gateway: str, provider: Running, ledger: Ledger
) -> None:
    provider.fault("early_end", times=1, at=0.6)  # whichever lane is first: the breakers remember the tests before

    answer = httpx2.post(
        f"{gateway}/v1/chat/completions",
        json={"model": "waybill/extraction", "messages": HELLO, "stream": True},
        headers={"x-waybill-restart": "true"},
        timeout=30,
    )

    before, _, after = answer.text.partition("event: waybill.restart")
    assert "This is the sandbox" in before
    assert "[DONE]" not in before
    assert "This is the sandbox" in after
    assert after.rstrip().endswith("data: [DONE]")
    attempts = ledger.rows(
        "select state from attempts where job_id = %s and state <> 'released' order by number",
        answer.headers["x-waybill-job"],
    )
    assert attempts == [("broken",), ("succeeded",)]


def test_a_client_that_leaves_cancels_its_call_and_the_cost_is_booked(
    gateway: str, provider: Running, ledger: Ledger
) -> None:
    import time

    provider.latency("model:8")  # slow enough that the client is gone before the end, however slow it is itself
    with httpx2.stream(
        "POST",
        f"{gateway}/v1/messages",
        json={"model": "claude-haiku-5-5", "max_tokens": 400, "messages": HELLO, "stream": True},
        timeout=30,
    ) as answer:
        job = answer.headers["x-waybill-job"]
        next(answer.iter_bytes())

    deadline = time.monotonic() + 90
    while (row := ledger.rows("select state from jobs where id = %s", job)[0]) == ("running",):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert row == ("cancelled",)
    ((state, source, usd),) = ledger.rows("select state, cost_source, cost_usd from attempts where job_id = %s", job)
    assert (state, source) == ("cancelled", "estimated")
    assert usd > 0


def test_a_silent_stream_is_kept_awake(gateway: str, provider: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Heartbeats are comments, which every SDK skips; the interval is too long for a test, so the frame is read here."""
    from policies.dialects import sse
    from producers.gateway.answer import HEARTBEAT

    (frame,) = sse.Frames().feed(HEARTBEAT)
    assert sse.event_of(frame) is None
