"""The state folder: who may be in it, who holds it, and what is written down about the servers in it.

state_dir/ (0700, or 0710: see home.py)
    lock                     held by the keeper for as long as its servers run
    run.json                 owner, keeper, server processes, URLs (0600: it holds the passwords)
    pg/, pg.password         Postgres
    valkey/                  Valkey and its configuration
    logs/                    one file per server
"""

from __future__ import annotations

import fcntl
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from waybill.embedded.errors import EmbeddedError
from waybill.embedded.keeper import started_at

LOG_ROTATE_BYTES = 16 * 1024 * 1024
#: What the telling line of a server's log contains.
COMPLAINTS = ("FATAL", "PANIC", "ERROR", "rror", "in use", "cannot", "Can't")


@dataclass(frozen=True)
class StateFolder:
    """A state folder that exists and is closed to other users."""

    path: Path

    @property
    def record_path(self) -> Path:
        return self.path / "run.json"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    def try_lock(self) -> int | None:
        """A descriptor that holds the folder until all copies of it are closed; None while somebody else does."""
        descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        return descriptor

    def record(self) -> dict[str, Any] | None:
        """What the keeper wrote down last (its `write_record`); None when no keeper serves."""
        try:
            record: dict[str, Any] = json.loads(self.record_path.read_text())
        except (FileNotFoundError, ValueError):  # not JSON: no keeper wrote it, and the next start replaces it
            return None
        return record

    def log(self, name: str) -> ServerLog:
        """Where `name` logs; a file that has grown large is put aside, one generation of it."""
        path = self.logs / f"{name}.log"
        size = path.stat().st_size if path.exists() else 0
        if size > LOG_ROTATE_BYTES:
            path.replace(path.with_suffix(".log.1"))
            size = 0
        return ServerLog(path=path, begin=size)


@dataclass(frozen=True)
class ServerLog:
    """A log file and how much was in it before the present start."""

    path: Path
    begin: int

    def complaint(self) -> str:
        """The most telling line since `begin`: the first complaint, else the last words, else nothing."""
        try:
            lines = self.path.read_bytes()[self.begin :].decode(errors="replace").strip().splitlines()
        except FileNotFoundError:
            return ""
        telling = [line for line in lines if any(word in line for word in COMPLAINTS)]
        return (telling[:1] or lines[-1:] or [""])[0].strip()


def opened(state_dir: Path) -> StateFolder:
    """The folder, made if absent, and closed to other users.

    Raises:
        EmbeddedError: It cannot be made, or is not ours.
    """
    try:
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = state_dir.resolve()
        path.chmod(path.stat().st_mode & 0o710 | 0o700)  # `home.py` may have let one group pass through
        (path / "logs").mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise EmbeddedError(
            f"cannot use {state_dir} for the embedded servers ({error.strerror}); "
            "set WAYBILL_STATE_DIR to a folder of your own"
        ) from error
    return StateFolder(path)


def lives(process: dict[str, Any]) -> bool:
    """Whether a process of the record still runs; a later one with the same number does not count."""
    return process["started"] is not None and started_at(process["pid"]) == process["started"]
