"""The figures of docs/routing.md anew, from the visible halves of recorded outcomes and of labelled prompts.

    ./run bench evaluate [SET ...] [--folds N] [--splits N] [--no-intent] [--as-chain] [--seed N] [--json]

Every set is measured on items that what is measured has not seen: prompts are split, never rows.

gpt4o, claude, mmlupro   folds: every item measured once, fitted on the other folds (the size of a sealed half)
                         halves: the promise, over so many random halves; a quality per split, its mean, worst, how many under .98, .97
mmlu, gsm8k              RouteLLM's measures of the order of a pair, fitted and measured on each alone, the mean over the draws
templates, datasets      the intent classifier on templates, and on data sets, that it has not met; five draws of a quarter

Set OMP_NUM_THREADS=1 where other work runs on the machine.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from policies.evaluate.baselines import measure
from policies.evaluate.bounds import paired_quality
from policies.evaluate.cascade import Cascade, fit_cascade
from policies.evaluate.curves import measure_pair
from policies.evaluate.folds import draw_folds, split_rows
from policies.evaluate.outcomes import Ints, Outcomes, pair_outcomes
from policies.evaluate.precall import fit_precall
from policies.intents.classifier import fit_classifier
from policies.intents.measure import check_labels, measure_intents

TARGET = 0.99
DATA = Path(__file__).parents[2] / "shared" / "data"


@dataclass(frozen=True)
class Routed:
    """A file of outcomes, who is measured against whom, and in how many folds it has the size of a sealed half's fit."""

    file: str
    flagship: str
    pool: tuple[str, ...]
    folds: int


CHEAP = ("gpt-4o-mini-2024-07-18", "Meta-Llama-3.1-8B-Instruct")
ROUTED = {
    "gpt4o": Routed("zeroeval", "gpt-4o-2024-08-06", CHEAP, 10),
    "claude": Routed("zeroeval", "claude-3-5-sonnet-20241022", CHEAP, 10),
    "mmlupro": Routed(
        "mmlupro",
        "gemini-1.5-pro-002",
        ("gemini-1.5-flash-002", "Meta-Llama-3_1-70B-Instruct", "Meta-Llama-3_1-8B-Instruct"),
        5,
    ),
}
PAIRS = ("mmlu", "gsm8k")
INTENTS = {"templates": "template", "datasets": "dataset"}
DRAWS_OF_INTENTS = 5


def main(argv: Sequence[str]) -> None:
    """Measure the named sets, or all; one line each as it is known, or one JSON object at the end."""
    names = [*ROUTED, *PAIRS, *INTENTS]
    parser = argparse.ArgumentParser(
        prog="./run bench evaluate", description=__doc__.split("\n")[0] if __doc__ else None
    )
    parser.add_argument("sets", nargs="*", metavar="SET", help=f"of {', '.join(names)}; all when none is named")
    parser.add_argument("--data", type=Path, default=DATA, help="the folder of the data sets")
    parser.add_argument("--folds", type=int, help="instead of 10 (gpt4o, claude) and 5; 0 leaves them out")
    parser.add_argument("--splits", type=int, default=20, help="random halves; 0 leaves them out")
    parser.add_argument("--draws", type=int, default=3, help="of the folds of a pair")
    parser.add_argument("--no-intent", action="store_true", help="hide the tag")
    parser.add_argument("--as-chain", action="store_true", help="the pool is a chain, as the fleet plays it")
    parser.add_argument("--seed", type=int, default=0, help="of folds, halves and draws")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(argv)
    for name in options.sets:
        if name not in names:
            parser.error(f"no set {name!r}; there are {', '.join(names)}")
    if not options.data.is_dir():
        parser.error(f"no folder {options.data}; --data names the one with outcomes/ in it")
    results: dict[str, dict[str, Any]] = {}
    for name in options.sets or names:
        began = time.process_time()
        for kind, figures in measured(name, options):
            figures["cpu_s"] = round(time.process_time() - began, 1)
            results.setdefault(name, {})[kind] = figures
            shown = ", ".join(f"{key} {value}" for key, value in figures.items())
            print(f"{name}, {kind}: {shown}", file=sys.stderr if options.json else sys.stdout, flush=True)
    if options.json:
        print(json.dumps(results, indent=2))


