"""R14, R15, R17: what needs a new interpreter, another clock or many jobs. Runs with WAYBILL_SLOW=1 only."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.fault.harness import Scene, check, until

pytestmark = [
    pytest.mark.skipif(os.environ.get("WAYBILL_SLOW") != "1", reason="takes minutes; set WAYBILL_SLOW=1"),
    pytest.mark.timeout(1200),
]


@pytest.fixture(scope="module")
def clock_shift(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library that shifts a process's wall clock (clockshift.c), built."""
    library = tmp_path_factory.mktemp("clock") / "clockshift.so"
    source = Path(__file__).with_name("clockshift.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-O2", "-o", str(library), str(source)], check=True)
    return library


@pytest.mark.skipif(
    shutil.which("cc") is None or sys.platform != "linux", reason="shifting a process's clock needs Linux and cc"
)
@pytest.mark.parametrize("hours", [2, -2])
def test_r14_a_worker_whose_clock_is_two_hours_off_neither_takes_jobs_early_nor_keeps_them(
    scene: Scene, clock_shift: Path, hours: int
) -> None:
    scene.sandbox.latency("fixed:700ms")
    scene.fleet.kill("anthropic-1")
    env = {"LD_PRELOAD": str(clock_shift), "CLOCKSHIFT_S": str(hours * 3600)}
    # The default lease, which is no more than its clock is off either.
    scene.fleet.start("anthropic-1", extra_env={**env, "WAYBILL_LEASE_S": "12"}, fresh=True)

    scene.submit(30, one_by_one=True)
    scene.until_calls(4)
    scene.fleet.kill("anthropic-2")
    scene.until_final()
    verdict = check(scene)
    scene.fleet.kill("anthropic-1")

    verdict.assert_holds()
    assert verdict.states == {"succeeded": 30}
    by_skewed = [row for row in scene.attempts() if f"-{scene.fleet.pid('anthropic-1')}-" in row["worker"]]
    assert by_skewed
    assert all(row["state"] == "succeeded" for row in by_skewed), "its leases are the ledger's, whatever its clock says"


@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("unshare") is None, reason="a time namespace needs root and unshare"
)
def test_r15_a_worker_whose_monotonic_clock_is_years_ahead_works(scene: Scene) -> None:
    scene.fleet.kill("anthropic-1")
    scene.fleet.kill("anthropic-2")
    scene.fleet.start(
        "anthropic-1", fresh=True, before=("unshare", "-T", "--monotonic", "100000000", "--boottime", "100000000")
    )

    scene.submit(10, one_by_one=True)
    scene.until_final()
    verdict = check(scene)
    scene.fleet.kill("anthropic-1")

    verdict.assert_holds()
    assert verdict.states == {"succeeded": 10}


def test_r17_ten_thousand_jobs_do_not_make_a_worker_grow(scene: Scene) -> None:
    for name in ("anthropic-1", "anthropic-2"):  # the default lease: a crowd on a busy machine can be behind by seconds
        scene.fleet.kill(name)
        scene.fleet.start(name, extra_env={"WAYBILL_LEASE_S": "12"})
    scene.sandbox.latency("fixed:20ms")
    scene.submit(1000, priority="lo")
    scene.until_final(300)
    before_mb = _resident_mb(scene, "anthropic-1")

    scene.submit(9000, priority="lo")
    scene.until_final(900)
    verdict = check(scene)

    after_mb = _resident_mb(scene, "anthropic-1")
    for name in ("anthropic-1", "anthropic-2"):
        scene.fleet.kill(name)

    verdict.assert_holds()
    assert verdict.states == {"succeeded": 10_000}
    assert after_mb < before_mb + 40


def test_r07_postgres_is_down_for_thirty_seconds(scene: Scene) -> None:
    scene.sandbox.latency("fixed:500ms")
    scene.submit(20, one_by_one=True)
    scene.until_calls(3)
    pids = {name: scene.fleet.pid(name) for name in scene.fleet.names}

    with scene.service_down("postgres"):
        time.sleep(30)
    back = time.monotonic()
    scene.submit(10)
    scene.until_final()
    verdict = check(scene)

    verdict.assert_holds()
    assert verdict.states == {"succeeded": 30}
    assert time.monotonic() - back < 30
    assert {name: scene.fleet.pid(name) for name in scene.fleet.names if scene.fleet.alive(name)} == pids


def test_r01_at_default_settings_a_killed_workers_jobs_run_again_within_fifteen_seconds(scene: Scene) -> None:
    scene.sandbox.latency("fixed:2s")
    for name in ("anthropic-1", "anthropic-2"):
        scene.fleet.kill(name)
        scene.fleet.start(name, extra_env={"WAYBILL_LEASE_S": "12"})
    scene.submit(8, one_by_one=True)
    until(lambda: _under_way(scene, "anthropic-1") > 0, 20, "the first worker has jobs", scene.told)

    killed_s = time.time()
    scene.fleet.kill("anthropic-1")
    pid = f"-{scene.fleet.pid('anthropic-1')}-"
    scene.until_final()
    verdict = check(scene)
    for name in ("anthropic-1", "anthropic-2"):
        scene.fleet.kill(name)

    verdict.assert_holds()
    lost = {
        str(row["job_id"]): row["number"]
        for row in scene.attempts()
        if row["state"] == "unknown" and pid in row["worker"]
    }
    assert lost
    again_s = [
        row["started_at"].timestamp() - killed_s
        for row in scene.attempts()
        if lost.get(str(row["job_id"])) == row["number"] - 1
    ]
    assert max(again_s) < 15


def _under_way(scene: Scene, name: str) -> int:
    pid = f"-{scene.fleet.pid(name)}-"
    return sum(row["state"] == "started" and pid in row["worker"] for row in scene.attempts())


def _resident_mb(scene: Scene, name: str) -> float:
    for line in Path(f"/proc/{scene.fleet.pid(name)}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    raise AssertionError(f"{name} has no memory any more")
