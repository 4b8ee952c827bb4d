"""Whether deadlines are met and what that costs: the fleet's own decisions over a simulated day of jobs.

2,000 jobs of five models arrive over a day (after another day, from which the fleet knows its lanes), due in one minute to
24 hours, evenly by the logarithm. The providers are simulated: every call and every batch has a latency drawn from
distributions that the policy does not know and that differ from its priors; it learns them from what it has seen so far, as
the fleet does. What is run is the real code: routing.route and with_lanes (the lane), batching.hold_s (when a batch is sent),
Candidate.leave_s (the hedge) and fallback.decide (expired rows, no flex capacity).

deadline_hit_rate          jobs answered when they were due
cost_ratio_to_optimum      cost over that of a clairvoyant who knows each lane's latency for each job beforehand and takes the
                           cheapest that is in time; the optimum pays for one call a job
cost_ratio_to_interactive  cost over all jobs interactive; of the quarter of the deadlines where it is worst
Hits and cost_ratio_to_interactive are the worst of all seeds; cost_ratio_to_optimum is that of all seeds' jobs together (a few
jobs of the dearest model weigh much in one), with the worst seed beside it.
"""

from __future__ import annotations

import argparse
import heapq
import json
import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from math import exp, log
from typing import Any

from policies.batching import Gathering, hold_s
from policies.fallback import History, Reroute, Retry, Snooze, decide
from policies.lanes import ALL_MODELS, RANKS, RECENT, RECENT_USUAL, Latency
from policies.policyfile import Policy, parse
from policies.pricing import PriceBook
from policies.routing import Request, Route, Snapshot, likely_usage, route, with_lanes
from waybill.contract import Candidate, lane_name
from waybill.errors import ProviderError
from workers.providers.failures import failure
from workers.runtime import SHIPPED_POLICY

JOBS = 2000
DAY_S = 86400.0
MODELS = ("claude-haiku-5-5", "claude-sonnet-5-5", "claude-opus-5-5", "gpt-6-luna", "gpt-6.1-sol")
START = datetime(2026, 11, 23, tzinfo=UTC)
HEDGE_DELAY_S = 2.0
"""Control looks every second; a bell and a claim."""
EXPIRED = 0.005
NO_CAPACITY = 0.05
COLLECT_S = 10.0
TIMES_EVERY_S = 60.0
TOO_LATE_S = 10 * DAY_S


@dataclass
class Job:
    """A simulated job."""

    number: int
    model: str
    payload_bytes: int
    arrives_s: float
    due_s: float
    route: tuple[Candidate, ...] = ()
    index: int = 0
    tries: Counter[str] = field(default_factory=Counter)
    used: int = 0
    version: int = 0
    """Raised when it leaves a lane: what was under way there comes too late."""
    done_s: float | None = None
    cost: Decimal = Decimal(0)

    @property
    def due_at(self) -> float:
        return self.arrives_s + self.due_s


@dataclass
class Batch:
    """A simulated provider batch."""

    rows: list[tuple[Job, int]]
    sent_s: float


