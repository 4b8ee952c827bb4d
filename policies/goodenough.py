"""Answer -> accept it, escalate to the next model, or give up. Checks are shaped by the task and trust no self-report.

- Every answer: whole, not refused (by stop reason or in words), not empty.
- Schema: parses and fits. Where the plan says `grounded` (extraction): every value stands in the source (grounding.py), and no
  field is filled with a placeholder.
- Labels: one of them. A local model's labels and copied values (copying.py) stand only through their gate (localgate.py).
- Where the plan says `compare`: the first answer that two models give alike, else the last model's.

A *hard* problem makes an answer useless: it never becomes a result. A *soft* one (not in the source, a placeholder) is a reason to
ask the next model; of the last one it is accepted with the reason told, since the document may simply say so.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from jsonschema import Draft202012Validator, validators
from jsonschema.exceptions import SchemaError, ValidationError
from referencing import Registry
from referencing.exceptions import Unresolvable

from policies import patterns
from policies.agreement import value_forms
from policies.evaluate.answers import normalise
from policies.fallback import FITS, Accept, Decision, Escalate, GiveUp, History
from policies.grounding import Source, placeholder, ungrounded
from policies.localgate import AUDIT_SHARE, SHUT, Gate

_REFUSAL = re.compile(
    r"\W*(?:i['’]?m (?:sorry|afraid)|i am (?:sorry|afraid|unable)|sorry|unfortunately|i apologi[sz]e|as an ai)\b.{0,120}"
    r"\b(?:can(?:no|['’])t|can not|unable|not able|won['’]t|will not|don['’]t have|do not have)\b"
    r"|\W*i (?:can(?:no|['’])t|can not|won['’]t|am unable to|am not able to) (?:help|assist|do|comply|provide|answer|fulfil)",
    re.IGNORECASE | re.DOTALL,
)
_LONGEST_REFUSAL = 600
"""A longer text that begins with an apology does say something."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What the answer must be: JSON of a schema, one of the labels, or free text.

    Attributes:
        json_schema, labels: As the job says.
        as_is: A client that speaks a provider's dialect: it gets a cut or refused answer as the provider would have
            given it. Another model is asked only where the job has one left.
        source: The text that every value must stand in; None = values are not looked up.
        compare: Two models must give the same answer.
    """

    json_schema: Mapping[str, Any] | None = None
    labels: tuple[str, ...] = ()
    as_is: bool = False
    source: str | None = None
    compare: bool = False


@dataclass(frozen=True, slots=True)
class Given:
    """What came back.

    Attributes:
        text: The answer.
        stop: `complete`, `truncated`, `refused` or `tool_use`.
        confidence: Log-probability of a local answer, None where there is none.
        is_local: Whether a local model gave it.
        label_logprobs: Of each label, from a local model.
        value_logprobs: Of each value that a local model copied from the source.
        earlier: What earlier answers to this job came to (`fingerprint`), for comparison.
    """

    text: str
    stop: str
    confidence: float | None = None
    is_local: bool = False
    label_logprobs: Mapping[str, float] = field(default_factory=dict)
    value_logprobs: Mapping[str, float] = field(default_factory=dict)
    earlier: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LocalCheck:
    """What decides about a local label, or about copied values.

    Attributes:
        gate: Of this intent, prompt version and model file.
        prompt: The prompt version, and `model` the file's hash: kept with the answer for calibration.
        draw: Uniformly random, 0 <= draw < 1: which jobs of an open gate are audited.
    """

    gate: Gate = SHUT
    prompt: str = ""
    model: str = ""
    draw: float = 1.0


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
                named = [value] if key == "pattern" and isinstance(value, str) else []
                if key == "patternProperties" and isinstance(value, dict):
                    named = list(value)
                for pattern in named:
                    why = patterns.problem(pattern)
                    if why is not None:
                        raise ValueError(f"has the pattern {_shorten(pattern)}, which {why}")
                stack.append(value)
        elif isinstance(node, list):
            stack.extend(node)


def _match(pattern: str, text: str) -> bool:
    """Search, if that ends in time.

    Raises:
        re.error: Nobody knows whether it fits.
    """
    why = patterns.problem(pattern)
    if why is None and len(text) > patterns.MOST_TEXT and not patterns.takes_long_texts(pattern):
        why = f"is not tried on {len(text):,} characters"
    if why is not None:
        raise re.error(f"the pattern {_shorten(pattern)} {why}")
    return re.search(pattern, text) is not None


def _pattern(_: Any, pattern: str, instance: object, __: Any) -> Iterator[ValidationError]:
    if isinstance(instance, str) and not _match(pattern, instance):
        yield ValidationError(f"{_shorten(instance)} does not match {_shorten(pattern)}")


def _pattern_properties(
    validator: Any, found: Mapping[str, Any], instance: object, _: Any
) -> Iterator[ValidationError]:
    if isinstance(instance, dict):
        for pattern, schema in found.items():
            for key, value in instance.items():
                if _match(pattern, key):
                    yield from validator.descend(value, schema, path=key, schema_path=pattern)


_Checker = validators.extend(  # type: ignore[no-untyped-call]  # its stubs leave it out
    Draft202012Validator, {"pattern": _pattern, "patternProperties": _pattern_properties}
)


def judge(asked: Asked, given: Given, history: History, local: LocalCheck | None = None) -> Decision:
    """Decide whether an answer becomes the result.

    Args:
        local: For labels of a local model.

    Returns:
        Accept with the parsed data; Escalate while a candidate and budget are left; else GiveUp with what is wrong.
    """
    try:
        problem, data = _problem(asked, given)
    except (re.error, Unresolvable) as exc:  # another model's answer could not be checked either
        return GiveUp("bad_schema", f"json_schema cannot be checked, so the answer was not used: {exc}")
    if problem is None:
        return _judge_whole(asked, given, history, data, local)
    if asked.as_is and not _may_escalate(history):
        return Accept(data, f"as the model gave it: {problem}")
    if history.streamed:
        return GiveUp("weak_answer", f"{history.lane}: {problem}; a part was already streamed")
    if _may_escalate(history):
        return _escalate(history, problem)
    return GiveUp("weak_answer", f"{history.lane}: {problem}")


def fingerprint(text: str) -> str:
    """What an answer says, in a form that equal answers share; no answer can be read from it."""
    return hashlib.sha256((normalise(text) or "").encode()).hexdigest()[:16]


def _judge_whole(asked: Asked, given: Given, history: History, data: object, local: LocalCheck | None) -> Decision:
    if given.is_local and asked.labels:
        return _judge_label(given, history, str(data), local or LocalCheck())
    if given.is_local and given.value_logprobs and isinstance(data, dict):
        return _judge_copied(given, history, data, local or LocalCheck())
    problem = _soft_problem(asked, data)
    if problem is not None:
        if _may_escalate(history):
            return _escalate(history, problem)
        return Accept(data, f"{problem}, and no other model may be asked")
    if asked.compare:
        return _compare(given, history, data)
    return Accept(data)


def _may_escalate(history: History) -> bool:
    return not history.streamed and history.other_model is not None and history.used < history.max_attempts


def _escalate(history: History, problem: str, detail: Mapping[str, Any] | None = None) -> Escalate:
    index = history.other_model
    assert index is not None  # _may_escalate has looked
    following = history.route[index]
    return Escalate(index, f"{history.lane}: {problem} -> {following.model}", detail)


def _soft_problem(asked: Asked, data: object) -> str | None:
    if asked.source is None or asked.json_schema is None:
        return None
    place = placeholder(data, asked.json_schema)
    if place is not None:
        return f"{place} is only a placeholder"
    found = ungrounded(data, asked.json_schema, Source(asked.source))
    return None if found is None else f"{found[0]} is not in the source: {_shorten(str(found[1]))}"


def _compare(given: Given, history: History, data: object) -> Decision:
    """Agreement of two models on the normal form of the answer; without it the last model of the chain decides."""
    said = fingerprint(given.text)
    if said in given.earlier:
        return Accept(data, "two models give the same answer")
    if _may_escalate(history):
        why = "no other model has said the same" if given.earlier else "a second model is to say the same"
        return _escalate(history, why, {"said": said})
    return Accept(data, "the models differ: the last of the chain decides" if given.earlier else FITS)


def _judge_label(given: Given, history: History, label: str, local: LocalCheck) -> Decision:
    logprobs = given.label_logprobs or {label: 0.0}
    label, share = local.gate.read(logprobs)
    record = {"logprobs": {name: round(value, 4) for name, value in logprobs.items()}, "label": label}
    return _by_gate(
        history, local, share, f"{label!r} (p = {share:.2f}", record, Accept(label, f"p = {share:.2f}", label)
    )


def _judge_copied(given: Given, history: History, data: Mapping[str, Any], local: LocalCheck) -> Decision:
    """Copied values stand in the source whatever they are; only their probability says whether they are the right ones."""
    score = sum(given.value_logprobs.values())
    values = {name: fingerprint(form) for name, form in value_forms(data).items()}
    record = {"score": round(score, 4), "values": values, "fields": len(given.value_logprobs)}
    said = f"the sum of log-probabilities is {score:.2f}"
    return _by_gate(history, local, round(score, 4), f"its values ({said}", record, Accept(data, said))


def _by_gate(
    history: History, local: LocalCheck, sure: float, what: str, record: Mapping[str, Any], kept: Accept
) -> Decision:
    """Whether a local answer stands.

    Args:
        sure: What the gate's threshold is about.
        what: The answer and how sure it is, in words, its bracket still open.
        record: What is compared with the paid answer; no text may be in it but labels.
        kept: The decision where it does, without the gate's reason.
    """
    gate = local.gate
    if not _may_escalate(history):
        return replace(kept, reason=f"{kept.reason} ({gate.describe()}), and no other model may be asked")
    detail = {"local": {**record, "prompt": local.prompt, "model": local.model}}
    if gate.threshold is None:
        return _escalate(history, f"in shadow ({gate.describe()})", detail)
    paid = history.paid_model
    if paid is not None and local.draw < AUDIT_SHARE:
        return Escalate(paid, f"{history.lane}: {what}) is audited -> {history.route[paid].model}", detail)
    if sure < gate.threshold:
        return _escalate(history, f"unsure of {what}, kept from {gate.threshold:.2f})")
    return replace(kept, reason=f"{kept.reason}: such answers are {gate.describe()}")


def _problem(asked: Asked, given: Given) -> tuple[str | None, object]:
    """What makes the answer useless (None = nothing) and its parsed data."""
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
    if len(given.text) <= _LONGEST_REFUSAL and _REFUSAL.match(given.text):
        return f"refuses in words: {_shorten(given.text)}", None
    return None, None


def _label_problem(labels: tuple[str, ...], given: Given) -> tuple[str | None, object]:
    answer = given.text.strip().strip("\"'.").casefold()
    label = next((candidate for candidate in labels if candidate.casefold() == answer), None)
    if label is None:
        return f"{_shorten(given.text)} is none of the labels", None
    return None, label


def _schema_problem(schema: Mapping[str, Any], text: str) -> tuple[str | None, object]:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        return f"{_shorten(text)} is not JSON", None
    try:
        # With a registry of its own a validator never fetches what a schema refers to.
        _Checker(schema, registry=Registry()).validate(data)
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
