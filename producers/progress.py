"""How a run is going: a bar on a terminal, a plain line every few seconds elsewhere. Only says; decides nothing."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from decimal import Decimal
from types import TracebackType
from typing import IO, TYPE_CHECKING, Protocol, Self

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

LINE_EVERY_S = 5.0
WINDOW_S = 30.0
IDLE_HINT_S = 20.0


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a run stands.

    Attributes:
        total: Rows of the input.
        succeeded: Rows with an answer.
        failed: Rows without one for good, invalid ones included.
        adopted: Rows that were done before this command began; they cost nothing now.
        waiting: Jobs under way.
        usd: What the finished rows cost, adopted ones not counted.
        rate: Jobs a second, lately.
        idle_s: Seconds since a job last ended.
        hint: What holds it up, where that is known.
    """

    total: int
    succeeded: int = 0
    failed: int = 0
    adopted: int = 0
    waiting: int = 0
    usd: Decimal = Decimal(0)
    rate: float = 0.0
    idle_s: float = 0.0
    hint: str | None = None

    @property
    def done(self) -> int:
        """Rows that are through."""
        return self.succeeded + self.failed

    @property
    def eta_s(self) -> float | None:
        """Seconds to go at the present rate; None when it cannot be told."""
        return (self.total - self.done) / self.rate if self.rate > 0 else None

    @property
    def projected_usd(self) -> Decimal | None:
        """What this command will have cost in the end, if the rest is like what it has paid for so far."""
        paid = self.done - self.adopted
        return None if paid <= 0 else self.usd * (self.total - self.adopted) / paid


class Progress(AbstractContextManager["Progress"], Protocol):
    """Shows where a run stands."""

    def show(self, standing: Standing) -> None:
        """Called a few times a second."""
        ...


@dataclass(slots=True)
class Pace:
    """Jobs a second over the last half minute."""

    _marks: deque[tuple[float, int]] = field(default_factory=deque)

    def rate(self, now_s: float, done: int) -> float:
        """Note that `done` jobs have ended by `now_s` and say how fast that was lately."""
        self._marks.append((now_s, done))
        while len(self._marks) > 2 and self._marks[0][0] < now_s - WINDOW_S:
            self._marks.popleft()
        since_s, before = self._marks[0]
        return (done - before) / (now_s - since_s) if now_s > since_s else 0.0


def one_line(standing: Standing) -> str:
    """All of it on one line."""
    parts = [f"{standing.done:,}/{standing.total:,} done", f"{standing.failed:,} failed"]
    if standing.adopted:
        parts.append(f"{standing.adopted:,} from before")
    parts.append(f"{standing.rate:.1f} jobs/s")
    if standing.eta_s is not None and standing.done < standing.total:
        parts.append(f"{_duration(standing.eta_s)} to go")
    parts.append(f"{standing.usd:.4f} USD")
    if standing.projected_usd is not None and standing.done < standing.total:
        parts.append(f"about {standing.projected_usd:.4f} USD in the end")
    if standing.hint:
        parts.append(standing.hint)
    elif standing.waiting and standing.idle_s > IDLE_HINT_S:
        parts.append(f"nothing has ended for {standing.idle_s:.0f} s: are workers running (`waybill up`)?")
    return " · ".join(parts)


def _duration(seconds: float) -> str:
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return (
        f"{whole // 60} min {whole % 60:02d} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    )


class Silent:
    """Shows nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        return None

    def show(self, standing: Standing) -> None:
        """Shows nothing."""


class Lines(Silent):
    """A line every few seconds, for logs and pipes."""

    def __init__(self, stream: IO[str], clock: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._clock, self._last_s = stream, clock, clock()

    def show(self, standing: Standing) -> None:
        """Write a line unless the last one is recent."""
        now_s = self._clock()
        if now_s - self._last_s >= LINE_EVERY_S:
            self._last_s = now_s
            self._stream.write(one_line(standing) + "\n")
            self._stream.flush()


class Bar(Silent):
    """A bar that moves, for terminals."""

    def __init__(self, stream: IO[str]) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self._bar: RichProgress = Progress(
            BarColumn(bar_width=24), TextColumn("{task.description}", markup=False), console=Console(file=stream)
        )
        self._task: TaskID = self._bar.add_task("reading the input", total=None)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._bar.stop()

    def show(self, standing: Standing) -> None:
        """Move the bar."""
        self._bar.update(self._task, total=standing.total, completed=standing.done, description=one_line(standing))


def for_stream(stream: IO[str]) -> Bar | Lines:
    """A bar where `stream` is a terminal, else lines."""
    return Bar(stream) if stream.isatty() else Lines(stream)
