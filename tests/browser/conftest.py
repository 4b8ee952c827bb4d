"""One real Chromium for this folder. Missing it skips at home; with CI=true it fails, because .ci/run installs it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Error, expect, sync_playwright

CHROMIUM = Path(os.environ.get("WAYBILL_CHROMIUM", "/usr/bin/chromium"))
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
# How long is waited for what is expected; nothing is said by it about how quick anything is.
expect.set_options(timeout=60_000)


# Not longer: Playwright's loop would run on below all later tests, and none that is async could start its own.
@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """Chromium, headless."""
    if not CHROMIUM.exists():
        if os.environ.get("CI") == "true":
            pytest.fail(f"{CHROMIUM} is missing; .ci/run installs it")
        pytest.skip(f"no Chromium at {CHROMIUM}; apt-get install chromium, or set WAYBILL_CHROMIUM")
    with sync_playwright() as playwright:
        try:
            started = playwright.chromium.launch(executable_path=str(CHROMIUM), args=list(FLAGS))
        except Error as exc:
            pytest.fail(f"Chromium does not start: {exc}")
        yield started
        started.close()
