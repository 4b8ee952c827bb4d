"""When an answer may be given again, and how long a job waits for the answer of another. Pure.

Only the very same question counts. Questions that merely resemble each other are not looked for:
docs/decisions/0130-asked-once.md has the measurement.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from policies.policyfile import Policy

RENDERING: Final = 1
"""Raise it when adapters word prompts differently (schema instructions, labels): earlier answers then belong to other prompts."""
WAIT_INTERACTIVE_S: Final = 60.0
WAIT_BATCH_S: Final = 3600.0
"""Bounds for a wait whose end nobody sees: a leader that ends in any way frees its followers at once."""
WAIT_OF_SLACK: Final = 0.5
"""Share of the time to its deadline that a job may wait; in the rest it can still make the call itself."""


@dataclass(frozen=True, slots=True)
class Reuse:
    """The policy file's `[reuse]`.

    Attributes:
        ttl_s: How old an answer may be to be given again; 0 = never, and nobody waits for another's call.
        max_answer_bytes: Larger answers (as JSON) are not given again.
        max_questions: Of how many questions the ledger remembers who asked them; the oldest go first.
    """

    ttl_s: float = 86_400.0
    max_answer_bytes: int = 256 * 1024
    max_questions: int = 1_000_000


def outcome_key(policy: Policy, intent: str, model: str | None, cascades: Mapping[str, str]) -> str:
    """What the policy makes of an intent and a pin: models in order, effort, limits. Part of every answer's key.

    Args:
        cascades: Per intent the learned cascade in force, and whether it has drifted: answers that it kept go with it.

    Whatever the plan says counts, so a changed plan never gives an answer that was made under the old one; but for its reason:
    the figures in it move with every grade.
    """
    from policies.policyfile import AUTO  # which reads `Reuse` from here

    # An intent that nobody named is guessed, so any plan may be followed.
    plans = sorted(policy.plans.items()) if intent == AUTO else [(intent, policy.plans.get(intent))]
    followed = [(name, None if plan is None else replace(plan, reason=""), cascades.get(name)) for name, plan in plans]
    return _digest(repr((RENDERING, policy.version, intent, model, followed)))


def answer_key(question: str, outcome: str) -> str:
    """The key of an answer.

    Args:
        question: Of the job; waybill/question.py puts tenant, texts, form and parameters into it.
        outcome: `outcome_key`.
    """
    return _digest(f"{question} {outcome}")


def wait_s(*, priority: str, slack_s: float | None, stream: bool) -> float:
    """How long a job may wait for another's answer, at most; 0 = not at all.

    Who reads a stream wants the first words soon and could only be given the whole.
    """
    if stream:
        return 0.0
    bound_s = WAIT_INTERACTIVE_S if priority == "hi" else WAIT_BATCH_S
    return bound_s if slack_s is None else max(0.0, min(bound_s, WAIT_OF_SLACK * slack_s))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
