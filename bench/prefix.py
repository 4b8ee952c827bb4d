"""What 1,000 jobs with the same prefix of 4,000 tokens pay for their input, 50 in flight, beside three other ways.

The fleet runs against a sandbox with a real prompt cache. The judge is the sandbox's own log: every request's tokens by
kind, at the sandbox's own prices.

cost_ratio_to_optimum   input cost over one write of the prefix, 999 reads and the rest at the full price
naive_ratio             the same jobs sent 50 at a time by the plain SDK, nothing marked, over the same optimum
naive_automatic_ratio   ... with the provider's automatic breakpoint, which is on the last block: the one that varies
naive_marked_ratio      ... with a breakpoint behind the prefix, but without a leader
bill_agrees             whether the ledger's sum is the sandbox's bill, to the last digit
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
from anthropic import AsyncAnthropic

from bench.quota import whole_log
from sandbox.testing import Running, spawned
from tests.fleet import running_fleet
from waybill import Client, Job, embedded
from waybill.cli.db import run_upgrade
from workers.runtime import SHIPPED_POLICY

ROOMY = "*:rpm=100000000,itpm=100000000000,otpm=100000000000,tpm=100000000000"
BYTES_PER_TOKEN = {"claude": 2.5, "gpt": 4.0}
# USD per million tokens: input, cache write, cache read. The sandbox's list, which a test holds against the catalogue.
PRICES = {
    "claude-haiku-5-5": ("0.10", "0.125", "0.01"),
    "claude-sonnet-5-5": ("2", "2.5", "0.10"),
    "gpt-6-luna": ("0.10", "0.125", "0.01"),
    "gpt-6.1-sol": ("2", "2.5", "0.10"),
}


def shared_text(tokens: int, model: str) -> str:
    """A text of about so many of the sandbox's tokens."""
    size = int(tokens * BYTES_PER_TOKEN[model.partition("-")[0]])
    sentence = "Clause {}: the supplier answers for the goods until they have been handed over. "
    return "".join(sentence.format(n) for n in range(size // 60))[:size]


def make_jobs(count: int, tokens: int, model: str, tenant: str) -> list[Job]:
    """Jobs that share their context; each has a question of its own."""
    context = shared_text(tokens, model)
    return [
        Job(
            intent="extraction",
            model=model,
            context=context,
            prompt=f"Which clause is about case {number}? Name it.",
            priority="lo",  # type: ignore[arg-type]  # pydantic reads the class's value
            max_output_tokens=1024,
            tenant=tenant,
        )
        for number in range(count)
    ]


def input_usd(log: Sequence[dict[str, Any]], model: str) -> Decimal:
    """What the requests of a log paid for their prompts."""
    full, write, read = (Decimal(price) / 1_000_000 for price in PRICES[model])
    return sum(
        (
            usage["input_tokens"] * full + usage["cache_write_tokens"] * write + usage["cache_read_tokens"] * read
            for usage in (line["usage"] for line in log if line["status"] == 200)
        ),
        Decimal(0),
    )


def optimum_usd(log: Sequence[dict[str, Any]], model: str) -> Decimal:
    """One write, reads for all others, the rest at the full price. The prefix is what the best request read."""
    full, write, read = (Decimal(price) / 1_000_000 for price in PRICES[model])
    usages = [line["usage"] for line in log if line["status"] == 200]
    prompts = [u["input_tokens"] + u["cache_write_tokens"] + u["cache_read_tokens"] for u in usages]
    prefix = max(u["cache_read_tokens"] for u in usages)
    rest = sum(prompts) - prefix * len(prompts)
    return prefix * write + (len(prompts) - 1) * prefix * read + rest * full


def measure_fleet(
    services: embedded.Services, sandbox: Running, jobs: Sequence[Job], model: str, in_flight: int, workers: int
) -> dict[str, Any]:
    """The fleet's run on an empty ledger."""
    database_url = embedded.create_database(
        str(services.database_url), f"prefix_{model.replace('-', '_').replace('.', '_')}"
    )
    run_upgrade(database_url)
    redis_url = str(services.redis_url)
    provider = "anthropic" if model.startswith("claude") else "openai"
    with tempfile.TemporaryDirectory() as folder:
        policy = Path(folder) / "policy.toml"
        policy.write_text(SHIPPED_POLICY.read_text("utf-8") + f'\n[limits."*"]\nin_flight = {in_flight}\n')
        with (
            running_fleet(
                database_url, redis_url, sandbox.url, Path(folder), workers={provider: workers},
                env={"WAYBILL_POLICY_FILE": str(policy)},
            ) as fleet,
            Client(database_url, redis_url) as client,
        ):  # fmt: skip
            assert fleet.alive("control")
            began = time.monotonic()
            ids = client.submit_many(jobs)
            done = sum(outcome.result is not None for outcome in client.results(ids, timeout_s=300))
            seconds = time.monotonic() - began
    log = whole_log(sandbox)
    with psycopg.connect(database_url.replace("postgresql+psycopg", "postgresql")) as connection:
        row = connection.execute("select sum(cost_usd), count(*) from attempts where service <> 'reuse'").fetchone()
    assert row is not None
    answered = [line["usage"] for line in log if line["status"] == 200]
    return {
        "jobs": len(ids),
        "succeeded": done,
        "calls": row[1],
        "writes": sum(usage["cache_write_tokens"] > 0 for usage in answered),
        "reads": sum(usage["cache_read_tokens"] > 0 for usage in answered),
        "cost_ratio_to_optimum": ratio(input_usd(log, model), optimum_usd(log, model)),
        "input_usd": str(input_usd(log, model)),
        "bill_agrees": Decimal(str(sandbox.bill()["total_usd"])) == row[0],
        "seconds": round(seconds, 1),
        "optimum_usd": str(optimum_usd(log, model)),
    }


async def send_naively(url: str, jobs: Sequence[Job], model: str, in_flight: int, way: str) -> None:
    """The jobs by the plain SDK, so many at a time."""
    places = asyncio.Semaphore(in_flight)
    client = AsyncAnthropic(base_url=url, api_key=f"sandbox-{way}", max_retries=0)

    async def send(job: Job) -> None:
        block: dict[str, Any] = {"type": "text", "text": job.context}
        if way == "marked":
            block["cache_control"] = {"type": "ephemeral"}
        more: dict[str, Any] = {"cache_control": {"type": "ephemeral"}} if way == "automatic" else {}
        async with places:
            await client.messages.create(
                model=model,
                max_tokens=1024,
                messages=[{"role": "user", "content": [block, {"type": "text", "text": job.prompt}]}],  # type: ignore[list-item]
                **more,
            )

    async with client:
        await asyncio.gather(*(send(job) for job in jobs))


def ratio(one: Decimal, other: Decimal) -> float:
    """Rounded for people."""
    return round(float(one / other), 4)


def main(arguments: Sequence[str]) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="./run bench prefix", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--tokens", type=int, default=4000, help="of the shared prefix")
    parser.add_argument("--in-flight", type=int, default=50)
    parser.add_argument("--workers", type=int, default=2, help="worker processes of the provider")
    parser.add_argument("--latency", default="model:0.3", help="of the sandbox's answers")
    parser.add_argument("--model", default="claude-haiku-5-5", choices=sorted(PRICES))
    options = parser.parse_args(arguments)
    model = options.model
    jobs = make_jobs(options.jobs, options.tokens, model, "bench")
    with (
        tempfile.TemporaryDirectory() as state,
        embedded.services(Path(state)) as services,
        spawned("--latency", options.latency, "--limit", ROOMY) as sandbox,
    ):
        figures = measure_fleet(services, sandbox, jobs, model, options.in_flight, options.workers)
        optimum = Decimal(figures["optimum_usd"])
        if model.startswith("claude"):
            for way, name in (
                ("plain", "naive_ratio"),
                ("automatic", "naive_automatic_ratio"),
                ("marked", "naive_marked_ratio"),
            ):
                sandbox.reset()
                asyncio.run(send_naively(sandbox.url, jobs, model, options.in_flight, way))
                figures[name] = ratio(input_usd(whole_log(sandbox), model), optimum)
    if options.json:
        print(json.dumps(figures))
        return
    for key, value in figures.items():
        print(f"{key:>22}  {value}")
