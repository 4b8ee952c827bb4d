"""What a client tells Waybill beside its request: headers `x-waybill-*`, or the same names in `waybill` of the body.

    extra_body={"waybill": {"intent": "extraction", "quality": 0.97}}    # either SDK
    metadata={"waybill_intent": "extraction"}                            # Chat and Responses

A header wins over the body. An unknown option is a 400: a misspelt deadline must not be a request without one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from producers.gateway.errors import Kind, Refusal

PREFIX: Final = "x-waybill-"
DEADLINE_S: Final = 600.0
"""Both SDKs give up after this, where nobody says otherwise: an answer that comes later has no reader."""
_NAMES: Final = ("intent", "quality", "deadline", "idempotency-key", "cache", "local-only", "restart", "drop", "label")
_TRUE, _FALSE = ("true", "1", "yes", "on"), ("false", "0", "no", "off")


@dataclass(frozen=True, slots=True)
class Options:
    """Waybill's own options of one request.

    Attributes:
        intent: For `model: auto` and for accounting.
        quality: Share of the flagship's quality to keep; None = as the policy says.
        deadline_s: Seconds from now.
        idempotency_key: Same key = same job.
        cache: What the client says about Waybill's answer cache; None = nothing.
        local_only: The text must not leave this machine's models.
        restart: A broken stream may begin anew on another model (an event says so).
        drop: Parameters that may be left out where a lane does not take them.
        labels: The tenant's own words, kept with the job.
    """

    intent: str | None = None
    quality: float | None = None
    deadline_s: float = DEADLINE_S
    idempotency_key: str | None = None
    cache: str | None = None
    local_only: bool = False
    restart: bool = False
    drop: tuple[str, ...] = ()
    labels: Mapping[str, str] | None = None


def take_options(headers: Mapping[str, str], body: dict[str, Any]) -> Options:
    """The options of a request; what belongs to Waybill is taken out of `body`.

    Raises:
        Refusal: An option is unknown or has no such value.
    """
    given: dict[str, str] = {}
    labels: dict[str, str] = {}
    own = body.pop("waybill", None)
    if own is not None:
        if not isinstance(own, dict):
            raise Refusal(Kind.INVALID, "must be an object", param="waybill")
        for name, value in own.items():
            if name == "labels" and isinstance(value, dict):
                labels |= {str(key): str(word) for key, word in value.items()}
            elif value is not None:
                given[_known(name.replace("_", "-"), f"waybill.{name}")] = _word(value)
    metadata = body.get("metadata")
    if isinstance(metadata, dict):
        for name in [name for name in metadata if name.startswith("waybill_")]:
            word = _word(metadata.pop(name))
            given[_known(name.removeprefix("waybill_").replace("_", "-"), f"metadata.{name}")] = word
        if not metadata:
            del body["metadata"]
        elif all(isinstance(word, str) for word in metadata.values()):
            labels |= metadata
    for name, value in headers.items():
        if name.startswith(PREFIX):
            given[_known(name.removeprefix(PREFIX), name)] = value
        elif name == "idempotency-key":
            given.setdefault("idempotency-key", value)
    for pair in filter(None, given.get("label", "").split(",")):
        key, _, word = pair.partition("=")
        labels[key.strip()] = word.strip()
    return Options(
        intent=given.get("intent"),
        quality=_share(given.get("quality")),
        deadline_s=_seconds(given.get("deadline")),
        idempotency_key=given.get("idempotency-key"),
        cache=given.get("cache"),
        local_only=_flag("local-only", given),
        restart=_flag("restart", given),
        drop=tuple(word.strip() for word in given.get("drop", "").split(",") if word.strip()),
        labels={key[:64]: word[:512] for key, word in list(labels.items())[:32]} or None,
    )


def _known(name: str, where: str) -> str:
    if name not in _NAMES:
        raise Refusal(Kind.INVALID, f"is no option of Waybill; there are: {', '.join(_NAMES)}", param=where)
    return name


def _word(value: object) -> str:
    if isinstance(value, list):
        return ",".join(str(item) for item in value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def _share(value: str | None) -> float | None:
    if value is None:
        return None
    try:
        share = float(value)
    except ValueError:
        share = -1.0
    if not 0 < share <= 1:
        raise Refusal(Kind.INVALID, "must be a share above 0 and up to 1, such as 0.97", param="x-waybill-quality")
    return share


def _seconds(value: str | None) -> float:
    if value is None:
        return DEADLINE_S
    try:
        seconds = float(value)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds <= 30 * 86400:
        raise Refusal(Kind.INVALID, "must be seconds, more than 0 and at most 30 days", param="x-waybill-deadline")
    return seconds


def _flag(name: str, given: Mapping[str, str]) -> bool:
    value = given.get(name, "false").lower()
    if value not in (*_TRUE, *_FALSE):
        raise Refusal(Kind.INVALID, f"must be true or false, not {value!r}", param=f"{PREFIX}{name}")
    return value in _TRUE
