"""Bring the answers of different models into one form, so that agreement can be seen without a judge.

Two models agree when their normal forms are equal: 14, `$14.00` and `14` are one number, `(b)` and `B.` one option, `{'a': 1,
'b': 2}` one literal whatever the order of its keys, `f(x=1, y=2)` one call. Free text is compared as text with its blanks
collapsed. Nothing here knows a model, a data set or a label.
"""

from __future__ import annotations

import ast
import json
import math
import re

NOTHING = ""  # normal form of an answer that holds none: blank, null, "n/a"

_BLANK_WORDS = frozenset({"", "none", "null", "n/a", "na", "nan", "unknown"})
_OPTION = re.compile(r"\(?([A-Za-z])\)?[.:]?")
_NUMBER = re.compile(r"([-+]?(?:\d[\d,]*\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*(%|[A-Za-z°\s]{0,24})")
_FRACTION = re.compile(r"(-?)\\[dt]?frac\{(-?\d+)\}\{(\d+)\}|(-?)(\d+)\s*/\s*(\d+)")
_TEX_DRESS = re.compile(r"\\(?:text|mathrm|mbox)\{([^{}]*)\}")
_TEX_NOISE = re.compile(r"\\(?:left|right|displaystyle|[!,;$])|\^\\circ|\^\{\\circ\}")
_SPACE = re.compile(r"\s+")
_WRAPPERS = (
    ("\\boxed{", "}"),
    ("\\(", "\\)"),
    ("\\[", "\\]"),
    ("$", "$"),
    ("```json", "```"),
    ("```", "```"),
    ("`", "`"),
)
# Parsing is quadratic in nesting and pointless for an essay; longer answers are compared as text.
_LONGEST_LITERAL = 4_000
SHAPE_SIZE = 7


def normalise(answer: str | None) -> str | None:
    """Return the comparable form of an answer.

    Args:
        answer: What the model gave, or None when no answer was recorded.

    Returns:
        None for None (nothing can be compared), `NOTHING` for an answer without content, else a string that starts with its
        kind: `n:` number, `o:` option letter, `l:` literal, JSON value or call, `t:` text.
    """
    if answer is None:
        return None
    text = _unwrap(answer.strip())
    if text.lower() in _BLANK_WORDS:
        return NOTHING
    if len(text) >= 2 and text[0] == text[-1] and text[0] in "'\"":
        inner = _literal(text)
        if isinstance(inner, str):
            # An empty string in quotes is an answer; the same without quotes is none.
            return _of_text(inner) if inner.strip() else "t:"
    return _of_text(text)


def shape(answer: str | None, normal: str | None, prompt: str) -> tuple[float, ...]:
    """Return `SHAPE_SIZE` numbers that describe an answer apart from its truth: kind, length, size, place in the prompt.

    A paid answer tells more than its letter: an odd kind, an extreme number or a value which the source does not contain is
    more often wrong. All zero when no answer was recorded.
    """
    if answer is None or normal is None:
        return (0.0,) * SHAPE_SIZE
    kind = normal[:1]
    value = 0.0
    if kind == "n":
        value = float(normal[2:])
    stripped = answer.strip()
    return (
        float("nolt".find(kind) + 1) if kind else 0.0,
        math.log1p(len(stripped)),
        math.copysign(math.log1p(abs(value)), value),
        float(kind == "n" and value == int(value)),
        float(ord(normal[2]) - ord("A") + 1) if kind == "o" else 0.0,
        float(bool(stripped) and stripped in prompt),
        float(normal == NOTHING),
    )


def _of_text(text: str) -> str:
    plain = _TEX_NOISE.sub("", _TEX_DRESS.sub(r"\1", text)).strip(" .$£€\t\n")
    if option := _OPTION.fullmatch(text):
        return "o:" + option.group(1).upper()
    if number := _NUMBER.fullmatch(plain):
        value = float(number.group(1).replace(",", ""))
        if math.isfinite(value):
            return f"n:{value:.6g}"
    if fraction := _FRACTION.fullmatch(plain):
        sign = -1.0 if (fraction.group(1) or fraction.group(4)) else 1.0
        top, bottom = float(fraction.group(2) or fraction.group(5)), float(fraction.group(3) or fraction.group(6))
        if bottom:
            return f"n:{sign * top / bottom:.6g}"
    if len(text) <= _LONGEST_LITERAL and (structure := _structure(text)):
        return structure
    return "t:" + _SPACE.sub(" ", plain).strip(" .'\"").casefold()


def _structure(text: str) -> str | None:
    """Return the canonical text of a JSON value, a Python literal or a call with plain arguments; None for anything else."""
    if text[:1] in "[{":
        try:
            return "l:" + _canonical(json.loads(text))
        except (ValueError, RecursionError):
            pass
    try:
        tree = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    if isinstance(tree, ast.Name):
        return None  # a bare word is text
    try:
        return "l:" + _canonical(_plain(tree))
    except (ValueError, TypeError, RecursionError):
        return None


def _plain(node: ast.expr) -> object:
    """Turn a syntax tree into plain values; raise ValueError where it would have to run something."""
    if isinstance(node, ast.Call):
        if any(keyword.arg is None for keyword in node.keywords):
            raise ValueError("a call with ** has no plain form")
        keywords = {str(keyword.arg): _plain(keyword.value) for keyword in node.keywords}
        return {"call": ast.unparse(node.func), "args": [_plain(arg) for arg in node.args], "keywords": keywords}
    if isinstance(node, ast.List | ast.Tuple):
        values = [_plain(item) for item in node.elts]
        return values if isinstance(node, ast.List) else ("tuple", *values)
    return ast.literal_eval(node)


def _canonical(value: object) -> str:
    if isinstance(value, dict):
        pairs = sorted((_canonical(key), _canonical(item)) for key, item in value.items())
        return "{" + ",".join(f"{key}:{item}" for key, item in pairs) + "}"
    if isinstance(value, set | frozenset):
        return "<" + ",".join(sorted(_canonical(item) for item in value)) + ">"
    if isinstance(value, list | tuple):
        opening, closing = "[]" if isinstance(value, list) else "()"
        return opening + ",".join(_canonical(item) for item in value) + closing
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, int | float):
        return f"{value:.6g}" if abs(value) < 1e300 else repr(value)
    return repr(value)


def _literal(text: str) -> object:
    if len(text) > _LONGEST_LITERAL:
        return None
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _unwrap(text: str) -> str:
    for opening, closing in _WRAPPERS:
        if len(text) > len(opening) + len(closing) and text.startswith(opening) and text.endswith(closing):
            inner = text[len(opening) : len(text) - len(closing)]
            if opening != "$" or "$" not in inner:
                text = inner.strip()
    return text
