"""Servers that people have and the embedded pair is not: started by the test on loopback, in folders of its own, ended with it."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest
import redis

from waybill.cli.up import free_port

SLOW: Final = [
    pytest.mark.skipif(
        os.environ.get("WAYBILL_SLOW") != "1", reason="starts servers and a fleet of its own; set WAYBILL_SLOW=1"
    ),
    pytest.mark.timeout(600),
]
PASSWORD: Final = "letters-and-1"
READY_WITHIN_S: Final = 120.0


def postgres_servers() -> dict[str, Path]:
    """Folders of programs by major version: Debian's, and those in WAYBILL_POSTGRES_BINS (with colons)."""
    given = [Path(name) for name in os.environ.get("WAYBILL_POSTGRES_BINS", "").split(":") if name]
    found = {}
    for folder in [*Path("/usr/lib/postgresql").glob("*/bin"), *given]:
        if (folder / "initdb").exists():
            said = subprocess.run([folder / "postgres", "--version"], capture_output=True, text=True, check=True).stdout
            found[said.split()[2].partition(".")[0]] = folder
    return dict(sorted(found.items()))


def as_nobody(folder: Path) -> list[str]:
    """What to put before a command that refuses to be root; the folder becomes nobody's."""
    if os.geteuid() != 0:
        return []
    # pytest's folders are for their owner alone.
    for path in (folder, *folder.parents):
        if path.stat().st_uid == 0 and len(path.parts) > 2:
            path.chmod(path.stat().st_mode | 0o711)
    for path in (folder, *folder.rglob("*")):
        shutil.chown(path, "nobody")
    return ["setpriv", "--reuid", "nobody", "--regid", "nogroup", "--clear-groups"]


class Certificates:
    """A certificate authority of the test's own, and a server certificate for localhost."""

    def __init__(self, folder: Path) -> None:
        self.authority = folder / "ca.crt"
        self.certificate = folder / "server.crt"
        self.key = folder / "server.key"
        (folder / "names.cnf").write_text("subjectAltName = DNS:localhost, IP:127.0.0.1\n")
        request = folder / "server.csr"
        for arguments in (
            ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=waybill test authority",
             "-keyout", folder / "ca.key", "-out", self.authority],
            ["req", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-keyout", self.key, "-out", request],
            ["x509", "-req", "-in", request, "-CA", self.authority, "-CAkey", folder / "ca.key", "-CAcreateserial",
             "-days", "2", "-extfile", folder / "names.cnf", "-out", self.certificate],
        ):  # fmt: skip
            subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


