"""The tables, typed. The schema is made by migrations/; a test compares both. Statements live in queries.py.

Text that comes from outside (requests, answers, provider errors) is kept as ASCII JSON in `text` columns: NUL and any
Unicode come back unchanged, which neither `jsonb` nor plain `text` can promise.
"""

from __future__ import annotations

from datetime import date, datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    DateTime,
    ForeignKey,
    ForeignKeyConstraint,
    Identity,
    Index,
    LargeBinary,
    Numeric,
    SmallInteger,
    Text,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, UUID
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from waybill.contract import AttemptState, CostSource, GradeSource, JobState, Priority

_Money = Numeric(20, 12)
"""USD. The smallest price on offer (0.005 USD per million tokens, batch cache reads) needs nine decimals a token."""
_When = DateTime(timezone=True)


def _one_of(column: str, values: type[JobState | AttemptState | CostSource | GradeSource | Priority]) -> str:
    return f"{column} in ({', '.join(repr(str(v.value)) for v in values)})"


class Base(DeclarativeBase):
    """Metadata of all tables."""


class Run(Base):
    """Many jobs that were handed over together."""

    __tablename__ = "runs"
    __table_args__ = (
        Index("runs_fingerprint", "tenant", "fingerprint", unique=True),
        CheckConstraint("state in ('open', 'paused', 'cancelled')", name="runs_state"),
    )

    id: Mapped[str] = mapped_column(UUID(as_uuid=False), primary_key=True)
    tenant: Mapped[str] = mapped_column(Text)
    name: Mapped[str] = mapped_column(Text)
    fingerprint: Mapped[str] = mapped_column(Text)
    """Hash of what makes two runs the same work; submitting it again goes on with this run."""
    state: Mapped[str] = mapped_column(Text, server_default="open")
    created_at: Mapped[datetime] = mapped_column(_When, server_default=text("now()"))


