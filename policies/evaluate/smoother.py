"""Predict any outcome of a step from what is known at that step, for rows the prediction has not seen.

Members are fitted on the complements of repeated folds, half ridge regression (steady with few labels), half extremely
randomised trees (sees that an agreement means more on some prompts). Both are linear in the outcome: once grown, one smoother
predicts quality, cost and the value of going on at every price of money without being fitted again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from policies.evaluate.outcomes import Floats, Ints

# Flat optima over re-splits of three sets (docs/routing.md); none is tuned to one of them.
_RIDGE_PENALTY = 10.0
_RIDGE_SHARE = 0.8
_TREES = 8  # per member
_LEAF = 20
_COLUMNS_TRIED = 0.5
_AT_ONCE = 500  # rows whose trees are descended together: bounds the memory, not the result


@dataclass(frozen=True)
class Rows:
    """One step's knowledge in two encodings: `linear` scaled for the ridge, `raw` for the trees."""

    linear: Floats
    raw: Floats


@dataclass(frozen=True)
class _Member:
    inside: Ints
    outside: Ints
    centre: Floats
    solver: Floats  # (X'X + penalty)^-1 of the centred inside rows
    trees: tuple[Any, ...]  # sklearn's low-level trees: `apply` without its parallel machinery is 20 times quicker
    starts: Ints  # first leaf number of each tree in the joined numbering
    leaves: sparse.csr_matrix  # inside rows x joined leaves
    leaves_outside: sparse.csr_matrix


@dataclass(frozen=True)
class Forest:
    """Trees side by side in arrays, all descended at once; a leaf is its own child, and `values` holds its mean outcomes."""

    roots: Ints
    children: Ints  # two for each node: where the feature is at most the threshold, and where it is above
    feature: Ints
    threshold: Floats
    values: Floats

    def predict(self, raw: npt.NDArray[np.float32]) -> Floats:
        """Return the mean over all trees, one row for each of `raw`."""
        parts = [self._leaves(raw[start : start + _AT_ONCE]) for start in range(0, len(raw), _AT_ONCE)]
        return np.concatenate([self.values[leaves].mean(axis=1) for leaves in parts])

    def _leaves(self, raw: npt.NDArray[np.float32]) -> Ints:
        """Return the leaf of each row in each tree. `take` and few descents at a time: this is half of a decision's cost."""
        count, trees = len(raw), len(self.roots)
        known, last = raw.ravel(), np.tile(self.roots, count)
        under_way, at = np.arange(count * trees), last
        row = np.repeat(np.arange(count) * raw.shape[1], trees)
        while len(under_way):
            above = known.take(row + self.feature.take(at)) > self.threshold.take(at)
            below = self.children.take(2 * at + above)
            moved = np.flatnonzero(below != at)
            last[under_way] = below
            under_way, at, row = under_way.take(moved), below.take(moved), row.take(moved)
        return last.reshape(count, trees)

    def columns(self, kept: Sequence[int]) -> Forest:
        """Return the same with some columns of the outcomes only."""
        return replace(self, values=np.ascontiguousarray(self.values[:, list(kept)]))


@dataclass(frozen=True)
class Frozen:
    """A smoother with its outcomes filled in: predicts `width` columns for new rows."""

    weights: Floats
    offset: Floats
    forest: Forest

    def predict(self, rows: Rows) -> Floats:
        linear = rows.linear @ self.weights + self.offset
        grown = self.forest.predict(np.ascontiguousarray(rows.raw, dtype=np.float32))
        return _RIDGE_SHARE * linear + (1 - _RIDGE_SHARE) * grown

    def columns(self, kept: Sequence[int]) -> Frozen:
        """Return the same with some columns only, in that order."""
        at = list(kept)
        return Frozen(weights=self.weights[:, at], offset=self.offset[at], forest=self.forest.columns(at))


