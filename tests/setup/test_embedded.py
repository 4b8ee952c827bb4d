"""The embedded servers on this machine's real binaries: start, join, and above all that nothing outlives its owner."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from waybill import embedded
from waybill.embedded import account, home, keeper, postgres
from waybill.embedded.account import Account

OWNER_PROGRAM = Path(__file__).with_name("own_services.py")
REPOSITORY = Path(__file__).resolve().parents[2]
#: A system Python, which a normal user can run, finds the server binaries here.
SITE_PACKAGES = sysconfig.get_path("purelib")
DEADLINE_S = 20.0
linux_only = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="parent-death signals are Linux only")
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user can reach, which pytest's own are not."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def state_dir(open_folder: Path) -> Path:
    return open_folder / "state with space"


class Owner:
    """A process that owns the services of a folder."""

    def __init__(
        self, state_dir: Path, *options: str, prefix: tuple[str, ...] = (), python: str = sys.executable
    ) -> None:
        self.process = subprocess.Popen(
            [*prefix, python, str(OWNER_PROGRAM), str(state_dir), *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join([str(REPOSITORY), SITE_PACKAGES]),
                "PYTHONDONTWRITEBYTECODE": "1",
            },
        )
        assert self.process.stdout
        assert self.process.stderr
        line = self.process.stdout.readline()
        assert line, self.process.stderr.read()
        self.told: dict[str, Any] = json.loads(line)
        record = json.loads((state_dir / "run.json").read_text())
        self.keeper_pid: int = record["keeper"]["pid"]
        self.server_pids: list[int] = list(self.told["pids"].values())

    def leave(self) -> None:
        self.process.communicate("go\n", timeout=DEADLINE_S)

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=DEADLINE_S)


@contextlib.contextmanager
def owner_of(
    state_dir: Path, *options: str, prefix: tuple[str, ...] = (), python: str = sys.executable
) -> Iterator[Owner]:
    owner = Owner(state_dir, *options, prefix=prefix, python=python)
    try:
        yield owner
    finally:
        if owner.process.poll() is None:
            owner.leave()


def wait_until(happened: Callable[[], bool], what: str) -> None:
    deadline_s = time.monotonic() + DEADLINE_S
    while not happened():
        assert time.monotonic() < deadline_s, f"not within {DEADLINE_S:.0f} s: {what}"
        time.sleep(0.02)


def can_run(account: Account, python: str, statement: str) -> bool:
    try:
        return account.run(python, "-c", statement, cwd=Path("/")).returncode == 0
    except PermissionError:  # not even the interpreter
        return False


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


def gone(pid: int) -> bool:
    return keeper.started_at(pid) is None


def data_of(state_dir: Path) -> Path:
    """Where the rows are: in the state folder, or outside of it where Postgres' account cannot get there."""
    return next(path for path in (state_dir / "pg", home.outside(state_dir.resolve()) / "pg") if path.is_dir())


def query(url: str | None, statement: str) -> list[tuple[Any, ...]]:
    assert url
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        cursor = connection.execute(statement)
        return cursor.fetchall() if cursor.description else []


def broker(url: str | None) -> redis.Redis:
    assert url
    return redis.Redis.from_url(url, decode_responses=True)


def test_both_servers_serve_and_keep_their_data_for_the_next_start(state_dir: Path) -> None:
    with embedded.services(state_dir) as first:
        query(first.database_url, "create table freight (id int)")
        query(first.database_url, "insert into freight values (7)")
        with broker(first.redis_url) as client:
            client.set("freight", "7")
        pids = first.pids()

    assert all(gone(pid) for pid in pids.values())
    with embedded.services(state_dir) as second:
        assert query(second.database_url, "select id from freight") == [(7,)]
        with broker(second.redis_url) as client:
            assert client.get("freight") == "7"


