"""How much of the providers' quota a fleet of four worker processes uses, and how often it is refused for too much.

A backlog of mixed jobs (Opus, Sonnet, Haiku, GPT; each held back by another limit) runs against a sandbox with real
buckets, once with the fleet's limiter and once with each process having all limits for itself. The sandbox's own log is
the judge:

quota_used      what was used of the refill of a lane's binding limit, after warm-up (the first quarter, at most 20 s) until
                95 % of its jobs were done (`measured_s`, the shortest); of the worst lane, at most 1
used_of_all     the same from the first call on, with the full bucket of the start in what was allowed
provider_429    refusals after warm-up
fullest_minute  the most used in 60 s, over what the bucket allows in 60 s
makespan_ratio  the time of the whole run over the least that the buckets allow

`limiter_us_per_chunk` is client CPU of a reserve and settle for ten jobs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from policies.limits import LimitSpec, Need
from policies.policyfile import parse
from sandbox.testing import Running, running, spawned
from tests.fleet import running_fleet
from waybill import Client, Job, embedded
from waybill.cli.db import run_upgrade
from waybill.contract import Message
from workers.limiter import Ended, Limiter, Wanted
from workers.providers.anthropic import AnthropicProvider
from workers.providers.base import Call, Limits, Provider
from workers.providers.openai import OpenAIProvider
from workers.runtime import SHIPPED_POLICY

WORKERS = {"anthropic": 3, "openai": 1}
MAX_OUTPUT = 600
"""Both providers take it from the bucket while a call is under way: what is held so cannot be used (docs/limits.md)."""
PROBES = 5
"""Answers of each lane from which its limits are chosen."""
WARM_UP_SHARE, WARM_UP_MOST_S = 0.25, 20.0
LOOSE = 20
"""Limits that are not meant to bind are this many times what is needed."""


@dataclass(frozen=True)
class Lane:
    """A model, its class in the sandbox, and the limit that is to hold it back."""

    model: str
    limit_class: str
    binding: str
    bytes_per_token: float


LANES = (
    Lane("claude-opus-5-5", "claude-opus-5.5", "otpm", 2.5),
    Lane("claude-sonnet-5-5", "claude-sonnet-5.5", "itpm", 2.5),
    Lane("claude-haiku-5-5", "claude-haiku-5.5", "rpm", 2.5),
    Lane("gpt-6-luna", "gpt-6-luna", "tpm", 4.0),
)


def make_jobs(count: int, seed: int) -> list[tuple[Lane, Job]]:
    """Jobs of all lanes in random order, with prompts of 200 to 6,000 bytes."""
    rng = random.Random(seed)
    jobs = []
    for number in range(count):
        lane = LANES[number % len(LANES)]
        words = " ".join(rng.choice(("invoice", "total", "chair", "table", "due", "paid")) for _ in range(900))
        prompt = f"Document {number}: {words}"[: rng.randrange(200, 6000)]
        jobs.append(
            (
                lane,
                Job(
                    intent="summarization",
                    prompt=prompt,
                    model=lane.model,
                    priority="lo",  # type: ignore[arg-type]  # pydantic reads the class's value
                    max_output_tokens=MAX_OUTPUT,
                ),
            )
        )
    rng.shuffle(jobs)
    return jobs


def outputs_of(jobs: Sequence[tuple[Lane, Job]]) -> dict[str, float]:
    """Mean length of the sandbox's answers by model, thinking included: asked for with the fleet's own adapters."""
    policy = parse(SHIPPED_POLICY.read_text("utf-8"), SHIPPED_POLICY.name)
    plan = policy.plans["summarization"]

    async def ask(url: str) -> dict[str, float]:
        providers: dict[str, Provider] = {
            "claude": AnthropicProvider("sandbox-probe", url),
            "gpt": OpenAIProvider("sandbox-probe", f"{url}/v1"),
        }
        found = {}
        for lane in LANES:
            model = policy.models[lane.model]
            lengths = []
            for _, job in [pair for pair in jobs if pair[0] is lane][:PROBES]:
                effort = plan.effort if plan.effort in model.efforts else None
                messages = (Message(role="user", content=job.prompt),)
                call = Call(model, messages, max_output_tokens=MAX_OUTPUT, effort=effort)
                answer = await providers[lane.model.partition("-")[0]].call(call)
                assert answer.usage is not None
                lengths.append(answer.usage.output_tokens)
            found[lane.model] = sum(lengths) / len(lengths)
        for provider in providers.values():
            await provider.close()
        return found

    with running() as sandbox:
        return asyncio.run(ask(sandbox.url))


def limits_for(
    jobs: Sequence[tuple[Lane, Job]], outputs: dict[str, float], *, seconds: float, burst_s: float
) -> dict[str, dict[str, int]]:
    """Limits a minute by class, so that the full buckets and `seconds` of refill just pay for the lane's jobs."""
    found = {}
    for lane in LANES:
        mine = [job for of, job in jobs if of is lane]
        prompt = sum(math.ceil(len(job.prompt) / lane.bytes_per_token) for job in mine)
        output = outputs[lane.model] * len(mine)
        all_needs: dict[str, float] = {"rpm": len(mine), "itpm": prompt, "otpm": output, "tpm": prompt + output}
        own = ("rpm", "tpm") if lane.limit_class.startswith("gpt") else ("rpm", "itpm", "otpm")
        found[lane.limit_class] = {
            name: int(all_needs[name] * 60 / (burst_s + seconds)) * (1 if name == lane.binding else LOOSE)
            for name in own
        }
    return found


