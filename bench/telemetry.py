"""What seeing costs: the fleet with Celery events, metrics and tracing against the same fleet without them.

Both run the same jobs on the same services in turns, quiet first, then seeing, so that a machine that is busy meanwhile is
busy for both. Seeing means: events for Flower, log lines as JSON, spans to an OTLP collector on this machine, and an exporter
that is scraped every five seconds (Prometheus asks every 15 or 30). Both write log lines (a fleet says by one that it is ready)
and deliver their counts.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from statistics import median
from typing import Any

from bench.throughput import ROOMY, cpu_s, prompts
from sandbox.testing import spawned
from tests.fleet import ROOT, clean_environment, running_fleet
from waybill import Client, Job, embedded
from waybill.cli.db import run_upgrade
from waybill.cli.up import free_port, waybill_argv

PARTS = ("events", "logs", "metrics", "traces")
FLEET = ("dispatcher", "anthropic", "control")


class Collector(BaseHTTPRequestHandler):
    """Takes spans and forgets them."""

    spans = 0

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        type(self).spans += 1
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *args: Any) -> None:
        """Quiet."""


@contextmanager
def collecting() -> Iterator[str]:
    """An OTLP collector."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@contextmanager
def scraped(env: Mapping[str, str], logs: Path) -> Iterator[None]:
    """The exporter, asked every five seconds."""
    port, stop = free_port(), threading.Event()
    with (logs / "metrics.log").open("wb") as log:
        exporter = subprocess.Popen(
            [*waybill_argv(), "metrics"],
            env={**clean_environment(), **env, "WAYBILL_METRICS_PORT": str(port)},
            cwd=ROOT,
            stdout=log,
            stderr=log,
        )

    def scrape() -> None:
        while not stop.wait(5.0):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30).read()
            except OSError:
                continue

    thread = threading.Thread(target=scrape)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        exporter.terminate()
        exporter.wait(30)


def run(
    database_url: str, redis_url: str, sandbox_url: str, jobs: int, rounds: int, parts: Sequence[str], collector: str
) -> dict[str, Any]:
    """Rates and CPU of a fleet with these parts of PARTS on."""
    env = {"WAYBILL_TASK_EVENTS": str("events" in parts).lower()}
    if "traces" in parts:
        env["OTEL_EXPORTER_OTLP_ENDPOINT"] = collector
    if "logs" in parts:
        env["WAYBILL_LOG_FORMAT"] = "json"
    rates: list[float] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        running_fleet(database_url, redis_url, sandbox_url, Path(folder), env=env) as fleet,
        Client(database_url, redis_url) as client,
    ):

        def work(count: int) -> float:
            batch = [Job(intent="extraction", prompt=text, priority="lo", reuse=False) for text in prompts(count)]
            began = time.monotonic()
            done = sum(
                outcome.result is not None for outcome in client.results(client.submit_many(batch), timeout_s=600)
            )
            assert done == count, f"{count - done} jobs failed"
            return count / (time.monotonic() - began)

        work(100)
        before = sum(cpu_s(fleet.pid(name)) for name in FLEET)
        with scraped(fleet.env, Path(folder)) if "metrics" in parts else nullcontext():
            rates = [work(jobs) for _ in range(rounds)]
        cpu = sum(cpu_s(fleet.pid(name)) for name in FLEET) - before
    return {"rates": rates, "cpu_us": cpu / (jobs * rounds) * 1e6}


def main(arguments: Sequence[str]) -> None:
    """Measure in turns and print."""
    parser = argparse.ArgumentParser(prog="./run bench telemetry", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--jobs", type=int, default=1500)
    parser.add_argument("--rounds", type=int, default=2, help="per turn")
    parser.add_argument("--turns", type=int, default=2, help="of each, alternating")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what seeing means; default: all")
    options = parser.parse_args(arguments)
    told: dict[str, list[dict[str, Any]]] = {"quiet": [], "seeing": []}
    with (
        tempfile.TemporaryDirectory() as state,
        embedded.services(Path(state)) as services,
        spawned("--latency", "fixed:50ms", "--limit", ROOMY) as sandbox,
        collecting() as collector,
    ):
        urls = (str(services.database_url), str(services.redis_url), sandbox.url)
        run_upgrade(urls[0])
        for _ in range(options.turns):
            told["quiet"].append(run(*urls, options.jobs, options.rounds, (), collector))
            told["seeing"].append(run(*urls, options.jobs, options.rounds, options.parts, collector))
    figures: dict[str, Any] = {
        "parts": list(options.parts),
        "jobs": options.jobs,
        "rounds": options.rounds * options.turns,
    }
    for name, turns in told.items():
        figures[f"{name}_jobs_per_s"] = round(median(rate for turn in turns for rate in turn["rates"]), 1)
        figures[f"{name}_cpu_us_per_job"] = round(median(turn["cpu_us"] for turn in turns))
    figures["throughput_ratio"] = round(figures["seeing_jobs_per_s"] / figures["quiet_jobs_per_s"], 3)
    figures["cpu_ratio"] = round(figures["seeing_cpu_us_per_job"] / figures["quiet_cpu_us_per_job"], 3)
    figures["span_batches"] = Collector.spans
    if options.json:
        print(json.dumps(figures))
        return
    for key, value in figures.items():
        print(f"{key:>24}  {value}")
