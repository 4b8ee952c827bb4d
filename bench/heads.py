"""Measure label heads on texts with gold labels: how many jobs an open gate keeps, how often those are right, at what CPU.

    ./run bench heads FILE.parquet TEXT LABEL [--only a,b,...] [--target 0.99] [--draws 20] [--scored 0]

Stands gold labels in for the paid model's. Each draw puts a third of the texts aside; of the rest the first 100, 200, 400 ... are
what the head is fitted on and its gate worked out from, as a dispatcher does. Printed: accuracy, share kept (0 where the gate stays
shut), the share of *all* jobs that were kept and wrong (the target allows 1 - target), draws in which that was above it. `--scored N`
has the small language model score the labels of N texts as well, on one thread.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Sequence

import numpy as np
import pyarrow.parquet as pq

from policies.catalog import CATALOG
from policies.labelhead import Head, fit_head
from policies.localgate import Gate, Record, calibrated, work_out, work_out_scored

SIZES = (100, 200, 400, 800, 1600, 2000)
MODEL = CATALOG["smollm2-135m-instruct"]


def main(argv: Sequence[str] | None = None) -> None:
    """Read the options and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file")
    parser.add_argument("text")
    parser.add_argument("label")
    parser.add_argument("--only", type=lambda value: set(value.split(",")))
    parser.add_argument("--target", type=float, default=0.99)
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--scored", type=int, default=0)
    options = parser.parse_args(argv)
    columns = pq.read_table(options.file, columns=[options.text, options.label]).to_pydict()
    pairs = dict(zip(columns[options.text], columns[options.label], strict=True))
    items = [(text, label) for text, label in pairs.items() if not options.only or label in options.only]
    print(
        f"{len(items)} texts, {len({label for _, label in items})} labels, target {options.target:g}, {options.draws} draws"
    )
    for size in SIZES:
        found = [measure(items, size, options.target, seed) for seed in range(options.draws)]
        found = [each for each in found if each is not None]
        if found:
            right, kept, lost, fit_s, ms = np.array(found).T
            print(
                f"{size:>5} labels: right {right.mean():.3f}, open in {np.mean(kept > 0):.0%} of the draws, kept {kept.mean():.2f},"
                f" kept wrongly {lost.mean():.4f} of all (above {1 - options.target:g} in {np.sum(lost > 1 - options.target)});"
                f" fit {fit_s.mean():.1f} s, {ms.mean():.2f} ms a job"
            )
    if options.scored:
        print(asyncio.run(score(items, options.scored, options.target)))


def measure(items: Sequence[tuple[str, str]], size: int, target: float, seed: int) -> tuple[float, ...] | None:
    """One draw: accuracy, share kept, share kept wrongly, seconds of fitting, milliseconds a text."""
    order = np.random.default_rng(seed).permutation(len(items))
    aside, rest = order[: len(items) // 3], order[len(items) // 3 :]
    if size > len(rest):
        return None
    began = time.process_time()
    texts, labels = zip(*(items[at] for at in rest[:size]), strict=True)
    head = fit_head(texts, labels, [True] * size)
    fit_s = time.process_time() - began
    gate = work_out_scored(Head.from_bytes(head.to_bytes()).records(), target=target)
    began = time.process_time()
    read = [(gate.read(head.logprobs(items[at][0])), items[at][1]) for at in aside]
    ms = (time.process_time() - began) / len(aside) * 1e3
    return (*_figures(read, gate), fit_s, ms)


def _figures(read: Sequence[tuple[tuple[str, float], str]], gate: Gate) -> tuple[float, float, float]:
    right = np.array([said == label for (said, _), label in read])
    kept = np.array([gate.threshold is not None and share >= gate.threshold for (_, share), _ in read])
    return float(right.mean()), float(kept.mean()), float((kept & ~right).mean())


async def score(items: Sequence[tuple[str, str]], count: int, target: float) -> str:
    """The same texts by the small language model's label scoring; accuracy as it comes and with its prior taken off."""
    from waybill.contract import Message
    from workers.providers.base import Call
    from workers.providers.local import LocalProvider
    from workers.providers.registry import default_local_model

    labels = tuple(sorted({label for _, label in items}))
    provider = LocalProvider(default_local_model(), threads=1)
    records = []
    began = time.process_time()
    for at in np.random.default_rng(0).permutation(len(items))[:count]:
        text, label = items[at]
        answer = await provider.call(Call(MODEL, (Message(role="user", content=text),), labels=labels))
        records.append(Record(answer.label_logprobs, label))
    seconds = (time.process_time() - began) / count
    await provider.close()
    gate = work_out(records, target=target)
    right = [
        np.mean([calibrated(each.logprobs, means)[0] == each.paid for each in records]) for means in ({}, gate.means)
    ]
    surest = sorted(((gate.read(each.logprobs), each.paid) for each in records), key=lambda each: -each[0][1])
    fifth = np.mean([said == paid for (said, _), paid in surest[: max(1, count // 5)]])
    return (
        f"{MODEL.id}, {count} texts: right {right[0]:.3f}, {right[1]:.3f} with its prior taken off, {fifth:.3f} of the surest fifth;"
        f" gate {'open' if gate.is_open else 'shut'}; {seconds:.2f} s of CPU a job"
    )


if __name__ == "__main__":
    main()
