"""R16: the disk under Postgres and Valkey is full, and is freed again. Runs with WAYBILL_SLOW=1 and as root only."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fault.conftest import SEED
from tests.fault.harness import Scene, check, scene_set, until
from waybill import Job, embedded
from waybill.cli.db import run_upgrade
from waybill.errors import LedgerUnavailable

pytestmark = [
    pytest.mark.skipif(os.environ.get("WAYBILL_SLOW") != "1", reason="a fleet of its own; set WAYBILL_SLOW=1"),
    pytest.mark.skipif(
        sys.platform != "linux" or os.geteuid() != 0, reason="a small file system is mounted by root on Linux only"
    ),
]
SIZE_MB = 160


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, with little room."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={SIZE_MB}m", "tmpfs", folder], capture_output=True, text=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"this machine lets nobody mount: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture
def scene(small_disk: Path, tmp_path: Path) -> Iterator[Scene]:
    """A fleet whose Postgres and Valkey live on the small disk; its logs do not."""
    with embedded.services(small_disk / "services") as services:
        url = str(services.database_url)
        run_upgrade(url)
        (tmp_path / "logs").mkdir()
        with scene_set(services, url, tmp_path / "logs", seed=SEED) as scene:
            scene.begin()
            yield scene


def test_r16_a_full_disk_refuses_clearly_and_all_that_was_accepted_is_done_when_it_is_freed(
    scene: Scene, small_disk: Path
) -> None:
    scene.sandbox.latency("fixed:200ms")
    scene.submit(20)
    ballast = small_disk / "ballast"

    _fill(ballast)
    refusals: list[str] = []
    end = time.monotonic() + 30
    while not refusals and time.monotonic() < end:
        job = Job(intent="summarization", prompt=f"{scene.rng.random()} {'long ' * 60_000}", tenant=scene.act)
        try:
            scene.accepted += scene.client.submit_many([job])
        except LedgerUnavailable as exc:
            refusals.append(str(exc))
    ballast.unlink()
    until(scene.services_answer, 60, "Postgres and Valkey answer again")
    scene.submit(20)
    scene.until_final(120)
    verdict = check(scene)

    assert refusals, "the disk was full and everything was accepted"
    assert "\n" not in refusals[0]
    verdict.assert_holds()
    assert verdict.states["succeeded"] == len(scene.accepted)


def _fill(ballast: Path) -> None:
    """Write until nothing more fits."""
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"\0" * 65536)
        except OSError:
            return
