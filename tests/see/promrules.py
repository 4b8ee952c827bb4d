"""Evaluates our alert rules over two looks at the metrics: the part of PromQL that they use, and nothing more.

`increase(x[..])` is the later look minus the earlier one. test_alerts.py compares it with promtool where that is installed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

Labels = frozenset[tuple[str, str]]
Vector = dict[Labels, float]

_TOKEN = re.compile(r"\s*(?:(\d+(?:\.\d+)?)|([A-Za-z_:][\w:]*)|(\{[^}]*\}|\[\w+\]|==|!=|>=|<=|[><()*,-]))")
_MATCHER = re.compile(r'(\w+)(=~|!=|=)"([^"]*)"')


def read(text: str) -> dict[str, Vector]:
    """Series by name, as Prometheus would store them."""
    found: dict[str, Vector] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, {})[frozenset(sample.labels.items())] = sample.value
    return found


@dataclass
class Looks:
    """Two looks at the metrics, and the time of the later one."""

    before: Mapping[str, Vector]
    after: Mapping[str, Vector]
    now: float

    def fires(self, expr: str) -> Vector:
        """The series for which the expression holds."""
        tokens = [next(group for group in match.groups() if group) for match in _TOKEN.finditer(expr)]
        assert "".join(tokens) == re.sub(r"\s+", "", expr), f"cannot read {expr}"
        value, rest = self._either(tokens)
        assert not rest, f"cannot read {rest} in {expr}"
        assert isinstance(value, dict)
        return value

    def _either(self, tokens: list[str]) -> tuple[Any, list[str]]:
        value, tokens = self._both(tokens)
        while tokens and tokens[0] == "or":
            more, tokens = self._both(tokens[1:])
            value = {**more, **value}
        return value, tokens

    def _both(self, tokens: list[str]) -> tuple[Any, list[str]]:
        value, tokens = self._compared(tokens)
        while tokens and tokens[0] == "and":
            more, tokens = self._compared(tokens[1:])
            value = {labels: v for labels, v in value.items() if labels in more}
        return value, tokens

    def _compared(self, tokens: list[str]) -> tuple[Any, list[str]]:
        left, tokens = self._sum(tokens)
        holds: dict[str, Callable[[float, float], bool]] = {
            ">": lambda a, b: a > b,
            "<": lambda a, b: a < b,
            "==": lambda a, b: a == b,
        }
        if not tokens or tokens[0] not in holds:
            return left, tokens
        holds_here = holds[tokens[0]]
        right, tokens = self._sum(tokens[1:])
        other = (lambda _: right) if isinstance(right, float) else right.get
        return {k: v for k, v in left.items() if other(k) is not None and holds_here(v, other(k))}, tokens

    def _sum(self, tokens: list[str]) -> tuple[Any, list[str]]:
        value, tokens = self._one(tokens)
        while tokens and tokens[0] in ("-", "*"):
            sign = tokens[0]
            more, tokens = self._one(tokens[1:])
            left, right = value, more

            def apply(a: float, b: float, sign: str = sign) -> float:
                return a - b if sign == "-" else a * b

            if isinstance(left, float) and isinstance(right, float):
                value = apply(left, right)
            elif isinstance(left, float):
                value = {k: apply(left, v) for k, v in right.items()}
            else:
                value = {k: apply(v, right) for k, v in left.items()}
        return value, tokens

    def _one(self, tokens: list[str]) -> tuple[Any, list[str]]:
        first, tokens = tokens[0], tokens[1:]
        if first[0].isdigit():
            return float(first), tokens
        if first == "time":
            return self.now, tokens[2:]
        if first in ("sum", "max"):
            by: tuple[str, ...] = ()
            if tokens[0] == "by":
                end = tokens.index(")")
                by, tokens = tuple(t for t in tokens[2:end] if t != ","), tokens[end + 1 :]
            value, tokens = self._either(tokens[1:])
            groups: dict[Labels, list[float]] = {}
            for labels, v in value.items():
                groups.setdefault(frozenset((k, x) for k, x in labels if k in by), []).append(v)
            fold = sum if first == "sum" else max
            return {labels: float(fold(values)) for labels, values in groups.items()}, tokens[1:]
        if first == "absent":
            value, tokens = self._either(tokens[1:])
            return ({} if value else {frozenset(): 1.0}), tokens[1:]
        if first == "increase":
            name, tokens = tokens[1], tokens[2:]
            assert tokens[0].startswith("["), tokens
            now, then = self.after.get(name, {}), self.before.get(name, {})
            return {k: v - then[k] for k, v in now.items() if k in then}, tokens[2:]
        vector = self.after.get(first, {})
        if tokens and tokens[0].startswith("{"):
            matchers = _MATCHER.findall(tokens[0])
            vector = {k: v for k, v in vector.items() if all(_matches(dict(k), m) for m in matchers)}
            tokens = tokens[1:]
        return vector, tokens


def _matches(labels: Mapping[str, str], matcher: tuple[str, str, str]) -> bool:
    name, kind, wanted = matcher
    has = labels.get(name, "")
    if kind == "=~":
        return re.fullmatch(wanted, has) is not None
    return (has == wanted) == (kind == "=")
