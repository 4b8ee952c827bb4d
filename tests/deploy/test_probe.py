"""The heartbeat file: who writes it, what the probes conclude, and that they cost little."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

from waybill.probe import LIVE_WITHIN_S, beat, beating, judge
from workers.heartbeat import TURN_WITHIN_S, ConsumerTurns


def aged(path: Path, obstacle: str | None, mtime: float) -> Path:
    beat(path, obstacle)
    os.utime(path, (mtime, mtime))
    return path


def test_no_file_is_not_alive(tmp_path: Path) -> None:
    verdict = judge(tmp_path / "heartbeat", ready=False, now=1000.0)

    assert not verdict.passed
    assert "no heartbeat" in verdict.reason


def test_a_fresh_heartbeat_is_alive_and_ready(tmp_path: Path) -> None:
    path = aged(tmp_path / "heartbeat", None, 1000.0)

    assert judge(path, ready=False, now=1000.0 + LIVE_WITHIN_S).passed
    assert judge(path, ready=True, now=1000.0 + LIVE_WITHIN_S).passed


def test_an_old_heartbeat_is_a_stuck_process(tmp_path: Path) -> None:
    path = aged(tmp_path / "heartbeat", None, 1000.0)

    verdict = judge(path, ready=False, now=1000.1 + LIVE_WITHIN_S)

    assert not verdict.passed
    assert "stuck" in verdict.reason


def test_an_obstacle_is_alive_but_not_ready_and_says_why(tmp_path: Path) -> None:
    path = aged(tmp_path / "heartbeat", "draining", 1000.0)

    assert judge(path, ready=False, now=1001.0).passed
    verdict = judge(path, ready=True, now=1001.0)
    assert not verdict.passed
    assert verdict.reason.endswith("draining")


def test_a_file_from_the_future_is_alive(tmp_path: Path) -> None:
    assert judge(aged(tmp_path / "heartbeat", None, 2000.0), ready=True, now=1000.0).passed


async def test_a_process_beats_tells_changes_and_leaves_no_file(tmp_path: Path) -> None:
    path = tmp_path / "heartbeat"
    obstacles: list[str | None] = ["starting"]

    async with beating(path, lambda: obstacles[-1], every_s=0.01):
        assert path.read_text() == "starting"
        obstacles.append(None)
        async with asyncio.timeout(60):
            while path.read_text() != "ready":
                await asyncio.sleep(0)

    assert list(tmp_path.iterdir()) == []


async def test_a_stuck_loop_stops_beating(tmp_path: Path) -> None:
    path = tmp_path / "heartbeat"

    async with beating(path, lambda: None, every_s=0.01):
        os.utime(path, (1000.0, 1000.0))
        # Nothing is awaited here: the loop is stuck, as it would be in a call that blocks.
        assert not judge(path, ready=False, now=1000.1 + LIVE_WITHIN_S).passed


def test_a_consumer_is_ready_only_while_it_turns() -> None:
    now = [0.0]
    turns = ConsumerTurns(clock=lambda: now[0])

    assert "not consuming" in str(turns.obstacle())
    turns.note()
    now[0] = TURN_WITHIN_S
    assert turns.obstacle() is None
    now[0] = TURN_WITHIN_S + 1
    assert "not turned" in str(turns.obstacle())
    turns.note()
    turns.ended()
    assert "not consuming" in str(turns.obstacle())


def test_the_verb_ends_with_0_or_1_and_imports_nothing_heavy(tmp_path: Path) -> None:
    path = tmp_path / "heartbeat"
    beat(path, None)
    env = {**os.environ, "WAYBILL_HEARTBEAT_FILE": str(path)}
    program = (
        "import sys; from waybill.cli import cli\n"
        "try: cli(['probe', 'ready'])\n"
        "except SystemExit as end: code = end.code\n"
        "heavy = {'celery', 'kombu', 'redis', 'sqlalchemy', 'psycopg', 'pydantic', 'workers'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else code)"
    )

    good = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=False)
    beat(path, "draining")
    bad = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=False)

    assert (good.returncode, good.stderr) == (0, "")
    assert bad.returncode == 1
    assert "draining" in bad.stdout
