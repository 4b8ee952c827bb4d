"""`./run soak --minutes 30 [--seed N] [--json]`: all faults at once, round after round, and what the books say after each.

A round takes one seed: a producer submits jobs while a nemesis kills, freezes, wipes and spoils; then everything is left
alone until every job has ended, and the producer's log, the ledger and the sandbox's bill are compared. A quarter of the jobs
belongs to a key whose budget runs out meanwhile. The exit code is 1 when an invariant broke; the round's seed replays the
nemesis's choices (not the machine's timing). `unknown_list` of the JSON names every call that is booked by an estimate.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from tests.fault.harness import Scene, Verdict, check, scene_set
from tests.fault.nemesis import Nemesis
from waybill import embedded
from waybill.cli.db import run_upgrade

SETTLE_S = 120.0
"""After the last fault: leases, re-rung doorbells and parked retries need a few seconds; this is for a busy machine."""
KINDS: Sequence[dict[str, Any]] = (
    {"intent": "summarization"},
    {"intent": "summarization", "stream": True},
    {"intent": "extraction", "priority": "lo"},
    {"intent": "reasoning", "priority": "lo"},
)
MONEY = ("billed_usd", "unbilled_usd", "unknown_usd", "over_usd")
CAPPED_SHARE = 0.25
"""Of the jobs: those under the key."""
CAPS = {"tenant": "100", "key": "0.02"}
"""USD a round: the tenant's is never reached, the key's about half-way through the round."""


def play_round(scene: Scene, seed: int, seconds: float) -> tuple[Verdict, Counter[str]]:
    """One seed: trouble for `seconds`, peace until all has ended, then the comparison."""
    rng = random.Random(seed)
    scene.begin(latency="fixed:200ms")
    scene.set_budget("tenant", scene.act, CAPS["tenant"])
    scene.set_budget("key", scene.capped_key, CAPS["key"], rng.choice(["stop", "cheaper"]))
    nemesis = Nemesis(scene, random.Random(rng.random()))
    stop = threading.Event()
    failed: list[Exception] = []

    def trouble() -> None:
        try:
            nemesis.work(seconds, stop)
        except Exception as exc:  # noqa: BLE001  (handed to the main thread, which raises it)
            failed.append(exc)

    thread = threading.Thread(target=trouble, name="nemesis")
    thread.start()
    try:
        while thread.is_alive():
            key = scene.capped_key if rng.random() < CAPPED_SHARE else None
            scene.submit(rng.randint(1, 6), key_id=key, **rng.choice(KINDS))
            time.sleep(rng.uniform(0.0, 0.25))
    finally:
        stop.set()
        thread.join()
    if failed:
        raise failed[0]
    scene.sandbox.latency("fixed:20ms")
    scene.until_final(SETTLE_S)
    return check(scene), nemesis.deeds


def main(arguments: Sequence[str]) -> None:
    """Play rounds until the time is over and print the sums."""
    parser = argparse.ArgumentParser(prog="./run soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, help="this many seeds, however long they take")
    parser.add_argument(
        "--round-seconds", type=float, default=12.0, help="of trouble; the end of the jobs comes on top"
    )
    parser.add_argument("--seed", type=int, help="of the first round; the others count up")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout, rounds on stderr")
    options = parser.parse_args(arguments)
    first = options.seed if options.seed is not None else random.SystemRandom().randrange(1_000_000)
    sums: Counter[str] = Counter()
    money: defaultdict[str, Decimal] = defaultdict(Decimal)
    deeds: Counter[str] = Counter()
    problems: list[str] = []
    unknown: list[str] = []
    began = time.monotonic()
    print(f"soak: first seed {first}", file=sys.stderr, flush=True)
    with contextlib.ExitStack() as stack:
        state = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        services = stack.enter_context(embedded.services(state / "services"))
        url = embedded.create_database(str(services.database_url), "soak")
        run_upgrade(url)
        (state / "logs").mkdir()
        scene = stack.enter_context(scene_set(services, url, state / "logs", seed=first))
        seed = first
        while seed - first < options.rounds if options.rounds else time.monotonic() - began < options.minutes * 60:
            at = time.monotonic()
            try:
                verdict, done = play_round(scene, seed, options.round_seconds)
            except AssertionError as exc:  # a job that does not end: the round is lost, and its story is told
                verdict, done = Verdict(jobs=len(scene.accepted), lost=1, problems=[str(exc)]), Counter()
            _add(sums, money, verdict)
            deeds += done
            problems += [f"seed {seed}: {problem}" for problem in verdict.problems]
            unknown += [f"seed {seed}: {outcome}" for outcome in verdict.unknown]
            print(_line(seed, verdict, time.monotonic() - at), file=sys.stderr, flush=True)
            for text in verdict.problems[:10]:
                print(f"    {text}", file=sys.stderr, flush=True)
            seed += 1
        restarts = sum(scene.fleet.restarts.values())
    report = {
        "first_seed": first,
        "seeds": seed - first,
        "minutes": round((time.monotonic() - began) / 60, 1),
        **{name: sums[name] for name in ("jobs", "lost", "duplicated", "unknown")},
        "states": {name.removeprefix("state "): count for name, count in sums.items() if name.startswith("state ")},
        **{name: str(money[name]) for name in MONEY},
        "problems": len(problems),
        "restarts": restarts,
        "deeds": dict(deeds),
    }
    if options.json:
        print(json.dumps(report | {"problem_list": problems, "unknown_list": unknown}))
    else:
        for key, value in report.items():
            print(f"{key:>14}  {value}")
    sys.exit(1 if problems else 0)


def _add(sums: Counter[str], money: defaultdict[str, Decimal], verdict: Verdict) -> None:
    sums.update(jobs=verdict.jobs, lost=verdict.lost, duplicated=verdict.duplicated, unknown=len(verdict.unknown))
    sums.update({f"state {state}": count for state, count in verdict.states.items()})
    for name in MONEY:
        money[name] += getattr(verdict, name)


def _line(seed: int, verdict: Verdict, seconds: float) -> str:
    states = ", ".join(f"{count} {state}" for state, count in sorted(verdict.states.items()))
    return (
        f"seed {seed}: {'ok' if not verdict.problems else 'BROKEN'}: {verdict.jobs} jobs ({states}),"
        f" ${verdict.billed_usd:.4f} billed, {len(verdict.unknown)} unknown (${verdict.unknown_usd:.4f}), {seconds:.0f} s"
    )
