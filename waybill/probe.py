"""Tells from a file whether a process of the fleet lives and whether it makes progress: what Kubernetes asks every few seconds.

A process writes its heartbeat file from its asyncio loop (`beating`); `waybill probe` reads it, in another process. No probe
asks the broker or the ledger: when Redis is away every worker waits for it, and restarting them all would lose the calls
that are under way. `celery inspect ping` was measured at 10 to 15 s under load and fails with the broker.

live   the file is younger than LIVE_WITHIN_S: the loop turns.
ready  live, and the process says that nothing hinders it: a worker is consuming, its provider is on, it is not draining.

Nothing but the standard library is imported here: a probe costs a start of Python, and each pod pays it all day long.
"""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

BEAT_EVERY_S = 5.0
LIVE_WITHIN_S = 30.0
"""Six beats. A loop that is silent for this long is stuck: its longest step is a chunk of SQL, milliseconds."""
READY = "ready"


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a probe passes, and one line that says why."""

    passed: bool
    reason: str


def judge(path: Path, *, ready: bool, now: float, within_s: float = LIVE_WITHIN_S) -> Verdict:
    """What the heartbeat file says.

    Args:
        path: The file that the process writes.
        ready: Ask for progress, too; False asks for life only.
        now: Seconds since the epoch.
        within_s: Oldest heartbeat that counts as alive.
    """
    try:
        age_s = now - path.stat().st_mtime
        state = path.read_text(encoding="utf-8").strip()
    except OSError as exc:
        return Verdict(False, f"no heartbeat at {path}: {exc.strerror}; the process has not come up yet, or has ended")
    if age_s > within_s:
        return Verdict(False, f"the last heartbeat is {age_s:.0f} s old (at most {within_s:g}): the process is stuck")
    if ready and state != READY:
        return Verdict(False, f"alive, but not ready: {state or 'the heartbeat is empty'}")
    return Verdict(True, f"heartbeat {max(age_s, 0):.0f} s ago, {state}")


def beat(path: Path, obstacle: str | None) -> None:
    """Write one heartbeat. In one step (rename), so that no reader finds half a line.

    Args:
        path: The file; its folder must exist.
        obstacle: Why the process takes no work now; None = it is ready.
    """
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    draft.write_text(READY if obstacle is None else obstacle, encoding="utf-8")
    draft.replace(path)


def forget(path: Path) -> None:
    """Remove the file: its process has ended, or a new one in the same pod begins."""
    path.unlink(missing_ok=True)


@asynccontextmanager
async def beating(
    path: Path | None, obstacle: Callable[[], str | None], every_s: float = BEAT_EVERY_S
) -> AsyncIterator[None]:
    """Write heartbeats from this loop as long as the block lasts; the file is removed at its end.

    A change of the obstacle is written within a quarter of a second: a draining worker is out of service at once.

    Args:
        path: The file; None = do nothing.
        obstacle: Asked before each beat, in the loop.
        every_s: Seconds between two beats.

    Raises:
        OSError: The file cannot be written; a process that cannot be watched does not start.
    """
    if path is None:
        yield
        return
    import asyncio

    beat(path, obstacle())

    async def go_on() -> None:
        told, last = obstacle(), time.monotonic()
        while True:
            await asyncio.sleep(min(every_s, 0.25))
            now_told = obstacle()
            if now_told != told or time.monotonic() - last >= every_s:
                # A full disk must not end a worker that has calls under way; the probe sees the file grow old.
                with suppress(OSError):
                    beat(path, now_told)
                told, last = now_told, time.monotonic()

    task = asyncio.get_running_loop().create_task(go_on(), name="heartbeat-file")
    try:
        yield
    finally:
        task.cancel()
        forget(path)
