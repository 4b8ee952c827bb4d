"""The thread that owns a local model: takes work from a queue, one piece after the other, and reuses common prefixes.

llama.cpp's context is not thread-safe, and batching several jobs gains only 20-40 % on a CPU, while computing a shared
prefix once gains five- to sixfold (local-lane.md section 5): so one job at a time, and the memory of the last prompts
is kept. Work can be cancelled between steps.
"""

from __future__ import annotations

import codecs
import itertools
import json
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import numpy as np

from policies.copying import flat_fields
from waybill.contract import Usage
from waybill.errors import ProviderError
from workers.providers.base import Call, Stop
from workers.providers.failures import failure
from workers.providers.local_chat import Chat
from workers.providers.local_copying import NoRoomError, Scribe, Vocabulary
from workers.providers.local_model import (
    BATCH_TOKENS,
    ContextFullError,
    Entry,
    Grammar,
    LocalModel,
    Logits,
    json_grammar,
)
from workers.providers.local_scoring import SCORERS, log_softmax, score

SLOTS: Final = 4
"""Prompts whose memory is kept: the templates of the last kinds of jobs."""
_FREE: Final = range(SLOTS, SLOTS + SCORERS)
"""Sequences for continuations that are compared."""
_OPENER_TOKENS: Final = 4
"""Of each of those, where a value is null or begins."""
_SHARED_TOKENS: Final = 32
"""From here on two prompts are of one template: the new one takes the old one's slot instead of another's."""


@dataclass(frozen=True, slots=True)
class Said:
    """What the model said.

    Attributes:
        text: The answer or the label.
        stop: Complete or truncated.
        usage: By the model's own tokens; `cache_read_tokens` were not computed again.
        logprob: Of the whole answer; of the label, given that it is one of the labels.
        label_logprobs: Of each label given the prompt alone, not normalized; empty without labels.
        value_logprobs: Of each copied value; empty where none was copied.
        cpu_s: The owner thread's CPU times llama.cpp's threads, which wait for each other awake.
    """

    text: str
    stop: Stop
    usage: Usage
    logprob: float
    label_logprobs: dict[str, float] = field(default_factory=dict)
    value_logprobs: dict[str, float] = field(default_factory=dict)
    cpu_s: float | None = None


class CancelledWork(Exception):
    """Nobody waits for this any more."""


@dataclass(slots=True)
class Work:
    """One call in the queue.

    Attributes:
        call: What is asked.
        on_piece: Gets pieces of a generated answer, on the owner's thread.
        on_end: Gets the outcome, on the owner's thread; called exactly once, also when cancelled.
        cancelled: Set by whoever asked, to stop between two steps.
    """

    call: Call
    on_piece: Callable[[str], None]
    on_end: Callable[[Said | Exception], None]
    cancelled: threading.Event = field(default_factory=threading.Event)


@dataclass(slots=True)
class _Slot:
    """A prompt in the model's memory."""

    sequence: int
    tokens: list[int] = field(default_factory=list)
    used_at: int = 0


