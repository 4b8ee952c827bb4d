"""A small model in this process: labels are scored, extracted values copied, other JSON held to its schema by a grammar, text generated.

Costs nothing but CPU, so nothing it does is ever billed. The work itself is in local_runner.py, on a thread of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from waybill.errors import ProviderError
from workers.providers.base import Answer, Call, Frames, Stop
from workers.providers.failures import failure
from workers.providers.local_model import check_file
from workers.providers.local_runner import LocalRunner, Said, Work
from workers.providers.passthrough import speak


class LocalProvider:
    """One GGUF model.

    Attributes:
        name: Queue prefix.
        sha256: Of the model file: part of what a calibration holds for.
    """

    name = "local"

    def __init__(
        self,
        path: Path,
        *,
        model_id: str = "smollm2-135m-instruct",
        sha256: str | None = None,
        threads: int = 2,
        context_tokens: int = 4096,
    ) -> None:
        """Check and load the model: blocks for seconds (hash and load), so do it before the loop or in a thread.

        Never before a fork: the owner's thread would be missing in the child.

        Args:
            path: A GGUF file.
            model_id: Catalogue id that this file answers to.
            sha256: Its hash; a different file is refused. None = any file.
            threads: CPU threads.
            context_tokens: Prompt and answer, and all prompts that are remembered, together.

        Raises:
            ConfigError: llama-cpp-python or the file is missing, or the file is another one.
        """
        self.sha256 = check_file(path, sha256)
        self._model_id = model_id
        self._runner = LocalRunner(path, context_tokens=context_tokens, threads=threads)

    @property
    def waiting(self) -> int:
        """Calls in the queue or at work."""
        return self._runner.waiting

    async def call(self, call: Call) -> Answer:
        """Answer; see `Provider.call`."""
        async for item in self.stream(call):
            if isinstance(item, Answer):
                return item
        raise AssertionError("stream() ends with an Answer or raises")

    async def stream(self, call: Call) -> AsyncIterator[str | Frames | Answer]:
        """Yield pieces of text, then the Answer; see `Provider.stream`. A label or copied values come in one piece."""
        if call.wire is not None:
            async for framed in speak(self, call):
                yield framed
            return
        self._check(call)
        loop = asyncio.get_running_loop()
        started = loop.time()
        deadline = started + call.timeout_s
        limit, first_token_s = deadline, None
        arrived: asyncio.Queue[str | Said | Exception] = asyncio.Queue()

        def hand_over(item: str | Said | Exception) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(arrived.put_nowait, item)

        work = Work(call, on_piece=hand_over, on_end=hand_over)
        try:
            self._runner.submit(work)
            while True:
                try:
                    async with asyncio.timeout_at(limit):
                        item = await arrived.get()
                except TimeoutError as exc:
                    code = "timeout" if loop.time() >= deadline else "idle_timeout"
                    raise failure(code, f"the local model did not answer in time ({self.waiting} calls wait)") from exc
                if isinstance(item, Exception):
                    raise item
                if isinstance(item, Said):
                    break
                if first_token_s is None:
                    first_token_s = loop.time() - started
                limit = min(deadline, loop.time() + call.idle_timeout_s)
                yield item
            if call.labels or call.copied:
                yield item.text
            elif item.stop is Stop.COMPLETE and not item.text.strip():
                raise failure("empty", "the local model ended its answer without any text")
            yield self._answer(item, first_token_s)
        except ProviderError as exc:
            exc.billed = False
            raise
        finally:
            work.cancelled.set()

    async def close(self) -> None:
        """Stop the thread after the step at hand and free the model; what waits fails as `closed`."""
        await asyncio.to_thread(self._runner.close)

    def _check(self, call: Call) -> None:
        if call.model.id != self._model_id:
            raise failure(
                "not_found", f"the local lane serves {self._model_id}, not {call.model.id}; correct the route"
            )
        try:
            for text in (call.system or "", *(message.content for message in call.plain_messages()), *call.labels):
                text.encode("utf-8")
        except UnicodeEncodeError as exc:
            raise failure("bad_request", "the request is not valid Unicode; remove lone surrogates") from exc

    def _answer(self, said: Said, first_token_s: float | None) -> Answer:
        return Answer(
            text=said.text,
            stop=said.stop,
            usage=said.usage,
            served_model=self._model_id,
            first_token_s=first_token_s,
            confidence=said.logprob,
            label_logprobs=said.label_logprobs,
            value_logprobs=said.value_logprobs,
            cpu_s=said.cpu_s,
            model_hash=self.sha256,
        )
