"""The metrics that Waybill exports: names, labels and meanings in one table. The names are a contract with dashboards and alerts.

All labels come from closed sets: intents and models of the policy, our own states and codes. No tenant, no job, no key: those
are on the ledger. docs/metrics.md shows the same table; a test compares.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from waybill.names import METRIC_PREFIX

LANE: Final = ("provider", "model", "service")


@dataclass(frozen=True, slots=True)
class Metric:
    """One family of time series. A counter's name ends in `_total`; units are in the name."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    labels: tuple[str, ...]
    help: str


def _metric(kind: Literal["counter", "gauge", "histogram"], name: str, labels: tuple[str, ...], text: str) -> Metric:
    return Metric(f"{METRIC_PREFIX}{name}", kind, labels, text)


JOBS: Final = _metric("gauge", "jobs", ("intent", "state"), "Jobs that are not final.")
OLDEST: Final = _metric(
    "gauge", "job_oldest_age_seconds", ("queue", "priority"), "Time since the oldest waiting job was submitted."
)
FINISHED: Final = _metric("counter", "jobs_finished_total", ("intent", "priority", "state"), "Jobs that became final.")
DURATION: Final = _metric(
    "histogram", "job_end_to_end_seconds", ("intent", "priority"), "From submission to the result, of succeeded jobs."
)
FAILURES: Final = _metric("counter", "job_failures_total", ("intent", "code"), "Jobs that ended as failed, by code.")
DEAD: Final = _metric("counter", "dead_letters_total", ("code",), "Jobs put aside as dead letters.")
CALLS: Final = _metric(
    "counter", "provider_calls_total", ("intent", *LANE, "outcome"), "Calls by how they ended (attempt states)."
)
THROTTLED: Final = _metric("counter", "provider_429_total", ("provider", "model"), "Calls that the provider throttled.")
ESCALATIONS: Final = _metric("counter", "escalations_total", ("intent",), "Answers that were paid and not good enough.")
GOOD_ENOUGH: Final = _metric(
    "gauge", "good_enough_ratio", ("intent",), "Share of the last hour's answers that were good enough as they came."
)
SPEND: Final = _metric("counter", "spend_usd_total", ("intent", *LANE), "What calls cost, failed and wasted ones too.")
BASELINE: Final = _metric(
    "counter",
    "baseline_usd_total",
    ("intent",),
    "The same answers' tokens at the flagship's price: the saving is the gap.",
)
SPEND_HOUR: Final = _metric("gauge", "spend_usd_last_hour", (), "What calls that began in the last hour cost.")
SPEND_USUAL: Final = _metric(
    "gauge", "spend_usd_usual_hour", (), "Median of this hour of day over a fortnight; absent below three days."
)
BUDGETS: Final = _metric(
    "gauge",
    "budgets_used",
    ("scope", "share"),
    "Budgets of which at least this share (80, 100 %) is spent; those of standing checks are not counted.",
)
BUDGET_LEFT: Final = _metric(
    "gauge", "budget_remaining_usd", ("scope",), "What the budget nearest to its cap has left."
)
GRADE: Final = _metric("gauge", "grade_mean", ("intent",), "Mean grade (0 to 1) of the last day's graded answers.")
RESERVED: Final = _metric("gauge", "spend_reserved_usd", (), "Upper estimate of the calls under way.")
TOKENS: Final = _metric(
    "counter", "tokens_total", ("provider", "model", "kind"), "Tokens: input, output, cache_read, cache_write."
)
CACHE_READ: Final = _metric(
    "gauge", "cache_read_ratio", ("provider", "model"), "Share of prompt tokens read from the provider's cache."
)
UNPRICED: Final = _metric("counter", "unpriced_calls_total", ("provider", "model"), "Calls whose price is unknown.")
ESTIMATED: Final = _metric(
    "counter",
    "usage_estimated_total",
    ("provider", "model"),
    "Calls booked at an estimate: nobody knows what was billed.",
)
FENCED: Final = _metric("counter", "fenced_commits_total", (), "Answers that came after the job was taken over.")
LEASES: Final = _metric("counter", "leases_expired_total", (), "Jobs taken from a worker that was lost.")
CLAIMS_LOST: Final = _metric("counter", "claims_lost_total", (), "Leases that a living worker found taken from it.")
RERUNG: Final = _metric("counter", "doorbells_rerung_total", (), "Jobs whose message was lost and sent again.")
REROUTES: Final = _metric(
    "counter", "reroutes_total", ("from", "to", "reason"), "Changes of lane after a failure, by model and failure code."
)
REFUSED_MESSAGES: Final = _metric("counter", "messages_refused_total", (), "Messages that were no doorbells.")
RELOADS_REFUSED: Final = _metric(
    "counter", "config_reloads_refused_total", (), "Changed policy files that were wrong and not taken."
)
CONFIG_BROKEN: Final = _metric(
    "gauge", "config_broken", (), "1 while the policy file that lies there is refused and an older one is in force."
)
EVENTS: Final = _metric("counter", "events_total", ("event",), "Events of workers/telemetry.py, of all processes.")
HEADROOM: Final = _metric(
    "gauge",
    "provider_headroom_ratio",
    ("provider", "model", "kind"),
    "Share of a rate limit that is left, best account.",
)
BREAKER: Final = _metric("gauge", "breaker_state", (*LANE, "state"), "1 for the state that a lane is in, else 0.")
ACCOUNTS_REFUSED: Final = _metric(
    "gauge", "accounts_refused", ("provider",), "Accounts left alone (key, payment, limit)."
)
IN_FLIGHT: Final = _metric("gauge", "calls_in_flight", LANE, "Calls under way.")
ROUTES: Final = _metric(
    "gauge", "intent_routes_available", ("intent",), "Models of the intent's chain that can be called now."
)
HOLDS: Final = _metric(
    "gauge", "holds", ("kind",), "What people have stopped: drained providers, paused intents and runs."
)
RUNS: Final = _metric("gauge", "runs", ("state",), "Runs that are not cancelled.")
CASCADES_DRIFTED: Final = _metric(
    "gauge", "cascade_drifted", ("intent",), "1 while the flagship answers for a learned cascade that has drifted."
)
SWEEPER: Final = _metric(
    "gauge", "sweeper_last_success_timestamp_seconds", ("duty",), "When control last did its duty without an error."
)
LEDGER_GAP: Final = _metric(
    "gauge", "ledger_gap_usd", ("provider",), "Ledger minus the provider's bills (`waybill bill`), same days."
)
PG_CONNECTIONS: Final = _metric("gauge", "postgres_connections_ratio", (), "Connections in use of max_connections.")
PG_BYTES: Final = _metric("gauge", "postgres_database_bytes", (), "Size of the ledger.")
REDIS_MEMORY: Final = _metric(
    "gauge", "redis_memory_ratio", (), "Memory in use of maxmemory, else of the machine's memory."
)
SERVICE_UP: Final = _metric("gauge", "service_up", ("service",), "1 while the exporter reaches ledger and redis.")
LOOK_SECONDS: Final = _metric("gauge", "exporter_look_seconds", (), "How long the exporter's last look took.")

ALL: Final[tuple[Metric, ...]] = tuple(value for value in list(globals().values()) if isinstance(value, Metric))
