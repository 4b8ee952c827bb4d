"""What a prompt shows before any call: its tokens (weighted by rarity) and its outward form.

Nothing is downloaded and nothing is learned from scores here; the vocabulary and its weights come from the training prompts
alone. Digits keep only their number (a question is not easier because its price is 17), punctuation stays (formulas, code and
option lists are made of it).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, repeat

import numpy as np
from scipy import sparse

from policies.evaluate.outcomes import Floats, Ints

# All work is on UTF-8 bytes: lower-casing and translating a str with one sign outside ASCII is ten times slower. A run of
# letters of another script is one token.
_TOKEN = re.compile(rb"[a-z]+|0{1,4}|[\x80-\xff]+|[^\sa-z0\x80-\xff]")
_NUMBER = re.compile(rb"\d+(?:\.\d+)?")
# The lettered options of a question stand in a list below it, or in one line after this word.
_OPTION_LIST = re.compile(rb"\n\(?A[.)] |Options:")
_OPTION = re.compile(rb"\n[A-J][.)] (.*)")
_OPTIONS_WITHIN = 2_000  # characters: options are few and telling, so they are read beyond the head
_PLAIN = bytes.maketrans(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ123456789", b"abcdefghijklmnopqrstuvwxyz000000000")
# Digits, signs of formulas and capitals each become one letter, to be counted in one pass.
_FORMULA = b"+-*/=^<>\\{}[]()_"
_KINDS = bytes.maketrans(
    b"0123456789" + _FORMULA + b"ABCDEFGHIJKLMNOPQRSTUVWXYZ", b"0" * 10 + b"+" * len(_FORMULA) + b"A" * 26
)
# Kinds of words that make a question harder for one model than for another, one column each: steps of a sum, comparisons,
# conditions, time, denials.
_CUES = (
    b"half third quarter fifth fraction",
    b"percent percentage",
    b"more less fewer than",
    b"times twice double triple many much",
    b"each every per",
    b"if when after before then",
    b"hour hours minute minutes day days week weeks month months year years",
    b"not except never incorrect false least",
)
_CUE_OF = {word: column for column, words in enumerate(_CUES) for word in words.split()}
_LARGEST = 1e15
# A prompt's head says what is asked; reading on costs time on the hot path and tells little more (docs/routing.md).
READ_CHARS = 600
_MIN_PROMPTS = 2  # a token seen in one prompt cannot teach anything about another
SURFACE_SIZE = 26 + len(_CUES)


# A pair is joined: a tuple would be tracked by the garbage collector, whose runs then cost more than the joining.
Token = bytes


def tokens(prompt: str) -> set[Token]:
    """Return the distinct words, digit runs, signs and neighbouring pairs at the head of a prompt."""
    found = _words(prompt)
    return {*found, *map(b" ".join, pairwise(found))}


def surface(prompt: str) -> tuple[float, ...]:
    """Return `SURFACE_SIZE` numbers about a prompt's form: length, numbers, signs, options, lines, sentences, cue words."""
    head = _head(prompt)
    stem = head[: listed.start()] if (listed := _OPTION_LIST.search(head)) else head
    size = max(len(stem), 1)
    kinds = stem.translate(_KINDS)
    words = stem.count(b" ") + stem.count(b"\n") + 1
    rest = head[len(stem) :]
    piped = rest.count(b" | ")
    options = _OPTION.findall(prompt[:_OPTIONS_WITHIN].encode("utf-8", "replace")) if rest and not piped else []
    sizes = [len(option) for option in options] or [0]
    mean = sum(sizes) / len(sizes)
    numbers = _NUMBER.findall(stem)
    cues = [0.0] * len(_CUES)
    # Where options are given an answer is picked, not worked out: counting steps only blurs that (docs/routing.md).
    for word in () if rest else stem.translate(_PLAIN).split():
        if (column := _CUE_OF.get(word)) is not None:
            cues[column] += 1.0
    question = stem.rpartition(b"?")[0].rpartition(b". ")[2]
    return (
        math.log1p(len(prompt)),
        math.log1p(len(stem)),
        math.log1p(words),
        size / words,
        kinds.count(b"0") / size,
        kinds.count(b"+") / size,
        kinds.count(b"A") / size,
        math.log1p(len(numbers)),
        math.log1p(len(set(numbers))),
        math.log1p(min(max(map(float, numbers), default=0.0), _LARGEST)),
        float(sum(b"." in number for number in numbers)),
        float(stem.count(b"$")),
        float(stem.count(b"%")),
        float(head.count(b"\n")),
        float(stem.count(b"?")),
        float(stem.count(b". ")),
        float(stem.count(b",")),
        float(stem.count(b"__")),
        float(stem.count(b"Statement")),
        math.log1p(len(question)),
        float(piped),
        float(len(set(options))),
        math.log1p(mean),
        math.log1p(max(sizes)),
        math.sqrt(sum((one - mean) ** 2 for one in sizes) / len(sizes)) / (mean + 1),
        float(sum(option[:1].isdigit() for option in options)),
        *cues,
    )


