"""A streaming standby of an embedded Postgres, that can be promoted: what a failover needs."""

from __future__ import annotations

import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

import psycopg

from waybill.embedded import account as accounts
from waybill.embedded.postgres import PostgresFolder, prepare


@dataclass
class Standby:
    """A running one."""

    folder: PostgresFolder
    port: int
    process: subprocess.Popen[bytes]
    log: Path

    def promote(self, timeout_s: float = 30) -> None:
        """Make it the primary; it takes writes when this returns."""
        with self._connected() as connection:
            connection.execute("select pg_promote(true, %s)", (int(timeout_s),))

    def until_it_has(self, position: str, timeout_s: float = 30) -> None:
        """Wait until it has received the log up to a position of the primary (`pg_current_wal_lsn`)."""
        end = time.monotonic() + timeout_s
        while True:
            with self._connected() as connection:
                row = connection.execute("select pg_last_wal_receive_lsn() >= %s::pg_lsn", (position,)).fetchone()
            if row is not None and row[0]:
                return
            assert time.monotonic() < end, f"the standby does not follow:\n{self.log.read_text()[-2000:]}"
            time.sleep(0.05)

    def _connected(self) -> psycopg.Connection[tuple[object, ...]]:
        return psycopg.connect(self.folder.url(self.port).replace("+psycopg", ""), autocommit=True)


@contextmanager
def standby_of(primary_state: Path, primary_url: str, home: Path) -> Iterator[Standby]:
    """A standby of the Postgres whose state folder and address are given; it follows when the block begins.

    Args:
        primary_state: For its binaries, account and password.
        primary_url: Where the standby finds it, perhaps behind a proxy.
        home: An empty folder.
    """
    primary = prepare(primary_state)
    address = urlsplit(primary_url)
    login = f"host={address.hostname} port={address.port} user={address.username} password={address.password}"
    folder = replace(primary, data=home / "pg")
    primary.account.hand_over(home)
    program = primary.binaries.postgres.with_name("pg_basebackup")
    copied = primary.account.run(program, "-D", folder.data, "-d", login, "-R", "-X", "stream", "--no-sync")
    assert copied.returncode == 0, copied.stderr
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    log = home / "standby.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            folder.argv(port),
            user=folder.account.uid,
            group=folder.account.uid,
            extra_groups=None if folder.account.uid is None else [],
            env=accounts.server_environment(),
            stdout=output,
            stderr=output,
        )
    standby = Standby(folder, port, process, log)
    try:
        end = time.monotonic() + 30
        while folder.served_port() != port and "ready to accept read-only" not in log.read_text():
            assert process.poll() is None, f"the standby ended at its start:\n{log.read_text()}"
            assert time.monotonic() < end, f"the standby is not ready:\n{log.read_text()}"
            time.sleep(0.05)
        yield standby
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)