def used(line: dict[str, Any], binding: str) -> int:
    """What a request of the sandbox's log took of a limit."""
    usage = line["usage"]
    fresh = usage["input_tokens"] + usage["cache_write_tokens"] + usage["cache_write_long_tokens"]
    output = usage["output_tokens"]
    all_prompt = fresh + usage["cache_read_tokens"]
    return int({"rpm": 1, "itpm": fresh, "otpm": output, "tpm": all_prompt + output}[binding])


def ended_at(line: dict[str, Any]) -> float:
    """Seconds since the epoch."""
    return datetime.fromisoformat(line["time"]).timestamp()


def judge(log: list[dict[str, Any]], limits: dict[str, dict[str, int]], *, burst_s: float) -> dict[str, Any]:
    """The figures of one run from the sandbox's log."""
    answered = [line for line in log if line["status"] == 200]
    refused = [line for line in log if line["status"] == 429]
    began = min(ended_at(line) - line["duration_ms"] / 1000 for line in log)
    ended = max(ended_at(line) for line in answered)
    shares, alls, bounds, worst = {}, {}, {}, 0.0
    measured: list[float] = []
    for lane in LANES:
        mine = sorted((ended_at(line), used(line, lane.binding)) for line in answered if line["model"] == lane.model)
        rate = limits[lane.limit_class][lane.binding] / 60
        capacity = rate * burst_s
        # The last of the quota is granted, and then a call still takes its time.
        quickest_s = min(line["duration_ms"] for line in answered if line["model"] == lane.model) / 1000
        bounds[lane.model] = max(0.0, sum(n for _, n in mine) - capacity) / rate + quickest_s
        # The backlog of a lane lasts until nearly all its jobs are done; the end has nothing left to fill the quota with.
        last = mine[int(0.95 * len(mine)) - 1][0]
        alls[lane.model] = sum(n for at, n in mine if at <= last) / (capacity + rate * (last - began))
        first = began + min(WARM_UP_MOST_S, WARM_UP_SHARE * (last - began))
        measured.append(last - first)
        shares[lane.model] = min(1.0, sum(n for at, n in mine if first < at <= last) / (rate * (last - first)))
        for start in range(int(last - began)):
            window = sum(n for at, n in mine if began + start < at <= began + start + 60)
            worst = max(worst, window / (capacity + rate * 60))
    warm = began + min(WARM_UP_MOST_S, WARM_UP_SHARE * (ended - began))
    return {
        "quota_used": round(min(shares.values()), 4),
        "quota_used_by_model": {model: round(share, 4) for model, share in shares.items()},
        "used_of_all_by_model": {model: round(share, 4) for model, share in alls.items()},
        "measured_s": round(min(measured), 1),
        "provider_429": sum(ended_at(line) > warm for line in refused),
        "provider_429_all": len(refused),
        "fullest_minute": round(worst, 4),
        "bound_s": round(max(bounds.values()), 2),
        "makespan_s": round(ended - began, 2),
        "makespan_ratio": round((ended - began) / max(bounds.values()), 4),
    }


