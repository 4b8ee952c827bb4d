"""Starts real fleets for tests: the same programs as `waybill up`, each a process of its own, stopped at the end."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import redis

from policies.health import Breaker
from sandbox.testing import Running
from waybill import embedded
from waybill.cli.up import free_port, plan_fleet
from waybill.names import HEALTH_KEY
from waybill.settings import Settings
from waybill.supervisor import Program
from workers.runtime import SHIPPED_POLICY

ROOT = Path(__file__).parent.parent
DATA = ROOT.parent / "shared" / "data"


def clean_environment() -> dict[str, str]:
    """This process's environment without anything that configures Waybill or a provider."""
    ours = ("WAYBILL_", "ANTHROPIC_", "OPENAI_")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)}


REDIS_DATABASES = ("acceptance", "batchlane", "gateway", "learning", "verbs", "canary", "cascade", "heads")
"""Who has a Redis database of its own, from 15 downwards: fleets that live side by side in one session must not hear each
other's doorbells, nor may one be flushed under the other. The databases below are for single tests (`redis_url`)."""


def redis_database(services: embedded.Services, whose: str) -> str:
    """The URL of a fleet's own Redis database, empty."""
    url = f"{str(services.redis_url).rsplit('/', 1)[0]}/{15 - REDIS_DATABASES.index(whose)}"
    with redis.Redis.from_url(url) as connection:
        connection.flushdb()  # the limits and breakers of an earlier fleet are not this one's
    return url


def brisk_batches(provider: Running, folder: Path) -> dict[str, str]:
    """Settings under which rows wait for others and for the provider's batch as briefly as may be."""
    policy = folder / "policy.toml"
    policy.write_text(SHIPPED_POLICY.read_text() + "[batches]\nlinger_s = 0.2\npoll_s = 0.2\n")
    provider.batch_pace(turnaround_s=0.2)
    return {"WAYBILL_POLICY_FILE": str(policy)}


def forget_health(redis_url: str, timeout_s: float = 15) -> None:
    """Make a running fleet forget what an earlier test taught it about its lanes, and wait until every process has.

    Processes take over the shared breakers every half second; one that had news of its own may write them once more.
    """
    end = time.monotonic() + timeout_s
    with redis.Redis.from_url(redis_url) as connection:
        while _is_troubled(connection):
            assert time.monotonic() < end, f"the fleet still has breakers that are not closed after {timeout_s} s"
            connection.delete(HEALTH_KEY)
            time.sleep(0.6)


def _is_troubled(connection: redis.Redis) -> bool:
    breakers = [Breaker.from_json(text.decode()) for text in connection.hvals(HEALTH_KEY)]
    return any(breaker.state != "closed" or breaker.streak for breaker in breakers)


class RunningFleet:
    """Processes by name, with their logs, to be killed and started again."""

    gateway_url = ""

    def __init__(self, programs: Sequence[Program], env: Mapping[str, str], logs: Path) -> None:
        self.env = dict(env)
        self._programs = {program.name: program for program in programs}
        self._logs = logs
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, *names: str, extra_env: Mapping[str, str] | None = None) -> None:
        """Start programs by name; all of them without names."""
        for name in names or tuple(self._programs):
            program = self._programs[name]
            log = self.log_path(name).open("ab")
            self._running[name] = subprocess.Popen(
                list(program.argv),
                env={**clean_environment(), **self.env, **program.env, **(extra_env or {})},
                cwd=ROOT,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
            log.close()

    def kill(self, name: str, number: int = signal.SIGKILL) -> int:
        """Send a signal; for SIGKILL and SIGTERM wait for the end. Returns the pid."""
        process = self._running[name]
        process.send_signal(number)
        if number in (signal.SIGKILL, signal.SIGTERM):
            process.wait(timeout=60)
        return process.pid

    def pid(self, name: str) -> int:
        """The process of a program."""
        return self._running[name].pid

    def alive(self, name: str) -> bool:
        """Whether the process runs."""
        return self._running[name].poll() is None

    def wait(self, name: str, timeout_s: float = 60) -> int:
        """Wait for a process to end by itself; its exit code."""
        return self._running[name].wait(timeout=timeout_s)

    def log_path(self, name: str) -> Path:
        """Where a program's lines go."""
        return self._logs / f"{name}.log"

    def log(self, name: str) -> str:
        """All it has written."""
        return self.log_path(name).read_text(errors="replace")

    def until_ready(self, timeout_s: float = 150) -> None:
        """Wait until every worker consumes.

        Raises:
            AssertionError: One did not come up; with its log.
        """
        end = time.monotonic() + timeout_s
        for name, process in self._running.items():
            ready = "gateway.ready" if name == "gateway" else "worker.ready"
            while ready not in self.log(name):
                assert process.poll() is None, f"{name} ended at start:\n{self.log(name)}"
                assert time.monotonic() < end, f"{name} is not ready after {timeout_s} s:\n{self.log(name)}"
                time.sleep(0.05)

    def stop(self) -> dict[str, int]:
        """SIGTERM to all, SIGKILL after a minute; exit codes."""
        for process in self._running.values():
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        codes = {}
        for name, process in self._running.items():
            try:
                codes[name] = process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()
                codes[name] = process.wait()
        return codes


@contextmanager
def running_fleet(
    database_url: str,
    redis_url: str,
    sandbox_url: str,
    logs: Path,
    *,
    local: bool = False,
    gateway: bool = False,
    workers: Mapping[str, int] | None = None,
    env: Mapping[str, str] | None = None,
) -> Iterator[RunningFleet]:
    """A fleet whose providers are a sandbox; ready when the block begins.

    Args:
        database_url: A migrated ledger.
        redis_url: Its Redis.
        sandbox_url: A running sandbox.
        logs: Folder for the logs.
        local: Whether the local lane runs (where it is built).
        gateway: Whether the gateway runs; `fleet.gateway_url` is then its address.
        workers: Processes per provider.
        env: Further settings.
    """
    settings_env = {
        "WAYBILL_DATABASE_URL": database_url,
        "WAYBILL_REDIS_URL": redis_url,
        "ANTHROPIC_API_KEY": "sandbox-key",
        "OPENAI_API_KEY": "sandbox-key",
        "ANTHROPIC_BASE_URL": sandbox_url,
        "OPENAI_BASE_URL": f"{sandbox_url}/v1",
        "WAYBILL_GATEWAY_PORT": str(free_port()),
        **(env or {}),
    }
    if not local:
        settings_env["WAYBILL_LOCAL_MODEL"] = str(logs / "no-model.gguf")
    settings = Settings.from_env(settings_env)
    saved = {name: os.environ.get(name) for name in settings_env}
    os.environ.update(settings_env)  # plan_fleet reads what is off from the environment
    try:
        plan = plan_fleet(
            settings, database_url, redis_url, sandbox_args=None, flower=False, gateway=gateway, workers=workers
        )
    finally:
        for name, value in saved.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
    fleet = RunningFleet(plan.programs, {**settings_env, **plan.env}, logs)
    fleet.gateway_url = plan.gateway_url or ""
    fleet.start()
    try:
        fleet.until_ready()
        yield fleet
    finally:
        fleet.stop()
