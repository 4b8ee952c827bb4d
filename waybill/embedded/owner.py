"""Own or join the embedded servers of one state folder.

The lock decides: who gets it cleans up after a crash, starts a keeper and passes the lock on to it, so that it is
held exactly as long as servers run. Who does not get it joins, or waits while the servers of somebody else come up or
go down.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from waybill.embedded import folder as folders
from waybill.embedded import keeper
from waybill.embedded import postgres as postgres_server
from waybill.embedded import valkey as valkey_server
from waybill.embedded.account import server_environment
from waybill.embedded.errors import EmbeddedError
from waybill.embedded.folder import ServerLog, StateFolder, lives

#: For one start until both servers answer. A second is usual; this is for a machine under heavy load.
START_WAIT_S = 60.0
POLL_S = 0.02
PORT_ATTEMPTS = 3
KEEPER_STOP_WAIT_S = 30.0


@dataclass(frozen=True)
class Services:
    """Where the servers of a state folder are."""

    state_dir: Path
    #: SQLAlchemy's form, database `waybill`; None when no Postgres was asked for.
    database_url: str | None
    #: Database 0; None when no Valkey was asked for.
    redis_url: str | None
    #: True: they stop when the `with` block ends. False: another process owns them, and they go when it goes.
    owned: bool

    def pids(self) -> dict[str, int]:
        """The server processes that run now, by name (`postgres`, `valkey`); a fallen one is missing meanwhile."""
        record = StateFolder(self.state_dir).record() or {"servers": {}}
        return {name: process["pid"] for name, process in record["servers"].items() if lives(process)}


@contextlib.contextmanager
def services(
    state_dir: Path, *, postgres: bool = True, redis: bool = True, start_wait_s: float = START_WAIT_S
) -> Iterator[Services]:
    """Serve Postgres and Valkey from `state_dir` for the length of a `with` block.

    The first process that asks becomes the owner; another one joins it. What a killed run left behind is ended first;
    its data stay. A server that falls while the block runs is started again on the same port.

    Args:
        state_dir: Made if absent, and closed to other users.
        postgres: Whether a Postgres is wanted; False where `WAYBILL_DATABASE_URL` names one.
        redis: Whether a Valkey is wanted; False where `WAYBILL_REDIS_URL` names one.
        start_wait_s: Seconds to wait until the servers answer, or until another process has started or stopped them.

    Raises:
        EmbeddedError: No binaries, a folder of another Postgres version, no permission, or the owner has not what is
        wanted.
    """
    folder = folders.opened(state_dir)
    deadline_s = time.monotonic() + start_wait_s
    while (lock := folder.try_lock()) is None:
        if joined := _join(folder, postgres=postgres, redis=redis):
            yield joined
            return
        if time.monotonic() > deadline_s:
            raise EmbeddedError(
                f"another process holds {folder.path} and neither serves nor ends; {folder.record_path} says which"
            )
        time.sleep(POLL_S)
    try:
        _end_leftovers(folder)
        hired, started = _start(folder, lock, postgres=postgres, redis=redis, deadline_s=deadline_s)
    finally:
        os.close(lock)  # from here on the keeper's copy holds it
    owner_pid = os.getpid()
    try:
        yield started
    finally:
        if os.getpid() == owner_pid:  # a forked child that comes through here is not the owner
            hired.stop()


def _join(folder: StateFolder, *, postgres: bool, redis: bool) -> Services | None:
    """The servers of a living owner; None while they are not ready, or are being stopped."""
    record = folder.record()
    if record is None or not record["ready"] or not lives(record["owner"]):
        return None
    for wanted, key, name, variable in (
        (postgres, "database_url", "Postgres", "WAYBILL_DATABASE_URL"),
        (redis, "redis_url", "Valkey", "WAYBILL_REDIS_URL"),
    ):
        if wanted and record[key] is None:
            raise EmbeddedError(
                f"process {record['owner']['pid']} serves {folder.path} without a {name}; "
                f"stop it first, or set {variable}"
            )
    if not all(lives(process) for process in record["servers"].values()):
        return None
    return Services(
        state_dir=folder.path,
        database_url=record["database_url"] if postgres else None,
        redis_url=record["redis_url"] if redis else None,
        owned=False,
    )


def _end_leftovers(folder: StateFolder) -> None:
    """End what an earlier run left.

    We hold the lock, so its keeper is gone, and on Linux the servers went with it; elsewhere they may not have.
    """
    record = folder.record() or {"servers": {}}
    leftovers = list(record["servers"].values())
    for pid, data in postgres_server.leftovers(folder.path):
        if os.fsencode(data) in _command_line(pid):  # else the number belongs to somebody else by now
            leftovers.append({"pid": pid, "started": keeper.started_at(pid), "signal": signal.SIGINT})
    for process in leftovers:
        _end(process)
    folder.record_path.unlink(missing_ok=True)


def _end(process: dict[str, Any]) -> None:
    for number in (process["signal"], signal.SIGKILL):
        if not lives(process):
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(process["pid"], number)
        _wait(lambda: not lives(process), seconds=keeper.STOP_WAIT_S)


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        told = subprocess.run(["ps", "-o", "command=", "-p", str(pid)], capture_output=True, check=False)
        return told.stdout


@dataclass(frozen=True)
class _Wanted:
    """One server of the set: what the keeper is told about it, and how we know that it serves."""

    order: dict[str, Any]
    serves: Callable[[], bool]
    log: ServerLog


class _HiredKeeper:
    """The keeper's process, seen from the owner."""

    def __init__(self, folder: StateFolder, lock: int, started: Services, wanted: list[_Wanted]) -> None:
        order = {
            "owner": {"pid": os.getpid(), "started": keeper.started_at(os.getpid())},
            "record": str(folder.record_path),
            "public": {"database_url": started.database_url, "redis_url": started.redis_url},
            "servers": [one.order for one in wanted],
        }
        with folder.log("keeper").path.open("ab") as log:
            self.process = subprocess.Popen(
                # -I -S: no environment, no site-packages: 20 ms and 10 MB instead of importing us again.
                [sys.executable, "-I", "-S", keeper.__file__],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                pass_fds=(lock,),
                start_new_session=True,  # Ctrl-C is for the owner, which stops the servers when it is done
            )
        self._tell(json.dumps(order).encode() + b"\n")

    @property
    def left(self) -> bool:
        """Whether it gave up: a server fell before `ready`."""
        return self.process.poll() is not None

    def ready(self) -> None:
        self._tell(b"ready\n")

    def stop(self) -> None:
        self._tell(b"stop\n")
        try:
            self.process.wait(KEEPER_STOP_WAIT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()  # takes the servers along, by their parent-death signal
            self.process.wait()
        with contextlib.suppress(BrokenPipeError):
            self._stdin.close()

    def _tell(self, words: bytes) -> None:
        with contextlib.suppress(BrokenPipeError):  # it ended; whoever waits for it sees that
            self._stdin.write(words)
            self._stdin.flush()

    @property
    def _stdin(self) -> IO[bytes]:
        stdin = self.process.stdin
        if stdin is None:
            raise RuntimeError("the keeper is always started with a pipe")
        return stdin


def _start(
    folder: StateFolder, lock: int, *, postgres: bool, redis: bool, deadline_s: float
) -> tuple[_HiredKeeper, Services]:
    """A keeper with servers that answer."""
    database = postgres_server.prepare(folder.path) if postgres else None
    broker = valkey_server.prepare(folder.path) if redis else None
    attempts_left = PORT_ATTEMPTS
    while True:
        attempts_left -= 1
        database_port, broker_port = _free_ports(2)
        wanted = []
        if database:
            wanted.append(_wanted_postgres(folder, database, database_port))
        if broker:
            wanted.append(_wanted_valkey(folder, broker, broker_port))
        started = Services(
            state_dir=folder.path,
            database_url=database.url(database_port) if database else None,
            redis_url=broker.url(broker_port) if broker else None,
            owned=True,
        )
        hired = _HiredKeeper(folder, lock, started, wanted)
        try:
            in_time = _wait_served(hired, wanted, seconds=deadline_s - time.monotonic())
        except BaseException:  # Ctrl-C too: nothing may stay behind
            hired.stop()
            raise
        if in_time and not hired.left:
            hired.ready()
            return hired, started
        hired.stop()
        complaints = [text for one in wanted if (text := one.log.complaint())]
        # Another program may take a port between our look and the server's start; anything else will not change.
        if attempts_left and any("in use" in text for text in complaints):
            continue
        what = "does not start" if in_time else "is not ready in time"
        said = complaints[0] if complaints else "it said nothing"
        raise EmbeddedError(f"an embedded server {what}: {said} (more in {folder.logs})")


def _wanted_postgres(folder: StateFolder, database: postgres_server.PostgresFolder, port: int) -> _Wanted:
    log = folder.log("postgres")
    order = {
        "name": "postgres",
        "argv": database.argv(port),
        "cwd": str(database.data.parent),
        "uid": database.account.uid,
        "env": server_environment(),
        "log": str(log.path),
        "stop_signal": int(signal.SIGINT),  # "fast"; SIGTERM would wait for every client to leave
    }
    return _Wanted(order=order, serves=lambda: database.served_port() == port, log=log)


def _wanted_valkey(folder: StateFolder, broker: valkey_server.ValkeyFolder, port: int) -> _Wanted:
    log = folder.log("valkey")
    order = {
        "name": "valkey",
        "argv": broker.argv(port),
        "cwd": str(broker.data),
        "uid": None,
        "env": server_environment(),
        "log": str(log.path),
        "stop_signal": int(signal.SIGTERM),
    }
    return _Wanted(order=order, serves=lambda: valkey_server.answers(port, broker.password), log=log)


def _wait_served(hired: _HiredKeeper, wanted: list[_Wanted], *, seconds: float) -> bool:
    """Wait until all serve or the keeper gave up; False when neither happened in time."""
    return _wait(lambda: hired.left or all(one.serves() for one in wanted), seconds=seconds)


def _free_ports(count: int) -> list[int]:
    """Ports that nobody listens on right now, all different."""
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]


def _wait(happened: Callable[[], bool], *, seconds: float) -> bool:
    """Look until it happened or the time is over; whether it happened."""
    deadline_s = time.monotonic() + seconds
    while not happened():
        if time.monotonic() > deadline_s:
            return False
        time.sleep(POLL_S)
    return True
