"""The answer book: recorded answers, found by a piece of the user's text.

An entry is used when the request's user text contains its `match`; the longest match wins, and among matches of one
length an entry for the very model before one for "*". An empty match fits every request. A later row replaces an
earlier one with the same match and model.

10,000 entries must not mean 10,000 searches per request, so each match is filed under one anchor that a text containing
it must also contain: a whole word from inside the match (found with one pass over the words of the text), or,
where the match has no such word or only common ones, a run of characters (found with one pass over the runs of that
length). Only the entries under anchors that occur in the text are searched for.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_WORD = re.compile(r"\w+")
# An anchor word shared by more matches than this is a common word.
_COMMON = 32
_RUNS = (64, 16, 4, 1)
_STOPS = {
    "end_turn": "end", "stop": "end", "completed": "end", "max_tokens": "max_tokens", "length": "max_tokens",
    "max_output_tokens": "max_tokens", "stop_sequence": "stop_sequence", "tool_use": "tool_use",
    "tool_calls": "tool_use", "refusal": "refusal", "content_filter": "content_filter",
    "model_context_window_exceeded": "context_window",
}  # fmt: skip


class BookError(ValueError):
    """The answer book cannot be used; the message names file, row and remedy."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One recorded answer."""

    text: str
    # output_tokens: as billed, thinking included; None lets the estimator count.
    output_tokens: int | None = None
    # stop: a value of exchange.Stop; None means the natural end.
    stop: str | None = None
    thinking_tokens: int | None = None
    latency_s: float | None = None


class AnswerBook:
    """Entries with their index; built once, then only read."""

    def __init__(self, entries: Iterable[tuple[str, str, Answer]] = ()) -> None:
        self._answers: dict[str, dict[str, Answer]] = defaultdict(dict)
        for match, model, answer in entries:
            self._answers[match][model] = answer
        self._count = sum(len(by_model) for by_model in self._answers.values())
        self._words: dict[str, list[str]] = defaultdict(list)
        self._runs: dict[int, dict[str, list[str]]] = {}
        self._index()

    def __len__(self) -> int:
        return self._count

    def find(self, user_text: str, model: str) -> Answer | None:
        """Return the answer for this text and model, or None."""
        best: tuple[int, bool, str] = (0, False, "")
        for match in self._contained(user_text):
            by_model = self._answers[match]
            if model in by_model or "*" in by_model:
                best = max(best, (len(match), model in by_model, match))
        by_model = self._answers.get(best[2], {})
        return by_model.get(model) or by_model.get("*")

    def _contained(self, text: str) -> Iterator[str]:
        if self._words:
            for word in self._words.keys() & set(_WORD.findall(text)):
                yield from (match for match in self._words[word] if match in text)
        for length, filed in self._runs.items():
            runs = {text[at : at + length] for at in range(len(text) - length + 1)}
            for run in filed.keys() & runs:
                yield from (match for match in filed[run] if match in text)

    def _index(self) -> None:
        matches = [match for match in self._answers if match]
        inner = {match: _inner_words(match) for match in matches}
        shared = Counter(word for words in inner.values() for word in words)
        rest = []
        for match in matches:
            rarest = min(inner[match], key=lambda word: (shared[word], -len(word), word), default=None)
            if rarest is not None and shared[rarest] <= _COMMON:
                self._words[rarest].append(match)
            else:
                rest.append(match)
        runs = {match: _candidate_runs(match) for match in rest}
        shared = Counter(run for candidates in runs.values() for run in candidates)
        for match in rest:
            run = min(runs[match], key=lambda candidate: (shared[candidate], candidate))
            self._runs.setdefault(len(run), defaultdict(list))[run].append(match)


def _inner_words(match: str) -> set[str]:
    """Return the words that are whole in any text containing `match`: those which touch neither of its ends."""
    return {found[0] for found in _WORD.finditer(match) if found.start() > 0 and found.end() < len(match)}


def _candidate_runs(match: str) -> set[str]:
    """Return runs of the longest usable length, from the start, middle and end of `match`."""
    length = next(length for length in _RUNS if length <= len(match))
    last = len(match) - length
    return {match[at : at + length] for at in (0, last // 2, last)}


def read_book(path: Path) -> AnswerBook:
    """Return the book in a Parquet or JSONL file with columns `match, model, answer`.

    Optional columns: `output_tokens`, `stop_reason`, `thinking_tokens`, `latency_ms`. An `answer` that is not a string
    is kept as its JSON text. With `stop_reason` tool_use the answer is
    `{"name": ..., "input": {...}}` or a list of such.

    Raises:
        BookError: the file or a row cannot be read.
    """
    return AnswerBook(_entry(row, where) for row, where in _rows(path))


def _rows(path: Path) -> Iterator[tuple[Mapping[str, Any], str]]:
    if path.suffix == ".parquet":
        import pyarrow.parquet as parquet  # a second of start-up that only Parquet books need

        try:
            table = parquet.read_table(path)
        except (OSError, ValueError) as exc:
            raise BookError(f"{path}: cannot be read as Parquet: {exc}") from exc
        for number, row in enumerate(table.to_pylist(), 1):
            yield row, f"{path}: row {number}"
        return
    try:
        # Not splitlines(): a JSON string may hold U+2028 and its like unescaped.
        lines = path.read_text("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as exc:
        raise BookError(f"{path}: cannot be read: {exc}") from exc
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                row = json.loads(line)
            except json.JSONDecodeError as exc:
                raise BookError(f"{path}: line {number} is not JSON ({exc}); write one object per line") from exc
            yield row, f"{path}: line {number}"


def _entry(row: Any, where: str) -> tuple[str, str, Answer]:
    if not isinstance(row, Mapping):
        raise BookError(f"{where}: is not an object with match, model and answer")
    for column in ("match", "answer"):
        if row.get(column) is None:
            raise BookError(f"{where}: has no {column!r}; a book needs match, model and answer")
    if not isinstance(row["match"], str):
        raise BookError(f"{where}: match is {row['match']!r}; write a string")
    answer = row["answer"]
    stop = row.get("stop_reason")
    if stop is not None and stop not in _STOPS:
        raise BookError(f"{where}: stop_reason is {stop!r}; known are {', '.join(_STOPS)}")

    def count(column: str) -> int | None:
        value = row.get(column)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
            raise BookError(f"{where}: {column} is {value!r}; write a whole number from 0 on")
        return value

    latency = row.get("latency_ms")
    if latency is not None and (not isinstance(latency, int | float) or latency < 0):
        raise BookError(f"{where}: latency_ms is {latency!r}; write a number from 0 on")
    return (
        row["match"],
        str(row.get("model") or "*"),
        Answer(
            text=answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False),
            output_tokens=count("output_tokens"),
            stop=_STOPS[stop] if stop is not None else None,
            thinking_tokens=count("thinking_tokens"),
            latency_s=None if latency is None else latency / 1000,
        ),
    )