def test_servers_are_set_for_safety_over_speed(state_dir: Path) -> None:
    with embedded.services(state_dir) as services:
        durable = query(services.database_url, "select current_setting('fsync'), current_setting('synchronous_commit')")
        with broker(services.redis_url) as client:
            settings = client.config_get("*")

    assert durable == [("on", "on")]
    assert settings["appendonly"] == "yes"
    assert settings["appendfsync"] == "everysec"
    assert settings["maxmemory-policy"] == "noeviction"


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="looks at command lines in /proc")
def test_only_loopback_and_only_with_the_password(state_dir: Path) -> None:
    with embedded.services(state_dir) as services:
        database, queue = urlsplit(services.database_url or ""), urlsplit(services.redis_url or "")
        assert (database.hostname, queue.hostname) == ("127.0.0.1", "127.0.0.1")
        with pytest.raises(psycopg.OperationalError, match="password"):
            psycopg.connect(f"postgresql://waybill:wrong@127.0.0.1:{database.port}/waybill")
        with (
            redis.Redis(port=queue.port or 0, retry=Retry(NoBackoff(), 0)) as stranger,
            pytest.raises(redis.AuthenticationError),
        ):
            stranger.ping()

        listing = " ".join(Path(f"/proc/{pid}/cmdline").read_text() for pid in services.pids().values())
        assert "valkey-server" in listing
        for part in (database, queue):
            assert part.password
            assert part.password not in listing
        assert state_dir.stat().st_mode & 0o067 == 0
        secrets = [
            state_dir / "run.json",
            state_dir / "valkey" / "valkey.conf",
            data_of(state_dir).with_name("pg.password"),
        ]
        assert [stat.S_IMODE(path.stat().st_mode) for path in secrets] == [0o600] * 3


def test_each_service_can_be_left_out(state_dir: Path) -> None:
    with embedded.services(state_dir, postgres=False) as services:
        assert services.database_url is None
        assert list(services.pids()) == ["valkey"]
    assert not (state_dir / "pg").exists()


def test_second_process_joins_and_leaves_without_stopping_anything(state_dir: Path) -> None:
    with owner_of(state_dir) as owner:
        with embedded.services(state_dir) as joined:
            assert not joined.owned
            assert owner.told["owned"]
            assert joined.database_url == owner.told["database_url"]

        assert query(owner.told["database_url"], "select 1") == [(1,)]
        assert not any(gone(pid) for pid in owner.server_pids)
    assert all(gone(pid) for pid in owner.server_pids)


def test_joining_an_owner_without_the_wanted_server_says_what_to_do(state_dir: Path) -> None:
    with (
        owner_of(state_dir, "--no-redis"),
        pytest.raises(embedded.EmbeddedError, match=r"without a Valkey; .* WAYBILL_REDIS_URL"),
        embedded.services(state_dir),
    ):
        pass


@linux_only
@pytest.mark.parametrize("option", [(), ("--fork",)], ids=["alone", "with a forked child that holds the pipe"])
def test_killed_owner_takes_the_servers_along_and_committed_rows_stay(state_dir: Path, option: tuple[str, ...]) -> None:
    owner = Owner(state_dir, *option)
    query(owner.told["database_url"], "create table freight as select 7 as id")

    os.kill(owner.process.pid, signal.SIGKILL)

    try:
        wait_until(lambda: all(gone(pid) for pid in owner.server_pids), "servers gone after their owner was killed")
        wait_until(lambda: gone(owner.keeper_pid), "keeper gone")
        assert not (state_dir / "run.json").exists()
        with embedded.services(state_dir) as services:
            assert services.owned
            assert query(services.database_url, "select id from freight") == [(7,)]
    finally:
        if owner.told["child"]:
            os.kill(owner.told["child"], signal.SIGKILL)
        owner.process.communicate(timeout=DEADLINE_S)


@linux_only
def test_killed_keeper_takes_the_servers_along_too(state_dir: Path) -> None:
    owner = Owner(state_dir)

    os.kill(owner.keeper_pid, signal.SIGKILL)

    wait_until(lambda: all(gone(pid) for pid in owner.server_pids), "servers gone after their keeper was killed")
    owner.kill()
    with embedded.services(state_dir) as services:
        assert services.owned
        assert query(services.database_url, "select 1") == [(1,)]


def test_start_ends_a_server_that_an_earlier_run_left(state_dir: Path) -> None:
    with embedded.services(state_dir, redis=False):
        pass
    folder = postgres.prepare(state_dir)
    orphan = subprocess.Popen(
        folder.argv(free_port()),
        stderr=subprocess.DEVNULL,
        env=account.server_environment(),
        user=folder.account.uid,
        group=folder.account.uid,
    )
    try:
        wait_until(lambda: folder.served_port() is not None, "the orphan serves")

        with embedded.services(state_dir, redis=False) as services:
            assert orphan.wait(DEADLINE_S) == 0
            assert query(services.database_url, "select 1") == [(1,)]
    finally:
        orphan.kill()
        orphan.wait()


@pytest.mark.parametrize("name", ["postgres", "valkey"])
def test_fallen_server_comes_back_on_the_same_port(state_dir: Path, name: str) -> None:
    with embedded.services(state_dir) as services:
        before = services.pids()[name]

        os.kill(before, signal.SIGKILL)

        wait_until(lambda: services.pids().get(name, before) != before, f"{name} started again")

        def answers() -> bool:
            try:
                if name == "postgres":
                    return query(services.database_url, "select 1") == [(1,)]
                with broker(services.redis_url) as client:
                    return bool(client.ping())
            except (psycopg.OperationalError, redis.ConnectionError):
                return False

        wait_until(answers, f"{name} answers again")


