"""Named points at which a fault test makes a process die as `kill -9` would: WAYBILL_CRASH_AT=name:n, the n-th passage."""

from __future__ import annotations

import functools
import os

_passages = 0


@functools.cache
def _armed() -> tuple[str, int] | None:
    # Read at the first passage, not at import: a process that was forked has its environment from later.
    name, _, passage = os.environ.get("WAYBILL_CRASH_AT", "").partition(":")
    return (name, int(passage or 1)) if name else None


def crash_point(name: str) -> None:
    """Die here, without any goodbye, if this is the point and the passage that WAYBILL_CRASH_AT names."""
    global _passages
    armed = _armed()
    if armed is None or armed[0] != name:
        return
    _passages += 1
    if _passages >= armed[1]:
        os._exit(137)
