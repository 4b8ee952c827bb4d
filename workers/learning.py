"""What the dispatcher learns while it runs: plans from graded outcomes, label heads, and the intent of untagged prompts."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import policies
from policies.agreement import same_values, value_forms
from policies.dialects.carry import read
from policies.dialects.neutral import Unsupported, words
from policies.goodenough import fingerprint
from policies.policyfile import AUTO, Policy
from policies.quality import Choice, Standing, by_name, choose, learn, standing
from waybill.errors import LedgerUnavailable
from waybill.ledger import grades
from waybill.ledger.engine import Ledger
from workers.heads import HeadFitter
from workers.telemetry import emit

if TYPE_CHECKING:
    from policies.intents.classifier import Classifier, Guess

log = logging.getLogger("waybill.learning")

LEARN_EVERY_S: Final = 30.0
MOST_TARGETS: Final = 1000
"""Plans kept for targets of jobs' own; a plan is chosen in some 20 us."""
_LABELLED: Final = "classification"
"""What a job with labels is, whatever its prompt says."""
MODEL_FILE: Final = Path(policies.__file__).parent / "intents" / "model.npz"


class Learned:
    """The policy as the outcomes allow it now."""

    def __init__(self, policy: Policy) -> None:
        self._declared = policy
        self.policy = policy
        self.choices: Mapping[str, Choice] = {}
        self._known: Mapping[tuple[str, str], Standing] = {}
        self._own: dict[tuple[str, float], tuple[Policy, Choice]] = {}
        """Plans for targets that jobs stated, since the last look."""
        self._fitter = HeadFitter()

    def declare(self, policy: Policy) -> None:
        """Take a changed policy file; what was learned is learned anew at the next look."""
        self._declared = self.policy = policy
        self.choices = {}
        self._own.clear()

    async def keep_learning(self, ledger: Ledger) -> None:
        """Until cancelled."""
        since_s = 86400.0
        while True:
            try:
                await self.audit(ledger, since_s=since_s)
                await self.look(ledger)
                await self._fitter.look(ledger, self._declared)
                since_s = 20 * LEARN_EVERY_S
            except LedgerUnavailable as exc:
                emit("service.away", service="ledger", error=str(exc))
            except Exception:  # a bug here must not stop jobs: they go by the plans known so far
                log.exception("learning from outcomes failed")
            await asyncio.sleep(LEARN_EVERY_S)

    async def look(self, ledger: Ledger) -> None:
        """Read the standings and choose the plans."""
        before = self.policy.plans
        rows = await ledger.fetch(grades.STANDINGS, {"flagship": self._declared.flagship, "since_s": grades.SINCE_S})
        standings = [standing(row) for row in rows]
        self.policy, self.choices = learn(self._declared, standings)
        self._known = by_name(standings)
        self._own.clear()
        for intent, plan in self.policy.plans.items():
            if intent in before and plan.chain != before[intent].chain:
                choice = self.choices[intent]
                emit("plan.changed", intent=intent, kind=choice.kind, model=plan.chain[0], reason=plan.reason)
                if choice.shortfall is not None:
                    emit("plan.lacking", intent=intent, reason=choice.shortfall)

    async def audit(self, ledger: Ledger, *, since_s: float) -> None:
        """Compare local labels and copied values with the paid answers that replaced them."""
        rows = await ledger.fetch(grades.TO_AUDIT, {"since_s": since_s})
        if not rows:
            return
        paid = [json.loads(row["body"])["data"] for row in rows]
        compared = [compare(row["detail"], answer) for row, answer in zip(rows, paid, strict=True)]
        await ledger.fetch(
            grades.AUDIT,
            {
                "items": [row["item"] for row in rows],
                "tenants": [row["tenant"] for row in rows],
                "intents": [row["intent"] for row in rows],
                "models": [row["model"] for row in rows],
                "scores": [score for score, _ in compared],
                "details": [json.dumps(detail) for _, detail in compared],
            },
        )

    def plan(self, intent: str, quality: float | None) -> tuple[Policy, Choice | None]:
        """The policy for a job, whose plan is its own where it states a quality, and where that plan comes from."""
        plan = self._declared.plans.get(intent)
        if quality is None or plan is None:
            return self.policy, self.choices.get(intent)
        found = self._own.get((intent, quality))
        if found is None:
            choice = choose(self._declared, plan, self._known, quality)
            found = replace(self.policy, plans={**self.policy.plans, intent: choice.plan}), choice
            if len(self._own) >= MOST_TARGETS:
                self._own.clear()
            self._own[intent, quality] = found
        return found


def compare(local: Mapping[str, Any], paid: Any) -> tuple[float, dict[str, Any]]:
    """The grade of a local answer beside the paid one, and the record for its gate.

    Of copied values the grade is the share of fields that agree; the answer as a whole was right only where all do.
    """
    if "values" not in local:
        return float(local["label"] == paid), {**local, "paid": paid}
    forms = value_forms(paid) if isinstance(paid, dict) else {}
    said = {name: fingerprint(form) for name, form in forms.items()}
    share = same_values(local["values"], said, local["fields"])
    return share, {**local, "right": share == 1.0}


class Tagger:
    """Guesses the intent of jobs that came without one. The model file ships; nothing is downloaded."""

    def __init__(self) -> None:
        self._classifier: Classifier | None = None

    async def guess(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Guess]:
        """By job id, for rows whose intent is `auto`; in a thread, since a prompt takes a millisecond of CPU."""
        untagged = [row for row in rows if row["intent"] == AUTO and row["payload"] is not None]
        return await asyncio.to_thread(self._guess, untagged) if untagged else {}

    def _guess(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Guess]:
        from policies.intents.classifier import Classifier, Guess  # scipy: only where there is something untagged

        if self._classifier is None:
            self._classifier = Classifier.from_bytes(MODEL_FILE.read_bytes())
        return {
            row["id"]: Guess(_LABELLED, 1.0, _LABELLED)
            if "labels" in (row["needs"] or ())
            else self._classifier.guess(prompt_of(row["payload"]))
            for row in rows
        }


def prompt_of(payload: str) -> str:
    """The text that says what is to be done: instructions and the last turn."""
    request = json.loads(payload)
    if "wire" in request:
        return _said_on_the_wire(request["wire"])
    turns = request.get("messages") or ()
    last = turns[-1]["content"] if turns else request.get("prompt", "")
    return f"{request.get('system') or ''}\n{last}".strip()


def _said_on_the_wire(wire: Mapping[str, Any]) -> str:
    """The same of a request in a provider's dialect. One that cannot be read so says nothing of its kind."""
    try:
        prompt = read(wire["dialect"], wire["body"], tuple(wire.get("drop", ())))
    except Unsupported:
        return ""
    return f"{prompt.system}\n{words(prompt.turns[-1]) if prompt.turns else ''}".strip()
