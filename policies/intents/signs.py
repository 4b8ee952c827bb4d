"""What a prompt shows about the work it asks for: words all over, words of its head and tail, cues in its instruction, its form.

A prompt is an instruction wrapped around a document, and the document's words mislead: signs of the instruction therefore stand
in groups of their own, each brought to unit length, so that a long document cannot drown a short request.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator

from policies.intents.phrases import PATTERNS

# Head and tail are read, never the middle of a long document; 1,500 + 400 characters keep a prompt under 2 ms.
_HEAD_CHARS, _TAIL_CHARS = 1_500, 400
_EDGE_CHARS, _EDGE_TOKENS = 160, 24
_LONGEST_REQUEST = 200
_MOST_REQUESTS = 3  # at each end

_TOKEN = re.compile(r"[a-z]+|\d+|[^\sa-z\d]")
_SENTENCE = re.compile(r"(?<=[.?!:])\s+|\n+")
_REQUEST = re.compile(
    r"\?|:$|^(?:write|generate|give|make|summar|sum|para|re|find|extract|answer|choose|pick|select|list|what|which|who|how|is|are"
    r"|does|do|can|could|would|determine|classify|use|using|given|based|according|here|i )"
    r"|\b(?:following|above|below|article|text|passage|question|sentence|review|answer|title|summary)\b",
    re.IGNORECASE,
)
_OPTION = re.compile(r"(?:^|\n)\s*(?:[-*•]|\(?[A-Ea-e1-5][).:])\s")
_FIELD = re.compile(r"(?:^|\n)[A-Za-z0-9 ]{1,20}:")


def signs(prompt: str) -> dict[str, set[str]]:
    """Return the signs of each group, every sign prefixed so that groups share no name."""
    text = prompt.strip()
    read = text if len(text) <= _HEAD_CHARS + _TAIL_CHARS else f"{text[:_HEAD_CHARS]}\n{text[-_TAIL_CHARS:]}"
    words = _tokens(read)
    head, tail = _tokens(text[:_EDGE_CHARS])[:_EDGE_TOKENS], _tokens(text[-_EDGE_CHARS:])[-_EDGE_TOKENS:]
    sentences = [part for part in _SENTENCE.split(read) if part.strip()]
    requests = [part for part in sentences if len(part) < _LONGEST_REQUEST and _REQUEST.search(part)]
    if len(requests) > 2 * _MOST_REQUESTS:
        requests = requests[:_MOST_REQUESTS] + requests[-_MOST_REQUESTS:]
    ends = [sentences[0][:_LONGEST_REQUEST], sentences[-1][-_LONGEST_REQUEST:]] if sentences else []
    instruction = "\n".join([*ends[:1], *requests, *ends[1:]])
    return {
        "words": {f"w {gram}" for gram in _grams(words, 2)},
        "edges": {f"h {gram}" for gram in _grams(head, 3)} | {f"t {gram}" for gram in _grams(tail, 3)},
        "request": {f"r {gram}" for request in requests for gram in _grams(_tokens(request), 3)},
        "cues": {f"c {number}" for number, pattern in enumerate(PATTERNS) if pattern.search(instruction)},
        "form": set(_form(text)),
    }


def _tokens(text: str) -> list[str]:
    return ["#" if token.isdigit() else token for token in _TOKEN.findall(text.lower())]


def _grams(tokens: list[str], longest: int) -> Iterable[str]:
    yield from tokens
    for size in range(2, longest + 1):
        yield from map(" ".join, zip(*(tokens[start:] for start in range(size)), strict=False))


def _form(text: str) -> Iterator[str]:
    lines = text.split("\n")
    yield f"f size {min(int(math.log2(len(text) + 1)), 11)}"
    yield f"f lines {min(len(lines), 9)}"
    yield f"f ends {text[-1:]}"
    yield f"f starts {(_tokens(text[:40]) or [''])[0]}"
    yield f"f questions {min(text.count('?'), 3)}"
    yield f"f options {min(len(_OPTION.findall(text)), 5)}"
    yield f"f fields {min(len(_FIELD.findall(text)), 4)}"
    yield f"f first {min(len(lines[0]) // 40, 5)}"
    yield f"f last {min(len(lines[-1]) // 40, 5)}"