def _words(prompt: str) -> list[bytes]:
    found: list[bytes] = _TOKEN.findall(_head(prompt).translate(_PLAIN))
    return found


def _head(prompt: str) -> bytes:
    return prompt[:READ_CHARS].encode("utf-8", "replace")


@dataclass(frozen=True)
class Vocabulary:
    """Tokens of the training prompts with their weight (inverse document frequency).

    A pair that two prompts share consists of words that they share. So words alone are looked up one by one; pairs are numbers
    made of their words' and found all at once, in a fifth of the time.

    words: Column by word.
    pairs: Ascending; the first word's column times the number of words, plus the second's. Their columns follow those of the words.
    """

    words: dict[Token, int]
    pairs: Ints
    weights: Floats

    def rows(self, prompts: Sequence[str]) -> sparse.csr_matrix:
        """Return one row of unit length per prompt; a prompt of unknown tokens only is a row of zeros."""
        found: list[int] = []
        ends = [0]
        for prompt in prompts:
            found.extend(map(self.words.get, _words(prompt), repeat(-1)))
            ends.append(len(found))
        at = np.array(found, dtype=np.int64)
        row_of = np.repeat(np.arange(len(prompts)), np.diff(ends))
        is_known = at >= 0
        is_pair = is_known[:-1] & is_known[1:] & (row_of[:-1] == row_of[1:])
        codes = (at[:-1] * len(self.words) + at[1:])[is_pair]
        place = np.searchsorted(self.pairs, codes)
        # A last code that none can equal stands for "beyond the end".
        is_hit = np.append(self.pairs, -1)[place] == codes
        width = len(self.weights)
        columns = np.concatenate([at[is_known], len(self.words) + place[is_hit]])
        rows = np.concatenate([row_of[is_known], row_of[:-1][is_pair][is_hit]])
        row, column = np.divmod(np.unique(rows * width + columns), max(width, 1))
        values = self.weights[column]
        norm = np.sqrt(np.bincount(row, weights=values**2, minlength=len(prompts)))
        starts = np.searchsorted(row, np.arange(len(prompts) + 1))
        return sparse.csr_matrix((values / norm[row], column, starts), shape=(len(prompts), width))


def learn_vocabulary(prompts: Sequence[str]) -> Vocabulary:
    """Return the tokens which at least two of the prompts contain."""
    seen: dict[Token, int] = {}
    for prompt in prompts:
        for token in tokens(prompt):
            seen[token] = seen.get(token, 0) + 1
    kept = [token for token, count in seen.items() if count >= _MIN_PROMPTS]
    words = {word: number for number, word in enumerate(sorted(token for token in kept if b" " not in token))}
    coded = sorted(
        (words[first] * len(words) + words[second], token)
        for token in kept
        if b" " in token
        for first, _, second in [token.partition(b" ")]
    )
    counts = np.array([seen[token] for token in [*words, *(token for _, token in coded)]], dtype=np.float64)
    weights = np.log((1 + len(prompts)) / (1 + counts)) + 1
    return Vocabulary(words=words, pairs=np.array([code for code, _ in coded], dtype=np.int64), weights=weights)


def surfaces(prompts: Sequence[str]) -> Floats:
    """Return `surface` of each prompt as rows."""
    return np.array([surface(prompt) for prompt in prompts], dtype=np.float64).reshape(len(prompts), SURFACE_SIZE)
