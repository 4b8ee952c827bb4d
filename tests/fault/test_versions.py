"""R27: two versions of the code side by side, as during every rolling deploy. Runs with WAYBILL_SLOW=1 only.

The version before is the commit before the one that last changed the ledger's tables, taken from this repository's history
(`WAYBILL_VERSION_BEFORE=COMMIT` names another): its programs run as they were, on the ledger as it is now.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path

import pytest

from tests.fault.harness import ROOT, Scene, check, until
from waybill.names import QUARANTINE_KEY, provider_queue

pytestmark = [
    pytest.mark.skipif(os.environ.get("WAYBILL_SLOW") != "1", reason="starts a dozen interpreters; set WAYBILL_SLOW=1"),
    pytest.mark.timeout(600),
]
ROLLED = ("anthropic-1", "dispatcher", "control", "openai", "anthropic-2")
"""In this order, one at a time, with work under way."""
LEASE = {"WAYBILL_LEASE_S": "12"}
"""The default: what is played here is no worker's death, and a machine that starts interpreters is slow."""
SUBMIT = """
import json, sys
from waybill import Client, Job
with Client(sys.argv[1], sys.argv[2]) as client:
    jobs = [Job(intent="summarization", prompt=f"Old note {n}.", tenant=sys.argv[3]) for n in range(10)]
    print(json.dumps(client.submit_many(jobs)))
"""


