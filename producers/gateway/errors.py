"""Every error a client of the gateway can meet, in the shape, status and type of the dialect it speaks.

Whoever finds something wrong raises `Refusal` with a kind; what that looks like on the wire is decided here alone, so
that an SDK raises the class it would raise at the provider (providers.md 1.6 and 2.5).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, Literal

from starlette.responses import JSONResponse

Family = Literal["openai", "anthropic"]
"""Whose error shape: Chat Completions and Responses share OpenAI's."""


class Kind(StrEnum):
    """What is wrong."""

    INVALID = "invalid"
    AUTHENTICATION = "authentication"
    BILLING = "billing"
    """The budget is used up. OpenAI says so as 429 insufficient_quota, Anthropic as 402."""
    PERMISSION = "permission"
    NOT_FOUND = "not_found"
    METHOD = "method"
    CONFLICT = "conflict"
    TOO_LARGE = "too_large"
    RATE_LIMIT = "rate_limit"
    SERVER_ERROR = "server_error"
    OVERLOADED = "overloaded"
    """Trying later helps: the fleet, its ledger or every lane is away or busy."""
    TIMEOUT = "timeout"


@dataclass(frozen=True, slots=True)
class _Row:
    anthropic: tuple[int, str]
    openai: tuple[int, str, str | None]


_ROWS: Final[Mapping[Kind, _Row]] = {
    Kind.INVALID: _Row((400, "invalid_request_error"), (400, "invalid_request_error", None)),
    Kind.AUTHENTICATION: _Row((401, "authentication_error"), (401, "invalid_request_error", "invalid_api_key")),
    Kind.BILLING: _Row((402, "billing_error"), (429, "insufficient_quota", "insufficient_quota")),
    Kind.PERMISSION: _Row((403, "permission_error"), (403, "invalid_request_error", "permission_denied")),
    Kind.NOT_FOUND: _Row((404, "not_found_error"), (404, "invalid_request_error", None)),
    Kind.METHOD: _Row((405, "invalid_request_error"), (405, "invalid_request_error", "method_not_allowed")),
    Kind.CONFLICT: _Row((409, "conflict_error"), (409, "invalid_request_error", "conflict")),
    Kind.TOO_LARGE: _Row((413, "request_too_large"), (413, "invalid_request_error", "request_too_large")),
    Kind.RATE_LIMIT: _Row((429, "rate_limit_error"), (429, "requests", "rate_limit_exceeded")),
    Kind.SERVER_ERROR: _Row((500, "api_error"), (500, "server_error", "server_error")),
    Kind.OVERLOADED: _Row((529, "overloaded_error"), (503, "server_error", "server_is_overloaded")),
    Kind.TIMEOUT: _Row((504, "timeout_error"), (504, "server_error", "timeout")),
}
_RETRY_LATER: Final = {Kind.RATE_LIMIT, Kind.OVERLOADED, Kind.TIMEOUT}


class Refusal(Exception):
    """The request is answered with an error.

    Attributes:
        kind: What is wrong.
        message: For people: what happened, to which thing, and what to do.
        param: The parameter that is wrong, as the client wrote it.
        code: OpenAI's `error.code` where it is not the kind's own.
        retry_after_s: When to come again; only where that helps.
        headers: Further ones, such as the job's id.
    """

    def __init__(
        self,
        kind: Kind,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.param = param
        self.code = code
        self.retry_after_s = retry_after_s if retry_after_s is not None or kind not in _RETRY_LATER else 1.0
        self.headers = dict(headers or {})


def status_of(refusal: Refusal, family: Family) -> int:
    """The HTTP status."""
    row = _ROWS[refusal.kind]
    return row.anthropic[0] if family == "anthropic" else row.openai[0]


def error_body(refusal: Refusal, family: Family, request_id: str) -> dict[str, Any]:
    """The body, also used as the error event inside a stream."""
    row = _ROWS[refusal.kind]
    if family == "anthropic":
        where = f"{refusal.param}: " if refusal.param and refusal.param not in refusal.message else ""
        error = {"type": row.anthropic[1], "message": f"{where}{refusal.message}"}
        return {"type": "error", "error": error, "request_id": request_id}
    _, kind, code = row.openai
    return {
        "error": {"message": refusal.message, "type": kind, "param": refusal.param, "code": refusal.code or code},
    }


def response(refusal: Refusal, family: Family, request_id: str) -> JSONResponse:
    """The whole answer, with its id and, where trying later helps, `retry-after`."""
    headers = {**id_headers(request_id), **refusal.headers}
    if refusal.retry_after_s is not None:
        headers["retry-after"] = str(max(1, math.ceil(refusal.retry_after_s)))
    if refusal.kind in (Kind.INVALID, Kind.NOT_FOUND, Kind.BILLING, Kind.TOO_LARGE, Kind.CONFLICT):
        headers["x-should-retry"] = "false"  # the SDKs heed it: the same request cannot succeed
    return JSONResponse(
        error_body(refusal, family, request_id), status_code=status_of(refusal, family), headers=headers
    )


def id_headers(request_id: str) -> dict[str, str]:
    """The request's id under the names of both SDKs."""
    return {"request-id": request_id, "x-request-id": request_id}
