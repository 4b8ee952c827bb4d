"""A GGUF model in memory, through llama.cpp's low-level API. One thread only; local_runner.py owns that thread.

The high-level `Llama` class is not used: for log-probabilities it keeps the scores of every position (2.1 GB for a
262k-word vocabulary at 2,048 tokens, measured: local-lane.md section 2), and it remembers a single prefix.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from waybill.errors import ConfigError

BATCH_TOKENS: Final = 32
"""Tokens in one step; cancelling waits for a step. From 64 on llama.cpp attends by another kernel whose rounding moves a
label's log-probability by 0.1 (measured), so that it would depend on what was in memory before; the gain is only 6 %."""

Logits = npt.NDArray[np.float32]
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Entry:
    """One token of a batch: where it stands, in which sequence, and whether the logits after it are wanted."""

    token: int
    position: int
    sequence: int
    is_wanted: bool = False


class ContextFullError(Exception):
    """The model's memory has no room for the batch."""


def check_file(path: Path, sha256: str | None) -> str:
    """The SHA-256 of a model file.

    Raises:
        ConfigError: There is no such file, it is no GGUF, or its hash is not `sha256`.
    """
    try:
        with path.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise ConfigError(f"the local model {path} is not a GGUF file; set WAYBILL_LOCAL_MODEL to one")
            file.seek(0)
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as exc:
        raise ConfigError(
            f"the local model {path} cannot be read ({exc.strerror}); run `./run` to fetch the default one,"
            " or set WAYBILL_LOCAL_MODEL to a GGUF file"
        ) from exc
    if sha256 is not None and found != sha256:
        raise ConfigError(
            f"the local model {path} has SHA-256 {found}, not {sha256}; fetch it again or correct"
            " WAYBILL_LOCAL_MODEL_SHA256"
        )
    return found


