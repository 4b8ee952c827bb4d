"""Gathers the events that Flower shows for up to a second and sends them as one message, instead of one for each task.

Celery flushes its buffer of events at each turn of the hub, which is about once for each task's message: a publish costs 140 us,
an event in one only its JSON.
"""

from __future__ import annotations

from typing import Any, Final

from celery import bootsteps
from celery.worker.consumer.events import Events
from kombu import common

_ignore_errors: Any = common.ignore_errors  # kombu has no types
EVERY_S: Final = 1.0
MOST: Final = 500
"""Events in one message, about 200 kB."""


class EventFeed(bootsteps.StartStopStep):  # type: ignore[misc]  # celery has no types
    """A step of Celery's consumer, after the one that makes its event dispatcher."""

    requires = (Events,)

    def __init__(self, consumer: Any, **options: Any) -> None:
        super().__init__(consumer, **options)
        self._pending: Any = None

    def start(self, consumer: Any) -> None:
        """Called at each connection to the broker."""
        self._pending = None
        if consumer.event_dispatcher is None:
            return

        def flush() -> None:
            self._pending = None
            _ignore_errors(consumer, consumer.event_dispatcher.flush)

        def buffered() -> None:
            if self._pending is None:
                self._pending = consumer.timer.call_after(EVERY_S, flush)

        consumer.event_dispatcher.buffer_limit = MOST
        consumer.event_dispatcher.on_send_buffered = buffered

    def stop(self, consumer: Any) -> None:
        """Send what is left; where the broker is away it is lost, as events are."""
        if self._pending is not None:
            self._pending.cancel()
            self._pending = None
        if consumer.event_dispatcher is not None:
            _ignore_errors(consumer, consumer.event_dispatcher.flush)
