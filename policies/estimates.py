"""How many tokens a call will take, learned from the usage of earlier answers; no tokenizer is asked.

Two things are learned for each (model, intent): how many UTF-8 bytes one prompt token stands for, and how long answers
get. Start values come from the catalogue (bytes per token, +-35 % untrained: providers.md section 3) and from the most
that the call allows. Reservations use them, prices never do.

Each worker process keeps its own `Estimates` (an estimate must cost no round trip), starts from what the fleet has
learned and hands its share back from time to time (workers/limiter.py keeps that in Redis).
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import ceil
from typing import Final

from policies.catalog import Model
from policies.limits import Need, OutputCounted
from waybill.contract import Usage

MARGIN: Final = 0.1
"""Reserved on top of the estimated prompt: what is too much comes back at once when the call ends."""
FRAMING_TOKENS: Final = 16
"""The wire's own tokens around a prompt; matters for very short ones only."""
SURE: Final = 0.65
"""Share of an untrained estimate that a prompt certainly has (the spread of bytes per token over kinds of text)."""
QUANTILE: Final = 0.9
REMEMBERED: Final = 64
"""Lengths of answers kept for the percentile."""
SIZED: Final = 32
"""Answers after which a limit may be taken from their lengths."""
ROOM: Final = 2
"""Times the longest of the last answers."""
LEAST_ROOM: Final = 512
TRAINED: Final = 5
"""Answers after which what was learned replaces the start value."""
_STEP: Final = 0.1
_MOST_ENTRIES: Final = 5000


@dataclass(slots=True)
class _Seen:
    """What one (model, intent) has shown.

    Attributes:
        tokens_per_byte: Running mean.
        deviation: Running mean of the relative distance from it.
        outputs: Lengths of the last answers, thinking included.
        count: Answers seen.
    """

    tokens_per_byte: float = 0.0
    deviation: float = 0.0
    outputs: deque[int] = field(default_factory=lambda: deque(maxlen=REMEMBERED))
    count: int = 0

    def observe(self, payload_bytes: int, usage: Usage) -> None:
        ratio = max(0, usage.prompt_tokens - FRAMING_TOKENS) / payload_bytes
        # A plain mean until the steps are small enough: the first answer must not weigh for ever.
        step = max(_STEP, 1 / (self.count + 1))
        if self.count and self.tokens_per_byte > 0:
            distance = abs(ratio - self.tokens_per_byte) / self.tokens_per_byte
            self.deviation += step * (distance - self.deviation)
        self.tokens_per_byte += step * (ratio - self.tokens_per_byte)
        self.outputs.append(usage.output_tokens)
        self.count += 1

    def output_quantile(self) -> int:
        """The smallest remembered length that `QUANTILE` of them do not exceed."""
        ordered = sorted(self.outputs)
        return ordered[max(0, ceil(QUANTILE * len(ordered)) - 1)]


class Estimates:
    """Estimates of one process."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, str], _Seen] = {}

    def observe(self, model_id: str, intent: str, payload_bytes: int, usage: Usage) -> None:
        """Learn from an answer. An empty prompt teaches nothing."""
        if payload_bytes <= 0:
            return
        if (model_id, intent) not in self._seen and len(self._seen) >= _MOST_ENTRIES:
            self._seen.pop(next(iter(self._seen)))
        self._seen.setdefault((model_id, intent), _Seen()).observe(payload_bytes, usage)

    def input_tokens(self, model: Model, intent: str, payload_bytes: int) -> int:
        """Expected prompt tokens, cached or not, without margin."""
        seen = self._trained(model.id, intent)
        ratio = 1 / model.bytes_per_token if seen is None else seen.tokens_per_byte
        return ceil(payload_bytes * ratio) + FRAMING_TOKENS

    def output_tokens(self, model: Model, intent: str, max_output_tokens: int) -> int:
        """What nine of ten answers do not exceed; the most allowed as long as too few were seen."""
        seen = self._trained(model.id, intent)
        return max_output_tokens if seen is None else min(max_output_tokens, seen.output_quantile())

    def learned_output(self, model_id: str, intent: str) -> int | None:
        """What nine of ten answers do not exceed; None as long as too few were seen."""
        seen = self._trained(model_id, intent)
        return None if seen is None else seen.output_quantile()

    def output_room(self, model_id: str, intent: str, most: int) -> int:
        """A limit for the next answer: twice the longest of the last ones, never above `most`.

        A tight limit lets more calls run at once, here and at the provider (docs/limits.md). An answer that is cut by it
        is asked for again with `most`.
        """
        seen = self._seen.get((model_id, intent))
        if seen is None or len(seen.outputs) < SIZED:
            return most
        return min(most, max(LEAST_ROOM, ROOM * max(seen.outputs)))

    def need(
        self,
        model: Model,
        intent: str,
        *,
        payload_bytes: int,
        max_output_tokens: int,
        output_counted: OutputCounted,
    ) -> Need:
        """What a call reserves.

        Args:
            model: Whose limits they are.
            intent: Kind of work.
            payload_bytes: UTF-8 bytes of the prompt texts, >= 0.
            max_output_tokens: As the call will be sent.
            output_counted: When the provider charges output. One that takes `max_tokens` at the start admits by it, so
                a smaller reservation would be refused there; what is not generated comes back at the end on both sides.
        """
        seen = self._trained(model.id, intent)
        expected = self.input_tokens(model, intent, payload_bytes)
        margin = MARGIN if seen is None else max(MARGIN, 2 * seen.deviation)
        likely = self.output_tokens(model, intent, max_output_tokens)
        return Need(
            input=ceil(expected * (1 + margin)),
            output=max_output_tokens if output_counted == "at_start" else likely,
            least_input=int(expected * SURE),
            least_output=0,
        )

    def snapshot(self) -> dict[str, str]:
        """What was learned, as text by `model intent`, for other processes to start from."""
        return {
            f"{model} {intent}": json.dumps(
                [seen.tokens_per_byte, seen.deviation, seen.output_quantile(), seen.count], separators=(",", ":")
            )
            for (model, intent), seen in self._seen.items()
            if seen.count >= TRAINED
        }

    def adopt(self, snapshot: Mapping[str, str]) -> None:
        """Start from what others have learned, where this process knows less. Entries that cannot be read are left out."""
        for name, text in snapshot.items():
            model, _, intent = name.partition(" ")
            try:
                ratio, deviation, output, count = json.loads(text)
                found = _Seen(float(ratio), float(deviation), deque([int(output)], maxlen=REMEMBERED), TRAINED)
            except (ValueError, TypeError):
                continue
            mine = self._seen.get((model, intent))
            if (
                intent
                and count >= TRAINED
                and 0 < found.tokens_per_byte < 100
                and (mine is None or mine.count < TRAINED)
            ):
                self._seen[model, intent] = found

    def _trained(self, model_id: str, intent: str) -> _Seen | None:
        seen = self._seen.get((model_id, intent))
        return seen if seen is not None and seen.count >= TRAINED else None