class LocalModel:
    """Weights, vocabulary and memory of several sequences that share their common cells."""

    def __init__(self, path: Path, *, context_tokens: int, threads: int, sequences: int) -> None:
        """Load the file; takes a second per few hundred MB and maps it, so that processes share the pages.

        Args:
            path: A GGUF file.
            context_tokens: Cells for all sequences together; at most what the model was trained for.
            threads: CPU threads; never more than the cores one is given.
            sequences: How many sequences may be live.

        Raises:
            ConfigError: llama-cpp-python is not installed, or the file cannot be loaded.
        """
        self._api = api = _load_api()
        options = api.llama_model_default_params()
        options.n_gpu_layers = 0
        self._model = api.llama_model_load_from_file(str(path).encode(), options)
        if not self._model:
            raise ConfigError(f"llama.cpp cannot load {path}; is it a complete GGUF file of a kind this version knows?")
        self._vocab = api.llama_model_get_vocab(self._model)
        self.context_tokens = min(context_tokens, api.llama_model_n_ctx_train(self._model))
        settings = api.llama_context_default_params()
        settings.n_ctx = self.context_tokens
        settings.n_batch = settings.n_ubatch = BATCH_TOKENS
        settings.n_seq_max = sequences
        settings.n_threads = settings.n_threads_batch = threads
        settings.kv_unified = True  # forked sequences share cells
        settings.swa_full = True  # models with a sliding window could otherwise not be rewound (Gemma)
        settings.no_perf = True
        self._context = api.llama_init_from_model(self._model, settings)
        if not self._context:
            api.llama_model_free(self._model)
            raise ConfigError(
                f"no memory for a context of {self.context_tokens} tokens; lower WAYBILL_LOCAL_CONTEXT_TOKENS"
            )
        self._memory = api.llama_get_memory(self._context)
        self._batch = api.llama_batch_init(BATCH_TOKENS, 0, 1)
        self.vocabulary = api.llama_vocab_n_tokens(self._vocab)
        self._candidates = np.zeros(self.vocabulary, dtype=[("id", "i4"), ("logit", "f4"), ("p", "f4")])
        self._pieces: dict[int, bytes] = {}

    def close(self) -> None:
        """Give the memory back. Nothing may be called afterwards."""
        self._api.llama_batch_free(self._batch)
        self._api.llama_free(self._context)
        self._api.llama_model_free(self._model)

    # Vocabulary

    @property
    def chat_template(self) -> str | None:
        """The Jinja template inside the file; base models have none."""
        template = self._api.llama_model_chat_template(self._model, None)
        return template.decode("utf-8", "replace") if template else None

    @property
    def begin_text(self) -> str:
        """The token that begins a text, as a template writes it; "" when the model has none."""
        return self._special(self._api.llama_vocab_bos(self._vocab))

    @property
    def end_text(self) -> str:
        """The token that ends a text, as a template writes it; "" when the model has none."""
        return self._special(self._api.llama_vocab_eos(self._vocab))

    @property
    def adds_begin(self) -> bool:
        """Whether texts of this model begin with `begin_text`."""
        return bool(self._api.llama_vocab_get_add_bos(self._vocab))

    @property
    def end_of_turn(self) -> int:
        """The token that ends an answer."""
        turn = self._api.llama_vocab_eot(self._vocab)
        return int(turn if turn >= 0 else self._api.llama_vocab_eos(self._vocab))

    def control_texts(self) -> frozenset[str]:
        """How control tokens are written: user text that holds one must not be read as one."""
        api, vocab = self._api, self._vocab
        found = (self._special(t) for t in range(self.vocabulary) if api.llama_vocab_is_control(vocab, t))
        return frozenset(text for text in found if text)

    def tokens(self, text: str, *, control: bool, begin: bool = False) -> list[int]:
        """The tokens of `text`.

        Args:
            text: Any text.
            control: Whether control tokens written out in it become control tokens: for templates, never for users.
            begin: Whether the model's begin token is put in front.
        """
        data = text.encode("utf-8")
        room = len(data) + 8
        for _ in range(2):
            buffer = (self._api.llama_token * room)()
            n = self._api.llama_tokenize(self._vocab, data, len(data), buffer, room, begin, control)
            if n >= 0:
                return list(buffer[:n])
            room = -n
        raise ContextFullError

    def piece(self, token: int) -> bytes:
        """What a generated token adds to the text: bytes, since a token may be part of a character."""
        known = self._pieces.get(token)
        if known is None:
            buffer = ctypes.create_string_buffer(256)
            n = self._api.llama_token_to_piece(self._vocab, token, buffer, len(buffer), 0, False)
            known = self._pieces[token] = buffer.raw[: max(n, 0)]
        return known

    def is_end(self, token: int) -> bool:
        """Whether the token ends an answer."""
        return bool(self._api.llama_vocab_is_eog(self._vocab, token))

    def _special(self, token: int) -> str:
        if token < 0:
            return ""
        text = self._api.llama_vocab_get_text(self._vocab, token)
        return text.decode("utf-8", "replace") if text else ""

    # Memory

    def keep(self, sequence: int, tokens: int) -> bool:
        """Forget all of a sequence but its first `tokens`; False when the model cannot be rewound (recurrent ones)."""
        return bool(self._api.llama_memory_seq_rm(self._memory, sequence, tokens, -1))

    def fork(self, source: int, target: int, tokens: int) -> None:
        """Let `target` (empty) begin with the first `tokens` of `source`, sharing its cells."""
        self._api.llama_memory_seq_cp(self._memory, source, target, 0, tokens)

    # Computing

    def step(self, entries: Sequence[Entry], take: Callable[[int, Logits], None]) -> None:
        """Compute up to BATCH_TOKENS entries; `take` gets the index and the logits of each wanted one.

        The logits live until the next step.

        Raises:
            ContextFullError: No free cells.
        """
        batch = self._batch
        batch.n_tokens = len(entries)
        for n, entry in enumerate(entries):
            batch.token[n] = entry.token
            batch.pos[n] = entry.position
            batch.n_seq_id[n] = 1
            batch.seq_id[n][0] = entry.sequence
            batch.logits[n] = entry.is_wanted
        outcome = self._api.llama_decode(self._context, batch)
        if outcome == 1:
            raise ContextFullError
        if outcome != 0:
            raise RuntimeError(f"llama_decode returned {outcome}")
        for n, entry in enumerate(entries):
            if entry.is_wanted:
                row = self._api.llama_get_logits_ith(self._context, n)
                take(n, np.ctypeslib.as_array(row, shape=(self.vocabulary,)))

    @contextmanager
    def grammar(self, gbnf: str) -> Iterator[Grammar]:
        """A grammar that generated tokens are held to.

        Raises:
            ValueError: llama.cpp does not take it.
        """
        sampler = self._api.llama_sampler_init_grammar(self._vocab, gbnf.encode("utf-8"), b"root")
        if not sampler:
            raise ValueError("llama.cpp does not take the grammar")
        try:
            yield Grammar(self._api, sampler, self._candidates)
        finally:
            self._api.llama_sampler_free(sampler)


