"""The trace that a job belongs to: taken from whoever submits it, kept with the job, since a job outlives every message.

W3C trace context (`traceparent`). Nothing of OpenTelemetry is imported here: a caller that uses it has it loaded.
"""

from __future__ import annotations

import re
import sys
from contextvars import ContextVar
from typing import Final

_FORM: Final = re.compile(r"00-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})")

GIVEN: Final[ContextVar[str | None]] = ContextVar("waybill_traceparent", default=None)
"""Set by the gateway for the length of a request that brought one."""


def parse(text: str | None) -> tuple[int, int, int] | None:
    """Trace id, span id and flags of a `traceparent`; None when it is none: a wrong header is no reason to refuse a job."""
    found = _FORM.fullmatch(text.strip().lower()) if text else None
    return None if found is None else (int(found[1], 16), int(found[2], 16), int(found[3], 16))


def current() -> str | None:
    """The traceparent to keep with jobs that are submitted now; None = outside of any trace."""
    if (given := GIVEN.get()) is not None:
        return given
    api = sys.modules.get("opentelemetry.trace")
    if api is None:
        return None
    context = api.get_current_span().get_span_context()
    if not context.is_valid:
        return None
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"
