"""What a decision is computed from in arrays is what the libraries that fitted it would have said."""

from __future__ import annotations

import numpy as np
from sklearn.ensemble import ExtraTreesRegressor

from policies.evaluate.features import learn_vocabulary, tokens
from policies.evaluate.smoother import side_by_side


def test_trees_side_by_side_predict_what_each_predicts() -> None:
    rng = np.random.default_rng(4)
    raw = rng.integers(0, 6, (300, 5)).astype(np.float32)  # few values, so that thresholds fall on ties
    wanted = raw[:, :2] * 2 + rng.normal(size=(300, 2))
    grown = ExtraTreesRegressor(12, min_samples_leaf=3, random_state=4).fit(raw, wanted)
    trees = [each.tree_ for each in grown.estimators_]

    forest = side_by_side(trees, np.concatenate([tree.value[:, :, 0] for tree in trees]))

    fresh = rng.integers(-1, 7, (700, 5)).astype(np.float32)
    np.testing.assert_allclose(forest.predict(fresh), grown.predict(fresh))
    np.testing.assert_allclose(forest.columns([1]).predict(fresh)[:, 0], grown.predict(fresh)[:, 1])


def test_a_row_of_the_vocabulary_is_its_tokens_weighted_by_rarity() -> None:
    prompts = [
        "the red ball, the red car",
        "a red ball",
        "the blue car 12",
        "prove that 12 is even",
        "is the red car blue",
    ]
    vocabulary = learn_vocabulary(prompts)
    named = {number: word for word, number in vocabulary.words.items()}
    size = len(named)
    names = [named[at] for at in range(size)] + [
        named[code // size] + b" " + named[code % size] for code in vocabulary.pairs
    ]
    counts = {name: sum(name in tokens(prompt) for prompt in prompts) for name in names}
    weights = [np.log(6 / (1 + counts[name])) + 1 for name in names]

    rows = vocabulary.rows([*prompts, "nothing known", ""]).toarray()

    assert {name for prompt in prompts for name in tokens(prompt) if counts.get(name, 0) >= 2} == set(names)
    assert b"red car" in names
    for row, prompt in zip(rows, [*prompts, "nothing known", ""], strict=True):
        own = np.array([weight * (name in tokens(prompt)) for name, weight in zip(names, weights, strict=True)])
        np.testing.assert_allclose(row, own / (np.linalg.norm(own) or 1.0))
