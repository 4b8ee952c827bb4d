"""The process that is the parent of the embedded servers, so that none of them outlives the program it was started for.

Run by path with a bare interpreter (`owner.py` does it); imports the standard library only. It reads one JSON line,
the order, from its standard input, starts the servers and then obeys lines: `ready` (from now on a server that ends
is started again) and `stop`. It stops them all as well when the owner's process is gone, whatever it died of.

Why a process of its own instead of a parent-death signal on each server: that signal fires when the *thread* that
started the server ends, is unknown on macOS, and gives no orderly stop. Here it is only the second net, for the day
when the keeper itself is killed. Why watch the owner's process and not only the pipe: a child the owner forked would
hold the pipe open.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

STOP_WAIT_S = 10.0
#: A server that fell is started again after this long; twice as long each time it falls within STEADY_S, up to the
#: last.
RESTART_FIRST_S = 0.2
RESTART_LAST_S = 5.0
STEADY_S = 30.0
#: Where a process cannot be waited for as a file descriptor (macOS): how often to look whether the owner is still the
#: parent.
PARENT_POLL_S = 0.5
PR_SET_PDEATHSIG = 1
EXIT_FELL_AT_START = 3


@dataclasses.dataclass
class Server:
    """One server of the order and what became of it."""

    name: str
    argv: list[str]
    cwd: str
    #: User and group to become; None = ours.
    uid: int | None
    env: dict[str, str]
    log: str
    stop_signal: int
    process: subprocess.Popen[bytes] | None = None
    started_s: float = 0.0
    #: Seconds to wait before the next start, and the time of it; `restart_s` is None while it runs.
    delay_s: float = RESTART_FIRST_S
    restart_s: float | None = None

    def start(self, now_s: float) -> None:
        """Start it, below the second net."""
        with Path(self.log).open("ab") as log:
            self.process = subprocess.Popen(
                self.argv,
                cwd=self.cwd,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                user=self.uid,
                group=self.uid,
                extra_groups=None if self.uid is None else [],
                # Runs after the change of user, which would clear the signal. This process has one thread, so it is
                # safe.
                preexec_fn=_die_with_parent(self.stop_signal),
            )
        self.started_s = now_s
        self.restart_s = None

    def fell(self) -> bool:
        """Whether it ended although nobody asked it to."""
        return self.process is not None and self.process.poll() is not None

    def plan_restart(self, now_s: float) -> None:
        """Note when to start it again."""
        if now_s - self.started_s > STEADY_S:
            self.delay_s = RESTART_FIRST_S
        self.process = None
        self.restart_s = now_s + self.delay_s
        self.delay_s = min(self.delay_s * 2, RESTART_LAST_S)

    def stop(self) -> None:
        """End it, gently first."""
        if self.process is None or self.process.poll() is not None:
            return
        self.process.send_signal(self.stop_signal)
        try:
            self.process.wait(STOP_WAIT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Keeper:
    """Starts, watches and stops the servers of one order, and keeps the record of them in `run.json`."""

    def __init__(self, order: dict[str, Any]) -> None:
        self.servers = [Server(**server) for server in order["servers"]]
        self.owner: dict[str, Any] = order["owner"]
        self.record_path = Path(order["record"])
        self.public: dict[str, Any] = order["public"]
        self.ready = False

    def start(self) -> None:
        for server in self.servers:
            server.start(time.monotonic())
        self.write_record()

    def stop(self) -> None:
        for server in reversed(self.servers):
            server.stop()
        self.record_path.unlink(missing_ok=True)

    def mark_ready(self) -> None:
        self.ready = True
        self.write_record()

    def look_after(self) -> bool:
        """Start again what fell; False when one fell before the owner called the set ready."""
        now_s = time.monotonic()
        for server in self.servers:
            if server.fell():
                if not self.ready:
                    return False
                server.plan_restart(now_s)
            if server.restart_s is not None and now_s >= server.restart_s:
                server.start(now_s)
                self.write_record()
        return True

    def patience_s(self) -> float | None:
        """How long nothing can happen that no file descriptor would tell; None = for ever."""
        due = [server.restart_s for server in self.servers if server.restart_s is not None]
        return max(0.0, min(due) - time.monotonic()) if due else None

    def write_record(self) -> None:
        """Replace the record in one step: a reader sees the old or the new one, never a part."""
        processes = {
            server.name: {
                "pid": server.process.pid,
                "started": started_at(server.process.pid),
                "signal": server.stop_signal,
            }
            for server in self.servers
            if server.process is not None
        }
        keeper = {"pid": os.getpid(), "started": started_at(os.getpid())}
        record = {**self.public, "owner": self.owner, "keeper": keeper, "ready": self.ready, "servers": processes}
        draft = self.record_path.with_suffix(".new")
        draft.unlink(missing_ok=True)
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            json.dump(record, file, indent=2)
        draft.replace(self.record_path)


def started_at(pid: int) -> str | None:
    """What tells a process from a later one with the same number: its start time. None = it is gone, or a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        if Path("/proc/self/stat").exists():
            return None
    except ProcessLookupError:
        return None
    else:
        # The program's name, field 2, is in parentheses and may hold anything; the state is field 3, the start time
        # field 22.
        fields = stat.rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return None if fields[0] in "ZX" else f"{boot}:{fields[19]}"
    told = subprocess.run(["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    state, _, start = told.stdout.strip().partition(" ")
    return None if not state or state.startswith("Z") else start.strip()


def _die_with_parent(stop_signal: int) -> Any:
    """What a child does between fork and exec: ask for `stop_signal` when this process ends (Linux only)."""
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None).prctl
    keeper = os.getpid()

    def ask() -> None:
        prctl(PR_SET_PDEATHSIG, stop_signal, 0, 0, 0)
        if os.getppid() != keeper:  # it ended before the kernel was asked
            os._exit(1)

    return ask


def _watch(keeper: Keeper, wake: int) -> int:
    """Serve until told to stop or left alone; the exit code."""
    owner_pid = int(keeper.owner["pid"])
    poll = select.poll()
    poll.register(0, select.POLLIN)
    poll.register(wake, select.POLLIN)
    parent_poll_ms: float | None = PARENT_POLL_S * 1000
    owner = -1
    if hasattr(os, "pidfd_open"):
        # A kernel older than 5.3 or a sandbox that forbids the call: then the parent is looked at now and then.
        with contextlib.suppress(OSError):
            owner = os.pidfd_open(owner_pid)
            poll.register(owner, select.POLLIN)
            parent_poll_ms = None
    while os.getppid() == owner_pid:
        patience_s = keeper.patience_s()
        waits_ms = [wait for wait in (parent_poll_ms, patience_s and patience_s * 1000) if wait is not None]
        for descriptor, _ in poll.poll(min(waits_ms) if waits_ms else None):
            if descriptor == wake:
                if signal.SIGTERM in os.read(wake, 64):
                    return 0
            elif descriptor == owner:
                return 0
            else:
                words = os.read(0, 64).split()
                if not words or b"stop" in words:
                    return 0
                if b"ready" in words:
                    keeper.mark_ready()
        if not keeper.look_after():
            return EXIT_FELL_AT_START
    return 0


def main() -> int:
    """Keep the servers of the order on standard input."""
    with open(0, "rb", buffering=0, closefd=False) as stdin:  # unbuffered: the words after the order are for the poll
        order = stdin.readline()
    if not order:
        return 0
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    # Handlers and not SIG_IGN: what is ignored stays ignored in the servers.
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    keeper = Keeper(json.loads(order))
    try:
        keeper.start()
        return _watch(keeper, wake_read)
    finally:
        keeper.stop()


if __name__ == "__main__":
    sys.exit(main())
