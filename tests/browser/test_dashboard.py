"""The dashboard in a real browser, over a real fleet: what an outage looks like, what a key may see, and that nothing is loud."""

from __future__ import annotations

import http.client
import itertools
import json
import os
import re
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from sandbox.testing import Running, running
from tests.fleet import ROOT, clean_environment, running_fleet
from waybill import Client, Job, embedded
from waybill.cli.db import run_upgrade
from waybill.cli.up import free_port, waybill_argv
from waybill.embedded.folder import StateFolder
from workers.runtime import SHIPPED_POLICY

SLOW = os.environ.get("WAYBILL_SLOW") == "1"
OUTAGE_S = 600.0 if SLOW else 6.0
"""The whole ten minutes with WAYBILL_SLOW=1."""
SHOTS = os.environ.get("WAYBILL_SCREENSHOTS")
PROMPT = "CANARY-PROMPT the patient Lindqvist"
TENANT = "CANARY-TENANT"
_numbers = itertools.count()


@dataclass
class Scene:
    url: str
    client: Client
    sandbox: Running
    services: embedded.Services

    @contextmanager
    def redis_down(self) -> Iterator[None]:
        """Kill Redis, and let nobody start it again before the end of the block."""
        record = StateFolder(self.services.state_dir).record()
        assert record is not None
        keeper = int(record["keeper"]["pid"])
        os.kill(keeper, signal.SIGSTOP)
        try:
            os.kill(self.services.pids()["valkey"], signal.SIGKILL)
            yield
        finally:
            os.kill(keeper, signal.SIGCONT)

    def submit(self, count: int, **fields: Any) -> list[str]:
        jobs = [
            # No two are alike: the fleet answers a question it knows without a call.
            Job(intent=intent, prompt=f"{PROMPT} {next(_numbers)}", tenant=TENANT, **fields)
            for _ in range(count)
            for intent in ("extraction", "summarization", "reasoning")
        ]
        return self.client.submit_many(jobs)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """A fleet and a gateway on servers of their own, which may be killed."""
    logs = tmp_path_factory.mktemp("logs")
    with embedded.services(tmp_path_factory.mktemp("dashboard")) as services, running() as sandbox:
        database_url, redis_url = str(services.database_url), str(services.redis_url)
        run_upgrade(database_url)
        sandbox.latency("fixed:40ms")
        policy = logs / "policy.toml"
        policy.write_text(SHIPPED_POLICY.read_text() + "[batches]\nlinger_s = 0.5\npoll_s = 0.5\n")
        with (
            running_fleet(
                database_url, redis_url, sandbox.url, logs, env={"WAYBILL_POLICY_FILE": str(policy)}
            ) as fleet,
            Client(database_url, redis_url) as client,
        ):
            port = free_port()
            env = {**clean_environment(), **fleet.env, "WAYBILL_GATEWAY_PORT": str(port)}
            with (logs / "gateway.log").open("wb") as log:
                gateway = subprocess.Popen([*waybill_argv(), "gateway"], env=env, cwd=ROOT, stdout=log, stderr=log)
            url = f"http://127.0.0.1:{port}/dashboard"
            end = time.monotonic() + 180
            while True:
                try:
                    urllib.request.urlopen(url, timeout=10).close()
                    break
                except OSError:
                    assert gateway.poll() is None, (logs / "gateway.log").read_text()
                    assert time.monotonic() < end
                    time.sleep(0.1)
            yield Scene(url, client, sandbox, services)
            gateway.terminate()
            gateway.wait(60)
            assert "Traceback" not in (logs / "gateway.log").read_text()


