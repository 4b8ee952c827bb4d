"""Graded answers -> a learned cascade, ready to be put on the ledger (`waybill policy fit`)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from policies.cascading import prompt_of
from policies.evaluate.bounds import Quality
from policies.evaluate.cascade import fit_cascade
from policies.evaluate.outcomes import Outcomes, check_trainable
from policies.evaluate.packing import pack
from policies.evaluate.report import check_enough, describe_lacking, find_lacking
from policies.policyfile import Policy
from waybill.errors import ConfigError

MOST: Final = 20_000
"""Jobs that are read, the latest of an intent, each with all answers to it."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """A cascade and what it showed on its own training items, out of fold.

    Attributes:
        chain: Its models in the order in which they may be asked, the flagship last.
        content: As the ledger keeps it.
        saving: Share of the flagship's bill.
    """

    chain: tuple[str, ...]
    content: bytes
    labels: int
    quality: Quality
    saving: float


def columns_of(rows: Sequence[Mapping[Any, Any]], intent: str) -> dict[str, list[Any]]:
    """Rows of cascades.ANSWERED in the long format, of jobs that a cascade may decide about."""
    names = ("item_id", "intent", "prompt", "model", "score", "cost_usd", "answer")
    columns: dict[str, list[Any]] = {name: [] for name in names}
    for row in rows:
        prompt = prompt_of(row["payload"])
        if prompt is None:
            continue
        answer = json.loads(row["body"])["text"]
        values = (row["item"], intent, prompt, row["model"], row["score"], float(row["usd"]), answer)
        for name, value in zip(names, values, strict=True):
            columns[name].append(value)
    return columns


def pool_of(intent: str, policy: Policy, present: Sequence[str]) -> list[str]:
    """The paid models of the intent's chain that have outcomes, in the chain's order, the flagship left out.

    Raises:
        ConfigError: There is nothing to choose between.
    """
    plan = policy.plans.get(intent)
    if plan is None:
        raise ConfigError(
            f"--intent {intent}: policy {policy.version} has no such plan; it has {', '.join(policy.plans)}"
        )
    if policy.flagship not in plan.chain:
        raise ConfigError(
            f"the chain of {intent} does not hold the flagship {policy.flagship}, which a cascade needs to escalate to"
        )
    paid = [model for model in plan.chain if policy.models[model].provider != "local" and model != policy.flagship]
    pool = [model for model in paid if model in present]
    if not pool:
        raise ConfigError(
            f"no answer of {', '.join(paid) or 'a cheaper model'} to jobs of {intent} is graded beside {policy.flagship};"
            " `waybill policy shadow --intent ... --model ...` makes such pairs"
        )
    return pool


def fit(train: Outcomes, *, target: float, seed: int, name: str) -> Fitted:
    """Fit a chain.

    Raises:
        BadOutcomes: Nothing can be fitted.
        ConfigError: No cheaper way is shown to keep the target.
    """
    check_enough(train, name, target)
    check_trainable(train, name)
    cascade = fit_cascade(train, target=target, seed=seed, as_chain=True)
    if cascade.chosen is None:
        raise ConfigError(f"nothing was put in force: {describe_lacking(find_lacking(train, cascade, target), target)}")
    setting = cascade.settings[cascade.chosen]
    flagship, *pool = train.models
    return Fitted((*pool, flagship), pack(cascade.warm()), len(train), setting.quality, setting.saving)
