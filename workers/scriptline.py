"""One connection to Redis over which script calls travel together: what is asked while an answer is awaited goes out next.

redis-py takes about 80 us of CPU for a command through its pool and 40 us for one more on a connection at hand (measured,
docs/limits.md). The limiter is asked for every chunk and every answer, so it uses one connection and sends in company.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from redis.asyncio import Connection, Redis

MOST_TOGETHER: Final = 100


class NoAnswer(Exception):
    """Redis did not answer in time or the connection broke: the command may or may not have been carried out."""


class ScriptLine:
    """Belongs to one event loop. Answers come in the order of the questions."""

    def __init__(self, redis: Redis, *, timeout_s: float) -> None:
        """Opens nothing yet.

        Args:
            redis: Its pool makes the connection (TLS, password, database).
            timeout_s: For a flight of commands; a question asked meanwhile waits for at most two of them.
        """
        self._pool = redis.connection_pool
        self._timeout_s = timeout_s
        self._asked: deque[tuple[tuple[Any, ...], asyncio.Future[Any]]] = deque()
        self._task: asyncio.Task[None] | None = None
        self._connection: Connection | None = None

    async def ask(self, *command: Any) -> Any:
        """Send a command and return its answer.

        Raises:
            NoAnswer: None came in time. It is not repeated: it may have been carried out.
            ResponseError: The server refuses the command.
        """
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._asked.append((command, future))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._fly(), name="script-line")
        return await future

    async def close(self) -> None:
        """Drop the connection; questions under way get NoAnswer."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        self._fail(self._asked, NoAnswer("the connection was closed"))
        await self._drop()

    async def _fly(self) -> None:
        from redis.exceptions import RedisError

        while self._asked:
            flight = [self._asked.popleft() for _ in range(min(len(self._asked), MOST_TOGETHER))]
            try:
                async with asyncio.timeout(self._timeout_s):
                    await self._send_and_read(flight)
            except (RedisError, OSError, TimeoutError) as exc:
                reason = NoAnswer(f"{type(exc).__name__}: {exc}" if str(exc) else type(exc).__name__)
                self._fail(flight, reason)
                # Who asked meanwhile has waited as long: let all of them decide now instead of one after the other.
                self._fail(self._asked, reason)
                self._asked.clear()
                await self._drop()
            except asyncio.CancelledError:
                self._fail(flight, NoAnswer("the connection was closed"))
                await self._drop()
                raise

    async def _send_and_read(self, flight: list[tuple[tuple[Any, ...], asyncio.Future[Any]]]) -> None:
        from redis.exceptions import ResponseError

        if self._connection is None:
            self._connection = await self._pool.get_connection()  # type: ignore[no-untyped-call]  # redis-py decorates it
        connection = self._connection
        packed: list[bytes] = []
        for command, _ in flight:
            packed += connection.pack_command(*command)
        await connection.send_packed_command(packed)
        for _, future in flight:
            try:
                answer = await connection.read_response()
            except ResponseError as exc:
                if not future.done():
                    future.set_exception(exc)
                continue
            if not future.done():
                future.set_result(answer)

    def _fail(self, asked: Any, reason: NoAnswer) -> None:
        for _, future in asked:
            if not future.done():
                future.set_exception(reason)

    async def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.disconnect(nowait=True)
            await self._pool.release(connection)