def git(*arguments: str) -> bytes:
    """What git says about this repository; skips where it is none, or not a whole one."""
    try:
        return subprocess.run(["git", "-C", str(ROOT), *arguments], check=True, capture_output=True).stdout
    except (OSError, subprocess.CalledProcessError) as exc:
        pytest.skip(f"no version before this one at hand: git {arguments[0]}: {exc}")


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The version before, unpacked."""
    commit = os.environ.get("WAYBILL_VERSION_BEFORE")
    if not commit:
        commit = git("log", "-1", "--format=%H", "--", "migrations/versions").decode().strip() + "^"
    folder = tmp_path_factory.mktemp("before")
    with tarfile.open(fileobj=BytesIO(git("archive", commit))) as packed:
        packed.extractall(folder, filter="data")
    return folder


class Versions:
    """Which version each program of a scene runs."""

    def __init__(self, scene: Scene, before: Path) -> None:
        self._scene, self._before = scene, before
        # pids: of the workers of either version.
        self.pids: dict[str, set[int]] = {"before": set(), "now": set()}

    def run(self, version: str, *names: str) -> None:
        """Replace programs as a deploy does: told to stop, then started in that version."""
        fleet = self._scene.fleet
        fleet.stop(*names)
        if version == "before":
            env = {"PYTHONPATH": str(self._before), **LEASE}
            fleet.start(*names, fresh=True, before=("env", "-C", str(self._before)), extra_env=env)
        else:
            fleet.start(*names, extra_env=LEASE)
        self.pids[version] |= {fleet.pid(name) for name in names}


@pytest.fixture
def versions(scene: Scene, before: Path) -> Iterator[Versions]:
    """The scene with the version before in all its programs; afterwards everything is as it was."""
    playing = Versions(scene, before)
    playing.run("before", *ROLLED)
    yield playing
    for name in ROLLED:
        scene.fleet.kill(name)  # the next act starts them again, as they are now
    scene.fleet.revive()


class Producer(threading.Thread):
    """Hands over work of all kinds until told to stop."""

    def __init__(self, scene: Scene) -> None:
        super().__init__(name="producer")
        self._scene = scene
        self.enough = threading.Event()
        self.failure: Exception | None = None

    def run(self) -> None:
        """Kinds in turn, about twenty jobs a second."""
        kinds = (
            {"intent": "summarization"},
            {"intent": "summarization", "stream": True},
            {"intent": "extraction", "priority": "lo"},
            {"intent": "reasoning"},
        )
        try:
            while not self.enough.is_set():
                for kind in kinds:
                    self._scene.submit(2, **kind)
                time.sleep(0.4)
        except Exception as exc:  # noqa: BLE001  (raised by the test)
            self.failure = exc

    def stop(self) -> None:
        """Wait for its end; what went wrong is raised here."""
        self.enough.set()
        self.join()
        if self.failure is not None:
            raise self.failure


def served_by(scene: Scene, pids: Sequence[int] | set[int]) -> int:
    """Answers of workers with these pids."""
    rows = [row for row in scene.attempts() if row["state"] == "succeeded"]
    return sum(int(row["worker"].split("-")[-2]) in pids for row in rows)


def test_r27_a_deploy_and_its_undoing_with_work_under_way_lose_nothing(scene: Scene, versions: Versions) -> None:
    scene.sandbox.latency("fixed:300ms")
    producer = Producer(scene)
    producer.start()
    try:
        for name in ROLLED:
            versions.run("now", name)
        for name in reversed(ROLLED):
            versions.run("before", name)
    finally:
        producer.stop()
    scene.until_final(120)
    verdict = check(scene)

    verdict.assert_holds()
    assert verdict.states == {"succeeded": len(scene.accepted)}
    assert served_by(scene, versions.pids["before"]) > 0
    assert served_by(scene, versions.pids["now"]) > 0


@pytest.mark.parametrize("newer", [("dispatcher",), ("anthropic-1", "anthropic-2", "openai"), ("control",)])
def test_r27_either_version_takes_what_the_other_one_left_for_it(
    scene: Scene, versions: Versions, newer: tuple[str, ...]
) -> None:
    versions.run("now", *newer)

    scene.submit(20, one_by_one=True)
    scene.submit(6, intent="extraction", priority="lo")
    scene.fleet.kill("anthropic-2")  # what it was doing is found and taken over by the others
    scene.until_final()
    verdict = check(scene)

    verdict.assert_holds()
    assert verdict.states == {"succeeded": 26}


def test_r27_a_producer_that_was_not_replaced_is_served(scene: Scene, versions: Versions, before: Path) -> None:
    versions.run("now", *ROLLED)

    made = subprocess.run(
        [sys.executable, "-c", SUBMIT, scene.database_url, scene.redis_url, scene.act],
        cwd=before,
        env={**os.environ, "PYTHONPATH": str(before)},
        check=True,
        capture_output=True,
        text=True,
    )
    scene.accepted += json.loads(made.stdout)
    scene.until_final()
    verdict = check(scene)

    verdict.assert_holds()
    assert verdict.states == {"succeeded": 10}


def test_r27_a_task_of_a_version_to_come_is_put_aside_and_its_jobs_are_done(scene: Scene) -> None:
    """A newer dispatcher rings with a task that this worker has never heard of: nothing is dropped."""
    scene.fleet.kill("anthropic-1")
    scene.fleet.kill("anthropic-2")
    [job_id] = scene.submit()
    until(lambda: scene.states() == {"routed": 1}, 30, "the job is on its way", scene.told)
    queue = provider_queue("anthropic", "hi")
    tag = str(uuid.uuid4())
    with scene.redis() as connection:
        connection.flushall()  # of the right doorbell only the ledger knows now
        connection.lpush(
            queue,
            json.dumps(
                {
                    "body": json.dumps([[[job_id]], {}, {}]),
                    "content-encoding": "utf-8",
                    "content-type": "application/json",
                    "headers": {"task": "waybill.execute_from_2027", "id": tag},
                    "properties": {
                        "delivery_tag": tag,
                        "delivery_info": {"exchange": "waybill", "routing_key": queue},
                    },
                }
            ),
        )
        scene.fleet.start("anthropic-1", "anthropic-2")
        scene.until_final()
        quarantined = [entry.decode() for entry in connection.lrange(QUARANTINE_KEY, 0, -1)]
    verdict = check(scene)

    verdict.assert_holds()
    assert verdict.states == {"succeeded": 1}
    assert any("unknown task" in entry for entry in quarantined)
