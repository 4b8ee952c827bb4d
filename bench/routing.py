"""Measure what routing a job costs: CPU per job of the first decision with a warm policy, in chunks of 100.

    python bench/routing.py OUTCOMES.parquet FLAGSHIP MODEL[,MODEL...]

Fits on half of the prompts and routes the other half; prints microseconds of CPU (process time, one thread) per job. Goal: at
most 150 (issue 4). Set OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from policies.evaluate.cascade import fit_cascade
from policies.evaluate.folds import split_rows
from policies.evaluate.knowledge import gather
from policies.evaluate.outcomes import pair_outcomes
from policies.intents.classifier import Classifier

CHUNK = 100


def main(path: str, flagship: str, pool: str) -> None:
    outcomes = pair_outcomes(pq.read_table(path).to_pydict(), flagship=flagship, pool=pool.split(","), name=path)
    train, test = (outcomes.select(rows) for rows in split_rows(outcomes.prompts, share=0.5, seed=0))
    fitted = fit_cascade(train, target=0.95, seed=0)
    if fitted.chosen is None:
        raise SystemExit("no plan met the target: nothing to route")
    policy = fitted.warm()
    nothing = ((None,) * len(test.models),) * CHUNK
    unpaid = np.ones((CHUNK, len(test.models)))
    spent = []
    for start in range(0, len(test) - CHUNK + 1, CHUNK):
        prompts, intents = test.prompts[start : start + CHUNK], test.intents[start : start + CHUNK]
        began = time.process_time()
        evidence = gather(prompts, intents, nothing, unpaid, precall=policy.knowledge.precall)
        policy.decide(evidence, ())
        spent.append((time.process_time() - began) / CHUNK * 1e6)
    warm = spent[1:] or spent
    print(
        f"first decision: median {np.median(warm):.0f} us, worst chunk {max(warm):.0f} us of CPU per job ({len(warm)} chunks)"
    )
    shipped = Classifier.from_bytes((Path(__file__).parents[1] / "policies" / "intents" / "model.npz").read_bytes())
    began = time.process_time()
    for prompt in test.prompts[:500]:
        shipped.guess(prompt)
    each = (time.process_time() - began) / len(test.prompts[:500])
    print(f"intent of an untagged prompt: {each * 1e3:.2f} ms")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        raise SystemExit(__doc__)
    main(*sys.argv[1:])
