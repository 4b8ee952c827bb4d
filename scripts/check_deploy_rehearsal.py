"""The fourth layer: an overlay played on this machine, each pod a process with its own command line, environment and probes.

The migration Job first, then one pod of every workload. Jobs are handed over through the library; the scalers' queries are
asked; every process of the fleet gets SIGTERM with calls under way, comes back, and everything must be there exactly
once; the broker is taken away, which must not make anybody look dead. The providers are the sandbox, whose bill is compared
with the ledger.
"""

from __future__ import annotations

import contextlib
import json
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
from check_deploy_objects import Rendered, is_ours
from check_deploy_stage import LocalPod, RehearsalFailed, Stage, container_port

from sandbox.testing import Running, spawned
from waybill import Client, Job, embedded
from waybill.names import BATCH_QUEUE, PROVIDERS

JOBS = 24
DRAINED_JOBS = 12
CALL = "fixed:50ms"
SLOW_CALL = "fixed:3s"
"""Longer than it takes to see that calls are under way and to send the signals, far shorter than the drain."""
RESULT_S = 90.0
Say = Callable[[str], None]


def rehearse(rendered: Rendered, folder: Path, say: Say) -> None:
    """Play an overlay.

    Args:
        rendered: The overlay.
        folder: Scratch space.
        say: Told of each step that went well, with its figures.

    Raises:
        RehearsalFailed: The first thing that went wrong.
    """
    with contextlib.ExitStack() as stack:
        services = stack.enter_context(embedded.services(folder / "services", redis=False))
        url = embedded.create_database(str(services.database_url), "rehearsal").replace("+psycopg", "", 1)
        own_sandbox = rendered.named("Deployment", "sandbox") is None
        provider = stack.enter_context(spawned("--latency", CALL)) if own_sandbox else None
        extra = {} if provider is None else {"ANTHROPIC_BASE_URL": provider.url, "OPENAI_BASE_URL": provider.openai_url}
        stage = Stage(rendered, folder, url, extra)
        pods = _pods(stage)
        for pod in pods.values():
            stack.callback(pod.kill)
        _Rehearsal(stage, pods, provider, say).play()


def _pods(stage: Stage) -> dict[str, LocalPod]:
    """One process for each workload; Postgres is the embedded one."""
    return {
        pod.name: LocalPod(stage, pod)
        for pod in stage.rendered.pods
        if pod.owner["kind"] != "StatefulSet" or "valkey" in pod.name
    }