class World:
    """Latencies that nobody knows beforehand; the same for the policy and for the clairvoyant."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._loads: dict[str, list[float]] = defaultdict(list)

    def _draw(self, *what: object) -> random.Random:
        return random.Random(f"{self._seed}:{what}")

    def interactive_s(self, job: Job, attempt: int = 0) -> float:
        """Median 4 s, 1 % above half a minute."""
        return self._draw("interactive", job.number, attempt).lognormvariate(log(4), 0.85)

    def flex_s(self, job: Job, attempt: int = 0) -> float:
        """Median 25 s with a tail of minutes."""
        return self._draw("flex", job.number, attempt).lognormvariate(log(25), 0.9)

    def flex_is_full(self, job: Job, attempt: int) -> bool:
        """No capacity."""
        return self._draw("full", job.number, attempt).random() < NO_CAPACITY

    def batch_s(self, part: str, sent_s: float) -> float:
        """Median 20 min, 5 % above an hour. Most of the spread is the provider's load, which comes and goes over hours."""
        load = self._load(part, int(sent_s // 900))
        own = self._draw("batch", part, int(sent_s)).gauss(0, 1)
        return exp(log(1200) + 0.67 * (0.9 * load + 0.436 * own))

    def _load(self, part: str, quarter: int) -> float:
        """Standard normal, correlated by 0.9 from one quarter of an hour to the next."""
        known = self._loads[part]
        while len(known) <= quarter:
            fresh = self._draw("load", part, len(known)).gauss(0, 1)
            known.append(fresh if not known else 0.9 * known[-1] + (1 - 0.9**2) ** 0.5 * fresh)
        return known[quarter]

    def place(self, job: Job, row: int) -> float:
        """When in its batch's time a row is done, 0..1."""
        return self._draw("place", job.number, row).random()

    def expires(self, job: Job, attempt: int = 0) -> bool:
        """A row that is not done."""
        return self._draw("expired", job.number, attempt).random() < EXPIRED


class Day:
    """One simulated day."""

    def __init__(
        self,
        policy: Policy,
        prices: PriceBook,
        world: World,
        jobs: Sequence[Job],
        seen: Mapping[str, Sequence[float]] | None = None,
    ) -> None:
        self.policy, self.prices, self.world, self.jobs = policy, prices, world, jobs
        self._events: list[tuple[float, int, str, Any]] = []
        self._serial = 0
        self._waiting: dict[str, list[tuple[Job, int, float]]] = defaultdict(list)
        self.seen: dict[str, list[float]] = defaultdict(list)
        for lane, seconds in (seen or {}).items():
            self.seen[lane] = list(seconds)
        self._times: dict[str, Latency] = {}
        self._times_at = -TIMES_EVERY_S
        self._left: dict[tuple[int, int], float] = {}
        self.lanes: Counter[str] = Counter()

    def run(self) -> None:
        """Until every job is done and every batch has ended."""
        for job in self.jobs:
            self._at(job.arrives_s, "arrive", job)
        while self._events:
            now, _, kind, what = heapq.heappop(self._events)
            getattr(self, f"_on_{kind}")(now, what)

    def _at(self, when: float, kind: str, what: Any) -> None:
        self._serial += 1
        heapq.heappush(self._events, (when, self._serial, kind, what))

    # --- the fleet ----------------------------------------------------------------------------------------------------

    def _on_arrive(self, now: float, job: Job) -> None:
        request = self._request(job, job.due_s)
        snapshot = Snapshot(off={"local": "-"}, now=START + timedelta(seconds=now), times=self._learned(now))
        found = route(request, self.policy, snapshot, self.prices)
        assert isinstance(found, Route)
        found, _ = with_lanes(found, request, self.policy, snapshot, self.prices)
        job.route = found.candidates
        self._go(now, job)

    def _request(self, job: Job, due_s: float) -> Request:
        return Request("extraction", job.payload_bytes, model=job.model, slack_s=due_s, due_s=due_s, priority="lo")

    def _go(self, now: float, job: Job) -> None:
        lane = job.route[job.index]
        job.tries[lane.service] += 1
        job.used += 1
        job.version += 1
        if lane.leave_s is not None:
            self._at(max(now, job.due_at - lane.leave_s), "leave", (job, job.version))
        if lane.service == "batch":
            part = _part(lane)
            self._waiting[part].append((job, job.version, now))
            self._at(now, "gather", part)
        elif lane.service == "flex":
            attempt = job.tries["flex"]
            if self.world.flex_is_full(job, attempt):
                self._fail(now + 0.3, job, failure("no_capacity", "no capacity"))
            else:
                self._at(now + self.world.flex_s(job, attempt), "answer", (job, job.version, lane, now))
        else:
            self._at(
                now + self.world.interactive_s(job, job.tries["interactive"]), "answer", (job, job.version, lane, now)
            )

    def _on_answer(self, now: float, what: tuple[Job, int, Candidate, float]) -> None:
        job, version, lane, began = what
        job.cost += self._cost(job, lane.service, now)  # late or not, it is charged
        for model in (lane.model, ALL_MODELS):
            self.seen[lane_name(lane.provider, model, lane.service)].append(now - began)
        if job.version == version and job.done_s is None:
            job.done_s = now
            self.lanes[lane.service] += 1

    def _on_leave(self, now: float, what: tuple[Job, int]) -> None:
        job, version = what
        if job.version != version or job.done_s is not None:
            return
        self._left[job.number, version] = now
        job.version += 1
        job.index += 1
        self.lanes["left"] += 1
        self._at(now + HEDGE_DELAY_S, "go", job)

    def _on_go(self, now: float, job: Job) -> None:
        self._go(now, job)

    def _fail(self, now: float, job: Job, why: ProviderError) -> None:
        lane = job.route[job.index]
        history = History(
            route=job.route,
            index=job.index,
            used=1,
            max_attempts=self.policy.max_attempts,
            same_lane=job.tries[lane.service],
            slack_s=job.due_at - now,
            due_s=job.due_at - now,
        )
        decision = decide(why, history, jitter=0.5)
        job.version += 1
        match decision:
            case Retry(delay_s) | Snooze(delay_s):
                self._at(now + delay_s, "go", job)
            case Reroute(index):
                job.index = index
                self._at(now, "go", job)
            case _:
                raise AssertionError(f"gave up: {decision}")

    # --- batches ------------------------------------------------------------------------------------------------------

    def _on_gather(self, now: float, part: str) -> None:
        rows = [row for row in self._waiting[part] if row[0].version == row[1]]
        self._waiting[part] = rows
        if not rows:
            return
        tightest = min(job.due_at - (job.route[job.index].leave_s or 0) for job, _, _ in rows) - now
        oldest = now - min(since for _, _, since in rows)
        wait = hold_s(
            Gathering(len(rows), sum(job.payload_bytes for job, _, _ in rows), oldest, tightest), self.policy.batches
        )
        if wait > 0:
            self._at(now + wait + 0.001, "gather", part)
            return
        self._waiting[part] = []
        batch = Batch([(job, version) for job, version, _ in rows], now)
        self._at(now + self.world.batch_s(part, now) + COLLECT_S, "end", batch)

    def _on_end(self, now: float, batch: Batch) -> None:
        # The provider is told to stop when the last job has left: what it had not done by then (evenly, as in the sandbox) is
        # not charged.
        is_cancelled = all(job.version != version for job, version in batch.rows)
        left_s = max((self._left.get((job.number, version), now) for job, version in batch.rows), default=now)
        share = (left_s - batch.sent_s) / (now - batch.sent_s) if is_cancelled else 1.0
        seen: dict[str, list[float]] = defaultdict(list)
        for number, (job, version) in enumerate(batch.rows):
            lane = next(candidate for candidate in job.route if candidate.service == "batch")
            is_live = job.version == version and job.done_s is None
            if self.world.expires(job, job.tries["batch"]):
                if is_live:
                    self._fail(now, job, failure("batch_expired", "expired"))
                continue
            if self.world.place(job, number) > share:
                continue
            job.cost += self._cost(job, "batch", now)
            for model in (lane.model, ALL_MODELS):
                seen[lane_name(lane.provider, model, lane.service)].append(now - batch.sent_s)
            if is_live:
                job.done_s = now
                self.lanes["batch"] += 1
        for name, seconds in seen.items():
            self.seen[name].append(sum(seconds) / len(seconds))  # one observation, as in the ledger's query

    # --- what it knows ------------------------------------------------------------------------------------------------

    def _learned(self, now: float) -> dict[str, Latency]:
        if now - self._times_at >= TIMES_EVERY_S:
            self._times_at = now
            self._times = {
                name: _latency(seconds[-RECENT.get(name.rpartition("/")[2], RECENT_USUAL) :])
                for name, seconds in self.seen.items()
            }
        return self._times

    def _cost(self, job: Job, service: str, now: float) -> Decimal:
        return cost_of(self.policy, self.prices, job, service, START + timedelta(seconds=now))


def cost_of(policy: Policy, prices: PriceBook, job: Job, service: str, at: datetime) -> Decimal:
    """What a call is charged: the answer is a third of the most allowed."""
    usage = likely_usage(Request("extraction", job.payload_bytes, model=job.model), policy.models[job.model], None)
    usd = prices.cost(job.model, service, replace(usage, output_tokens=usage.output_tokens // 3), at)
    assert usd is not None
    return usd


def _part(lane: Candidate) -> str:
    return lane.model if lane.provider == "openai" else lane.provider


def _latency(seconds: Sequence[float]) -> Latency:
    ordered = sorted(seconds)
    last = len(ordered) - 1

    def at(rank: float) -> float:
        place = rank * last
        low = int(place)
        return ordered[low] + (ordered[min(low + 1, last)] - ordered[low]) * (place - low)

    return Latency(tuple(max(0.001, at(rank)) for rank in RANKS), len(ordered))


def optimum(policy: Policy, prices: PriceBook, world: World, job: Job) -> Decimal:
    """The cheapest lane in which the job can be done in time, known beforehand; the interactive one where none is.

    Tries that fail cost nothing and the next one follows at once, so that this is a bound that no fleet can reach.
    """
    model = policy.models[job.model]
    part = job.model if model.provider == "openai" else model.provider
    done = {"interactive": world.interactive_s(job, 1), "flex": TOO_LATE_S, "batch": 0.0}
    for attempt in range(1, 9):
        if not world.flex_is_full(job, attempt):
            done["flex"] = world.flex_s(job, attempt)
            break
    for attempt in range(1, 9):
        done["batch"] += world.batch_s(part, job.arrives_s + done["batch"]) + COLLECT_S
        if not world.expires(job, attempt):
            break
    at = START + timedelta(seconds=job.arrives_s)
    able = [cost_of(policy, prices, job, service, at) for service in model.services if done[service] <= job.due_s]
    return min(able, default=cost_of(policy, prices, job, "interactive", at))


def some_jobs(seed: int, count: int) -> list[Job]:
    """Jobs of one day."""
    chance = random.Random(seed)
    return [
        Job(
            number,
            chance.choice(MODELS),
            int(chance.lognormvariate(log(6000), 0.8)),
            chance.uniform(0, DAY_S),
            exp(chance.uniform(log(60), log(DAY_S))),
        )
        for number in range(count)
    ]


def day(seed: int, count: int, services: Sequence[str] | None) -> dict[str, Any]:
    """The figures of one seed."""
    policy = parse(SHIPPED_POLICY.read_text(), "default.toml")
    if services is not None:
        policy = replace(policy, lanes=replace(policy.lanes, services=tuple(services)))
    prices = PriceBook(policy)
    before = Day(policy, prices, World(-seed), some_jobs(-seed, count))
    before.run()
    world, jobs = World(seed), some_jobs(seed, count)
    run = Day(policy, prices, world, jobs, before.seen)
    run.run()
    assert all(job.done_s is not None for job in jobs)
    cost = sum((job.cost for job in jobs), Decimal(0))
    best = sum((optimum(policy, prices, world, job) for job in jobs), Decimal(0))
    usual = {job.number: cost_of(policy, prices, job, "interactive", START) for job in jobs}
    quarters = sorted(jobs, key=lambda job: job.due_s)
    size = len(jobs) // 4
    ratios = [
        float(sum(job.cost for job in part) / sum(usual[job.number] for job in part))
        for part in (quarters[n * size : (n + 1) * size] for n in range(4))
    ]
    hits = sum(job.done_s is not None and job.done_s <= job.due_at for job in jobs)
    return {
        "seed": seed,
        "usd": float(cost),
        "optimum_usd": float(best),
        "deadline_hit_rate": hits / len(jobs),
        "cost_ratio_to_optimum": float(cost / best),
        "cost_ratio_to_interactive": float(cost / sum(usual.values())),
        "worst_quarter": max(ratios),
        "quarters": [round(ratio, 4) for ratio in ratios],
        "answered_by": dict(run.lanes),
    }


def measure(seeds: Sequence[int], count: int = JOBS, services: Sequence[str] | None = None) -> dict[str, Any]:
    """The figures of all seeds."""
    days = [day(seed, count, services) for seed in seeds]
    return {
        "jobs": count,
        "deadline_hit_rate": min(one["deadline_hit_rate"] for one in days),
        "cost_ratio_to_optimum": sum(one["usd"] for one in days) / sum(one["optimum_usd"] for one in days),
        "cost_ratio_of_worst_seed": max(one["cost_ratio_to_optimum"] for one in days),
        "cost_ratio_to_interactive": max(one["worst_quarter"] for one in days),
        "cost_ratio_overall": max(one["cost_ratio_to_interactive"] for one in days),
        "days": days,
    }


def main(arguments: Sequence[str]) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="./run bench lanes", description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--jobs", type=int, default=JOBS)
    parser.add_argument("--seeds", type=int, default=5, help="how many")
    parser.add_argument(
        "--first-seed", type=int, default=1, help="others than those that it was built with are the better witnesses"
    )
    parser.add_argument("--services", help="cheap lanes, with commas; default: the policy file's")
    given = parser.parse_args(arguments)
    services = given.services.split(",") if given.services else None
    found = measure(range(given.first_seed, given.first_seed + given.seeds), given.jobs, services)
    if given.json:
        print(json.dumps(found, indent=2))
        return
    for one in found["days"]:
        print(
            f"seed {one['seed']}: hit {one['deadline_hit_rate']:.4f}, cost {one['cost_ratio_to_optimum']:.4f} of the"
            f" optimum, {one['cost_ratio_to_interactive']:.4f} of interactive (by quarter of the deadlines:"
            f" {one['quarters']}), {one['answered_by']}"
        )


if __name__ == "__main__":
    main([])
