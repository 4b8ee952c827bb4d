"""What a job asks, as a hash; and the part of it that it has in common with other jobs.

Two jobs with the same question may share one answer. Everything counts that could change the answer, the tenant included:
a field that is not named in `NOT_ASKED` counts, so that a new one is safe until somebody decides otherwise.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Final

from waybill.contract import Job

NOT_ASKED: Final = frozenset(
    {"priority", "deadline_s", "latency", "idempotency_key", "stream", "reuse", "metadata", "key_id"}
)
"""Fields that say who waits for the answer and how, and never reach a model."""


@dataclass(frozen=True, slots=True)
class StablePart:
    """What many jobs begin with: tools, system, form of the answer and context.

    Attributes:
        key: Hash of it and of the tenant, so that tenants are never grouped together.
        bytes: UTF-8 bytes of the texts that a prompt begins with.
    """

    key: str
    bytes: int


def question(job: Job) -> str | None:
    """Hash of what is asked; None when the job wants an answer of its own."""
    if not job.reuse:
        return None
    # The order of keys is kept: in a schema it is the order in which a model writes its fields.
    asked = job.model_dump(mode="json", exclude=set(NOT_ASKED))
    if job.quality is None:
        del asked["quality"]  # answers from before there was one still count
    if job.wire is not None:
        del asked["wire"]["text_bytes"]  # counts the names of the two as well
        for how in ("stream", "stream_options"):
            asked["wire"]["body"].pop(how, None)
    return _digest(asked)


def stable_part(job: Job) -> StablePart | None:
    """The part of a job that others may share, or None when it has none."""
    if not (job.system or job.context or job.json_schema or job.labels):
        return None
    texts = (job.system or "", job.context or "")
    key = _digest([job.tenant, *texts, job.json_schema, job.labels])
    return StablePart(key, sum(len(text.encode()) for text in texts))


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, separators=(",", ":")).encode()).hexdigest()
