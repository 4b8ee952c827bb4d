"""What OpenAI's two endpoints share: errors, models, prompt bytes, caching, tools, schemas and the rules of GPT-6."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime
from hashlib import sha256
from typing import Any

from pydantic_core import to_json

from sandbox import tokens
from sandbox.exchange import ApiError, Asking, Json, Tool, invalid
from sandbox.models import Catalogue, Model
from sandbox.promptcache import Plan, PromptCache
from sandbox.schema import complaint

_TYPES = {
    "invalid_request": "invalid_request_error",
    "authentication": "invalid_request_error",
    "permission": "invalid_request_error",
    "not_found": "invalid_request_error",
    "too_large": "invalid_request_error",
    "rate_limit": "tokens",
    "ramp_limit": "requests",
    "spend_limit": "insufficient_quota",
    "overloaded": "server_error",
    "unavailable": "server_error",
    "server_error": "server_error",
}
_CODES = {
    "authentication": "invalid_api_key",
    "permission": "permission_denied",
    "not_found": "model_not_found",
    "rate_limit": "rate_limit_exceeded",
    "ramp_limit": "slow_down",
    "spend_limit": "insufficient_quota",
    "overloaded": "server_is_overloaded",
    "unavailable": "server_is_overloaded",
    "server_error": "server_error",
}
TIERS = {"auto": "default", "default": "default", "flex": "flex", "priority": "priority", "fast": "priority"}
_TTL_S = {"30m": 1800, "12h": 43_200}
# Models whose cache writes are free keep a prefix for a day.
_FREE_TTL_S = 86_400


def error_body(error: ApiError) -> Json:
    """Return the error in OpenAI's shape."""
    code = error.code if error.code is not None else _CODES.get(error.kind)
    return {
        "error": {
            "message": error.message,
            "type": error.kind_in_dialect or _TYPES[error.kind],
            "param": error.param,
            "code": code,
        }
    }


def model_info(model: Model) -> Json:
    """Return a model as GET /v1/models shows it."""
    return {
        "id": model.id,
        "object": "model",
        "created": int(datetime.fromisoformat(f"{model.created}T00:00:00+00:00").timestamp()),
        "owned_by": "sandbox",
        "shutdown_date": model.shutdown,
    }


def find_model(body: Json, catalogue: Catalogue) -> Model:
    """Return the model asked for, or raise the 404 of an unknown one."""
    name = body.get("model")
    if not isinstance(name, str) or not name:
        raise invalid("you must provide a model parameter", param="model")
    model = catalogue.find(name, "openai")
    if model is None:
        raise ApiError(404, "not_found", f"The model `{name}` does not exist or you do not have access to it.")
    return model


# What a field is on either endpoint, where another type would only fail later; null counts as absent.
_SHAPES: dict[str, type] = {
    "messages": list, "tools": list, "stream": bool, "stream_options": dict, "response_format": dict, "text": dict,
    "reasoning": dict, "reasoning_effort": str, "service_tier": str, "prompt_cache_key": str,
    "prompt_cache_options": dict, "instructions": str, "metadata": dict,
}  # fmt: skip


def check_fields(body: Json, known: Iterable[str]) -> None:
    """Refuse a parameter the endpoint does not have, or one of another type."""
    for key, value in body.items():
        if key not in known:
            raise invalid(f"Unknown parameter: '{key}'.", param=key, code="unknown_parameter")
        shape = _SHAPES.get(key)
        if shape is not None and value is not None and not isinstance(value, shape):
            raise invalid(f"Invalid type for '{key}': expected {shape.__name__}.", param=key, code="invalid_type")


def effort_of(given: Any, model: Model, param: str) -> str:
    """Return the reasoning effort that holds; a model that does not reason takes none."""
    if model.thinking == "none":
        if given is not None:
            raise invalid(f"'{param}' is not supported with {model.id}.", param=param, code="unsupported_parameter")
        return "none"
    effort = model.default_effort if given is None else given
    if effort not in model.efforts:
        raise invalid(
            f"Unsupported value: '{param}' does not support {effort!r} with {model.id}. Supported values are: "
            f"{', '.join(model.efforts)}.",
            param=param,
            code="unsupported_value",
        )
    return str(effort)


