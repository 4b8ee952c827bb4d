"""Which regular expressions of a JSON schema may be run: those whose time does not explode with the text.

Python's matcher tries again and again: `(a+)+$` takes 2^n steps on n letters, in a worker that then answers nobody. The
rules below refuse more than they must, never less: what they let through takes at most n^2 steps.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

from re import _constants as _ops  # type: ignore[attr-defined]  # isort: skip  # the parser's own op codes; there is no public parser
from re import _parser  # type: ignore[attr-defined]  # isort: skip

MOST_CHARS: Final = 500
"""Of a pattern."""
MOST_TEXT: Final = 2000
"""Characters of a text that is matched by a pattern with two open repeats: n^2 is then 4 million steps, 50 ms."""
_MANY: Final = 20
"""A repeat of at most this many is bounded; it still counts as one when it stands in another."""


def problem(pattern: str) -> str | None:
    """Why a pattern may not be run; None when it may."""
    if len(pattern) > MOST_CHARS:
        return f"has {len(pattern):,} characters; at most {MOST_CHARS} are taken"
    try:
        parsed = _parser.parse(pattern)
    except (re.error, RecursionError, OverflowError):
        return "is not a regular expression that Python knows"
    if _explodes(parsed) or _open_repeats(parsed) > 2:
        return "may take a very long time on some texts; write it without repeats inside repeats"
    return None


def takes_long_texts(pattern: str) -> bool:
    """Whether a pattern that may be run takes time in proportion to the text."""
    return _open_repeats(_parser.parse(pattern)) < 2


def _children(item: Any) -> list[Any]:
    """The patterns inside an item."""
    op, value = item
    if op in (_ops.MAX_REPEAT, _ops.MIN_REPEAT, _ops.POSSESSIVE_REPEAT):
        return [value[2]]
    if op is _ops.SUBPATTERN:
        return [value[3]]
    if op is _ops.BRANCH:
        return list(value[1])
    if op in (_ops.ASSERT, _ops.ASSERT_NOT):
        return [value[1]]
    if op is _ops.ATOMIC_GROUP:
        return [value]
    if op is _ops.GROUPREF_EXISTS:
        return [part for part in value[1:] if part is not None]
    return []


def _is_repeat(item: Any) -> bool:
    """Whether how often the item stands there is left open."""
    op, value = item
    return op in (_ops.MAX_REPEAT, _ops.MIN_REPEAT) and value[0] != value[1]


def _open_repeats(items: Any) -> int:
    """Repeats without a small upper bound. What is repeated inside one has one way to match, so it adds nothing."""
    return sum(
        1 if _is_repeat(item) and item[1][1] > _MANY else sum(_open_repeats(child) for child in _children(item))
        for item in items
    )


def _explodes(items: Any) -> bool:
    for item in items:
        op, value = item
        if op in (_ops.GROUPREF, _ops.GROUPREF_EXISTS):
            return True
        if op in (_ops.MAX_REPEAT, _ops.MIN_REPEAT) and value[1] > 1 and not _is_steady(_flat(value[2])):
            return True
        if any(_explodes(child) for child in _children(item)):
            return True
    return False


def _flat(items: Any) -> list[Any]:
    """The items with groups taken apart."""
    found: list[Any] = []
    for item in items:
        if item[0] is _ops.SUBPATTERN:
            found += _flat(item[1][3])
        else:
            found.append(item)
    return found


def _is_steady(body: Sequence[Any]) -> bool:
    """Whether a repeated body can be matched in one way only: fixed, or marked by a character that its repeats cannot be."""
    inner = [item for item in body if _is_repeat(item)]
    branches = [item for item in body if item[0] is _ops.BRANCH]
    if branches:
        return not inner and len(body) == 1 and _are_distinct(branches[0][1][1])
    if not inner:
        return not any(_children(item) and not _is_steady(_flat(child)) for item in body for child in _children(item))
    marks = [item[1] for item in (body[0], body[-1]) if item[0] is _ops.LITERAL]
    simple = all(len(item[1][2]) == 1 and not _children(item[1][2][0]) for item in inner)
    return simple and len(inner) == 1 and any(not _matches(inner[0][1][2][0], mark) for mark in marks)


def _are_distinct(alternatives: Sequence[Any]) -> bool:
    """Whether the first character decides between alternatives of fixed length."""
    firsts = []
    for alternative in alternatives:
        flat = _flat(alternative)
        if not flat or any(item[0] not in (_ops.LITERAL, _ops.IN) for item in flat) or flat[0][0] is not _ops.LITERAL:
            return False
        firsts.append(flat[0][1])
    return len(set(firsts)) == len(firsts)


def _matches(item: Any, char: int) -> bool:
    """Whether a single-character item can be this character; when in doubt it can."""
    op, value = item
    if op is _ops.LITERAL:
        return bool(value == char)
    if op is _ops.NOT_LITERAL:
        return bool(value != char)
    if op is not _ops.IN:
        return True
    negated = bool(value) and value[0][0] is _ops.NEGATE
    hit = False
    for kind, what in value[1 if negated else 0 :]:
        if kind is _ops.LITERAL:
            hit = hit or what == char
        elif kind is _ops.RANGE:
            hit = hit or what[0] <= char <= what[1]
        elif kind is _ops.CATEGORY:
            name = str(what)
            of_kind = {
                "DIGIT": chr(char).isdigit(),
                "SPACE": chr(char).isspace(),
                "WORD": chr(char).isalnum() or char == 0x5F,
            }
            found = next((is_so for word, is_so in of_kind.items() if name.endswith(word)), True)
            hit = hit or (found != ("_NOT_" in name))
        else:
            return True
    return hit != negated
