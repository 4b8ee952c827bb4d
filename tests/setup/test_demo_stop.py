"""`waybill demo --once` while its runs wait: told to stop it stops, says so and leaves nothing running."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.fleet import ROOT, clean_environment


@pytest.mark.timeout(300)
def test_a_demo_that_waits_for_its_runs_heeds_sigterm(tmp_path: Path) -> None:
    told = tmp_path / "told.txt"
    env = {**clean_environment(), "WAYBILL_STATE_DIR": str(tmp_path / "state")}
    # With a day's time the documents go into a provider's batches, which the sandbox takes its time for.
    command = [sys.executable, "-m", "waybill", "demo", "--once", "--deadline", "24h"]
    with told.open("wb") as out:
        process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=out, stderr=out, start_new_session=True)
    try:
        end = time.monotonic() + 200
        while "extraction ..." not in told.read_text():
            assert process.poll() is None, told.read_text()
            assert time.monotonic() < end, told.read_text()
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        code = process.wait(90)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()

    assert code == 130, told.read_text()
    assert "interrupted; answers so far: " in told.read_text()
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