def measured(name: str, options: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield what is asked for of one set, by kind."""
    if name in INTENTS:
        yield "quarter", unseen_producers(options.data / "intents-t0.parquet", INTENTS[name], options.seed)
        return
    if name in PAIRS:
        yield "folds", ordered(pair_of(name, options), folds=options.folds or 5, draws=options.draws, seed=options.seed)
        return
    routed = ROUTED[name]
    outcomes = pair_outcomes(
        columns(options.data / "outcomes" / f"{routed.file}.parquet"),
        flagship=routed.flagship,
        pool=routed.pool,
        name=routed.file,
        tagged=not options.no_intent,
    )
    folds = routed.folds if options.folds is None else options.folds
    if folds:
        yield f"{folds} folds", in_folds(outcomes, folds=folds, seed=options.seed, as_chain=options.as_chain)
    if options.splits:
        yield (
            f"{options.splits} halves",
            in_halves(outcomes, splits=options.splits, seed=options.seed, as_chain=options.as_chain),
        )


def in_folds(outcomes: Outcomes, *, folds: int, seed: int, as_chain: bool) -> dict[str, Any]:
    """Every item is measured once, by a policy that was fitted on the other folds."""
    fold = draw_folds(outcomes.prompts, count=folds, seed=seed)
    relative, cost = np.zeros(len(outcomes)), np.zeros(len(outcomes))
    for number in range(folds):
        outside = np.flatnonzero(fold == number)
        played = fitted(outcomes, np.flatnonzero(fold != number), seed=seed, as_chain=as_chain)
        on = outcomes.select(outside)
        play = played.play(on, played.chosen)
        relative[outside], cost[outside] = play.relative, play.cost
    whole = measure(outcomes, relative=relative, cost=cost)
    error = paired_quality(relative, outcomes.scores[:, 0]).standard_error
    return {
        "items": len(outcomes),
        "quality_ratio": round(whole.quality_ratio, 4),
        "standard_error": round(error, 4),
        "saving": round(whole.saving, 4),
    }


def in_halves(outcomes: Outcomes, *, splits: int, seed: int, as_chain: bool) -> dict[str, Any]:
    """The promise: fitted on one random half, measured on the other."""
    found = []
    for number in range(splits):
        train, test = split_rows(outcomes.prompts, share=0.5, seed=1_000 * seed + number)
        cascade = fitted(outcomes, train, seed=number, as_chain=as_chain)
        on = outcomes.select(test)
        play = cascade.play(on, cascade.chosen)
        found.append(measure(on, relative=play.relative, cost=play.cost))
    qualities, savings = [f.quality_ratio for f in found], [f.saving for f in found]
    return {
        "items": len(outcomes) // 2,
        "quality_mean": round(float(np.mean(qualities)), 4),
        "quality_worst": round(min(qualities), 4),
        "under_98": sum(quality < 0.98 for quality in qualities),
        "under_97": sum(quality < 0.97 for quality in qualities),
        "saving_mean": round(float(np.mean(savings)), 4),
        "saving_worst": round(min(savings), 4),
    }


def fitted(outcomes: Outcomes, rows: Ints, *, seed: int, as_chain: bool) -> Cascade:
    """Return what `waybill policy evaluate` would fit on these rows."""
    return fit_cascade(outcomes.select(rows), target=TARGET, seed=seed, as_chain=as_chain)


def pair_of(name: str, options: argparse.Namespace) -> Outcomes:
    """Return RouteLLM's pair on one of its two sets."""
    both = pair_outcomes(
        columns(options.data / "outcomes" / "routellm.parquet"),
        flagship="gpt4_1106",
        pool=["mixtral_8x7b"],
        name="routellm",
    )
    rows = np.flatnonzero([intent.startswith(name) for intent in both.intents])
    kept = both.select(rows)
    if not options.no_intent:
        return kept
    return Outcomes(**{**vars(kept), "intents": ("",) * len(kept)})


def ordered(outcomes: Outcomes, *, folds: int, draws: int, seed: int) -> dict[str, Any]:
    """RouteLLM's measures of the order in which items go to the strong model; the mean over draws of the folds."""
    found = []
    for draw in range(draws):
        fold = draw_folds(outcomes.prompts, count=folds, seed=seed + draw)
        hardness = np.zeros(len(outcomes))
        for number in range(folds):
            inside, outside = np.flatnonzero(fold != number), np.flatnonzero(fold == number)
            train, test = outcomes.select(inside), outcomes.select(outside)
            scorer, _ = fit_precall(train.prompts, train.intents, train.scores, [])
            hardness[outside] = -scorer.score(test.prompts, test.intents)[:, 0]
        found.append(measure_pair(hardness, weak=outcomes.scores[:, 1], strong=outcomes.scores[:, 0]))
    return {
        "items": len(outcomes),
        **{key: round(float(np.mean([getattr(pair, key) for pair in found])), 4) for key in ("apgr", "cpt50", "cpt80")},
    }


def unseen_producers(path: Path, column: str, seed: int) -> dict[str, Any]:
    """The classifier on a quarter of the templates or data sets, fitted on the others; means over five draws."""
    table = columns(path)
    producers = sorted(set(table[column]))
    found = []
    for draw in range(DRAWS_OF_INTENTS):
        left_out = set(random.Random(seed + draw).sample(producers, round(len(producers) / 4)))
        inside = [row for row, producer in enumerate(table[column]) if producer not in left_out]
        outside = [row for row, producer in enumerate(table[column]) if producer in left_out]
        learned, asked = (
            check_labels(
                {key: [values[row] for row in rows] for key, values in table.items()}, name=path.name, to_learn=True
            )
            for rows in (inside, outside)
        )
        classifier = fit_classifier(
            learned.prompts, learned.intents, groups=learned.groups, producers=learned.producers
        )
        began = time.process_time()
        guesses = [classifier.guess(prompt) for prompt in asked.prompts]
        each = 1_000 * (time.process_time() - began) / len(guesses)
        found.append(measure_intents(asked.intents, guesses, ms_per_prompt=each).as_dict())
    keys = ("accuracy", "macro_f1", "accuracy_at_80_coverage", "coverage", "accuracy_answered", "ms_per_prompt")
    return {key: round(float(np.mean([one[key] for one in found])), 4) for key in keys}


def columns(path: Path) -> dict[str, list[Any]]:
    """Return a Parquet file as column name to values."""
    return pq.read_table(path).to_pydict()
