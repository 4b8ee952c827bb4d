"""How soon the dashboard is there: a real Chromium opens it again and again, over a ledger with thousands of jobs.

Measured from the navigation to the first numbers on the page (not to the first paint: an empty page helps nobody), each time
in a fresh context, so that nothing is cached. Beside it the same data asked for by itself: what the page adds is the gap.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from playwright.sync_api import sync_playwright

from bench.throughput import ROOMY, prompts
from sandbox.testing import spawned
from tests.fleet import running_fleet
from waybill import Client, Job, embedded
from waybill.cli.db import run_upgrade

CHROMIUM = os.environ.get("WAYBILL_CHROMIUM", "/usr/bin/chromium")
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking")


def main(arguments: Sequence[str]) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="./run bench dashboard", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--jobs", type=int, default=3000, help="that are on the ledger")
    parser.add_argument("--loads", type=int, default=15)
    options = parser.parse_args(arguments)
    with (
        tempfile.TemporaryDirectory() as state,
        embedded.services(Path(state)) as services,
        spawned("--latency", "fixed:20ms", "--limit", ROOMY) as sandbox,
    ):
        database_url, redis_url = str(services.database_url), str(services.redis_url)
        run_upgrade(database_url)
        with (
            running_fleet(database_url, redis_url, sandbox.url, Path(state), gateway=True) as fleet,
            Client(database_url, redis_url) as client,
        ):
            work = [Job(intent="extraction", prompt=text, priority="lo") for text in prompts(options.jobs)]
            done = list(client.results(client.submit_many(work), timeout_s=1200))
            assert len(done) == options.jobs
            loads, asks = _measure(f"{fleet.gateway_url}/dashboard", options.loads)
    figures = {
        "jobs": options.jobs,
        "loads": options.loads,
        "first_numbers_s": round(median(loads), 3),
        "worst_s": round(max(loads), 3),
        "the_data_alone_s": round(median(asks), 3),
        "load": round(os.getloadavg()[0], 1),
    }
    if options.json:
        print(json.dumps(figures))
        return
    for key, value in figures.items():
        print(f"{key:>20}  {value}")


def _measure(url: str, count: int) -> tuple[list[float], list[float]]:
    """Seconds of each load, and of each request for the data alone."""
    loads, asks = [], []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        api = playwright.request.new_context()
        for _ in range(count + 1):
            context = browser.new_context(viewport={"width": 1440, "height": 900})
            page = context.new_page()
            began = time.perf_counter()
            page.goto(url, wait_until="commit")
            page.locator("#tiles b").first.wait_for()
            loads.append(time.perf_counter() - began)
            context.close()
            time.sleep(2.0)  # the gateway shows a look of the last 1.8 s again
            began = time.perf_counter()
            api.get(f"{url}/state").body()
            asks.append(time.perf_counter() - began)
            time.sleep(2.0)
        browser.close()
    return loads[1:], asks[1:]  # the browser's first is its own start