class _Rehearsal:
    def __init__(self, stage: Stage, pods: dict[str, LocalPod], provider: Running | None, say: Say) -> None:
        self.stage = stage
        self.pods = pods
        self.say = say
        self.jobs = [pod for pod in pods.values() if pod.pod.owner["kind"] == "Job"]
        self.stores = [pod for pod in pods.values() if not is_ours(pod.container)]
        self.sandboxes = [pod for pod in pods.values() if pod.name == "sandbox"]
        behind = [*self.jobs, *self.stores, *self.sandboxes]
        self.fleet = [pod for pod in pods.values() if pod not in behind]
        self.carriers = [pod for pod in self.fleet if "WAYBILL_DATABASE_URL" in pod.env]
        """Those that hold or move jobs: all but Flower."""
        if provider is None:
            pod = self.sandboxes[0]
            provider = Running(stage.ports[pod.pod.label, container_port(pod.pod, "http")])
        self.provider = provider

    def play(self) -> None:
        self.start([*self.stores, *self.sandboxes])
        self.provider.latency(CALL)
        self.migrate()
        self.start(self.fleet)
        redis_url = next(pod.env["WAYBILL_REDIS_URL"] for pod in self.carriers)
        with Client(self.stage.database_url, redis_url) as client:
            self.carry(client)
            self.through_the_gateway()
            self.scale(client)
            self.drain(client)
            self.lose_broker(client)
        self.compare_books()
        self.stop()

    def start(self, pods: Sequence[LocalPod]) -> None:
        """Start them all at once, as a cluster does, and wait for startup and readiness."""
        began_s = time.monotonic()
        for pod in pods:
            pod.start()
        for pod in pods:
            pod.until("startupProbe", pod.startup_s())
        for pod in pods:
            pod.until("readinessProbe", 60.0)
        if said := [f"{pod.name}: {words}" for pod in pods if (words := pod.probe("livenessProbe")) is not None]:
            raise RehearsalFailed(f"ready, but not alive: {'; '.join(said)}")
        names = ", ".join(pod.name for pod in pods)
        self.say(f"{names}: ready {time.monotonic() - began_s:.1f} s after the start")

    def migrate(self) -> None:
        """Run each Job to its end."""
        for pod in self.jobs:
            pod.start()
            assert pod.process is not None
            code = pod.process.wait(timeout=float(pod.pod.owner["spec"].get("activeDeadlineSeconds", 600)))
            if code != 0:
                raise RehearsalFailed(f"{pod.pod.label}: ended with {code}: {pod.last_words()}")
            self.say(f"{pod.name}: {pod.last_words()}")

    def carry(self, client: Client) -> None:
        """Jobs for every provider that has workers."""
        jobs = [*_jobs(client, "first", JOBS), *self._local_jobs(client)]
        ids = client.submit_many(jobs)
        self._all_succeed(client, ids)
        used = self._rows("select provider, count(*) from attempts where state = 'succeeded' group by 1 order by 1")
        # A batch is for jobs with hours to spare; it is not waited for here.
        expected = {pod.name.removeprefix("worker-") for pod in self.fleet if pod.name.startswith("worker-")} - {
            BATCH_QUEUE
        }
        if missing := expected - {name for name, _ in used}:
            raise RehearsalFailed(f"no job came to {', '.join(sorted(missing))}")
        self.say(f"{len(ids)} jobs through the fleet: " + ", ".join(f"{name} {count}" for name, count in used))

    def through_the_gateway(self) -> None:
        """One question over HTTP, and the dashboard. Here it listens on loopback, so it asks for no key."""
        pod = self.pods.get("gateway")
        if pod is None:
            return
        port = self.stage.ports[pod.pod.label, container_port(pod.pod, "http")]
        asked = {
            "model": "waybill/extraction",
            "messages": [{"role": "user", "content": "rehearsal: what is the total?"}],
        }
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/v1/chat/completions",
            data=json.dumps(asked).encode(),
            headers={"content-type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=RESULT_S) as answer:  # noqa: S310
                served = json.load(answer)["model"]
            state = f"http://127.0.0.1:{port}/dashboard/state"
            with urllib.request.urlopen(state, timeout=30) as answer:
                lanes = len(json.load(answer)["lanes"])
        except (OSError, ValueError, KeyError) as exc:
            raise RehearsalFailed(f"{pod.pod.label}: does not serve: {exc}") from None
        self.say(f"one question through the gateway, answered by {served}; the dashboard shows {lanes} lanes")

    def _local_jobs(self, client: Client) -> Iterator[Job]:
        if any(pod.name == "worker-local" for pod in self.fleet):
            for number in range(3):
                yield client.make_job(
                    intent="classification",
                    prompt=f"Refund {number}, please!",
                    labels=("refund", "praise"),
                    local_only=True,
                )

    def scale(self, client: Client) -> None:
        """Ask each scaler's query while jobs wait: it must count them."""
        scalers = self.stage.rendered.of("ScaledObject")
        if not scalers:
            return
        self.provider.latency(SLOW_CALL)
        ids = client.submit_many(_jobs(client, "scaled", 8))
        self._until_running(4)
        seen = {}
        for scaler in scalers:
            for trigger in scaler["spec"]["triggers"]:
                seen[scaler["metadata"]["name"]] = self._rows(trigger["metadata"]["query"])[0][0]
        self.provider.latency(CALL)
        if not all(isinstance(count, int) for count in seen.values()):
            raise RehearsalFailed(f"a scaler's query gives no whole number: {seen}")
        if not any(count > 0 for count in seen.values()):
            raise RehearsalFailed(f"jobs are waiting, and the scalers count none: {seen}")
        self._all_succeed(client, ids)
        self.say("scalers count, with 8 jobs under way: " + ", ".join(f"{name} {n}" for name, n in seen.items()))

    def drain(self, client: Client) -> None:
        """SIGTERM to everything that carries jobs, with calls under way; then all come back."""
        self.provider.latency(SLOW_CALL)
        calls_before = len(self.provider.log())
        ids = client.submit_many(_jobs(client, "drained", DRAINED_JOBS))
        self._until_running(DRAINED_JOBS // 2)
        began_s = time.monotonic()
        for pod in self.carriers:
            pod.terminate()
        took = {pod.name: pod.ended(began_s) for pod in self.carriers}
        self.provider.latency(CALL)
        slowest = max(took, key=lambda name: took[name])
        self.say(f"SIGTERM with calls under way: all ended, {slowest} last after {took[slowest]:.1f} s")
        self.start(self.carriers)
        self._all_succeed(client, ids)
        calls = len(self.provider.log()) - calls_before
        # A drain lets calls end. A call that was made twice was paid for twice.
        if calls != DRAINED_JOBS:
            raise RehearsalFailed(f"{DRAINED_JOBS} jobs over a restart took {calls} calls")
        self.say(f"{DRAINED_JOBS} jobs over the restart: nothing lost, {calls} calls")

    def lose_broker(self, client: Client) -> None:
        """Without the broker nobody is restarted, workers are out of service, and a job that is submitted now is kept."""
        for store in self.stores:
            began_s = time.monotonic()
            store.terminate()
            store.ended(began_s)
        ids = client.submit_many(_jobs(client, "unheard", 4))
        waiting = [pod for pod in self.carriers if pod.name.startswith("worker-")]
        deadline_s = time.monotonic() + 60.0
        while any(pod.probe("readinessProbe") is None for pod in waiting):
            if time.monotonic() > deadline_s:
                raise RehearsalFailed("the broker has been away for 60 s, and workers call themselves ready")
            time.sleep(0.5)
        if dead := [f"{pod.name}: {said}" for pod in self.carriers if (said := pod.probe("livenessProbe")) is not None]:
            raise RehearsalFailed(f"the broker is away, and Kubernetes would restart {'; '.join(dead)}")
        for store in self.stores:
            store.start()
        began_s = time.monotonic()
        for pod in self.carriers:
            pod.until("readinessProbe", 90.0)
        self.say(
            f"broker away: all alive, workers not ready; ready again {time.monotonic() - began_s:.1f} s after its return"
        )
        self._all_succeed(client, ids)

    def compare_books(self) -> None:
        """The ledger's costs are the provider's bill."""
        ours = Decimal(self._rows("select coalesce(sum(cost_usd), 0) from attempts")[0][0])
        theirs = Decimal(str(self.provider.bill()["total_usd"]))
        if ours != theirs:
            raise RehearsalFailed(f"the ledger says {ours} USD, the provider's bill {theirs} USD")
        self.say(f"books agree: {ours.normalize():f} USD")

    def stop(self) -> None:
        """Everything ends by itself; what it used and wrote is looked at."""
        began_s = time.monotonic()
        for pod in self.pods.values():
            if pod not in self.jobs:
                pod.terminate()
        for pod in self.pods.values():
            if pod not in self.jobs:
                pod.ended(began_s)
        memory = []
        for pod in self.fleet:
            limit_mib = _mib(pod.container["resources"]["limits"]["memory"])
            if pod.peak_mib > 0.8 * limit_mib:
                raise RehearsalFailed(f"{pod.pod.label}: used {pod.peak_mib:.0f} MiB, its limit is {limit_mib:.0f}")
            memory.append(f"{pod.name} {pod.peak_mib:.0f}/{limit_mib:.0f}")
        self.say("memory at most, MiB of limit: " + ", ".join(memory))
        if strays := {pod.name: pod.strays() for pod in self.pods.values() if pod.strays()}:
            raise RehearsalFailed(f"written outside the mounted folders, which a read-only root refuses: {strays}")

    def _all_succeed(self, client: Client, ids: Sequence[str]) -> None:
        bad = [
            f"{outcome.job_id}: {outcome.state.value}"
            for outcome in client.results(ids, timeout_s=RESULT_S)
            if outcome.state.value != "succeeded"
        ]
        if bad:
            raise RehearsalFailed(f"{len(bad)} of {len(ids)} jobs did not succeed: {bad[0]}")

    def _until_running(self, count: int) -> None:
        deadline_s = time.monotonic() + 30.0
        while self._rows("select count(*) from jobs where state = 'running'")[0][0] < count:
            if time.monotonic() > deadline_s:
                raise RehearsalFailed(f"fewer than {count} calls are under way after 30 s")
            time.sleep(0.05)

    def _rows(self, statement: str) -> list[Any]:
        with psycopg.connect(self.stage.database_url, autocommit=True) as connection:
            return connection.execute(statement.encode()).fetchall()


def _jobs(client: Client, name: str, count: int) -> list[Job]:
    """Jobs for the two remote providers in turn."""
    models = {"anthropic": "claude-haiku-5-5", "openai": "gpt-6-luna"}
    turn = [models[provider] for provider in PROVIDERS if provider in models]
    return [
        client.make_job(intent="summarization", prompt=f"{name} {number}: a few words.", model=turn[number % len(turn)])
        for number in range(count)
    ]


def _mib(quantity: str) -> float:
    from check_deploy_pods import amount

    size = amount(quantity)
    return float(size or 0) / 1024**2
