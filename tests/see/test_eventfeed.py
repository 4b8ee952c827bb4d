"""Events for Flower leave a worker as one message a second, and the last ones before it stops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from workers.eventfeed import MOST, EventFeed


class Dispatcher:
    """What Celery's is for the feed: a buffer that tells when something came in, and a flush."""

    def __init__(self) -> None:
        self.buffer_limit = 24
        self.on_send_buffered: Callable[[], None] = lambda: None
        self.waiting = 0
        self.sent: list[int] = []
        self.is_away = False

    def send(self) -> None:
        self.waiting += 1
        self.on_send_buffered()

    def flush(self) -> None:
        if self.is_away:
            raise ConnectionError
        self.sent.append(self.waiting)
        self.waiting = 0


class Entry:
    """A place on the timer."""

    def __init__(self, call: Callable[[], None]) -> None:
        self.call = call
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True


class Consumer:
    """Celery's, as far as the feed sees it. Its timer goes off when the test says so."""

    connection_errors = (ConnectionError,)
    channel_errors = ()

    def __init__(self) -> None:
        self.event_dispatcher: Any = Dispatcher()
        self.entries: list[Entry] = []
        self.timer = self

    def call_after(self, _: float, call: Callable[[], None]) -> Entry:
        self.entries.append(Entry(call))
        return self.entries[-1]


@pytest.fixture
def consumer() -> Consumer:
    return Consumer()


@pytest.fixture
def feed(consumer: Consumer) -> EventFeed:
    made = EventFeed(consumer)
    made.start(consumer)
    return made


def test_many_events_are_one_message(consumer: Consumer, feed: EventFeed) -> None:
    for _ in range(30):
        consumer.event_dispatcher.send()
    [entry] = consumer.entries
    entry.call()
    consumer.event_dispatcher.send()

    assert consumer.event_dispatcher.sent == [30]
    assert len(consumer.entries) == 2, "the next second begins with the next event"
    assert consumer.event_dispatcher.buffer_limit == MOST


def test_what_is_left_goes_before_the_worker_stops(consumer: Consumer, feed: EventFeed) -> None:
    consumer.event_dispatcher.send()
    feed.stop(consumer)

    assert consumer.event_dispatcher.sent == [1]
    assert consumer.entries[0].is_cancelled


def test_a_broker_that_is_away_stops_nothing(consumer: Consumer, feed: EventFeed) -> None:
    consumer.event_dispatcher.send()
    consumer.event_dispatcher.is_away = True
    consumer.entries[0].call()
    feed.stop(consumer)

    assert consumer.event_dispatcher.waiting == 1, "it is Celery's to keep them or not"
