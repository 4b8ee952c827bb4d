"""Score a request before the call: how much worse each pool model would do than the flagship, from prompt and tag alone.

One ridge regression of the *difference* of the scores (not of hardness: a question both fail is no reason to pay) on rare
tokens, the tag and the prompt's form. Served, it is one dictionary look-up per token and one sum, so a chunk of jobs costs tens
of microseconds each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse
from sklearn.linear_model import Ridge

from policies.evaluate.features import Vocabulary, learn_vocabulary, surfaces
from policies.evaluate.outcomes import Floats, Ints

# Chosen on cross-fitted order of RouteLLM's pair (docs/routing.md): flat between 5 and 20, worse outside.
_PENALTY = 10.0
_TAG_SCALE = 0.5
_SURFACE_SCALE = 0.1


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
    """The fitted scorer: predictions are rows @ weights + offset."""

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
        return np.asarray(self.encoder.vocabulary.rows(prompts) @ words) + known @ dense + self.offset


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
    prompts: Sequence[str], intents: Sequence[str], targets: Floats, folds: Sequence[Ints]
) -> tuple[Precall, Floats]:
    """Fit the scorer on all rows, and predict each row by models which have not seen it.

    Args:
        targets: Rows x outputs to be predicted, the last column the flagship's score.
        folds: Fold number of each row, one array per repeat.

    Returns:
        The scorer, and the out-of-fold predictions averaged over the repeats.
    """
    encoder = learn_encoder(prompts, intents)
    rows = encoder.rows(prompts, intents)
    unseen = np.zeros_like(targets)
    for fold in folds:
        for number in np.unique(fold):
            inside, outside = np.flatnonzero(fold != number), np.flatnonzero(fold == number)
            weights, offset = _ridge(rows[inside], targets[inside])
            unseen[outside] += (rows[outside] @ weights + offset) / len(folds)
    weights, offset = _ridge(rows, targets)
    return Precall(encoder=encoder, weights=weights, offset=offset), unseen


def _ridge(rows: sparse.csr_matrix, targets: Floats) -> tuple[Floats, Floats]:
    offset = targets.mean(axis=0)
    model = Ridge(_PENALTY, solver="sparse_cg", tol=1e-3, fit_intercept=False).fit(rows, targets - offset)
    return np.asarray(model.coef_, dtype=np.float64).T.reshape(rows.shape[1], targets.shape[1]), offset
