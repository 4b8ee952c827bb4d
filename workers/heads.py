"""Label heads in a process: those in force at hand, an attempt answered by one, and fitted anew as labels come in (dispatcher)."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from policies.catalog import HEAD
from policies.policyfile import Policy
from policies.pricing import estimate_tokens
from waybill.contract import Job, Usage
from waybill.ledger import grades, heads
from workers.gates import prompt_version
from workers.providers.base import Answer, Stop
from workers.telemetry import emit

if TYPE_CHECKING:
    from policies.labelhead import Head
    from policies.localgate import Scored
    from waybill.ledger.engine import Ledger
    from workers.attempt import Attempt
    from workers.runtime import Runtime

log = logging.getLogger("waybill.heads")

FEWEST: Final = 100
"""Labels of one prompt version from which on a head is fitted."""
GROWTH: Final = 0.2
"""Fitted anew once the labels have grown by this share (and by `FEWEST` / 2)."""
WINDOW: Final = 20_000
"""The latest labels of an intent, among which are"""
MOST: Final = 1000
"""the latest of either kind (sampled or not) that a head is fitted on: 2,000 take 1 to 4 s of CPU."""


@dataclass(frozen=True)
class Standing:
    """A head in force.

    Attributes:
        version: Hash of its content: what its gate's records belong to.
        records: Those that it was fitted on, each as it would have answered without.
    """

    version: str
    head: Head
    records: Sequence[Scored]


class Heads:
    """Those that were read, by intent and prompt version."""

    def __init__(self) -> None:
        self._standing: dict[tuple[str, str], Standing] = {}

    @property
    def standing(self) -> Mapping[tuple[str, str], Standing]:
        """By intent and prompt version."""
        return self._standing

    def get(self, intent: str, prompt: str) -> Standing | None:
        """The head of an intent's prompt version."""
        return self._standing.get((intent, prompt))

    async def look(self, ledger: Ledger) -> None:
        """Read what is in force now; what is no longer on the ledger is forgotten."""
        rows = await ledger.fetch(heads.LIST, {})
        known = {each.version: each for each in self._standing.values()}
        missing = [row["version"] for row in rows if row["version"] not in known]
        for row in await ledger.fetch(heads.MODELS, {"versions": missing}) if missing else ():
            head = await asyncio.to_thread(_unpack, bytes(row["model"]))
            if head is not None:
                known[row["version"]] = Standing(row["version"], head, head.records())
        self._standing = {
            (row["intent"], row["prompt"]): known[row["version"]] for row in rows if row["version"] in known
        }


def ask_head(runtime: Runtime, attempt: Attempt) -> Answer | None:
    """The answer of the head of the job's prompt version; None where there is none. Takes a millisecond of CPU."""
    standing = runtime.heads.get(attempt.intent, prompt_version(attempt.job))
    if standing is None:
        return None
    began = time.thread_time()
    logprobs = standing.head.logprobs(text_of(attempt.job))
    label = max(logprobs, key=logprobs.__getitem__)
    tokens = estimate_tokens(attempt.payload_bytes, runtime.policy.models[HEAD].bytes_per_token)
    return Answer(
        text=label,
        stop=Stop.COMPLETE,
        # It counts no tokens; these are what savings reckon a paid answer by.
        usage=Usage(input_tokens=tokens, output_tokens=estimate_tokens(len(label.encode()), 4.0)),
        served_model=HEAD,
        confidence=logprobs[label],
        label_logprobs=logprobs,
        cpu_s=time.thread_time() - began,
        model_hash=standing.version,
    )


def text_of(job: Job) -> str:
    """What differs from job to job of a prompt version."""
    # What is read of a long text is its beginning, and a context is what many jobs share.
    return "\n".join(part for part in (job.prompt, *(turn.content for turn in job.messages), job.context) if part)


class HeadFitter:
    """Fits the heads of a policy's intents anew as labels come in. More than one process may: the last one's head stands."""

    def __init__(self) -> None:
        self._counted: dict[str, tuple[str, Any, int]] = {}
        """By intent: the heads in force, when labels were last counted, and how many have come in since those heads."""

    async def look(self, ledger: Ledger, policy: Policy) -> None:
        """Fit what is due."""
        intents = [intent for intent, plan in policy.plans.items() if HEAD in plan.chain]
        if not intents:
            return
        for row in await ledger.fetch(heads.STANDING, {"intents": intents, "since_s": grades.SINCE_S}):
            intent, versions = row["intent"], row["versions"]
            known = self._counted.get(intent)
            after, fresh = (known[1], known[2]) if known and known[0] == versions else (row["made_at"], 0)
            [counted] = await ledger.fetch(heads.COUNT, {"intent": intent, "after": after})
            fresh += counted["labels"]
            if fresh >= (max(FEWEST // 2, GROWTH * row["labels"]) if versions else FEWEST):
                if await self._fit(ledger, intent):
                    # They may be gone again before the next look, which has to see that none is in force.
                    self._counted.pop(intent, None)
                    continue
                fresh = 0
            self._counted[intent] = (versions, counted["at"], fresh)

    async def _fit(self, ledger: Ledger, intent: str) -> bool:
        """Fit an intent's heads; whether any was put in force."""
        is_put = False
        asked = {"intent": intent, "since_s": grades.SINCE_S, "window": WINDOW, "most": MOST, "head": HEAD}
        groups = await asyncio.to_thread(_by_prompt, await ledger.fetch(heads.READ, asked))
        for prompt, labelled in groups.items():
            began = time.monotonic()
            content = await asyncio.to_thread(_fit, labelled)
            if content is None:
                continue
            version = hashlib.sha256(content).hexdigest()[:16]
            put = await ledger.fetch(
                heads.PUT,
                {
                    "intent": intent,
                    "prompt": prompt,
                    "version": version,
                    "labels": len(labelled),
                    "tenants": sorted({each.tenant for each in labelled}),
                    "model": content,
                    "items": [each.item for each in labelled],
                },
            )
            if put:
                is_put = True
                emit("head.fitted", intent=intent, fingerprint=prompt, version=version, labels=len(labelled),
                     seconds_s=time.monotonic() - began)  # fmt: skip
        return is_put


@dataclass(frozen=True)
class _Labelled:
    item: str
    tenant: str
    text: str
    label: str
    sampled: bool


def _by_prompt(rows: Sequence[Mapping[Any, Any]]) -> dict[str, list[_Labelled]]:
    """Rows of heads.READ (the latest first) by prompt version; of jobs with the same text the latest."""
    groups: dict[str, dict[str, _Labelled]] = {}
    for row in rows:
        job = Job.from_payload(row["payload"])
        label = json.loads(row["body"])["data"]
        if label in job.labels:
            text = text_of(job)
            found = _Labelled(row["item"], row["tenant"], text, label, row["sampled"])
            groups.setdefault(prompt_version(job), {}).setdefault(text, found)
    return {prompt: list(found.values()) for prompt, found in groups.items() if len(found) >= FEWEST}


def _fit(labelled: Sequence[_Labelled]) -> bytes | None:
    from policies.labelhead import fit_head  # scipy: only where there is something to fit

    if len({each.label for each in labelled}) < 2:
        return None
    texts, given, sampled = zip(*((each.text, each.label, each.sampled) for each in labelled), strict=True)
    return fit_head(texts, given, sampled).to_bytes()


def _unpack(content: bytes) -> Head | None:
    from policies.labelhead import BadHead, Head

    try:
        return Head.from_bytes(content)
    except BadHead as exc:
        log.error("a head cannot be read: %s", exc)
        return None
