"""The seam between the fleet and the providers: what goes in, what comes out, what may go wrong.

An adapter translates and classifies. It never retries, waits, routes, prices or stores. It raises the four kinds of
`waybill.errors.ProviderError` and nothing else that a provider can cause.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from policies.caching import Caching
from policies.catalog import Model
from waybill.contract import Message, Usage, Wire


class Stop(StrEnum):
    """Why the model stopped."""

    COMPLETE = "complete"
    TRUNCATED = "truncated"
    """Ran into max_output_tokens or the context window: the answer is cut."""
    REFUSED = "refused"
    TOOL_USE = "tool_use"


@dataclass(frozen=True, slots=True)
class Frames:
    """Server-sent events in the client's dialect, whole and ready to be handed on."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Call:
    """One attempt, ready to be sent.

    Attributes:
        model: Catalogue entry; `model.id` is asked for.
        messages: Turns, the last from the user.
        wire: Instead of turns: a request in a provider's dialect, to be carried unchanged or translated.
        system: Stable instructions or None.
        context: Text that many jobs share, sent before the first user turn, or None.
        json_schema: The answer must be JSON of this schema (already made strict where the job's labels ask for it).
        labels: Classification labels; a local model scores these instead of generating.
        copied: A local model may fill the schema with what stands in the messages, and with nothing else (policies/copying.py).
        max_output_tokens: Upper bound for the answer, thinking included.
        effort: One of `model.efforts`, or None for the model's own default.
        service: `interactive`, `flex` or `local`.
        timeout_s: Total time of the call.
        idle_timeout_s: Longest silence between two events of a stream.
        caching: What the provider's prompt cache is to keep; None = nothing was decided, and nothing is said about it.
        on_begin: Called when a streamed answer begins, with its headers' limits; never for one that comes whole.
        job_id: For the provider's log: sent as the header `x-waybill-job`.
        attempt: Sent as `x-waybill-attempt`.
    """

    model: Model
    messages: tuple[Message, ...]
    wire: Wire | None = None
    system: str | None = None
    context: str | None = None
    json_schema: Mapping[str, Any] | None = None
    labels: tuple[str, ...] = ()
    copied: bool = False
    max_output_tokens: int = 1024
    effort: str | None = None
    service: str = "interactive"
    timeout_s: float = 600
    idle_timeout_s: float = 60
    caching: Caching | None = None
    on_begin: Callable[[Limits], None] | None = field(default=None, compare=False)
    job_id: str = ""
    attempt: int = 1

    def plain_messages(self) -> tuple[Message, ...]:
        """The turns with the context in the first one, for models that take one text a turn."""
        if not self.context:
            return self.messages
        first = self.messages[0]
        if first.role != "user":
            return (Message(role="user", content=self.context), *self.messages)
        return (Message(role="user", content=f"{self.context}\n\n{first.content}"), *self.messages[1:])


@dataclass(frozen=True, slots=True)
class Limits:
    """What the provider's headers say: limits a minute, and what is left. None = not said. Only ever lowers what we believe."""

    requests_remaining: int | None = None
    input_tokens_remaining: int | None = None
    output_tokens_remaining: int | None = None
    tokens_remaining: int | None = None
    requests_limit: int | None = None
    input_tokens_limit: int | None = None
    output_tokens_limit: int | None = None
    tokens_limit: int | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back, checked: right type, terminal event seen, known stop reason.

    Attributes:
        text: The answer as text ("" is possible with `refused`).
        stop: Why it ended; only COMPLETE may become a result unlooked-at.
        usage: None when the provider sent none or nonsense: the cost is then estimated, never 0.
        served_model: The model the provider says answered.
        request_id: The provider's id of the request, or None.
        service_tier: The tier the provider says it used (price by it), or None.
        limits: From the headers.
        first_token_s: Seconds from sending to the first piece of the answer; None when not streamed.
        confidence: Local models: log-probability of the answer (sum over tokens) or of the label; else None.
        label_logprobs: Local models: log-probability of each label after the prompt, not normalized: what a running
            calibration of the labels' prior needs. Empty elsewhere.
        value_logprobs: Local models: log-probability of each value that was copied from the messages. Empty elsewhere.
        cpu_s: Local models: the CPU that the answer took.
        model_hash: Local models: what exactly answered (hash of the file, version of the head); a gate belongs to it.
        wire: The whole answer in the client's dialect, where the call came with one.
        tail: Its terminal frames, where it was streamed: for the client once the answer is stored.
    """

    text: str
    stop: Stop
    usage: Usage | None
    served_model: str
    request_id: str | None = None
    service_tier: str | None = None
    limits: Limits = field(default_factory=Limits)
    first_token_s: float | None = None
    confidence: float | None = None
    label_logprobs: Mapping[str, float] = field(default_factory=dict)
    value_logprobs: Mapping[str, float] = field(default_factory=dict)
    cpu_s: float | None = None
    model_hash: str | None = None
    wire: Mapping[str, Any] | None = None
    tail: bytes = b""


class Provider(Protocol):
    """One account at one provider (or one local model)."""

    name: str
    """Queue prefix: `anthropic`, `openai`, `local`."""

    async def call(self, call: Call) -> Answer:
        """Send and wait for the whole answer.

        Raises:
            Throttled: Later (429, 529 is Unavailable).
            Unavailable: Not reachable, overloaded, timed out.
            Rejected: This request or account is refused.
            Broken: An answer came that may not be stored as success.
        """
        ...

    def stream(self, call: Call) -> AsyncIterator[str | Frames | Answer]:
        """Yield pieces of text (of a call with `wire`: frames) as they come, then the whole checked Answer last.

        Nothing but the final Answer means success: a stream that ends without one raises Broken.
        Closing the iterator early cancels the request at the provider. Raises as `call` does.
        """
        ...

    async def close(self) -> None:
        """Give back connections and memory."""
        ...
