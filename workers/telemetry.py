"""The events that the fleet's processes tell about, in one table, and the one function that tells them: a log line and a count.

Fields hold ids, names, counts and money: no prompt, no answer, no key, no tenant, and no text of a provider's (which may
quote a prompt) ever goes into an event; why a job went where it went is on the ledger (`waybill why`). Seconds end in `_s`.

Counts of all processes come together in Redis, where `waybill metrics` reads them: no process needs a port of its own, and a
process that ends takes at most the last two seconds with it. Redis may be wiped; then they begin at 0, as any counter may.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import sys
import threading
import traceback
import warnings
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from waybill.names import COUNTERS_KEY

if TYPE_CHECKING:
    from redis.asyncio import Redis

log = logging.getLogger("waybill")


@dataclass(frozen=True, slots=True)
class Event:
    """A row of the table.

    Attributes:
        fields: What a line of it carries, in this order.
        count: The field whose value is added up; None = each line counts 1.
        by: Fields that the count is kept apart by: closed sets only.
    """

    fields: tuple[str, ...]
    count: str | None = None
    by: tuple[str, ...] = ()


EVENTS: Final[Mapping[str, Event]] = {
    "worker.ready": Event(("queues", "concurrency")),
    "provider.off": Event(("provider", "reason")),
    "chunk.dispatched": Event(("jobs", "routed", "refused", "seconds_s"), count="jobs"),
    "chunk.executed": Event(("jobs", "taken", "seconds_s"), count="taken"),
    "attempt.finished": Event(("job", "attempt", "lane", "state", "usd", "seconds_s")),
    "job.rerouted": Event(("job", "attempt", "outcome", "code", "lane", "to"), by=("outcome", "code", "lane", "to")),
    "job.failed": Event(("job", "attempt", "code"), by=("code",)),
    "lease.lost": Event(("job", "attempt")),
    "jobs.rescued": Event(("jobs", "dead"), count="jobs"),
    "jobs.released": Event(("jobs",), count="jobs"),
    "jobs.strayed": Event(("jobs",), count="jobs"),
    "jobs.parked": Event(("jobs", "lane"), count="jobs"),
    "jobs.hedged": Event(("jobs",), count="jobs"),
    "batch.gathered": Event(("batch", "lane", "rows"), count="rows"),
    "batch.sent": Event(("batch", "lane", "rows")),
    "batch.found": Event(("batch", "rows")),
    "batch.delayed": Event(("batch", "state", "wait_s")),
    "batch.paused": Event(("batch", "lane", "wait_s", "code")),
    "batch.doubled": Event(("batch",)),
    "batch.cancelled": Event(("batch", "rows")),
    "batch.ended": Event(("batch", "rows", "missing"), count="rows"),
    "answers.reused": Event(("jobs",), count="jobs"),
    "doorbells.rerung": Event(("jobs", "cause"), count="jobs"),
    "message.refused": Event(("queue", "reason", "bytes")),
    "lane.changed": Event(("lane", "before", "state", "reason")),
    "budget.share": Event(("budget", "percent")),
    "plan.changed": Event(("intent", "kind", "model", "reason")),
    "plan.lacking": Event(("intent", "reason")),
    "cascade.changed": Event(("intent", "state")),
    "cascade.idle": Event(("intent", "reason")),
    "cascade.drifted": Event(("intent", "reason")),
    "checks.begun": Event(("use", "jobs"), count="jobs", by=("use",)),
    "head.fitted": Event(("intent", "fingerprint", "version", "labels", "seconds_s")),
    "gate.changed": Event(("intent", "fingerprint", "state", "reason"), by=("state",)),
    "config.reloaded": Event(("what", "version")),
    "config.refused": Event(("what", "error")),
    "spans.lost": Event(("spans",), count="spans"),
    "text.purged": Event(("jobs", "files", "batches", "deliveries"), count="jobs"),
    "service.away": Event(("service", "error")),
    "service.back": Event(("service", "seconds_s")),
}

_TELLS_REQUESTS: Final = ("anthropic", "openai", "httpx", "httpx2", "httpcore", "httpcore2", "psycopg", "sqlalchemy")
FLUSH_EVERY_S: Final = 2.0
_counts: Counter[str] = Counter()
_counts_lock = threading.Lock()


def emit(event: str, *, level: int = logging.INFO, **fields: object) -> None:
    """Log one event of the table and count it."""
    row = EVENTS[event]
    step = fields.get(row.count) if row.count else 1
    name = event if not row.by else f"{event} {' '.join(f'{key}={fields.get(key)}' for key in row.by)}"
    with _counts_lock:
        _counts[name] += step if isinstance(step, int) else 1
    if log.isEnabledFor(level):
        log.log(level, "%s", event, extra={"event": event, "fields": fields})


def take_counts() -> dict[str, int]:
    """What was counted since the last call."""
    with _counts_lock:
        taken = dict(_counts)
        _counts.clear()
    return taken


def put_back(counts: Mapping[str, int]) -> None:
    """Counts that could not be delivered."""
    with _counts_lock:
        _counts.update(counts)


async def flush(redis: Redis) -> None:
    """Add this process's counts to those of all; while Redis is away they are kept."""
    from redis.exceptions import RedisError

    counts = take_counts()
    if not counts:
        return
    try:
        async with redis.pipeline(transaction=True) as pipe:
            for name, step in counts.items():
                pipe.hincrby(COUNTERS_KEY, name, step)
            await pipe.execute()
    except (RedisError, OSError):
        put_back(counts)