def run_once(
    services: embedded.Services,
    jobs: Sequence[tuple[Lane, Job]],
    seconds: float,
    options: argparse.Namespace,
    *,
    scope: str,
) -> dict[str, Any]:
    """One run on an empty ledger and Redis."""
    limits = limits_for(jobs, outputs_of(jobs), seconds=seconds, burst_s=options.burst)
    arguments = ["--burst", str(options.burst), "--latency", options.latency]
    for limit_class, values in limits.items():
        arguments += ["--limit", f"{limit_class}:" + ",".join(f"{name}={value}" for name, value in values.items())]
    database_url = embedded.create_database(str(services.database_url), f"quota_{scope}")
    run_upgrade(database_url)
    redis_url = str(services.redis_url).rsplit("/", 1)[0] + ("/1" if scope == "fleet" else "/2")
    with tempfile.TemporaryDirectory() as folder, spawned(*arguments) as sandbox:
        policy = Path(folder) / "policy.toml"
        policy.write_text(SHIPPED_POLICY.read_text("utf-8") + f'\n[limits."*"]\nburst_s = {options.burst}\n')
        env = {"WAYBILL_LIMITER_SCOPE": scope, "WAYBILL_POLICY_FILE": str(policy)}
        with (
            running_fleet(database_url, redis_url, sandbox.url, Path(folder), workers=WORKERS, env=env),
            Client(database_url, redis_url) as client,
        ):
            ids = client.submit_many([job for _, job in jobs])
            patience = seconds * 10 + 180
            done = sum(outcome.result is not None for outcome in client.results(ids, timeout_s=patience))
            log = whole_log(sandbox)
            figures = judge(log, limits, burst_s=options.burst)
    return {"jobs": len(ids), "succeeded": done, **figures, **attempts_made(database_url, len(ids))}


def whole_log(sandbox: Running) -> list[dict[str, Any]]:
    """All requests, page by page."""
    lines: list[dict[str, Any]] = []
    while page := sandbox.log(since=lines[-1]["seq"] if lines else 0):
        lines += page
    return lines


def attempts_made(database_url: str, jobs: int) -> dict[str, Any]:
    """Rows of attempts and claims a job: waiting must make no rows, and a crowd must not go round and round."""
    import psycopg

    with psycopg.connect(database_url.replace("postgresql+psycopg", "postgresql")) as connection:
        row = connection.execute("select (select count(*) from attempts), last_value from lease_tokens").fetchone()
    assert row is not None
    return {"attempt_rows_per_job": round(row[0] / jobs, 3), "claims_per_job": round(row[1] / jobs, 3)}


def measure_limiter(redis_url: str, chunks: int = 400) -> float:
    """Client CPU in microseconds for one reserve and settle of a chunk of ten, at 20 chunks under way."""
    roomy = LimitSpec(requests_per_minute=10**9, input_tokens_per_minute=10**12, output_tokens_per_minute=10**12)
    told = Limits(10**8, 10**10, 10**10, None, 10**9, 10**12, 10**12, None)

    async def chunk(limiter: Limiter, number: int) -> None:
        lane = limiter.lane("anthropic", "bench", "claude-haiku-5-5")
        calls = [Wanted(f"{number:08d}-0000-7000-8000-{n:012d}", 1, Need(1000, 4000, 600)) for n in range(10)]
        found = await limiter.reserve(lane, calls, is_batch=True)
        await asyncio.sleep(0)
        for grant in found.grants.values():
            limiter.settle(grant, Ended("ok", 900, 300, 0.0, told))

    async def measure() -> float:
        limiter = Limiter(redis_url, {"*": roomy})
        limiter.start()
        await chunk(limiter, 0)
        best = math.inf
        for repeat in range(5):
            began = time.process_time()
            for first in range(0, chunks, 20):
                base = (repeat + 1) * 100_000 + first
                await asyncio.gather(*(chunk(limiter, base + n) for n in range(20)))
            await limiter.settled()
            best = min(best, (time.process_time() - began) / chunks * 1e6)
        await limiter.close()
        return best

    return asyncio.run(measure())


def main(arguments: Sequence[str]) -> None:
    """Measure both ways and print."""
    parser = argparse.ArgumentParser(prog="./run bench quota", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--seconds", type=float, default=75, help="how long the buckets allow it to take at least")
    parser.add_argument("--jobs", type=int, default=2000)
    parser.add_argument(
        "--burst", type=float, default=10, help="seconds' worth that a full bucket holds, on both sides"
    )
    parser.add_argument("--latency", default="model:0.1", help="of the sandbox's answers")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--compare",
        type=float,
        default=0.25,
        help="share of the run that is done again with a limiter per process; 0 = none",
    )
    options = parser.parse_args(arguments)
    jobs = make_jobs(options.jobs, options.seed)
    with tempfile.TemporaryDirectory() as state, embedded.services(Path(state)) as services:
        figures: dict[str, Any] = {"limiter_us_per_chunk": round(measure_limiter(str(services.redis_url)))}
        figures |= run_once(services, jobs, options.seconds, options, scope="fleet")
        if options.compare:
            fewer = jobs[: int(options.compare * len(jobs))]
            figures["per_process"] = run_once(
                services, fewer, options.seconds * options.compare, options, scope="process"
            )
    if options.json:
        print(json.dumps(figures))
        return
    for key, value in figures.items():
        print(f"{key:>22}  {value}")
