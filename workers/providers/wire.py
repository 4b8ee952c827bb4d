"""What both HTTP adapters need: reading JSON that nobody vouches for, joining text, waiting for events in time.

The SDKs build their typed models without validating (`construct`): a usage of "ten" passes as int and an HTML page as
`str` (reliability-users.md 1b). So the adapters read the JSON themselves, and every value is narrowed here.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Final, cast

import httpx2

from policies.dialects.schema import LABEL_KEY
from waybill.contract import Usage
from waybill.errors import ConfigError
from workers.providers.base import Answer, Call, Limits, Stop
from workers.providers.failures import Seen, failure

CONNECT_TIMEOUT_S: Final = 10.0
_MAX_TOKENS: Final = 10**9

# Reading is bounded by the call's own timeouts, which know about silence between events; the transport's does not.
# An explicit value also keeps anthropic's SDK from refusing long answers that are not streamed (providers.md 1.6).
TRANSPORT_TIMEOUT: Final = httpx2.Timeout(connect=CONNECT_TIMEOUT_S, read=None, write=None, pool=None)
# The fleet's limiter bounds the calls in flight, so the pool must not; idle connections are kept a little.
CONNECTION_LIMITS: Final = httpx2.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=15.0)


def check_access(provider: str, api_key: str, base_url: str | None) -> None:
    """Refuse what cannot work before the first call.

    Raises:
        ConfigError: The key is empty or not sendable, or the URL is not http(s).
    """
    if not api_key.strip() or not api_key.isascii() or not api_key.isprintable():
        raise ConfigError(f"{provider}: the API key is empty or holds characters no HTTP header takes; set it anew")
    if base_url is not None and not base_url.startswith(("http://", "https://")):
        raise ConfigError(f"{provider}: the base URL {base_url!r} must begin with http:// or https://")


def call_headers(call: Call) -> dict[str, str]:
    """Headers that let the provider's log be joined with ours; nothing of the job's text."""
    headers = {"x-waybill-attempt": str(call.attempt)}
    if call.job_id:
        headers["x-waybill-job"] = call.job_id
    return headers


@dataclass(slots=True)
class Progress:
    """How far one call has come; what is known when it fails.

    Attributes:
        provider: Named in messages.
        started_at: On the monotonic clock.
        output: Generated output was seen.
        began: The provider said that it began to answer.
        usage: What it said it charged, once that was final.
        request_id: Its id of the request.
        first_token_s: From sending to the first piece of text.
        limits: What the headers of a stream said.
    """

    provider: str
    started_at: float = field(default_factory=time.monotonic)
    output: bool = False
    began: bool = False
    usage: Usage | None = None
    request_id: str | None = None
    first_token_s: float | None = None
    limits: Limits = field(default_factory=Limits)

    @property
    def seen(self) -> Seen:
        return Seen(output=self.output, started=self.began, usage=self.usage, request_id=self.request_id)

    def note_text(self) -> None:
        """Text of the answer was seen; the first time counts for `first_token_s`."""
        self.output = True
        if self.first_token_s is None:
            self.first_token_s = time.monotonic() - self.started_at


def plain_headers(response: httpx2.Response) -> dict[str, str]:
    """The headers by lower-case name, the last of a name winning; httpx2's own mapping decodes all at each look-up."""
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.headers.raw}


def json_object(content: bytes, headers: Mapping[str, str], progress: Progress) -> dict[str, Any]:
    """The body of a 200 as a JSON object.

    Raises:
        Broken: Another content type, no JSON, or JSON that is not an object.
    """
    check_content_type(headers, "application/json", progress)
    progress.began = True
    try:
        body = json.loads(content)
    except (ValueError, RecursionError) as exc:
        text = f"{progress.provider} sent {len(content)} bytes that are not one JSON value ({exc})"
        raise failure("garbled", text, seen=progress.seen, status=200) from exc
    return mapping(body, "the body", progress)


def check_content_type(headers: Mapping[str, str], wanted: str, progress: Progress) -> None:
    """Raise Broken unless a 200 carries what was asked for: proxies answer 200 with HTML, and both SDKs accept it."""
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != wanted:
        text = f"{progress.provider} answered 200 with {kind or 'no content type'} instead of {wanted}; is it a proxy?"
        raise failure("content_type", text, seen=progress.seen, status=200)


def mapping(value: object, what: str, progress: Progress) -> dict[str, Any]:
    """`value` as a JSON object, or raise Broken(`wrong_type`)."""
    if not isinstance(value, dict):
        raise wrong_type(what, progress)
    return value


