"""What a worker process holds while it runs: connections, policy, prices, providers, leases. Opened in the pool's loop."""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import SecretStr

from policies.policyfile import Policy, parse
from policies.pricing import PriceBook
from waybill.broker import Broker, Doorbell
from waybill.errors import BrokerUnavailable, ConfigError, LedgerUnavailable
from waybill.ledger import queries
from waybill.ledger.engine import Ledger
from waybill.mail import Outbox
from waybill.names import CANCEL_CHANNEL
from waybill.redislink import connect_async
from waybill.settings import Settings
from workers.cascades import Cascades
from workers.gates import Gates
from workers.heads import Heads
from workers.health import Health
from workers.limiter import TIMEOUT_S, Limiter, account_name
from workers.policywatch import PolicyWatch
from workers.prefixes import Prefixes
from workers.providers.registry import available, make_provider, without_workers
from workers.sharing import Sharing
from workers.spansender import SpanSender
from workers.telemetry import counting, emit
from workers.till import Till
from workers.tracing import Tracing, is_wanted
from workers.writer import Writer

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from workers.providers.base import Provider

HEADROOM_OLD_S = 1.0
SHIPPED_POLICY = Path(__file__).parent.parent / "policies" / "default.toml"


def policy_path(settings: Settings) -> Path:
    """The policy file in force."""
    return settings.policy_file or SHIPPED_POLICY


def load_policy(settings: Settings) -> Policy:
    """The policy file that the settings name, checked.

    Raises:
        ConfigError: It cannot be read, or is wrong (file, line or key, and what to write instead).
    """
    path = policy_path(settings)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"policy file {path}: {exc.strerror if isinstance(exc, OSError) else exc}") from None
    return parse(text, path.name)


def _make_accounts(name: str, settings: Settings, policy: Policy) -> dict[str, Provider]:
    """An adapter for each of a provider's keys, by account name."""
    field_name = f"{name}_api_key"
    key: SecretStr | None = getattr(settings, field_name, None)
    if key is None:
        return {"": make_provider(name, settings, policy)}
    keys = [part.strip() for part in key.get_secret_value().split(",") if part.strip()]
    if not keys:
        raise ConfigError(f"{settings.variable(field_name)} holds no key; give one, or several with commas")
    return {
        account_name(part): make_provider(name, settings.model_copy(update={field_name: SecretStr(part)}), policy)
        for part in keys
    }


@dataclass(slots=True)
class Lease:
    """A job this process has claimed: its fencing token and the task that runs it.

    Kept alive from the claim on: a busy process may need seconds until an attempt is admitted.
    """

    token: int
    number: int
    task: asyncio.Task[object] | None = None
    """None until the attempt is admitted; then `lost` and `cancelled` are looked at when it starts."""
    cancelled: bool = False
    """Set before the task is cancelled: True = the submitter asked; False = the lease was lost or the process drains."""
    lost: bool = False

    def stop(self) -> None:
        """Break the attempt off, where it has begun."""
        if self.task is not None:
            self.task.cancel()


@dataclass(slots=True)
class Lane:
    """What this process knows about a lane: how many calls are under way and until when it is to be left alone."""

    slots: asyncio.Semaphore
    blocked_until: float = 0.0
    """`time.monotonic()`; set by a throttled answer."""


