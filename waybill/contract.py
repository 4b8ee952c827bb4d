"""The values that producers, ledger and workers share: Job, states, Usage, Result. No I/O, no logic of routing.

A *job* is the request. An *attempt* is one call to one model. A *lane* is provider + model + service.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any, Final, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

MAX_PAYLOAD_BYTES: Final = 8 * 1024 * 1024
"""A job's request as JSON. The largest context on offer (1.05 M tokens) is about 4 MB of text."""
MAX_SCHEMA_DEPTH: Final = 64
BATCH_SERVICE: Final = "batch"
PATIENT_S: Final = 3600.0
"""Who gives interactive work at least this long until its deadline does not sit and wait for it."""
LATENCY_S: Final[Mapping[str, float | None]] = {"interactive": None, "minutes": 900, "hours": 6 * 3600, "day": 86400}
"""What the words of `Job.latency` stand for, in seconds; None = at once."""


class Priority(StrEnum):
    """Who waits for whom. The values are the class suffixes of the provider queues."""

    INTERACTIVE = "hi"
    BATCH = "lo"


class JobState(StrEnum):
    """Where a job is. Edges: `JOB_EDGES`, drawn in docs/state_machine.md."""

    QUEUED = "queued"
    """Accepted and committed; waits for the dispatcher. The row is the outbox."""
    ROUTED = "routed"
    """Has a route; waits on the queue of the current candidate's provider."""
    RUNNING = "running"
    """Claimed by a worker under a lease."""
    PARKED = "parked"
    """Waits until `not_before`, then goes back to `routed`."""
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    DEAD = "dead"
    """Dead letter: kept with its payload, for a person to look at."""

    @property
    def is_final(self) -> bool:
        """Whether nothing but a person's `requeue` changes it any more."""
        return self in FINAL_STATES


FINAL_STATES: Final = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED, JobState.DEAD})

_S = JobState
JOB_EDGES: Final = frozenset(
    {
        (_S.QUEUED, _S.ROUTED),  # dispatched
        (_S.QUEUED, _S.SUCCEEDED),  # answered with an earlier answer to the same question
        (_S.QUEUED, _S.FAILED),  # no route
        (_S.QUEUED, _S.CANCELLED),
        (_S.ROUTED, _S.RUNNING),  # claimed
        (_S.ROUTED, _S.CANCELLED),
        (_S.RUNNING, _S.SUCCEEDED),
        (_S.RUNNING, _S.FAILED),  # given up
        (_S.RUNNING, _S.ROUTED),  # retry, fallback, escalation, handed back, lease lost
        (_S.RUNNING, _S.PARKED),  # snoozed
        (_S.RUNNING, _S.CANCELLED),
        (_S.RUNNING, _S.DEAD),  # lost its worker too often
        (_S.PARKED, _S.ROUTED),  # released
        (_S.PARKED, _S.CANCELLED),
        (_S.DEAD, _S.QUEUED),  # requeued by hand
        (_S.FAILED, _S.QUEUED),  # requeued by hand
    }
)
"""Every change of state that the ledger's trigger lets through (plus insertion as `queued`)."""


class AttemptState(StrEnum):
    """How one call to one model ended."""

    STARTED = "started"
    """Claimed; the call may be on its way."""
    SUCCEEDED = "succeeded"
    """Its answer is the job's result."""
    WEAK = "weak"
    """Answered and paid, but not good enough: escalated."""
    THROTTLED = "throttled"
    FAILED = "failed"
    BROKEN = "broken"
    """An answer came that cannot be trusted; it may have been billed."""
    UNKNOWN = "unknown"
    """The worker was lost with the call on its way; carries an estimated cost."""
    FENCED = "fenced"
    """Answered after another worker had taken the job over; paid, and thrown away."""
    CANCELLED = "cancelled"
    """Cancelled after the call began: may have been billed, cost estimated."""
    RELEASED = "released"
    """Handed back before the call was made (drain, no local budget); cost 0, no attempt used up."""


class CostSource(StrEnum):
    """Where an attempt's `cost_usd` comes from."""

    USAGE = "usage"
    """The provider's own usage, priced."""
    ESTIMATED = "estimated"
    """Nobody knows what was billed; an upper estimate."""
    NOTHING = "nothing"
    """The provider cannot have charged."""
    UNPRICED = "unpriced"
    """Usage is known and the price is not; `cost_usd` is NULL, never 0."""


