"""The intent classifier: one regularised least-squares model over groups of signs, with a learned point below which it abstains.

Least squares on one-hot intents has a closed form in the number of prompts, so fitting thousands of prompts takes seconds, and
served it is a dictionary look-up per sign. The files it writes hold words and weights, never a prompt.
"""

from __future__ import annotations

import io
import zipfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from policies.evaluate.outcomes import Floats, Ints
from policies.intents.phrases import own_prompts
from policies.intents.signs import signs

# Weight of each group's kernel. Chosen once on unseen templates and unseen data sets (docs/routing.md); flat around here.
_GROUP_WEIGHT = {"words": 1.0, "edges": 0.5, "request": 1.0, "cues": 1.0, "form": 0.3}
_PENALTY = 0.5
_OWN_WEIGHT = 1.0  # of one of our own prompts, beside a mean of 1 for a given prompt
_FOLDS = 5
# The abstention point: the lowest confidence whose answered prompts were this often right, out of fold by template.
_ANSWERED_RIGHT = 0.9
_TEMPERATURES = tuple(float(value) for value in np.geomspace(2.0, 20.0, 12))


class BadModel(ValueError):
    """The bytes are not a classifier; the message says what to do."""


@dataclass(frozen=True)
class Guess:
    """The likeliest intent, how sure, and `intent`: the same, or None where the classifier abstains."""

    likeliest: str
    confidence: float
    intent: str | None


@dataclass(frozen=True)
class Classifier:
    """Weights per sign; `threshold` is the confidence below which a guess abstains."""

    labels: tuple[str, ...]
    index: dict[str, int]
    weights: Floats
    offset: Floats
    temperature: float
    threshold: float

    def guess(self, prompt: str) -> Guess:
        """Return the intent of a prompt; its untagged job then goes by the default plan where the guess abstains."""
        scores = self.offset.copy()
        for group, found in signs(prompt).items():
            rows = [row for row in map(self.index.get, found) if row is not None]
            if rows:
                scores += np.sqrt(_GROUP_WEIGHT[group] / len(found)) * self.weights[rows].sum(axis=0)
        shares = _softmax(scores[None], self.temperature)[0]
        best = int(np.argmax(shares))
        confidence = float(shares[best])
        return Guess(self.labels[best], confidence, self.labels[best] if confidence >= self.threshold else None)

    def to_bytes(self) -> bytes:
        """Return the model as a file; the same model always gives the same bytes."""
        kept = np.flatnonzero(np.abs(self.weights).max(axis=1) > 0)
        names = sorted(self.index, key=self.index.__getitem__)
        buffer = io.BytesIO()
        np.savez_compressed(
            buffer,
            labels=np.array(self.labels),
            signs=np.frombuffer("\n".join(names[row] for row in kept).encode(), dtype=np.uint8),
            weights=self.weights[kept].astype(np.float16),
            numbers=np.array([*self.offset, self.temperature, self.threshold]),
        )
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes) -> Classifier:
        """Read what `to_bytes` wrote.

        Raises:
            BadModel: It is something else; train it again with `waybill policy train-intents`.
        """
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as stored:
                names = bytes(stored["signs"]).decode().split("\n")
                numbers = stored["numbers"]
                return cls(
                    labels=tuple(str(label) for label in stored["labels"]),
                    index={name: row for row, name in enumerate(names)},
                    weights=stored["weights"].astype(np.float64),
                    offset=numbers[:-2],
                    temperature=float(numbers[-2]),
                    threshold=float(numbers[-1]),
                )
        except (ValueError, KeyError, EOFError, OSError, zipfile.BadZipFile) as exc:
            raise BadModel("not an intent model; write one with `waybill policy train-intents FILE`") from exc


