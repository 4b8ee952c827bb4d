"""The words both dialects share: one call, what is generated for it, what it used, and the errors it may end in.

A dialect (messages.py, chat.py, responses.py) turns a request body into a `Call` and a `Generation` back into bytes;
everything between is the same for both providers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol

from sandbox.models import Model
from sandbox.promptcache import Plan

Json = dict[str, Any]


class Stop(Enum):
    """Why a generation ended, in our words; each dialect has its own for them."""

    END = "end"
    MAX_TOKENS = "max_tokens"
    STOP_SEQUENCE = "stop_sequence"
    TOOL_USE = "tool_use"
    REFUSAL = "refusal"
    CONTENT_FILTER = "content_filter"
    CONTEXT_WINDOW = "context_window"


@dataclass(frozen=True, slots=True)
class Tool:
    """A client tool of the request."""

    name: str
    schema: Json


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call the model makes; `id` has the dialect's own prefix added when it is written out."""

    name: str
    input: Json


@dataclass(slots=True)
class Call:
    """One accepted request, understood."""

    model: Model
    # requested_model: as the client wrote it (an alias or a dated id); answers repeat it.
    requested_model: str
    stream: bool
    # user_text: all text of user messages, joined by newlines; the answer book matches on it.
    user_text: str
    prompt_tokens: int
    # max_tokens: None when the client set none (OpenAI only); the model's maximum holds then.
    max_tokens: int | None
    effort: str
    # thinking_tokens: what this model would spend on thinking at this effort; the answer book may say otherwise.
    thinking_tokens: int
    # show_thinking: whether the thinking text itself is returned, or only its signature.
    show_thinking: bool = False
    stop_sequences: Sequence[str] = ()
    # schema: the JSON schema the answer must fit; None for free text.
    schema: Json | None = None
    # json_mode: the answer must be some JSON object (OpenAI's json_object).
    json_mode: bool = False
    tools: Sequence[Tool] = ()
    # forced_tool: "" when none is forced, "*" for any, or the tool's name.
    forced_tool: str = ""
    # tier: asked for; the tier served may differ and is what the bill uses.
    tier: str = "default"
    # multiplier_permille: surcharge on every token (fast mode, regional inference); 1000 is none.
    multiplier_permille: int = 1000
    include_usage: bool = False
    cache: Plan = field(default_factory=Plan)
    # body: the request as sent; the Responses dialect echoes some of its fields.
    body: Json = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one answer. The prompt is `input + cache_write_short + cache_write_long + cache_read`.

    Thinking is part of `output`. `cache_write_long` is Claude's 1-hour write and OpenAI's 12-hour write.
    """

    input: int
    output: int
    cache_write_short: int = 0
    cache_write_long: int = 0
    cache_read: int = 0
    thinking: int = 0

    @property
    def prompt(self) -> int:
        """All tokens of the prompt, however they were priced."""
        return self.input + self.cache_write_short + self.cache_write_long + self.cache_read

    @property
    def cache_write(self) -> int:
        """Tokens written to the cache, whatever their lifetime."""
        return self.cache_write_short + self.cache_write_long


@dataclass(slots=True)
class Generation:
    """What the model says, complete, before any fault cuts it."""

    text: str
    stop: Stop
    usage: Usage
    # visible_tokens: output without thinking; spread evenly over the pieces of a stream.
    visible_tokens: int
    tool_calls: Sequence[ToolCall] = ()
    stop_sequence: str | None = None
    # latency_s: total time given by the answer book; None lets the latency model decide.
    latency_s: float | None = None
    # source: "book" or "self"; for the log.
    source: str = "self"
    tier: str = "default"


@dataclass(frozen=True, slots=True)
class Event:
    """One server-sent event, and the output tokens that had to be generated before it could be sent."""

    data: Json
    tokens: int = 0
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Identity:
    """Names of one answer: unique over restarts, so that a ledger may keep them unique too."""

    request_id: str
    answer_id: str
    created: int


class ApiError(Exception):
    """The request ends in an error body. `kind` is our word; each dialect has its own type, code and sometimes status.

    Attributes:
        status: HTTP status.
        kind: invalid_request, authentication, permission, not_found, too_large, rate_limit, ramp_limit, spend_limit,
            overloaded, unavailable or server_error.
        retry_after_s: Sent as `retry-after`, rounded up; None sends none.
        param: The offending field, for the dialect that names it.
        code: The dialect's own code where one kind has several.
        kind_in_dialect: The dialect's own type where one kind has several.
    """

    def __init__(
        self,
        status: int,
        kind: str,
        message: str,
        *,
        retry_after_s: float | None = None,
        param: str | None = None,
        code: str | None = None,
        kind_in_dialect: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.message = message
        self.retry_after_s = retry_after_s
        self.param = param
        self.code = code
        self.kind_in_dialect = kind_in_dialect


def invalid(message: str, *, param: str | None = None, code: str | None = None) -> ApiError:
    """Return the 400 of a request that is wrong and will stay wrong."""
    return ApiError(400, "invalid_request", message, param=param, code=code)


@dataclass(frozen=True, slots=True)
class Asking:
    """What a dialect needs beside the body to understand a request."""

    account: str
    now_ns: int
    # version: the anthropic-version header; OpenAI's requests have none.
    version: str | None = None


class Dialect(Protocol):
    """One endpoint's wire format: three of them exist (messages.py, chat.py, responses.py)."""

    provider: str
    endpoint: str

    def parse(self, body: Json, asking: Asking) -> Call:
        """Return the request understood; raises ApiError with the provider's own complaint."""
        ...

    def whole(self, call: Call, generation: Generation, identity: Identity) -> Json:
        """Return the body of a complete answer."""
        ...

    def events(self, call: Call, generation: Generation, identity: Identity) -> list[Event]:
        """Return the events of a streamed answer, in order, without the final marker."""
        ...

    def error_event(self, body: Json) -> Event:
        """Return the event that carries an error body inside a stream that began with status 200."""
        ...

    def end_marker(self) -> bytes:
        """Return the raw bytes after the last event."""
        ...
