"""Starts sandboxes for tests and benches, and speaks to their admin pages.

`running()` runs one in a thread of this process, which starts in a few milliseconds; `spawned()` runs one as a process
of its own, so that its CPU time is not the test's.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from sandbox.answers import AnswerBook
from sandbox.latency import Latency
from sandbox.models import Catalogue
from sandbox.server import Clock, Sandbox, Settings
from sandbox.serving import listen, server_for

_START_S = 20.0
_INSTANT = Latency(fixed_s=0.0)


class Running:
    """A sandbox that serves, and its admin pages as methods."""

    def __init__(self, port: int, provider: Sandbox | None = None) -> None:
        self.port = port
        # url: what the anthropic SDK takes as base_url. openai_url: what the openai SDK takes.
        self.url = f"http://127.0.0.1:{port}"
        self.openai_url = f"{self.url}/v1"
        # provider: the object itself where it runs in this process; read it, change it only through the methods here.
        self.provider = provider

    def fault(self, name: str, **rule: Any) -> dict[str, Any]:
        """Put a fault rule in force; the keywords are the fields of faults.Rule."""
        added: dict[str, Any] = self._call("POST", "/admin/faults", {"fault": name, **rule})["added"][0]
        return added

    def clear_faults(self) -> None:
        """Take every fault rule out of force."""
        self._call("DELETE", "/admin/faults")

    def limit(self, limit_class: str = "*", **limits: int) -> None:
        """Set limits per minute: rpm, itpm, otpm, tpm."""
        self._call("POST", "/admin/limits", {"class": limit_class, **limits})

    def advance(self, seconds: float) -> None:
        """Move the clock of limits, caches and faults forward."""
        self._call("POST", "/admin/clock", {"advance_s": seconds})

    def latency(self, latency: str) -> None:
        """Set the latency: none, fixed:50ms, model or model:0.1."""
        self._call("POST", "/admin/latency", {"latency": latency})

    def batch_pace(self, **pace: float) -> None:
        """Set how batches made from now on behave: turnaround_s, enqueued_tokens, queued_requests."""
        self._call("POST", "/admin/batches", pace)

    def reset(self) -> None:
        """Forget bill, log, faults, levels, cache, batches and clock."""
        self._call("POST", "/admin/reset", {})

    def bill(self) -> dict[str, Any]:
        """Return GET /bill."""
        bill: dict[str, Any] = self._call("GET", "/bill")
        return bill

    def state(self) -> dict[str, Any]:
        """Return GET /admin/state."""
        state: dict[str, Any] = self._call("GET", "/admin/state")
        return state

    def log(self, since: int = 0) -> list[dict[str, Any]]:
        """Return the log entries numbered above `since`."""
        return [json.loads(line) for line in self._ask("GET", f"/log?since={since}").splitlines()]

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        return json.loads(self._ask(method, path, None if body is None else json.dumps(body).encode()))

    def _ask(self, method: str, path: str, body: bytes | None = None) -> bytes:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, body)
            answer = connection.getresponse()
            content = answer.read()
        finally:
            connection.close()
        if answer.status != 200:
            raise ValueError(json.loads(content)["error"])
        return content


@contextmanager
def running(
    settings: Settings | None = None,
    *,
    book: AnswerBook | None = None,
    catalogue: Catalogue | None = None,
    clock: Clock | None = None,
) -> Iterator[Running]:
    """Serve a sandbox from a thread on a free port until the block ends; answers come at once unless told otherwise."""
    provider = Sandbox(settings or Settings(latency=_INSTANT), book=book, catalogue=catalogue, clock=clock)
    bound = listen("127.0.0.1", 0)
    server = server_for(provider, log_level="critical")
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, name="sandbox", daemon=True)
    thread.start()
    try:
        _wait(lambda: server.started or not thread.is_alive())
        yield Running(bound.getsockname()[1], provider)
    finally:
        server.should_exit = True
        thread.join(_START_S)
        bound.close()
        provider.log.close()


@contextmanager
def spawned(*arguments: str, python: Sequence[str] = (sys.executable,)) -> Iterator[Running]:
    """Serve a sandbox from a process of its own, started with these command line arguments, until the block ends."""
    with tempfile.TemporaryDirectory() as folder:
        port_file = Path(folder) / "port"
        command = [*python, "-m", "sandbox", "--port", "0", "--port-file", str(port_file), "--quiet", *arguments]
        process = subprocess.Popen(command, cwd=Path(__file__).resolve().parent.parent)
        try:
            _wait(lambda: port_file.exists() or process.poll() is not None)
            if process.poll() is not None:
                raise RuntimeError(f"the sandbox ended with {process.returncode} at its start; its message is above")
            yield Running(int(port_file.read_text("ascii")))
        finally:
            process.terminate()
            process.wait(_START_S)


def _wait(ready: Any) -> None:
    deadline = time.monotonic() + _START_S
    while not ready():
        if time.monotonic() > deadline:
            raise TimeoutError(f"the sandbox did not start within {_START_S} s")
        time.sleep(0.002)
