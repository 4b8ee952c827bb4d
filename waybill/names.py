"""Names that leave the process: tasks, queues, Redis keys, environment variables.

Renaming one of them is a migration: an old worker and a new one run side by side during a deploy.
"""

from __future__ import annotations

from typing import Final

DISPATCH_TASK: Final = "waybill.dispatch"
EXECUTE_TASK: Final = "waybill.execute"

DISPATCH_QUEUE: Final = "dispatch"
PROVIDERS: Final = ("anthropic", "openai", "local")
CLASSES: Final = ("hi", "lo")
BATCH_QUEUE: Final = "batch"
"""Doorbells of jobs that wait for a provider batch, of all providers and classes."""
BATCH_PROVIDERS: Final = ("anthropic", "openai")

DISPATCH_CHUNK: Final = 100
"""Job ids in one message to the dispatcher (reference figure: 34 us a job at 100 against 1,149 at 1)."""
EXECUTE_CHUNK: Final = 10
"""Job ids in one message to a provider queue: Celery costs about 0.6 ms a message, 60 us a job at 10."""


def provider_queue(provider: str, klass: str) -> str:
    """The queue of a provider for a class: `hi` waits for nobody, `lo` fills the rest. The batch lane has one for all."""
    return BATCH_QUEUE if provider == BATCH_QUEUE else f"{provider}.{klass}"


def all_queues() -> tuple[str, ...]:
    """Every queue that exists, the dispatcher's first. Nothing else is ever declared."""
    return (DISPATCH_QUEUE, *(provider_queue(p, c) for p in PROVIDERS for c in CLASSES), BATCH_QUEUE)


REDIS_PREFIX: Final = "waybill:"


def done_channel(job_id: str) -> str:
    """Pub/sub channel that says a job reached a final state. A hint: the ledger is the truth."""
    return f"{REDIS_PREFIX}done:{job_id}"


def stream_key(job_id: str) -> str:
    """Redis stream with the deltas of a streamed answer."""
    return f"{REDIS_PREFIX}stream:{job_id}"


CANCEL_CHANNEL: Final = f"{REDIS_PREFIX}cancel"
"""Pub/sub: ids of running jobs that are to be stopped. A hint: their workers find out when they renew the lease."""


def bell_key(queue: str) -> str:
    """Redis list of job ids: bells that did not go through Celery (waybill/bells.py)."""
    return f"{REDIS_PREFIX}bell:{queue}"


def mail_key(reply_to: str) -> str:
    """Redis stream with the mail of one gateway process (waybill/mail.py)."""
    return f"{REDIS_PREFIX}mail:{reply_to}"


EPOCH_KEY: Final = f"{REDIS_PREFIX}epoch"
"""Random value set by control; when it is gone or changed, Redis was lost and doorbells are rung again."""

QUARANTINE_KEY: Final = f"{REDIS_PREFIX}quarantine"
"""List, newest first: entries of queues that are no doorbells, with the reason (workers/guard.py)."""

HEALTH_KEY: Final = f"{REDIS_PREFIX}health"
"""Hash: breakers by lane (`provider/model/service`) and by account (`provider@account`), as policies/health.py writes them."""

LIMIT_PREFIX: Final = f"{REDIS_PREFIX}limit:"
"""Keys of the limiter, one group for each account and class of models (workers/limiter.lua)."""
LIMIT_LANES_KEY: Final = f"{REDIS_PREFIX}limit-lanes"
"""Hash: groups in which jobs wait for quota -> the time somebody last joined the line."""
ESTIMATES_KEY: Final = f"{REDIS_PREFIX}estimates"
"""Hash: what the fleet has learned about token counts, by `model intent`."""

COUNTERS_KEY: Final = f"{REDIS_PREFIX}counters"
"""Hash: how often each event happened in all processes together, by `event` or `event label=value ...` (telemetry.py)."""
BEATS_KEY: Final = f"{REDIS_PREFIX}beats"
"""Hash: duty of control -> when it was last done (seconds since 1970)."""

METRIC_PREFIX: Final = "waybill_"
PREFIX_KEY: Final = f"{REDIS_PREFIX}prefix:"
"""Hashes: who may read a prompt's prefix from a provider's cache (workers/prefixes.lua)."""

ENV_PREFIX: Final = "WAYBILL_"
