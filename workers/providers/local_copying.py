"""A flat JSON object by a local model that may only copy (policies/copying.py): the program writes names, the model chooses values.

Of each value the log-probabilities of its tokens are added up, its end included: how likely the whole value was among all that the
model could have written there. Of several signals that sum says best whether a value is right (AUROC .81 to .83; their mean .65 to .73).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from policies.copying import Copyable, Field, Kind, Spans
from workers.providers.failures import failure
from workers.providers.local_model import BATCH_TOKENS, Entry, LocalModel, Logits
from workers.providers.local_scoring import log_softmax, score

NULL: Final = " null"
_CLOSERS: Final[Mapping[Kind, bytes]] = {"text": b'"', "date": b'"', "number": b",}\n ", "integer": b",}\n "}
"""How the text that follows a value begins."""


class Vocabulary:
    """What a model's tokens write: worked out once, in a tenth of a second."""

    def __init__(self, model: LocalModel) -> None:
        pieces = [model.piece(token) for token in range(model.vocabulary)]
        self.tokens: dict[bytes, int] = {}
        for token, piece in enumerate(pieces):
            if piece:
                self.tokens.setdefault(piece, token)
        self.closers = {
            kind: np.array([token for token, piece in enumerate(pieces) if piece[:1] and piece[:1] in begins])
            for kind, begins in _CLOSERS.items()
        }
        self.pieces: Sequence[bytes] = pieces


@dataclass(slots=True)
class Written:
    """The object so far.

    Attributes:
        values: JSON of each field that was filled.
        logprobs: Of each field, also of those left empty.
        chosen: Tokens that the model chose.
        given: Tokens that the program wrote.
    """

    values: dict[str, str] = field(default_factory=dict)
    logprobs: dict[str, float] = field(default_factory=dict)
    chosen: int = 0
    given: int = 0

    @property
    def text(self) -> str:
        """As JSON."""
        pairs = (f"{json.dumps(name, ensure_ascii=False)}: {value}" for name, value in self.values.items())
        return "{" + ", ".join(pairs) + "}"


class NoRoomError(Exception):
    """The values take more tokens than there is room for."""


class Scribe:
    """Writes one object behind a prompt."""

    def __init__(
        self,
        model: LocalModel,
        vocabulary: Vocabulary,
        *,
        sequence: int,
        length: int,
        logits: Logits,
        room: int,
        scorers: range,
        check: Callable[[], None],
    ) -> None:
        """Begin after the prompt.

        Args:
            sequence, length: The prompt in the model's memory.
            logits: After its last token.
            room: Tokens that may be written.
            scorers: Sequences that are free.
            check: Called between steps; may raise.
        """
        self._model = model
        self._vocabulary = vocabulary
        self._sequence = sequence
        self._length = length
        self._last = length + room
        self._logits = np.array(logits)
        self._scorers = scorers
        self._check = check
        self.written = Written()

    def write(self, fields: Sequence[Field], source: str) -> Written:
        """Fill the fields in order.

        Raises:
            NoRoomError: The object became too long.
            Broken: Nothing in the source can fill a field that must be filled.
        """
        spans: dict[Kind, Spans] = {}
        between = "{"
        for each in fields:
            if each.kind != "choice" and each.kind not in spans:
                spans[each.kind] = Spans(Copyable.of(each.kind, source), self._vocabulary.tokens)
            self._give(f"{between}{json.dumps(each.name, ensure_ascii=False)}:")
            value = self._choose(each) if each.kind == "choice" else self._copy(each, spans[each.kind])
            if value is not None:
                self.written.values[each.name] = value
            elif each.nullable:
                self.written.values[each.name] = "null"
            between = '", ' if value is not None and each.kind in ("text", "date") else ", "
        return self.written

    def _choose(self, each: Field) -> str | None:
        """The likeliest option; its log-probability among the options, as with labels."""
        options: list[str | None] = [*each.choices, *([None] if each.nullable or each.may_lack else [])]
        # The comma ends each: without it 1 would always beat 10.
        sums = self._score([f"{NULL if option is None else f' {option}'}," for option in options])
        best = int(np.argmax(sums))
        self.written.logprobs[each.name] = float(log_softmax(np.array(sums))[best])
        chosen = options[best]
        self._give(NULL if chosen is None else f" {chosen}")
        return chosen

    def _copy(self, each: Field, spans: Spans) -> str | None:
        opener = ' "' if each.kind in ("text", "date") else " "
        logprob, state = 0.0, spans.start
        if each.nullable or each.may_lack:
            empty, filled = self._score([NULL, opener])
            if empty > filled or not state:
                self.written.logprobs[each.name] = empty
                self._give(NULL)
                return None
            logprob = filled
        if not state:
            raise failure("garbled", f"nothing in the text can fill {each.name!r}, a {each.kind}")
        self._give(opener)
        closers = self._vocabulary.closers[each.kind]
        copied = b""
        while True:
            found = log_softmax(self._logits)
            moves = spans.moves(state)
            likeliest = max(moves, key=found.__getitem__, default=None)
            whole = bool(copied) and spans.may_end(state)
            end = float(np.logaddexp.reduce(found[closers])) if whole else -np.inf
            if likeliest is None and not whole:
                raise failure("garbled", f"the model's tokens cannot spell what fills {each.name!r}")
            if likeliest is None or end >= found[likeliest]:
                break
            logprob += float(found[likeliest])
            self._advance([likeliest])
            self.written.chosen += 1
            copied += self._vocabulary.pieces[likeliest]
            state = moves[likeliest]
        self.written.logprobs[each.name] = logprob + end
        text = copied.decode()
        return json.dumps(text, ensure_ascii=False) if each.kind in ("text", "date") else text

    def _score(self, texts: Sequence[str]) -> list[float]:
        spelled = [self._model.tokens(text, control=False) for text in texts]
        return score(
            self._model, self._sequence, self._length, self._logits, spelled, scorers=self._scorers, check=self._check
        )  # fmt: skip

    def _give(self, text: str) -> None:
        tokens = self._model.tokens(text, control=False)
        self._advance(tokens)
        self.written.given += len(tokens)

    def _advance(self, tokens: Sequence[int]) -> None:
        if self._length + len(tokens) > self._last:
            raise NoRoomError
        for base in range(0, len(tokens), BATCH_TOKENS):
            self._check()
            chunk = tokens[base : base + BATCH_TOKENS]
            entries = [
                Entry(token, self._length + n, self._sequence, is_wanted=n == len(chunk) - 1)
                for n, token in enumerate(chunk)
            ]
            self._model.step(entries, lambda _, row: setattr(self, "_logits", np.array(row)))
            self._length += len(chunk)
