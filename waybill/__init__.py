"""Waybill's library: submit LLM jobs to the fleet, wait for or stream their answers, read the ledger.

    from waybill import Client

    with Client.from_env() as client:
        job_id = client.submit(intent="summarization", prompt=text)
        print(client.result(job_id, timeout_s=60).text)

Names are loaded when first used, so that `import waybill` costs next to nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from waybill.client import AsyncClient, Client
    from waybill.contract import Job, JobState, Message, Priority, Result, Usage
    from waybill.errors import (
        IdempotencyConflict,
        InvalidFeedback,
        InvalidJob,
        JobCancelled,
        JobDead,
        JobError,
        JobFailed,
        ResultTimeout,
        ServiceUnavailable,
        StreamBroken,
        WaybillError,
    )

__version__ = "0.1.0"

_HOME = {
    "AsyncClient": "client",
    "Client": "client",
    "Job": "contract",
    "JobState": "contract",
    "Message": "contract",
    "Priority": "contract",
    "Result": "contract",
    "Usage": "contract",
    "IdempotencyConflict": "errors",
    "InvalidFeedback": "errors",
    "InvalidJob": "errors",
    "JobCancelled": "errors",
    "JobDead": "errors",
    "JobError": "errors",
    "JobFailed": "errors",
    "ResultTimeout": "errors",
    "ServiceUnavailable": "errors",
    "StreamBroken": "errors",
    "WaybillError": "errors",
}

__all__ = [
    "AsyncClient",
    "Client",
    "IdempotencyConflict",
    "InvalidFeedback",
    "InvalidJob",
    "Job",
    "JobCancelled",
    "JobDead",
    "JobError",
    "JobFailed",
    "JobState",
    "Message",
    "Priority",
    "Result",
    "ResultTimeout",
    "ServiceUnavailable",
    "StreamBroken",
    "Usage",
    "WaybillError",
    "__version__",
]


def __getattr__(name: str) -> object:
    if name in _HOME:
        from importlib import import_module

        return getattr(import_module(f"waybill.{_HOME[name]}"), name)
    raise AttributeError(f"module 'waybill' has no attribute {name!r}")