class JobRow(Base):
    """A job's way through the fleet. Small and often updated; what was asked is in `payloads`."""

    __tablename__ = "jobs"
    __table_args__ = (
        CheckConstraint(_one_of("state", JobState), name="jobs_state"),
        CheckConstraint(_one_of("priority", Priority), name="jobs_priority"),
        CheckConstraint(
            "(state in ('succeeded', 'failed', 'cancelled', 'dead')) = (finished_at is not null)",
            name="jobs_final_has_time",
        ),
        CheckConstraint(
            "(state = 'running') = (lease_token is not null and lease_until is not null)", name="jobs_running_has_lease"
        ),
        CheckConstraint("state <> 'parked' or not_before is not null", name="jobs_parked_has_time"),
        CheckConstraint("state in ('queued', 'failed', 'cancelled') or route is not null", name="jobs_has_route"),
        CheckConstraint("attempt >= 0 and used >= 0 and losses >= 0", name="jobs_counts"),
        Index(
            "jobs_idempotency",
            "tenant",
            "idempotency_key",
            unique=True,
            postgresql_where=text("idempotency_key is not null"),
        ),
        Index("jobs_run_seq", "run_id", "seq", unique=True, postgresql_where=text("run_id is not null")),
        Index("jobs_waiting", "state", "published_at", postgresql_where=text("state in ('queued', 'routed')")),
        Index("jobs_leases", "lease_until", postgresql_where=text("state = 'running'")),
        Index("jobs_parked", "not_before", postgresql_where=text("state = 'parked'")),
        # What queued jobs have in common that take turns; waybill/ledger/turns.py reads it.
        Index(
            "jobs_turns",
            "priority",
            "tenant",
            text(
                "(coalesce(run_id::text, '') || ' ' || intent || ' ' || local_only::text || ' ' || coalesce(model, ''))"
            ),
            "id",
            postgresql_where=text("state = 'queued' and waits_for is null"),
        ),
        Index(
            "jobs_waits",
            "waits_for",
            "waits_until",
            postgresql_where=text("state = 'queued' and waits_for is not null"),
        ),
        # Jobs that start alike and have not begun: what a prompt cache may serve (waybill/ledger/turns.py).
        Index(
            "jobs_prefix",
            "prefix",
            "id",
            postgresql_where=text("state in ('queued', 'routed') and prefix is not null"),
        ),
        Index("jobs_finished", "finished_at", postgresql_where=text("finished_at is not null")),
        Index(
            "jobs_batched",
            "due_at",
            postgresql_where=text("provider = 'batch' and state in ('routed', 'running')"),
        ),
    )

    id: Mapped[str] = mapped_column(UUID(as_uuid=False), primary_key=True)
    run_id: Mapped[str | None] = mapped_column(ForeignKey("runs.id"))
    seq: Mapped[int | None]
    """Position in the run's input, from 0."""
    tenant: Mapped[str] = mapped_column(Text)
    intent: Mapped[str] = mapped_column(Text)
    state: Mapped[str] = mapped_column(Text, server_default="queued")
    priority: Mapped[str] = mapped_column(Text)
    idempotency_key: Mapped[str | None] = mapped_column(Text)
    request_hash: Mapped[str] = mapped_column(Text)
    """SHA-256 of the payload: the same key with another hash is a conflict."""
    key_id: Mapped[str | None] = mapped_column(Text)
    """The API key it was handed over with; None without one."""
    payload_bytes: Mapped[int]
    """Size of the prompt texts in UTF-8: what token estimates start from."""
    max_output_tokens: Mapped[int | None]
    model: Mapped[str | None] = mapped_column(Text)
    """Pinned model."""
    local_only: Mapped[bool] = mapped_column(server_default=text("false"))
    quality: Mapped[float | None]
    """Share of the flagship's quality that the job itself wants kept; None = as the policy says."""
    needs: Mapped[list[str]] = mapped_column(ARRAY(Text), server_default=text("'{}'"))
    """What a model must be able to do: `json_schema`, `labels`, `tools`, `vision`, `only:PROVIDER`."""
    question: Mapped[str | None] = mapped_column(Text)
    """Hash of what is asked (waybill/question.py); None: an answer of its own is wanted."""
    prefix: Mapped[str | None] = mapped_column(Text)
    """Hash of what it has in common with other jobs: system, context, form of the answer; None = nothing."""
    prefix_bytes: Mapped[int] = mapped_column(server_default="0")
    """UTF-8 bytes of that part, counted in `payload_bytes` too."""
    waits_for: Mapped[str | None] = mapped_column(UUID(as_uuid=False))
    """While queued: the job whose answer will be this one's too; the dispatcher passes it over until then."""
    waits_until: Mapped[datetime | None] = mapped_column(_When)
    """After this it is sent by itself, whatever became of the other."""
    stream: Mapped[bool] = mapped_column(server_default=text("false"))
    deadline_at: Mapped[datetime | None] = mapped_column(_When)
    reply_to: Mapped[str | None] = mapped_column(Text)
    """The gateway process that waits for the answer; pieces go into its Redis stream."""
    due_at: Mapped[datetime | None] = mapped_column(_When)
    """When the answer is wanted, where cheaper lanes may use the time until then; None = as soon as may be."""

    route: Mapped[list[dict[str, Any]] | None] = mapped_column(JSONB)
    """Candidates in order (contract.Candidate.as_json); set when dispatched."""
    route_index: Mapped[int] = mapped_column(SmallInteger, server_default="0")
    """The candidate whose turn it is."""
    provider: Mapped[str | None] = mapped_column(Text)
    """Who carries the current candidate: only this provider's workers, or the `batch` lane, can claim the job."""
    attempt: Mapped[int] = mapped_column(SmallInteger, server_default="0")
    """Attempts started so far; counted at claim."""
    used: Mapped[int] = mapped_column(SmallInteger, server_default="0")
    """Attempts that count against the budget: snoozed and handed-back ones do not."""
    losses: Mapped[int] = mapped_column(SmallInteger, server_default="0")
    """Times a worker was lost while it ran the job."""
    lease_token: Mapped[int | None] = mapped_column(BigInteger)
    """Fencing token: only its holder may settle the job."""
    lease_owner: Mapped[str | None] = mapped_column(Text)
    lease_until: Mapped[datetime | None] = mapped_column(_When)
    not_before: Mapped[datetime | None] = mapped_column(_When)
    cancel_requested: Mapped[bool] = mapped_column(server_default=text("false"))
    error_code: Mapped[str | None] = mapped_column(Text)
    error: Mapped[str | None] = mapped_column(Text)
    traceparent: Mapped[str | None] = mapped_column(Text)
    """W3C trace context of whoever submitted it; None = the job begins a trace of its own."""

    submitted_at: Mapped[datetime] = mapped_column(_When, server_default=text("now()"))
    published_at: Mapped[datetime] = mapped_column(_When, server_default=text("now()"))
    """When a doorbell was last rung for it; the reconciler rings again when this is long ago."""
    finished_at: Mapped[datetime | None] = mapped_column(_When)


class Payload(Base):
    """What was asked, as ASCII JSON of contract.Job. Apart from `jobs`, so that updates stay small and text can be purged."""

    __tablename__ = "payloads"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    body: Mapped[str] = mapped_column(Text)


