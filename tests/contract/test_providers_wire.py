"""What the HTTP adapters make of wrong answers: every fault becomes its class and code, none becomes success."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import lying_server as lie
import pytest
from lying_server import LyingServer, lying_server

from policies.catalog import CATALOG
from waybill.contract import Message, Usage
from waybill.errors import Broken, ProviderError, Rejected, Throttled, Unavailable
from workers.providers.anthropic import AnthropicProvider
from workers.providers.base import Answer, Call, Provider, Stop
from workers.providers.failures import FAILURES
from workers.providers.openai import OpenAIProvider

LANES = ("anthropic", "openai", "compatible")
WAYS = ("call", "stream")
FULL_USAGE = Usage(input_tokens=10, output_tokens=5, cache_read_tokens=3, cache_write_tokens=2, thinking_tokens=1)


@dataclass
class Lane:
    """An adapter and the liar it talks to."""

    provider: Provider
    server: LyingServer
    dialect: str
    call: Call

    async def go(self, way: str, call: Call | None = None) -> tuple[list[str], Answer]:
        """Make the call; return the pieces and the answer."""
        call = call or self.call
        if way == "call":
            answer = await self.provider.call(call)
            return [answer.text], answer
        items = [item async for item in self.provider.stream(call)]
        assert isinstance(items[-1], Answer)
        pieces = items[:-1]
        assert all(isinstance(piece, str) for piece in pieces)
        return pieces, items[-1]  # type: ignore[return-value]

    async def fail(self, way: str, call: Call | None = None) -> ProviderError:
        """Make the call, which must fail as the table says."""
        with pytest.raises(ProviderError) as caught:
            await self.go(way, call)
        row = FAILURES[caught.value.code]
        assert type(caught.value) is row.kind
        if isinstance(caught.value, Rejected):
            assert caught.value.account_wide is row.account_wide
        return caught.value


@pytest.fixture(params=LANES)
async def lane(request: pytest.FixtureRequest) -> AsyncIterator[Lane]:
    async with lying_server() as server:
        provider: Provider
        if request.param == "anthropic":
            provider, dialect, model = AnthropicProvider("key", server.url), "anthropic", "claude-haiku-5-5"
        else:
            compatible = request.param == "compatible"
            provider = OpenAIProvider("key", f"{server.url}/v1", compatible=compatible)
            dialect, model = "openai", "gpt-6-luna"
        call = Call(
            CATALOG[model], (Message(role="user", content="hello"),), timeout_s=5, idle_timeout_s=3, job_id="j-1"
        )
        yield Lane(provider, server, dialect, call)
        await provider.close()


def whole_or_stream(lane: Lane, way: str, text: str, **changed: Any) -> lie.Act:
    if way == "call":
        return lie.body(lie.message(lane.dialect, text, **changed))
    return lie.sse(lie.frames(lane.dialect, [text], **changed))


# Refused before the model ran ---------------------------------------------------------------------------------------

# (status, error type, code, words) -> (class, code)
ANTHROPIC_REFUSALS = [
    (400, "invalid_request_error", None, "max_tokens: must be positive", "bad_request"),
    (400, "invalid_request_error", None, "prompt is too long: 1200000 tokens > 1000000 maximum", "context_length"),
    (400, "invalid_request_error", None, "Your credit balance is too low to access the API", "quota"),
    (400, "invalid_request_error", None, "You have reached your specified API usage limits", "spend_limit"),
    (400, "invalid_request_error", "organization_on_hold", "on hold", "account_on_hold"),
    (401, "authentication_error", None, "invalid key", "auth"),
    (402, "billing_error", None, "pay", "billing"),
    (403, "permission_error", None, "not yours", "permission"),
    (404, "not_found_error", None, "model: claude-none", "not_found"),
    (408, "timeout_error", None, "slow", "timeout"),
    (409, "conflict_error", None, "conflict", "conflict"),
    (413, "request_too_large", None, "too large", "too_large"),
    (422, "invalid_request_error", None, "what", "bad_request"),
    (429, "rate_limit_error", None, "slower", "rate_limit"),
    (429, "rate_limit_error", "ramp_limit_exceeded", "slower", "ramp_limit"),
    (429, "rate_limit_error", "enforced_spend_limit_reached", "until next month", "spend_limit"),
    (429, "rate_limit_error", "contract_spend_limit_reached", "until next month", "spend_limit"),
    (429, "rate_limit_error", "a_code_of_next_year", "slower", "rate_limit"),
    (500, "api_error", None, "oops", "server_error"),
    (503, "api_error", None, "oops", "server_error"),
    (504, "timeout_error", None, "oops", "timeout"),
    (529, "overloaded_error", None, "Overloaded", "overloaded"),
    (418, "a_type_of_next_year", None, "teapot", "bad_request"),
    (599, "a_type_of_next_year", None, "oops", "server_error"),
]
OPENAI_REFUSALS = [
    (400, "invalid_request_error", "context_length_exceeded", "maximum context length", "context_length"),
    (400, "invalid_request_error", "unsupported_parameter", "temperature", "bad_request"),
    (400, "exceed_context_size_error", None, "the request exceeds the available context size", "context_length"),
    (400, "invalid_request_error", "content_policy_violation", "no", "content_policy"),
    (401, "invalid_request_error", "invalid_api_key", "Incorrect API key", "auth"),
    (401, "invalid_request_error", None, "You must be a member of an organization", "auth"),
    (403, "invalid_request_error", None, "Country not supported", "permission"),
    (404, "invalid_request_error", "model_not_found", "no such model", "not_found"),
    (413, "invalid_request_error", None, "large", "too_large"),
    (429, "tokens", "rate_limit_exceeded", "TPM", "rate_limit"),
    (429, "requests", "rate_limit_exceeded", "RPM", "rate_limit"),
    (429, "requests", "slow_down", "slower", "ramp_limit"),
    (429, "insufficient_quota", "insufficient_quota", "no money", "quota"),
    (429, "insufficient_quota", "credit_balance_exhausted", "no money", "quota"),
    (429, "insufficient_quota", "billing_hard_limit_reached", "no money", "spend_limit"),
    (429, "resource_unavailable", None, "no flex capacity", "no_capacity"),
    (500, "server_error", None, "oops", "server_error"),
    (503, "server_error", "server_is_overloaded", "oops", "overloaded"),
    (503, "server_error", "slow_down", "oops", "ramp_limit"),
    (503, "unavailable_error", None, "Loading model", "overloaded"),
]


@pytest.mark.parametrize("way", WAYS)
async def test_refusal_becomes_its_code_and_is_not_billed(lane: Lane, way: str) -> None:
    refusals = ANTHROPIC_REFUSALS if lane.dialect == "anthropic" else OPENAI_REFUSALS
    for status, kind, code, words, wanted in refusals:
        headers = {lie.REQUEST_ID[lane.dialect]: "req_9"}
        lane.server.script = lie.body(lie.error(lane.dialect, kind, code=code, text=words), status=status, **headers)
        before = len(lane.server.requests)

        error = await lane.fail(way)

        assert (status, kind, code, error.code) == (status, kind, code, wanted)
        assert error.status == status
        assert error.request_id == "req_9"
        assert words in str(error)
        assert error.billed is (None if FAILURES[wanted].billed == "unknown" else False)
        assert len(lane.server.requests) == before + 1, "the SDK retried by itself"


@pytest.mark.parametrize(
    "status, code",
    [
        (502, "gateway_error"),
        (503, "overloaded"),
        (504, "gateway_error"),
        (404, "not_found"),
        (302, "redirected"),
        (429, "rate_limit"),
        (520, "gateway_error"),
    ],
)
async def test_an_error_page_of_a_proxy_is_sorted_by_its_status(lane: Lane, status: int, code: str) -> None:
    lane.server.script = lie.body(b"<html>nginx</html>", status=status, kind="text/html")

    error = await lane.fail("call")

    assert error.code == code


@pytest.mark.parametrize(
    "headers, wanted",
    [
        ({"retry_after": "7"}, 7.0),
        ({"retry_after": "0.5"}, 0.5),
        ({"retry_after_ms": "250", "retry_after": "1"}, 0.25),
        ({"retry_after": "4294967"}, 86400.0),
        ({"retry_after": "-3"}, None),
        ({"retry_after": "nan"}, None),
        ({"retry_after": "inf"}, None),
        ({"retry_after": "soon"}, None),
        ({}, None),
    ],
)
async def test_retry_after_is_read_and_never_slept(lane: Lane, headers: dict[str, str], wanted: float | None) -> None:
    kind = "rate_limit_error" if lane.dialect == "anthropic" else "requests"
    lane.server.script = lie.body(lie.error(lane.dialect, kind), status=429, **headers)
    started = time.monotonic()

    error = await lane.fail("call")

    assert isinstance(error, Throttled)
    assert error.retry_after_s == wanted
    assert time.monotonic() - started < 2


async def test_retry_after_may_be_a_date(lane: Lane) -> None:
    kind = "rate_limit_error" if lane.dialect == "anthropic" else "requests"
    moment = format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)
    lane.server.script = lie.body(lie.error(lane.dialect, kind), status=429, retry_after=moment)

    error = await lane.fail("call")

    assert isinstance(error, Throttled)
    assert error.retry_after_s == pytest.approx(100, abs=5)


# No answer at all ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
async def test_reset_before_the_answer_may_have_been_billed(lane: Lane, way: str) -> None:
    lane.server.script = lie.reset

    error = await lane.fail(way)

    assert (type(error), error.code, error.billed) == (Unavailable, "connection_lost", None)


@pytest.mark.parametrize("way", WAYS)
async def test_something_that_is_not_http_is_a_lost_connection(lane: Lane, way: str) -> None:
    lane.server.script = lie.not_http

    error = await lane.fail(way)

    assert (type(error), error.code, error.billed) == (Unavailable, "connection_lost", None)


@pytest.mark.parametrize("way", WAYS)
async def test_nobody_listening_is_not_billed(way: str) -> None:
    async with lying_server() as server:
        url = server.url
    call = Call(CATALOG["claude-haiku-5-5"], (Message(role="user", content="hello"),))
    for provider in (AnthropicProvider("key", url), OpenAIProvider("key", f"{url}/v1")):
        lane = Lane(provider, server, "anthropic", call)

        error = await lane.fail(way)

        assert (type(error), error.code, error.billed) == (Unavailable, "connection", False)
        await provider.close()


@pytest.mark.parametrize("way", WAYS)
async def test_silence_ends_at_the_calls_timeout(lane: Lane, way: str) -> None:
    lane.server.script = lie.hang
    started = time.monotonic()

    error = await lane.fail(way, replace(lane.call, timeout_s=0.2))

    assert (type(error), error.code, error.billed) == (Unavailable, "timeout", None)
    assert time.monotonic() - started < 2
    await asyncio.wait_for(lane.server.gone.wait(), 2)


# A 200 that is not an answer ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
async def test_html_with_200_is_broken(lane: Lane, way: str) -> None:
    lane.server.script = lie.body(b"<html>log in first</html>", kind="text/html; charset=utf-8")

    error = await lane.fail(way)

    assert (type(error), error.code, error.billed) == (Broken, "content_type", None)


@pytest.mark.parametrize("data", [b'{"id": "msg_1", "content": [{"type":"te', b"", b"\xff\xfe\xfa", b"[" * 100_000])
async def test_a_body_that_is_not_json_is_broken(lane: Lane, data: bytes) -> None:
    lane.server.script = lie.body(data)

    error = await lane.fail("call")

    assert (type(error), error.code, error.billed) == (Broken, "garbled", None)


async def test_a_body_shorter_than_promised_is_broken(lane: Lane) -> None:
    lane.server.script = lie.half_body(lie.message(lane.dialect, "all of it"))

    error = await lane.fail("call")

    assert (type(error), error.code, error.billed) == (Broken, "cut_body", None)


WRONG_TYPES: list[Callable[[str], Any]] = [
    lambda _: [],
    lambda _: "text",
    lambda _: None,
    lambda _: {},
    lambda _: {"error": {"message": "an error with 200"}},
    lambda dialect: lie.message(dialect, "x", type="error", object="list"),
    lambda dialect: lie.message(dialect, "x", content="text", choices="text"),
    lambda dialect: lie.message(dialect, "x", content=["text"], choices=["text"]),
    lambda dialect: lie.message(dialect, "x", content=[{"type": "text"}], choices=[{"message": {"content": 7}}]),
    lambda dialect: lie.message(dialect, 7),  # type: ignore[arg-type]
]


@pytest.mark.parametrize("number", range(len(WRONG_TYPES)))
async def test_json_of_the_wrong_shape_is_broken(lane: Lane, number: int) -> None:
    lane.server.script = lie.body(json.dumps(WRONG_TYPES[number](lane.dialect)).encode())
    if isinstance(lane.provider, OpenAIProvider) and lane.provider._compatible and number == 5:
        pytest.skip("a compatible server need not name the object type")

    error = await lane.fail("call")

    assert (type(error), error.code) == (Broken, "wrong_type")


@pytest.mark.parametrize("way", WAYS)
async def test_an_unknown_stop_reason_is_broken_and_paid(lane: Lane, way: str) -> None:
    lane.server.script = whole_or_stream(lane, way, "half a sente", stop="unknown")

    error = await lane.fail(way)

    assert (type(error), error.code, error.billed, error.usage) == (Broken, "unknown_stop", True, FULL_USAGE)


async def test_a_whole_answer_without_a_stop_reason_is_broken(lane: Lane) -> None:
    lane.server.script = lie.body(lie.message(lane.dialect, "x", stop=None))

    error = await lane.fail("call")

    assert (type(error), error.code, error.billed, error.usage) == (Broken, "no_terminal_event", True, FULL_USAGE)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("text", ["", " \n"])
async def test_a_complete_answer_without_text_is_broken_and_paid(lane: Lane, way: str, text: str) -> None:
    lane.server.script = whole_or_stream(lane, way, text)

    error = await lane.fail(way)

    assert (type(error), error.code, error.billed, error.usage) == (Broken, "empty", True, FULL_USAGE)


async def test_no_content_block_and_no_choice_are_empty(lane: Lane) -> None:
    lane.server.script = lie.body(lie.message(lane.dialect, "x", content=[], choices=[]))

    error = await lane.fail("call")

    assert (type(error), error.code, error.billed) == (Broken, "empty", True)


NONSENSE: list[Any] = [
    ...,
    None,
    "ten",
    {},
    [],
    {"input_tokens": -5, "output_tokens": -5, "prompt_tokens": -5, "completion_tokens": -5},
    {"input_tokens": "ten", "output_tokens": "ten", "prompt_tokens": "ten", "completion_tokens": "ten"},
    {"input_tokens": 1.5, "output_tokens": 2, "prompt_tokens": 1.5, "completion_tokens": 2},
    {"input_tokens": True, "output_tokens": 2, "prompt_tokens": True, "completion_tokens": 2},
    {"input_tokens": 10**30, "output_tokens": 2, "prompt_tokens": 10**30, "completion_tokens": 2},
    {"input_tokens": 10, "output_tokens": None, "prompt_tokens": 10, "completion_tokens": None},
    {
        "input_tokens": 10,
        "output_tokens": 5,
        "cache_creation": 7,
        "prompt_tokens": 10,
        "completion_tokens": 5,
        "prompt_tokens_details": 7,
    },
    {
        "input_tokens": 10,
        "output_tokens": 5,
        "cache_read_input_tokens": -1,
        "prompt_tokens": 1,
        "completion_tokens": 5,
        "prompt_tokens_details": {"cached_tokens": 2},
    },
]


@pytest.mark.parametrize("counts", NONSENSE)
async def test_missing_or_wrong_usage_is_none_and_never_zero(lane: Lane, counts: Any) -> None:
    lane.server.script = lie.body(lie.message(lane.dialect, "an answer", usage=counts))

    _, answer = await lane.go("call")

    assert answer.text == "an answer"
    assert answer.usage is None


# Streams that end badly ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["clean", "reset", "cut", "hang"])
async def test_a_stream_that_ends_in_the_middle_is_never_success_and_was_paid(lane: Lane, end: str) -> None:
    everything = lie.frames(lane.dialect, ["half", " a ", "sentence"])
    upto = next(i for i, frame in enumerate(everything) if b" a " in frame) + 1
    lane.server.script = lie.sse(everything[:upto], end=end)
    pieces: list[str | Answer] = []

    async def read() -> None:
        async for item in lane.provider.stream(replace(lane.call, idle_timeout_s=0.3)):
            pieces.append(item)  # noqa: PERF401 - what came before the error matters

    with pytest.raises(ProviderError) as caught:
        await read()

    assert pieces == ["half", " a "]
    wanted = {
        "clean": (Broken, "no_terminal_event"),
        "reset": (Broken, "cut_stream"),
        "cut": (Broken, "cut_stream"),
        "hang": (Unavailable, "idle_timeout"),
    }
    assert (type(caught.value), caught.value.code) == wanted[end]
    assert (caught.value.billed, caught.value.usage) == (True, None), "counts of the beginning are not the charge"


async def test_every_place_at_which_a_stream_can_end_cleanly_but_the_last_is_broken(lane: Lane) -> None:
    everything = lie.frames(lane.dialect, ["one", "two"])
    enough = len(everything) if lane.dialect == "anthropic" else len(everything) - 2  # finish_reason is the last need
    for upto in range(enough):
        lane.server.script = lie.sse(everything[:upto])

        error = await lane.fail("stream")

        assert (upto, type(error), error.code) == (upto, Broken, "no_terminal_event")


async def test_a_stream_without_its_usage_is_an_answer_of_unknown_usage(lane: Lane) -> None:
    everything = lie.frames(lane.dialect, ["one"], last_usage={"output_tokens": -1})
    lane.server.script = lie.sse(everything)

    _, answer = await lane.go("stream")

    assert answer.usage is None


@pytest.mark.parametrize(
    "kind, cls, code",
    [
        ("overloaded_error", Unavailable, "overloaded"),
        ("rate_limit_error", Throttled, "rate_limit"),
        ("server_error", Unavailable, "server_error"),
        ("next_year", Unavailable, "server_error"),
    ],
)
@pytest.mark.parametrize("pieces", [0, 1])
async def test_an_error_event_inside_a_200_is_sorted_by_its_type(
    lane: Lane, kind: str, cls: type, code: str, pieces: int
) -> None:
    begun = lie.frames(lane.dialect, ["half"])
    upto = next(i for i, frame in enumerate(begun) if b"half" in frame) + 1 if pieces else 0
    lane.server.script = lie.sse([*begun[:upto], lie.error_event(lane.dialect, kind)])

    error = await lane.fail("stream")

    assert (type(error), error.code, error.status) == (cls, code, 200)
    assert error.billed is bool(pieces)


@pytest.mark.parametrize("garbage", ['{"type":"content_blo', "NULL", "[1]", "7", '"x"', "null"])
async def test_a_garbled_event_is_broken_and_was_paid(lane: Lane, garbage: str) -> None:
    begun = lie.frames(lane.dialect, ["half", "rest"])
    upto = next(i for i, frame in enumerate(begun) if b"half" in frame) + 1
    bad = f"event: content_block_delta\ndata: {garbage}\n\n".encode()
    lane.server.script = lie.sse([*begun[:upto], bad, *begun[upto:]])

    error = await lane.fail("stream")

    assert type(error) is Broken
    assert error.code in ("garbled", "wrong_type")
    assert error.billed is True


async def test_json_where_a_stream_was_asked_for_is_broken(lane: Lane) -> None:
    lane.server.script = lie.body(lie.message(lane.dialect, "not a stream"))

    error = await lane.fail("stream")

    assert (type(error), error.code) == (Broken, "content_type")


async def test_a_stream_where_json_was_asked_for_is_broken(lane: Lane) -> None:
    lane.server.script = lie.sse(lie.frames(lane.dialect, ["a stream"]))

    error = await lane.fail("call")

    assert (type(error), error.code) == (Broken, "content_type")


async def test_silence_before_the_first_event_is_not_idleness(lane: Lane) -> None:
    everything = lie.sse(lie.frames(lane.dialect, ["thought", " long"]))

    async def slow(connection: lie.Connection, request: lie.Request) -> None:
        await asyncio.sleep(0.3)
        await everything(connection, request)

    lane.server.script = slow

    _, answer = await lane.go("stream", replace(lane.call, idle_timeout_s=0.15))

    assert answer.text == "thought long"
    assert answer.first_token_s is not None
    assert answer.first_token_s >= 0.3


# Good answers with edges --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
async def test_usage_model_tier_and_id_are_the_providers_own(lane: Lane, way: str) -> None:
    act = lie.message(lane.dialect, "fine") if way == "call" else lie.frames(lane.dialect, ["fine"])
    headers = {lie.REQUEST_ID[lane.dialect]: "req_77"}
    lane.server.script = lie.body(act, **headers) if isinstance(act, dict) else lie.sse(act, **headers)

    _, answer = await lane.go(way)

    assert answer.usage == FULL_USAGE
    assert (answer.served_model, answer.service_tier, answer.request_id) == ("served-model", "standard", "req_77")
    assert answer.stop is Stop.COMPLETE


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("stop", [Stop.TRUNCATED, Stop.REFUSED])
async def test_truncated_and_refused_answers_say_so(lane: Lane, way: str, stop: Stop) -> None:
    lane.server.script = whole_or_stream(lane, way, "", stop=stop.value)

    _, answer = await lane.go(way)

    assert (answer.stop, answer.text, answer.usage) == (stop, "", FULL_USAGE)


@pytest.mark.parametrize("way", WAYS)
async def test_thinking_eats_the_answer_but_not_the_truth(lane: Lane, way: str) -> None:
    if lane.dialect != "anthropic":
        pytest.skip("only Claude sends its thinking as blocks")
    content = [{"type": "thinking", "thinking": "hm", "signature": "s"}]
    if way == "call":
        lane.server.script = lie.body(lie.message("anthropic", "", stop="truncated", content=content))
    else:
        plain = lie.frames("anthropic", [], stop="truncated")
        block = {"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "hm"}}
        lane.server.script = lie.sse([*plain[:3], lie.event("content_block_delta", block), *plain[3:]])

    _, answer = await lane.go(way)

    assert (answer.text, answer.stop) == ("", Stop.TRUNCATED)


async def test_a_refusal_in_its_own_field_is_refused(lane: Lane) -> None:
    if lane.dialect != "openai":
        pytest.skip("only the OpenAI dialect has the field")
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": None, "refusal": "I cannot"},
        "finish_reason": "stop",
    }
    lane.server.script = lie.body(lie.message("openai", "", choices=[choice]))

    _, answer = await lane.go("call")

    assert (answer.stop, answer.text) == (Stop.REFUSED, "I cannot")


UNICODE = [
    "naïve café",
    "日本語",
    "👩‍👩‍👧‍👦 \U0001f600",
    "a\x00b",
    "\u2028\u2029\ufeff",
    "tab\tnew\nline\r\n",
    '"}]}\\',
    "‮rtl",
]


@pytest.mark.parametrize("way", WAYS)
async def test_text_comes_back_exactly_as_it_was_sent(lane: Lane, way: str) -> None:
    for text in UNICODE:
        lane.server.script = whole_or_stream(lane, way, f"<{text}>")

        _, answer = await lane.go(
            way, replace(lane.call, messages=(Message(role="user", content=text),), system=f"s{text}")
        )

        assert answer.text == f"<{text}>"
        sent = lane.server.requests[-1].body
        assert sent["messages"][-1]["content"] == text
        assert (sent.get("system") or sent["messages"][0]["content"]) == f"s{text}"


async def test_a_surrogate_pair_cut_between_two_pieces_is_joined(lane: Lane) -> None:
    lane.server.script = lie.sse(lie.frames(lane.dialect, ["smile \ud83d", "\ude00!"]))

    pieces, answer = await lane.go("stream")

    assert "".join(pieces) == answer.text == "smile \U0001f600!"


@pytest.mark.parametrize("way", WAYS)
async def test_half_a_character_in_a_paid_answer_becomes_the_replacement_character(lane: Lane, way: str) -> None:
    lane.server.script = whole_or_stream(lane, way, "x\ude00y\ud83d")

    pieces, answer = await lane.go(way)

    assert answer.text == "".join(pieces) == "x\ufffdy\ufffd"
    answer.text.encode("utf-8")


@pytest.mark.parametrize("way", WAYS)
async def test_a_request_that_is_not_unicode_is_rejected(lane: Lane, way: str) -> None:
    error = await lane.fail(way, replace(lane.call, messages=(Message.model_construct(role="user", content="\ud83d"),)))

    assert (type(error), error.code, error.billed) == (Rejected, "bad_request", False)
    assert lane.server.requests == []


@pytest.mark.parametrize("way", WAYS)
async def test_events_that_did_not_exist_when_this_was_written_are_passed_over(lane: Lane, way: str) -> None:
    if lane.dialect != "anthropic":
        pytest.skip("chunks have no event types")
    new = lie.event("weather", {"type": "weather", "sky": "blue"})
    plain = lie.frames("anthropic", ["fine"])
    lane.server.script = lie.sse([*plain[:1], new, *plain[1:]])

    _, answer = await lane.go("stream")

    assert answer.text == "fine"


# Limits, headers, life cycle ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
async def test_limits_are_read_from_the_headers(lane: Lane, way: str) -> None:
    if lane.dialect == "anthropic":
        headers = {
            "anthropic_ratelimit_requests_remaining": "11",
            "anthropic_ratelimit_input_tokens_remaining": "22",
            "anthropic_ratelimit_output_tokens_remaining": "33",
            "anthropic_ratelimit_tokens_remaining": "rubbish",
        }
        wanted = (11, 22, 33, None)
    else:
        headers = {"x_ratelimit_remaining_requests": "11", "x_ratelimit_remaining_tokens": "-1"}
        wanted = (11, None, None, None)
    if way == "call":
        lane.server.script = lie.body(lie.message(lane.dialect, "x"), **headers)
    else:
        lane.server.script = lie.sse(lie.frames(lane.dialect, ["x"]), **headers)

    _, answer = await lane.go(way)

    found = answer.limits
    remaining = (
        found.requests_remaining,
        found.input_tokens_remaining,
        found.output_tokens_remaining,
        found.tokens_remaining,
    )
    assert remaining == wanted


async def test_the_providers_log_can_be_joined_with_ours(lane: Lane) -> None:
    lane.server.script = lie.body(lie.message(lane.dialect, "x"))

    await lane.go("call", replace(lane.call, attempt=3))

    headers = lane.server.requests[0].headers
    assert (headers["x-waybill-job"], headers["x-waybill-attempt"]) == ("j-1", "3")
    assert headers["authorization"] == "Bearer key"


@pytest.mark.parametrize("way", WAYS)
async def test_cancelling_closes_the_connection(lane: Lane, way: str) -> None:
    lane.server.script = lie.hang if way == "call" else lie.sse(lie.frames(lane.dialect, ["x"])[:3], end="hang")
    task = asyncio.create_task(lane.go(way))
    await asyncio.wait_for(lane.server.came.wait(), 2)

    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.wait_for(lane.server.gone.wait(), 2)


async def test_closing_the_iterator_closes_the_connection(lane: Lane) -> None:
    everything = lie.frames(lane.dialect, ["one", "two"])
    upto = next(i for i, frame in enumerate(everything) if b"one" in frame) + 1
    lane.server.script = lie.sse(everything[:upto], end="hang")
    stream = lane.provider.stream(lane.call)

    first = await anext(stream)
    await stream.aclose()  # type: ignore[attr-defined]

    assert first == "one"
    await asyncio.wait_for(lane.server.gone.wait(), 2)


async def test_fifty_calls_at_once_are_fifty_at_once_and_do_not_mix(lane: Lane) -> None:
    everyone_is_here = asyncio.Event()

    async def echo_when_full(connection: lie.Connection, request: lie.Request) -> None:
        if lane.server.at_once == 50:
            everyone_is_here.set()
        await asyncio.wait_for(everyone_is_here.wait(), 5)
        said = request.body["messages"][-1]["content"]
        await lie.body(lie.message(lane.dialect, f"echo {said}"))(connection, request)

    lane.server.script = echo_when_full
    calls = [replace(lane.call, messages=(Message(role="user", content=str(n)),)) for n in range(50)]

    answers = await asyncio.gather(*(lane.provider.call(call) for call in calls))

    assert [answer.text for answer in answers] == [f"echo {n}" for n in range(50)]
    assert lane.server.most_at_once == 50


async def test_a_connection_is_used_again_after_every_kind_of_answer(lane: Lane) -> None:
    for way in ("call", "stream", "call"):
        lane.server.script = whole_or_stream(lane, way, "x")

        assert (await lane.go(way))[1].text == "x"
