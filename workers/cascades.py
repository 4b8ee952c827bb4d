"""Learned cascades in a process: the dispatcher keeps those in force at hand, a worker fetches the one that a job began with."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from policies.cascading import LearnedCascade, begin, prompt_of, stand_in
from policies.policyfile import Policy
from policies.routing import Route, Snapshot
from waybill.errors import LedgerUnavailable
from waybill.ledger import cascades
from workers.telemetry import emit

if TYPE_CHECKING:
    from waybill.contract import Candidate
    from waybill.ledger.engine import Ledger
    from workers.runtime import Runtime

log = logging.getLogger("waybill.cascades")

LOOK_EVERY_S: Final = 10.0
_MOST_KEPT: Final = 64
"""Cascades in memory before those that have ended are dropped."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """A cascade and the model that it asks first; None = it has drifted, and the flagship stands in for it."""

    learned: LearnedCascade
    model: str | None

    def begin(self, found: Route, snapshot: Snapshot) -> Route:
        """The route as the cascade has it."""
        if self.model is None:
            return stand_in(found, self.learned, snapshot)
        return begin(found, self.learned, self.model, snapshot)

    def is_outdone(self, shown: str | None) -> bool:
        """Whether `shown`, which keeps a job's own target alone, costs no more than what it begins with."""
        return self.model is not None and self.learned.is_outdone(self.model, shown)

    def as_detail(self) -> dict[str, Any]:
        """As the decision keeps it."""
        return {"plan": "drifted" if self.model is None else "learned", "cascade": self.learned.number}


class Cascades:
    """Those that were read, by number; None where one cannot be read by this version, or is there no more."""

    def __init__(self) -> None:
        self._read: dict[int, LearnedCascade | None] = {}
        self._in_force: dict[str, int] = {}
        self._drifted: set[str] = set()
        self.standing: Mapping[str, str] = {}
        """Per intent which one is in force and whether it has drifted; another object once anything of it is different."""
        self._idle: dict[str, str] = {}

    def get(self, number: int) -> LearnedCascade | None:
        """A cascade that `bring` was asked for."""
        return self._read.get(number)

    @property
    def intents(self) -> list[str]:
        """Those whose prompts a cascade reads."""
        return [intent for intent in self._in_force if intent not in self._drifted]

    async def bring(self, ledger: Ledger, numbers: Iterable[int], *, give_up: asyncio.Event | None = None) -> None:
        """Read the cascades that are not at hand yet."""
        missing = sorted(set(numbers) - self._read.keys())
        if not missing:
            return
        rows = await ledger.fetch_patiently(cascades.READ, {"ids": missing}, give_up=give_up or asyncio.Event())
        ended = [number for number in self._read if number not in self._in_force.values()]
        for number in ended[: max(0, len(self._read) + len(missing) - _MOST_KEPT)]:
            del self._read[number]
        found: dict[int, LearnedCascade | None] = dict.fromkeys(missing)
        for row in rows:
            found[row["id"]] = await asyncio.to_thread(_unpack, row)
        self._read |= found

    async def keep_reading(self, ledger: Ledger) -> None:
        """Until cancelled: know what is in force."""
        while True:
            try:
                await self.look(ledger)
            except LedgerUnavailable as exc:
                emit("service.away", service="ledger", error=str(exc))
            except Exception:  # a bug here leaves the cascades as they are
                log.exception("the cascades cannot be read")
            await asyncio.sleep(LOOK_EVERY_S)

    async def look(self, ledger: Ledger) -> None:
        """Read what is in force now."""
        rows = await ledger.fetch(cascades.IN_FORCE, {})
        await self.bring(ledger, (row["id"] for row in rows))
        in_force = {row["intent"]: row["id"] for row in rows}
        for intent in in_force.keys() | self._in_force.keys():
            if in_force.get(intent) != self._in_force.get(intent):
                number = in_force.get(intent)
                emit("cascade.changed", intent=intent, state="ended" if number is None else "in force")
        self._in_force = in_force
        self._drifted = {row["intent"] for row in rows if row["has_drifted"]}
        standing = {intent: f"{number}{'!' if intent in self._drifted else ''}" for intent, number in in_force.items()}
        if standing != self.standing:
            self.standing = standing

    async def first(self, rows: Sequence[Mapping[str, Any]], policy: Policy) -> dict[str, Chosen]:
        """The first model of each job that a cascade decides about, by job id; in a thread, for the CPU it takes."""
        usable = {intent: found for intent in self._in_force if (found := self._usable(intent, policy)) is not None}
        fit = [
            row
            for row in rows
            if row["intent"] in usable and _is_fit(row) and usable[row["intent"]].keeps(row["quality"])
        ]
        stood_in = {row["id"]: Chosen(usable[row["intent"]], None) for row in fit if row["intent"] in self._drifted}
        fit = [row for row in fit if row["id"] not in stood_in and row["payload"] is not None]
        return stood_in | (await asyncio.to_thread(_first, fit, usable) if fit else {})

    def _usable(self, intent: str, policy: Policy) -> LearnedCascade | None:
        learned = self._read.get(self._in_force[intent])
        obstacle = (
            "this version cannot read it" if learned is None else learned.obstacle(policy.plans.get(intent), policy)
        )
        if obstacle != self._idle.get(intent):
            if obstacle is None:
                del self._idle[intent]
            else:
                self._idle[intent] = obstacle
                emit("cascade.idle", intent=intent, reason=obstacle)
        return learned if obstacle is None else None


async def bring_cascades(runtime: Runtime, candidates: Sequence[Candidate]) -> None:
    """Have at hand what will decide about the answers of these lanes."""
    numbers = {candidate.cascade for candidate in candidates if candidate.cascade is not None}
    if numbers:
        await runtime.cascades.bring(runtime.ledger, numbers, give_up=runtime.draining)


def _is_fit(row: Mapping[str, Any]) -> bool:
    """Whether an answer may be sent on: streamed ones are seen at once, pinned and local-only jobs have no choice."""
    return not row["stream"] and row["model"] is None and not row["local_only"]


def _first(rows: Sequence[Mapping[str, Any]], usable: Mapping[str, LearnedCascade]) -> dict[str, Chosen]:
    chosen: dict[str, Chosen] = {}
    for intent, learned in usable.items():
        prompts = {
            row["id"]: prompt for row in rows if row["intent"] == intent and (prompt := prompt_of(row["payload"]))
        }
        if prompts:
            models = learned.first(list(prompts.values()))
            chosen |= {job_id: Chosen(learned, model) for job_id, model in zip(prompts, models, strict=True)}
    return chosen


def _unpack(row: Mapping[Any, Any]) -> LearnedCascade | None:
    from policies.evaluate.packing import BadCascade, unpack  # scipy: only where there is a cascade

    try:
        return LearnedCascade(row["id"], row["intent"], row["target"], unpack(bytes(row["model"])))
    except BadCascade as exc:
        log.error("cascade %s of %s: %s", row["id"], row["intent"], exc)
        return None
