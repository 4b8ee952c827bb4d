"""Turns the ledger and Redis into Prometheus' text: what `waybill metrics` serves. Names and labels: waybill/metrics.py.

Everything that the ledger knows is read from there, so it is right for any number of processes, survives restarts, and two
exporters say the same (scrape one). What only the processes know are the event counts that they deliver to Redis.

A counter never goes down while the exporter runs: a call booked at an estimate and settled at less later (`fenced`) would
otherwise look to Prometheus like a restart, and the whole sum would be counted again.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import CollectorRegistry

from waybill import metrics
from waybill.contract import AttemptState
from waybill.errors import LedgerUnavailable
from waybill.ledger import oncall, tallies
from waybill.metrics import Metric
from waybill.names import CLASSES, DISPATCH_QUEUE, provider_queue
from waybill.overview import (
    Hints,
    breaker_state,
    headroom,
    read_hints,
    refused_accounts,
    routes_available,
)

if TYPE_CHECKING:
    from policies.policyfile import Policy
    from waybill.ledger.engine import Ledger
    from workers.policywatch import PolicyWatch

BREAKER_STATES = ("closed", "open", "half_open", "recovering", "drained")
USUAL_FROM_HOURS = 3
"""Same hours of earlier days below which there is no usual spending to compare with."""

Series = dict[tuple[str, ...], float]


class Board:
    """Values by metric and labels, to be filled and then written as text."""

    def __init__(self) -> None:
        self.values: dict[str, Series] = defaultdict(dict)
        self.histograms: dict[tuple[str, ...], tuple[list[int], float]] = {}

    def set(self, metric: Metric, value: float, *labels: str) -> None:
        """The value of one series; labels in the metric's order."""
        assert len(labels) == len(metric.labels), metric.name
        self.values[metric.name][labels] = float(value)

    def add(self, metric: Metric, value: float, *labels: str) -> None:
        """Add to a series."""
        self.set(metric, self.values[metric.name].get(labels, 0.0) + float(value), *labels)

    def zero(self, metric: Metric, *labels: str) -> None:
        """Let a series exist: an alert on its increase needs to have seen it at 0."""
        self.values[metric.name].setdefault(labels, 0.0)

    def collect(self) -> Iterable[Any]:
        """prometheus-client's hook."""
        for metric in metrics.ALL:
            if metric.kind == "histogram":
                histogram = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
                for labels, (slots, seconds) in self.histograms.items():
                    total, buckets = 0, []
                    for bound, count in zip((*tallies.BOUNDS_S, float("inf")), slots, strict=True):
                        total += count
                        buckets.append(("+Inf" if bound == float("inf") else str(bound), total))
                    histogram.add_metric(labels, buckets, sum_value=seconds)
                yield histogram
                continue
            kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
            family = kind(metric.name, metric.help, labels=metric.labels)
            for labels, value in sorted(self.values.get(metric.name, {}).items()):
                family.add_metric(labels, value)
            yield family

    def text(self) -> str:
        """In Prometheus' text format."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(self)  # a collector is whatever has `collect`
        return generate_latest(registry).decode()


class Exporter:
    """Looks at the fleet on demand; keeps only what keeps counters from going down."""

    def __init__(self, ledger: Ledger, redis: Any, watch: PolicyWatch, off: frozenset[str] = frozenset()) -> None:
        self._ledger = ledger
        self._redis = redis
        self._watch = watch
        self._off = off
        """Providers without workers."""
        self._highest: dict[str, Series] = defaultdict(dict)
        self._lock = asyncio.Lock()

    async def look(self) -> str:
        """All metrics, read now. A service that is away is told by `waybill_service_up`; its metrics are left out."""
        async with self._lock:
            began = time.monotonic()
            board = Board()
            self._watch.look()
            hints = await read_hints(self._redis)
            board.set(metrics.SERVICE_UP, hints.trouble is None, "redis")
            try:
                await self._read_ledger(board, hints)
                board.set(metrics.SERVICE_UP, 1, "ledger")
            except LedgerUnavailable:
                board = Board()
                board.set(metrics.SERVICE_UP, hints.trouble is None, "redis")
                board.set(metrics.SERVICE_UP, 0, "ledger")
            if hints.trouble is None:
                _read_redis(board, hints, self._watch.policy)
            board.set(metrics.CONFIG_BROKEN, self._watch.trouble is not None)
            self._never_down(board)
            board.set(metrics.LOOK_SECONDS, time.monotonic() - began)
            return board.text()

    def _never_down(self, board: Board) -> None:
        from_redis = {m.name for m in _FROM_EVENTS.values()} | {metrics.EVENTS.name, metrics.REROUTES.name}
        for metric in metrics.ALL:
            if metric.kind != "counter" or metric.name in from_redis:
                continue  # a wiped Redis is a restart, and Prometheus should see it as one
            highest = self._highest[metric.name]
            for labels, value in board.values.get(metric.name, {}).items():
                highest[labels] = max(value, highest.get(labels, 0.0))
            if board.values.get(metric.name):
                board.values[metric.name] = dict(highest)

    async def _read_ledger(self, board: Board, hints: Hints) -> None:
        while await self._ledger.fetch(tallies.CLOSE_ATTEMPTS):
            pass
        while await self._ledger.fetch(tallies.CLOSE_JOBS):
            pass
        await self._ledger.fetch(tallies.ADD_LATE)
        _calls(board, await self._ledger.fetch(tallies.ATTEMPT_TOTALS), self._watch.policy)
        _jobs(board, await self._ledger.fetch(tallies.JOB_TOTALS), self._watch.policy)
        _waiting(board, await self._ledger.fetch(tallies.WAITING), self._watch.policy)
        for row in await self._ledger.fetch(oncall.GOOD_ENOUGH):
            board.set(metrics.GOOD_ENOUGH, row["ratio"], row["intent"])
        board.set(metrics.RESERVED, (await self._ledger.fetch(tallies.RESERVED))[0]["usd"])
        rate = (await self._ledger.fetch(tallies.SPEND_RATE))[0]
        board.set(metrics.SPEND_HOUR, rate["usd"])
        if rate["usual_usd"] is not None and rate["hours"] >= USUAL_FROM_HOURS:
            board.set(metrics.SPEND_USUAL, rate["usual_usd"])
        for row in await self._ledger.fetch(tallies.BUDGETS):
            board.set(metrics.BUDGETS, row["at_80"], row["scope"], "80")
            board.set(metrics.BUDGETS, row["at_100"], row["scope"], "100")
            board.set(metrics.BUDGET_LEFT, row["left_usd"], row["scope"])
        for row in await self._ledger.fetch(oncall.GRADED):
            board.set(metrics.GRADE, row["mean"], row["intent"])
        for row in await self._ledger.fetch(tallies.BILL_GAPS):
            board.set(metrics.LEDGER_GAP, row["gap_usd"], row["provider"])
        for row in await self._ledger.fetch(tallies.OPEN_RUNS):
            board.set(metrics.RUNS, row["runs"], row["state"])
            if row["state"] == "paused":
                board.set(metrics.HOLDS, row["runs"], "run")
        for row in await self._ledger.fetch(tallies.CASCADES):
            board.set(metrics.CASCADES_DRIFTED, int(row["has_drifted"]), row["intent"])
        server = (await self._ledger.fetch(tallies.SERVER))[0]
        board.set(metrics.PG_CONNECTIONS, server["connections"])
        board.set(metrics.PG_BYTES, server["bytes"])
        holds = await self._ledger.fetch(oncall.HOLDS)
        for kind in ("provider", "intent"):
            board.set(metrics.HOLDS, sum(row["kind"] == kind for row in holds), kind)
        drained = {row["name"] for row in holds if row["kind"] == "provider"}
        for lane in await self._ledger.fetch(oncall.UNDER_WAY):
            board.set(metrics.IN_FLIGHT, lane["jobs"], *_parts(lane["lane"]))
        if hints.trouble is None:
            for intent, count in routes_available(self._watch.policy, hints, drained | self._off).items():
                board.set(metrics.ROUTES, count, intent)
            lanes = {name for name in hints.health if "@" not in name}
            for name in lanes | {row["lane"] for row in await self._ledger.fetch(oncall.LANES, {"window_s": 900.0})}:
                state = breaker_state(hints.health.get(name, {}), hints.now)
                if _parts(name)[0] in drained:
                    state = "drained"
                for possible in BREAKER_STATES:
                    board.set(metrics.BREAKER, possible == state, *_parts(name), possible)


def _models(policy: Policy) -> set[str]:
    """The models that the policy can send anything to."""
    return {model for plan in policy.plans.values() for model in plan.chain}


def _parts(lane: str) -> tuple[str, str, str]:
    """Provider, model (which may have slashes of its own) and service of a lane's name."""
    provider, _, rest = lane.partition("/")
    model, _, service = rest.rpartition("/")
    return provider, model, service


