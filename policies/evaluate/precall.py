"""Score a request before the call: how much worse each pool model would do than the flagship, from prompt and tag alone.

One logistic regression for each model on rare tokens, the tag and the prompt's form; what counts is the *difference* of two
chances, not hardness: a question both fail is no reason to pay. Served, it is one dictionary look-up per token and one sum, so a
chunk of jobs costs tens of microseconds each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, sparse, special

from policies.evaluate.features import Vocabulary, learn_vocabulary, surfaces
from policies.evaluate.outcomes import Floats, Ints

# Chosen on cross-fitted order of RouteLLM's pair (docs/routing.md): flat around these.
_PENALTY = 3.5
_TAG_SCALE = 0.5
_SURFACE_SCALE = 0.1
_MOST_STEPS = 200
_TOLERANCE = 1e-4  # of the mean gradient: further steps change the order of items no more


@dataclass(frozen=True)
class Encoder:
    """Turns prompts and tags into rows; a tag never seen in training becomes no tag."""

    vocabulary: Vocabulary
    tags: dict[str, int]
    centre: Floats
    spread: Floats

    def rows(self, prompts: Sequence[str], intents: Sequence[str]) -> sparse.csr_matrix:
        """Return tokens, tag and form side by side, as the regression is fitted on them."""
        dense = np.hstack([self.onehot(intents) * _TAG_SCALE, self.form(surfaces(prompts))])
        return sparse.hstack([self.vocabulary.rows(prompts), sparse.csr_matrix(dense)]).tocsr()

    def form(self, surface: Floats) -> Floats:
        """Return surfaces at the scale of the regression."""
        return (surface - self.centre) / self.spread * _SURFACE_SCALE

    def onehot(self, intents: Sequence[str]) -> Floats:
        table = np.zeros((len(intents), len(self.tags)))
        for row, intent in enumerate(intents):
            if (column := self.tags.get(intent)) is not None:
                table[row, column] = 1.0
        return table


@dataclass(frozen=True)
class Precall:
    """The fitted scorer: log odds are rows @ weights + offset, one column per pool model, the flagship last."""

    encoder: Encoder
    weights: Floats
    offset: Floats

    def score(self, prompts: Sequence[str], intents: Sequence[str]) -> Floats:
        """Return the expected score of each pool model minus the flagship's, and last the flagship's own score."""
        return self.score_forms(prompts, self.encoder.onehot(intents), surfaces(prompts))

    def score_forms(self, prompts: Sequence[str], tags: Floats, surface: Floats) -> Floats:
        """Return the same from tags and surfaces already at hand; no wide matrix is joined, for the hot path's sake."""
        words, dense = np.split(self.weights, [len(self.encoder.vocabulary.weights)])
        known = np.hstack([tags * _TAG_SCALE, self.encoder.form(surface)])
        return _compare(np.asarray(self.encoder.vocabulary.rows(prompts) @ words) + known @ dense + self.offset)


def learn_encoder(prompts: Sequence[str], intents: Sequence[str]) -> Encoder:
    """Return the encoder of these prompts; with one tag only, the tag is left out."""
    distinct = sorted(set(intents))
    form = surfaces(prompts)
    spread = form.std(axis=0)
    return Encoder(
        vocabulary=learn_vocabulary(prompts),
        tags={tag: number for number, tag in enumerate(distinct)} if len(distinct) > 1 else {},
        centre=form.mean(axis=0),
        spread=np.where(spread > 0, spread, 1.0),
    )


def fit_precall(
    prompts: Sequence[str], intents: Sequence[str], scores: Floats, folds: Sequence[Ints]
) -> tuple[Precall, Floats]:
    """Fit the scorer on all rows, and score each row by models which have not seen it.

    Args:
        scores: Rows x models, the flagship first; 0..1.
        folds: Fold number of each row, one array per repeat.

    Returns:
        The scorer, and the out-of-fold scores (see `Precall.score`) averaged over the repeats.
    """
    encoder = learn_encoder(prompts, intents)
    rows = encoder.rows(prompts, intents)
    targets = np.roll(scores, -1, axis=1)
    unseen = np.zeros_like(targets)
    for fold in folds:
        for number in np.unique(fold):
            inside, outside = np.flatnonzero(fold != number), np.flatnonzero(fold == number)
            weights, offset = _logistic(rows[inside], targets[inside])
            unseen[outside] += _compare(rows[outside] @ weights + offset) / len(folds)
    weights, offset = _logistic(rows, targets)
    return Precall(encoder=encoder, weights=weights, offset=offset), unseen


def _compare(log_odds: Floats) -> Floats:
    """Return each pool model's chance minus the flagship's, and last the flagship's own."""
    chances: Floats = special.expit(log_odds)
    return np.hstack([chances[:, :-1] - chances[:, -1:], chances[:, -1:]])


def _logistic(rows: sparse.csr_matrix, targets: Floats) -> tuple[Floats, Floats]:
    """Return weights and offsets of one penalised logistic regression per column; scores between 0 and 1 count in part."""
    count, width = rows.shape
    turned = rows.T.tocsr()

    def loss(at: Floats, target: Floats) -> tuple[float, Floats]:
        weights, offset = at[:-1], at[-1]
        log_odds = rows @ weights + offset
        missed = (special.expit(log_odds) - target) / count
        value = float(np.mean(np.logaddexp(0, log_odds) - target * log_odds))
        value += 0.5 * _PENALTY / count * float(weights @ weights)
        return value, np.append(turned @ missed + _PENALTY / count * weights, missed.sum())

    columns = []
    for target in targets.T:
        # Scores that are all 0 or all 1 have no finite log odds.
        start = np.append(np.zeros(width), special.logit(np.clip(target.mean(), 0.001, 0.999)))
        options = {"maxiter": _MOST_STEPS, "gtol": _TOLERANCE, "ftol": 0.0}
        columns.append(optimize.minimize(loss, start, args=(target,), jac=True, method="L-BFGS-B", options=options).x)
    fitted = np.array(columns).T
    return fitted[:-1], fitted[-1]
