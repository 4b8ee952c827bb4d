"""GPT models, and every server that speaks their dialect, over Chat Completions: translates, checks, classifies.

Why Chat Completions and not Responses: docs/decisions/0002-chat-completions.md. Facts from providers.md section 2.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final

import httpx2
import openai
from openai import AsyncOpenAI, AsyncStream, DefaultAioHttpClient

from policies.catalog import Model
from policies.dialects.schema import closed, instruction, label_schema
from waybill.contract import Usage
from workers.providers import passthrough, responses, wire
from workers.providers.base import Answer, Call, Frames, Stop
from workers.providers.errors import TRANSPORT_ERRORS, Said, interrupted, refused
from workers.providers.failures import failure
from workers.providers.headers import openai_limits
from workers.providers.wire import Progress

_STOPS: Final[Mapping[str, Stop]] = {
    "stop": Stop.COMPLETE,
    "length": Stop.TRUNCATED,
    "content_filter": Stop.REFUSED,
    "tool_calls": Stop.TOOL_USE,
    "function_call": Stop.TOOL_USE,
}
_EFFORT_OFF: Final = "none"
# The SDK's generic `post`, not `chat.completions.create`: the latter walks the whole body against its parameter types,
# a third of the CPU of a call (measured 1.6 against 1.1 ms), and its typed answers are not validated anyway.
_PATH: Final = "/chat/completions"
_CAUGHT: Final = (openai.OpenAIError, *TRANSPORT_ERRORS)


class OpenAIProvider:
    """One account at OpenAI, or one compatible server.

    Attributes:
        name: Queue prefix.
    """

    def __init__(
        self,
        api_key: str,
        base_url: str | None = None,
        name: str = "openai",
        *,
        compatible: bool = False,
        model_name: str | None = None,
    ) -> None:
        """Opens nothing yet; connections belong to the loop of the first call.

        Args:
            api_key: Of the account; a compatible server without keys takes any non-empty word.
            base_url: Ends with `/v1`; None = OpenAI's own.
            name: Queue prefix and the name in messages.
            compatible: The server is not OpenAI's (llama-server, Ollama, vLLM): only what they all know is sent, and
                a missing model name or object type in the answer is borne.
            model_name: What the server calls its model; None = the catalogue's id.

        Raises:
            ConfigError: The key or the URL cannot work.
        """
        wire.check_access(name, api_key, base_url)
        self.name = name
        self._compatible = compatible
        self._model_name = model_name
        self.client = AsyncOpenAI(
            api_key=api_key,
            base_url=base_url,
            max_retries=0,
            timeout=wire.TRANSPORT_TIMEOUT,
            http_client=DefaultAioHttpClient(limits=wire.CONNECTION_LIMITS, timeout=wire.TRANSPORT_TIMEOUT),
        )

    def request(self, call: Call) -> dict[str, Any]:
        """The body of the call; of a batch's row where the client's own dialect is carried.

        Raises:
            Rejected: The model does not take the effort asked for, or a batch not this request.
        """
        if call.wire is not None:
            return passthrough.row_body(call)
        request = completion_request(call, compatible=self._compatible)
        request["model"] = self._model_name or call.model.id
        return request

    async def call(self, call: Call) -> Answer:
        """Send and wait for the whole answer; see `Provider.call`."""
        progress = Progress(self.name)
        try:
            if call.wire is not None:
                return await passthrough.call_whole(self._lane(), call, progress)
            request = self.request(call)
            async with asyncio.timeout(call.timeout_s):
                response = await self.client.post(
                    _PATH, cast_to=httpx2.Response, body=request, options={"headers": wire.call_headers(call)}
                )
            headers = wire.plain_headers(response)
            progress.request_id = headers.get("x-request-id")
            body = wire.json_object(response.content, headers, progress)
            return self._whole(call, body, headers, progress)
        except _CAUGHT as exc:
            raise self._sorted(exc, progress, streaming=False) from exc

    async def stream(self, call: Call) -> AsyncIterator[str | Frames | Answer]:
        """Yield pieces of text, then the checked Answer; see `Provider.stream`.

        A label is held back until it is whole and checked.
        """
        progress = Progress(self.name)
        stream: AsyncStream[object] | None = None
        try:
            if call.wire is not None:
                async for item in passthrough.stream_frames(self._lane(), call, progress):
                    yield item
                return
            request = self.request(call)
            async with asyncio.timeout(call.timeout_s):
                stream = await self.client.post(
                    _PATH,
                    cast_to=object,
                    body={**request, "stream": True, "stream_options": {"include_usage": True}},
                    options={"headers": wire.call_headers(call)},
                    stream=True,
                    stream_cls=AsyncStream[object],  # undecoded chunks: the SDK's typed ones are not validated
                )
            headers = wire.plain_headers(stream.response)
            progress.request_id = headers.get("x-request-id")
            progress.limits = openai_limits(headers)
            wire.check_content_type(headers, "text/event-stream", progress)
            reply = _Reply(progress)
            async for event in wire.Events(stream, call, progress):
                piece = reply.take(wire.mapping(event, "a chunk", progress))
                if piece and not call.labels:
                    yield piece
            rest = reply.text.end()
            if rest and not call.labels:
                yield rest
            answer = wire.finished(call, reply.answer(call, headers, need_model=not self._compatible), progress)
            if call.labels and answer.text:
                yield answer.text
            yield answer
        except _CAUGHT as exc:
            raise self._sorted(exc, progress, streaming=True) from exc
        finally:
            if stream is not None:
                await stream.close()

    async def close(self) -> None:
        """Close the connections; calls on their way fail."""
        await self.client.close()

    def read_completion(self, call: Call, body: object, request_id: object) -> Answer:
        """The checked answer in a batch's row.

        Raises:
            Broken: It may not be stored as success.
        """
        progress = Progress(self.name)
        progress.request_id = request_id if isinstance(request_id, str) else None
        given = wire.mapping(body, "the completion", progress)
        if call.wire is None:
            return self._whole(call, given, {}, progress)
        return passthrough.read_row(self._lane(), call, given, progress)

    def _lane(self) -> passthrough.Lane:
        def reply(dialect: str, progress: Progress) -> _Reply | responses.ResponsesReply:
            return responses.ResponsesReply(progress) if dialect == "responses" else _Reply(progress)

        def whole(
            dialect: str, call: Call, body: dict[str, Any], headers: Mapping[str, str], progress: Progress
        ) -> Answer:
            if dialect == "responses":
                return responses.whole(call, body, headers, progress)
            return self._whole(call, body, headers, progress)

        def answer(reply: _Reply | responses.ResponsesReply, call: Call, headers: Mapping[str, str]) -> Answer:
            if isinstance(reply, responses.ResponsesReply):
                return reply.answer(headers)
            return reply.answer(call, headers, need_model=not self._compatible)

        return passthrough.Lane(
            name=self.name,
            send=self._send,
            open=self._open,
            reply=reply,
            whole=whole,
            answer=answer,
            limits=openai_limits,
            compatible=self._compatible,
            model_name=self._model_name,
        )

    async def _send(self, path: str, body: dict[str, Any], headers: Mapping[str, str]) -> httpx2.Response:
        return await self.client.post(path, cast_to=httpx2.Response, body=body, options={"headers": headers})

    async def _open(self, path: str, body: dict[str, Any], headers: Mapping[str, str]) -> AsyncStream[object]:
        return await self.client.post(
            path,
            cast_to=object,
            body=body,
            options={"headers": headers},
            stream=True,
            stream_cls=AsyncStream[object],
        )

    def _whole(self, call: Call, body: dict[str, Any], headers: Mapping[str, str], progress: Progress) -> Answer:
        """The checked answer in a completion that was not streamed."""
        progress.usage = usage_of(body.get("usage"))
        progress.output = progress.usage is not None and progress.usage.output_tokens > 0
        if not isinstance(body.get("choices"), list) or not (
            self._compatible or body.get("object") == "chat.completion"
        ):
            raise wire.wrong_type("the completion", progress)
        if not body["choices"]:
            raise failure("empty", f"{self.name} answered without any choice", seen=progress.seen)
        reply = _Reply(progress)
        # A completion is a chunk whose delta is called message.
        choice = wire.mapping(body["choices"][0], "a choice", progress)
        reply.take({**body, "usage": None, "choices": [{**choice, "delta": choice.get("message")}]})
        reply.text.end()
        answer = reply.answer(call, headers, need_model=not self._compatible)
        return wire.finished(call, replace(answer, first_token_s=None), progress)

    def _sorted(self, exc: Exception, progress: Progress, *, streaming: bool) -> Exception:
        """`exc` as one of our four kinds."""
        if isinstance(exc, openai.APIError) and not isinstance(exc, openai.APIConnectionError):
            return refused(self.name, said(exc, progress), now=datetime.now(UTC), seen=progress.seen)
        return interrupted(self.name, exc, seen=progress.seen, streaming=streaming)


def said(exc: openai.APIError, progress: Progress) -> Said:
    """An SDK error as what the provider said."""
    # An error chunk in a stream is a plain APIError: no status, no response.
    response = exc.response if isinstance(exc, openai.APIStatusError) else None
    return Said(
        status=response.status_code if response is not None else 200,
        type=exc.type if isinstance(exc.type, str) else None,
        code=exc.code if isinstance(exc.code, str) else None,
        message=exc.message,
        headers=response.headers if response is not None else {},
        request_id=response.headers.get("x-request-id") if response is not None else progress.request_id,
    )


def completion_request(call: Call, *, compatible: bool = False) -> dict[str, Any]:
    """The body of a Chat Completions request for `call`. Pure.

    Raises:
        Rejected: The model does not take the effort asked for.
    """
    model = call.model
    system = call.system or ""
    request: dict[str, Any] = {"model": model.id}
    limit = min(call.max_output_tokens, model.max_output_tokens)
    request["max_tokens" if compatible else "max_completion_tokens"] = limit
    schema = label_schema(call.labels) if call.labels else call.json_schema
    if schema is not None:
        strict = closed(schema) if model.json_schema else None
        if strict is None:
            system = f"{system}\n\n{instruction(schema)}".strip()
        else:
            # Strict demands that every property is required; without it the schema is a strong hint, judged afterwards.
            form = {"name": "answer", "schema": strict.schema, "strict": strict.all_required}
            request["response_format"] = {"type": "json_schema", "json_schema": form}
    if compatible:
        turns = [{"role": m.role, "content": m.content} for m in call.plain_messages()]
        request["messages"] = [{"role": "system", "content": system}, *turns] if system else turns
        return request
    request["messages"] = _turns(call, system)
    request.update(_cache_options(call))
    request["store"] = False
    # Said outright: `auto` would let a project's setting choose a tier with another price than the router counted on.
    request["service_tier"] = "flex" if call.service == "flex" else "default"
    effort = _effort(call.effort, model)
    if effort is not None:
        request["reasoning_effort"] = effort
    return request


def _turns(call: Call, system: str) -> list[dict[str, Any]]:
    """The conversation; the context is a part of its own before the first user turn, the last stable part is marked."""
    turns: list[dict[str, Any]] = [{"role": m.role, "content": m.content} for m in call.messages]
    mark = {}
    if call.caching is not None and call.caching.mark:
        mark = {"prompt_cache_breakpoint": {"mode": "explicit"}}
    if call.context:
        part = {"type": "text", "text": call.context, **mark}
        if turns[0]["role"] == "user":
            turns[0]["content"] = [part, {"type": "text", "text": turns[0]["content"]}]
        else:
            turns.insert(0, {"role": "user", "content": [part]})
    if system:
        marked = [{"type": "text", "text": system, **mark}] if mark and not call.context else system
        turns.insert(0, {"role": "system", "content": marked})
    return turns


def _cache_options(call: Call) -> dict[str, Any]:
    """What is said about the prompt cache. Where writes cost, nothing is written that was not marked."""
    options: dict[str, Any] = {}
    if call.caching is not None and call.caching.key:
        options["prompt_cache_key"] = call.caching.key
    if call.model.caching == "explicit":
        options["prompt_cache_options"] = {"mode": "explicit"}
        if call.caching is not None and call.caching.mark and call.caching.is_long:
            options["prompt_cache_options"]["ttl"] = "12h"
    return options


def _effort(effort: str | None, model: Model) -> str | None:
    """The wire's effort. `none` becomes the weakest effort of a model that always thinks."""
    if effort == _EFFORT_OFF and effort not in model.efforts:
        return model.efforts[0] if model.efforts else None
    if effort is not None and effort not in model.efforts:
        taken = ", ".join(model.efforts) or "none at all"
        raise failure("bad_request", f"{model.id} does not take effort {effort!r}; it takes: {taken}")
    return effort