@contextlib.asynccontextmanager
async def counting(redis: Redis) -> AsyncIterator[None]:
    """Deliver counts as long as the block lasts, and what is left at its end."""

    async def go_on() -> None:
        while True:
            await asyncio.sleep(FLUSH_EVERY_S)
            await flush(redis)

    task = asyncio.get_running_loop().create_task(go_on(), name="counts")
    try:
        yield
    finally:
        task.cancel()
        await flush(redis)


def _value(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    text = str(value)
    return repr(text) if not text or any(c.isspace() or c == '"' for c in text) else text


class _Lines(logging.Formatter):
    """A traceback without the exception's own words: pydantic, the SDKs and psycopg quote what they were given."""

    def formatException(self, ei: Any) -> str:  # noqa: N802  # logging's name
        kind, _, trace = ei
        frames = [f"{f.filename.rpartition('/')[2]}:{f.lineno} {f.name}" for f in traceback.extract_tb(trace)]
        return f"{kind.__name__ if kind else 'exception'} at {' < '.join(reversed(frames))}"


class TextLines(_Lines):
    """For a terminal: time, level, message; an event as `event key=value ...`, values with spaces quoted."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname).1s %(message)s", datefmt="%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # logging's name
        fields: Mapping[str, object] = getattr(record, "fields", {})
        rest = "".join(f" {key}={_value(value)}" for key, value in fields.items())
        return super().formatMessage(record) + rest


class JsonLines(_Lines):
    """For a collector: one object a line: `at`, `level`, then `event` with its fields, or `message` and `logger`."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
        }
        event = getattr(record, "event", None)
        if event is None:
            line |= {"message": record.getMessage(), "logger": record.name}
        else:
            fields: Mapping[str, object] = getattr(record, "fields", {})
            line |= {"event": event, **{k: round(v, 6) if isinstance(v, float) else v for k, v in fields.items()}}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def configure(level: str, style: str = "text") -> None:
    """Lines on stderr, as text (the supervisor prefixes the process's name) or as JSON.

    Args:
        level: Least level that is told.
        style: `text` or `json`.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if style == "json" else TextLines())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.captureWarnings(True)
    # Celery warns root because of pickle; our workers accept JSON only.
    warnings.filterwarnings("ignore", message=".*superuser privileges.*")
    # At DEBUG the SDKs write whole requests, prompts and all (seen): theirs are never told below a warning.
    for noisy in (*_TELLS_REQUESTS, "aiohttp", "asyncio", "celery.worker.strategy", "celery.app.trace", "kombu"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, logging.getLevelName(level)))
