"""llmock, a provider that this project did not write: in an environment of its own, because it brings a web framework.

It keeps quotas, breaks answers and streams, and says afterwards how well its client behaved.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

LOCK = Path(__file__).with_name("llmock.lock")


def install(folder: Path) -> Path:
    """Its program, installed below `folder` where it is not yet."""
    python = folder / "bin" / "python"
    stamp = folder / ".installed-from"
    if not stamp.exists() or stamp.read_bytes() != LOCK.read_bytes():
        uv = str(Path(sys.executable).with_name("uv"))
        environment = {**os.environ, "UV_PYTHON_DOWNLOADS": "never"}
        subprocess.run([uv, "venv", "-q", "--clear", "--python", sys.executable, folder], check=True, env=environment)
        arguments = ["-q", "--python", python, "--require-hashes", "-r", LOCK]
        subprocess.run([uv, "pip", "install", *arguments], check=True, env=environment)
        stamp.write_bytes(LOCK.read_bytes())
    return folder / "bin" / "llmock"


class Llmock:
    """A running one."""

    def __init__(self, url: str) -> None:
        self.url = url

    def _get(self, path: str) -> Any:
        with urllib.request.urlopen(f"{self.url}/_llmock/{path}", timeout=20) as answer:
            return json.load(answer)

    def verdict(self) -> dict[str, Any]:
        """Its judgement of all that it was asked so far."""
        found: dict[str, Any] = self._get("verdict")
        return found

    def requests(self) -> list[dict[str, Any]]:
        """What it was asked and how it answered."""
        found: list[dict[str, Any]] = self._get("requests")["requests"]
        return found


@contextmanager
def running(program: Path, arguments: Sequence[str], log: Path) -> Iterator[Llmock]:
    """Start it on a free port; it answers when the block begins."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [program, "serve", "--port", str(port), "--log-level", "warning", *arguments], stdout=output, stderr=output
        )
    try:
        mock = Llmock(f"http://127.0.0.1:{port}")
        end = time.monotonic() + 30
        while True:
            try:
                mock.verdict()
                break
            except OSError:
                assert process.poll() is None, f"llmock ended at start:\n{log.read_text()}"
                assert time.monotonic() < end, f"llmock does not answer after 30 s:\n{log.read_text()}"
                time.sleep(0.1)
        yield mock
    finally:
        process.terminate()
        process.wait(timeout=20)