def fit_classifier(
    prompts: Sequence[str],
    intents: Sequence[str],
    *,
    groups: Sequence[str] | None = None,
    producers: Sequence[str] | None = None,
    with_own: bool = True,
    seed: int = 0,
) -> Classifier:
    """Fit the classifier.

    Args:
        groups: Templates: many prompts of one template count less each. None takes each distinct prompt for itself.
        producers: What is left out together when confidence and abstention are learned, so that both speak of prompts of a
            producer never met. None takes the groups.
        with_own: Learn from our own prompts as well, for those intents that occur here.
    """
    labels = tuple(sorted(set(intents)))
    texts, wanted = list(prompts), list(intents)
    names = list(groups) if groups is not None else list(prompts)
    counts = Counter(names)
    weight = np.array([counts[name] ** -0.5 for name in names])
    weight /= weight.mean()
    if with_own:
        own = [(prompt, intent) for prompt, intent in own_prompts() if intent in labels]
        texts += [prompt for prompt, _ in own]
        wanted += [intent for _, intent in own]
        weight = np.concatenate([weight, np.full(len(own), _OWN_WEIGHT)])
    index, rows = _encode(texts)
    targets = np.array([[float(intent == label) for label in labels] for intent in wanted])
    kernel = np.asarray((rows @ rows.T).todense())
    unseen = _unseen(kernel, targets, weight, names if producers is None else producers, seed)
    truth = np.argmax(targets[: len(names)], axis=1)
    temperature = min(_TEMPERATURES, key=lambda value: _surprise(_softmax(unseen, value), truth))
    dual, offset = _solve(kernel, targets, weight)
    return Classifier(
        labels=labels,
        index=index,
        weights=np.asarray(rows.T @ dual),
        offset=offset,
        temperature=temperature,
        threshold=_abstention(_softmax(unseen, temperature), truth),
    )


def _encode(prompts: Sequence[str]) -> tuple[dict[str, int], sparse.csr_matrix]:
    """Number the signs and return one row per prompt, each group at the length of its weight's root."""
    index: dict[str, int] = {}
    columns: list[int] = []
    values: list[float] = []
    starts = [0]
    for prompt in prompts:
        for group, found in signs(prompt).items():
            if found:
                columns.extend(index.setdefault(sign, len(index)) for sign in sorted(found))
                values.extend([float(np.sqrt(_GROUP_WEIGHT[group] / len(found)))] * len(found))
        starts.append(len(columns))
    return index, sparse.csr_matrix((values, columns, starts), shape=(len(prompts), len(index)))


def _solve(kernel: Floats, targets: Floats, weight: Floats) -> tuple[Floats, Floats]:
    offset = weight @ targets / weight.sum()
    dual = np.linalg.solve(kernel + _PENALTY * np.diag(1 / weight), targets - offset)
    return dual, offset


def _unseen(kernel: Floats, targets: Floats, weight: Floats, names: Sequence[str], seed: int) -> Floats:
    """Return the scores of each given prompt by models that have not seen its group; our own prompts are always seen."""
    distinct = {name: number for number, name in enumerate(sorted(set(names)))}
    fold_of_group = np.random.default_rng(seed).permutation(len(distinct)) % _FOLDS
    fold = np.array([fold_of_group[distinct[name]] for name in names])
    scores = np.zeros((len(names), targets.shape[1]))
    everything = np.arange(len(targets))
    for number in np.unique(fold):
        outside = np.flatnonzero(fold == number)
        inside: Ints = np.setdiff1d(everything, outside)
        if not len(inside):
            continue
        dual, offset = _solve(kernel[np.ix_(inside, inside)], targets[inside], weight[inside])
        scores[outside] = kernel[np.ix_(outside, inside)] @ dual + offset
    return scores


def _softmax(scores: Floats, temperature: float) -> Floats:
    raised = np.exp(temperature * (scores - scores.max(axis=1, keepdims=True)))
    return np.asarray(raised / raised.sum(axis=1, keepdims=True), dtype=np.float64)


def _surprise(shares: Floats, truth: Ints) -> float:
    return float(-np.log(np.maximum(shares[np.arange(len(truth)), truth], 1e-12)).mean())


def _abstention(shares: Floats, truth: Ints) -> float:
    """Return the lowest confidence from which on the answered prompts were right often enough; above 1 if none."""
    confidence = shares.max(axis=1)
    order = np.argsort(-confidence)
    right = np.cumsum((np.argmax(shares, axis=1) == truth)[order]) / np.arange(1, len(order) + 1)
    good = np.flatnonzero(right >= _ANSWERED_RIGHT)
    return float(confidence[order][good[-1]]) if len(good) else 1.01
