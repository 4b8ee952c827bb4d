"""Takes keys and pieces of the request out of what a provider says about an error, before anything keeps or tells it.

Providers quote: a key that is wrong, a value that does not fit, a part of the prompt that a filter met.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

_KEY_LIKE: Final = re.compile(
    r"\b(?:sk|pk|key|rk)-[A-Za-z0-9*_-]{6,}|\bBearer\s+\S+|\b[A-Fa-f0-9]{40,}\b", re.IGNORECASE
)
WINDOW: Final = 16
"""Characters that must be the same for a piece to count as quoted; shorter ones are words that any message has."""
_STEP: Final = 4
_LOOKED_AT: Final = 200_000
"""Of each text: an error message quotes the beginning or a short value, and this runs in the worker's loop."""


def hide(message: str, texts: Iterable[str], keys: Iterable[str] = ()) -> str:
    """`message` without keys and without pieces of `texts` (16 characters or more in a row).

    Args:
        message: A provider's words.
        texts: What was asked: prompts, system text.
        keys: Values that must not be seen; what looks like a key goes anyway.
    """
    for key in keys:
        if len(key) >= 6:
            message = message.replace(key, "[key]")
    message = _KEY_LIKE.sub("[key]", message)
    for text in texts:
        message = _without_quotes(message, text[:_LOOKED_AT])
    return message


def _without_quotes(message: str, text: str) -> str:
    at = 0
    while at + WINDOW <= len(message):
        if message[at : at + WINDOW] not in text:
            at += _STEP
            continue
        begin, end = at, at + WINDOW
        while end < len(message) and message[begin : end + 1] in text:
            end += 1
        while begin > 0 and message[begin - 1 : end] in text:
            begin -= 1
        message = f"{message[:begin]}[text of the request]{message[end:]}"
        at = begin + len("[text of the request]")
    return message
