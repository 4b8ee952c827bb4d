"""The supervisor with real processes: what it writes, starts again, in which order it stops, what it leaves behind."""

from __future__ import annotations

import asyncio
import io
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from waybill.embedded.keeper import started_at
from waybill.supervisor import Backoff, Program, ProgramFailed, Supervisor

PROGRAM = Path(__file__).with_name("supervise.py")
REPOSITORY = Path(__file__).resolve().parents[2]
DEADLINE_S = 20.0
QUICK = Backoff(first_s=0.01, last_s=0.04)
FOREVER = "import time\nwhile True: time.sleep(60)"
SAYS_WHEN_STOPPED = """
import signal, sys, time
def stop(*_):
    print("stopped", flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
print("up", flush=True)
while True: time.sleep(60)
"""


def python(name: str, code: str, **options: object) -> Program:
    return Program(name, [sys.executable, "-c", code], **options)  # type: ignore[arg-type]  # any field of Program


async def wait_until(happened: Callable[[], bool], what: str) -> None:
    deadline_s = time.monotonic() + DEADLINE_S
    while not happened():
        assert time.monotonic() < deadline_s, f"not within {DEADLINE_S:.0f} s: {what}"
        await asyncio.sleep(0.01)


def has_written(out: io.StringIO, text: str) -> Callable[[], Awaitable[bool]]:
    async def ready() -> bool:
        return text in out.getvalue()

    return ready


@given(
    first_s=st.floats(0.001, 10),
    last_s=st.floats(10, 1000),
    falls=st.integers(1, 10_000),
)
def test_wait_grows_with_each_fall_and_has_a_limit(first_s: float, last_s: float, falls: int) -> None:
    backoff = Backoff(first_s=first_s, last_s=last_s)

    assert backoff.delay_s(1) == first_s
    assert backoff.delay_s(falls) <= backoff.delay_s(falls + 1) <= last_s


async def test_every_line_has_the_name_of_its_program_in_front() -> None:
    out = io.StringIO()
    code = "import sys; print('to out'); print('to err', file=sys.stderr); print(); print('no end', end='')"

    async with Supervisor([python("gateway", code, restart=False), python("db", FOREVER)], out=out) as fleet:
        await fleet.until_told()

    assert out.getvalue().splitlines() == ["gateway | to out", "gateway | to err", "gateway | ", "gateway | no end"]


async def test_very_long_line_comes_in_pieces_and_whole() -> None:
    out = io.StringIO()

    async with Supervisor([python("long", "print('x' * 300_000)", restart=False)], out=out) as fleet:
        await fleet.until_told()

    pieces = [line.removeprefix("long | ") for line in out.getvalue().splitlines()]
    assert len(pieces) > 1
    assert "".join(pieces) == "x" * 300_000


async def test_names_are_coloured_only_where_wanted() -> None:
    plain, coloured = io.StringIO(), io.StringIO()
    for out, colour in ((plain, None), (coloured, True)):
        async with Supervisor([python("one", "print('hi')", restart=False)], out=out, colour=colour) as fleet:
            await fleet.until_told()

    assert "\x1b" not in plain.getvalue()
    assert coloured.getvalue() == "\x1b[36mone |\x1b[0m hi\n"


async def test_programs_start_in_order_when_the_one_before_is_ready_and_stop_in_reverse() -> None:
    out = io.StringIO()
    programs = [
        python(name, SAYS_WHEN_STOPPED, ready=has_written(out, f"{name} | up")) for name in ("one", "two", "six")
    ]

    async with Supervisor(programs, out=out):
        pass

    assert out.getvalue().splitlines() == [
        "one | up",
        "two | up",
        "six | up",
        "six | stopped",
        "two | stopped",
        "one | stopped",
    ]


async def test_fallen_program_is_started_again() -> None:
    out = io.StringIO()

    async with Supervisor([python("weak", "print('alive'); raise SystemExit(7)")], out=out, backoff=QUICK):
        await wait_until(lambda: out.getvalue().count("weak | alive") >= 3, "three lives")

    assert "weak | weak ended with exit code 7; again in 0.01 s" in out.getvalue()
    assert "again in 0.02 s" in out.getvalue()


async def test_program_killed_from_outside_comes_back_under_a_new_pid() -> None:
    async with Supervisor([python("one", FOREVER)], out=io.StringIO(), backoff=QUICK) as fleet:
        before = fleet.pid("one")
        assert before

        os.kill(before, signal.SIGKILL)

        await wait_until(lambda: fleet.pid("one") not in (None, before), "started again")
        after = fleet.pid("one")
    assert after
    assert started_at(after) is None


