"""What routing a job costs: CPU per job of the first decision with a warm policy, in chunks of 100.

    ./run bench routing [SET ...] [--json]

Fits on half of the prompts of gpt4o, claude or mmlupro (see bench/evaluate.py) and routes the other half; microseconds of process
time per job, one thread. Set OMP_NUM_THREADS=1 where other work runs on the machine.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.evaluate import DATA, ROUTED, columns
from policies.evaluate.cascade import fit_cascade
from policies.evaluate.folds import split_rows
from policies.evaluate.knowledge import gather
from policies.evaluate.outcomes import pair_outcomes
from policies.intents.classifier import Classifier

CHUNK = 100


def main(argv: Sequence[str]) -> None:
    """Measure the named sets, or gpt4o and mmlupro."""
    parser = argparse.ArgumentParser(prog="./run bench routing")
    parser.add_argument("sets", nargs="*", metavar="SET", default=["gpt4o", "mmlupro"], help=f"of {', '.join(ROUTED)}")
    parser.add_argument("--data", type=Path, default=DATA, help="the folder of the data sets")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(argv)
    if unknown := set(options.sets) - set(ROUTED):
        parser.error(f"no set {', '.join(sorted(unknown))}; there are {', '.join(ROUTED)}")
    results = {name: measured(name, options.data) for name in options.sets}
    if options.json:
        print(json.dumps(results, indent=2))
        return
    for name, figures in results.items():
        print(
            f"{name}: first decision: median {figures['median_us']} us, worst chunk {figures['worst_chunk_us']} us of CPU per job "
            f"({figures['chunks']} chunks); intent of an untagged prompt {figures['intent_ms']} ms"
        )


def measured(name: str, data: Path) -> dict[str, Any]:
    """The figures of one set."""
    routed = ROUTED[name]
    table = columns(data / "outcomes" / f"{routed.file}.parquet")
    outcomes = pair_outcomes(table, flagship=routed.flagship, pool=routed.pool, name=routed.file)
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
    shipped = Classifier.from_bytes((Path(__file__).parents[1] / "policies" / "intents" / "model.npz").read_bytes())
    asked = test.prompts[:500]
    began = time.process_time()
    for prompt in asked:
        shipped.guess(prompt)
    return {
        "median_us": round(float(np.median(warm))),
        "worst_chunk_us": round(max(warm)),
        "chunks": len(warm),
        "intent_ms": round((time.process_time() - began) / len(asked) * 1e3, 2),
    }
