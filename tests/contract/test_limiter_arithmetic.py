"""limiter.lua does on a real server what policies/limits.py says: the same verdicts and the same levels, bit for bit."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from policies.limits import DIMENSIONS, Bucket, LimitSpec, Need, Settlement, Ticket, Told
from workers.limiter import _SCRIPT, LimitLane, lane_config, lane_keys

START = 1_795_000_000_000_000
KINDS = {"a": "admitted", "r": "rate", "b": "busy", "x": "blocked", "q": "queue", "n": "never"}


@dataclass
class Script:
    """limiter.lua with a clock of the test's own."""

    server: redis.Redis
    lane: LimitLane

    def run(self, what: str, about: object, now: int) -> Any:
        keys = self.lane.keys
        return self.server.eval(_SCRIPT, len(keys), *keys, what, now, self.lane.config, json.dumps(about))

    def level(self, dimension: str) -> float | None:
        text = self.server.hget(self.lane.keys[0], f"l{dimension}")
        return float(text) if text else None  # type: ignore[arg-type]


@pytest.fixture
def server(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url, decode_responses=True) as connection:
        yield connection


needs = st.builds(
    lambda i, o, li: Need(i, o, min(i, li), 0), st.integers(0, 400), st.integers(0, 300), st.integers(0, 500)
)
limits = st.one_of(st.none(), st.integers(1, 900))
specs = st.builds(
    LimitSpec,
    requests_per_minute=limits,
    input_tokens_per_minute=limits,
    output_tokens_per_minute=limits,
    tokens_per_minute=st.one_of(limits, st.just(1_500_000)),
    burst_s=st.sampled_from([10.0, 60.0]),
    interactive_reserve=st.sampled_from([0.0, 0.1]),
    in_flight=st.integers(1, 40),
)
tolds = st.builds(
    lambda limit, left: Told(
        {d: v for d, v in zip("riot", limit, strict=True) if v},
        {d: v for d, v in zip("riot", left, strict=True) if v >= 0},
    ),
    st.tuples(*[st.sampled_from([0, 0, 60, 600, 1_200_000])] * 4),
    st.tuples(*[st.one_of(st.just(-1), st.integers(0, 700))] * 4),
)
reserves = st.tuples(
    st.just("reserve"), st.integers(0, 3_000_000), st.lists(needs, min_size=1, max_size=6), st.booleans()
)
settles = st.tuples(
    st.just("settle"),
    st.integers(0, 40_000_000),
    st.integers(0, 50),
    st.tuples(st.integers(0, 500), st.integers(0, 400)),
    st.sampled_from(["ok", "ok", "begun", "done", "throttled", "overloaded", "failed", "unused"]),
    st.tuples(st.sampled_from([0, 500_000, 3_000_000]), tolds),
)
long_pauses = st.tuples(st.just("pause"), st.sampled_from([60_000_000, 901_000_000]))


@dataclass
class Both:
    """The model and the script, driven together."""

    script: Script
    model: Bucket
    now: int = START
    open: list[tuple[str, Need, Ticket, str]] = field(default_factory=list)
    number: int = 0

    def reserve(self, wanted: list[Need], is_batch: bool) -> None:
        calls = []
        for need in wanted:
            self.number += 1
            calls.append((f"job{self.number}:1", need))

        verdicts, ticket = self.model.reserve(calls, is_batch=is_batch, now=self.now)
        about = {
            "batch": is_batch,
            "calls": [[s, n.input, n.output, n.least_input, n.least_output, s] for s, n in calls],
        }
        text, headroom, said = self.script.run("reserve", about, self.now).split(";")

        found = [(KINDS[word[0]], int(word[2:])) for word in said.split(",")]
        assert found == [(v.kind, v.wait_us) for v in verdicts]
        assert 0 <= float(headroom) <= 1
        parsed = {part.split(":")[0]: [float(x) for x in part.split(":")[1:]] for part in text.split()}
        assert parsed == {d: [ticket.level[d], ticket.reserved[d], ticket.lowered[d]] for d in ticket.level}
        self.open += [
            (slot, need, ticket, text) for (slot, need), v in zip(calls, verdicts, strict=True) if v.kind == "admitted"
        ]

    def settle(self, pick: int, used: tuple[int, int], outcome: Any, retry: int, told: Told) -> None:
        if not self.open:
            return
        slot, need, ticket, text = self.open[pick % len(self.open)]
        if outcome != "begun":
            del self.open[pick % len(self.open)]
        self.model.settle(
            Settlement(slot, need, used[0], used[1], outcome, retry, told, ticket),
            now=self.now,
        )
        entry = [slot, need.input, need.output, *used, outcome, retry]
        entry += [[told.limit.get(d, 0) for d in "riot"], [told.remaining.get(d, -1) for d in "riot"], text]
        assert self.script.run("settle", [entry], self.now) == "ok"

    def compare(self) -> None:
        for d in DIMENSIONS:
            assert self.script.level(d) == self.model.level.get(d), d
        slots = self.script.server.zrange(self.script.lane.keys[1], 0, -1)
        assert set(slots) == set(self.model.slots)  # type: ignore[arg-type]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(specs, st.booleans(), st.lists(st.one_of(reserves, settles, settles, long_pauses), max_size=40))
def test_the_script_does_the_arithmetic_of_the_model(
    server: redis.Redis, spec: LimitSpec, ramp: bool, steps: list[Any]
) -> None:
    server.flushdb()
    lane = LimitLane("p:a:m", lane_keys("p:a:m"), lane_config(spec, provider="openai" if ramp else "anthropic"))
    both = Both(Script(server, lane), Bucket(spec, ramp=ramp))

    for step in steps:
        both.now += step[1]
        if step[0] == "reserve":
            both.reserve(step[2], step[3])
        elif step[0] == "settle":
            both.settle(step[2], step[3], step[4], *step[5])
        both.compare()


def test_the_server_keeps_the_time_itself(redis_url: str) -> None:
    """Without a clock of the caller's the script asks the server: a worker's wrong clock plays no part."""
    from policies.limits import LimitSpec as Spec
    from workers.limiter import Ended, Limiter, Wanted

    async def use() -> tuple[str, str]:
        limiter = Limiter(redis_url, {"*": Spec(requests_per_minute=60, burst_s=1)})
        limiter.start()
        lane = limiter.lane("anthropic", "a", "claude-haiku-5-5")
        one = await limiter.reserve(lane, [Wanted("j1", 1, Need(1, 1))], is_batch=False)
        two = await limiter.reserve(lane, [Wanted("j2", 1, Need(1, 1))], is_batch=False)
        limiter.settle(one.grants["j1:1"], Ended("ok", 1, 1))
        await limiter.close()
        return one.verdicts[0].kind, two.verdicts[0].kind

    assert asyncio.run(use()) == ("admitted", "rate")
