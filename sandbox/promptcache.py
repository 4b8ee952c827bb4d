"""The prompt cache: prefixes that were sent before, for how long they last, and from when on they can be read.

Two kinds of planning, one store. `plan_blocks` is Claude's: the client marks blocks, an entry is the chain hash of
everything up to a marked block. `plan_stream` is OpenAI's: the prompt is one run of bytes, looked up in steps of 128
tokens, and from GPT-5.6 on also at the blocks the client marks.

A plan changes nothing. `commit` refreshes what was read and announces what is written; `begin` makes the
announced entries readable, when the first answer begins. So requests sent side by side with the same new prefix all
miss and all pay the write, as with the real providers.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256

_MAX_ENTRIES = 200_000
_SECOND_NS = 1_000_000_000
# Claude looks back this many blocks from a breakpoint for an entry written earlier.
LOOK_BACK_BLOCKS = 20
# OpenAI matches prefixes in steps of this many tokens.
STEP_TOKENS = 128


@dataclass(frozen=True, slots=True)
class Block:
    """A piece of a Claude prompt, in the order tools, system, messages."""

    material: bytes
    tokens: int
    # ttl_s: set where the client put a breakpoint.
    ttl_s: int | None = None


@dataclass(frozen=True, slots=True)
class Write:
    """An entry to be made."""

    key: bytes
    tokens: int
    ttl_s: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What the cache does for one request. The three counts are parts of the prompt's tokens."""

    read_tokens: int = 0
    write_short_tokens: int = 0
    write_long_tokens: int = 0
    reads: Sequence[bytes] = ()
    writes: Sequence[Write] = field(default=())


@dataclass(slots=True)
class _Entry:
    tokens: int
    ttl_s: int
    expires_ns: int
    # usable: set once, when the first answer that writes this entry begins.
    usable: bool = False


class PromptCache:
    """All entries of all accounts and models; the least recently used goes first when there are too many."""

    def __init__(self) -> None:
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()

    def plan_blocks(self, namespace: str, blocks: Sequence[Block], *, minimum: int, now_ns: int) -> Plan:
        """Plan a Claude request: the longest readable prefix, then a write up to the last breakpoint.

        Args:
            namespace: Account and model; nothing is shared across it.
            blocks: The whole prompt in order; those with `ttl_s` are breakpoints.
            minimum: Prefixes of fewer tokens are neither read nor written.
            now_ns: The time by which entries expire.
        """
        marked = [place for place, block in enumerate(blocks) if block.ttl_s is not None]
        if not marked:
            return Plan()
        keys, totals = _chain(namespace, blocks[: marked[-1] + 1])
        hit = -1
        for place in reversed(marked):
            if place <= hit:
                break
            for earlier in range(place, max(hit, place - LOOK_BACK_BLOCKS), -1):
                if totals[earlier] >= minimum and self._readable(keys[earlier], now_ns):
                    hit = earlier
                    break
        read = totals[hit] if hit >= 0 else 0
        reads = tuple(
            keys[place] for place in (*marked, hit) if 0 <= place <= hit and self._readable(keys[place], now_ns)
        )
        writes = []
        written, long_written = read, read
        for place in marked:
            if place > hit and totals[place] >= minimum:
                ttl_s = blocks[place].ttl_s or 0
                writes.append(Write(keys[place], totals[place], ttl_s))
                written = totals[place]
                if ttl_s >= 3600:
                    long_written = written
        return Plan(read, written - long_written, long_written - read, reads, tuple(writes))

    def plan_stream(
        self,
        namespace: str,
        prompt: bytes,
        *,
        bytes_per_token: float,
        minimum: int,
        now_ns: int,
        ttl_s: int,
        implicit: bool = True,
        breakpoints: Sequence[tuple[int, int]] = (),
        charged: bool = True,
    ) -> Plan:
        """Plan an OpenAI request.

        Args:
            namespace: Account, model and the client's cache key.
            prompt: The whole prompt as bytes.
            bytes_per_token: The estimator's divisor, which turns steps of tokens into steps of bytes.
            minimum: Shorter prompts are not cached.
            now_ns: The time by which entries expire.
            ttl_s: How long an implicit entry lasts.
            implicit: Whether the provider caches by itself; False with no breakpoints means no caching at all.
            breakpoints: (byte offset, ttl_s) the client marked, in order; the last four count (three with implicit).
            charged: Whether writes appear in the usage (from GPT-5.6 on); otherwise they are free and not shown.
        """
        step = int(STEP_TOKENS * bytes_per_token)
        marks: dict[int, int] = {}
        if implicit:
            first = -(-minimum // STEP_TOKENS) * step
            marks.update(dict.fromkeys(range(first, len(prompt) + 1, step), ttl_s))
        for offset, mark_ttl_s in breakpoints[-(3 if implicit else 4) :]:
            if offset / bytes_per_token >= minimum:
                marks[offset] = max(mark_ttl_s, marks.get(offset, 0))
        if not marks:
            return Plan()
        digest = sha256(namespace.encode())
        done = 0
        keys: list[tuple[int, bytes]] = []
        for offset in sorted(marks):
            digest.update(prompt[done:offset])
            done = offset
            keys.append((offset, digest.copy().digest()))
        hit = next((place for place in range(len(keys) - 1, -1, -1) if self._readable(keys[place][1], now_ns)), -1)
        read = int(keys[hit][0] / bytes_per_token) if hit >= 0 else 0
        writes = tuple(Write(key, int(offset / bytes_per_token), marks[offset]) for offset, key in keys[hit + 1 :])
        reads = tuple(key for _, key in keys[: hit + 1])
        if not charged or not writes:
            return Plan(read, 0, 0, reads, writes)
        long_written = max((write.tokens for write in writes if write.ttl_s > 3600), default=read)
        return Plan(read, writes[-1].tokens - long_written, long_written - read, reads, writes)

    def commit(self, plan: Plan, now_ns: int) -> None:
        """Refresh the entries that were read and announce those to be written (not readable before `begin`)."""
        for key in plan.reads:
            if entry := self._entries.get(key):
                entry.expires_ns = now_ns + entry.ttl_s * _SECOND_NS
                self._entries.move_to_end(key)
        for write in plan.writes:
            known = self._entries.get(write.key)
            if known is None or known.expires_ns <= now_ns:
                self._entries[write.key] = _Entry(write.tokens, write.ttl_s, now_ns + write.ttl_s * _SECOND_NS)
                self._entries.move_to_end(write.key)
            else:
                known.ttl_s = max(known.ttl_s, write.ttl_s)
                known.expires_ns = max(known.expires_ns, now_ns + known.ttl_s * _SECOND_NS)
        while len(self._entries) > _MAX_ENTRIES:
            self._entries.popitem(last=False)

    def begin(self, plan: Plan) -> None:
        """Make the written entries readable: the answer has begun."""
        for write in plan.writes:
            if entry := self._entries.get(write.key):
                entry.usable = True

    def _readable(self, key: bytes, now_ns: int) -> bool:
        entry = self._entries.get(key)
        if entry is None:
            return False
        if entry.expires_ns <= now_ns:
            del self._entries[key]
            return False
        return entry.usable


def _chain(namespace: str, blocks: Sequence[Block]) -> tuple[list[bytes], list[int]]:
    """Return for each block the hash of everything up to it and the tokens up to it."""
    digest = sha256(namespace.encode())
    keys, totals, total = [], [], 0
    for block in blocks:
        digest.update(len(block.material).to_bytes(8, "big"))
        digest.update(block.material)
        total += block.tokens
        keys.append(digest.copy().digest())
        totals.append(total)
    return keys, totals