class Smoother:
    """Cross-fitted members over fixed rows."""

    def __init__(self, rows: Rows, *, shape_by: Floats, folds: Sequence[Ints], seed: int) -> None:
        """Grow the members.

        Args:
            shape_by: Outcomes that decide where the trees split (rows x outputs).
            folds: Fold number of each row, one array per repeat.
            seed: Of the trees.
        """
        self._rows = rows
        self._repeats = len(folds)
        self._members = [
            _grow(
                rows,
                shape_by,
                np.flatnonzero(fold != number),
                np.flatnonzero(fold == number),
                seed + 1_000 * repeat + int(number),
            )
            for repeat, fold in enumerate(folds)
            for number in np.unique(fold)
        ]

    def unseen(self, outcomes: Floats) -> Floats:
        """Return the prediction of each row by members that have not seen it (rows x outputs, as given)."""
        predicted = np.zeros_like(outcomes)
        for member in self._members:
            weights, offset, values = _fill(member, self._rows, outcomes)
            linear = self._rows.linear[member.outside] @ weights + offset
            grown = member.leaves_outside @ values / len(member.trees)
            predicted[member.outside] += (_RIDGE_SHARE * linear + (1 - _RIDGE_SHARE) * grown) / self._repeats
        return predicted

    def freeze(self, outcomes: Floats) -> Frozen:
        """Return the average of all members, for rows that none has seen."""
        weights = np.zeros((self._rows.linear.shape[1], outcomes.shape[1]))
        offset = np.zeros(outcomes.shape[1])
        parts = []
        for member in self._members:
            its_weights, its_offset, values = _fill(member, self._rows, outcomes)
            weights += its_weights / len(self._members)
            offset += its_offset / len(self._members)
            parts.append(values)
        trees = [tree for member in self._members for tree in member.trees]
        return Frozen(weights=weights, offset=offset, forest=side_by_side(trees, np.concatenate(parts)))


def _grow(rows: Rows, shape_by: Floats, inside: Ints, outside: Ints, seed: int) -> _Member:
    from sklearn.ensemble import ExtraTreesRegressor  # to fit alone; whoever decides does without

    forest = ExtraTreesRegressor(_TREES, min_samples_leaf=_LEAF, max_features=_COLUMNS_TRIED, random_state=seed)
    wanted = shape_by[inside]
    forest.fit(rows.raw[inside], wanted[:, 0] if wanted.shape[1] == 1 else wanted)
    trees = tuple(estimator.tree_ for estimator in forest.estimators_)
    starts = np.concatenate([[0], np.cumsum([tree.node_count for tree in trees])]).astype(np.int64)
    centre = rows.linear[inside].mean(axis=0)
    centred = rows.linear[inside] - centre
    return _Member(
        inside=inside,
        outside=outside,
        centre=centre,
        solver=np.linalg.inv(centred.T @ centred + _RIDGE_PENALTY * np.eye(centred.shape[1])),
        trees=trees,
        starts=starts[:-1],
        leaves=_leaves(trees, starts, rows.raw[inside]),
        leaves_outside=_leaves(trees, starts, rows.raw[outside]),
    )


def side_by_side(trees: Sequence[Any], values: Floats) -> Forest:
    """Return sklearn's trees as arrays; `values` are those of all nodes, one tree after the other."""
    sizes = [tree.node_count for tree in trees]
    roots = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int64)
    own = np.arange(sum(sizes))
    is_leaf = np.concatenate([tree.children_left for tree in trees]) < 0
    shift = np.repeat(roots, sizes)
    left, right = (
        np.where(is_leaf, own, np.concatenate([getattr(tree, side) for tree in trees]) + shift)
        for side in ("children_left", "children_right")
    )
    return Forest(
        roots=roots,
        children=np.column_stack([left, right]).ravel(),
        feature=np.where(is_leaf, 0, np.concatenate([tree.feature for tree in trees])),
        threshold=np.concatenate([tree.threshold for tree in trees]),
        values=values,
    )


def _leaves(trees: tuple[Any, ...], starts: Ints, raw: Floats) -> sparse.csr_matrix:
    single = np.ascontiguousarray(raw, dtype=np.float32)
    at = np.column_stack([start + tree.apply(single) for tree, start in zip(trees, starts[:-1], strict=True)])
    ones = np.ones(at.size)
    return sparse.csr_matrix(
        (ones, at.ravel(), np.arange(0, at.size + 1, len(trees))), shape=(len(raw), int(starts[-1]))
    )


def _fill(member: _Member, rows: Rows, outcomes: Floats) -> tuple[Floats, Floats, Floats]:
    """Return ridge weights and offset, and each leaf's mean outcome."""
    inside = outcomes[member.inside]
    mean = inside.mean(axis=0)
    centred = rows.linear[member.inside] - member.centre
    weights = member.solver @ (centred.T @ (inside - mean))
    counts = np.asarray(member.leaves.sum(axis=0)).ravel()
    values = np.asarray(member.leaves.T @ inside) / np.maximum(counts, 1.0)[:, None]
    return weights, mean - member.centre @ weights, values
