"""Answer -> accept it, escalate to the next model, or give up. Only checks that cost nothing and trust no self-report."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, ValidationError
from referencing.exceptions import Unresolvable

from policies.fallback import Accept, Decision, Escalate, GiveUp, History

LOCAL_CONFIDENCE = 0.9
"""A local label is kept when its share of the labels' probability is at least this. Not calibrated: see docs/routing.md."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What the answer must be: JSON of a schema, one of the labels, or free text.

    Attributes:
        json_schema, labels: As the job says.
        as_is: A client that speaks a provider's dialect: it gets a cut or refused answer as the provider would have
            given it. Another model is asked only where the job has one left.
    """

    json_schema: Mapping[str, Any] | None = None
    labels: tuple[str, ...] = ()
    as_is: bool = False


@dataclass(frozen=True, slots=True)
class Given:
    """What came back.

    Attributes:
        text: The answer.
        stop: `complete`, `truncated`, `refused` or `tool_use`.
        confidence: Log-probability of a local answer, None where there is none.
        is_local: Whether a local model gave it.
    """

    text: str
    stop: str
    confidence: float | None = None
    is_local: bool = False


def check_schema(schema: Mapping[str, Any]) -> None:
    """Raise ValueError with one line when `schema` is not a JSON schema, or refers to anything outside itself."""
    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as exc:
        raise ValueError(f"is not a JSON schema: {exc.message} at {_path(exc.absolute_path)}") from None
    stack: list[Any] = [schema]
    while stack:
        node = stack.pop()
        if isinstance(node, dict):
            for key, value in node.items():
                if key in ("$ref", "$dynamicRef") and isinstance(value, str) and not value.startswith("#"):
                    raise ValueError(f"refers to {value!r}; only references inside the schema (#...) are followed")
                stack.append(value)
        elif isinstance(node, list):
            stack.extend(node)


def judge(asked: Asked, given: Given, history: History) -> Decision:
    """Decide whether an answer becomes the result.

    Returns:
        Accept with the parsed data; Escalate while a candidate and budget are left; else GiveUp with what is wrong.
    """
    try:
        problem, data = _problem(asked, given)
    except (re.error, Unresolvable) as exc:  # another model's answer could not be checked either
        return GiveUp("bad_schema", f"json_schema cannot be checked, so the answer was not used: {exc}")
    if problem is None:
        return Accept(data)
    if asked.as_is and (history.streamed or not history.has_next or history.used >= history.max_attempts):
        return Accept(data, f"as the model gave it: {problem}")
    if history.streamed:
        return GiveUp("weak_answer", f"{history.lane}: {problem}; a part was already streamed")
    if history.has_next and history.used < history.max_attempts:
        following = history.route[history.index + 1]
        return Escalate(history.index + 1, f"{history.lane}: {problem} -> {following.model}")
    if given.is_local and problem.startswith("unsure"):
        return Accept(data, f"{problem}, and no other model may be asked")
    return GiveUp("weak_answer", f"{history.lane}: {problem}")


def _problem(asked: Asked, given: Given) -> tuple[str | None, object]:
    """What is wrong with the answer (None = nothing) and its parsed data."""
    if given.stop == "refused":
        return "refused to answer", None
    if asked.as_is and given.stop in ("truncated", "tool_use"):
        return None, None
    if given.stop == "truncated":
        return "the answer was cut at max_output_tokens", None
    if asked.labels:
        return _label_problem(asked.labels, given)
    if asked.json_schema is not None:
        return _schema_problem(asked.json_schema, given.text)
    if not given.text.strip():
        return "the answer is empty", None
    return None, None


def _label_problem(labels: tuple[str, ...], given: Given) -> tuple[str | None, object]:
    answer = given.text.strip().strip("\"'.").casefold()
    label = next((candidate for candidate in labels if candidate.casefold() == answer), None)
    if label is None:
        return f"{_shorten(given.text)} is none of the labels", None
    if given.is_local and given.confidence is not None and math.exp(given.confidence) < LOCAL_CONFIDENCE:
        return f"unsure of {label!r} (p = {math.exp(given.confidence):.2f})", label
    return None, label


def _schema_problem(schema: Mapping[str, Any], text: str) -> tuple[str | None, object]:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        return f"{_shorten(text)} is not JSON", None
    try:
        Draft202012Validator(schema).validate(data)
    except ValidationError as exc:
        return f"does not fit the schema at {_path(exc.absolute_path)}: {_shorten(exc.message)}", data
    except RecursionError:
        return "is nested too deeply to be checked", data
    return None, data


def _path(parts: Any) -> str:
    return "/" + "/".join(str(part) for part in parts)


def _shorten(text: str, limit: int = 60) -> str:
    """A short quote of untrusted text for a reason: printable, one line."""
    line = " ".join(text.split())
    return repr(line if len(line) <= limit else line[: limit - 1] + "…")