def text_of(value: object, what: str, progress: Progress) -> str:
    """`value` as a string, or raise Broken(`wrong_type`)."""
    if not isinstance(value, str):
        raise wrong_type(what, progress)
    return value


def utc_now() -> datetime:
    """Now; here, so that dates in `retry-after` are read against one clock."""
    return datetime.now(UTC)


def wrong_type(what: str, progress: Progress) -> Exception:
    """The error for a part of the answer that is not of its type."""
    text = f"{progress.provider} sent an answer in which {what} has the wrong type"
    return failure("wrong_type", text, seen=progress.seen)


def count(usage: Mapping[str, object], key: str) -> int:
    """A token count; absent and null are 0.

    Raises:
        ValueError: Anything else that is not an integer 0..10^9.
    """
    value = usage.get(key)
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _MAX_TOKENS:
        raise ValueError(f"{key}={value!r}")
    return value


def section(usage: Mapping[str, object], key: str) -> Mapping[str, object]:
    """A sub-object of usage; absent and null are empty.

    Raises:
        ValueError: Something else stands there.
    """
    value = usage.get(key)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ValueError(f"{key}={value!r}")
    return cast("Mapping[str, object]", value)


class Text:
    """Joins the pieces of an answer and keeps it valid Unicode.

    JSON can carry half a surrogate pair; some servers cut a pair between two pieces. Halves are joined again, and a
    half without its partner becomes U+FFFD: a paid answer is kept, and the ledger (UTF-8) can hold it.
    """

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._high = ""

    def add(self, piece: str) -> str:
        """Take the next piece; return what of it can go out now ("" when only half a character came)."""
        piece = self._high + piece
        self._high = ""
        if piece and "\ud800" <= piece[-1] <= "\udbff":
            self._high, piece = piece[-1], piece[:-1]
        piece = _valid(piece)
        if piece:
            self._parts.append(piece)
        return piece

    def end(self) -> str:
        """What was held back; to be called once, after the last piece."""
        rest, self._high = _valid(self._high), ""
        if rest:
            self._parts.append(rest)
        return rest

    @property
    def whole(self) -> str:
        """Everything so far."""
        return "".join(self._parts)


def _valid(text: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


class Events:
    """The events of a stream, each within the call's time.

    Silence counts from the first event on: before it, a model may think for as long as the whole call may take.
    """

    def __init__(self, stream: AsyncIterator[object], call: Call, progress: Progress) -> None:
        self._stream = stream
        self._idle_s = call.idle_timeout_s
        self._deadline = progress.started_at + call.timeout_s
        self._limit = self._deadline
        self._progress = progress
        self._on_begin = call.on_begin

    def __aiter__(self) -> Events:
        return self

    async def __anext__(self) -> object:
        # asyncio's clock is time.monotonic, as is `started_at`.
        try:
            async with asyncio.timeout_at(self._limit):
                event = await self._stream.__anext__()
        except TimeoutError as exc:
            provider, seen = self._progress.provider, self._progress.seen
            if time.monotonic() >= self._deadline:
                raise failure("timeout", f"{provider} did not end its answer in time", seen=seen) from exc
            text = f"{provider} sent nothing for {self._idle_s:g} s in the middle of an answer"
            raise failure("idle_timeout", text, seen=seen) from exc
        self._limit = min(self._deadline, time.monotonic() + self._idle_s)
        if self._on_begin is not None:
            self._on_begin(self._progress.limits)
            self._on_begin = None
        return event


def finished(call: Call, answer: Answer, progress: Progress) -> Answer:
    """`answer` when it may be handed on, with the label taken out of its JSON where labels were asked for.

    Raises:
        Broken: A complete answer without text, or one that is none of the labels.
    """
    if answer.stop is not Stop.COMPLETE or call.wire is not None:
        return answer
    seen = Seen(output=True, usage=answer.usage, request_id=answer.request_id)
    if not answer.text.strip():
        raise failure("empty", f"{progress.provider} ended its answer without any text", seen=seen)
    if not call.labels:
        return answer
    label = _label(answer.text)
    if label not in call.labels:
        text = f"{progress.provider} answered with something that is none of the {len(call.labels)} labels"
        raise failure("wrong_label", text, seen=seen)
    return replace(answer, text=label)


def _label(text: str) -> str:
    """The label in `{"label": ...}`, or the bare text of a server that cannot be held to a schema."""
    try:
        body = json.loads(text)
    except ValueError:
        return text.strip()
    value = body.get(LABEL_KEY) if isinstance(body, dict) else None
    return value if isinstance(value, str) else text.strip()
