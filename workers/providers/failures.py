"""Every way a call can fail, as values: the code, the kind of error, whether it may have been billed. Pure, no SDK.

docs/failures.md says the same for people, with what the fleet does next; tests/contract/test_providers_failures.py
holds the two together. A code is stable: it is written to the ledger and the fallback table reads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from waybill.contract import Usage
from waybill.errors import Broken, ProviderError, Rejected, Throttled, Unavailable

Kind = type[Throttled] | type[Unavailable] | type[Rejected] | type[Broken]
Billed = Literal["no", "unknown", "yes"]
"""What is known about the charge while no output was seen. Output that was seen makes each of them "yes"."""


@dataclass(frozen=True, slots=True)
class Failure:
    """One row of the table.

    Attributes:
        kind: Class that is raised.
        billed: What is known about the charge while no output was seen.
        account_wide: Every call of this account fails the same way until somebody acts.
    """

    kind: Kind
    billed: Billed = "no"
    account_wide: bool = False


FAILURES: Final[Mapping[str, Failure]] = {
    "rate_limit": Failure(Throttled),
    "ramp_limit": Failure(Throttled),
    "no_capacity": Failure(Throttled),
    "overloaded": Failure(Unavailable),
    "server_error": Failure(Unavailable),
    "gateway_error": Failure(Unavailable, "unknown"),
    "conflict": Failure(Unavailable),
    "connection": Failure(Unavailable),
    "connection_lost": Failure(Unavailable, "unknown"),
    "timeout": Failure(Unavailable, "unknown"),
    "idle_timeout": Failure(Unavailable, "unknown"),
    "out_of_memory": Failure(Unavailable),
    "closed": Failure(Unavailable),
    "batch_expired": Failure(Unavailable),
    "batch_cancelled": Failure(Unavailable),
    "batch_missing": Failure(Unavailable, "unknown"),
    "spend_limit": Failure(Rejected, account_wide=True),
    "quota": Failure(Rejected, account_wide=True),
    "billing": Failure(Rejected, account_wide=True),
    "auth": Failure(Rejected, account_wide=True),
    "account_on_hold": Failure(Rejected, account_wide=True),
    "permission": Failure(Rejected),
    "not_found": Failure(Rejected),
    "bad_request": Failure(Rejected),
    "no_head": Failure(Rejected),
    "content_policy": Failure(Rejected),
    "too_large": Failure(Rejected),
    "context_length": Failure(Rejected),
    "redirected": Failure(Rejected),
    "content_type": Failure(Broken, "unknown"),
    "garbled": Failure(Broken, "unknown"),
    "wrong_type": Failure(Broken, "unknown"),
    "cut_body": Failure(Broken, "unknown"),
    "cut_stream": Failure(Broken, "unknown"),
    "no_terminal_event": Failure(Broken, "unknown"),
    "unknown_stop": Failure(Broken, "yes"),
    "empty": Failure(Broken, "yes"),
    "wrong_label": Failure(Broken, "yes"),
}


@dataclass(frozen=True, slots=True)
class Seen:
    """How much of an answer had come when it failed: decides what can be said about the charge.

    Attributes:
        output: A piece of generated output was seen.
        started: The provider said that it began (for example `message_start`).
        usage: What it said it charged, once that was final.
        request_id: The provider's id of the request.
    """

    output: bool = False
    started: bool = False
    usage: Usage | None = None
    request_id: str | None = None


NOTHING_SEEN: Final = Seen()


def failure(
    code: str,
    message: str,
    *,
    seen: Seen = NOTHING_SEEN,
    status: int | None = None,
    request_id: str | None = None,
    retry_after_s: float | None = None,
) -> ProviderError:
    """The error of `code`, ready to be raised, with `billed` as far as it is known.

    Output that was seen was paid for, whatever the code; a started answer may have been. Neither can turn into "no".
    """
    row = FAILURES[code]
    error: ProviderError
    if row.kind is Throttled:
        error = Throttled(message, code=code, retry_after_s=retry_after_s, status=status)
    elif row.kind is Rejected:
        error = Rejected(message, code=code, status=status, account_wide=row.account_wide)
    elif row.kind is Unavailable:
        error = Unavailable(message, code=code, status=status, retry_after_s=retry_after_s)
    else:
        error = Broken(message, code=code, status=status)
    error.request_id = request_id or seen.request_id
    error.usage = seen.usage
    if seen.output or row.billed == "yes":
        error.billed = True
    elif seen.started or row.billed != "no":
        error.billed = None
    else:
        error.billed = False
    return error