async def test_program_deaf_to_its_signal_is_killed_after_its_grace() -> None:
    out = io.StringIO()
    deaf = "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('up', flush=True)\n" + FOREVER

    async with Supervisor([python("deaf", deaf, grace_s=0.2, ready=has_written(out, "up"))], out=out) as fleet:
        pid = fleet.pid("deaf")

    assert pid
    assert started_at(pid) is None
    assert "deaf | still there after 0.2 s: killed" in out.getvalue()


async def test_second_wish_to_stop_waits_for_no_grace() -> None:
    out = io.StringIO()
    deaf = "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('up', flush=True)\n" + FOREVER

    began_s = time.monotonic()
    async with Supervisor([python("deaf", deaf, grace_s=600, ready=has_written(out, "up"))], out=out) as fleet:
        fleet.tell()
        await fleet.until_told()
        fleet.tell()

    assert time.monotonic() - began_s < DEADLINE_S


async def test_children_that_a_program_left_go_with_it() -> None:
    out = io.StringIO()
    parent = f"import subprocess, sys\nprint(subprocess.Popen([sys.executable, '-c', {FOREVER!r}]).pid)"

    async with Supervisor([python("parent", parent, restart=False)], out=out) as fleet:
        await fleet.until_told()

    grandchild = int(out.getvalue().split("|")[1])
    await wait_until(lambda: started_at(grandchild) is None, "grandchild gone")


async def test_program_that_never_gets_ready_is_named_and_nothing_stays() -> None:
    out = io.StringIO()

    async def never() -> bool:
        return False

    programs = [
        python("good", SAYS_WHEN_STOPPED, ready=has_written(out, "good | up")),
        python("slow", "print('warming up', flush=True)\n" + FOREVER, ready=never, ready_timeout_s=1.0),
    ]

    with pytest.raises(ProgramFailed, match="slow is not ready after 1 s; its last line: warming up"):
        async with Supervisor(programs, out=out):
            pass

    assert "good | stopped" in out.getvalue()


async def test_program_that_falls_before_it_is_ready_is_named_with_its_last_line() -> None:
    async def never() -> bool:
        return False

    broken = python("broken", "raise SystemExit('no such queue: llm.lokal')", ready=never)

    with pytest.raises(ProgramFailed, match=r"broken ended with exit code 1; its last line: no such queue: llm\.lokal"):
        async with Supervisor([broken], out=io.StringIO()):
            pass


async def test_program_that_does_not_exist_is_named() -> None:
    with pytest.raises(ProgramFailed, match="ghost cannot be started: there is no program /no/such/program"):
        async with Supervisor([Program("ghost", ["/no/such/program"])], out=io.StringIO()):
            pass


async def test_end_of_a_program_that_must_not_end_is_an_error_unless_it_went_well() -> None:
    async with Supervisor([python("once", "pass", restart=False)], out=io.StringIO()) as fleet:
        await fleet.until_told()

    with pytest.raises(ProgramFailed, match="once ended with exit code 3"):
        async with Supervisor([python("once", "raise SystemExit(3)", restart=False)], out=io.StringIO()) as fleet:
            await fleet.until_told()


def test_two_programs_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="same name: one, one"):
        Supervisor([python("one", FOREVER), python("one", FOREVER)])


def supervise() -> tuple[subprocess.Popen[str], list[int]]:
    """A supervisor in a process of its own, and the pids of its two children."""
    process = subprocess.Popen(
        [sys.executable, str(PROGRAM)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    assert process.stdout
    pids: list[int] = []
    while len(pids) < 2:
        line = process.stdout.readline()
        assert line, "the supervisor ended early"
        if found := re.search(r"pid (\d+)", line):
            pids.append(int(found[1]))
    return process, pids


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_told_by_signal_it_stops_all_and_ends_well(number: signal.Signals) -> None:
    process, pids = supervise()

    process.send_signal(number)

    said, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0
    assert said.splitlines() == ["second | stopping", "first  | stopping"]
    assert all(started_at(pid) is None for pid in pids)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="parent-death signals are Linux only")
async def test_killed_supervisor_takes_its_programs_along() -> None:
    process, pids = supervise()

    process.kill()

    await wait_until(lambda: all(started_at(pid) is None for pid in pids), "programs gone with their supervisor")
    process.communicate(timeout=DEADLINE_S)
