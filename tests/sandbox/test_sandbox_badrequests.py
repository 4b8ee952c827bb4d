"""Any JSON at all is either understood or refused in the provider's own way; nothing else may come out of a parser."""

from __future__ import annotations

import copy
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from sandbox.answers import AnswerBook
from sandbox.chat import Chat
from sandbox.exchange import ApiError, Asking, Dialect, Identity
from sandbox.generation import generate
from sandbox.messages import Messages
from sandbox.models import Catalogue
from sandbox.promptcache import PromptCache
from sandbox.responses import Responses

ASKING = Asking("acct_a", 0, "2026-10-21")
IDENTITY = Identity("req_1", "1", 0)
SCHEMA: Any = {
    "type": "object",
    "properties": {"a": {"type": "string"}},
    "required": ["a"],
    "additionalProperties": False,
}
MARK = {"type": "ephemeral", "ttl": "1h"}
BODIES: list[tuple[type[Messages | Chat | Responses], dict[str, Any]]] = [
    (
        Messages,
        {
            "model": "claude-haiku-5-5", "max_tokens": 50, "stream": True, "stop_sequences": ["x"], "speed": "standard",
            "system": [{"type": "text", "text": "s", "cache_control": MARK}], "thinking": {"type": "adaptive"},
            "messages": [{"role": "user", "content": [
                {"type": "text", "text": "hi"}, {"type": "image", "source": {"type": "base64", "data": "aa"}}]}],
            "tools": [{"name": "t", "input_schema": SCHEMA}], "tool_choice": {"type": "tool", "name": "t"},
            "output_config": {"effort": "low", "format": {"type": "json_schema", "schema": SCHEMA}},
        },
    ),
    (
        Chat,
        {
            "model": "gpt-6-luna", "max_completion_tokens": 50, "stream": True,
            "stream_options": {"include_usage": True},
            "messages": [{"role": "user", "content": [
                {"type": "text", "text": "hi", "prompt_cache_breakpoint": {"mode": "explicit"}}]},
                {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}],
            "tools": [{"type": "function", "function": {"name": "t", "parameters": SCHEMA}}], "stop": ["x"],
            "tool_choice": {"type": "function", "function": {"name": "t"}}, "reasoning_effort": "low",
            "response_format": {"type": "json_schema", "json_schema": {"name": "n", "strict": True, "schema": SCHEMA}},
            "prompt_cache_options": {"mode": "implicit", "ttl": "30m"}, "service_tier": "flex",
        },
    ),
    (
        Responses,
        {
            "model": "gpt-6-luna", "max_output_tokens": 50, "instructions": "be brief", "reasoning": {"effort": "low"},
            "input": [{"role": "user", "content": [{"type": "input_text", "text": "hi"}]}, {"type": "reasoning"}],
            "tools": [{"type": "function", "name": "t", "parameters": SCHEMA}], "tool_choice": "required",
            "text": {"format": {"type": "json_schema", "name": "n", "strict": True, "schema": SCHEMA}},
            "prompt_cache_key": "k", "temperature": None,
        },
    ),
]  # fmt: skip
values: st.SearchStrategy[Any] = st.one_of(
    st.sampled_from(
        [None, True, 0, -1, 10**30, 1.5, "", "x", [], {}, [1], [None], [[]], {"type": 5}, {"type": "text"}]
    ),
    st.sampled_from([["a", 1], {"name": []}, {"schema": []}, [{}], {"a": {"b": []}}, "auto", "json_schema", [5, "x"]]),
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, one in inner for found in ((*path, key), *places(one, (*path, key)))]


@given(st.data())
def test_a_damaged_request_is_understood_or_refused(data: st.DataObject) -> None:
    make, good = data.draw(st.sampled_from(BODIES))
    dialect: Dialect = make(Catalogue(), PromptCache())
    body = copy.deepcopy(good)
    path = data.draw(st.sampled_from(places(body)))
    holder: Any = body
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = data.draw(values)

    try:
        call = dialect.parse(body, ASKING)
    except ApiError as refused:
        status, message = refused.status, refused.message
    else:
        # What was understood can also be answered.
        generation = generate(call, AnswerBook(), None)
        assert dialect.whole(call, generation, IDENTITY)
        events = dialect.events(call, generation, IDENTITY)
        assert sum(event.tokens for event in events) == generation.usage.output
        return

    assert status in (400, 404)
    assert message