class Grammar:
    """Which token may come next."""

    def __init__(self, api: Any, sampler: Any, candidates: npt.NDArray[Any]) -> None:
        self._api = api
        self._sampler = sampler
        self._candidates = candidates

    def choose(self, logits: Logits) -> int | None:
        """The most likely token that the grammar allows, taken into account; None when it allows none.

        The likeliest token is tried alone first: it is mostly allowed, and trying all costs a hundred times more.
        """
        best = int(logits.argmax())
        if not self._allowed(np.array([best], dtype=np.int32), logits)[0]:
            everything = np.arange(len(logits), dtype=np.int32)
            allowed = self._allowed(everything, logits)
            if not allowed.any():
                # Accepting a token that is not allowed would abort the whole process.
                return None
            best = int(np.where(allowed, logits, -np.inf).argmax())
        self._api.llama_sampler_accept(self._sampler, best)
        return best

    def _allowed(self, tokens: npt.NDArray[np.int32], logits: Logits) -> npt.NDArray[np.bool_]:
        rows = self._candidates[: len(tokens)]
        rows["id"], rows["logit"], rows["p"] = tokens, logits[tokens], 0
        data = rows.ctypes.data_as(ctypes.POINTER(self._api.llama_token_data))
        array = self._api.llama_token_data_array(data=data, size=len(tokens), selected=-1, sorted=False)
        self._api.llama_sampler_apply(self._sampler, ctypes.byref(array))
        return np.asarray(np.isfinite(rows["logit"]))


def json_grammar(schema: str) -> str:
    """The grammar of a JSON schema (as JSON text).

    Raises:
        ValueError: It uses something the converter does not know.
    """
    _load_api()
    from llama_cpp.llama_grammar import json_schema_to_gbnf

    try:
        return str(json_schema_to_gbnf(schema))
    except (ValueError, KeyError, TypeError, AttributeError, AssertionError, RecursionError) as exc:
        # The converter does not check its input; each of these was provoked by a schema it does not know.
        raise ValueError(f"llama.cpp cannot turn the schema into a grammar ({type(exc).__name__}: {exc})") from exc


_api: Any = None


def _load_api() -> Any:
    """The bindings, imported on first use: they are an optional extra and load 20 MB of libraries."""
    global _api  # llama.cpp keeps one back end and one log for a process
    if _api is None:
        try:
            import llama_cpp
        except (ImportError, OSError, RuntimeError) as exc:
            raise ConfigError(
                f"llama-cpp-python is not usable here ({exc}); run `./run` where a C++ compiler is installed,"
                " or set WAYBILL_LOCAL_SERVER_URL to a llama-server"
            ) from exc
        llama_cpp.llama_log_set(_LOG_CALLBACK, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        _api = llama_cpp
    return _api


def _log_line(level: int, text: bytes | None, _data: object) -> None:
    if text and text.strip() not in (b"", b"."):
        is_error = level == 4  # GGML_LOG_LEVEL_ERROR
        _log.log(logging.ERROR if is_error else logging.DEBUG, "llama.cpp: %s", text.decode("utf-8", "replace").strip())


# C calls it for every line, so it lives as long as the library.
_LOG_CALLBACK: Final = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(_log_line)
