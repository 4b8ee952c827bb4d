"""Which failure it was: from what the provider said, or from what the transport raised. Imports no provider SDK.

Order of evidence: the provider's own code and type first, its HTTP status second, the words of its message last and
only where no code exists. A 429 may be a spend limit that lasts until next month, a 200 may carry an overload, so
neither class names of an SDK nor the status alone decide (providers.md 1.6, 2.5; reliability-users.md 1b).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

import aiohttp
import httpx2

from waybill.errors import ProviderError
from workers.providers.failures import NOTHING_SEEN, Seen, failure
from workers.providers.headers import retry_after_s

_BY_CODE: Final[Mapping[str, str]] = {
    # Anthropic, error.details.error_code (anthropic 2.12.0 _error_classes.py)
    "ramp_limit_exceeded": "ramp_limit",
    "enforced_spend_limit_reached": "spend_limit",
    "contract_spend_limit_reached": "spend_limit",
    "linked_organization_spend_limit_reached": "spend_limit",
    "linked_organization_billing_unavailable": "billing",
    "user_profile_billing_not_authorized": "billing",
    "user_profile_not_billable": "billing",
    "organization_on_hold": "account_on_hold",
    "request_body_too_large_after_decoding": "too_large",
    "request_body_timeout": "connection",
    # OpenAI, error.code
    "rate_limit_exceeded": "rate_limit",
    "slow_down": "ramp_limit",
    "resource_unavailable": "no_capacity",
    "server_is_overloaded": "overloaded",
    "server_error": "server_error",
    "insufficient_quota": "quota",
    "credit_balance_exhausted": "quota",
    "billing_hard_limit_reached": "spend_limit",
    "billing_not_active": "billing",
    "spend_limit_reached": "spend_limit",
    "usage_limit_reached": "spend_limit",
    "account_deactivated": "account_on_hold",
    "invalid_api_key": "auth",
    "incorrect_api_key": "auth",
    "model_not_found": "not_found",
    "context_length_exceeded": "context_length",
    "string_above_max_length": "context_length",
    "content_policy_violation": "content_policy",
    "content_filter": "content_policy",
    # llama-server, error.type of a prompt that does not fit
    "exceed_context_size_error": "context_length",
}
_BY_TYPE: Final[Mapping[str, str]] = {
    # Anthropic
    "rate_limit_error": "rate_limit",
    "overloaded_error": "overloaded",
    "api_error": "server_error",
    "timeout_error": "timeout",
    "authentication_error": "auth",
    "billing_error": "billing",
    "permission_error": "permission",
    "not_found_error": "not_found",
    "request_too_large": "too_large",
    "conflict_error": "conflict",
    "invalid_request_error": "bad_request",
    # OpenAI and servers of its dialect
    "insufficient_quota": "quota",
    "tokens": "rate_limit",
    "requests": "rate_limit",
    "server_error": "server_error",
    "service_unavailable_error": "overloaded",
    "unavailable_error": "overloaded",
    "exceed_context_size_error": "context_length",
}
_BY_STATUS: Final[Mapping[int, str]] = {
    401: "auth",
    402: "billing",
    403: "permission",
    404: "not_found",
    408: "timeout",
    409: "conflict",
    413: "too_large",
    429: "rate_limit",
    502: "gateway_error",
    503: "overloaded",
    504: "gateway_error",
    529: "overloaded",
}
# Only for 400s, where the provider gives no code of its own; each wording was seen in an answer or its documentation.
_BY_WORDS: Final = (
    (re.compile(r"(?i)prompt is too long|maximum context length|exceeds? the (available )?context"), "context_length"),
    (re.compile(r"(?i)credit balance is too low"), "quota"),
    (re.compile(r"(?i)(specified|your) (api )?(usage|spend(ing)?) limits?"), "spend_limit"),
)
_MAX_MESSAGE: Final = 500
_NEVER_CONNECTED: Final = (
    aiohttp.ClientConnectorError,
    aiohttp.ConnectionTimeoutError,
    httpx2.ConnectTimeout,
    httpx2.PoolTimeout,
)
TRANSPORT_ERRORS: Final = (httpx2.HTTPError, httpx2.InvalidURL, aiohttp.ClientError, OSError, ValueError)
"""What reaches an adapter raw, outside the SDKs' own trees: measured for cut streams, silence and bad JSON
(reliability-users.md 1b). OSError includes TimeoutError, ValueError the errors of JSON and Unicode."""


@dataclass(frozen=True, slots=True)
class Said:
    """An error as the provider put it on the wire.

    Attributes:
        status: HTTP status; 200 for an error event inside a stream.
        type: `error.type`.
        code: `error.details.error_code` (Anthropic) or `error.code` (OpenAI).
        message: For people.
        headers: Of the response, names in lower case.
        request_id: The provider's id of the request.
    """

    status: int
    type: str | None
    code: str | None
    message: str
    headers: Mapping[str, str] = field(default_factory=dict)
    request_id: str | None = None


def refused(provider: str, said: Said, *, now: datetime, seen: Seen = NOTHING_SEEN) -> ProviderError:
    """The error for what the provider said.

    Args:
        provider: Named in the message.
        said: Its words.
        now: Aware, for a `retry-after` that is a date.
        seen: What of the answer had come before (an error event in the middle of a stream).
    """
    code = _code_of(said)
    words = " ".join(said.message.split())[:_MAX_MESSAGE] or "no message"
    return failure(
        code,
        f"{provider} refused the call (HTTP {said.status}, {said.code or said.type or 'no error type'}): {words}",
        seen=seen,
        status=said.status,
        request_id=said.request_id,
        retry_after_s=retry_after_s(said.headers, now=now),
    )


def _code_of(said: Said) -> str:
    own, kind = said.code or "", said.type or ""
    code = _BY_CODE.get(own) or _BY_TYPE.get(kind) or _BY_CODE.get(kind)
    if code not in (None, "bad_request"):
        return code
    status = said.status
    if status == 400 or code == "bad_request":
        for pattern, named in _BY_WORDS:
            if pattern.search(said.message):
                return named
    if status in _BY_STATUS:
        return _BY_STATUS[status]
    if code is not None:
        return code
    if status == 200:
        return "server_error"
    if status >= 500:
        # Without a word of the provider's own a 5xx comes from a proxy, behind which the call may have been answered.
        return "server_error" if said.type else "gateway_error"
    return "redirected" if status < 400 else "bad_request"


def interrupted(provider: str, exc: Exception, *, seen: Seen = NOTHING_SEEN, streaming: bool = False) -> ProviderError:
    """The error for what the transport, a timeout or a parser raised.

    Looks through the chain of causes down to aiohttp's own error, because what stands above it is wrong: openai 3.54.0
    maps a connection reset after sending to a connect timeout, anthropic 2.12.0 to a connect error. Whether the request
    was sent decides whether it may have been billed.

    Args:
        provider: Named in the message.
        exc: One of `TRANSPORT_ERRORS` or of the SDK's own; what is unknown counts as a lost connection.
        seen: What of the answer had come.
        streaming: Whether a stream was asked for.
    """
    chain = list(_causes(exc))
    names = ", ".join(dict.fromkeys(type(link).__name__ for link in chain))
    wire = next((n for n, link in enumerate(chain) if isinstance(link, aiohttp.ClientError)), 0)
    chain = chain[wire:]
    if _any(chain, UnicodeEncodeError):
        return failure("bad_request", f"the request is not valid Unicode ({names}); remove lone surrogates")
    if _any(chain, httpx2.UnsupportedProtocol, httpx2.InvalidURL, aiohttp.InvalidURL):
        return failure("connection", f"the base URL of {provider} is not usable ({names}); correct it")
    if _any(chain, *_NEVER_CONNECTED):
        return failure("connection", f"cannot connect to {provider} ({names}); is its address reachable from here?")
    if _any(chain, json.JSONDecodeError, UnicodeDecodeError):
        return failure("garbled", f"{provider} sent what is not JSON ({names})", seen=seen)
    if _any(chain, aiohttp.ClientPayloadError):
        code = "cut_stream" if streaming else "cut_body"
        return failure(code, f"{provider} closed the connection in the middle of an answer ({names})", seen=seen)
    if _any(chain, TimeoutError, httpx2.TimeoutException):
        return failure("timeout", f"{provider} did not answer in time ({names})", seen=seen)
    code = "cut_stream" if streaming and (seen.started or seen.output) else "connection_lost"
    return failure(code, f"the connection to {provider} was lost after sending ({names})", seen=seen)


def _causes(exc: BaseException) -> Iterator[BaseException]:
    """`exc`, what it was raised from, and so on."""
    link: BaseException | None = exc
    for _ in range(16):  # a chain may be circular
        if link is None:
            return
        yield link
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)


def _any(chain: list[BaseException], *kinds: type[BaseException]) -> bool:
    return any(isinstance(link, kinds) for link in chain)