@pytest.fixture
def page(browser: Browser, scene: Scene) -> Iterator[Page]:
    """A tab; it fails the test at its end when the console had an error or anything was asked of another host."""
    context = browser.new_context(viewport={"width": 1440, "height": 900}, color_scheme="light")
    tab = context.new_page()
    trouble: list[str] = []
    tab.on("console", lambda message: trouble.append(message.text) if message.type in ("error", "warning") else None)
    tab.on("pageerror", lambda error: trouble.append(str(error)))
    tab.on(
        "request",
        lambda request: (
            trouble.append(request.url) if not request.url.startswith(("http://127.0.0.1:", "data:")) else None
        ),
    )
    yield tab
    context.close()
    assert trouble == []


def shot(page: Page, name: str) -> None:
    """Keep a picture where somebody wants to look at it."""
    if SHOTS:
        Path(SHOTS).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=f"{SHOTS}/{name}.png", full_page=True)
        page.screenshot(path=f"{SHOTS}/{name}-top.png")


def test_the_page_is_small_and_whole_at_once(page: Page, scene: Scene) -> None:
    sizes: dict[str, int] = {}
    page.on(
        "response", lambda r: sizes.update({r.url.rpartition("/")[2]: len(r.body())}) if "live" not in r.url else None
    )

    page.goto(scene.url)
    expect(page.locator("#tiles b").first).to_be_visible()

    assert set(sizes) == {"dashboard", "app.css", "app.js"}, "nothing but itself is loaded: no font, no framework"
    assert sum(sizes.values()) < 60_000


@pytest.mark.timeout(OUTAGE_S + 600)
def test_an_outage_is_understood_from_the_page_alone(page: Page, scene: Scene) -> None:
    list(scene.client.results(scene.submit(5, priority="lo"), timeout_s=150))
    page.goto(scene.url)
    expect(page.locator("#verdict")).to_have_text("All lanes are well")

    scene.sandbox.fault("overloaded", model="claude-*")
    ids: list[str] = []
    began = time.monotonic()
    pictures = [OUTAGE_S / 10, OUTAGE_S / 2]
    while (passed_s := time.monotonic() - began) < OUTAGE_S:
        ids += scene.submit(2) + scene.submit(1, priority="lo")
        if pictures and passed_s > pictures[0]:
            shot(page, f"outage-after-{pictures.pop(0):.0f}-s")
        time.sleep(1.0 if SLOW else 0.5)
    expect(page.locator("#verdict")).to_contain_text("out or coming back", timeout=90_000)
    expect(page.locator("#lanes .open, #lanes .half_open").first).to_be_visible()
    expect(page.locator("#lanes tr.why").first).to_contain_text("529")
    expect(page.locator("#detours td").first).to_contain_text("claude", timeout=90_000)
    expect(page.locator("#extra")).to_contain_text("$")
    expect(page.locator("#changes li").first).to_contain_text("->")
    expect(page.locator("#notes")).to_contain_text("closed → open")
    expect(page.locator("#notes")).not_to_contain_text("half open → open")
    expect(page.locator("section", has=page.locator("#detours"))).to_contain_text("rather than pay for a dearer model")
    shot(page, "outage")

    scene.sandbox.clear_faults()
    with scene.redis_down():
        expect(page.locator("#verdict")).to_have_text("Redis is away", timeout=90_000)
        expect(page.locator(".banner").first).to_contain_text("jobs wait on the ledger")
        expect(page.locator("#lanes .unknown").first).to_be_visible()
        expect(page.locator("#lanes .closed")).to_have_count(0)
        shot(page, "redis-away")
    expect(page.locator("#notes")).to_contain_text("Redis: away → there", timeout=90_000)
    outcomes = list(scene.client.results(ids, timeout_s=240))
    assert len(outcomes) == len(ids)
    assert all(outcome.result for outcome in outcomes), "nothing was lost"
    end = time.monotonic() + 180
    while page.locator("#verdict").inner_text() != "All lanes are well":
        assert time.monotonic() < end, page.locator("#verdict").inner_text()
        list(scene.client.results(scene.submit(1), timeout_s=150))  # a lane is probed by jobs, not by itself
    shot(page, "after")

    assert "CANARY" not in page.content()
    assert "Lindqvist" not in page.content()


