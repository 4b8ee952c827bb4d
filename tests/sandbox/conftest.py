"""One sandbox in a thread for the whole session, forgotten between tests, and the two real SDKs pointed at it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from anthropic import Anthropic
from openai import OpenAI

from sandbox.answers import Answer, AnswerBook
from sandbox.testing import Running, running

BOOK = AnswerBook(
    [
        ("capital of France", "*", Answer("Paris.")),
        ("capital of France", "claude-haiku-5-5", Answer("Paris, says Haiku.", output_tokens=200, thinking_tokens=150)),
        ("call the weather", "*", Answer('{"name": "weather", "input": {"city": "Oslo"}}', stop="tool_use")),
        ("forbidden thing", "*", Answer("", stop="refusal")),
        ("filtered thing", "*", Answer("", stop="content_filter")),
        ("count to ten", "*", Answer("one two three four five six seven eight nine ten", thinking_tokens=0)),
    ]
)


@pytest.fixture(scope="session")
def served() -> Iterator[Running]:
    with running(book=BOOK) as box:
        yield box


@pytest.fixture
def box(served: Running) -> Running:
    served.reset()
    served.latency("none")
    return served


@pytest.fixture
def claude(box: Running) -> Iterator[Anthropic]:
    with Anthropic(base_url=box.url, api_key="sandbox-1", max_retries=0, timeout=10) as client:
        yield client


@pytest.fixture
def gpt(box: Running) -> Iterator[OpenAI]:
    with OpenAI(base_url=box.openai_url, api_key="sandbox-1", max_retries=0, timeout=10) as client:
        yield client