class LocalRunner:
    """A model and its thread."""

    def __init__(self, path: Path, *, context_tokens: int, threads: int) -> None:
        """Load the model on a new thread and wait for it.

        Raises:
            ConfigError: As `LocalModel` does.
        """
        self._queue: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self._submitted = 0  # written by the loop's thread only
        self._ended = 0  # written by the owner's thread only
        self._is_closed = False
        self._slots = [_Slot(sequence) for sequence in range(SLOTS)]
        self._turn = 0
        self._grammars: dict[str, str] = {}
        self._vocabulary: Vocabulary | None = None
        ready: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()
        arguments = (path, context_tokens, threads, ready)
        self._thread = threading.Thread(target=self._run, args=arguments, name="waybill-local-model", daemon=True)
        self._thread.start()
        problem = ready.get()
        if problem is not None:
            raise problem

    @property
    def waiting(self) -> int:
        """Calls in the queue or at work: what a router compares with a deadline."""
        return self._submitted - self._ended

    def submit(self, work: Work) -> None:
        """Put work into the queue.

        Raises:
            Unavailable: The runner is closed.
        """
        if self._is_closed:
            raise failure("closed", "the local model is being shut down; another lane or worker can take the call")
        self._submitted += 1
        self._queue.put(work)

    def close(self) -> None:
        """Stop after the step at hand, fail what waits, free the model. Blocks."""
        self._is_closed = True
        self._queue.put(None)
        self._thread.join()

    def _run(self, path: Path, context_tokens: int, threads: int, ready: queue.SimpleQueue[Exception | None]) -> None:
        try:
            self._model = LocalModel(path, context_tokens=context_tokens, threads=threads, sequences=SLOTS + SCORERS)
            self._chat = Chat(self._model)
        except Exception as exc:  # noqa: BLE001 - raised again by the constructor, on its thread
            ready.put(exc)
            return
        ready.put(None)
        while (work := self._queue.get()) is not None:
            began = time.thread_time()
            outcome = self._outcome(work)
            if isinstance(outcome, Said):
                outcome = replace(outcome, cpu_s=(time.thread_time() - began) * threads)
            work.on_end(outcome)
            self._ended += 1
        while not self._queue.empty():
            late = self._queue.get()
            if late is not None:
                late.on_end(failure("closed", "the local model was shut down before it came to the call"))
                self._ended += 1
        self._model.close()

    def _outcome(self, work: Work) -> Said | Exception:
        try:
            self._check(work)
            if work.call.labels:
                return self._score(work)
            return self._copy(work) if work.call.copied else self._generate(work)
        except (ProviderError, CancelledWork) as exc:
            return exc
        except ContextFullError:
            self._forget()
            return failure("out_of_memory", "the local model has no memory left for the call")
        except Exception as exc:  # noqa: BLE001 - whoever waits gets it; the thread must live for the others
            self._forget()
            return exc

    def _check(self, work: Work) -> None:
        if work.cancelled.is_set():
            raise CancelledWork
        if self._is_closed:
            raise failure("closed", "the local model is being shut down; another lane or worker can take the call")

    # Labels ------------------------------------------------------------------------------------------------------

    def _score(self, work: Work) -> Said:
        """Compare the labels as continuations of the prompt; nothing is generated."""
        model, labels = self._model, work.call.labels
        prompt = self._chat.prompt(work.call)
        spelled = [model.tokens(label, control=False) for label in labels]
        if _one_begins_another(spelled):
            # Without its end "bill" would always beat "billing".
            spelled = [[*tokens, model.end_of_turn] for tokens in spelled]
        slot, reused, logits = self._prefill(work, prompt, room=SCORERS * max(map(len, spelled)))
        sums = score(
            model, slot.sequence, len(slot.tokens), logits, spelled, scorers=_FREE, check=lambda: self._check(work)
        )  # fmt: skip
        best = int(np.argmax(sums))
        usage = Usage(input_tokens=len(prompt) - reused, cache_read_tokens=reused, output_tokens=len(spelled[best]))
        share = float(log_softmax(np.array(sums, dtype=np.float64))[best])
        return Said(labels[best], Stop.COMPLETE, usage, share, dict(zip(labels, sums, strict=True)))

    # Copied values -----------------------------------------------------------------------------------------------

    def _copy(self, work: Work) -> Said:
        """Fill the fields of a flat schema with spans of what was asked; the program writes the rest."""
        model, call = self._model, work.call
        assert call.json_schema is not None
        fields = flat_fields(call.json_schema)
        assert fields is not None  # whoever asks for a copy has looked
        if self._vocabulary is None:
            self._vocabulary = Vocabulary(model)
        prompt = self._chat.prompt(call)
        names = sum(len(model.tokens(json.dumps(each.name), control=False)) + 8 for each in fields)
        room = max(1, min(call.max_output_tokens, call.model.max_output_tokens) + names)
        options = [len(model.tokens(choice, control=False)) + 2 for each in fields for choice in each.choices]
        spare = SCORERS * max(options, default=_OPENER_TOKENS)
        room = max(1, min(room, model.context_tokens - len(prompt) - spare))
        slot, reused, logits = self._prefill(work, prompt, room=room + spare)
        scribe = Scribe(
            model, self._vocabulary, sequence=slot.sequence, length=len(slot.tokens), logits=logits, room=room,
            scorers=_FREE, check=lambda: self._check(work),
        )  # fmt: skip
        stop = Stop.COMPLETE
        try:
            scribe.write(fields, "\n".join(message.content for message in call.plain_messages()))
        except NoRoomError:
            stop = Stop.TRUNCATED
        finally:
            if not model.keep(slot.sequence, len(slot.tokens)):
                self._empty(slot)
        done = scribe.written
        usage = Usage(
            input_tokens=len(prompt) - reused + done.given, cache_read_tokens=reused, output_tokens=done.chosen
        )
        return Said(done.text, stop, usage, sum(done.logprobs.values()), value_logprobs=done.logprobs)

    # Free answers ------------------------------------------------------------------------------------------------

    def _generate(self, work: Work) -> Said:
        """Take the likeliest token again and again, within the grammar of the schema where there is one."""
        schema = work.call.json_schema
        if schema is None:
            return self._generate_with(work, None)
        with self._model.grammar(self._grammar_of(schema)) as grammar:
            return self._generate_with(work, grammar)

    def _generate_with(self, work: Work, grammar: Grammar | None) -> Said:
        model, call = self._model, work.call
        prompt = self._chat.prompt(call)
        wanted = min(call.max_output_tokens, call.model.max_output_tokens)
        room = max(1, min(wanted, model.context_tokens - len(prompt)))
        slot, reused, logits = self._prefill(work, prompt, room=room)
        try:
            text, stop, made, logprob = self._continue(work, slot, logits, grammar, room)
        finally:
            # The answer is no prefix of anything; its cells are free for the next prompt.
            if not model.keep(slot.sequence, len(slot.tokens)):
                self._empty(slot)
        usage = Usage(input_tokens=len(prompt) - reused, cache_read_tokens=reused, output_tokens=made)
        return Said(text, stop, usage, logprob)

    def _continue(
        self, work: Work, slot: _Slot, logits: Logits, grammar: Grammar | None, room: int
    ) -> tuple[str, Stop, int, float]:
        """Generate up to `room` tokens; return text, stop, tokens made and the log-probability of all of them."""
        model, length = self._model, len(slot.tokens)
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        pieces: list[str] = []
        logprob, stop, made = 0.0, Stop.TRUNCATED, 0
        row = [logits]
        for made in range(1, room + 1):
            self._check(work)
            token = int(row[0].argmax()) if grammar is None else grammar.choose(row[0])
            if token is None:
                raise failure("garbled", "the local model has no token left that fits the schema")
            logprob += float(log_softmax(row[0])[token])
            if model.is_end(token):
                stop = Stop.COMPLETE
                break
            pieces.append(decoder.decode(model.piece(token)))
            if pieces[-1]:
                work.on_piece(pieces[-1])
            if made < room:
                entry = Entry(token, length + made - 1, slot.sequence, is_wanted=True)
                model.step([entry], lambda _, new: row.__setitem__(0, new))
        rest = decoder.decode(b"", final=True)
        if rest:
            pieces.append(rest)
            work.on_piece(rest)
        return "".join(pieces), stop, made, logprob

    def _grammar_of(self, schema: object) -> str:
        text = json.dumps(schema)  # the order of its properties is the order in which the model fills them
        if text not in self._grammars:
            try:
                grammar = json_grammar(text)
            except ValueError as exc:
                raise failure("bad_request", f"{exc}; simplify the schema or use another model") from exc
            if len(self._grammars) >= 64:
                self._grammars.clear()
            self._grammars[text] = grammar
        return self._grammars[text]

    # Prompts and memory ------------------------------------------------------------------------------------------

    def _prefill(self, work: Work, prompt: list[int], *, room: int) -> tuple[_Slot, int, Logits]:
        """Bring the prompt into a slot's memory.

        Returns:
            The slot, how many tokens were there already, and the logits after the last token.

        Raises:
            Rejected: Prompt and `room` tokens of answer do not fit into the context.
        """
        model = self._model
        if len(prompt) + room > model.context_tokens or not prompt:
            text = f"a prompt of {len(prompt)} tokens and {room} of answer exceed the model's {model.context_tokens}"
            raise failure("context_length", f"{text}; shorten it or raise WAYBILL_LOCAL_CONTEXT_TOKENS")
        slot, shared = self._slot_for(prompt)
        self._make_room(slot, len(prompt) + room)
        slot.tokens = prompt[:shared]
        last: list[Logits] = []
        for start in range(shared, len(prompt), BATCH_TOKENS):
            self._check(work)
            chunk = prompt[start : start + BATCH_TOKENS]
            entries = [
                Entry(token, start + n, slot.sequence, is_wanted=start + n == len(prompt) - 1)
                for n, token in enumerate(chunk)
            ]
            model.step(entries, lambda _, row: last.append(row))
            slot.tokens += chunk
        return slot, shared, last[0]

    def _slot_for(self, prompt: list[int]) -> tuple[_Slot, int]:
        """The slot to use, rewound to what it shares with the prompt, and how much that is.

        At least one token is computed anew: its logits are needed.
        """
        model = self._model
        self._turn += 1
        nearest = max(self._slots, key=lambda slot: _shared(slot.tokens, prompt))
        shared = min(_shared(nearest.tokens, prompt), len(prompt) - 1)
        slot = nearest
        if shared < _SHARED_TOKENS:
            slot = min(self._slots, key=lambda slot: (bool(slot.tokens), slot.used_at))
        slot.used_at = self._turn
        if slot is not nearest:
            self._empty(slot)
            if shared:
                model.fork(nearest.sequence, slot.sequence, shared)
        elif not model.keep(slot.sequence, shared):
            self._empty(slot)
            shared = 0
        return slot, shared

    def _make_room(self, slot: _Slot, needed: int) -> None:
        """Empty the slots that were not used for the longest time until `needed` tokens fit."""
        others = sorted((other for other in self._slots if other is not slot), key=lambda other: other.used_at)
        held = sum(len(other.tokens) for other in others)
        for other in others:
            if held + needed <= self._model.context_tokens:
                return
            held -= len(other.tokens)
            self._empty(other)

    def _empty(self, slot: _Slot) -> None:
        self._model.keep(slot.sequence, 0)
        slot.tokens = []

    def _forget(self) -> None:
        """After a step that failed nobody knows what the memory holds."""
        for slot in self._slots:
            self._empty(slot)


def _shared(left: list[int], right: list[int]) -> int:
    """Length of the longest common prefix."""
    length = min(len(left), len(right))
    if left[:length] == right[:length]:
        return length
    return next(n for n in range(length) if left[n] != right[n])


def _one_begins_another(spelled: Sequence[list[int]]) -> bool:
    ordered = sorted(spelled)
    return any(after[: len(before)] == before for before, after in itertools.pairwise(ordered))
