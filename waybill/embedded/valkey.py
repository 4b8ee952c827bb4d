"""A Valkey folder, its configuration and the question whether it answers yet.

Queued ids outlive a restart (append-only file, synced every second); what is lost with the last second, or with the
whole folder, the reconciler rings for again: Postgres is the truth.
"""

from __future__ import annotations

import os
import secrets
import socket
from dataclasses import dataclass
from pathlib import Path

from waybill.embedded.binaries import find_valkey

PROBE_TIMEOUT_S = 0.5


@dataclass(frozen=True)
class ValkeyFolder:
    """A folder that is ready to be served."""

    binary: Path
    data: Path
    password: str

    def argv(self, port: int) -> list[str]:
        """The command line of the server on `port` of loopback; writes the configuration, which holds the password."""
        configuration = self.data / "valkey.conf"
        configuration.unlink(missing_ok=True)
        descriptor = os.open(configuration, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(
                f"bind 127.0.0.1\n"
                f"port {port}\n"
                f"requirepass {self.password}\n"
                "daemonize no\n"
                'save ""\n'
                "appendonly yes\n"
                "appendfsync everysec\n"
                "maxmemory-policy noeviction\n"
            )
        # The server runs in its folder (cwd), so no path has to be quoted for the configuration's grammar.
        return [str(self.binary), configuration.name]

    def url(self, port: int) -> str:
        """The address as redis-py and kombu read it."""
        return f"redis://:{self.password}@127.0.0.1:{port}/0"


def prepare(state_dir: Path) -> ValkeyFolder:
    """The folder below `state_dir`, made if it is not there yet; the password is new for every start.

    Raises:
        EmbeddedError: This machine has no binary.
    """
    data = state_dir / "valkey"
    data.mkdir(mode=0o700, exist_ok=True)
    return ValkeyFolder(binary=find_valkey(), data=data, password=secrets.token_urlsafe(24))


def answers(port: int, password: str) -> bool:
    """Whether the server on `port` takes this password and has loaded its data (it says LOADING until then)."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=PROBE_TIMEOUT_S) as probe:
            probe.sendall(f"AUTH {password}\r\nPING\r\n".encode())
            said = b""
            while said.count(b"\n") < 2 and (piece := probe.recv(256)):
                said += piece
    except OSError:
        return False
    return said == b"+OK\r\n+PONG\r\n"
