"""The processes of one machine under one roof: `waybill up` and the demo start, watch and stop their programs with it.

Programs start in the order given, each after the one before is ready, and stop in reverse order. One that falls is
started again, later each time. All they write comes out line by line, each line with the name of its program in
front.

They do not outlive a supervisor that is killed (Linux: the kernel kills them with the thread that started them, so
run the supervisor in the main thread). They run in sessions of their own: Ctrl-C reaches the supervisor, and the
supervisor keeps the order.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self, TextIO

from waybill.errors import WaybillError

READY_POLL_S = 0.1
#: A program that is gone may have left a child which holds its output open; after this long nobody listens any more.
LAST_WORDS_S = 1.0
#: A line longer than this is shown in pieces.
LINE_BYTES = 64 * 1024
#: Codes of the terminal for the names, one after the other: no red, which is for complaints.
COLOURS = (36, 33, 32, 35, 34, 96, 93, 92, 95, 94)


class ProgramFailed(WaybillError):
    """A program did not come up; the message has its name, what happened and its last line."""


@dataclass(frozen=True)
class Program:
    """What to run and how to treat it."""

    name: str
    argv: Sequence[str]
    #: Added to the environment that the supervisor itself has.
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: Path | None = None
    #: Asked every READY_POLL_S until it says True; None = ready as soon as it runs.
    ready: Callable[[], Awaitable[bool]] | None = None
    ready_timeout_s: float = 30.0
    stop_signal: signal.Signals = signal.SIGTERM
    #: Seconds between `stop_signal` and SIGKILL.
    grace_s: float = 10.0
    #: False: when it ends, by itself or by a fall, everything is stopped.
    restart: bool = True


@dataclass(frozen=True)
class Backoff:
    """How long to wait before a fallen program is started again."""

    first_s: float = 0.5
    last_s: float = 30.0
    #: After a life this long a fall counts as the first one.
    steady_s: float = 60.0

    def delay_s(self, falls: int) -> float:
        """The wait after the `falls`-th fall in a row (1, 2, ...): doubled each time, at most `last_s`."""
        doublings = min(falls - 1, 32)  # 2**32 * first_s is above any last_s, and a float holds it
        return min(self.last_s, self.first_s * 2.0**doublings)


class Supervisor:
    """Runs programs until it is told to stop.

    async with Supervisor(programs) as fleet:   # all are ready here
        await fleet.until_told()                # Ctrl-C, SIGTERM, or a program that must not end has ended
    """

    def __init__(
        self,
        programs: Sequence[Program],
        *,
        out: TextIO | None = None,
        colour: bool | None = None,
        backoff: Backoff | None = None,
    ) -> None:
        """Nothing is started yet.

        Args:
            programs: In the order of starting; names must differ.
            out: Where the lines go; None = standard error.
            colour: Whether names are coloured; None = on a terminal, unless NO_COLOR is set.
            backoff: How long a fallen program waits.
        """
        names = [program.name for program in programs]
        if len(set(names)) != len(names):
            raise ValueError(f"two programs have the same name: {', '.join(sorted(names))}")
        self._lines = _Lines(out or sys.stderr, names, colour)
        self._kept = [_Kept(program, self._lines, backoff or Backoff()) for program in programs]
        self._told = asyncio.Event()
        self._hurry = asyncio.Event()

    async def __aenter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(number, self.tell)
        try:
            await self._start()
        except BaseException:  # cancelled as well: nothing may stay behind
            await self._stop()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stop()

    def tell(self) -> None:
        """Ask for the stop; asked a second time, no program gets its grace any more."""
        if self._told.is_set():
            self._hurry.set()
        self._told.set()

    async def until_told(self) -> None:
        """Wait for the stop.

        Raises:
            ProgramFailed: A program that must not end has ended, and not with exit code 0.
        """
        ends = [asyncio.ensure_future(kept.ended.wait()) for kept in self._kept if not kept.program.restart]
        told = asyncio.ensure_future(self._told.wait())
        try:
            await asyncio.wait([told, *ends], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for waiting in (told, *ends):
                waiting.cancel()
        for kept in self._kept:
            if kept.ended.is_set() and not kept.program.restart and kept.exit_code != 0:
                raise ProgramFailed(kept.story())

    def pid(self, name: str) -> int | None:
        """The process of a program now; None between a fall and the next start."""
        return next(kept.pid for kept in self._kept if kept.program.name == name)

    async def _start(self) -> None:
        for kept in self._kept:
            if self._told.is_set():
                return
            ready = asyncio.ensure_future(kept.start())
            told = asyncio.ensure_future(self._told.wait())
            try:
                await asyncio.wait([ready, told], return_when=asyncio.FIRST_COMPLETED)
                if ready.done():
                    ready.result()
            finally:
                ready.cancel()
                told.cancel()
                await asyncio.gather(ready, told, return_exceptions=True)

    async def _stop(self) -> None:
        for kept in reversed(self._kept):
            await kept.stop(self._hurry)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            asyncio.get_running_loop().remove_signal_handler(number)


class _Kept:
    """One program through all its lives."""

    def __init__(self, program: Program, lines: _Lines, backoff: Backoff) -> None:
        self.program = program
        self.ended = asyncio.Event()
        self.exit_code: int | None = None
        self._lines = lines
        self._backoff = backoff
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = asyncio.Event()
        self._life: asyncio.Task[None] | None = None
        self._last_line = ""

    @property
    def pid(self) -> int | None:
        alive = self._process is not None and self._process.returncode is None
        return self._process.pid if alive and self._process else None

    async def start(self) -> None:
        """Return when it is ready."""
        output = await self._spawn()
        self._life = asyncio.create_task(self._live(output), name=f"supervise {self.program.name}")
        ready = self.program.ready
        if ready is None:
            return
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + self.program.ready_timeout_s
        while not await ready():
            if self.exit_code is not None:
                raise ProgramFailed(self.story())
            if loop.time() > deadline_s:
                raise ProgramFailed(
                    f"{self.program.name} is not ready after {self.program.ready_timeout_s:g} s{self._last_words()}"
                )
            await asyncio.sleep(READY_POLL_S)

    async def stop(self, hurry: asyncio.Event) -> None:
        """End it: its signal, its grace (unless `hurry` is set), then SIGKILL for it and all it started."""
        self._stopping.set()
        process = self._process
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(self.program.stop_signal)
            gone = asyncio.ensure_future(process.wait())
            hurried = asyncio.ensure_future(hurry.wait())
            await asyncio.wait([gone, hurried], timeout=self.program.grace_s, return_when=asyncio.FIRST_COMPLETED)
            hurried.cancel()
            if not gone.done():
                if not hurry.is_set():
                    self._lines.write(self.program.name, f"still there after {self.program.grace_s:g} s: killed")
                self._kill_session(process.pid)
            await gone
        if self._life is not None:
            await self._life

    def story(self) -> str:
        """How it ended, in one line."""
        code = self.exit_code
        how = f"by {signal.Signals(-code).name}" if code is not None and code < 0 else f"with exit code {code}"
        return f"{self.program.name} ended {how}{self._last_words()}"

    def _last_words(self) -> str:
        return f"; its last line: {self._last_line}" if self._last_line else ""

    async def _spawn(self) -> int:
        """Start the process; the descriptor from which its output is read.

        A pipe of our own and not asyncio's: with that one the end of a process is only seen when its last child let
        go of it.
        """
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", **self.program.env}
        if shutil.which(self.program.argv[0], path=environment.get("PATH")) is None:
            raise ProgramFailed(f"{self.program.name} cannot be started: there is no program {self.program.argv[0]}")
        read, write = os.pipe()
        try:
            self._process = await asyncio.create_subprocess_exec(
                *_dying_with_us(),
                *self.program.argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=write,
                stderr=write,
                env=environment,
                cwd=self.program.cwd,
                start_new_session=True,
            )
        except OSError as error:
            os.close(read)
            raise ProgramFailed(f"{self.program.name} cannot be started: {error}") from error
        finally:
            os.close(write)
        return read

    async def _live(self, output: int) -> None:
        """Copy its output, wait for its end, start it again after a fall; return when it is over for good."""
        loop = asyncio.get_running_loop()
        falls = 0
        while True:
            born_s = loop.time()
            await self._live_once(output)
            if self._stopping.is_set() or not self.program.restart:
                break
            falls = 1 if loop.time() - born_s >= self._backoff.steady_s else falls + 1
            delay_s = self._backoff.delay_s(falls)
            self._lines.write(self.program.name, f"{self.story().partition(';')[0]}; again in {delay_s:g} s", loud=True)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), delay_s)
            if self._stopping.is_set():
                break
            try:
                output = await self._spawn()
            except ProgramFailed as gone:  # its file went away meanwhile
                self._lines.write(self.program.name, str(gone), loud=True)
                break
        self.ended.set()

    async def _live_once(self, output: int) -> None:
        process = self._process
        if process is None:
            raise RuntimeError("spawned before it lives")
        copying = asyncio.create_task(self._copy(output))
        self.exit_code = await process.wait()
        _, late = await asyncio.wait([copying], timeout=LAST_WORDS_S)
        for task in late:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await copying
        self._kill_session(process.pid)

    async def _copy(self, output: int) -> None:
        reader = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(output, "rb")
        )
        try:
            rest = b""
            while piece := await reader.read(LINE_BYTES):
                *whole, rest = (rest + piece).split(b"\n")
                if len(rest) >= LINE_BYTES:
                    whole, rest = [*whole, rest], b""
                for line in whole:
                    self._say(line)
            if rest:
                self._say(rest)
        finally:
            transport.close()

    def _say(self, line: bytes) -> None:
        text = line.decode(errors="replace").rstrip()
        if text:
            self._last_line = text
        self._lines.write(self.program.name, text)

    def _kill_session(self, leader: int) -> None:
        """Children that it left go with it."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(leader, signal.SIGKILL)


