"""From an HTTP request in some dialect to a Job: body and size, model, options, and what no lane could take."""

from __future__ import annotations

import json
import re
from typing import Any, Final

from pydantic import ValidationError
from starlette.requests import Request

from policies.catalog import Model
from policies.dialects.carry import Wanted, wanted
from policies.dialects.neutral import Dialect, Unsupported
from policies.goodenough import check_schema
from policies.policyfile import Policy
from producers.gateway.errors import Kind, Refusal
from producers.gateway.models import AUTO, INTENT_PREFIX, unknown_model
from producers.gateway.options import Options, take_options
from producers.gateway.principal import Principal
from waybill.contract import Job, Priority, Wire

MAX_BODY_BYTES: Final = 32 * 1024 * 1024
"""As at Anthropic (413 above it)."""
SCHEMA_PARAMS: Final[dict[Dialect, str]] = {
    "chat": "response_format",
    "responses": "text.format",
    "messages": "output_config.format",
}
DIRECT: Final = "direct"
"""The intent of a request for a concrete model that names none."""
_DATED: Final = re.compile(r"-20\d{6}$|-20\d\d-\d\d-\d\d$")
"""A snapshot's date: `claude-haiku-4-5-20251001` is the catalogue's `claude-haiku-4-5`."""
_VERSIONS: Final = ("2023-06-01", "2026-10-21")
# Beta features that change how one request is answered. Others need state at the provider, or spend uncounted money.
_BETAS: Final = (
    "structured-outputs-", "context-1m-", "interleaved-thinking-", "fine-grained-tool-streaming-", "prompt-caching-",
    "token-efficient-tools-", "extended-cache-ttl-", "output-128k-", "computer-use-", "effort-", "pdfs-",
)  # fmt: skip


async def read_body(request: Request) -> dict[str, Any]:
    """The body as an object.

    Raises:
        Refusal: Too large, no JSON, or something else than an object.
    """
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > MAX_BODY_BYTES:
            raise Refusal(Kind.TOO_LARGE, f"the body has more than {MAX_BODY_BYTES:,} bytes; split the request")
        parts.append(part)
    try:
        body = json.loads(b"".join(parts))
    except (ValueError, RecursionError) as exc:
        raise Refusal(Kind.INVALID, f"the body is not JSON: {exc}") from None
    if not isinstance(body, dict):
        raise Refusal(Kind.INVALID, "the body must be a JSON object")
    return body


def make_job(
    request: Request, dialect: Dialect, body: dict[str, Any], who: Principal, policy: Policy, off: frozenset[str]
) -> tuple[Job, Options, Wanted]:
    """The job that a request is.

    Raises:
        Refusal: Its parameters, its model or its options are wrong; nothing was accepted.
    """
    options = take_options(request.headers, body)
    if options.cache not in (None, "on", "off"):
        raise Refusal(Kind.INVALID, "must be on (an earlier answer will do) or off", param="x-waybill-cache")
    try:
        asked = wanted(dialect, {name: value for name, value in body.items() if name not in options.drop})
    except Unsupported as exc:
        raise Refusal(Kind.INVALID, exc.reason, param=exc.param, code="unsupported_parameter") from None
    intent, model = _where_to(asked.model, options, policy, off)
    if options.quality is not None and (model is not None or options.local_only):
        raise Refusal(
            Kind.INVALID,
            f"chooses among the models of an intent: ask for auto or {INTENT_PREFIX}INTENT, and not for a model or local-only",
            param="x-waybill-quality",
        )
    if model is not None and model.provider in asked.obstacles:
        obstacle = asked.obstacles[model.provider]
        raise Refusal(
            Kind.INVALID,
            f"{obstacle.param}: {obstacle.reason} (asked of {model.id}; x-waybill-drop: {obstacle.param.partition('.')[0]} leaves it out)",
            param=obstacle.param,
            code="unsupported_parameter",
        )
    if asked.json_schema is not None:
        try:
            check_schema(asked.json_schema)
        except ValueError as exc:
            raise Refusal(Kind.INVALID, f"the schema {exc}", param=SCHEMA_PARAMS[dialect]) from None
    betas = _betas(request) if dialect == "messages" else ()
    wire = Wire(
        dialect=dialect,
        body=body,
        text_bytes=asked.text_bytes,
        needs=(*asked.needs, "live:anthropic") if betas else asked.needs,  # a header, and the rows of a batch share one
        version=version if (version := request.headers.get("anthropic-version")) in _VERSIONS else None,
        betas=betas,
        drop=options.drop,
        restart=options.restart,
    )
    try:
        job = Job(
            intent=intent,
            wire=wire,
            json_schema=asked.json_schema,
            model=None if model is None else model.id,
            local_only=options.local_only,
            quality=options.quality,
            priority=Priority.INTERACTIVE,
            max_output_tokens=None if asked.max_output_tokens is None else min(asked.max_output_tokens, 1_000_000),
            deadline_s=options.deadline_s,
            idempotency_key=options.idempotency_key,
            tenant=who.tenant,
            key_id=who.key_id,
            # A provider answers the same question anew each time, so a client gets an old answer only if it says so.
            reuse=options.cache == "on",
            stream=asked.stream,
            metadata=dict(options.labels or {}),
        )
    except ValidationError as exc:
        first = exc.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise Refusal(Kind.INVALID, first["msg"].removeprefix("Value error, "), param=where or None) from None
    return job, options, asked


def _where_to(name: str, options: Options, policy: Policy, off: frozenset[str]) -> tuple[str, Model | None]:
    """Intent and pinned model for what stands in `model`."""
    if name == AUTO:
        return AUTO if options.intent is None else _intent(options.intent, policy, "x-waybill-intent"), None
    if name.startswith(INTENT_PREFIX):
        return _intent(name.removeprefix(INTENT_PREFIX), policy, "model"), None
    model = policy.models.get(name) or policy.models.get(_DATED.sub("", name))
    if model is None or model.provider in off:
        raise unknown_model(name)
    intent = DIRECT if options.intent is None else _intent(options.intent, policy, "x-waybill-intent")
    return intent, model


def _intent(name: str, policy: Policy, where: str) -> str:
    if name in policy.plans:
        return name
    if where == "model":
        raise unknown_model(f"{INTENT_PREFIX}{name}")
    raise Refusal(
        Kind.INVALID, f"{name!r} is no intent of the policy; there are: {', '.join(policy.intents())}", param=where
    )


def _betas(request: Request) -> tuple[str, ...]:
    named = [word.strip() for word in request.headers.get("anthropic-beta", "").split(",")]
    return tuple(word for word in named if word.startswith(_BETAS) and word.isascii() and len(word) < 60)
