"""What seeing costs: the fleet with Celery events, metrics and tracing beside the same fleet without them.

Both are up all the time, each with a ledger and a Redis database of its own on the same servers, and work in turns of some
seconds: quiet, seeing, quiet, seeing ... The ratio of each pair of neighbours is taken, then the median of the ratios, so that a
machine that is busy meanwhile, or gets slower, is so for both. Seeing means: events for Flower, log lines as JSON, spans to an
OTLP collector on this machine, and an exporter that is scraped every five seconds of its turns (Prometheus asks every 15 or 30).
Both write log lines (a fleet says by one that it is ready) and deliver their counts.

Throughput counts everything: collector, exporter, Postgres, Redis and sandbox share the machine. CPU is that of the fleet's
processes.
"""

from __future__ import annotations

import argparse
import json
import os
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
from tests.fleet import ROOT, RunningFleet, clean_environment, running_fleet
from waybill import Client, Job, embedded
from waybill.cli.db import run_upgrade
from waybill.cli.up import free_port, waybill_argv

PARTS = ("events", "logs", "metrics", "traces")
FLEET = ("dispatcher", "anthropic", "control")
SETTLE_S = 2.5


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


class Scraped:
    """The exporter, asked every five seconds while `on`."""

    def __init__(self, env: Mapping[str, str], logs: Path) -> None:
        self.on = threading.Event()
        self._stop = threading.Event()
        self._port = free_port()
        with (logs / "metrics.log").open("wb") as log:
            self._exporter = subprocess.Popen(
                [*waybill_argv(), "metrics"],
                env={**clean_environment(), **env, "WAYBILL_METRICS_PORT": str(self._port)},
                cwd=ROOT,
                stdout=log,
                stderr=log,
            )
        self._thread = threading.Thread(target=self._scrape)
        self._thread.start()

    def _scrape(self) -> None:
        while not self._stop.wait(5.0):
            if not self.on.is_set():
                continue
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self._port}/metrics", timeout=30).read()
            except OSError:
                continue

    def __enter__(self) -> Scraped:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._exporter.terminate()
        self._exporter.wait(30)


class Side:
    """One of the two fleets, with what it has done."""

    def __init__(self, fleet: RunningFleet, client: Client, scraped: Scraped | None) -> None:
        self._fleet = fleet
        self._client = client
        self._scraped = scraped

    def work(self, count: int) -> tuple[float, float]:
        """Jobs a second, and CPU microseconds a job."""
        if self._scraped is not None:
            self._scraped.on.set()
        batch = [Job(intent="extraction", prompt=text, priority="lo", reuse=False) for text in prompts(count)]
        cpu, began = self._cpu_s(), time.monotonic()
        done = sum(
            outcome.result is not None
            for outcome in self._client.results(self._client.submit_many(batch), timeout_s=600)
        )
        assert done == count, f"{count - done} jobs failed"
        rate = count / (time.monotonic() - began)
        if self._scraped is not None:
            self._scraped.on.clear()
        time.sleep(SETTLE_S)  # what follows the jobs (events, spans, counts) belongs to them
        return rate, (self._cpu_s() - cpu) / count * 1e6

    def _cpu_s(self) -> float:
        return sum(cpu_s(self._fleet.pid(name)) for name in FLEET)


@contextmanager
def side(
    services: embedded.Services, name: str, number: int, sandbox_url: str, parts: Sequence[str], collector: str
) -> Iterator[Side]:
    """A fleet with these parts of PARTS on."""
    env = {"WAYBILL_TASK_EVENTS": str("events" in parts).lower()}
    if "traces" in parts:
        env["OTEL_EXPORTER_OTLP_ENDPOINT"] = collector
    if "logs" in parts:
        env["WAYBILL_LOG_FORMAT"] = "json"
    database_url = embedded.create_database(str(services.database_url), f"telemetry_{name}")
    run_upgrade(database_url)
    redis_url = f"{str(services.redis_url).rsplit('/', 1)[0]}/{number}"
    with (
        tempfile.TemporaryDirectory() as folder,
        running_fleet(database_url, redis_url, sandbox_url, Path(folder), env=env) as fleet,
        Client(database_url, redis_url) as client,
        Scraped(fleet.env, Path(folder)) if "metrics" in parts else nullcontext() as scraped,
    ):
        yield Side(fleet, client, scraped)


def main(arguments: Sequence[str]) -> None:
    """Measure in turns and print."""
    parser = argparse.ArgumentParser(prog="./run bench telemetry", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument(
        "--jobs",
        type=int,
        default=3000,
        help="per turn; a turn must be long beside the seconds in which things are sent",
    )
    parser.add_argument("--rounds", type=int, default=6, help="turns of each, alternating")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what seeing means; default: all")
    options = parser.parse_args(arguments)
    turns: dict[str, list[tuple[float, float]]] = {"quiet": [], "seeing": []}
    with (
        tempfile.TemporaryDirectory() as state,
        embedded.services(Path(state)) as services,
        spawned("--latency", "fixed:50ms", "--limit", ROOMY) as sandbox,
        collecting() as collector,
        side(services, "quiet", 1, sandbox.url, (), collector) as quiet,
        side(services, "seeing", 2, sandbox.url, options.parts, collector) as seeing,
    ):
        sides = {"quiet": quiet, "seeing": seeing}
        for one in sides.values():
            one.work(200)
        for number in range(options.rounds):
            # Each goes first as often as the other.
            for name in sorted(sides, reverse=number % 2 == 1):
                turns[name].append(sides[name].work(options.jobs))
    ratios = list(zip(*(turns[name] for name in ("seeing", "quiet")), strict=True))
    rate_ratios = [with_[0] / without[0] for with_, without in ratios]
    figures: dict[str, Any] = {"parts": list(options.parts), "jobs": options.jobs, "rounds": options.rounds}
    for name, done in turns.items():
        figures[f"{name}_jobs_per_s"] = round(median(rate for rate, _ in done), 1)
        figures[f"{name}_cpu_us_per_job"] = round(median(cpu for _, cpu in done))
    figures["throughput_ratio"] = round(median(rate_ratios), 3)
    figures["throughput_ratios"] = [round(ratio, 2) for ratio in sorted(rate_ratios)]
    figures["cpu_ratio"] = round(median(with_[1] / without[1] for with_, without in ratios), 3)
    figures["span_batches"] = Collector.spans
    figures["load"] = round(os.getloadavg()[0], 1)
    if options.json:
        print(json.dumps(figures))
        return
    for key, value in figures.items():
        print(f"{key:>24}  {value}")