class _Lines:
    """The common output: one line at a time, the program's name in front."""

    def __init__(self, out: TextIO, names: Sequence[str], colour: bool | None) -> None:
        self._out = out
        self._width = max((len(name) for name in names), default=0)
        self._coloured = out.isatty() and "NO_COLOR" not in os.environ if colour is None else colour
        self._codes = dict(zip(names, _cycle(COLOURS), strict=False))
        self._closed = False

    def write(self, name: str, text: str, *, loud: bool = False) -> None:
        """`loud` is for what the supervisor itself has to complain about."""
        if self._closed:
            return
        label = f"{name:<{self._width}} |"
        if self._coloured:
            label = f"\x1b[{self._codes[name]}m{label}\x1b[0m"
            text = f"\x1b[31m{text}\x1b[0m" if loud else text
        try:
            self._out.write(f"{label} {text}\n")
            self._out.flush()
        except (BrokenPipeError, ValueError):  # the reader is gone; the programs are not to stop for that
            self._closed = True


def _cycle(codes: Sequence[int]) -> Iterator[int]:
    while True:
        yield from codes


def _dying_with_us() -> tuple[str, ...]:
    """What goes before a program so that the kernel ends it with us.

    `setpriv` and not a function between fork and exec: the supervisor's process may have threads, and forking then is
    not safe.
    """
    if sys.platform.startswith("linux") and shutil.which("setpriv"):
        return ("setpriv", "--pdeathsig", "KILL", "--")
    return ()
