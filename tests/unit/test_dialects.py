"""The dialects' pure functions: what goes through unchanged, what is translated, what is refused, and cutting frames."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.catalog import CATALOG
from policies.dialects import chat, messages, responses, sse
from policies.dialects.carry import READERS, WRITERS, carry, wanted
from policies.dialects.neutral import (
    Counts,
    End,
    Piece,
    TextPiece,
    ToolPiece,
    ToolStart,
    Unsupported,
    collect,
)

HAIKU, LUNA = CATALOG["claude-haiku-5-5"], CATALOG["gpt-6-luna"]
HI = [{"role": "user", "content": "hi"}]

words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
calls = st.builds(
    lambda name, given: (ToolStart(f"call_{name}", name), ToolPiece(json.dumps(given))),
    st.from_regex(r"[a-z]{1,8}", fullmatch=True),
    st.dictionaries(words, st.integers(), max_size=2),
)
answers = st.builds(
    lambda texts, tools: [*map(TextPiece, texts), *(piece for tool in tools for piece in tool)],
    st.lists(words, max_size=3),
    st.lists(calls, max_size=2),
)


@given(answers, st.sampled_from(["chat", "responses", "messages"]))
def test_an_answer_written_in_a_dialect_reads_as_the_same(pieces: list[Piece], dialect: Any) -> None:
    """Streamed and whole, in every dialect: what its own reader finds is what was written."""
    end = End("tools" if any(isinstance(p, ToolStart) for p in pieces) else "end", Counts(input=3, output=5))
    writer = WRITERS[dialect]("1", "m", 1)
    data = writer.start() + b"".join(writer.add(piece) for piece in pieces) + writer.end(end)
    reader, got = READERS[dialect](), []
    for frame in sse.Frames().feed(data):
        event = sse.event_of(frame)
        got += [] if event is None else reader.take(event)
    whole = READERS[dialect]()

    assert collect(got).text == collect(pieces).text
    assert [(c.name, json.loads(c.arguments)) for c in collect(got).tools] == [
        (c.name, json.loads(c.arguments)) for c in collect(pieces).tools
    ]
    assert collect(whole.whole(writer.whole(end))).text == collect(pieces).text
    assert reader.stop()[0] == whole.stop()[0] == end.stop


@given(
    st.lists(st.binary(max_size=30).map(lambda b: b.replace(b"\n", b" ").replace(b"\r", b" ")), max_size=6), st.data()
)
def test_frames_are_cut_the_same_wherever_the_network_cuts(parts: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(b"data: " + part + b"\n\n" for part in parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=5)))
    cutter, got, start = sse.Frames(), [], 0
    for cut in [*cuts, len(stream)]:
        got += cutter.feed(stream[start:cut])
        start = cut

    assert b"".join(got) == stream
    assert len(got) == len(parts)
    assert cutter.rest == b""


def test_a_native_body_keeps_all_it_has_but_the_model() -> None:
    body = {"model": "gpt-6-luna", "messages": HI, "seed": 7, "logit_bias": {"1": 2}, "future_parameter": {"a": 1}}

    sent = carry("chat", body, LUNA)

    assert sent.is_native
    assert sent.body == {**body, "service_tier": "default"}


def test_responses_are_never_kept_at_the_provider() -> None:
    assert carry("responses", {"model": "gpt-6-luna", "input": "hi"}, LUNA).body["store"] is False


def test_a_budget_lowers_the_limit_and_nothing_raises_it() -> None:
    body = {"model": "claude-haiku-5-5", "max_tokens": 64_000, "messages": HI}

    assert carry("messages", body, HAIKU, limit=500).body["max_tokens"] == 500
    assert carry("messages", {**body, "max_tokens": 100}, HAIKU, limit=500).body["max_tokens"] == 100
    assert "max_completion_tokens" not in carry("chat", {"model": "gpt-6-luna", "messages": HI}, LUNA).body
    crossed = carry("chat", {"model": "claude-haiku-5-5", "messages": HI}, HAIKU).body
    assert crossed["max_tokens"] == messages.DEFAULT_MAX_TOKENS


def test_tool_results_of_chat_stand_in_one_turn_for_claude() -> None:
    turns: list[Any] = [
        *HI,
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": f"call.{n}", "type": "function", "function": {"name": "f", "arguments": "{}"}} for n in (1, 2)
            ],
        },
        {"role": "tool", "tool_call_id": "call.1", "content": "a"},
        {"role": "tool", "tool_call_id": "call.2", "content": "b"},
    ]

    sent = messages.write(chat.read({"messages": turns}), HAIKU)["messages"]

    assert [turn["role"] for turn in sent] == ["user", "assistant", "user"]
    assert [block["tool_use_id"] for block in sent[2]["content"]] == ["call_1", "call_2"]
    assert [block["id"] for block in sent[1]["content"]] == ["call_1", "call_2"]


@pytest.mark.parametrize(
    ("dialect", "extra", "param"),
    [
        ("chat", {"n": 2}, "n"),
        ("chat", {"something_new": 1}, "something_new"),
        ("messages", {"top_k": 3}, "top_k"),
        ("responses", {"truncation": "auto"}, "truncation"),
    ],
)
def test_what_cannot_be_carried_over_is_named_and_keeps_the_job_at_home(
    dialect: Any, extra: dict[str, Any], param: str
) -> None:
    base: dict[str, Any] = {"responses": {"input": "hi"}}.get(dialect, {"messages": HI, "max_tokens": 9})
    found = wanted(dialect, {"model": "m", **base, **extra})

    foreign = "openai" if dialect == "messages" else "anthropic"
    assert found.obstacles[foreign].param == param
    assert f"only:{'anthropic' if dialect == 'messages' else 'openai'}" in found.needs


def test_reasoning_and_thinking_of_earlier_turns_stay_with_their_model() -> None:
    items: Any = [{"role": "user", "content": "a"}, {"type": "reasoning", "id": "rs_1", "summary": []}]
    thinking: Any = [
        *HI,
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "x", "signature": "s"}]},
        *HI,
    ]

    assert len(responses.read({"input": items}).turns) == 1
    assert [turn.role for turn in messages.read({"messages": thinking}).turns] == ["user", "user"]


def test_a_prefilled_answer_is_refused_for_other_models() -> None:
    with pytest.raises(Unsupported, match="prefilled"):
        messages.read({"messages": [*HI, {"role": "assistant", "content": "So"}]})


def test_base64_counts_as_an_attachment_and_text_by_its_bytes() -> None:
    def size(content: str) -> int:
        return wanted("chat", {"model": "m", "messages": [{"role": "user", "content": content}]}).text_bytes

    assert size("data:image/png;base64," + "A" * 1_000_000) < 10_000
    assert size("ä" * 3_000) > 6_000
