"""Which body a lane gets for a request of some dialect: the client's own where dialects match, else a translation.

Also what every lane refuses, because it would cost money that nobody counts, or needs state that is kept elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from policies.catalog import Model
from policies.dialects import chat, messages, responses
from policies.dialects.neutral import Dialect, Prompt, Unsupported, is_given, malformed, obj, text

_READ: Final[Mapping[Dialect, Callable[[Mapping[str, Any]], Prompt]]] = {
    "chat": chat.read,
    "responses": responses.read,
    "messages": messages.read,
}
READERS: Final[Mapping[Dialect, Callable[[], Any]]] = {
    "chat": chat.Reader,
    "responses": responses.Reader,
    "messages": messages.Reader,
}
WRITERS: Final[Mapping[Dialect, Callable[..., Any]]] = {
    "chat": chat.Writer,
    "responses": responses.Writer,
    "messages": messages.Writer,
}
LIMIT_KEYS: Final[Mapping[Dialect, tuple[str, ...]]] = {
    "chat": ("max_completion_tokens", "max_tokens"),
    "responses": ("max_output_tokens",),
    "messages": ("max_tokens",),
}

_STATE: Final = "needs state that is kept at the provider, and Waybill keeps none there; send the whole conversation"
_UNCOUNTED: Final = "costs what Waybill cannot count; use a tool of your own"
_REFUSED: Final[Mapping[Dialect, Mapping[str, str]]] = {
    "chat": {
        "web_search_options": _UNCOUNTED,
        "audio": "audio is not carried",
        "functions": "is the old form; use tools",
        "function_call": "is the old form; use tool_choice",
    },
    "responses": {
        "previous_response_id": _STATE,
        "conversation": _STATE,
        "prompt": _STATE,
        "background": "is what jobs are for: POST /v1/jobs, or the batches endpoints",
        "store": "answers are kept in Waybill's ledger, not at the provider; leave it out or send false",
        "image": _UNCOUNTED,
    },
    "messages": {
        "thread": _STATE,
        "container": _STATE,
        "mcp_servers": _UNCOUNTED,
        "diagnostics": "names a message at the provider; leave it out",
    },
}
_SAMPLING: Final = frozenset({"temperature", "top_p", "top_k"})
_TIERS: Final = ("auto", "default", "standard", "standard_only", "flex")
_OWN_TOOLS: Final[Mapping[Dialect, tuple[str, ...]]] = {
    "chat": ("function", "custom"),
    "responses": ("function", "custom"),
    # The client runs these itself; Anthropic only knows their schemas.
    "messages": ("custom", "bash_", "text_editor_", "computer_", "memory_"),
}


@dataclass(frozen=True, slots=True)
class Wanted:
    """What routing reads of a request.

    Attributes:
        model: As the client wrote it.
        stream: Whether it wants a stream.
        max_output_tokens: Its limit, None when not given.
        json_schema: The schema its answer must fit.
        needs: Capabilities and providers, for the router (`tools`, `vision`, `only:openai`, `live:openai`, ...).
        text_bytes: UTF-8 bytes of everything but attachments, plus 4,000 for each of those.
        obstacles: Why a provider cannot take it, by provider.
    """

    model: str
    stream: bool
    max_output_tokens: int | None
    json_schema: dict[str, Any] | None
    needs: tuple[str, ...]
    text_bytes: int
    obstacles: Mapping[str, Unsupported]


_BASE64: Final = re.compile(r"(?:data:[^,]{1,100},)?[A-Za-z0-9+/\r\n]{2000}")
ATTACHMENT_BYTES: Final = 4_000
"""1,600 tokens at 2.5 bytes each: what an image costs at most sizes."""


def wanted(dialect: Dialect, body: Mapping[str, Any]) -> Wanted:
    """Look a request over.

    Raises:
        Unsupported: No lane takes it.
    """
    model = text(body.get("model"), "model")
    if not model:
        raise malformed("model", "is missing")
    conversation = "input" if dialect == "responses" else "messages"
    if not body.get(conversation):
        raise malformed(conversation, "must not be empty")
    refuse(dialect, body)
    limit = next((body[key] for key in LIMIT_KEYS[dialect] if body.get(key) is not None), None)
    if dialect == "messages" and limit is None:
        raise malformed("max_tokens", "Field required")
    least = 0 if dialect == "messages" else 1
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < least):
        raise malformed(LIMIT_KEYS[dialect][0], f"must be a whole number of at least {least}")
    stream = body.get("stream")
    if stream is not None and not isinstance(stream, bool):
        raise malformed("stream", "must be true or false")
    native = "anthropic" if dialect == "messages" else "openai"
    foreign = "openai" if dialect == "messages" else "anthropic"
    needs: list[str] = []
    obstacles: dict[str, Unsupported] = {}
    schema, sees = None, _has_attachment(body)
    try:
        prompt = _READ[dialect](body)
        sees = prompt.has_images
        schema = dict(prompt.form.schema) if prompt.form is not None and prompt.form.schema is not None else None
    except Unsupported as exc:
        if exc.is_wrong:
            raise
        obstacles[foreign] = obstacles["local"] = exc
        needs.append(f"only:{native}")
    if is_given(body.get("tools")):
        needs.append("tools")
    if sees:
        needs.append("vision")
    if dialect == "responses":
        needs.append("live:openai")  # the rows of an OpenAI batch all go to one endpoint, and ours to Chat Completions
    return Wanted(
        model=model,
        stream=stream is True,
        max_output_tokens=limit or None,
        json_schema=schema,
        needs=tuple(needs),
        text_bytes=_size(body),
        obstacles=obstacles,
    )


def refuse(dialect: Dialect, body: Mapping[str, Any]) -> None:
    """Raise for what no lane takes.

    Raises:
        Unsupported: With the remedy.
    """
    for name, reason in _REFUSED[dialect].items():
        if is_given(body.get(name)) and body[name] is not False:
            raise Unsupported(name, reason, is_wrong=True)
    tier = body.get("service_tier")
    if tier is not None and tier not in _TIERS:
        raise Unsupported("service_tier", f"{tier!r} is not offered; use auto, default or flex", is_wrong=True)
    for name, only in (("speed", "standard"), ("inference_geo", "global")):
        if dialect == "messages" and body.get(name) not in (None, only):
            raise Unsupported(name, f"only {only!r} is offered", is_wrong=True)
    if dialect == "chat" and "audio" in (body.get("modalities") or []):
        raise Unsupported("modalities", "audio is not carried", is_wrong=True)
    tools = body.get("tools") or []
    if not isinstance(tools, list):
        raise malformed("tools", "must be a list")
    for place, tool in enumerate(tools):
        kind = obj(tool, f"tools[{place}]").get("type", "custom" if dialect == "messages" else None)
        if not isinstance(kind, str) or not kind.startswith(_OWN_TOOLS[dialect]):
            raise Unsupported(f"tools[{place}].type", f"{kind!r} {_UNCOUNTED}", is_wrong=True)


@dataclass(frozen=True, slots=True)
class Carried:
    """A request as a lane gets it.

    Attributes:
        dialect: The lane's.
        body: Ready to be sent.
        is_native: The client's own dialect: the answer's bytes may go through unchanged.
        include_usage: Chat: whether the client asked for a chunk with usage.
    """

    dialect: Dialect
    body: dict[str, Any]
    is_native: bool
    include_usage: bool


def carry(
    dialect: Dialect,
    body: Mapping[str, Any],
    model: Model,
    *,
    service: str = "interactive",
    effort: str | None = None,
    limit: int = messages.DEFAULT_MAX_TOKENS,
    drop: Sequence[str] = (),
    compatible: bool = False,
) -> Carried:
    """The body for a lane.

    Args:
        dialect: The client's.
        body: As it came, without Waybill's own options.
        model: Of the lane.
        service: Of the lane; `flex` is asked for outright.
        effort: The plan's, where the client gave none and the model was chosen here.
        limit: Upper bound of the answer's tokens as the plan, the model or a budget has it.
        drop: Parameters that the client allows to be left out where a lane does not take them.
        compatible: An OpenAI-compatible server that is not OpenAI's.

    Raises:
        Unsupported: It cannot be carried over.
    """
    lane: Dialect = "messages" if model.provider == "anthropic" else "chat"
    if dialect == "responses" and model.provider == "openai":
        lane = "responses"
    asked = bool((body.get("stream_options") or {}).get("include_usage")) if dialect == "chat" else False
    if lane == dialect and not compatible and model.provider != "local":
        return Carried(
            lane, _native(lane, body, model, service=service, effort=effort, limit=limit, drop=drop), True, asked
        )
    prompt = read(dialect, body, drop)
    if effort is not None and prompt.effort is None and effort in model.efforts:
        prompt = replace(prompt, effort=effort)
    if limit < (prompt.max_output_tokens or messages.DEFAULT_MAX_TOKENS):
        prompt = replace(prompt, max_output_tokens=limit)
    if lane == "messages":
        sent = messages.write(_allow(prompt, model, drop), model)
    else:
        sent = chat.write(_allow(prompt, model, drop), model, compatible=compatible)
        if not compatible:
            sent |= {"store": False, "service_tier": "flex" if service == "flex" else "default"}
    sent.pop("stream", None)
    return Carried(lane, sent, False, prompt.include_usage)


def read(dialect: Dialect, body: Mapping[str, Any], drop: Sequence[str] = ()) -> Prompt:
    """The request in the neutral form, without what may be dropped."""
    return _READ[dialect]({name: value for name, value in body.items() if name not in drop})


def _allow(prompt: Prompt, model: Model, drop: Sequence[str]) -> Prompt:
    """Without an effort that the model does not know, where the client allows that."""
    if prompt.effort is None or "effort" not in drop or prompt.effort in model.efforts:
        return prompt
    return replace(prompt, effort=None)


def _native(
    dialect: Dialect,
    body: Mapping[str, Any],
    model: Model,
    *,
    service: str,
    effort: str | None,
    limit: int,
    drop: Sequence[str],
) -> dict[str, Any]:
    """The client's body with the lane's model; what Waybill itself must know is asked for."""
    sent = {name: value for name, value in body.items() if name not in ("model", "stream", "stream_options")}
    was_chosen = body.get("model") != model.id
    sent = {"model": model.id, **sent}
    if not model.temperature:
        for name in _SAMPLING.intersection(drop):
            sent.pop(name, None)
    given = next((key for key in LIMIT_KEYS[dialect] if sent.get(key) is not None), None)
    if limit < (sent[given] if given is not None else messages.DEFAULT_MAX_TOKENS):
        sent[given or LIMIT_KEYS[dialect][0]] = limit
    if was_chosen and effort in model.efforts:
        _default_effort(dialect, sent, str(effort), model)
    options = {k: v for k, v in (body.get("stream_options") or {}).items() if k != "include_usage"}
    if body.get("stream") and dialect == "chat":
        sent["stream_options"] = {**options, "include_usage": True}
    elif body.get("stream") and options:
        sent["stream_options"] = options
    if dialect == "messages":
        if "output_format" in sent:  # the old name of output_config.format; the API no longer takes it
            form = sent.pop("output_format")
            if is_given(form):
                sent["output_config"] = {"format": form, **(sent.get("output_config") or {})}
        return {name: value for name, value in sent.items() if value is not None}
    if dialect == "responses":
        sent["store"] = False
    if service == "flex" or sent.get("service_tier") in (None, "auto"):
        # Said outright: `auto` would let a project's setting choose a tier with another price than was counted on.
        sent["service_tier"] = "flex" if service == "flex" else "default"
    return sent


def _default_effort(dialect: Dialect, sent: dict[str, Any], effort: str, model: Model) -> None:
    if dialect == "chat":
        sent.setdefault("reasoning_effort", effort)
    elif dialect == "responses":
        sent["reasoning"] = {"effort": effort, **(sent.get("reasoning") or {})}
    elif not sent.get("thinking") and model.efforts:
        sent["output_config"] = {"effort": effort, **(sent.get("output_config") or {})}


def _has_attachment(body: Mapping[str, Any]) -> bool:
    stack: list[Any] = [body.get("messages"), body.get("input")]
    while stack:
        node = stack.pop()
        if isinstance(node, dict):
            if node.get("type") in ("image", "image_url", "input_image"):
                return True
            stack.extend(node.values())
        elif isinstance(node, list):
            stack.extend(node)
    return False


def said(body: Mapping[str, Any]) -> list[str]:
    """The texts of a request: what no log and no error may quote."""
    texts, stack = [], [body.get(name) for name in ("messages", "input", "system", "instructions")]
    while stack:
        node = stack.pop()
        if isinstance(node, str):
            texts.append(node)
        elif isinstance(node, dict):
            stack.extend(child for name, child in node.items() if name not in ("type", "role", "id"))
        elif isinstance(node, list):
            stack.extend(node)
    return texts


def _size(body: Mapping[str, Any]) -> int:
    """Bytes of text in a request; base64 counts as an attachment. Raises Unsupported for lone surrogates and depth."""
    total, stack = 0, [(body, 1)]
    while stack:
        node, depth = stack.pop()
        if depth > 100:
            raise malformed("body", "is nested deeper than 100 levels")
        if isinstance(node, str):
            if _BASE64.match(node):
                total += ATTACHMENT_BYTES
                continue
            try:
                total += len(node.encode())
            except UnicodeEncodeError as exc:
                raise malformed("body", f"holds a lone surrogate, which is not valid Unicode ({exc.reason})") from None
        elif isinstance(node, dict):
            total += sum(len(str(key)) for key in node)
            stack.extend((child, depth + 1) for child in node.values())
        elif isinstance(node, list):
            stack.extend((child, depth + 1) for child in node)
    return total
