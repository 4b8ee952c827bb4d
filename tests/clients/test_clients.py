"""Real clients through the gateway. The short version needs no installs: curl, and the SDKs of this environment.

WAYBILL_SLOW=1 (or `./run clients`) runs all, each with its pinned versions in a venv of its own.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from tests.clients.__main__ import PROGRAMS, WAYS, names, run_all, run_client
from tests.fleet import ROOT


@pytest.mark.parametrize("way", list(WAYS))
def test_the_sdks_of_this_environment(gateway: str, way: str) -> None:
    outcome = run_client("sdks", [sys.executable, str(PROGRAMS / "sdks.py")], gateway, way)

    assert outcome.failed == {}
    assert len(outcome.passed) >= 16


@pytest.mark.parametrize("way", list(WAYS))
def test_curl(gateway: str, way: str) -> None:
    if shutil.which("curl") is None:
        pytest.skip("there is no curl here")

    outcome = run_client("curl", ["sh", str(PROGRAMS / "curl.sh")], gateway, way)

    assert outcome.failed == {}
    assert len(outcome.passed) >= 10


@pytest.mark.timeout(3600)
def test_all_clients(tmp_path: Path) -> None:
    if os.environ.get("WAYBILL_SLOW") != "1":
        pytest.skip("installs a dozen clients; set WAYBILL_SLOW=1 or run ./run clients")

    found = run_all(names(), ROOT / ".waybill" / "clients", say=False)

    assert len({outcome.client for outcome in found}) >= 8
    assert {(o.client, o.way): o.unexpected for o in found if o.unexpected} == {}