class GradeSource(StrEnum):
    """Who says how good an answer was, the most to be believed first."""

    USER = "user"
    """`Client.feedback`: whoever asked."""
    IMPORT = "import"
    """An evaluation that was made elsewhere, with known right answers."""
    JUDGE = "judge"
    """The flagship read the answer."""
    SHADOW = "shadow"
    """Another model answered the same; the answers were compared."""
    AUDIT = "audit"
    """A local answer beside the paid one that replaced it."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens that one call used. All counts >= 0.

    Attributes:
        input_tokens: Prompt tokens at the full input price (neither read from nor written to a cache).
        cache_read_tokens: Prompt tokens read from the provider's cache.
        cache_write_tokens: Prompt tokens written at the short-lived rate (5 min Claude, 30 min GPT).
        cache_write_1h_tokens: Prompt tokens written at the long-lived rate.
        output_tokens: Generated tokens, thinking included.
        thinking_tokens: The part of `output_tokens` that was thinking.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    cache_write_1h_tokens: int = 0
    thinking_tokens: int = 0

    @property
    def prompt_tokens(self) -> int:
        """All prompt tokens, cached or not: what context windows and price bands count."""
        return self.input_tokens + self.cache_read_tokens + self.cache_write_tokens + self.cache_write_1h_tokens


class Message(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    role: Literal["user", "assistant"]
    content: str

    @field_validator("content")
    @classmethod
    def _no_lone_surrogates(cls, text: str) -> str:
        check_text(text)
        return text


Dialect = Literal["chat", "responses", "messages"]
"""OpenAI Chat Completions, OpenAI Responses, Anthropic Messages."""


class Wire(BaseModel):
    """A request in a provider's own dialect, as the gateway took it. Lanes of that dialect get it unchanged.

    Attributes:
        dialect: Of the body, and of the answer.
        body: The request without Waybill's own options.
        text_bytes: What token estimates start from: its text, attachments at a flat size.
        needs: Capabilities a model must have (`tools`, `vision`), `only:PROVIDER` where nobody else can take it, and
            `live:PROVIDER` where that one takes it in a call but not as a row of a batch.
        version: Anthropic's API version as the client sent it, where it is one we know.
        betas: Anthropic's beta features as the client sent them, those that we let through.
        drop: Parameters that may be left out where a lane does not take them; the client said so.
        restart: The client takes a new answer after a broken one, in the same stream.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    dialect: Dialect
    body: dict[str, Any]
    text_bytes: int = Field(ge=0)
    needs: tuple[str, ...] = ()
    version: str | None = None
    betas: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    restart: bool = False


def _depth(value: object, limit: int) -> int:
    """Nesting depth of a JSON value, found without recursion; stops counting past `limit`."""
    deepest, stack = 0, [(value, 1)]
    while stack:
        node, level = stack.pop()
        deepest = max(deepest, level)
        if deepest > limit:
            break
        if isinstance(node, Mapping):
            stack.extend((child, level + 1) for child in node.values())
        elif isinstance(node, list | tuple):
            stack.extend((child, level + 1) for child in node)
    return deepest


