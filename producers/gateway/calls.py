"""The three dialects' own endpoints: Chat Completions, Responses, Messages, and counting tokens for the last."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from policies.dialects.neutral import Dialect
from policies.pricing import estimate_tokens
from producers.gateway.answer import Carriage, respond
from producers.gateway.principal import authorize
from producers.gateway.request import make_job, read_body

_DEFAULT_BYTES_PER_TOKEN: Final = 2.5
_TITLES: Final = {"chat": "Chat Completions", "responses": "Responses", "messages": "Messages"}


def _endpoint(dialect: Dialect) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        who = await authorize(request, "call")
        gateway = request.app.state.gateway
        body = await read_body(request)
        job, _, _ = make_job(request, dialect, body, who, gateway.policy, gateway.off)
        carriage = Carriage(gateway.client, gateway.mailroom, job, dialect, request.state.request_id)
        return await respond(request, carriage)

    answer.__doc__ = f"Answer a request in the dialect of {_TITLES[dialect]}, whole or as a stream of events."
    return answer


async def count_tokens(request: Request) -> Response:
    """An estimate (bytes by the model's usual bytes per token): counting exactly would be a call to the provider."""
    who = await authorize(request, "call")
    gateway = request.app.state.gateway
    body = {"max_tokens": 1, **await read_body(request)}
    job, _, asked = make_job(request, "messages", body, who, gateway.policy, gateway.off)
    model = gateway.policy.models.get(job.model or "")
    per_token = _DEFAULT_BYTES_PER_TOKEN if model is None else model.bytes_per_token
    return JSONResponse(
        {"input_tokens": estimate_tokens(asked.text_bytes, per_token)}, headers={"x-waybill-estimate": "true"}
    )


routes = [
    Route("/v1/chat/completions", _endpoint("chat"), methods=["POST"]),
    Route("/v1/responses", _endpoint("responses"), methods=["POST"]),
    Route("/v1/messages", _endpoint("messages"), methods=["POST"]),
    Route("/v1/messages/count_tokens", count_tokens, methods=["POST"]),
]