class AttemptRow(Base):
    """One call to one model and what it cost. Written when claimed, so that no paid call is ever unknown."""

    __tablename__ = "attempts"
    __table_args__ = (
        CheckConstraint(_one_of("state", AttemptState), name="attempts_state"),
        CheckConstraint(
            f"cost_source is null or {_one_of('cost_source', CostSource)}", name="attempts_cost_source_known"
        ),
        CheckConstraint("cost_usd is null or (cost_usd >= 0 and cost_usd <> 'NaN')", name="attempts_cost"),
        CheckConstraint("(state = 'started') = (ended_at is null)", name="attempts_ended"),
        CheckConstraint(
            "state = 'started' or cost_source = 'unpriced' or cost_usd is not null", name="attempts_priced"
        ),
        CheckConstraint(
            "input_tokens >= 0 and output_tokens >= 0 and cache_read_tokens >= 0 and cache_write_tokens >= 0"
            " and cache_write_1h_tokens >= 0 and thinking_tokens >= 0",
            name="attempts_tokens",
        ),
        Index("attempts_begun", "started_at"),
    )

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(SmallInteger, primary_key=True)
    provider: Mapped[str] = mapped_column(Text)
    model: Mapped[str] = mapped_column(Text)
    service: Mapped[str] = mapped_column(Text)
    reason: Mapped[str] = mapped_column(Text)
    """Why this lane, in words."""
    state: Mapped[str] = mapped_column(Text, server_default="started")
    worker: Mapped[str] = mapped_column(Text)
    started_at: Mapped[datetime] = mapped_column(_When, server_default=text("now()"))
    ended_at: Mapped[datetime | None] = mapped_column(_When)
    first_token_s: Mapped[float | None]
    served_model: Mapped[str | None] = mapped_column(Text)
    request_id: Mapped[str | None] = mapped_column(Text)
    stop: Mapped[str | None] = mapped_column(Text)
    input_tokens: Mapped[int | None]
    output_tokens: Mapped[int | None]
    cache_read_tokens: Mapped[int | None]
    cache_write_tokens: Mapped[int | None]
    cache_write_1h_tokens: Mapped[int | None]
    thinking_tokens: Mapped[int | None]
    cost_usd: Mapped[Decimal | None] = mapped_column(_Money)
    cost_source: Mapped[str | None] = mapped_column(Text)
    flagship_usd: Mapped[Decimal | None] = mapped_column(_Money)
    """The same tokens at the flagship's interactive price, nothing cached, for the answer that became the result."""
    list_usd: Mapped[Decimal | None] = mapped_column(_Money)
    """The same tokens on this model, interactive, nothing cached; with the next two figures: what saved how much."""
    uncached_usd: Mapped[Decimal | None] = mapped_column(_Money)
    """The same tokens on the lane that served them, nothing cached."""
    cpu_s: Mapped[float | None]
    """Of our own models: the CPU it took; no provider bills it, so `cost_usd` is 0."""
    source_job: Mapped[str | None] = mapped_column(UUID(as_uuid=False))
    """For service `reuse`: the job whose answer this is. No key: the answer outlives it."""
    estimate_usd: Mapped[Decimal] = mapped_column(_Money)
    """What it is booked at while nobody knows what was billed."""
    budgets: Mapped[list[int] | None] = mapped_column(ARRAY(BigInteger))
    """Where it was reserved; None = in no budget."""
    reserved_usd: Mapped[Decimal | None] = mapped_column(_Money)
    """What was reserved in each of them until it ended."""
    price_version: Mapped[str | None] = mapped_column(Text)
    error_code: Mapped[str | None] = mapped_column(Text)
    error: Mapped[str | None] = mapped_column(Text)


class ProviderBatch(Base):
    """A provider batch. Its id is our marker: what is sent can be found again by it."""

    __tablename__ = "provider_batches"
    __table_args__ = (
        CheckConstraint("state in ('gathered', 'sending', 'sent', 'ended')", name="provider_batches_state"),
        CheckConstraint("state <> 'sent' or provider_id is not null", name="provider_batches_sent"),
        CheckConstraint("(state = 'ended') = (ended_at is not null)", name="provider_batches_ended"),
        Index("provider_batches_open", "look_at", postgresql_where=text("state <> 'ended'")),
        Index(
            "provider_batches_sending", "provider", "account", unique=True, postgresql_where=text("state = 'sending'")
        ),
        Index(
            "provider_batches_provider_id",
            "provider",
            "provider_id",
            unique=True,
            postgresql_where=text("provider_id is not null"),
        ),
    )

    id: Mapped[str] = mapped_column(UUID(as_uuid=False), primary_key=True)
    provider: Mapped[str] = mapped_column(Text)
    part: Mapped[str] = mapped_column(Text)
    """The model, where a batch has only one; else empty."""
    account: Mapped[str | None] = mapped_column(Text)
    state: Mapped[str] = mapped_column(Text)
    """`gathered`; `sending`: asked to be created, outcome not known; `sent`: the provider has it; `ended`: all rows settled."""
    rows: Mapped[int]
    payload_bytes: Mapped[int] = mapped_column(BigInteger)
    provider_id: Mapped[str | None] = mapped_column(Text)
    not_ours: Mapped[list[str]] = mapped_column(ARRAY(Text), server_default=text("'{}'"))
    """Batches that were taken for this one and turned out to be others'."""
    tries: Mapped[int] = mapped_column(SmallInteger, server_default="0")
    gathered_at: Mapped[datetime] = mapped_column(_When, server_default=text("now()"))
    sent_at: Mapped[datetime | None] = mapped_column(_When)
    """When it was last asked to be created."""
    cancel_at: Mapped[datetime | None] = mapped_column(_When)
    ended_at: Mapped[datetime | None] = mapped_column(_When)
    look_at: Mapped[datetime] = mapped_column(_When, server_default=text("now()"))
    holder: Mapped[str | None] = mapped_column(Text)
    """The poller that works on it now, until `held_until`."""
    held_until: Mapped[datetime | None] = mapped_column(_When)
    error: Mapped[str | None] = mapped_column(Text)
    """Why it is not further, for people."""


