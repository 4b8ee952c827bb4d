"""A changed policy file is taken over as a whole, and a wrong one never."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from policies.policyfile import parse
from producers.gateway.app import make_app
from producers.gateway.serve import make_gateway
from tests.see.conftest import Bench
from waybill.settings import Settings
from workers.policywatch import PolicyWatch
from workers.runtime import SHIPPED_POLICY
from workers.telemetry import take_counts


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "policy.toml"
    file.write_text(SHIPPED_POLICY.read_text())
    return file


def made(path: Path) -> PolicyWatch:
    return PolicyWatch(path, parse(path.read_text(), path.name))


def test_a_changed_file_is_in_force_after_the_next_look(path: Path) -> None:
    watch = made(path)
    assert not watch.look()

    path.write_text(path.read_text().replace("max_attempts = ", "max_attempts = 1"))
    assert watch.look()

    assert watch.policy.max_attempts >= 10


@pytest.mark.parametrize("text", ["", "version = ", 'version = "x"\nflagship = "no-such-model"\n'])
def test_a_wrong_file_is_refused_once_and_the_old_policy_stays(path: Path, text: str) -> None:
    watch = made(path)
    before = watch.policy
    take_counts()

    path.write_text(text)
    assert not watch.look()
    assert not watch.look()

    assert watch.policy is before
    assert watch.trouble
    assert take_counts() == {"config.refused": 1}


def test_a_file_that_is_gone_or_half_written_is_waited_for(path: Path) -> None:
    watch = made(path)
    whole = path.read_text()
    path.unlink()
    assert not watch.look()
    assert watch.trouble == "No such file or directory"

    path.write_text(whole[: len(whole) // 2])
    watch.look()
    path.write_text(whole.replace("max_attempts = ", "max_attempts = 1"))

    assert watch.look()
    assert watch.trouble is None


def test_a_running_gateway_takes_a_changed_file_over(path: Path, database_url: str, redis_url: str) -> None:
    watch = made(path)
    settings = Settings.from_env({"WAYBILL_DATABASE_URL": database_url, "WAYBILL_REDIS_URL": redis_url})
    gateway = make_gateway(settings, watch.policy, frozenset(), watch)
    with TestClient(make_app(gateway)) as http:

        def intents() -> set[str]:
            return {model["id"] for model in http.get("/v1/models").json()["data"]}

        assert "waybill/letters" not in intents()
        path.write_text(path.read_text().replace("[intents.extraction]", "[intents.letters]", 1))
        end = time.monotonic() + 60
        while "waybill/letters" not in intents():
            assert time.monotonic() < end, intents()
            time.sleep(0.1)

        assert "waybill/extraction" not in intents()
        assert gateway.clerk.policy is gateway.policy
        # The dashboard tells the version in force.
        path.write_text(path.read_text().replace('version = "', 'version = "changed ', 1))
        while not str(http.get("/dashboard/state").json()["policy"]).startswith("changed "):
            assert time.monotonic() < end + 60
            time.sleep(0.1)


async def test_each_settlement_tells_the_policy_that_decided(bench: Bench) -> None:
    await bench.settle(await bench.claimed())

    rows = await bench.ledger.fetch("select outcome, policy_version from decisions order by id")

    assert [(row["outcome"], row["policy_version"]) for row in rows] == [("route", "test"), ("accept", "v7")]
