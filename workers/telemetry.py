"""The events a worker tells about, in one table, and the one function that tells them.

Fields hold ids, names, counts and money: no prompt, no answer, no key ever goes into an event. Seconds end in `_s`.

| event              | fields                                                           |
|--------------------|------------------------------------------------------------------|
| worker.ready       | queues, providers, concurrency                                   |
| provider.off       | provider, reason                                                 |
| chunk.dispatched   | jobs, routed, refused, seconds_s                                 |
| chunk.executed     | jobs, taken, seconds_s, usd                                      |
| attempt.finished   | job, attempt, lane, state, usd, seconds_s                        |
| job.rerouted       | job, attempt, outcome, reason                                    |
| job.failed         | job, attempt, code, reason                                       |
| lease.lost         | job, attempt                                                     |
| jobs.rescued       | jobs, dead                                                       |
| jobs.released      | jobs                                                             |
| jobs.parked        | jobs, lane                                                       |
| answers.reused     | jobs                                                             |
| doorbells.rerung   | jobs, cause                                                      |
| budget.share       | budget, percent                                                  |
| message.refused    | queue, reason, bytes                                             |
| plan.changed       | intent, kind, model, reason                                      |
| plan.lacking       | intent, reason                                                   |
| lane.changed       | lane, before, state, reason                                      |
| service.away       | service, error                                                   |
| service.back       | service, seconds_s                                               |
"""

from __future__ import annotations

import logging
import warnings

log = logging.getLogger("waybill")


def emit(event: str, *, level: int = logging.INFO, **fields: object) -> None:
    """Log one event as `event key=value ...`; values with spaces are quoted."""
    if log.isEnabledFor(level):
        log.log(level, "%s %s", event, " ".join(f"{key}={_value(value)}" for key, value in fields.items()))


def _value(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    text = str(value)
    return repr(text) if not text or any(c.isspace() or c == '"' for c in text) else text


def configure(level: str) -> None:
    """Plain lines on stderr: time, level, message. The supervisor prefixes the process's name."""
    logging.basicConfig(level=level, format="%(asctime)s %(levelname).1s %(message)s", datefmt="%H:%M:%S", force=True)
    logging.captureWarnings(True)
    # Celery warns root because of pickle; our workers accept JSON only.
    warnings.filterwarnings("ignore", message=".*superuser privileges.*")
    for noisy in ("httpx2", "httpcore2", "aiohttp", "asyncio", "celery.worker.strategy", "celery.app.trace", "kombu"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, logging.getLevelName(level)))
