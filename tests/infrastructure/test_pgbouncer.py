"""A fleet behind PgBouncer in transaction mode, where Debian's pgbouncer is installed: every statement on another session."""

from __future__ import annotations

import getpass
import os
import pwd
import shutil
import subprocess
import time
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import make_url

from sandbox.testing import running
from tests.fleet import running_fleet
from waybill import Client, Job
from waybill.cli.up import free_port

PGBOUNCER = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
pytestmark = [
    pytest.mark.skipif(PGBOUNCER is None, reason="pgbouncer is not installed (Debian package pgbouncer)"),
    pytest.mark.skipif(os.environ.get("WAYBILL_SLOW") != "1", reason="starts a fleet of its own; set WAYBILL_SLOW=1"),
]


def test_jobs_go_through_pgbouncer_in_transaction_mode(database_url: str, redis_url: str, tmp_path: Path) -> None:
    url, port = make_url(database_url), free_port()
    (tmp_path / "users.txt").write_text(f'"{url.username}" "{url.password}"\n')
    (tmp_path / "pgbouncer.ini").write_text(
        f"[databases]\n{url.database} = host={url.host} port={url.port}\n[pgbouncer]\nlisten_addr = 127.0.0.1\n"
        f"listen_port = {port}\nunix_socket_dir =\nauth_type = scram-sha-256\nauth_file = {tmp_path}/users.txt\n"
        "pool_mode = transaction\ndefault_pool_size = 4\nmax_client_conn = 200\nignore_startup_parameters = extra_float_digits\n"
    )
    command = [str(PGBOUNCER), str(tmp_path / "pgbouncer.ini")]
    if os.geteuid() == 0:  # it refuses to be root
        nobody = pwd.getpwnam("nobody").pw_uid
        for path in (tmp_path, *tmp_path.parents):
            if path.stat().st_uid == 0 and str(path).startswith("/tmp/"):
                path.chmod(0o755)
        for file in tmp_path.iterdir():
            os.chown(file, nobody, -1)
        command = ["setpriv", "--reuid", "nobody", "--clear-groups", *command]
    assert getpass.getuser()
    with (tmp_path / "pgbouncer.log").open("wb") as log:
        bouncer = subprocess.Popen(command, stdout=log, stderr=log)
    through = url.set(host="127.0.0.1", port=port).update_query_dict({"pgbouncer": "true"})
    pooled = through.render_as_string(hide_password=False)
    try:
        end = time.monotonic() + 10
        while True:
            try:
                psycopg.connect(
                    host="127.0.0.1", port=port, user=url.username, password=url.password, dbname=url.database
                ).close()
                break
            except psycopg.OperationalError:
                assert bouncer.poll() is None, (tmp_path / "pgbouncer.log").read_text()
                assert time.monotonic() < end, (tmp_path / "pgbouncer.log").read_text()
                time.sleep(0.1)
        with (
            running() as sandbox,
            running_fleet(pooled, redis_url, sandbox.url, tmp_path) as fleet,
            Client(pooled, redis_url) as client,
        ):
            # Far more statements than the four sessions of the pool: each session serves every process.
            for turn in range(4):
                ids = client.submit_many([Job(intent="extraction", prompt=f"{turn} {n}") for n in range(30)])
                outcomes = list(client.results(ids, timeout_s=60))
                assert all(outcome.result for outcome in outcomes)
            told = "".join(fleet.log(name) for name in ("anthropic", "dispatcher", "control"))
        assert "prepared statement" not in told
        assert "Traceback" not in told
    finally:
        bouncer.terminate()
        bouncer.wait(10)