class ProviderBatchRow(Base):
    """One attempt in a batch; at the provider it is called `job_id-number`."""

    __tablename__ = "provider_batch_rows"
    __table_args__ = (
        CheckConstraint(
            "state in ('open', 'succeeded', 'errored', 'expired', 'cancelled', 'missing', 'unsent')",
            name="provider_batch_rows_state",
        ),
        CheckConstraint("(state = 'open') = (ended_at is null)", name="provider_batch_rows_ended"),
        Index("batch_rows_batch", "batch_id"),
    )

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    batch_id: Mapped[str] = mapped_column(ForeignKey("provider_batches.id"), primary_key=True)
    number: Mapped[int] = mapped_column(SmallInteger)
    token: Mapped[int] = mapped_column(BigInteger)
    """The job's fencing token when it was gathered: a job that has another one no longer waits for this row."""
    state: Mapped[str] = mapped_column(Text, server_default="open")
    ended_at: Mapped[datetime | None] = mapped_column(_When)


class Decision(Base):
    """Why a job went where it went: one row per routing and per settlement."""

    __tablename__ = "decisions"
    __table_args__ = (Index("decisions_job", "job_id"),)

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    attempt: Mapped[int | None] = mapped_column(SmallInteger)
    """The attempt it followed; None for routing."""
    outcome: Mapped[str] = mapped_column(Text)
    """`route`, `no_route`, `reuse`, `accept`, `retry`, `fallback`, `escalate`, `snooze`, `give_up`, `lost`, `cancel`, `hand_back`,
    `hedge`, `requeue`."""
    reason: Mapped[str] = mapped_column(Text)
    detail: Mapped[dict[str, Any] | None] = mapped_column(JSONB)
    policy_version: Mapped[str | None] = mapped_column(Text)
    at: Mapped[datetime] = mapped_column(_When, server_default=text("now()"))


