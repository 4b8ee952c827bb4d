"""Every error Waybill raises, in one tree.

WaybillError
├── ConfigError              a setting or file is wrong; refuses to start
├── InvalidJob               the request itself is wrong; submitting it again cannot help
│   └── IdempotencyConflict  the key was used before for another request
├── InvalidFeedback          a score that cannot be kept: out of range, or there is no answer to it
├── ServiceUnavailable       a part we need does not answer; trying later can help
│   ├── LedgerUnavailable    Postgres
│   └── BrokerUnavailable    Redis
├── JobError                 what `result()` raises for a job that did not succeed
│   ├── JobFailed
│   ├── JobDead              lost its worker too often, or was put aside by hand
│   └── JobCancelled
├── ResultTimeout            the job is still going on
├── StreamBroken             a streamed answer ended before its terminal event
└── ProviderError            what an adapter raises; only workers see it
    ├── Throttled            the provider (or our own limit) says: later
    ├── Unavailable          the provider is down, overloaded, unreachable
    ├── Rejected             our request is wrong for this model, or the account may not
    └── Broken               an answer came, and it cannot be trusted
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from waybill.contract import Usage


class WaybillError(Exception):
    """Base of all errors that Waybill raises on purpose."""


class ConfigError(WaybillError):
    """A setting, policy file or environment is not usable; the message names it and what to write instead."""


class InvalidJob(WaybillError):
    """The job cannot be accepted as it is; the message names the field and the remedy."""


class IdempotencyConflict(InvalidJob):
    """The idempotency key belongs to a job with another request."""


class InvalidFeedback(WaybillError):
    """The score cannot be kept: it is no number from 0 to 1, or its job has no answer."""


class ServiceUnavailable(WaybillError):
    """A service that Waybill stands on does not answer. Nothing was accepted by this call."""


class LedgerUnavailable(ServiceUnavailable):
    """Postgres does not answer."""


class BrokerUnavailable(ServiceUnavailable):
    """Redis (or the broker) does not answer."""


class JobError(WaybillError):
    """A job reached a final state without an answer.

    Attributes:
        job_id: The job.
        code: Stable machine-readable reason, such as `rejected`, `no_route`, `attempts_exhausted`.
    """

    def __init__(self, job_id: str, code: str, message: str) -> None:
        super().__init__(f"job {job_id}: {message} [{code}]")
        self.job_id = job_id
        self.code = code
        self.message = message


class JobFailed(JobError):
    """No candidate could answer the job."""


class JobDead(JobError):
    """The job was put aside (dead letter): its worker was lost too often."""


class JobCancelled(JobError):
    """The job was cancelled before it had an answer."""


class ResultTimeout(WaybillError):
    """No final state within the time given; the job goes on."""

    def __init__(self, job_id: str, timeout_s: float) -> None:
        super().__init__(f"job {job_id} has no result after {timeout_s:g} s; it goes on, ask again")
        self.job_id = job_id


class StreamBroken(WaybillError):
    """A streamed answer stopped before its terminal event."""


class ProviderError(WaybillError):
    """A call to a model did not give an answer that can be used.

    Attributes:
        code: Stable word for the ledger and the fallback table (docs/failures.md), such as `rate_limit`, `overloaded`.
        status: HTTP status, or None where there was none.
        request_id: The provider's id of the request, or None.
        billed: False when the provider cannot have charged; True when it has (see `usage`); None when nobody knows.
        usage: What the provider said it charged for, where it said so.
        retry_after_s: Seconds the provider asked us to wait before the same call, a floor; None when it did not say.
    """

    def __init__(
        self,
        message: str,
        *,
        code: str,
        status: int | None = None,
        request_id: str | None = None,
        billed: bool | None = False,
        usage: Usage | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.code = code
        self.status = status
        self.request_id = request_id
        self.billed = billed
        self.usage = usage


class Throttled(ProviderError):
    """Too much, too fast."""

    def __init__(
        self,
        message: str,
        *,
        code: str,
        retry_after_s: float | None,
        status: int | None = 429,
        request_id: str | None = None,
    ) -> None:
        super().__init__(message, code=code, status=status, request_id=request_id, retry_after_s=retry_after_s)


class Unavailable(ProviderError):
    """The provider is down, overloaded or unreachable; another lane may answer, or this one later."""


class Rejected(ProviderError):
    """The provider refuses the request or the account; the same request to the same lane cannot succeed.

    Attributes:
        account_wide: True when the whole account is refused (key, spend limit, quota), not only this request.
    """

    def __init__(
        self,
        message: str,
        *,
        code: str,
        status: int | None = None,
        request_id: str | None = None,
        account_wide: bool = False,
    ) -> None:
        super().__init__(message, code=code, status=status, request_id=request_id)
        self.account_wide = account_wide


class Broken(ProviderError):
    """The provider answered, but not with something that may be stored as success: cut, garbled, wrong type, no usage."""
