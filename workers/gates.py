"""The local lane's gates in a process: worked out anew from the ledger's audits, and what they are asked with."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from policies.goodenough import LocalCheck
from policies.localgate import RECORDS, SHUT, USUAL_TARGET, Gate, Record, Scored, calibrated, work_out, work_out_scored
from policies.policyfile import Policy
from waybill.errors import LedgerUnavailable
from waybill.ledger import grades
from workers.telemetry import emit

if TYPE_CHECKING:
    from waybill.contract import Job
    from waybill.ledger.engine import Ledger
    from workers.heads import Heads

log = logging.getLogger("waybill.gates")

LOOK_EVERY_S: Final = 10.0

Key = tuple[str, str, str]
"""Intent, prompt version, hash of the model file or version of the head."""


class Gates:
    """What the records allow now."""

    def __init__(self, policy: Policy, heads: Heads) -> None:
        self._policy = policy
        self._heads = heads
        self._gates: dict[Key, Gate] = {}

    @property
    def standing(self) -> Mapping[Key, Gate]:
        """Those with any record."""
        return self._gates

    @property
    def open_heads(self) -> frozenset[str]:
        """Intents of which a head may answer at all."""
        standing = self._heads.standing.items()
        return frozenset(
            intent
            for (intent, prompt), each in standing
            if self._gates.get((intent, prompt, each.version), SHUT).is_open
        )

    def declare(self, policy: Policy) -> None:
        """Another policy file is in force: its targets hold from the next look on."""
        self._policy = policy

    def check(self, intent: str, job: Job, model: str) -> LocalCheck:
        """What decides about a local label of this job.

        Args:
            intent: As routed.
            job: The request.
            model: Hash of the model file, or version of the head.
        """
        prompt = prompt_version(job)
        return LocalCheck(self._gates.get((intent, prompt, model), SHUT), prompt, model, random.random())

    async def keep_looking(self, ledger: Ledger) -> None:
        """Until cancelled."""
        while True:
            try:
                await self._heads.look(ledger)
                self.update(await ledger.fetch(grades.AUDITS, {"most": RECORDS, "since_s": grades.SINCE_S}))
            except LedgerUnavailable as exc:
                emit("service.away", service="ledger", error=str(exc))
            except Exception:  # a bug here leaves the gates as they are
                log.exception("the local gates cannot be worked out")
            await asyncio.sleep(LOOK_EVERY_S)

    def update(self, rows: Sequence[Mapping[Any, Any]]) -> None:
        """Work the gates out from rows of grades.AUDITS, and those of heads also from what they were fitted on."""
        found: dict[Key, list[Record]] = {}
        scored: dict[Key, list[Scored]] = {
            (*key, each.version): list(each.records) for key, each in self._heads.standing.items()
        }
        for row in rows:
            detail = row["detail"]
            key = (row["intent"], detail["prompt"], detail["model"])
            if "score" in detail:
                scored.setdefault(key, []).append(Scored(detail["score"], detail["right"]))
            elif key in scored:  # a head's
                label, share = calibrated(detail["logprobs"], {})
                scored[key].append(Scored(share, label == detail["paid"]))
            else:
                found.setdefault(key, []).append(Record(detail["logprobs"], detail["paid"]))
        gates = {key: work_out(records, target=self._target(key[0])) for key, records in found.items()}
        gates |= {key: work_out_scored(records, target=self._target(key[0])) for key, records in scored.items()}
        for key in gates.keys() | self._gates.keys():
            gate = gates.get(key, SHUT)
            if gate.is_open != self._gates.get(key, SHUT).is_open:
                emit("gate.changed", intent=key[0], fingerprint=key[1], state="open" if gate.is_open else "closed",
                     reason=gate.describe())  # fmt: skip
        self._gates = gates

    def _target(self, intent: str) -> float:
        plan = self._policy.plans.get(intent)
        own = None if plan is None else plan.quality
        return own or self._policy.quality or USUAL_TARGET


def prompt_version(job: Job) -> str:
    """What stays the same over the jobs of one template: instructions, labels or schema, and the version that the producer names.

    A calibration holds for this alone: other words or labels shift what a small model says.
    """
    fixed: list[Any] = [job.system, list(job.labels), job.metadata.get("prompt_version")]
    if job.json_schema is not None:
        fixed.append(job.json_schema)
    return hashlib.sha256(json.dumps(fixed).encode()).hexdigest()[:16]
