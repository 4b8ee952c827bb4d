"""What both dialects need beside their wire format: thinking tokens at an effort, and a text in pieces."""

from __future__ import annotations

import re
from collections.abc import Iterator

from sandbox.exchange import Generation

# Round figures, not measured. Real models vary by task; a fixed figure can be predicted in a test.
THINKING_TOKENS = {
    "none": 0, "minimal": 16, "low": 48, "medium": 128, "high": 384, "xhigh": 768, "max": 1536,
}  # fmt: skip
# Six words to a piece.
_PIECE = re.compile(r"\s*(?:\S+\s*){1,6}|\s+")
# A word without spaces (base64, Chinese) would be one piece; this is its longest.
_LONGEST_PIECE = 160


def pieces(generation: Generation, text: str | None = None) -> Iterator[tuple[str, int]]:
    """Yield the text in pieces of a few words with the output tokens of each; together they are `visible_tokens`."""
    text = generation.text if text is None else text
    parts = [
        part[at : at + _LONGEST_PIECE] for part in _PIECE.findall(text) for at in range(0, len(part), _LONGEST_PIECE)
    ]
    left, done = generation.visible_tokens, 0
    for place, part in enumerate(parts, 1):
        upto = left * place // len(parts)
        yield part, upto - done
        done = upto
