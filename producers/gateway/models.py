"""GET /v1/models and /v1/models/{id}: concrete models, `waybill/<intent>` and `auto`, in the shape of the asking dialect."""

from __future__ import annotations

from typing import Any, Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from policies.catalog import Model
from policies.policyfile import Policy
from producers.gateway.errors import Kind, Refusal
from producers.gateway.principal import authenticate

INTENT_PREFIX: Final = "waybill/"
AUTO: Final = "auto"
_SINCE: Final = 1795564800
"""2026-11-25: the models' own dates are not ours to tell."""
_SINCE_TEXT: Final = "2026-11-25T00:00:00Z"


def names(policy: Policy, off: frozenset[str]) -> dict[str, Model | None]:
    """What may stand in `model`: id -> catalogue entry, None for an intent or `auto`. Models of absent providers are left out."""
    listed: dict[str, Model | None] = {AUTO: None}
    listed.update({f"{INTENT_PREFIX}{intent}": None for intent in policy.intents() if intent != AUTO})
    listed.update({name: model for name, model in policy.models.items() if model.provider not in off})
    return listed


async def list_models(request: Request) -> Response:
    """All of them; `limit`, `after_id` and `before_id` page through them in Anthropic's dialect."""
    await authenticate(request)
    gateway = request.app.state.gateway
    listed = names(gateway.policy, gateway.off)
    if not _is_anthropic(request):
        return JSONResponse({"object": "list", "data": [_openai(name, model) for name, model in listed.items()]})
    ids = list(listed)
    start, end = 0, len(ids)
    after, before = request.query_params.get("after_id"), request.query_params.get("before_id")
    if after in ids:
        start = ids.index(after) + 1
    if before in ids:
        end = ids.index(before)
    limit = request.query_params.get("limit", "20")
    if not limit.isascii() or not limit.isdigit() or not 1 <= int(limit) <= 1000:
        raise Refusal(Kind.INVALID, "must be a number from 1 to 1000", param="limit")
    page = ids[start:end][: int(limit)]
    return JSONResponse(
        {
            "data": [_anthropic(name, listed[name]) for name in page],
            "has_more": start + len(page) < end,
            "first_id": page[0] if page else None,
            "last_id": page[-1] if page else None,
        }
    )


async def get_model(request: Request) -> Response:
    """One of them."""
    await authenticate(request)
    gateway = request.app.state.gateway
    name = request.path_params["model"]
    listed = names(gateway.policy, gateway.off)
    if name not in listed:
        raise unknown_model(name)
    shape = _anthropic if _is_anthropic(request) else _openai
    return JSONResponse(shape(name, listed[name]))


def unknown_model(name: str) -> Refusal:
    """The 404 for a model that nobody here serves."""
    return Refusal(
        Kind.NOT_FOUND,
        f"model: {name!r} is not served here; GET /v1/models lists what is (also waybill/<intent> and auto)",
        param="model",
        code="model_not_found",
    )


def _is_anthropic(request: Request) -> bool:
    return "anthropic-version" in request.headers


def _openai(name: str, model: Model | None) -> dict[str, Any]:
    owner = "waybill" if model is None else model.provider
    return {"id": name, "object": "model", "created": _SINCE, "owned_by": owner, "shutdown_date": None}


def _anthropic(name: str, model: Model | None) -> dict[str, Any]:
    return {
        "type": "model",
        "id": name,
        "display_name": name,
        "created_at": _SINCE_TEXT,
        "lifecycle": "active",
        "deprecated_at": None,
        "retires_at": None,
        "line": None,
        "max_input_tokens": None if model is None else model.context_tokens,
        "max_tokens": None if model is None else model.max_output_tokens,
        "capabilities": None,
    }


routes = [Route("/v1/models", list_models), Route("/v1/models/{model:path}", get_model)]
