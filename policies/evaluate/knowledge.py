"""What is known at a step: the prompt's scores always, an answer and its cost only when it was paid for.

`Evidence` holds everything about some items; `Knowledge.rows` is the one door through which a decision reads it, and hands out
the columns of the paid models alone. A cost is news only where it varies (a long answer hints at a hard question).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt

from policies.evaluate.answers import NOTHING, SHAPE_SIZE, normalise, shape
from policies.evaluate.features import surfaces
from policies.evaluate.outcomes import Floats, Outcomes
from policies.evaluate.precall import Precall
from policies.evaluate.smoother import Rows

Paid = tuple[int, ...]  # numbers of the models paid for, ascending; 0 is the flagship and never in it

# Scales of the ridge's columns: a larger scale is a smaller penalty. Agreement speaks first, the tag and the rest correct it;
# a tag at full weight overfits below about a thousand labels (docs/routing.md).
_AGREEMENT_SCALE = 1.0
_TAG_SCALE = 0.1
_TAG_AGREEMENT_SCALE = 0.1
_OTHER_SCALE = 0.06


@dataclass(frozen=True)
class Evidence:
    """All that was recorded about some items, in numbers."""

    tags: Floats
    surface: Floats
    scores: Floats  # the pre-call scorer's outputs
    shapes: Floats  # items x models x SHAPE_SIZE
    codes: npt.NDArray[
        np.int64
    ]  # items x models: equal numbers on a row are equal answers, negative agrees with nothing
    log_costs: Floats


@dataclass(frozen=True)
class Knowledge:
    """How evidence becomes rows, fixed on the training items.

    answered: models whose answers were recorded, worth paying for as a hint to go on or stop.
    metered: models whose cost varies from call to call.
    """

    precall: Precall
    answered: frozenset[int]
    metered: frozenset[int]
    centre: dict[Paid, Floats]
    spread: dict[Paid, Floats]

    def rows(self, evidence: Evidence, paid: Paid) -> Rows:
        """Return the rows for a decision after `paid` was paid for, reading nothing of any other model."""
        agreement = self._agreement(evidence, paid)
        raw = np.hstack([evidence.tags, self._others(evidence, paid), agreement])
        pooled = agreement
        if len(paid) > 2:
            pooled = np.hstack([agreement, (agreement.sum(axis=1) == 0)[:, None]])
        by_tag = [evidence.tags * pooled[:, [column]] * _TAG_AGREEMENT_SCALE for column in range(pooled.shape[1])]
        others = (self._others(evidence, paid, interact=True) - self.centre[paid]) / self.spread[paid]
        linear = np.hstack([evidence.tags * _TAG_SCALE, pooled * _AGREEMENT_SCALE, *by_tag, others * _OTHER_SCALE])
        return Rows(linear=linear, raw=raw)

    def _agreement(self, evidence: Evidence, paid: Paid) -> Floats:
        codes = evidence.codes
        pairs = [
            (codes[:, a] == codes[:, b]) & (codes[:, a] >= 0)
            for a, b in combinations(paid, 2)
            if {a, b} <= self.answered
        ]
        return np.array(pairs, dtype=np.float64).reshape(len(pairs), len(codes)).T

    def _others(self, evidence: Evidence, paid: Paid, *, interact: bool = False) -> Floats:
        parts = [evidence.surface, evidence.scores]
        for model in paid:
            if model in self.answered:
                parts.append(evidence.shapes[:, model])
            if model in self.metered:
                parts.append(evidence.log_costs[:, [model]])
        if interact:
            agreement = self._agreement(evidence, paid)
            parts.extend(evidence.scores * agreement[:, [column]] for column in range(agreement.shape[1]))
        return np.hstack(parts)


def gather(
    prompts: Sequence[str],
    intents: Sequence[str],
    answers: Sequence[Sequence[str | None]],
    costs: Floats,
    *,
    precall: Precall,
    scores: Floats | None = None,
) -> Evidence:
    """Turn recorded answers and costs into numbers.

    Args:
        answers: Items x models, the flagship first; None where not recorded or not yet paid for.
        scores: The pre-call scores, where the caller has better ones (out of fold) than the scorer's own.
    """
    models = costs.shape[1]
    shapes = np.zeros((len(prompts), models, SHAPE_SIZE))
    codes = np.full((len(prompts), models), -1, dtype=np.int64)
    for item, (prompt, row) in enumerate(zip(prompts, answers, strict=True)):
        numbers: dict[str, int] = {}
        for model, answer in enumerate(row):
            normal = normalise(answer)
            if normal is None:
                continue
            shapes[item, model] = shape(answer, normal, prompt)
            if normal != NOTHING:
                codes[item, model] = numbers.setdefault(normal, len(numbers))
    tags, surface = precall.encoder.onehot(intents), surfaces(prompts)
    return Evidence(
        tags=tags,
        surface=surface,
        scores=precall.score_forms(prompts, tags, surface) if scores is None else scores,
        shapes=shapes,
        codes=codes,
        log_costs=np.log(costs + 1e-9),
    )


def settle_knowledge(
    train: Outcomes, evidence: Evidence, precall: Precall, states: Sequence[Paid], *, metered: bool
) -> Knowledge:
    """Fix the scales of every state's rows on the training items.

    Args:
        metered: Whether the cost of a paid call is read.
    """
    knowledge = Knowledge(
        precall=precall,
        answered=answered_models(train),
        metered=frozenset(
            m
            for m in range(len(train.models))
            if metered and np.ptp(train.costs[:, m]) > 1e-3 * train.costs[:, m].mean()
        ),
        centre={},
        spread={},
    )
    for paid in states:
        others = knowledge._others(evidence, paid, interact=True)
        spread = others.std(axis=0)
        knowledge.centre[paid] = others.mean(axis=0)
        knowledge.spread[paid] = np.where(spread > 1e-9, spread, 1.0)
    return knowledge


def answered_models(train: Outcomes) -> frozenset[int]:
    """Return the pool models with any recorded answer."""
    return frozenset(m for m in range(1, len(train.models)) if any(row[m] is not None for row in train.answers))
