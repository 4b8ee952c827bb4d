"""schemathesis over the gateway's own OpenAPI document: no 5xx, no undocumented status. Lives in a venv of its own."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import httpx2
import pytest

from sandbox.testing import spawned
from tests.clients.__main__ import environment
from tests.fleet import ROOT, running_fleet
from waybill import embedded
from waybill.cli.db import run_upgrade


@pytest.mark.timeout(900)
def test_schemathesis_finds_no_server_error_and_no_undocumented_answer(tmp_path: Path) -> None:
    if os.environ.get("WAYBILL_SLOW") != "1":
        pytest.skip("installs schemathesis and takes minutes; set WAYBILL_SLOW=1")
    python = environment("schemathesis", ROOT / ".waybill" / "clients")
    # Of its own: it makes keys, which ends the development mode that other tests' fleets are in.
    with embedded.services(tmp_path / "services") as services, spawned("--latency", "none") as box:
        database_url = embedded.create_database(str(services.database_url), "schemathesis")
        run_upgrade(database_url)
        (tmp_path / "logs").mkdir()
        with running_fleet(database_url, str(services.redis_url), box.url, tmp_path / "logs", gateway=True) as fleet:
            url = fleet.gateway_url
            asked = {"tenant": "default", "scopes": ["call", "jobs", "admin"]}
            key = httpx2.post(f"{url}/v1/admin/keys", json=asked, timeout=30).raise_for_status().json()["key"]
            command = [
                str(python.parent / "schemathesis"), "run", f"{url}/openapi.json", "--url", url,
                "-H", f"Authorization: Bearer {key}",
                "-c", "not_a_server_error,status_code_conformance", "--max-examples", "12", "--request-timeout", "20",
            ]  # fmt: skip
            told = subprocess.run(command, capture_output=True, text=True, timeout=800, check=False)
            log = fleet.log("gateway")

    assert told.returncode == 0, told.stdout[-4000:]
    assert "a bug: " not in log