@root_only
def test_normal_user_runs_them_too() -> None:
    nobody = Account(uid=65534)
    imports = f"import sys; sys.path.insert(0, {str(REPOSITORY)!r}); import waybill.embedded"
    pythons = (python for python in (sys.executable, "/usr/bin/python3") if Path(python).exists())
    python = next((python for python in pythons if can_run(nobody, python, imports)), None)
    if python is None:
        pytest.skip("nobody can read neither this checkout nor a Python (a folder above them is closed)")
    home = Path(tempfile.mkdtemp())
    try:
        shutil.chown(home, 65534, 65534)
        prefix = ("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "--")
        with owner_of(home / "state", prefix=prefix, python=python) as owner:
            assert query(owner.told["database_url"], "select 1") == [(1,)]
            assert (home / "state" / "pg").stat().st_uid == 65534
        assert all(gone(pid) for pid in owner.server_pids)
    finally:
        shutil.rmtree(home)


def test_works_below_a_closed_folder(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)

    with embedded.services(closed / "state", redis=False) as services:
        assert query(services.database_url, "select 1") == [(1,)]
    assert stat.S_IMODE(closed.stat().st_mode) == 0o700


@pytest.fixture
def no_namespaces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine (most containers) on which `unshare` is refused."""
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "unshare").write_text("#!/bin/sh\nexit 1\n")
    (programs / "unshare").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")


@root_only
@pytest.mark.usefixtures("no_namespaces")
def test_root_without_user_namespaces_serves_as_nobody(state_dir: Path) -> None:
    for _ in range(2):
        with embedded.services(state_dir) as services:
            query(services.database_url, "create table if not exists freight as select 7 as id")
            assert query(services.database_url, "select id from freight") == [(7,)]
            server = services.pids()["postgres"]
            assert Path(f"/proc/{server}").stat().st_uid != 0
        assert gone(server)
    assert (state_dir / "pg").is_dir()
    assert stat.S_IMODE(state_dir.stat().st_mode) == 0o710


@root_only
@pytest.mark.usefixtures("no_namespaces")
def test_nobody_serves_from_outside_where_the_state_folder_is_closed_to_it(
    tmp_path: Path, open_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(home, "OUTSIDE", open_folder)
    tmp_path.chmod(0o700)
    state_dir = tmp_path / "state"
    for _ in range(2):
        with embedded.services(state_dir, redis=False) as services:
            query(services.database_url, "create table if not exists freight as select 7 as id")
            assert query(services.database_url, "select id from freight") == [(7,)]
    assert not (state_dir / "pg").exists()
    assert (home.outside(state_dir) / "pg").is_dir()

    shutil.rmtree(state_dir)
    with embedded.services(state_dir.with_name("another"), redis=False):
        assert not home.outside(state_dir).exists()


def test_folder_of_another_postgres_version_is_refused(state_dir: Path) -> None:
    with embedded.services(state_dir, redis=False):
        pass
    (data_of(state_dir) / "PG_VERSION").write_text("9\n")

    with (
        pytest.raises(
            embedded.EmbeddedError, match=r"written by Postgres 9 and the binaries here are \d+; delete .* begin anew"
        ),
        embedded.services(state_dir, redis=False),
    ):
        pass


def test_state_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("not a folder")

    with pytest.raises(embedded.EmbeddedError, match="set WAYBILL_STATE_DIR"), embedded.services(tmp_path / "state"):
        pass


def test_broken_data_folder_is_one_line_and_leaves_nothing_running(state_dir: Path) -> None:
    with embedded.services(state_dir):
        pass
    (data_of(state_dir) / "global" / "pg_control").unlink()

    with (
        pytest.raises(embedded.EmbeddedError, match=r"does not start: .*pg_control") as refused,
        embedded.services(state_dir),
    ):
        pass

    assert "\n" not in str(refused.value)
    assert not (state_dir / "run.json").exists()


def test_databases_are_made_from_a_template_and_dropped(state_dir: Path) -> None:
    with embedded.services(state_dir, redis=False) as services:
        assert services.database_url
        template = embedded.create_database(services.database_url, "template of a test")
        query(template, "create table freight as select 7 as id")

        copy = embedded.create_database(services.database_url, "copy", template="template of a test")

        assert copy.endswith("/copy")
        assert query(copy, "select id from freight") == [(7,)]
        embedded.drop_database(copy)
        assert query(services.database_url, "select count(*) from pg_database where datname = 'copy'") == [(0,)]