@dataclass(slots=True)
class Runtime:
    """A worker's world (`app.lifespan`). One per process; everything in it belongs to the pool's loop."""

    settings: Settings
    policy: Policy
    provider_names: tuple[str, ...] = ()
    """Providers whose queues this process serves; empty for the dispatcher."""
    owner: str = field(default_factory=lambda: f"{os.uname().nodename}-{os.getpid()}-{secrets.token_hex(4)}")
    """Random per process: a restarted pod must not look like the one whose jobs it left behind."""
    prices: PriceBook = field(init=False)
    ledger: Ledger = field(init=False)
    lifeline: Ledger = field(init=False)
    """A connection for the leases alone: renewing them must not stand behind a crowd that claims and settles."""
    writer: Writer = field(init=False)
    till: Till = field(init=False)
    sharing: Sharing = field(init=False)
    redis: Redis = field(init=False)
    outbox: Outbox = field(init=False)
    broker: Broker = field(init=False)
    limiter: Limiter = field(init=False)
    health: Health = field(init=False)
    on_policy: list[Callable[[Policy], None]] = field(default_factory=list)
    """Called when another policy is in force."""
    gates: Gates = field(init=False)
    heads: Heads = field(default_factory=Heads)
    cascades: Cascades = field(default_factory=Cascades)
    prefixes: Prefixes = field(init=False)
    background: list[Callable[[], Coroutine[Any, Any, None]]] = field(default_factory=list)
    """What runs beside the tasks, from `open` to `close`."""
    providers: dict[str, Provider] = field(default_factory=dict)
    """The first account of each provider served."""
    accounts: dict[str, dict[str, Provider]] = field(default_factory=dict)
    """All accounts, by provider and name (`admission.account_name`)."""
    tracing: Tracing | None = None
    """Where spans go; None = nowhere."""
    headroom: dict[str, tuple[float, float]] = field(default_factory=dict)
    """By limiter lane: share that was left, and when (`time.monotonic()`)."""
    off: Mapping[str, str] = field(default_factory=dict)
    leases: dict[str, Lease] = field(default_factory=dict)
    lanes: dict[str, Lane] = field(default_factory=dict)
    urgent: set[asyncio.Task[None]] = field(default_factory=set)
    """What runs because a quick bell rang."""
    draining: asyncio.Event = field(init=False)
    _spans: SpanSender | None = None
    _counting: AbstractAsyncContextManager[None] = field(default_factory=nullcontext)
    _heartbeat: asyncio.Task[None] | None = None
    _listening: asyncio.Task[None] | None = None
    _renew_now: asyncio.Event = field(default_factory=asyncio.Event)
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)

    async def open(self) -> None:
        """Connect and start the providers. Called in the loop before the first message."""
        self.prices = PriceBook(self.policy)
        self.gates = Gates(self.policy, self.heads)
        self.draining = asyncio.Event()
        self.ledger = Ledger(self.settings.require_database_url(), pool_size=4)
        self.lifeline = Ledger(self.settings.require_database_url(), pool_size=1, max_overflow=0)
        self.redis = connect_async(
            self.settings.require_redis_url(), socket_connect_timeout=5, socket_timeout=10, health_check_interval=10
        )
        self.outbox = Outbox(self.redis)
        self.outbox.start()
        self.broker = Broker(self.settings.require_broker_url())
        self.sharing = Sharing(self.ledger, self.redis, self.broker, self.owner)
        await self.ledger.open()
        self.writer = Writer(self.ledger, self.sharing.hand_on)
        self.writer.start()
        self.till = Till(self.ledger)
        self.off = {name: why for name, why in available(self.settings, self.policy).items() if why is not None}
        if not self.provider_names and self.settings.providers is not None:
            self.off = without_workers(self.settings.providers.split(","))
        for name in self.provider_names:
            if name in self.off:
                emit("provider.off", provider=name, reason=self.off[name])
            else:
                self.accounts[name] = await asyncio.to_thread(_make_accounts, name, self.settings, self.policy)
                self.providers[name] = next(iter(self.accounts[name].values()))
        if self.provider_names:
            self.limiter = Limiter(
                self.settings.require_redis_url(),
                self.policy.limits,
                scope=self.owner if self.settings.limiter_scope == "process" else "",
                timeout_s=min(TIMEOUT_S, self.settings.lease_s / 4),
                slot_lease_s=self.settings.lease_s,
            )
            self.limiter.start()
            self._heartbeat = asyncio.create_task(self._renew_leases(), name="heartbeat")
            self._listening = asyncio.create_task(self._hear_cancels(), name="cancels")
        self.health = Health(self.redis, self.ledger, {name: tuple(found) for name, found in self.accounts.items()})
        await self.health.start()
        self.prefixes = Prefixes(self.redis)
        self._tasks = [asyncio.create_task(work()) for work in self.background]
        watch = PolicyWatch(policy_path(self.settings), self.policy)
        self._tasks.append(asyncio.create_task(watch.keep_looking(self.take_policy)))
        if (
            "local" in self.providers or not self.provider_names
        ):  # the dispatcher sends no job to a head that may not answer
            self._tasks.append(asyncio.create_task(self.gates.keep_looking(self.ledger)))
        if is_wanted():
            self._spans = await asyncio.to_thread(SpanSender.to_collector, self.owner)
            self.tracing = Tracing(self._spans.post, with_text=self.settings.trace_text)
        self._counting = counting(self.redis)
        await self._counting.__aenter__()

    async def drain(self) -> None:
        """Let calls under way end within `drain_s`; hand the rest back without using up an attempt."""
        self.draining.set()
        end = time.monotonic() + self.settings.drain_s
        while self.leases and time.monotonic() < end:
            await asyncio.sleep(0.05)
        for lease in list(self.leases.values()):
            lease.stop()

    async def close(self) -> None:
        """Write what is left and disconnect."""
        if self._heartbeat is not None:
            self._heartbeat.cancel()
        if self._listening is not None:
            self._listening.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self.urgent, return_exceptions=True)
        await self.writer.close()
        await self.outbox.close()
        await self.health.close()
        if self._spans is not None:
            await asyncio.to_thread(self._spans.close)
        await self._counting.__aexit__(None, None, None)
        await self.prefixes.close()
        for accounts in self.accounts.values():
            for provider in accounts.values():
                await provider.close()
        if self.provider_names:
            await self.limiter.close()
        await self.redis.aclose()
        await self.lifeline.close()
        await self.ledger.close()
        await asyncio.to_thread(self.broker.close)

    def take_policy(self, policy: Policy) -> None:
        """Put a changed policy in force, between two steps of the loop. Calls under way end as they began."""
        self.policy, self.prices = policy, PriceBook(policy)
        self.gates.declare(policy)
        if self.provider_names:
            self.limiter.take_specs(policy.limits)
        for take in self.on_policy:
            take(policy)

    @property
    def keys(self) -> tuple[str, ...]:
        """The API keys, to be kept out of what is told."""
        given = (self.settings.anthropic_api_key, self.settings.openai_api_key)
        return tuple(part.strip() for key in given if key for part in key.get_secret_value().split(","))

    def lane(self, name: str) -> Lane:
        """This process's view of a lane."""
        if name not in self.lanes:
            self.lanes[name] = Lane(asyncio.Semaphore(self.settings.lane_concurrency))
        return self.lanes[name]

    def provider(self, name: str, account: str) -> Provider:
        """The adapter of an account; the first one where none is named."""
        return self.accounts[name].get(account) or self.providers[name]

    def by_headroom(self, provider: str, model: str) -> list[str]:
        """The provider's accounts, the one with most quota left first. What was seen long ago says nothing."""
        names = self.health.usable(provider, list(self.accounts[provider]))
        if len(names) == 1:
            return names
        now = time.monotonic()

        def left(account: str) -> float:
            share, seen = self.headroom.get(self.limiter.lane(provider, account, model).name, (1.0, now))
            return share if now - seen < HEADROOM_OLD_S else 1.0

        return sorted(names, key=left, reverse=True)

    async def ring(self, doorbells: Sequence[Doorbell]) -> None:
        """Publish; when the broker is away the reconciler will ring instead."""
        try:
            await asyncio.to_thread(self.broker.ring, doorbells)
        except BrokerUnavailable as exc:
            emit("service.away", service="broker", error=str(exc))

    async def _hear_cancels(self) -> None:
        """Renew at once when somebody says that one of our jobs is to be stopped: what to do, the ledger tells."""
        from redis.exceptions import RedisError

        while True:
            pubsub = self.redis.pubsub(ignore_subscribe_messages=True)
            try:
                await pubsub.subscribe(CANCEL_CHANNEL)
                while True:
                    message = await pubsub.get_message(timeout=5)
                    if message is not None and not self.leases.keys().isdisjoint(message["data"].decode().split()):
                        self._renew_now.set()
            except (RedisError, OSError) as exc:
                emit("service.away", service="redis", error=str(exc))
                await asyncio.sleep(1)
            finally:
                with suppress(RedisError, OSError):
                    await pubsub.aclose()  # type: ignore[no-untyped-call]  # redis-py has no type for it

    async def _renew_leases(self) -> None:
        """Every third of a lease: keep our jobs, learn which ones were taken from us and which are to be cancelled."""
        pause_s = self.settings.lease_s / 3
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._renew_now.wait()
            self._renew_now.clear()
            held = dict(self.leases)
            if not held:
                continue
            try:
                rows = await self.lifeline.fetch(
                    queries.RENEW,
                    {
                        "ids": list(held),
                        "tokens": [lease.token for lease in held.values()],
                        "lease_s": self.settings.lease_s,
                    },
                )
            except LedgerUnavailable as exc:
                emit("service.away", service="ledger", error=str(exc))
                pause_s = min(0.5, pause_s)  # two connections that fail one after the other must not cost the lease
                continue
            pause_s = self.settings.lease_s / 3
            kept = {row["id"]: row["cancel_requested"] for row in rows}
            for job_id, lease in held.items():
                if self.leases.get(job_id) is not lease:
                    continue  # settled meanwhile
                if job_id not in kept:
                    emit("lease.lost", job=job_id, attempt=lease.number)
                    lease.lost = True
                    lease.stop()
                elif kept[job_id] and not lease.cancelled:
                    lease.cancelled = True
                    lease.stop()
