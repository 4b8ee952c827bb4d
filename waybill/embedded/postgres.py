"""A Postgres data folder and the command line that serves it: made once, then only started.

Durability: `initdb --no-sync` makes the first start five times faster; the running server keeps fsync and
synchronous_commit on, so a committed row outlives any kill of a process. Only a power cut within seconds of the very
first start can spoil the folder.
"""

from __future__ import annotations

import os
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path

from waybill.embedded import account as accounts
from waybill.embedded import home as homes
from waybill.embedded.binaries import PostgresBinaries, find_postgres
from waybill.embedded.errors import EmbeddedError

USER = "waybill"
DATABASE = "waybill"
MAX_CONNECTIONS = 100


@dataclass(frozen=True)
class PostgresFolder:
    """A data folder that is ready to be served."""

    binaries: PostgresBinaries
    account: accounts.Account
    data: Path
    password: str

    def argv(self, port: int) -> list[str]:
        """The command line of the server on `port` of loopback; no unix socket, because its path has a length limit."""
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(port),
            "unix_socket_directories": "",
            "max_connections": str(MAX_CONNECTIONS),
            "synchronous_commit": "on",
            "shared_buffers": "64MB",
            "jit": "off",  # short statements only: compiling them costs more than it saves
            "timezone": "UTC",
            "log_timezone": "UTC",
        }
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        return [*self.account.prefix, str(self.binaries.postgres), "-D", str(self.data), *options]

    def url(self, port: int) -> str:
        """The address in SQLAlchemy's form."""
        return f"postgresql+psycopg://{USER}:{self.password}@127.0.0.1:{port}/{DATABASE}"

    def served_port(self) -> int | None:
        """The port on which a postmaster takes connections, None while there is none.

        Postgres writes its progress into `postmaster.pid`: the port is line 4, the state is line 8 (as `pg_ctl` reads
        it). The port tells a file of this start from one that a crash left.
        """
        lines = _pid_file_lines(self.data)
        if len(lines) < 8 or lines[7].strip() != "ready":
            return None
        return int(lines[3])


def prepare(state_dir: Path) -> PostgresFolder:
    """The data folder for `state_dir`, made if it is not there yet.

    Raises:
        EmbeddedError: No binaries, another major version wrote the folder, or `initdb` failed.
    """
    binaries = find_postgres()
    account = accounts.choose()
    home = homes.find(state_dir, account)
    binaries = homes.reachable(binaries, account, home)
    data = home / "pg"
    password_file = home / "pg.password"
    if not data.is_dir():
        _initialise(binaries, account, data, password_file)
    written_by = (data / "PG_VERSION").read_text().strip()
    major = binaries.major_version()
    if written_by != str(major):
        raise EmbeddedError(
            f"{data} was written by Postgres {written_by} and the binaries here are {major}; "
            f"delete {data} to begin anew, or set WAYBILL_DATABASE_URL"
        )
    try:
        password = password_file.read_text().strip()
    except FileNotFoundError:
        raise EmbeddedError(
            f"{password_file} is gone, so {data} cannot be opened; delete {data} to begin anew"
        ) from None
    return PostgresFolder(binaries=binaries, account=account, data=data, password=password)


def leftovers(state_dir: Path) -> list[tuple[int, Path]]:
    """Pid and data folder of each `postmaster.pid` that an earlier run left, whether that process is alive or not."""
    found = []
    for home in (state_dir, homes.outside(state_dir)):
        lines = _pid_file_lines(home / "pg")
        if lines and lines[0].strip().isdigit():
            found.append((int(lines[0]), home / "pg"))
    return found


def _initialise(binaries: PostgresBinaries, account: accounts.Account, data: Path, password_file: Path) -> None:
    """Make the folder beside its final place and move it there when complete: a kill leaves no half of it."""
    for abandoned in data.parent.glob("pg.new-*"):
        shutil.rmtree(abandoned, ignore_errors=True)
    stage = data.with_name(f"pg.new-{os.getpid()}")
    password = secrets.token_urlsafe(24)
    stage.mkdir(mode=0o700)
    account.hand_over(stage)
    # initdb reads the password from a file, which must not be in the (still empty) data folder.
    handed = stage.with_name(f"{stage.name}.password")
    _write_private(handed, password)
    account.hand_over(handed)
    try:
        made = account.run(
            binaries.initdb,
            "--no-sync",
            "--auth=scram-sha-256",
            f"--pwfile={handed}",
            f"--username={USER}",
            "--encoding=UTF8",
            "--no-locale",
            "-D",
            stage,
        )
        if made.returncode == 0:
            # Single-user mode: the database is there before the first start, and no client library is needed for it.
            made = account.run(
                binaries.postgres,
                "--single",
                "-c",
                "fsync=off",
                "-D",
                stage,
                "postgres",
                stdin=f"CREATE DATABASE {DATABASE};\n",
            )
        if made.returncode != 0:
            said = (made.stderr.strip() or made.stdout.strip() or f"exit code {made.returncode}").splitlines()
            told = next((line for line in said if "error" in line.lower() or "fatal" in line.lower()), said[-1])
            raise EmbeddedError(f"could not make the Postgres folder {data} ({told}); set WAYBILL_DATABASE_URL")
        _write_private(password_file, password)
        stage.rename(data)
    finally:
        handed.unlink(missing_ok=True)
        shutil.rmtree(stage, ignore_errors=True)


def _write_private(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)


def _pid_file_lines(data: Path) -> list[str]:
    try:
        return (data / "postmaster.pid").read_text().splitlines()
    except OSError:
        return []