class Server:
    """One process that can be stopped and started again on the same port, with the same data."""

    def __init__(self, argv: Sequence[str], log: Path, is_up: Callable[[], bool], env: dict[str, str]) -> None:
        self._argv, self._log, self._is_up, self._env = list(argv), log, is_up, env
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start, and wait until it answers."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._argv, stdout=log, stderr=log, env=self._env, start_new_session=True)
        end = time.monotonic() + READY_WITHIN_S
        while not self._is_up():
            assert self._process.poll() is None, self._log.read_text(errors="replace")
            assert time.monotonic() < end, self._log.read_text(errors="replace")
            time.sleep(0.1)

    def stop(self) -> None:
        """SIGTERM; SIGKILL where that is not heard."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.terminate()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@contextmanager
def serving(server: Server) -> Iterator[Server]:
    """Started, and stopped at the end."""
    try:
        server.start()
        yield server
    finally:
        server.stop()


@contextmanager
def postgres(programs: Path, folder: Path, tls: Certificates | None = None) -> Iterator[str]:
    """The URL of an empty database. With TLS nothing else is let in, and the URL demands the right certificate."""
    data, port = folder / "data", free_port()
    (folder / "password").write_text(PASSWORD)
    before = as_nobody(folder)
    options = [
        "--auth=scram-sha-256",
        f"--pwfile={folder}/password",
        "--username=waybill",
        "--encoding=UTF8",
        "--no-locale",
    ]
    made = [*before, str(programs / "initdb"), "--no-sync", *options, "-D", str(data)]
    done = subprocess.run(made, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    settings = {"port": port, "listen_addresses": "127.0.0.1", "unix_socket_directories": "", "max_connections": 200}
    query = ""
    if tls is not None:
        for file in (tls.certificate, tls.key):
            shutil.copy(file, data / file.name)
            (data / file.name).chmod(0o600)
        if before:
            as_nobody(data)
        settings |= {"ssl": "on"}
        (data / "pg_hba.conf").write_text("hostssl all all 127.0.0.1/32 scram-sha-256\n")
        query = f"?sslmode=verify-full&sslrootcert={tls.authority}"
    argv = [*before, str(programs / "postgres"), "-D", str(data)]
    argv += [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
    url = f"postgresql://waybill:{PASSWORD}@localhost:{port}"

    def is_up() -> bool:
        with suppress(psycopg.OperationalError):
            psycopg.connect(f"{url}/postgres{query}").close()
            return True
        return False

    with serving(Server(argv, folder / "postgres.log", is_up, dict(os.environ))):
        with psycopg.connect(f"{url}/postgres{query}", autocommit=True) as connection:
            connection.execute("create database waybill")
        yield f"{url}/waybill{query}".replace("postgresql://", "postgresql+psycopg://")


@contextmanager
def redis_server(program: str, folder: Path, tls: Certificates | None = None) -> Iterator[str]:
    """The URL of an empty Redis or Valkey behind a password. With TLS there is no other port."""
    port = free_port()
    ports = ["--port", str(port)]
    url = f"redis://:{PASSWORD}@localhost:{port}/0"
    if tls is not None:
        ports = [
            "--port",
            "0",
            "--tls-port",
            str(port),
            "--tls-auth-clients",
            "no",
            "--tls-ca-cert-file",
            str(tls.authority),
        ]
        ports += ["--tls-cert-file", str(tls.certificate), "--tls-key-file", str(tls.key)]
        url = f"rediss://:{PASSWORD}@localhost:{port}/0?ssl_ca_certs={tls.authority}"
    argv = [
        program, *ports, "--bind", "127.0.0.1", "--dir", str(folder), "--requirepass", PASSWORD, "--appendonly", "yes",
        "--maxmemory-policy", "noeviction",
    ]  # fmt: skip

    with serving(Server(argv, folder / "redis.log", lambda: _answers(url), dict(os.environ))):
        yield url


def _answers(url: str) -> bool:
    with suppress(redis.RedisError), redis.Redis.from_url(url) as connection:
        return bool(connection.ping())
    return False


class Sentinels:
    """A master, a replica, and three Sentinels that watch them."""

    def __init__(self, url: str, servers: dict[int, Server]) -> None:
        self.url = url
        self._servers = servers

    @property
    def master(self) -> int:
        """The port of the master, as the Sentinels say."""
        from waybill.redislink import connect

        with connect(self.url) as client:
            return int(client.info("server")["tcp_port"])

    def lose_master(self) -> int:
        """Kill the master; returns the port of the one that took its place."""
        old = self.master
        self._servers[old].stop()
        end = time.monotonic() + READY_WITHIN_S
        while True:
            with suppress(redis.RedisError):
                if (new := self.master) != old:
                    return new
            assert time.monotonic() < end, "the Sentinels name no other master"
            time.sleep(0.2)


@contextmanager
def sentinels(program: str, folder: Path) -> Iterator[Sentinels]:
    """Five processes of Redis: who is the master is known to the Sentinels alone."""
    ports = [free_port(), free_port()]
    watching = [free_port() for _ in range(3)]
    servers: dict[int, Server] = {}
    with ExitStack() as stack:
        for port in ports:
            (folder / str(port)).mkdir()
            argv = [program, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder / str(port))]
            argv += ["--requirepass", PASSWORD, "--masterauth", PASSWORD, "--maxmemory-policy", "noeviction"]
            if port != ports[0]:
                argv += ["--replicaof", "127.0.0.1", str(ports[0])]
            up = functools.partial(_answers, f"redis://:{PASSWORD}@127.0.0.1:{port}/0")
            servers[port] = stack.enter_context(serving(Server(argv, folder / f"{port}.log", up, dict(os.environ))))
        for port in watching:
            (folder / f"{port}.conf").write_text(
                f"port {port}\nbind 127.0.0.1\ndir {folder}\nsentinel monitor fleet 127.0.0.1 {ports[0]} 2\n"
                f"sentinel auth-pass fleet {PASSWORD}\nsentinel down-after-milliseconds fleet 2000\n"
                "sentinel failover-timeout fleet 6000\n"
            )
            argv = [program, str(folder / f"{port}.conf"), "--sentinel"]
            up = functools.partial(_answers, f"redis://127.0.0.1:{port}/0")
            stack.enter_context(serving(Server(argv, folder / f"{port}.log", up, dict(os.environ))))
        for port in watching:
            _until_watched(port)
        hosts = ",".join(f"127.0.0.1:{port}" for port in watching)
        yield Sentinels(f"redis+sentinel://:{PASSWORD}@{hosts}/0?master=fleet", servers)


def _until_watched(port: int) -> None:
    """Wait until a Sentinel knows the replica and the two others."""
    end = time.monotonic() + READY_WITHIN_S
    with redis.Redis(port=port, decode_responses=True) as client:
        while True:
            [told] = client.sentinel_masters().values()
            if (int(told["num-slaves"]), int(told["num-other-sentinels"])) == (1, 2):
                return
            assert time.monotonic() < end, told
            time.sleep(0.2)


@contextmanager
def rabbitmq(program: str, folder: Path) -> Iterator[tuple[str, Server]]:
    """The URL of a RabbitMQ node of its own, and the server, to be stopped and started."""
    from kombu import connection

    connect: Any = connection.Connection  # kombu has no types
    port, names, distribution = free_port(), free_port(), free_port()
    url = f"amqp://guest:guest@127.0.0.1:{port}//"
    (folder / "plugins").write_text("[].")
    (folder / "rabbitmq.conf").write_text(
        "vm_memory_high_watermark.absolute = 512MB\ndisk_free_limit.absolute = 50MB\n"
    )
    env = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),  # the cookie's place
        "LANG": "C.UTF-8",
        "RABBITMQ_NODENAME": f"waybill-test-{port}@localhost",
        "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
        "RABBITMQ_NODE_PORT": str(port),
        "RABBITMQ_DIST_PORT": str(distribution),
        "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
        "RABBITMQ_LOG_BASE": str(folder / "log"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
        "RABBITMQ_CONF_ENV_FILE": str(folder / "no-such-file"),
        "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
        "ERL_EPMD_PORT": str(names),
        "ERL_EPMD_ADDRESS": "127.0.0.1",
    }

    def is_up() -> bool:
        try:
            with connect(url, connect_timeout=2) as made:
                made.connect()
            return True
        except Exception:  # noqa: BLE001  # whatever amqp raises while the node starts
            return False

    # Erlang's port mapper outlives the node that starts it, unless it is there already.
    mapper = subprocess.Popen(["epmd", "-port", str(names), "-address", "127.0.0.1"], env=env)
    try:
        with serving(Server([program], folder / "rabbitmq.log", is_up, env)) as server:
            yield url, server
    finally:
        mapper.terminate()
        mapper.wait(10)