class CascadeRow(Base):
    """A learned cascade: what decides after each answer of an intent whether it is kept or whom to ask next. See policies/cascading.py."""

    __tablename__ = "cascades"
    __table_args__ = (
        CheckConstraint("target > 0 and target <= 1", name="cascades_target"),
        Index("cascades_in_force", "intent", unique=True, postgresql_where=text("ended_at is null")),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    intent: Mapped[str] = mapped_column(Text)
    chain: Mapped[list[str]] = mapped_column(ARRAY(Text))
    """Its models in the order in which they may be asked, the flagship last."""
    target: Mapped[float]
    labels: Mapped[int]
    """Items it was fitted on."""
    quality: Mapped[float]
    """Lower bound of its ratio to the flagship, out of fold."""
    saving: Mapped[float]
    tenants: Mapped[list[str]] = mapped_column(ARRAY(Text), server_default=text("'{}'"))
    """Whose jobs it was fitted on: what was learned from them is deleted with their text."""
    source: Mapped[str] = mapped_column(Text)
    """`ledger`, or the name of the file."""
    model: Mapped[bytes] = mapped_column(LargeBinary)
    """As `policies.evaluate.packing.pack` writes it."""
    made_at: Mapped[datetime] = mapped_column(_When, server_default=text("now()"))
    ended_at: Mapped[datetime | None] = mapped_column(_When)
    """Set when another one takes its place; jobs under way go on with it."""
    drift: Mapped[str | None] = mapped_column(Text)
    """What audits found when they took it out of force; the flagship answers in its place until it is ended."""


class HeadRow(Base):
    """A label head: what answers an intent's labels without a language model. One in force per prompt. See policies/labelhead.py."""

    __tablename__ = "heads"

    intent: Mapped[str] = mapped_column(Text, primary_key=True)
    prompt: Mapped[str] = mapped_column(Text, primary_key=True)
    """The prompt version: system text, labels and the producer's own version (workers/gates.py)."""
    version: Mapped[str] = mapped_column(Text)
    """Hash of `model`: what its gate's records belong to."""
    labels: Mapped[int]
    """Answers of paid models it was fitted on."""
    tenants: Mapped[list[str]] = mapped_column(ARRAY(Text))
    """Whose jobs those were: it is deleted with their text."""
    model: Mapped[bytes] = mapped_column(LargeBinary)
    made_at: Mapped[datetime] = mapped_column(_When, server_default=text("now()"))


class Hold(Base):
    """What a person has stopped: a drained provider or a paused intent. A paused run says so in `runs.state`."""

    __tablename__ = "holds"
    __table_args__ = (CheckConstraint("kind in ('provider', 'intent')", name="holds_kind"),)

    kind: Mapped[str] = mapped_column(Text, primary_key=True)
    name: Mapped[str] = mapped_column(Text, primary_key=True)
    reason: Mapped[str] = mapped_column(Text)
    since: Mapped[datetime] = mapped_column(_When, server_default=text("now()"))


class Tenant(Base):
    """A tenant that is more than a name on jobs: its weight (turns it gets for each turn of another), or its suspension."""

    __tablename__ = "tenants"
    __table_args__ = (CheckConstraint("weight between 1 and 100", name="tenants_weight"),)

    name: Mapped[str] = mapped_column(Text, primary_key=True)
    weight: Mapped[int] = mapped_column(SmallInteger, server_default="1")
    created_at: Mapped[datetime] = mapped_column(_When, server_default=text("now()"))
    suspended_at: Mapped[datetime | None] = mapped_column(_When)
    """Its keys open nothing while this is set."""


class ApiKey(Base):
    """A key to the gateway. The key itself is shown once and kept nowhere."""

    __tablename__ = "api_keys"
    __table_args__ = (
        CheckConstraint("requests_per_minute > 0 and concurrency > 0", name="api_keys_rates"),
        Index("api_keys_hash", "hash", unique=True),
        Index("api_keys_tenant", "tenant"),
    )

    id: Mapped[str] = mapped_column(Text, primary_key=True)
    tenant: Mapped[str] = mapped_column(Text)
    name: Mapped[str] = mapped_column(Text)
    hash: Mapped[str] = mapped_column(Text)
    """SHA-256 of the key, hexadecimal. A key has 256 random bits, so a slow hash would only cost time."""
    hint: Mapped[str] = mapped_column(Text)
    """Its last characters, to tell keys apart."""
    scopes: Mapped[list[str]] = mapped_column(ARRAY(Text))
    requests_per_minute: Mapped[int | None]
    concurrency: Mapped[int | None]
    """Requests it may have open at once."""
    created_at: Mapped[datetime] = mapped_column(_When, server_default=text("now()"))
    expires_at: Mapped[datetime | None] = mapped_column(_When)
    revoked_at: Mapped[datetime | None] = mapped_column(_When)
    last_used_at: Mapped[datetime | None] = mapped_column(_When)
    """To within a minute."""


class Budget(Base):
    """What a tenant, key or run may spend. Read with `charges` added up: waybill/ledger/budgets.py."""

    __tablename__ = "budgets"
    __table_args__ = (
        CheckConstraint("scope in ('tenant', 'key', 'run')", name="budgets_scope"),
        CheckConstraint("period in ('total', 'day', 'month')", name="budgets_period"),
        CheckConstraint("at_cap in ('stop', 'park', 'cheaper')", name="budgets_at_cap"),
        CheckConstraint(
            "cap_usd >= 0 and cap_usd <> 'NaN' and reserved_usd >= 0 and spent_usd <> 'NaN'", name="budgets_amounts"
        ),
        CheckConstraint("(period = 'total') = (resets_at is null)", name="budgets_window"),
        Index("budgets_subject", "scope", "subject", "period", unique=True),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    scope: Mapped[str] = mapped_column(Text)
    subject: Mapped[str] = mapped_column(Text)
    """The tenant's name, the key's id or the run's id."""
    period: Mapped[str] = mapped_column(Text)
    cap_usd: Mapped[Decimal] = mapped_column(_Money)
    at_cap: Mapped[str] = mapped_column(Text, server_default="stop")
    """policies.budgets.AtCap"""
    spent_usd: Mapped[Decimal] = mapped_column(_Money, server_default="0")
    """In this period, as far as charges have been added up."""
    reserved_usd: Mapped[Decimal] = mapped_column(_Money, server_default="0")
    """For calls under way; never too little."""
    started_at: Mapped[datetime] = mapped_column(_When, server_default=text("now()"))
    resets_at: Mapped[datetime | None] = mapped_column(_When)
    alert_shares: Mapped[list[int]] = mapped_column(ARRAY(SmallInteger), server_default=text("'{50,80,100}'"))
    """Percent of the cap at which an alert is written."""
    alerted: Mapped[int] = mapped_column(SmallInteger, server_default="0")
    """The highest of them already written in this period."""


class Charge(Base):
    """How one attempt changes one budget, until it is added up."""

    __tablename__ = "charges"
    __table_args__ = (Index("charges_budget", "budget_id"),)

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    budget_id: Mapped[int] = mapped_column(BigInteger)
    released_usd: Mapped[Decimal] = mapped_column(_Money)
    spent_usd: Mapped[Decimal] = mapped_column(_Money)


class BudgetAlert(Base):
    """A budget passed a share of its cap."""

    __tablename__ = "budget_alerts"

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    budget_id: Mapped[int] = mapped_column(ForeignKey("budgets.id", ondelete="CASCADE"))
    share: Mapped[int] = mapped_column(SmallInteger)
    spent_usd: Mapped[Decimal] = mapped_column(_Money)
    cap_usd: Mapped[Decimal] = mapped_column(_Money)
    at: Mapped[datetime] = mapped_column(_When, server_default=text("now()"))


class Grade(Base):
    """How good one model's answer to one item was, by one source; the same source grading again replaces its score."""

    __tablename__ = "grades"
    __table_args__ = (
        CheckConstraint(_one_of("source", GradeSource), name="grades_source"),
        CheckConstraint("score >= 0 and score <= 1", name="grades_score"),
        CheckConstraint("cost_usd is null or (cost_usd >= 0 and cost_usd <> 'NaN')", name="grades_cost"),
        Index("grades_item", "item", "model", "source", unique=True),
        Index("grades_intent", "intent", "at"),
        Index("grades_job", "job_id"),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    item: Mapped[str] = mapped_column(Text)
    """What was answered: a job's id, or `file/item` of an import. Models are compared on equal items only."""
    job_id: Mapped[str | None] = mapped_column(ForeignKey("jobs.id", ondelete="SET NULL"))
    tenant: Mapped[str] = mapped_column(Text)
    intent: Mapped[str] = mapped_column(Text)
    model: Mapped[str] = mapped_column(Text)
    source: Mapped[str] = mapped_column(Text)
    score: Mapped[float]
    """0 (of no use) to 1 (right)."""
    cost_usd: Mapped[Decimal | None] = mapped_column(_Money)
    """What this model's answer to this item cost, as measured; None where nobody knows."""
    note: Mapped[str | None] = mapped_column(Text)
    detail: Mapped[dict[str, Any] | None] = mapped_column(JSONB)
    at: Mapped[datetime] = mapped_column(_When, server_default=text("now()"))


class Check(Base):
    """A job that exists only to check another one: its cost counts against what was saved, its answer is nobody's result."""

    __tablename__ = "checks"
    __table_args__ = (
        CheckConstraint("kind in ('shadow', 'judge')", name="checks_kind"),
        CheckConstraint("share > 0 and share <= 1", name="checks_share"),
        CheckConstraint("score between 0 and 1 and flagship between 0 and 1", name="checks_scores"),
        Index("checks_about", "about"),
        Index("checks_open", "job_id", postgresql_where=text("share is not null and ended_at is null")),
        Index("checks_cascade", "cascade", "job_id", postgresql_where=text("score is not null")),
    )

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    about: Mapped[str] = mapped_column(UUID(as_uuid=False))
    """The job whose answer is checked."""
    kind: Mapped[str] = mapped_column(Text)
    share: Mapped[float | None]
    """Of a standing check: the chance with which the job was drawn. None = somebody's command."""
    cascade: Mapped[int | None] = mapped_column(BigInteger)
    """Of an audit: the cascade that kept the answer."""
    reckoned_usd: Mapped[Decimal | None] = mapped_column(_Money)
    """What a standing check and its judge were likely to cost when it was handed over."""
    score: Mapped[float | None]
    """Of an audit: the kept answer's, from 0 to 1. No grade: answers that a cascade chose to keep say nothing about their model."""
    flagship: Mapped[float | None]
    """The flagship's beside it."""
    ended_at: Mapped[datetime | None] = mapped_column(_When)
    """When a standing check came to something, or to nothing."""


class AnswerRow(Base):
    """Who asks or has asked a question: the job whose answer others may share. One per question, tenant and policy."""

    __tablename__ = "answers"
    __table_args__ = (Index("answers_job", "job_id"), Index("answers_asked", "asked_at"))

    key: Mapped[str] = mapped_column(Text, primary_key=True)
    """policies/reuse.py makes it."""
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    asked_at: Mapped[datetime] = mapped_column(_When, server_default=text("now()"))


class AttemptTally(Base):
    """Sums over attempts that began in one hour. Made from `attempts` by tallies.py; never written by anything else."""

    __tablename__ = "attempt_tallies"

    bucket: Mapped[datetime] = mapped_column(_When, primary_key=True)
    """Beginning of the hour."""
    intent: Mapped[str] = mapped_column(Text, primary_key=True)
    provider: Mapped[str] = mapped_column(Text, primary_key=True)
    model: Mapped[str] = mapped_column(Text, primary_key=True)
    service: Mapped[str] = mapped_column(Text, primary_key=True)
    state: Mapped[str] = mapped_column(Text, primary_key=True)
    source: Mapped[str] = mapped_column(Text, primary_key=True)
    """`cost_source` of the attempts."""
    calls: Mapped[int] = mapped_column(BigInteger)
    usd: Mapped[Decimal] = mapped_column(_Money)
    flagship_usd: Mapped[Decimal] = mapped_column(_Money)
    input_tokens: Mapped[int] = mapped_column(BigInteger)
    output_tokens: Mapped[int] = mapped_column(BigInteger)
    cache_read_tokens: Mapped[int] = mapped_column(BigInteger)
    cache_write_tokens: Mapped[int] = mapped_column(BigInteger)


class JobTally(Base):
    """Counts of jobs that ended in one hour, with how long they took."""

    __tablename__ = "job_tallies"

    bucket: Mapped[datetime] = mapped_column(_When, primary_key=True)
    intent: Mapped[str] = mapped_column(Text, primary_key=True)
    priority: Mapped[str] = mapped_column(Text, primary_key=True)
    state: Mapped[str] = mapped_column(Text, primary_key=True)
    code: Mapped[str] = mapped_column(Text, primary_key=True)
    """`error_code` of failed and dead jobs, else empty."""
    slot: Mapped[int] = mapped_column(SmallInteger, primary_key=True)
    """Which of tallies.BOUNDS_S the time from submission to end fell below; the last slot is above all."""
    jobs: Mapped[int] = mapped_column(BigInteger)
    seconds: Mapped[float]


class TallyMark(Base):
    """Up to when the sums are made; what comes after is added up at each look."""

    __tablename__ = "tally_marks"
    __table_args__ = (CheckConstraint("kind in ('attempts', 'jobs')", name="tally_marks_kind"),)

    kind: Mapped[str] = mapped_column(Text, primary_key=True)
    upto: Mapped[datetime] = mapped_column(_When)


class TallyLate(Base):
    """Attempts that were still under way when their hour was summed up (a batch lane takes a day)."""

    __tablename__ = "tally_late"
    __table_args__ = (
        ForeignKeyConstraint(["job_id", "number"], ["attempts.job_id", "attempts.number"], ondelete="CASCADE"),
    )

    job_id: Mapped[str] = mapped_column(UUID(as_uuid=False), primary_key=True)
    number: Mapped[int] = mapped_column(SmallInteger, primary_key=True)


class ProviderBill(Base):
    """What a provider says a day (UTC) cost, to be compared with the ledger."""

    __tablename__ = "provider_bills"
    __table_args__ = (CheckConstraint("usd >= 0 and usd <> 'NaN'", name="provider_bills_usd"),)

    provider: Mapped[str] = mapped_column(Text, primary_key=True)
    day: Mapped[date] = mapped_column(primary_key=True)
    usd: Mapped[Decimal] = mapped_column(_Money)
    noted_at: Mapped[datetime] = mapped_column(_When, server_default=text("now()"))


class Retention(Base):
    """For how many days after its end a job's text is kept; tenant `*` is for those without a row."""

    __tablename__ = "retention"
    __table_args__ = (CheckConstraint("days between 0 and 36500", name="retention_days"),)

    tenant: Mapped[str] = mapped_column(Text, primary_key=True)
    days: Mapped[int]


class ResultRow(Base):
    """The answer. One per job, whatever happens."""

    __tablename__ = "results"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    attempt: Mapped[int] = mapped_column(SmallInteger)
    body: Mapped[str] = mapped_column(Text)
    """ASCII JSON {"text": ..., "data": ...}."""


class File(Base):
    """A file as OpenAI's Files API has them: an upload, or what a batch wrote (made from the ledger when it is read)."""

    __tablename__ = "files"
    __table_args__ = (Index("files_tenant", "tenant", "created_at"),)

    id: Mapped[str] = mapped_column(Text, primary_key=True)
    tenant: Mapped[str] = mapped_column(Text)
    purpose: Mapped[str] = mapped_column(Text)
    filename: Mapped[str] = mapped_column(Text)
    bytes: Mapped[int] = mapped_column(BigInteger, server_default="0")
    batch_id: Mapped[str | None] = mapped_column(Text)
    """Whose output it is; None for uploads."""
    created_at: Mapped[datetime] = mapped_column(_When, server_default=text("now()"))
    is_complete: Mapped[bool] = mapped_column(server_default=text("false"))
    """False while it is uploaded: then nobody sees it."""


class FilePart(Base):
    """A piece of an upload, so that no process holds all of it."""

    __tablename__ = "file_parts"

    file_id: Mapped[str] = mapped_column(ForeignKey("files.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    body: Mapped[bytes] = mapped_column(LargeBinary)


class Batch(Base):
    """A batch as a provider's batch API has them; its requests are the jobs of a run."""

    __tablename__ = "batches"
    __table_args__ = (
        CheckConstraint("dialect in ('openai', 'anthropic')", name="batches_dialect"),
        CheckConstraint(
            "status in ('validating', 'failed', 'in_progress', 'finalizing', 'completed', 'expired', 'cancelling',"
            " 'cancelled')",
            name="batches_status",
        ),
        Index("batches_tenant", "tenant", "dialect", "created_at"),
        Index("batches_open", "look_at", postgresql_where=text("ended_at is null")),
    )

    id: Mapped[str] = mapped_column(Text, primary_key=True)
    tenant: Mapped[str] = mapped_column(Text)
    key_id: Mapped[str | None] = mapped_column(Text)
    dialect: Mapped[str] = mapped_column(Text)
    endpoint: Mapped[str] = mapped_column(Text)
    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id"))
    input_file_id: Mapped[str] = mapped_column(Text)
    headers: Mapped[dict[str, Any]] = mapped_column(JSONB, server_default=text("'{}'"))
    """Of the request that made it: version, betas, Waybill's options."""
    metadata_: Mapped[dict[str, Any] | None] = mapped_column("metadata", JSONB)
    model: Mapped[str | None] = mapped_column(Text)
    status: Mapped[str] = mapped_column(Text, server_default="validating")
    errors: Mapped[list[dict[str, Any]] | None] = mapped_column(JSONB)
    """Why it failed as a whole."""
    total: Mapped[int] = mapped_column(server_default="0")
    counts: Mapped[dict[str, Any] | None] = mapped_column(JSONB)
    """How its requests ended; set once, at its end."""
    output_file_id: Mapped[str | None] = mapped_column(Text)
    error_file_id: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(_When, server_default=text("now()"))
    expires_at: Mapped[datetime] = mapped_column(_When)
    in_progress_at: Mapped[datetime | None] = mapped_column(_When)
    cancelling_at: Mapped[datetime | None] = mapped_column(_When)
    finalizing_at: Mapped[datetime | None] = mapped_column(_When)
    ended_at: Mapped[datetime | None] = mapped_column(_When)
    look_at: Mapped[datetime] = mapped_column(_When, server_default=text("now()"))
    """When a gateway takes it up next; moved forward by the one that has it in hand."""


class BatchRow(Base):
    """One request of a batch: the job at this position of the run, or what is wrong with it."""

    __tablename__ = "batch_rows"

    batch_id: Mapped[str] = mapped_column(ForeignKey("batches.id", ondelete="CASCADE"), primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True)
    custom_id: Mapped[str] = mapped_column(Text)
    error: Mapped[str | None] = mapped_column(Text)
    """ASCII JSON {"status": ..., "body": ...} of a request that could not be accepted."""


class Webhook(Base):
    """Where a tenant wants to be told."""

    __tablename__ = "webhooks"
    __table_args__ = (Index("webhooks_tenant", "tenant"),)

    id: Mapped[str] = mapped_column(Text, primary_key=True)
    tenant: Mapped[str] = mapped_column(Text)
    url: Mapped[str] = mapped_column(Text)
    events: Mapped[list[str]] = mapped_column(ARRAY(Text))
    description: Mapped[str] = mapped_column(Text)
    secret: Mapped[str] = mapped_column(Text)
    """What deliveries are signed with; shown once, kept because signing needs it."""
    created_at: Mapped[datetime] = mapped_column(_When, server_default=text("now()"))
    seen_until: Mapped[datetime] = mapped_column(_When, server_default=text("now()"))
    """What ended before this has its deliveries."""
    disabled_at: Mapped[datetime | None] = mapped_column(_When)
    disabled_why: Mapped[str | None] = mapped_column(Text)


class WebhookDelivery(Base):
    """One event for one webhook, until it was taken or given up."""

    __tablename__ = "webhook_deliveries"
    __table_args__ = (
        CheckConstraint("state in ('waiting', 'delivered', 'failed')", name="webhook_deliveries_state"),
        Index("webhook_deliveries_once", "webhook_id", "event", "subject", unique=True),
        Index("webhook_deliveries_due", "due_at", postgresql_where=text("state = 'waiting'")),
    )

    id: Mapped[str] = mapped_column(Text, primary_key=True)
    webhook_id: Mapped[str] = mapped_column(ForeignKey("webhooks.id", ondelete="CASCADE"))
    event: Mapped[str] = mapped_column(Text)
    subject: Mapped[str] = mapped_column(Text)
    """What it is about: the same thing is told once."""
    payload: Mapped[str] = mapped_column(Text)
    state: Mapped[str] = mapped_column(Text, server_default="waiting")
    tries: Mapped[int] = mapped_column(SmallInteger, server_default="0")
    due_at: Mapped[datetime] = mapped_column(_When, server_default=text("now()"))
    created_at: Mapped[datetime] = mapped_column(_When, server_default=text("now()"))
    delivered_at: Mapped[datetime | None] = mapped_column(_When)
    status: Mapped[int | None] = mapped_column(SmallInteger)
    error: Mapped[str | None] = mapped_column(Text)
