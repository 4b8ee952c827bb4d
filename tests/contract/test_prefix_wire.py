"""What the adapters put on the wire for the provider's prompt cache: jobs of one template begin alike, to the byte."""

from __future__ import annotations

import json
from typing import Any

import pytest

from policies.caching import Caching
from policies.catalog import CATALOG
from tests.contract.lying_server import LyingServer, Request, body, lying_server, message
from waybill.contract import Message
from workers.providers.anthropic import AnthropicProvider
from workers.providers.base import Call, Provider
from workers.providers.openai import OpenAIProvider

SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"], "additionalProperties": False}
MARK = Caching(True, key="k" * 32)
MODELS = ("claude-haiku-5-5", "gpt-6-luna", "gpt-5.5")


def call(model: str, prompt: str, **fields: Any) -> Call:
    usual: dict[str, Any] = {"system": "Read contracts.", "context": "§ 1 Everything. é\x00", "json_schema": SCHEMA}
    return Call(CATALOG[model], (Message(role="user", content=prompt),), **{**usual, **fields})


async def sent(*calls: Call) -> list[Request]:
    """The calls as the provider gets them."""
    async with lying_server() as server:
        provider = adapter(server, calls[0].model.provider)
        server.script = answer
        for one in calls:
            await provider.call(one)
        await provider.close()
        return server.requests


async def answer(connection: Any, request: Request) -> None:
    await body(message(request.dialect, '{"a": "b"}'))(connection, request)


def adapter(server: LyingServer, provider: str) -> Provider:
    if provider == "anthropic":
        return AnthropicProvider("key", server.url)
    return OpenAIProvider("key", f"{server.url}/v1")


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("caching", [None, MARK, Caching(True, is_long=True), Caching(False)])
@pytest.mark.parametrize("stable", [{}, {"context": None}, {"system": None}])
async def test_two_jobs_of_one_template_differ_in_nothing_but_the_prompt(
    model: str, caching: Caching | None, stable: dict[str, Any]
) -> None:
    one, other = await sent(
        call(model, "first question", caching=caching, **stable), call(model, "2nd question", caching=caching, **stable)
    )

    assert one.raw.count(b"first question") == 1
    assert one.raw.replace(b"first question", b"2nd question") == other.raw
    # What the provider reads before the prompt is the same however the body's keys are ordered.
    assert before_the_prompt(one.body, "first question") == before_the_prompt(other.body, "2nd question")


def before_the_prompt(request: dict[str, Any], prompt: str) -> str:
    """Tools, form, system and messages up to the prompt, in the order in which providers hash them."""
    order = [request.get(key) for key in ("tools", "output_config", "response_format", "system", "messages")]
    text = json.dumps(order)
    return text[: text.index(prompt)]


async def test_a_mark_stands_behind_the_context_and_not_on_the_prompt() -> None:
    [claude] = await sent(call("claude-haiku-5-5", "q", caching=Caching(True, is_long=True)))
    [gpt] = await sent(call("gpt-6-luna", "q", caching=MARK))

    context, prompt = claude.body["messages"][0]["content"]
    assert context["cache_control"] == {"type": "ephemeral", "ttl": "1h"}
    assert prompt == {"type": "text", "text": "q"}
    assert claude.body["system"] == "Read contracts."
    part, rest = gpt.body["messages"][1]["content"]
    assert part["prompt_cache_breakpoint"] == {"mode": "explicit"}
    assert rest == {"type": "text", "text": "q"}
    assert gpt.body["prompt_cache_key"] == MARK.key
    assert gpt.body["prompt_cache_options"] == {"mode": "explicit"}


async def test_without_context_the_mark_stands_behind_the_system_text() -> None:
    [claude] = await sent(call("claude-haiku-5-5", "q", caching=MARK, context=None))
    [gpt] = await sent(call("gpt-6-luna", "q", caching=MARK, context=None))

    assert claude.body["system"] == [
        {"type": "text", "text": "Read contracts.", "cache_control": {"type": "ephemeral"}}
    ]
    assert gpt.body["messages"][0]["content"][0]["prompt_cache_breakpoint"] == {"mode": "explicit"}


@pytest.mark.parametrize("caching", [None, Caching(False, key="k")])
async def test_a_document_that_comes_once_pays_no_write(caching: Caching | None) -> None:
    [claude] = await sent(call("claude-haiku-5-5", "q", caching=caching))
    [gpt] = await sent(call("gpt-6-luna", "q", caching=caching))
    [old] = await sent(call("gpt-5.5", "q", caching=caching))

    assert "cache_control" not in claude.raw.decode()
    # From GPT-5.6 on caching is automatic and its writes cost: `explicit` without a breakpoint switches it off.
    assert gpt.body["prompt_cache_options"] == {"mode": "explicit"}
    assert "prompt_cache_breakpoint" not in gpt.raw.decode()
    assert "prompt_cache_options" not in old.body
