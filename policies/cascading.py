"""The learned cascade of an intent, as the fleet plays it: whom to ask first, and after each answer whether to keep it or whom to ask next.

`waybill policy fit` learns one from graded answers (policies/evaluate/cascade.py, as a chain) and puts it on the ledger under a
number. The dispatcher lets it choose the first model of a job and writes the number on the candidates; whoever works on the job
asks that cascade and no other. It decides only about answers that have passed every check, and only among the candidates of the
route: the policy file's chain, capabilities and outages come first.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from policies.dialects.carry import read
from policies.dialects.neutral import Unsupported, words
from policies.evaluate.answers import normalise, shape
from policies.fallback import Accept, Decision, Escalate, History
from policies.goodenough import fingerprint
from policies.policyfile import Plan, Policy
from policies.routing import Route, Snapshot

if TYPE_CHECKING:
    from policies.evaluate.cascade import Cascade
    from policies.evaluate.knowledge import Evidence

_NOTHING = fingerprint("")


@dataclass(frozen=True, slots=True)
class Said:
    """An answer in numbers, as it is kept with the decision that followed it; no text can be read from it.

    Attributes:
        model: Who gave it.
        said: Equal for answers that say the same (`fingerprint`).
        shape: Kind, length and the like (`policies.evaluate.answers.shape`).
    """

    model: str
    said: str
    shape: tuple[float, ...]

    @classmethod
    def of(cls, model: str, text: str, prompt: str) -> Said:
        """What an answer comes to."""
        return cls(model, fingerprint(text), shape(text, normalise(text), prompt))

    @classmethod
    def from_json(cls, kept: Mapping[str, Any]) -> Said:
        """The inverse of `as_json`."""
        return cls(kept["model"], kept["said"], tuple(kept["shape"]))

    def as_json(self) -> dict[str, Any]:
        """As a decision keeps it."""
        return {"model": self.model, "said": self.said, "shape": list(self.shape)}


@dataclass(frozen=True)
class LearnedCascade:
    """A cascade with the number under which the ledger keeps it; `cascade` is warm."""

    number: int
    intent: str
    target: float
    cascade: Cascade

    @property
    def chain(self) -> tuple[str, ...]:
        """Its models in the order in which they may be asked, the flagship last."""
        flagship, *pool = self.cascade.models
        return (*pool, flagship)

    def obstacle(self, plan: Plan | None, policy: Policy) -> str | None:
        """Why it may not decide under this policy; None when it may."""
        if plan is None:
            return f"the policy has no plan for {self.intent}"
        if self.cascade.models[0] != policy.flagship:
            return f"it was learned beside {self.cascade.models[0]}, and the flagship is {policy.flagship}"
        outside = [model for model in self.chain if model not in plan.chain]
        return f"{', '.join(outside)} is not in the plan's chain" if outside else None

    def keeps(self, quality: float | None) -> bool:
        """Whether it was fitted for what a job wants kept; None = what the policy says, which it was."""
        return quality is None or quality <= self.target

    def is_outdone(self, first: str, shown: str | None) -> bool:
        """Whether `shown`, which keeps a job's own target alone, costs no more than the model that it would ask first."""
        return shown in self.chain and self.chain.index(shown) <= self.chain.index(first)

    def first(self, prompts: Sequence[str]) -> list[str]:
        """The model to be asked first, for each prompt."""
        moves = self.cascade.decide(self._evidence(prompts, ()), ())
        return [self.cascade.models[move.model] for move in moves]

    def following(self, prompt: str, answers: Sequence[Said]) -> str | None:
        """The model to be asked after these answers, the latest last; None = keep the latest."""
        models = self.cascade.models
        paid = tuple(sorted({models.index(each.model) for each in answers if each.model in models[1:]}))
        # The flagship's answer is kept, and so is one that came after a stronger model's: going on was not learned there.
        if not answers or not paid or answers[-1].model != models[paid[-1]] or paid not in self.cascade.steps:
            return None
        [move] = self.cascade.decide(self._evidence([prompt], answers), paid)
        return None if move.kind == "stop" else models[move.model]

    def _evidence(self, prompts: Sequence[str], answers: Sequence[Said]) -> Evidence:
        import numpy as np

        from policies.evaluate.answers import SHAPE_SIZE
        from policies.evaluate.features import surfaces
        from policies.evaluate.knowledge import Evidence

        models, precall = self.cascade.models, self.cascade.knowledge.precall
        shapes = np.zeros((len(prompts), len(models), SHAPE_SIZE))
        codes = np.full((len(prompts), len(models)), -1, dtype=np.int64)
        numbers: dict[str, int] = {}
        for each in answers:
            if each.model in models:
                at = models.index(each.model)
                shapes[:, at] = each.shape
                codes[:, at] = -1 if each.said == _NOTHING else numbers.setdefault(each.said, len(numbers))
        tags, surface = precall.encoder.onehot([self.intent] * len(prompts)), surfaces(prompts)
        return Evidence(
            tags=tags,
            surface=surface,
            scores=precall.score_forms(prompts, tags, surface),
            shapes=shapes,
            codes=codes,
            log_costs=np.zeros((len(prompts), len(models))),  # a chain reads no costs
        )


