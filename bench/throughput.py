"""Jobs per second end to end, and CPU per job, beside a naive Celery app, in one run on the same services.

Both call the same sandbox (50 ms per answer) with the official SDK and end with a row in the same Postgres. CPU is user +
system time of the processes that would be deployed (workers, dispatcher, control; the naive worker and its children), not
of sandbox, Postgres or Redis. Everything shares this machine's cores, so jobs/s is a lower bound and only ratios travel.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import psycopg
import redis

from sandbox.testing import spawned
from tests.fleet import ROOT, clean_environment, running_fleet
from waybill import Client, Job, embedded
from waybill.cli.db import run_upgrade

ROOMY = "*:rpm=100000000,itpm=100000000000,otpm=100000000000,tpm=100000000000"
TICK = os.sysconf("SC_CLK_TCK")


def cpu_s(pid: int) -> float:
    """User + system seconds of a process and the children it has waited for."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return sum(int(fields[i]) for i in (11, 12, 13, 14)) / TICK


def rss_mb(pid: int) -> float:
    """Resident memory."""
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def prompts(count: int) -> list[str]:
    """Small jobs, all different."""
    return [f"Invoice {number}: 3 chairs at 20.00 each. Total 60.00. Give the total." for number in range(count)]


def measure_fleet(database_url: str, redis_url: str, sandbox_url: str, jobs: int, rounds: int) -> dict[str, object]:
    """Run `rounds` times `jobs` jobs through the fleet."""
    with (
        tempfile.TemporaryDirectory() as logs,
        running_fleet(database_url, redis_url, sandbox_url, Path(logs)) as fleet,
        Client(database_url, redis_url) as client,
    ):
        names = ("dispatcher", "anthropic", "control")
        warm = client.submit_many(
            [Job(intent="extraction", prompt=text, priority="lo", reuse=False) for text in prompts(100)]
        )
        assert all(outcome.result for outcome in client.results(warm, timeout_s=120))
        rates, memory = [], [rss_mb(fleet.pid("anthropic"))]
        cpu_before = sum(cpu_s(fleet.pid(name)) for name in names)
        for _ in range(rounds):
            work = [Job(intent="extraction", prompt=text, priority="lo", reuse=False) for text in prompts(jobs)]
            began = time.monotonic()
            ids = client.submit_many(work)
            done = sum(outcome.result is not None for outcome in client.results(ids, timeout_s=600))
            rates.append(jobs / (time.monotonic() - began))
            memory.append(rss_mb(fleet.pid("anthropic")))
            assert done == jobs, f"{jobs - done} jobs failed"
        cpu = sum(cpu_s(fleet.pid(name)) for name in names) - cpu_before
    return {
        "jobs": jobs,
        "rounds": rounds,
        "jobs_per_s": round(sorted(rates)[len(rates) // 2], 1),
        "jobs_per_s_all": [round(rate, 1) for rate in rates],
        "cpu_us_per_job": round(cpu / (jobs * rounds) * 1e6),
        "worker_rss_mb": [round(mb, 1) for mb in memory],
    }


def measure_naive(database_url: str, redis_url: str, sandbox_url: str, jobs: int) -> dict[str, object]:
    """The same work with the naive app."""
    plain_url = database_url.replace("postgresql+psycopg", "postgresql")
    env = {
        **clean_environment(),
        "NAIVE_REDIS_URL": redis_url,
        "NAIVE_DATABASE_URL": plain_url,
        "ANTHROPIC_API_KEY": "sandbox-naive",
        "ANTHROPIC_BASE_URL": sandbox_url,
    }
    os.environ["NAIVE_REDIS_URL"] = redis_url
    with psycopg.connect(plain_url, autocommit=True) as connection, tempfile.TemporaryFile() as log:
        connection.execute("create table naive_results (number int, answer text, input_tokens int, output_tokens int)")
        worker = subprocess.Popen(
            [sys.executable, "-m", "celery", "-A", "bench.naive_app", "worker", "--concurrency", "2", "-l", "WARNING"],
            env=env,
            cwd=ROOT,
            stdout=log,
            stderr=log,
        )
        try:
            from bench.naive_app import extract

            def run(texts: Sequence[str], already: int) -> float:
                began = time.monotonic()
                for number, text in enumerate(texts):
                    extract.delay(number, text)
                while True:
                    row = connection.execute("select count(*) from naive_results").fetchone()
                    assert row is not None
                    if row[0] >= already + len(texts):
                        return time.monotonic() - began
                    assert worker.poll() is None, "the naive worker ended"
                    assert time.monotonic() < began + 300, "the naive worker does not get on"
                    time.sleep(0.01)

            run(prompts(10), 0)
            children = [int(pid) for pid in Path(f"/proc/{worker.pid}/task/{worker.pid}/children").read_text().split()]
            before = sum(cpu_s(pid) for pid in (worker.pid, *children))
            seconds = run(prompts(jobs), 10)
            cpu = sum(cpu_s(pid) for pid in (worker.pid, *children)) - before
        finally:
            worker.terminate()
            worker.wait(30)
    return {
        "naive_jobs": jobs,
        "naive_jobs_per_s": round(jobs / seconds, 1),
        "naive_cpu_us_per_job": round(cpu / jobs * 1e6),
    }


def main(arguments: Sequence[str]) -> None:
    """Measure both and print."""
    parser = argparse.ArgumentParser(prog="./run bench throughput", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--jobs", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--naive-jobs", type=int, default=300)
    options = parser.parse_args(arguments)
    with (
        tempfile.TemporaryDirectory() as state,
        embedded.services(Path(state)) as services,
        spawned("--latency", "fixed:50ms", "--limit", ROOMY) as sandbox,
    ):
        database_url, redis_url = str(services.database_url), str(services.redis_url)
        run_upgrade(database_url)
        figures = measure_fleet(database_url, redis_url, sandbox.url, options.jobs, options.rounds)
        with redis.Redis.from_url(redis_url) as connection:
            connection.flushdb()
        figures |= measure_naive(database_url, redis_url, sandbox.url, options.naive_jobs)
    figures["ratio"] = round(float(str(figures["jobs_per_s"])) / float(str(figures["naive_jobs_per_s"])), 2)
    figures["cpu_ratio"] = round(float(str(figures["naive_cpu_us_per_job"])) / float(str(figures["cpu_us_per_job"])), 2)
    if options.json:
        print(json.dumps(figures))
        return
    for key, value in figures.items():
        print(f"{key:>22}  {value}")