def usage_of(usage: object) -> Usage | None:
    """`usage` of a completion; None when it is missing or nonsense.

    On this wire `prompt_tokens` includes what was read from and written to the cache.
    """
    if not isinstance(usage, Mapping) or usage.get("prompt_tokens") is None or usage.get("completion_tokens") is None:
        return None
    try:
        details = wire.section(usage, "prompt_tokens_details")
        read, written = wire.count(details, "cached_tokens"), wire.count(details, "cache_write_tokens")
        rest = wire.count(usage, "prompt_tokens") - read - written
        if rest < 0:
            return None
        return Usage(
            input_tokens=rest,
            output_tokens=wire.count(usage, "completion_tokens"),
            cache_read_tokens=read,
            cache_write_tokens=written,
            thinking_tokens=wire.count(wire.section(usage, "completion_tokens_details"), "reasoning_tokens"),
        )
    except ValueError:
        return None


class _Reply:
    """A completion as its chunks build it up."""

    def __init__(self, progress: Progress) -> None:
        self.text = wire.Text()
        self._model: str | None = None
        self._finish: object = None
        self._tier: str | None = None
        self._is_refusal = False
        self._progress = progress

    def take(self, chunk: dict[str, Any]) -> str:
        """Take a chunk; return the text to hand on ("" for none). The last one carries usage and no choice."""
        progress = self._progress
        progress.began = True
        if isinstance(chunk.get("model"), str) and chunk["model"]:
            self._model = chunk["model"]
        if isinstance(chunk.get("service_tier"), str):
            self._tier = chunk["service_tier"]
        if chunk.get("usage") is not None:
            progress.usage = usage_of(chunk["usage"])
        choices = chunk.get("choices")
        if not isinstance(choices, list):
            raise wire.wrong_type("the list of choices", progress)
        if not choices:
            return ""
        choice = wire.mapping(choices[0], "a choice", progress)
        self._finish = choice.get("finish_reason") or self._finish
        return self._delta(wire.mapping(choice.get("delta"), "a delta", progress))

    def answer(self, call: Call, headers: Mapping[str, str], *, need_model: bool) -> Answer:
        """The answer, once it is over.

        Raises:
            Broken: It ended without a finish reason or model, or for a reason we do not know.
        """
        progress = self._progress
        if self._finish is None or (need_model and self._model is None):
            text = f"{progress.provider} ended its answer without finish_reason or model"
            raise failure("no_terminal_event", text, seen=progress.seen)
        stop = _STOPS.get(self._finish) if isinstance(self._finish, str) else None
        if stop is None:
            text = f"{progress.provider} stopped for a reason Waybill does not know: {self._finish!r}"
            raise failure("unknown_stop", text, seen=progress.seen)
        return Answer(
            text=self.text.whole,
            stop=Stop.REFUSED if self._is_refusal else stop,
            usage=progress.usage,
            served_model=self._model or call.model.id,
            request_id=progress.request_id,
            service_tier=self._tier,
            limits=openai_limits(headers),
            first_token_s=progress.first_token_s,
        )

    def _delta(self, delta: dict[str, Any]) -> str:
        piece = delta.get("content")
        if delta.get("refusal"):
            # Comes instead of content; its words are the answer's text, marked as refused.
            self._is_refusal = True
            piece = delta["refusal"]
        if piece is None:
            self._progress.output |= any(delta.get(key) for key in ("tool_calls", "reasoning_content", "reasoning"))
            return ""
        text = self.text.add(wire.text_of(piece, "a piece of text", self._progress))
        if text:
            self._progress.note_text()
        return text