def check_sampling(body: Json, model: Model, effort: str) -> None:
    """Refuse temperature and top_p where the model reasons."""
    if model.legacy or effort == "none":
        return
    for key in ("temperature", "top_p"):
        if body.get(key) is not None:
            raise invalid(
                f"Unsupported parameter: '{key}' is only supported with reasoning effort 'none' on {model.id}.",
                param=key,
                code="unsupported_parameter",
            )


def allowance(body: Json, key: str, model: Model) -> int | None:
    """Return the output limit, checked against the model's."""
    limit = body.get(key)
    if limit is None:
        return None
    if not isinstance(limit, int) or isinstance(limit, bool) or limit < 1:
        raise invalid(f"Invalid '{key}': expected an integer of at least 1.", param=key, code="invalid_type")
    if limit > model.max_output:
        raise invalid(
            f"{key} is too large: {limit}. This model supports at most {model.max_output} completion tokens.",
            param=key,
            code="invalid_value",
        )
    return limit


def tier_of(body: Json) -> str:
    """Return the tier asked for: default, flex or priority."""
    asked = body.get("service_tier") or "auto"
    if asked not in TIERS:
        raise invalid(
            f"Invalid service_tier argument: {asked!r}. Supported here: {', '.join(TIERS)}.", param="service_tier"
        )
    return TIERS[asked]


def read_tool(tool: Any, place: int) -> Tool:
    """Return a function tool; `tool` has name and parameters at its top."""
    name = tool.get("name") if isinstance(tool, dict) else None
    if not isinstance(name, str) or not name:
        raise invalid(f"Missing required parameter: 'tools[{place}].name'.", param=f"tools[{place}].name")
    parameters = tool.get("parameters")
    parameters = parameters if isinstance(parameters, dict) else {}
    if wrong := complaint(parameters):
        raise invalid(f"Invalid schema for function '{name}': {wrong}", param=f"tools[{place}].parameters")
    return Tool(name, parameters)


def forced_tool(choice: Any, tools: tuple[Tool, ...], name_of: Callable[[Json], Any]) -> str:
    """Return "" for no forced tool, "*" for any, or a name; `name_of` reads the dialect's object form."""
    if choice is None or choice in ("auto", "none"):
        return ""
    if not tools:
        raise invalid("'tool_choice' is only allowed when 'tools' are specified.", param="tool_choice")
    if choice == "required":
        return "*"
    name = name_of(choice) if isinstance(choice, dict) else None
    if name not in [tool.name for tool in tools]:
        raise invalid(f"Tool choice {name!r} not found in 'tools' parameter.", param="tool_choice")
    return str(name)


def read_schema(form: Any, param: str) -> Json:
    """Return the schema of a json_schema format; `form` has name, strict and schema at its top."""
    if not isinstance(form, dict) or not isinstance(form.get("schema"), dict):
        raise invalid(f"Missing required parameter: '{param}.schema'.", param=f"{param}.schema")
    if not isinstance(form.get("name"), str) or not form["name"]:
        raise invalid(f"Missing required parameter: '{param}.name'.", param=f"{param}.name")
    if wrong := complaint(form["schema"]):
        message = f"Invalid schema for response_format '{form['name']}': {wrong}"
        raise invalid(message, param=param, code="invalid_json_schema")
    if form.get("strict"):
        _check_strict(form["schema"], param, form["name"], "()")
    return dict(form["schema"])


def _check_strict(schema: Any, param: str, name: str, context: str) -> None:
    """Refuse what strict mode refuses: an open object, or a property that is not required."""
    if isinstance(schema, list):
        for one in schema:
            _check_strict(one, param, name, context)
        return
    if not isinstance(schema, dict):
        return
    if schema.get("type") == "object" or "properties" in schema:
        complaint = None
        if schema.get("additionalProperties") is not False:
            complaint = "'additionalProperties' is required to be supplied and to be false."
        elif missing := sorted(set(schema.get("properties") or {}) - set(schema.get("required") or [])):
            complaint = f"'required' must include every key in properties. Missing {missing[0]!r}."
        if complaint:
            raise invalid(
                f"Invalid schema for response_format '{name}': In context={context}, {complaint}",
                param=param,
                code="invalid_json_schema",
            )
    for key, inner in schema.items():
        if key in ("properties", "$defs", "definitions") and isinstance(inner, dict):
            for one, value in inner.items():
                _check_strict(value, param, name, f"('{key}', '{one}')")
        elif key in ("items", "anyOf"):
            _check_strict(inner, param, name, context)


