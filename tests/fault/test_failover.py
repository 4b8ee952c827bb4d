"""R8: the primary of the ledger dies and a standby takes over. Runs with WAYBILL_SLOW=1 only."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

from tests.fault.conftest import SEED
from tests.fault.harness import Scene, check, scene_set, until
from tests.fault.proxy import Proxy, before
from tests.fault.standby import Standby, standby_of
from waybill import embedded
from waybill.cli.db import run_upgrade
from waybill.errors import LedgerUnavailable

pytestmark = pytest.mark.skipif(
    os.environ.get("WAYBILL_SLOW") != "1", reason="a second Postgres and a fleet of its own; set WAYBILL_SLOW=1"
)


@dataclass
class Cluster:
    """A fleet on a primary that a standby follows. `door` is the ledger's address, `wire` is between the two servers."""

    scene: Scene
    standby: Standby
    door: Proxy
    wire: Proxy

    def fail_over(self) -> None:
        """The primary dies and does not come back; the standby takes its place at the address."""
        with self.scene.service_down("postgres", signal.SIGKILL):
            self.standby.promote()
            self.door.point_at("127.0.0.1", self.standby.port)
            self.door.cut()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """The whole thing, on servers of its own."""
    from contextlib import ExitStack

    with ExitStack() as stack:
        services = stack.enter_context(embedded.services(tmp_path / "primary"))
        url = str(services.database_url)
        run_upgrade(url)
        wire, url_for_standby = stack.enter_context(before(url))
        (tmp_path / "standby").mkdir(mode=0o700)
        standby = stack.enter_context(standby_of(tmp_path / "primary", url_for_standby, tmp_path / "standby"))
        door, url_for_fleet = stack.enter_context(before(url))
        (tmp_path / "logs").mkdir()
        scene = stack.enter_context(scene_set(services, url_for_fleet, tmp_path / "logs", seed=SEED))
        scene.begin()
        yield Cluster(scene, standby, door, wire)


def test_r08_a_failover_to_a_synchronous_standby_loses_nothing(cluster: Cluster) -> None:
    scene = cluster.scene
    with psycopg.connect(scene.database_url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute("alter system set synchronous_standby_names = '*'")
        connection.execute("select pg_reload_conf()")
    until(
        lambda: scene.rows("select sync_state from pg_stat_replication") == [{"sync_state": "sync"}],
        20,
        "the standby is synchronous",
    )
    scene.sandbox.latency("fixed:300ms")

    producer = threading.Thread(target=scene.submit, args=(60,), kwargs={"one_by_one": True})
    producer.start()
    until(lambda: len(scene.accepted) > 20, 30, "work is under way")
    cluster.fail_over()
    producer.join(60)
    scene.until_final(90)
    verdict = check(scene)

    verdict.assert_holds()
    assert verdict.states == {"succeeded": 60}


def test_r08_what_an_asynchronous_standby_had_not_received_is_told_and_not_hidden(cluster: Cluster) -> None:
    scene = cluster.scene
    scene.submit(10)
    scene.until_final()
    cluster.standby.until_it_has(scene.rows("select pg_current_wal_lsn()::text as lsn")[0]["lsn"])

    cluster.wire.silence()
    lost = scene.submit(5, intent="reasoning")
    cluster.fail_over()

    for job_id in lost:
        assert _told_about(scene, job_id) == f"no job {job_id} in this ledger"
    scene.submit(5)
    for job_id in lost:
        scene.accepted.remove(job_id)
    scene.until_final()
    verdict = check(scene)
    assert verdict.states == {"succeeded": 15}
    told = [problem for problem in verdict.problems if "was sent and is not in the ledger" not in problem]
    assert [problem for problem in told if "differs from the ledger" not in problem] == []


def _told_about(scene: Scene, job_id: str) -> str:
    """What the client says of a job; one clear error for each connection that went down with the primary is no answer."""
    for _ in range(50):
        try:
            return f"its result: {scene.client.result(job_id, timeout_s=10).text[:20]}"
        except LedgerUnavailable:
            continue
        except LookupError as exc:
            return str(exc.args[0])
    return "nothing: the ledger stays away"