def _calls(board: Board, rows: Iterable[Any], policy: Policy) -> None:
    board.zero(metrics.FENCED)
    for intent in policy.intents():
        board.zero(metrics.BASELINE, intent)
        board.zero(metrics.ESCALATIONS, intent)
    for model_id in _models(policy):
        for metric in (metrics.UNPRICED, metrics.ESTIMATED, metrics.THROTTLED):
            board.zero(metric, policy.models[model_id].provider, model_id)
    prompt: Counter[tuple[str, str]] = Counter()
    cached: Counter[tuple[str, str]] = Counter()
    for row in rows:
        lane = (row["provider"], row["model"], row["service"])
        model = lane[:2]
        calls, state = row["calls"], row["state"]
        if state != AttemptState.RELEASED:
            board.add(metrics.CALLS, calls, row["intent"], *lane, state)
        board.add(metrics.SPEND, row["usd"], row["intent"], *lane)
        board.add(metrics.BASELINE, row["flagship_usd"], row["intent"])
        for kind in ("input", "output", "cache_read", "cache_write"):
            board.add(metrics.TOKENS, row[f"{kind}_tokens"], *model, kind)
        prompt[model] += row["input_tokens"] + row["cache_read_tokens"] + row["cache_write_tokens"]
        cached[model] += row["cache_read_tokens"]
        if state == AttemptState.THROTTLED:
            board.add(metrics.THROTTLED, calls, *model)
        elif state == AttemptState.FENCED:
            board.add(metrics.FENCED, calls)
        elif state == AttemptState.WEAK:
            board.add(metrics.ESCALATIONS, calls, row["intent"])
        if row["source"] == "unpriced":
            board.add(metrics.UNPRICED, calls, *model)
        elif row["source"] == "estimated":
            board.add(metrics.ESTIMATED, calls, *model)
    for model, tokens in prompt.items():
        if tokens:
            board.set(metrics.CACHE_READ, cached[model] / tokens, *model)


