"""The models Waybill knows, with the quirks a router and an adapter must respect. Prices are elsewhere (pricing.py).

Sources, read 2026-11-23: the types of anthropic 2.12.0 and openai 3.54.0, the providers' documentation on API version
2026-10-21 and on the GPT-6 family, and the capability flags of public model lists. A model that is missing here can be
added in the policy file (`[models."id"]`); one that is listed there under the same id replaces this entry.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

Thinking = Literal["none", "optional", "default", "always"]
"""none: cannot think. optional: off unless asked for. default: on, can be switched off. always: cannot be switched off."""

Caching = Literal["none", "marked", "implicit", "explicit"]
"""marked: Claude's breakpoints. implicit: by itself and free (GPT before 5.6). explicit: breakpoints, and without them nothing
is written when the request says so (GPT-5.6 and later, which charge for writes). none: ours to arrange, or unknown."""


@dataclass(frozen=True, slots=True)
class Model:
    """A model and its quirks.

    Attributes:
        id: What the provider is asked for.
        provider: `anthropic`, `openai` or `local`: the queue that carries it.
        services: Lanes offered: `interactive`, `flex`, `batch`, `local`.
        context_tokens: Longest prompt plus answer.
        max_output_tokens: Longest answer, thinking included.
        thinking: Whether it thinks before answering; thinking is billed as output and eats `max_output_tokens`.
        efforts: Values it takes for reasoning effort, weakest first; empty = takes none.
        temperature: Whether sampling parameters are accepted at all.
        forced_tool_choice: Whether a tool may be forced (else use structured output).
        json_schema: Whether answers can be held to a JSON schema by the provider.
        vision: Whether it takes images.
        bytes_per_token: UTF-8 bytes of mixed text per token, for estimates before a call (+-35 % untrained).
        min_cacheable_tokens: Shortest prefix the provider's prompt cache keeps.
        caching: How its prompt cache is told what to keep.
    """

    id: str
    provider: str
    services: tuple[str, ...]
    context_tokens: int
    max_output_tokens: int
    thinking: Thinking = "none"
    efforts: tuple[str, ...] = ()
    temperature: bool = False
    forced_tool_choice: bool = True
    json_schema: bool = True
    vision: bool = True
    bytes_per_token: float = 4.0
    min_cacheable_tokens: int = 1024
    caching: Caching = "none"


_CLAUDE_EFFORTS = ("low", "medium", "high", "xhigh", "max")
_GPT_EFFORTS = ("none", "minimal", "low", "medium", "high")
_CLAUDE = ("interactive", "batch")
_GPT = ("interactive", "flex", "batch")
MILLION: Final = 1_000_000
HEAD: Final = "label-head"
"""Not a language model: the head of the job's intent and prompt version (policies/labelhead.py), where one is in force."""


def _claude(model_id: str, *, thinking: Thinking, forced: bool, min_cacheable: int = 512) -> Model:
    return Model(
        model_id,
        "anthropic",
        _CLAUDE,
        MILLION,
        128_000,
        thinking=thinking,
        efforts=_CLAUDE_EFFORTS,
        forced_tool_choice=forced,
        bytes_per_token=2.5,
        min_cacheable_tokens=min_cacheable,
        caching="marked",
    )


def _gpt(
    model_id: str,
    *,
    efforts: tuple[str, ...] = _GPT_EFFORTS,
    thinking: Thinking = "default",
    caching: Caching = "explicit",
) -> Model:
    return Model(
        model_id,
        "openai",
        _GPT,
        1_050_000,
        128_000,
        thinking=thinking,
        efforts=efforts,
        caching=caching,
    )


CATALOG: Final[Mapping[str, Model]] = {
    m.id: m
    for m in (
        _claude("claude-opus-5-5", thinking="always", forced=False),
        _claude("claude-sonnet-5-5", thinking="always", forced=False),
        _claude("claude-haiku-5-5", thinking="default", forced=True),
        _claude("claude-fable-5-2", thinking="always", forced=False),
        _claude("claude-fable-5-1", thinking="always", forced=False),
        _claude("claude-opus-5", thinking="default", forced=True),
        _claude("claude-sonnet-5", thinking="default", forced=True, min_cacheable=1024),
        Model(
            "claude-haiku-4-5",
            "anthropic",
            _CLAUDE,
            200_000,
            64_000,
            thinking="optional",
            bytes_per_token=3.3,
            min_cacheable_tokens=4096,
            caching="marked",
        ),
        _gpt("gpt-5.5", caching="implicit"),
        _gpt("gpt-5.6-sol"),
        _gpt("gpt-5.6-terra"),
        _gpt("gpt-5.6-luna"),
        _gpt("gpt-6-astra"),
        _gpt("gpt-6-sol"),
        _gpt("gpt-6-luna"),
        _gpt("gpt-6.1-sol"),
        _gpt("gpt-6.1-terra"),
        # 6.2 refuses the efforts none and minimal, so it always thinks.
        _gpt("gpt-6.2-astra", efforts=("low", "medium", "high"), thinking="always"),
        _gpt("gpt-6.2-sol", efforts=("low", "medium", "high"), thinking="always"),
        Model(
            "smollm2-135m-instruct",
            "local",
            ("local",),
            8192,
            2048,
            temperature=True,
            vision=False,
            bytes_per_token=3.5,
            min_cacheable_tokens=1,
        ),
        Model(HEAD, "local", ("local",), MILLION, 256, json_schema=False, vision=False, min_cacheable_tokens=1),
    )
}
