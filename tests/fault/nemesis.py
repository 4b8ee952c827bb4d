"""A seeded opponent: does to a scene, again and again, what the recipes do one by one, and leaves it whole at the end."""

from __future__ import annotations

import contextlib
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable

import redis

from tests.fault.harness import Scene
from waybill.broker import Broker, dispatch_doorbells, execute_doorbells
from waybill.errors import BrokerUnavailable, LedgerUnavailable

WORKERS = ("anthropic-1", "anthropic-2", "openai")
CRASH_POINTS = (
    "before_claim",
    "after_claim",
    "before_call",
    "after_call",
    "before_commit",
    "after_commit",
)
# Each falls on a share of the requests, for as long as the nemesis is at work.
PROVIDER_FAULTS = (
    "rate_limit",
    "rate_limit_bare",
    "overloaded",
    "server_error",
    "reset",
    "hang",
    "html",
    "cut_json",
    "short_body",
    "cut_stream",
    "early_end",
    "hang_stream",
    "garbled_sse",
    "error_event",
    "usage_missing",
    "usage_negative",
    "usage_string",
    "empty",
    "refusal",
    "max_tokens",
    "spend_limit",
    "slow",
)


class Nemesis:
    """Its choices depend on the seed only; when they fall depends on the machine."""

    def __init__(self, scene: Scene, rng: random.Random) -> None:
        self._scene, self._rng = scene, rng
        self._broker = Broker(scene.redis_url)
        self.deeds: Counter[str] = Counter()
        # With a crash point that may not have been passed yet.
        self._armed: set[str] = set()
        self._choices: tuple[tuple[int, Callable[[], None]], ...] = (
            (4, self.kill_a_worker),
            (3, self.crash_a_worker),
            (3, self.freeze_a_worker),
            (3, self.stop_a_worker),
            (2, self.kill_the_dispatcher),
            (2, self.kill_control),
            (3, self.wipe_redis),
            (1, self.kill_redis),
            (2, self.freeze_redis),
            (2, self.kill_postgres),
            (3, self.drop_connections),
            (5, self.spoil_the_provider),
            (2, self.put_garbage_on_a_queue),
            (2, self.repeat_doorbells),
            (3, self.cancel_some),
        )

    def work(self, seconds: float, stop: threading.Event) -> None:
        """One deed after the other until the time is over; everything runs again then."""
        end = time.monotonic() + seconds
        weights = [weight for weight, _ in self._choices]
        while time.monotonic() < end and not stop.is_set():
            _, deed = self._rng.choices(self._choices, weights)[0]
            self.deeds[deed.__name__] += 1
            # What it hits may be away because of the deed before: then this one has no effect.
            with contextlib.suppress(redis.RedisError, OSError, LedgerUnavailable, BrokerUnavailable):
                deed()
            time.sleep(self._rng.uniform(0.1, 1.2))
            self._armed -= set(self._scene.fleet.revive())
        self._scene.sandbox.clear_faults()
        for name in self._armed:
            self._scene.fleet.kill(name)
        self._scene.fleet.revive()
        self._broker.close()

    def kill_a_worker(self) -> None:
        """kill -9."""
        self._scene.fleet.kill(self._rng.choice(WORKERS))

    def crash_a_worker(self) -> None:
        """Death at a commit or call boundary."""
        name, point = self._rng.choice(WORKERS), self._rng.choice(CRASH_POINTS)
        self._scene.fleet.kill(name)
        self._scene.fleet.start(name, extra_env={"WAYBILL_CRASH_AT": f"{point}:{self._rng.randint(1, 4)}"})
        self._armed.add(name)

    def freeze_a_worker(self) -> None:
        """SIGSTOP, often for longer than a lease."""
        name = self._rng.choice(WORKERS)
        self._scene.fleet.signal(name, signal.SIGSTOP)
        time.sleep(self._rng.uniform(0.5, 4.0))
        self._scene.fleet.signal(name, signal.SIGCONT)

    def stop_a_worker(self) -> None:
        """SIGTERM, as a rolling deploy does."""
        with contextlib.suppress(TimeoutError):  # its services are away; it was killed
            self._scene.fleet.stop(self._rng.choice(WORKERS), timeout_s=10)

    def kill_the_dispatcher(self) -> None:
        """kill -9 between routing and ringing, or anywhere."""
        self._scene.fleet.kill("dispatcher")

    def kill_control(self) -> None:
        """kill -9 of the housekeeping."""
        self._scene.fleet.kill("control")

    def wipe_redis(self) -> None:
        """FLUSHALL."""
        with self._scene.redis() as connection:
            connection.flushall()

    def kill_redis(self) -> None:
        """kill -9, back empty."""
        with self._scene.service_down("valkey"):
            self._scene.forget_redis_files()
            time.sleep(self._rng.uniform(0.0, 1.5))

    def freeze_redis(self) -> None:
        """SIGSTOP."""
        self._scene.kill_service("valkey", signal.SIGSTOP)
        time.sleep(self._rng.uniform(0.2, 2.5))
        self._scene.kill_service("valkey", signal.SIGCONT)

    def kill_postgres(self) -> None:
        """Fast stop, immediate stop or kill -9, away for a moment."""
        number = self._rng.choice([signal.SIGINT, signal.SIGQUIT, signal.SIGKILL])
        with self._scene.service_down("postgres", number):
            time.sleep(self._rng.uniform(0.0, 2.5))

    def drop_connections(self) -> None:
        """pg_terminate_backend on everybody."""
        with contextlib.suppress(Exception):  # whatever our own connection meets meanwhile
            self._scene.terminate_connections()

    def spoil_the_provider(self) -> None:
        """One more fault on a share of the calls, and another speed."""
        self._scene.sandbox.clear_faults()
        for fault in self._rng.sample(PROVIDER_FAULTS, 2):
            self._scene.sandbox.fault(fault, probability=self._rng.uniform(0.05, 0.4), retry_after_s=0.5, delay_s=1.0)
        self._scene.sandbox.latency(self._rng.choice(["fixed:20ms", "fixed:200ms", "fixed:800ms", "model:0.3"]))

    def put_garbage_on_a_queue(self) -> None:
        """What no producer of ours would send."""
        entries = [b"not json", b"{}", b"[]", b"\x80\x02.", b'{"body": 1, "properties": {}}']
        with self._scene.redis() as connection:
            connection.lpush(self._rng.choice(["dispatch", "anthropic.hi", "anthropic.lo", "openai.hi"]), *entries)

    def repeat_doorbells(self) -> None:
        """Old and new ids again, on the right queue and the wrong one."""
        known = list(self._scene.accepted)
        if not known:
            return
        ids = self._rng.sample(known, min(20, len(known)))
        provider = self._rng.choice(["anthropic", "openai"])
        self._broker.ring(dispatch_doorbells(ids))
        self._broker.ring(execute_doorbells((job, provider, "hi", "any", "any") for job in ids))

    def cancel_some(self) -> None:
        """A submitter changes its mind."""
        known = list(self._scene.accepted)
        if known:
            self._scene.client.cancel(*self._rng.sample(known, min(3, len(known))))