class Job(BaseModel):
    """A request: what is to be done, how good and how soon. Frozen; validated when made.

    Attributes:
        intent: What kind of work this is ("extraction", "summarization", ...): the policy file maps it to models.
            `auto` (or None) = not said: the dispatcher guesses it from the prompt, or takes the plan of `auto`.
        prompt: The user turn. Either this or `messages`.
        messages: A conversation, oldest turn first, ending with a user turn.
        wire: Instead of both: a request in a provider's dialect, which the gateway carries.
        system: Instructions that stay the same over many jobs; the part that prompt caches keep.
        context: Text that many jobs share (a contract, a code base), sent before the prompt; prompt caches keep it too.
        json_schema: JSON Schema that the answer must fit; the result's `data` is then the parsed object.
        labels: Classification: the answer is exactly one of these (2..100).
        model: Pins the model; nothing else is ever tried.
        local_only: The text must not leave this machine's models (sensitive data).
        quality: Share of the flagship's quality that this job wants kept, above 0 and up to 1; None = as the policy file says.
            The cheapest model of the intent's chain that outcomes show to keep it is asked first. Not beside `model` or
            `local_only`, which leave nothing to choose.
        priority: Interactive work goes before batch work.
        max_output_tokens: Upper bound for the answer, thinking included; None = the intent's default.
        deadline_s: Seconds from submission after which the answer is of no use; None = no deadline. Time that is left until
            then is used to save: half-price lanes are taken that make it (batch work always, interactive work from an
            hour on).
        latency: How soon the answer is wanted: `interactive` (at once), `minutes` (15), `hours` (6), `day`. A wish that
            chooses lanes, not a deadline: a later answer is still an answer. None = as `deadline_s` says.
        idempotency_key: Same tenant and key = same job, however often it is submitted.
        tenant: Whose job it is (accounting, isolation).
        key_id: Of the API key it was handed over with (set by the gateway; no part of the request), None without one.
        stream: Deltas are wanted while the answer is made (`Client.stream` sets it).
        reuse: An earlier answer of this tenant to the very same question will do, if there is a fresh one
            (waybill/question.py says what counts as the same).
        metadata: Short strings of the caller's, returned unchanged, never sent to a provider.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    intent: str = Field(default="auto", pattern=r"^[a-z][a-z0-9_-]{0,63}$")
    prompt: str = ""
    messages: tuple[Message, ...] = ()
    wire: Wire | None = None
    system: str | None = None
    context: str | None = None
    json_schema: dict[str, Any] | None = None
    labels: tuple[str, ...] = ()
    model: str | None = Field(default=None, max_length=200)
    local_only: bool = False
    quality: float | None = Field(default=None, gt=0, le=1)
    priority: Priority = Priority.INTERACTIVE
    max_output_tokens: int | None = Field(default=None, ge=1, le=1_000_000)
    deadline_s: float | None = Field(default=None, gt=0, le=30 * 86400)
    latency: Literal["interactive", "minutes", "hours", "day"] | None = None
    idempotency_key: str | None = Field(default=None, min_length=1, max_length=200)
    tenant: str = Field(default="default", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$")
    key_id: str | None = Field(default=None, max_length=100, exclude=True)
    stream: bool = False
    reuse: bool = True
    metadata: dict[str, str] = Field(default_factory=dict)

    @field_validator("intent", mode="before")
    @classmethod
    def _intent_may_be_unsaid(cls, intent: object) -> object:
        return "auto" if intent is None else intent

    @field_validator("prompt", "system", "context", "model", "idempotency_key")
    @classmethod
    def _no_lone_surrogates(cls, text: str | None) -> str | None:
        # Postgres and both wires take UTF-8 only; refusing here beats failing after the job was accepted.
        if text is not None:
            check_text(text)
        return text

    @field_validator("model", "idempotency_key")
    @classmethod
    def _no_nul(cls, text: str | None) -> str | None:
        # These are columns of their own, and Postgres keeps no NUL in a text column.
        if text is not None and "\0" in text:
            raise ValueError("holds a NUL character")
        return text

    @field_validator("labels")
    @classmethod
    def _labels_are_text(cls, labels: tuple[str, ...]) -> tuple[str, ...]:
        for label in labels:
            check_text(label)
        return labels

    @field_validator("json_schema")
    @classmethod
    def _schema_is_shallow(cls, schema: dict[str, Any] | None) -> dict[str, Any] | None:
        if schema is not None and _depth(schema, MAX_SCHEMA_DEPTH) > MAX_SCHEMA_DEPTH:
            raise ValueError(f"is nested deeper than {MAX_SCHEMA_DEPTH} levels; flatten it")
        return schema

    @field_validator("metadata")
    @classmethod
    def _metadata_is_small(cls, metadata: dict[str, str]) -> dict[str, str]:
        if len(metadata) > 32 or any(len(k) > 64 or len(v) > 512 for k, v in metadata.items()):
            raise ValueError("takes at most 32 entries, keys up to 64 and values up to 512 characters")
        for key, value in metadata.items():
            check_text(key)
            check_text(value)
        return metadata

    @model_validator(mode="after")
    def _is_answerable(self) -> Job:
        if bool(self.prompt) + bool(self.messages) + (self.wire is not None) != 1:
            raise ValueError("needs either `prompt` (not empty) or `messages`")
        if self.wire is not None and (self.system is not None or self.context is not None or self.labels):
            raise ValueError("`wire` holds the whole request; give no `system`, `context` or `labels` beside it")
        if self.messages and self.messages[-1].role != "user":
            raise ValueError("`messages` must end with a user turn: current models refuse prefilled answers")
        if self.quality is not None and (self.model is not None or self.local_only):
            raise ValueError(
                "takes no `quality` beside `model` or `local_only`: it chooses among the models of an intent"
            )
        if self.labels and self.json_schema is not None:
            raise ValueError("takes `labels` or `json_schema`, not both")
        if self.labels and not 2 <= len(set(self.labels)) == len(self.labels) <= 100:
            raise ValueError("`labels` needs 2 to 100 different labels")
        return self

    @property
    def due_s(self) -> float | None:
        """Seconds from submission in which the answer is wanted; None = as soon as may be."""
        if self.stream or self.latency == "interactive":
            return None
        if self.wire is not None and self.priority is not Priority.BATCH:
            return None  # its client waits on an open connection
        wish = LATENCY_S[self.latency] if self.latency is not None else None
        if wish is not None:
            return wish if self.deadline_s is None else min(wish, self.deadline_s)
        is_patient = self.priority is Priority.BATCH or (self.deadline_s or 0) >= PATIENT_S
        return self.deadline_s if is_patient else None

    def payload(self) -> str:
        """The request as the ledger keeps it: ASCII JSON, so that NUL and any Unicode come back as they were."""
        return json.dumps(self.model_dump(mode="json", exclude_defaults=True), separators=(",", ":"), allow_nan=False)

    def fingerprint(self) -> str:
        """What makes two requests with one idempotency key the same: the payload, but for how the answer is delivered."""
        if self.wire is None:
            return self.payload()
        body = {name: value for name, value in self.wire.body.items() if name not in ("stream", "stream_options")}
        wire = self.wire.model_copy(update={"body": body, "text_bytes": 0})
        return self.model_copy(update={"stream": False, "wire": wire}).payload()

    @classmethod
    def from_payload(cls, payload: str) -> Job:
        """The inverse of `payload`."""
        return cls.model_validate(json.loads(payload))


def check_text(text: str) -> None:
    """Raise ValueError when `text` holds a lone surrogate, which no UTF-8 can carry."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as exc:
        raise ValueError(
            f"holds the lone surrogate U+{ord(text[exc.start]):04X} at character {exc.start}; it is not valid Unicode"
        ) from None


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way a job may go: a lane with what it is expected to cost and why it stands here.

    Attributes:
        provider: Whose model it is.
        model: Catalogue id, which is also what the provider is asked for.
        service: `interactive`, `flex`, `batch` or `local`.
        reason: Why this candidate is in the route, for people.
        estimate_usd: Upper estimate of one attempt; what an attempt of unknown outcome is booked at.
        leave_s: Cheap lanes: so long before it is due the job goes on to the model's interactive lane.
        again_s: Cheap lanes: with more time than this a job that was not done goes to the same lane again.
        cascade: Number of the learned cascade that decides about its answer; None = none does.
    """

    provider: str
    model: str
    service: str
    reason: str
    estimate_usd: Decimal = Decimal(0)
    leave_s: float | None = None
    again_s: float | None = None
    cascade: int | None = None

    @property
    def carrier(self) -> str:
        """Whose queue it waits in: the provider's, or `batch` for provider batches."""
        return BATCH_SERVICE if self.service == BATCH_SERVICE else self.provider

    def as_json(self) -> dict[str, Any]:
        """As the ledger keeps it (`jobs.route`)."""
        more = {"leave_s": self.leave_s, "again_s": self.again_s, "cascade": self.cascade}
        return {
            "provider": self.provider,
            "model": self.model,
            "service": self.service,
            "reason": self.reason,
            "estimate_usd": str(self.estimate_usd),
            **{name: value for name, value in more.items() if value is not None},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Candidate:
        """The inverse of `as_json`."""
        return cls(
            provider=data["provider"],
            model=data["model"],
            service=data["service"],
            reason=data["reason"],
            estimate_usd=Decimal(data["estimate_usd"]),
            leave_s=data.get("leave_s"),
            again_s=data.get("again_s"),
            cascade=data.get("cascade"),
        )


@dataclass(frozen=True, slots=True)
class Result:
    """A job's answer and what became of it.

    Attributes:
        job_id: The job.
        text: The answer as text.
        data: The parsed object when the job had a schema, the label when it had labels; else None.
        model: Model that the provider says it served.
        lane: `provider/model/service` that answered.
        reason: Why that lane.
        attempts: Calls made, failed ones included; 0 when an earlier answer was reused.
        usd: All attempts together; None when one of them has no known price.
        usage: Of the attempt that answered.
        finished_at: When the result was committed (UTC).
        metadata: The caller's own, unchanged.
    """

    job_id: str
    text: str
    data: Any
    model: str
    lane: str
    reason: str
    attempts: int
    usd: Decimal | None
    usage: Usage
    finished_at: datetime
    metadata: Mapping[str, str] = field(default_factory=dict)


def lane_name(provider: str, model: str, service: str) -> str:
    """`provider/model/service`: what has a price, a limit and a latency."""
    return f"{provider}/{model}/{service}"


def new_job_id(now_ms: int, entropy: bytes) -> str:
    """A UUID (version 7): sorts by time, so that the ledger's indexes grow at one end.

    Args:
        now_ms: Milliseconds since the epoch.
        entropy: 10 random bytes.
    """
    value = (now_ms & (2**48 - 1)) << 80 | int.from_bytes(entropy[:10], "big")
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    return str(UUID(int=value))