def test_a_batch_at_the_provider_is_seen_until_it_ends(page: Page, scene: Scene) -> None:
    page.goto(scene.url)
    expect(page.locator("#batches")).to_have_text("No batch is at a provider.")

    scene.sandbox.batch_pace(turnaround_s=8)
    ids = scene.submit(2, deadline_s=86_400)
    expect(page.locator("#batches tbody tr").first).to_contain_text("batch_", timeout=60_000)
    shot(page, "batches")
    outcomes = list(scene.client.results(ids, timeout_s=150))

    assert all(outcome.result for outcome in outcomes)
    expect(page.locator("#batches")).to_have_text("No batch is at a provider.", timeout=60_000)
    assert "CANARY" not in page.content()


def test_a_jobs_story_is_found_by_keyboard(page: Page, scene: Scene) -> None:
    [job_id, *_] = ids = scene.submit(1)
    list(scene.client.results(ids, timeout_s=150))
    page.goto(scene.url)
    expect(page.locator("#tiles b").first).to_be_visible()

    page.keyboard.press("/")
    page.keyboard.type(job_id)
    page.keyboard.press("Enter")
    expect(page.locator("#story-text")).to_contain_text("attempt 1 on")
    expect(page.locator("#story-text")).to_contain_text("cost  ")
    told = page.locator("#story-text").inner_text()
    assert "CANARY" not in told
    page.keyboard.press("Escape")
    expect(page.locator("#story")).to_be_hidden()


def test_a_job_that_is_not_there_is_said_in_the_page(browser: Browser, scene: Scene) -> None:
    page = browser.new_page()
    page.goto(scene.url)
    page.locator("#job").fill("00000000-0000")
    page.locator("#search button").click()

    expect(page.locator("#story-text")).to_contain_text("no job 00000000-0000 in this ledger")
    page.close()


def test_dark_and_phone_need_no_sideways_scrolling(page: Page, scene: Scene) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    page.goto(scene.url)
    expect(page.locator("#lanes td").first).to_be_visible()
    background = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(background)

    page.keyboard.press("t")
    page.keyboard.press("t")

    assert page.evaluate(background) != light
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    shot(page, "phone")


def test_text_contrast_is_readable_in_both_themes(page: Page, scene: Scene) -> None:
    page.goto(scene.url)
    for theme in ("light", "dark"):
        page.evaluate(f"document.documentElement.dataset.theme = '{theme}'")
        colours = page.evaluate(
            "(() => { const s = getComputedStyle(document.documentElement); const o = {};"
            " for (const n of ['ink','soft','good','warn','bad','accent','card']) o[n] = s.getPropertyValue('--' + n).trim();"
            " return o })()"
        )
        for name, value in colours.items():
            if name != "card":
                assert contrast(value, colours["card"]) >= 4.5, f"{name} on card, {theme}"


def contrast(one: str, other: str) -> float:
    """WCAG's ratio of two colours."""

    def luminance(colour: str) -> float:
        digits = colour.lstrip("#")
        digits = "".join(c * 2 for c in digits) if len(digits) == 3 else digits
        parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_what_is_live_goes_on_and_holds_no_text_of_jobs(scene: Scene) -> None:
    connection = http.client.HTTPConnection(scene.url.split("/")[2], timeout=60)
    connection.request("GET", "/dashboard/live")
    with connection.getresponse() as stream:
        events = [json.loads(line[6:]) for line in (stream.readline() for _ in range(7)) if line.startswith(b"data: ")]
    connection.close()

    assert len(events) == 2
    assert re.match(r"\d{4}-", events[0]["at"])
    assert "CANARY" not in json.dumps(events)


def test_pages_of_other_sites_get_nothing(scene: Scene) -> None:
    request = urllib.request.Request(scene.url + "/state", headers={"origin": "https://evil.example"})

    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=60)
    refused.value.close()
    assert refused.value.code == 403
