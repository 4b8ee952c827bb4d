"""A fleet to be broken on purpose, and the books that say afterwards whether anything was lost.

Three records are kept apart and compared at the end of an *act* (one test's jobs): what the producer was told it had
accepted, what the ledger says, and what the sandbox, which knows nothing of ours, has answered and billed. `check` does
the comparison; its invariants are the promises of docs/promises.md.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import redis
from psycopg.rows import dict_row

from sandbox.testing import Running, spawned
from tests.fault.nursery import Nursery
from tests.fleet import clean_environment, forget_health
from waybill import Client, Job, embedded
from waybill.cli.up import plan_fleet
from waybill.embedded.folder import StateFolder
from waybill.errors import LedgerUnavailable
from waybill.ledger import budgets
from waybill.names import LIMIT_PREFIX
from waybill.settings import Settings
from workers.limiter import SLOT_LEASE_S

ROOMY = "*:rpm=1000000,itpm=1000000000,otpm=1000000000,tpm=1000000000"
LEASE_S = 2
QUICK = {
    "WAYBILL_LEASE_S": str(LEASE_S),
    "WAYBILL_DRAIN_S": "1",
    "WAYBILL_CALL_TIMEOUT_S": "6",
    "WAYBILL_IDLE_TIMEOUT_S": "3",
}
SPARE_CONTROL = "control-2"
ROOT = Path(__file__).parent.parent.parent
FINAL = ("succeeded", "failed", "cancelled", "dead")
# One micro-dollar: what the ledger's sums and the sandbox's bill may differ by at most.
CENT_OF_A_CENT = Decimal("0.000001")


class Fleet:
    """The processes of a fleet by name: started, killed, stopped, started again."""

    def __init__(self, nursery: Nursery, commands: Mapping[str, Sequence[str]], env: Mapping[str, str], logs: Path):
        self._nursery = nursery
        self._commands = dict(commands)
        self._env = dict(env)
        self._logs = logs
        self._pids: dict[str, int] = {}
        self._starts: dict[str, int] = {}
        self.restarts: Counter[str] = Counter()

    @property
    def names(self) -> tuple[str, ...]:
        """Every program that is to run all the time; the second control is a spare."""
        return tuple(name for name in self._commands if name != SPARE_CONTROL)

    def start(
        self,
        *names: str,
        extra_env: Mapping[str, str] | None = None,
        wait: bool = True,
        fresh: bool = False,
        before: Sequence[str] = (),
    ) -> None:
        """Start programs and wait until they serve.

        Args:
            names: All without names.
            extra_env: On top of the fleet's.
            wait: False returns at once.
            fresh: In a new interpreter, where the loader or the kernel must see it start.
            before: With `fresh`: a command that runs the interpreter, such as `unshare -T`.
        """
        for name in names or self.names:
            self._starts[name] = len(self.log(name))
            run_as = [*before, sys.executable, "-m", "waybill"] if fresh else []
            self._pids[name] = self._nursery.start(
                self._commands[name], {**self._env, **(extra_env or {})}, self._log_path(name), run_as
            )
        if wait:
            for name in names or self.names:
                self.until_ready(name)

    def until_ready(self, name: str, timeout_s: float = 120) -> None:
        """Wait until a program serves; its log is in the message if it does not."""
        end = time.monotonic() + timeout_s
        while "worker.ready" not in self.log(name)[self._starts[name] :]:
            said = self.log(name)[self._starts[name] :][-2000:]
            code = self._nursery.poll(self._pids[name])
            assert code is None, f"{name} ended at its start with {code}:\n{said}"
            assert time.monotonic() < end, f"{name} is not ready after {timeout_s} s:\n{said}"
            time.sleep(0.02)

    def signal(self, name: str, number: signal.Signals) -> None:
        """Send a signal to one program's process."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pids[name], number)

    def kill(self, name: str) -> None:
        """SIGKILL, and wait for the end."""
        self.signal(name, signal.SIGKILL)
        self.wait(name, 10)

    def stop(self, *names: str, timeout_s: float = 30) -> dict[str, int]:
        """SIGTERM, and wait for the end; exit codes."""
        names = names or tuple(self._pids)
        for name in names:
            self.signal(name, signal.SIGCONT)
            self.signal(name, signal.SIGTERM)
        codes = {}
        for name in names:
            try:
                codes[name] = self.wait(name, timeout_s)
            except TimeoutError:
                self.kill(name)
                raise
        return codes

    def wait(self, name: str, timeout_s: float) -> int:
        """Wait for a program to end; its exit code, negative for a signal."""
        end = time.monotonic() + timeout_s
        while (code := self._nursery.poll(self._pids[name])) is None:
            if time.monotonic() > end:
                raise TimeoutError(f"{name} still runs after {timeout_s:g} s:\n{self.log(name)[-2000:]}")
            time.sleep(0.01)
        return code

    def alive(self, name: str) -> bool:
        """Whether it runs (a stopped process runs)."""
        return name in self._pids and self._nursery.poll(self._pids[name]) is None

    def pid(self, name: str) -> int:
        """Its process."""
        return self._pids[name]

    def revive(self) -> list[str]:
        """Start again what has ended, as a supervisor would; which."""
        fallen = [name for name in self.names if not self.alive(name)]
        for name in fallen:
            self.restarts[name] += 1
        if fallen:
            self.start(*fallen)
        return fallen

    def _log_path(self, name: str) -> Path:
        return self._logs / f"{name}.log"

    def log(self, name: str) -> str:
        """All it has written, over all its lives."""
        with contextlib.suppress(FileNotFoundError):
            return self._log_path(name).read_text(errors="replace")
        return ""