def _jobs(board: Board, rows: Iterable[Any], policy: Policy) -> None:
    board.zero(metrics.DEAD, "worker_lost")
    for intent in policy.intents():
        for klass in CLASSES:
            board.zero(metrics.FINISHED, intent, klass, "succeeded")
    for row in rows:
        board.add(metrics.FINISHED, row["jobs"], row["intent"], row["priority"], row["state"])
        if row["state"] == "failed":
            board.add(metrics.FAILURES, row["jobs"], row["intent"], row["code"])
        elif row["state"] == "dead":
            board.add(metrics.DEAD, row["jobs"], row["code"])
        elif row["state"] == "succeeded":
            key = (row["intent"], row["priority"])
            slots, seconds = board.histograms.get(key, ([0] * (len(tallies.BOUNDS_S) + 1), 0.0))
            slots[row["slot"]] += row["jobs"]
            board.histograms[key] = (slots, seconds + row["seconds"])


def _waiting(board: Board, rows: Iterable[Any], policy: Policy) -> None:
    for intent in policy.intents():
        for state in ("queued", "routed", "parked", "running"):
            board.zero(metrics.JOBS, intent, state)
    for klass in CLASSES:
        board.zero(metrics.OLDEST, DISPATCH_QUEUE, klass)
    oldest: Series = defaultdict(float)
    for row in rows:
        board.add(metrics.JOBS, row["jobs"], row["intent"], row["state"])
        if row["state"] != "running":
            klass = row["priority"]
            queue = DISPATCH_QUEUE if row["state"] == "queued" else provider_queue(row["provider"], klass)
            oldest[queue, klass] = max(oldest[queue, klass], row["oldest_s"])
    for (queue, klass), age_s in oldest.items():
        board.set(metrics.OLDEST, age_s, queue, klass)


_FROM_EVENTS = {
    "jobs.rescued": metrics.LEASES,
    "lease.lost": metrics.CLAIMS_LOST,
    "doorbells.rerung": metrics.RERUNG,
    "message.refused": metrics.REFUSED_MESSAGES,
    "config.refused": metrics.RELOADS_REFUSED,
}


def _read_redis(board: Board, hints: Hints, policy: Policy) -> None:
    for metric in _FROM_EVENTS.values():
        board.zero(metric)
    for name, count in hints.counters.items():
        event, *labels = name.split(" ")
        board.add(metrics.EVENTS, count, event)
        if event in _FROM_EVENTS:
            board.add(_FROM_EVENTS[event], count)
        elif event == "job.rerouted":
            said = dict(label.split("=", 1) for label in labels)
            if said.get("outcome") == "fallback":
                board.add(metrics.REROUTES, count, _parts(said["lane"])[1], _parts(said["to"])[1], said["code"])
    for duty, at in hints.beats.items():
        board.set(metrics.SWEEPER, at, duty)
    if hints.memory is not None:
        board.set(metrics.REDIS_MEMORY, hints.memory)
    for provider in {model.provider for model in policy.models.values()}:
        refused = [one for one in refused_accounts(hints) if one["account"].startswith(f"{provider}@")]
        board.set(metrics.ACCOUNTS_REFUSED, len(refused), provider)
    for model in _models(policy):
        provider = policy.models[model].provider
        for kind, share in headroom(policy, hints, provider, model).items():
            board.set(metrics.HEADROOM, share, provider, model, kind)