class Prompt:
    """The prompt as one run of bytes, which tokens are counted from and prefixes are found in."""

    def __init__(self, model: Model) -> None:
        self.user_texts: list[str] = []
        self._model = model
        self._parts: list[bytes] = []
        self._size = 0
        self._attachments = 0
        self._breakpoints: list[tuple[int, int | None]] = []

    def add(self, role: str, text: str, mark: Any = None) -> None:
        """Add a text of one role; `mark` is the part's prompt_cache_breakpoint."""
        self._append(role.encode() + b"\0" + text.encode("utf-8", "surrogatepass") + b"\n")
        if role == "user":
            self.user_texts.append(text)
        if mark is not None:
            if not isinstance(mark, dict) or mark.get("mode") != "explicit":
                raise invalid("prompt_cache_breakpoint.mode must be 'explicit'.", param="prompt_cache_breakpoint")
            ttl = mark.get("ttl")
            self._breakpoints.append((self._size, _TTL_S.get(ttl) if isinstance(ttl, str) else None))

    def add_json(self, value: Any) -> None:
        """Add something that is not text: tools, schemas, calls."""
        self._append(to_json(value) + b"\n")

    def add_attachment(self, value: Any) -> None:
        """Add an image or file: a flat number of tokens, and its hash for the prefix."""
        self._attachments += tokens.ATTACHMENT_TOKENS
        self._append(sha256(to_json(value)).digest())

    def _append(self, part: bytes) -> None:
        self._parts.append(part)
        self._size += len(part)

    @property
    def tokens(self) -> int:
        """The prompt's tokens."""
        return tokens.estimate(self._size, self._model.bytes_per_token) + self._attachments

    @property
    def user_text(self) -> str:
        """All text of user messages."""
        return "\n".join(self.user_texts)

    def plan(self, body: Json, asking: Asking, cache: PromptCache) -> Plan:
        """Plan the prompt cache by the request's options."""
        model = self._model
        options = body.get("prompt_cache_options") or {}
        mode, ttl = options.get("mode", "implicit"), options.get("ttl", "30m")
        if mode not in ("implicit", "explicit") or ttl not in list(_TTL_S):
            raise invalid(
                "prompt_cache_options takes mode implicit|explicit and ttl 30m|12h.", param="prompt_cache_options"
            )
        if options and not model.charges_writes:
            raise invalid(
                f"prompt_cache_options is not supported with {model.id}.", param="prompt_cache_options",
                code="unsupported_parameter",
            )  # fmt: skip
        if self.tokens < model.min_cache_tokens or (mode == "explicit" and not self._breakpoints):
            return Plan()
        ttl_s = _TTL_S[ttl] if model.charges_writes else _FREE_TTL_S
        return cache.plan_stream(
            f"{asking.account}/{model.id}/{body.get('prompt_cache_key') or ''}",
            b"".join(self._parts),
            bytes_per_token=model.bytes_per_token,
            minimum=model.min_cache_tokens,
            now_ns=asking.now_ns,
            ttl_s=ttl_s,
            implicit=mode == "implicit",
            breakpoints=[(offset, mark or ttl_s) for offset, mark in self._breakpoints],
            charged=model.charges_writes,
        )


def check_context(total: int, model: Model) -> None:
    """Refuse a prompt that does not fit the model."""
    if total > model.context:
        raise invalid(
            f"This model's maximum context length is {model.context} tokens. However, your messages resulted in "
            f"{total} tokens. Please reduce the length of the messages.",
            param="messages",
            code="context_length_exceeded",
        )
