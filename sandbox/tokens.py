"""Estimates tokens from bytes: deterministic, the same on every machine, and good enough to teach with.

It is not a tokenizer. `tokens = ceil(utf8_bytes / bytes_per_token)`, where the divisor belongs to the model's family:

    Claude 4.7 and later   2.5
    older Claude           3.25   (the newer tokenizer makes about 30 % more tokens of the same text)
    GPT                    4.0

The divisors are dyadic fractions, so the division is exact and two machines never disagree by one token.
"""

from __future__ import annotations

from math import ceil

CLAUDE_NEW = 2.5
CLAUDE_OLD = 3.25
GPT = 4.0

# An image or a binary document is not text; it counts as this many tokens whatever its size.
ATTACHMENT_TOKENS = 1600


def byte_length(text: str) -> int:
    """Return the UTF-8 length of `text`; a lone surrogate counts three bytes instead of failing."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def estimate(size_bytes: int, bytes_per_token: float) -> int:
    """Return the tokens of a text of `size_bytes`; 0 only for an empty text."""
    return ceil(size_bytes / bytes_per_token)