@dataclass
class Scene:
    """The fleet, its services and the records of the act that is going on."""

    services: embedded.Services
    database_url: str
    redis_url: str
    sandbox: Running
    fleet: Fleet
    client: Client
    rng: random.Random
    folder: Path
    act: str = "act0"
    # accepted: what `submit` returned, in order; the producer's own log.
    accepted: list[str] = field(default_factory=list)
    # refusals: errors that the producer met before its jobs were accepted.
    refusals: list[Exception] = field(default_factory=list)
    _acts: int = 0
    _submitted: int = 0

    def begin(self, *, latency: str = "fixed:30ms") -> None:
        """A new act: everything runs, no fault is in force, bill and logs are empty."""
        self._acts += 1
        self.act = f"act{self._acts}"
        self.accepted.clear()
        self.refusals.clear()
        until(self.services_answer, 30, "Postgres and Valkey answer")
        self.sandbox.clear_faults()
        self.fleet.revive()
        if left := self._unfinished():  # the act before failed
            self.client.cancel(*left)
            until(lambda: not self._unfinished(), 60, "the jobs of the act before are cancelled", self.told)
        until(lambda: self.sandbox.state()["in_flight"] == 0, 30, "the calls of the act before have ended")
        self._forget_quota()
        forget_health(self.redis_url)
        # After one answer the limiter knows the (wide) limits; before it lets only a few calls through.
        self.submit()
        self.until_final()
        self.sandbox.reset()
        self.sandbox.latency(latency)
        self._acts += 1
        self.act = f"act{self._acts}"
        self.accepted.clear()

    def _unfinished(self) -> list[str]:
        return [str(row["id"]) for row in self.rows("select id from jobs where finished_at is null")]

    def _forget_quota(self) -> None:
        """What the limiter has learned from the faults of another act is none of this one's business."""
        with self.redis() as connection:
            for key in connection.scan_iter(f"{LIMIT_PREFIX}*"):
                connection.delete(key)

    # --- the producer -------------------------------------------------------------------------------------------------

    def submit(self, count: int = 1, *, one_by_one: bool = False, **fields: Any) -> list[str]:
        """Hand over jobs until they are accepted, as a careful producer does: idempotency key, try again on refusal."""
        jobs = []
        for _ in range(count):
            self._submitted += 1
            words = {"intent": "summarization", "prompt": f"Sum up note {self._submitted} of {self.act}.", **fields}
            key = f"{self.act}-{self._submitted}"
            jobs.append(Job(tenant=self.act, idempotency_key=key, **words))
        ids: list[str] = []
        for part in [[job] for job in jobs] if one_by_one else [jobs]:
            ids += self._hand_over(part)
        return ids

    def _hand_over(self, jobs: Sequence[Job]) -> list[str]:
        end = time.monotonic() + 90
        while True:
            try:
                ids = self.client.submit_many(jobs)
                break
            except LedgerUnavailable as exc:
                self.refusals.append(exc)
            assert time.monotonic() < end, f"the ledger stays away: {self.refusals[-1]}"
            time.sleep(0.1)
        self.accepted += ids
        with (self.folder / "accepted.log").open("a") as out:
            out.writelines(f"{self.act} {job_id}\n" for job_id in ids)
        return ids

    @property
    def capped_key(self) -> str:
        """The key of this act's jobs that a budget is to stop; `submit(key_id=...)`."""
        return f"{self.act}-capped"

    def set_budget(self, scope: str, subject: str, cap_usd: str, at_cap: str = "stop") -> None:
        """Give this act's tenant or key a budget."""
        plain = self.database_url.replace("+psycopg", "")
        with psycopg.connect(plain, autocommit=True) as connection:
            connection.execute(
                budgets.SET,
                {
                    "scope": scope,
                    "subject": subject,
                    "period": "total",
                    "cap_usd": Decimal(cap_usd),
                    "at_cap": at_cap,
                    "alert_shares": [50, 80, 100],
                },
            )

    # --- looking ------------------------------------------------------------------------------------------------------

    def rows(self, sql: str, *params: Any) -> list[dict[str, Any]]:
        """Ask the ledger on a connection of our own."""
        plain = self.database_url.replace("+psycopg", "")
        with psycopg.connect(plain, autocommit=True, row_factory=dict_row, connect_timeout=5) as connection:
            return connection.execute(sql, params or None).fetchall()

    def jobs(self) -> dict[str, dict[str, Any]]:
        """Every job of this act that the ledger has, by id."""
        return {str(row["id"]): row for row in self.rows("select * from jobs where tenant = %s", self.act)}

    def attempts(self, job_id: str | None = None) -> list[dict[str, Any]]:
        """The attempts of this act, or of one job, in order."""
        found = self.rows(
            "select a.* from attempts a join jobs j on j.id = a.job_id where j.tenant = %s order by a.job_id, a.number",
            self.act,
        )
        return [row for row in found if job_id is None or str(row["job_id"]) == job_id]

    def states(self) -> Counter[str]:
        """How many jobs of the act are in which state."""
        return Counter(row["state"] for row in self.jobs().values())

    def calls(self, **wanted: Any) -> list[dict[str, Any]]:
        """Lines of the sandbox's log of this act with these values."""
        return [line for line in self.sandbox.log() if all(line.get(key) == value for key, value in wanted.items())]

    def redis(self) -> redis.Redis:
        """A connection of our own to Valkey."""
        return redis.Redis.from_url(self.redis_url, socket_timeout=5)

    def services_answer(self) -> bool:
        """Whether both servers take a question."""
        with contextlib.suppress(psycopg.Error, redis.RedisError, OSError):
            self.rows("select 1 as one")
            with self.redis() as connection:
                return bool(connection.ping())
        return False

    def until_calls(self, count: int = 1, timeout_s: float = 30) -> None:
        """Wait until that many calls are under way at the sandbox."""
        until(lambda: self.sandbox.state()["in_flight"] >= count, timeout_s, f"{count} calls under way", self.told)

    def until_final(self, timeout_s: float = 100) -> None:
        """Wait until every accepted job has ended; a Postgres that is away is waited for."""

        def ended() -> bool:
            try:
                rows = self.rows(
                    "select count(*) as n from jobs where id = any(%s::uuid[]) and finished_at is not null",
                    self.accepted,
                )
            except psycopg.OperationalError:
                return False
            return bool(rows[0]["n"] == len(self.accepted))

        until(ended, timeout_s, "every accepted job is final", self.told)

    def told(self) -> str:
        """What is known when something did not happen: states, and the end of every log."""
        lines = []
        with contextlib.suppress(psycopg.Error):
            lines.append(f"states: {dict(self.states())}")
            open_jobs = [row for row in self.jobs().values() if row["finished_at"] is None][:5]
            lines += [
                f"  {row['id']} {row['state']} on {row['provider']}.{row['priority']}, attempt {row['attempt']},"
                f" losses {row['losses']}, published {row['published_at']}, lease {row['lease_until']}"
                for row in open_jobs
            ]
        for name in self.fleet.names:
            alive = "runs" if self.fleet.alive(name) else "has ended"
            lines.append(f"--- {name} ({alive})\n{self.fleet.log(name)[-1500:]}")
        return "\n".join(lines)

    # --- breaking -----------------------------------------------------------------------------------------------------

    def kill_service(self, name: str, number: signal.Signals = signal.SIGKILL) -> None:
        """Signal `postgres` or `valkey`; the keeper starts a server that ended again on the same port."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.services.pids()[name], number)

    @contextlib.contextmanager
    def service_down(self, name: str, number: signal.Signals = signal.SIGKILL) -> Iterator[None]:
        """End a server for the length of the block, then let it come back."""
        record = StateFolder(self.services.state_dir).record()
        assert record is not None
        keeper = int(record["keeper"]["pid"])
        os.kill(keeper, signal.SIGSTOP)
        try:
            self.kill_service(name, number)
            yield
        finally:
            os.kill(keeper, signal.SIGCONT)
            until(self.services_answer, 60, f"{name} is back")

    def forget_redis_files(self) -> None:
        """So that a killed Valkey comes back empty, as one without persistence does."""
        for path in (self.services.state_dir / "valkey" / "appendonlydir").glob("*"):
            path.unlink(missing_ok=True)

    def terminate_connections(self) -> int:
        """Drop every connection to the ledger but our own; how many."""
        return len(
            self.rows(
                "select pg_terminate_backend(pid) from pg_stat_activity"
                " where datname = current_database() and pid <> pg_backend_pid()"
            )
        )


def until(happened: Callable[[], bool], timeout_s: float, what: str, explain: Callable[[], str] | None = None) -> float:
    """Wait for something with a deadline; the seconds it took.

    Raises:
        AssertionError: It did not happen.
    """
    began = time.monotonic()
    while not happened():
        if time.monotonic() - began > timeout_s:
            raise AssertionError(f"after {timeout_s:g} s still not: {what}\n{explain() if explain else ''}")
        time.sleep(0.02)
    return time.monotonic() - began


# --- the checker ------------------------------------------------------------------------------------------------------


@dataclass
class Verdict:
    """What the three records say together. `problems` is empty when every invariant holds."""

    jobs: int = 0
    states: Counter[str] = field(default_factory=Counter)
    lost: int = 0
    duplicated: int = 0
    billed_usd: Decimal = Decimal(0)
    ledger_usd: Decimal = Decimal(0)
    # unbilled_usd: billed by the sandbox, without an attempt that carries it.
    unbilled_usd: Decimal = Decimal(0)
    # unknown: billed calls whose attempt carries an estimate, one line each.
    unknown: list[str] = field(default_factory=list)
    unknown_usd: Decimal = Decimal(0)
    # over_usd: what budgets were passed by, all of it explained by calls that were under way at the cap.
    over_usd: Decimal = Decimal(0)
    problems: list[str] = field(default_factory=list)

    def assert_holds(self) -> None:
        """Fail with every problem."""
        assert not self.problems, "\n".join(self.problems[:20])


def check(scene: Scene, *, max_attempts: int = 5) -> Verdict:
    """Compare the producer's log, the ledger and the sandbox's bill once everything has ended."""
    until(lambda: scene.sandbox.state()["in_flight"] == 0, 30, "no call is under way any more")
    verdict = Verdict(jobs=len(scene.accepted))
    jobs, attempts = scene.jobs(), scene.attempts()
    _check_jobs(scene, verdict, jobs, max_attempts)
    _check_answers(scene, verdict, jobs, attempts)
    _check_money(scene, verdict, attempts)
    _check_budgets(scene, verdict)
    _check_leftovers(scene, verdict, attempts)
    return verdict


def _check_jobs(scene: Scene, verdict: Verdict, jobs: Mapping[str, Mapping[str, Any]], max_attempts: int) -> None:
    accepted = set(scene.accepted)
    verdict.states = Counter(row["state"] for row in jobs.values())
    for job_id in accepted - set(jobs):
        verdict.problems.append(f"job {job_id} was accepted and is not in the ledger")
    for job_id in set(jobs) - accepted:
        verdict.problems.append(f"job {job_id} is in the ledger and nobody was told that it was accepted")
    for job_id, row in jobs.items():
        if row["state"] not in FINAL or row["finished_at"] is None:
            verdict.lost += 1
            verdict.problems.append(f"job {job_id} is still {row['state']} at the end")
        if row["lease_token"] is not None or row["not_before"] is not None:
            verdict.problems.append(f"job {job_id} is {row['state']} and still holds a lease or a time to wait for")
        if row["used"] > max_attempts + row["losses"]:
            verdict.problems.append(f"job {job_id} used {row['used']} attempts, {row['losses']} of them by losses")
    verdict.lost += len(accepted - set(jobs))


def _check_answers(
    scene: Scene, verdict: Verdict, jobs: Mapping[str, Mapping[str, Any]], attempts: Sequence[Mapping[str, Any]]
) -> None:
    results = scene.rows(
        "select r.job_id, r.attempt from results r join jobs j on j.id = r.job_id where j.tenant = %s", scene.act
    )
    answered = {str(row["job_id"]): row["attempt"] for row in results}
    winners: dict[str, list[int]] = defaultdict(list)
    for row in attempts:
        if row["state"] == "succeeded":
            winners[str(row["job_id"])].append(row["number"])
        if row["state"] == "started":
            verdict.problems.append(f"attempt {row['number']} of job {row['job_id']} never ended")
    for job_id, row in jobs.items():
        expected = [answered[job_id]] if job_id in answered else []
        if (row["state"] == "succeeded") != (job_id in answered):
            verdict.problems.append(f"job {job_id} is {row['state']} with {len(expected)} results")
        if winners[job_id] != expected:
            verdict.duplicated += 1
            verdict.problems.append(
                f"job {job_id}: the result is of attempt {expected}, won by the attempts {winners[job_id]}"
            )


def _check_money(scene: Scene, verdict: Verdict, attempts: Sequence[Mapping[str, Any]]) -> None:
    by_call = {(str(row["job_id"]), row["number"]): row for row in attempts}
    log = scene.sandbox.log()
    calls: Counter[tuple[str, int]] = Counter()
    paid: dict[tuple[str, int], Decimal] = defaultdict(Decimal)
    for line in log:
        call = (line["job"], int(line["attempt"]))
        calls[call] += 1
        paid[call] += Decimal(line["usd"])
    for call, times in calls.items():
        if times > 1:
            verdict.problems.append(f"attempt {call[1]} of job {call[0]} was sent {times} times")
        if call not in by_call:
            verdict.unbilled_usd += paid[call]
            verdict.problems.append(f"attempt {call[1]} of job {call[0]} was sent and is not in the ledger")
    for call, row in by_call.items():
        billed, booked, source = paid[call], row["cost_usd"] or Decimal(0), row["cost_source"]
        verdict.ledger_usd += booked
        where = f"attempt {call[1]} of job {call[0]} ({row['state']}, {row['error_code']})"
        if source == "usage" and booked != billed:
            verdict.problems.append(f"{where}: the ledger says ${booked}, the sandbox billed ${billed}")
        elif source == "estimated":
            if billed > booked:
                verdict.problems.append(f"{where}: estimated at ${booked}, but ${billed} were billed")
            verdict.unknown_usd += billed
            verdict.unknown.append(f"{where}: estimated ${booked:f}, billed ${billed:f}")
        elif source in ("nothing", None) and billed:
            verdict.unbilled_usd += billed
            verdict.problems.append(f"{where}: booked as {source}, but ${billed} were billed")
        elif source == "unpriced":
            verdict.problems.append(f"{where}: has no price")
    verdict.billed_usd = Decimal(str(scene.sandbox.bill()["total_usd"]))
    usage = sum((row["cost_usd"] for row in attempts if row["cost_source"] == "usage"), Decimal(0))
    gap = verdict.billed_usd - usage - verdict.unknown_usd - verdict.unbilled_usd
    if abs(gap) > CENT_OF_A_CENT:
        verdict.problems.append(f"the bill of ${verdict.billed_usd} differs from the ledger by ${gap}")


def _check_budgets(scene: Scene, verdict: Verdict) -> None:
    """Each budget of the act holds what its calls cost, reserves nothing any more, and was passed by calls under way only.

    A call starts only when spent + reserved + its own amount are within the cap. So what is above the cap at the end is what
    those under way at the last start cost above what they had reserved.
    """

    def look() -> list[dict[str, Any]]:
        return scene.rows(
            "select b.id, b.scope, b.cap_usd, b.spent_usd, b.reserved_usd, (select count(*) from charges) as charges"
            " from budgets b where b.subject = any(%s)",
            [scene.act, scene.capped_key],
        )

    with contextlib.suppress(AssertionError):  # then what is wrong is said below
        until(lambda: all(row["reserved_usd"] == row["charges"] == 0 for row in look()), 10, "charges are added up")
    for budget in look():
        name = f"the budget of the {budget['scope']} (${budget['cap_usd'].normalize():f})"
        calls = scene.rows(
            "select started_at, ended_at, reserved_usd, coalesce(cost_usd, estimate_usd) as usd from attempts"
            " where %s = any(budgets)",
            budget["id"],
        )
        if budget["reserved_usd"]:
            verdict.problems.append(f"{name} still has ${budget['reserved_usd']} reserved when all have ended")
        if budget["spent_usd"] != (cost := sum((row["usd"] for row in calls), Decimal(0))):
            verdict.problems.append(f"{name} has ${budget['spent_usd']} spent, its calls cost ${cost}")
        over = budget["spent_usd"] - budget["cap_usd"]
        if over > 0:
            last = max(row["started_at"] for row in calls)
            under_way = [row["usd"] - row["reserved_usd"] for row in calls if row["ended_at"] >= last]
            verdict.over_usd += over
            if over > (allowed := sum((usd for usd in under_way if usd > 0), Decimal(0))):
                verdict.problems.append(f"{name} was passed by ${over}, of which calls under way explain ${allowed}")


def _check_leftovers(scene: Scene, verdict: Verdict, attempts: Sequence[Mapping[str, Any]]) -> None:
    """Calls in flight hold leased slots in Redis. Those of a lost worker run out; all others are given back."""

    def held() -> dict[str, float]:
        now_s = time.time()
        with scene.redis() as connection:
            slots = {
                slot.decode(): until_us / 1e6 - now_s
                for key in connection.scan_iter(f"{LIMIT_PREFIX}*:slots")
                for slot, until_us in connection.zrange(key, 0, -1, withscores=True)
            }
        return {slot: left_s for slot, left_s in slots.items() if left_s > 0}

    lost = {f"{row['job_id']}:{row['number']}" for row in attempts if row["state"] in ("unknown", "fenced")}
    end = time.monotonic() + 15
    while (slots := held()).keys() - lost and time.monotonic() < end:
        time.sleep(0.05)
    for slot, left_s in slots.items():
        if slot not in lost or left_s > SLOT_LEASE_S:
            verdict.problems.append(f"the slot of call {slot} is still held, for {left_s:.0f} s more")


# --- setting the scene ------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def scene_set(
    services: embedded.Services,
    database_url: str,
    folder: Path,
    *,
    seed: int,
    workers: Mapping[str, int] | None = None,
    env: Mapping[str, str] | None = None,
    database_proxy: str | None = None,
) -> Iterator[Scene]:
    """A fleet over a sandbox; ready when the block begins, ended with it.

    Args:
        services: A pair of servers that may be killed.
        database_url: A migrated ledger on it.
        folder: For logs.
        seed: Of everything random in the scene.
        workers: Processes per provider.
        env: Settings that differ from QUICK.
        database_proxy: What the fleet takes as the ledger's URL instead (a proxy before it).
    """
    redis_url = str(services.redis_url)
    with contextlib.ExitStack() as stack:
        sandbox = stack.enter_context(spawned("--latency", "fixed:30ms", "--limit", ROOMY, "--seed", str(seed)))
        settings = {
            **QUICK,
            "WAYBILL_DATABASE_URL": database_proxy or database_url,
            "WAYBILL_REDIS_URL": redis_url,
            "ANTHROPIC_API_KEY": "sandbox-key",
            "OPENAI_API_KEY": "sandbox-key",
            "ANTHROPIC_BASE_URL": sandbox.url,
            "OPENAI_BASE_URL": f"{sandbox.url}/v1",
            "WAYBILL_LOCAL_MODEL": str(folder / "no-model.gguf"),
            **(env or {}),
        }
        nursery = Nursery(clean_environment())
        stack.callback(nursery.close)
        fleet = Fleet(
            nursery, _commands(settings, workers or {"anthropic": 2}), {**clean_environment(), **settings}, folder
        )
        fleet.start()
        client = stack.enter_context(Client(database_url, redis_url))
        yield Scene(services, database_url, redis_url, sandbox, fleet, client, random.Random(seed), folder)


def _commands(settings: Mapping[str, str], workers: Mapping[str, int]) -> dict[str, Sequence[str]]:
    """What `waybill up` would run here, as arguments of the `waybill` command."""
    saved = dict(os.environ)
    os.environ.update(settings)  # plan_fleet reads what is off from the environment
    try:
        plan = plan_fleet(
            Settings.from_env(),
            settings["WAYBILL_DATABASE_URL"],
            settings["WAYBILL_REDIS_URL"],
            sandbox_args=None,
            flower=False,
            workers=workers,
        )
    finally:
        os.environ.clear()
        os.environ.update(saved)
    commands: dict[str, Sequence[str]] = {program.name: list(program.argv)[3:] for program in plan.programs}
    return commands | {SPARE_CONTROL: commands["control"]}
