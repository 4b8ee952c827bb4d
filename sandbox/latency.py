"""How long an answer takes: the time to its first byte, and the pace after it.

`model` uses each model's own figures (models.py), times a factor; `fixed` makes every answer take the same time, all
of it before the first byte, which is what a throughput bench wants; `none` answers at once.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from sandbox.models import Model

_FORM = re.compile(r"(none)|fixed:(\d+(?:\.\d+)?)(ms|s)|model(?::(\d+(?:\.\d+)?))?")


@dataclass(frozen=True, slots=True)
class Latency:
    """`fixed_s` wins over the model's figures; `scale` stretches those, 0 makes them instant."""

    fixed_s: float | None = None
    scale: float = 1.0

    def first_s(self, model: Model, given_s: float | None) -> float:
        """Return the seconds until the first byte. `given_s` is a total from the answer book, a fifth of it here."""
        if given_s is not None:
            return given_s / 5
        return self.fixed_s if self.fixed_s is not None else model.first_token_s * self.scale

    def per_token_s(self, model: Model, given_s: float | None, output_tokens: int) -> float:
        """Return the seconds each output token takes after the first byte."""
        if given_s is not None:
            return given_s * 4 / 5 / max(1, output_tokens)
        return 0.0 if self.fixed_s is not None else self.scale / model.tokens_per_s


def latency_from(text: str) -> Latency:
    """Return the latency of a command line word: `none`, `fixed:50ms`, `fixed:1.5s`, `model` or `model:0.2`.

    Raises:
        ValueError: anything else.
    """
    found = _FORM.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is no latency; write none, fixed:50ms, model or model:0.2")
    if found[1]:
        return Latency(fixed_s=0.0)
    if found[2]:
        return Latency(fixed_s=float(found[2]) / (1000 if found[3] == "ms" else 1))
    return Latency(scale=float(found[4] or 1))