def begin(found: Route, learned: LearnedCascade, model: str, snapshot: Snapshot) -> Route:
    """The route with the cascade's first model first, then the stronger ones, then the others; every candidate bears its number.

    Args:
        found: As routing made it, before lanes are chosen.
        model: From `first`. Where it is passed over or out, the next stronger one that is not takes its place.
    """
    marked = [replace(each, cascade=learned.number) for each in found.candidates]
    wanted = learned.chain[learned.chain.index(model) :]
    place = {each.model: each for each in marked}
    going = [place[name] for name in wanted if name in place]
    while going and snapshot.outage(going[0]) is not None:
        going.pop(0)
    if not going:
        return replace(found, candidates=tuple(marked))
    reason = f"cascade {learned.number} asks {going[0].model} first: the cheapest way shown to keep {learned.target:g}"
    going[0] = replace(going[0], reason=reason)
    # Local models keep their place: their gate decides on each answer.
    local = [each for each in marked if each.provider == "local" and each.model not in learned.chain]
    head = [*local, *going]
    names = {each.model for each in head}
    rest = [each for each in marked if each.model not in names]
    return replace(found, candidates=(*head, *rest), reason=head[0].reason if local else reason)


def stand_in(found: Route, learned: LearnedCascade, snapshot: Snapshot) -> Route:
    """The route with the flagship first, in place of a cascade that has drifted; no candidate bears its number.

    What the plan begins with may be the very model whose answers were found wanting. Where the flagship is passed over or out, the
    route stays as it is: an answer is better than none.
    """
    flagship = learned.chain[-1]
    first = next((each for each in found.candidates if each.model == flagship), None)
    if first is None or snapshot.outage(first) is not None:
        return found
    reason = f"cascade {learned.number} has drifted: {flagship} until another one is fitted"
    local = [each for each in found.candidates if each.provider == "local" and each.model not in learned.chain]
    head = [*local, replace(first, reason=reason)]
    names = {each.model for each in head}
    rest = [each for each in found.candidates if each.model not in names]
    return replace(found, candidates=(*head, *rest), reason=head[0].reason)


def weigh(
    accepted: Accept,
    learned: LearnedCascade | None,
    *,
    prompt: str,
    text: str,
    earlier: Sequence[Said],
    history: History,
    flagship: str,
) -> Decision:
    """Decide on an answer that has passed the checks.

    Args:
        learned: The cascade that the job began with; None = it cannot be read, so every answer goes on to the flagship.
        earlier: Earlier answers to the same job that passed the checks too.
    """
    said = Said.of(history.lane, text, prompt)
    if learned is None:
        if history.lane == flagship:
            return accepted
        wanted: Sequence[str] = [flagship]
        why = "its cascade cannot be read"
    else:
        following = learned.following(prompt, (*earlier, said))
        if following is None:
            return replace(accepted, reason=f"{accepted.reason}; cascade {learned.number} keeps it")
        wanted = learned.chain[learned.chain.index(following) :]
        why = f"cascade {learned.number} does not settle for it"
    index = _index(history, wanted)
    if index is None or history.streamed or history.used >= history.max_attempts:
        return replace(accepted, reason=f"{accepted.reason}; {why}, and no other model may be asked")
    return Escalate(index, f"{history.lane}: {why} -> {history.route[index].model}", said.as_json())


def _index(history: History, wanted: Sequence[str]) -> int | None:
    """Where in the rest of the route the first of these models stands."""
    rest = range(history.index + 1, len(history.route))
    return next((at for model in wanted for at in rest if history.route[at].model == model), None)


def prompt_of(payload: str) -> str | None:
    """What a cascade reads of a job: instructions and the last turn. None where they are not all that is asked (pictures, tools), or
    the answer may be more than a text: a cascade has learned nothing about those.
    """
    return spoken(json.loads(payload))


def spoken(request: Mapping[str, Any]) -> str | None:
    """The same of a request's fields, in our own form or in a provider's dialect (`wire`)."""
    wire = request.get("wire")
    if wire is not None:
        return _spoken_on_the_wire(wire)
    turns = request.get("messages") or ()
    last = turns[-1]["content"] if turns else request.get("prompt", "")
    return f"{request.get('system') or ''}\n{last}".strip()


def _spoken_on_the_wire(wire: Mapping[str, Any]) -> str | None:
    try:
        prompt = read(wire["dialect"], wire["body"], tuple(wire.get("drop", ())))
    except Unsupported:
        return None
    if prompt.tools or prompt.has_images or not prompt.turns or prompt.turns[-1].role != "user":
        return None
    return f"{prompt.system}\n{words(prompt.turns[-1])}".strip()
