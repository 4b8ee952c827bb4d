"""A Celery pool that runs tasks as coroutines in one asyncio loop per process (`--pool workers.pool:AsyncPool`).

Celery has no such pool of its own; this one uses its official hook. Messages arrive on Celery's hub thread, coroutines run
in a loop thread, and results go back to the hub thread, because the broker connection that acknowledges belongs to it.
Only tasks made with `async_task` run here; anything else is refused.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Protocol

from billiard.einfo import ExceptionInfo
from celery.concurrency.base import BasePool
from kombu.serialization import loads, prepare_accept_content

log = logging.getLogger("waybill.pool")

_decode: Any = loads  # kombu has no types
_ACCEPT = prepare_accept_content(["json"])  # type: ignore[no-untyped-call]  # kombu has no types


class Lifespan(Protocol):
    """What lives in the loop as long as the pool does; found at `app.lifespan`."""

    async def open(self) -> None:
        """Called in the loop before the first task."""
        ...

    async def drain(self) -> None:
        """Called when the process is to stop: make the tasks that are under way end soon."""
        ...

    async def close(self) -> None:
        """Called in the loop after the last task."""
        ...


class AsyncPool(BasePool):  # type: ignore[misc]  # celery is untyped
    """`limit` messages at a time; that is also the prefetch, so a full pool takes no more from the broker."""

    signal_safe = False
    body_can_be_buffer = True
    task_join_will_block = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._loop = _new_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="asyncio-pool", daemon=True)
        self._tasks: set[asyncio.Task[None]] = set()
        self._finished: deque[tuple[Callable[[Any], None], Any]] = deque()
        self._hub: Any = None

    @property
    def num_processes(self) -> int:
        """Prefetch = this times the multiplier (1)."""
        return int(self.limit)

    @property
    def _lifespan(self) -> Lifespan:
        lifespan: Lifespan = self.app.lifespan
        return lifespan

    def on_start(self) -> None:
        """Start the loop; what the tasks need is opened before the first message is taken."""
        self._thread.start()
        self._in_loop(self._lifespan.open())

    def register_with_event_loop(self, hub: Any) -> None:
        """Remember the hub: results are handed back on its thread."""
        self._hub = hub

    def on_apply(
        self,
        target: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        callback: Callable[[Any], None] | None = None,
        accept_callback: Callable[[int, float], None] | None = None,
        **_: Any,
    ) -> None:
        """Start one message's coroutine. `target` (Celery's tracer) is not used: it can only run functions."""
        name, task_id, request, body, content_type, encoding = args
        if accept_callback is not None:
            accept_callback(os.getpid(), time.monotonic())
        self._loop.call_soon_threadsafe(self._begin, name, task_id, request, body, content_type, encoding, callback)

    def _begin(self, *message: Any) -> None:
        task = self._loop.create_task(self._run(*message))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(
        self,
        name: str,
        task_id: str,
        request: dict[str, Any],
        body: Any,
        content_type: str,
        encoding: str,
        callback: Callable[[Any], None] | None,
    ) -> None:
        started = time.monotonic()
        try:
            args, kwargs, _ = _decode(body, content_type, encoding, accept=_ACCEPT)
            run_async: Callable[..., Awaitable[Any]] = self.app.tasks[name].run_async
            value = await run_async(*args, **kwargs)
            outcome: tuple[int, Any, float] = (0, value, time.monotonic() - started)
        except asyncio.CancelledError:
            outcome = (0, "handed back", time.monotonic() - started)
        except Exception:  # a bug or a message of another shape: Celery logs it and acknowledges; the ledger goes on
            log.exception("task %s [%s] failed", name, task_id)
            outcome = (1, ExceptionInfo(), 0.0)
        if callback is not None:
            self._finished.append((callback, outcome))
            if self._hub is not None:
                self._hub.call_soon(self._hand_back)

    def _hand_back(self) -> None:
        """On the hub thread: tell Celery what has finished, which acknowledges the messages."""
        while self._finished:
            callback, outcome = self._finished.popleft()
            callback(outcome)

    def on_stop(self) -> None:
        """Warm shutdown: let the tasks end (the lifespan makes them), acknowledge what is done, close."""
        self._hub = None
        self._in_loop(self._lifespan.drain())
        while self._tasks:
            self._hand_back()
            time.sleep(0.02)
        self._hand_back()
        self._in_loop(self._lifespan.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=5)

    on_terminate = on_stop

    def _in_loop(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _get_info(self) -> dict[str, Any]:
        info: dict[str, Any] = super()._get_info()
        info["tasks"] = len(self._tasks)
        return info


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:  # not built for this platform
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


def async_task(app: Any, name: str, function: Callable[..., Awaitable[Any]]) -> None:
    """Register a coroutine function as a Celery task under a fixed name.

    On any other pool the task raises instead of reporting success for a coroutine that never ran.
    """

    def refuse(*_args: Any, **_kwargs: Any) -> None:
        raise RuntimeError(f"{name} runs only on workers.pool:AsyncPool; start workers with `waybill worker`")

    task = app.task(refuse, name=name, shared=False)
    # Celery evaluates tasks lazily; touch it so that the registry holds the real object.
    app.finalize()
    app.tasks[name].run_async = function
    del task
