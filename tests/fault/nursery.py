"""Starts the fleet's processes by forking one that has already imported everything.

A worker's imports cost about five CPU seconds; a fault test that kills workers all the time would measure little else.
The forked process runs the same command (`waybill worker ...`) with its own environment, session and log, and is killed
for real.

`python -m tests.fault.nursery FD` is the process that forks; it speaks lines of JSON on the socket FD and ends, with all
its children, when the other end is closed.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).parent.parent.parent
_PRELOADED = (
    "alembic",
    "celery.apps.worker",
    "redis.asyncio",
    "waybill.cli.processes",
    "workers.app",
    "workers.control",
    "workers.providers.anthropic",
    "workers.providers.openai",
)


class Nursery:
    """The forking process, seen from the tests. Not thread-safe by itself: every call takes the lock."""

    def __init__(self, env: Mapping[str, str]) -> None:
        """Start it; returns before its imports are done (the first `start` waits for them)."""
        ours, theirs = socket.socketpair()
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.fault.nursery", str(theirs.fileno())],
            cwd=ROOT,
            env=dict(env),
            pass_fds=(theirs.fileno(),),
            start_new_session=True,
        )
        theirs.close()
        self._socket = ours
        self._lines = ours.makefile("rw", encoding="utf-8")

    def start(self, arguments: Sequence[str], env: Mapping[str, str], log: Path, run_as: Sequence[str] = ()) -> int:
        """Run `waybill ARGUMENTS` with exactly this environment; its pid.

        Args:
            arguments: Of the command.
            env: All of it.
            log: Where its lines are added.
            run_as: A command to which the arguments are given, as a new program; empty = this process, forked.
        """
        return int(self._ask({"start": list(arguments), "env": dict(env), "log": str(log), "as": list(run_as)}))

    def poll(self, pid: int) -> int | None:
        """The exit code (negative: the signal) of a child, None while it runs. A pid is not reused before it is asked."""
        answer = self._ask({"poll": pid})
        return None if answer is None else int(answer)

    def close(self) -> None:
        """Kill what is left and end."""
        self._lines.close()
        self._socket.close()
        self._process.wait(timeout=30)

    def _ask(self, question: Mapping[str, Any]) -> Any:
        with self._lock:
            self._lines.write(json.dumps(question) + "\n")
            self._lines.flush()
            answer = self._lines.readline()
        assert answer, "the nursery ended; its message is above"
        return json.loads(answer)


def _serve(channel: socket.socket) -> None:
    from waybill.cli import main

    for module in _PRELOADED:
        import_module(module)
    codes: dict[int, int] = {}
    lines = channel.makefile("rw", encoding="utf-8")
    try:
        for line in lines:
            order = json.loads(line)
            if "start" in order:
                pid = os.fork()
                if pid == 0:
                    channel.close()
                    _live(main, order)
                codes[pid] = -1
                _ended.pop(pid, None)  # of an earlier child: pids come again
                answer: int | None = pid
            else:
                answer = _code(order["poll"], codes)
            lines.write(json.dumps(answer) + "\n")
            lines.flush()
    finally:
        for pid in codes:
            if _code(pid, codes) is None:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)


_ended: dict[int, int] = {}


def _code(pid: int, known: Mapping[int, int]) -> int | None:
    if pid in _ended or pid not in known:
        return _ended.get(pid)
    found, status = os.waitpid(pid, os.WNOHANG)
    if found == 0:
        return None
    _ended[pid] = os.waitstatus_to_exitcode(status)
    return _ended[pid]


def _live(main: Any, order: Mapping[str, Any]) -> NoReturn:
    """Become the program: in a session of its own, and never back into the nursery's loop."""
    code = 70
    try:
        os.setsid()
        log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ.clear()
        os.environ.update(order["env"])
        if order["as"]:
            os.chdir(ROOT)
            os.execvpe(order["as"][0], [*order["as"], *order["start"]], order["env"])  # noqa: S606  (no shell is wanted)
        sys.argv = ["waybill", *order["start"]]
        main()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1 if ended.code else 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
