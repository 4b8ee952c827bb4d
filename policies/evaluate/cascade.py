"""The learned policy: after every paid answer stop, buy another cheap answer, or escalate to the flagship.

A state is the set of models paid for. Backwards from the fullest state, the value of each move is predicted from what is known
there: stopping is worth the answer's expected score minus the flagship's, escalating is worth 0, buying is worth what the best
play afterwards is worth; every move is charged its expected cost times a price of money, and its expected squared difference to
the flagship times a price of doubt, because doubt widens the margin. One price of money governs the whole policy; it is the
largest saving whose quality, measured out of fold, keeps its lower bound above the target.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from policies.evaluate.bounds import STEPS_OF_SLACK, Quality, paired_quality
from policies.evaluate.folds import draw_folds
from policies.evaluate.knowledge import Evidence, Knowledge, Paid, answered_models, gather, settle_knowledge
from policies.evaluate.outcomes import Floats, Ints, Outcomes
from policies.evaluate.precall import fit_precall
from policies.evaluate.smoother import Frozen, Smoother

REPEATS = 4
FOLDS = 5
# States double with each model; beyond four the answers of more cheap models repeat each other.
MOST_ASKED = 4
# Score points one flagship call's cost is worth: 0 spends only where quality gains, 1 would trade a right answer for one call.
PRICES: tuple[float, ...] = (0.0, *(float(price) for price in np.geomspace(0.01, 0.5, 80)))


@dataclass(frozen=True)
class Move:
    """One step: `stop` with a paid answer, `buy` a cheap answer, or `escalate` to the flagship (model 0)."""

    kind: str
    model: int


@dataclass(frozen=True)
class Played:
    """What a policy did on items: score minus the flagship's, money spent, models called in order, answer returned."""

    relative: Floats
    cost: Floats
    calls: tuple[tuple[int, ...], ...]
    final: tuple[int, ...]


@dataclass(frozen=True)
class Setting:
    """One price of money and what it did out of fold on the training items."""

    price: float
    quality: Quality
    saving: float


@dataclass(frozen=True)
class Cascade:
    """A fitted policy for every price, of which `chosen` is the one that meets the target (None: flagship for all).

    Columns of `steps[paid]`: for each pool model its score minus the flagship's, less the price of doubt; for each model its
    cost; then, per asked model not yet paid for, the value of going on at each price.
    """

    models: tuple[str, ...]
    asked: tuple[int, ...]
    knowledge: Knowledge
    steps: dict[Paid, Frozen]
    settings: tuple[Setting, ...]
    chosen: int | None
    unit_cost: float  # the flagship's mean cost on the training items
    unseen_scores: Floats  # pre-call scores of the training items, out of fold
    as_chain: bool = False

    def moves(self, paid: Paid) -> tuple[Move, ...]:
        """Return the moves open after `paid`, in the order of `worth`."""
        return open_moves(paid, len(self.models), as_chain=self.as_chain)

    def warm(self) -> Cascade:
        """Return the policy at its chosen price alone: what a dispatcher holds in memory.

        Raises:
            ValueError: No price was chosen; every job goes to the flagship and nothing has to be decided.
        """
        if self.chosen is None:
            raise ValueError("no cheaper plan was shown to meet the target; route to the flagship")
        head, width = 2 * len(self.models) - 1, len(self.settings)
        steps = {}
        for paid, step in self.steps.items():
            nexts = len(_buyable(self.asked, paid, as_chain=self.as_chain))
            going_on = [head + number * width + self.chosen for number in range(nexts)]
            steps[paid] = step.columns([*range(head), *going_on])
        return replace(self, steps=steps, settings=(self.settings[self.chosen],), chosen=0)

    def decide(self, evidence: Evidence, paid: Paid) -> list[Move]:
        """Return the best move of each item after `paid` was paid for, at the chosen price.

        Args:
            evidence: From `gather`; of the answers and costs in it, only those of `paid` are read.
            paid: The same for all items, as a dispatcher handles one state at a time.
        """
        if self.chosen is None:
            return [Move("escalate", 0)] * len(evidence.tags)
        moves = self.moves(paid)
        predicted = self.steps[paid].predict(self.knowledge.rows(evidence, paid))
        return [moves[best] for best in np.argmax(self._worth(predicted, paid, self.chosen), axis=1)]

    def play(self, outcomes: Outcomes, setting: int | None) -> Played:
        """Return what the policy does on recorded outcomes; an answer is read only after its cost was added."""
        return self.play_all(outcomes, [setting])[0]

    def play_all(self, outcomes: Outcomes, settings: Sequence[int | None]) -> list[Played]:
        evidence = gather(
            outcomes.prompts, outcomes.intents, outcomes.answers, outcomes.costs, precall=self.knowledge.precall
        )
        predicted = {paid: step.predict(self.knowledge.rows(evidence, paid)) for paid, step in self.steps.items()}
        return [self._play(outcomes, predicted, setting) for setting in settings]

    def _play(self, outcomes: Outcomes, predicted: dict[Paid, Floats], setting: int | None) -> Played:
        count = len(outcomes)
        relative, cost = np.zeros(count), np.zeros(count)
        calls: list[tuple[int, ...]] = [(0,)] * count
        final = [0] * count
        if setting is None:
            return Played(relative, outcomes.costs[:, 0].copy(), tuple(calls), tuple(final))
        gains = outcomes.relative()
        waiting: dict[Paid, Ints] = {(): np.arange(count)}
        calls = [()] * count
        for paid in sorted(self.steps, key=len):
            at = waiting.get(paid)
            if at is None or not len(at):
                continue
            moves = self.moves(paid)
            best = np.argmax(self._worth(predicted[paid][at], paid, setting), axis=1)
            for number, move in enumerate(moves):
                rows = at[best == number]
                if not len(rows):
                    continue
                if move.kind != "stop":
                    cost[rows] += outcomes.costs[rows, move.model]
                    for row in rows:
                        calls[row] = (*calls[row], move.model)
                if move.kind == "buy" and move.model in self.asked:
                    after = tuple(sorted((*paid, move.model)))
                    waiting[after] = np.concatenate([waiting.get(after, np.array([], dtype=np.int64)), rows])
                    continue
                if move.model:
                    relative[rows] = gains[rows, move.model - 1]
                for row in rows:
                    final[row] = move.model
        return Played(relative, cost, tuple(calls), tuple(final))

    def _worth(self, predicted: Floats, paid: Paid, setting: int) -> Floats:
        pool = len(self.models) - 1
        gains, costs, going_on = predicted[:, :pool], predicted[:, pool : 2 * pool + 1], predicted[:, 2 * pool + 1 :]
        rate = self.settings[setting].price / self.unit_cost
        unpaid = _buyable(self.asked, paid, as_chain=self.as_chain)
        columns = []
        for move in self.moves(paid):
            if move.kind == "escalate":
                columns.append(-rate * costs[:, 0])
            elif move.kind == "stop":
                columns.append(gains[:, move.model - 1])
            elif move.model in self.asked:
                value = going_on[:, unpaid.index(move.model) * len(self.settings) + setting]
                columns.append(value - rate * costs[:, move.model])
            else:
                columns.append(gains[:, move.model - 1] - rate * costs[:, move.model])
        return np.column_stack(columns)


def open_moves(paid: Paid, models: int, *, as_chain: bool) -> tuple[Move, ...]:
    """Return the moves open after `paid`: escalate, stop with an answer, buy one.

    Args:
        models: How many there are, the flagship counted in.
        as_chain: A chain: only models after the last one paid for may be bought, and only its answer may be kept.
    """
    stops = paid[-1:] if as_chain else paid
    buys = _buyable(range(1, models), paid, as_chain=as_chain)
    return (Move("escalate", 0), *(Move("stop", model) for model in stops), *(Move("buy", model) for model in buys))


def _buyable(models: Sequence[int], paid: Paid, *, as_chain: bool) -> list[int]:
    last = paid[-1] if as_chain and paid else 0
    return [model for model in models if model not in paid and model > last]


def fit_cascade(
    train: Outcomes, *, target: float, seed: int, prices: Sequence[float] = PRICES, as_chain: bool = False
) -> Cascade:
    """Fit the policy on paired outcomes.

    Args:
        target: Share of the flagship's mean score to be kept, such as 0.99.
        seed: Of folds and trees; the same seed and outcomes give the same policy.
        as_chain: As the fleet plays it: the pool is asked in this order, the last answer alone may be kept (`open_moves`), and
            no move is read from what a call cost, which depends on its lane. One lost item is added before the bound is taken:
            labels are few there.
    """
    folds = [draw_folds(train.prompts, count=FOLDS, seed=seed + repeat) for repeat in range(REPEATS)]
    gains = train.relative()
    precall, unseen = fit_precall(train.prompts, train.intents, train.scores, folds)
    asked = _asked(train)
    states: list[Paid] = [paid for size in range(len(asked) + 1) for paid in combinations(asked, size)]
    evidence = gather(train.prompts, train.intents, train.answers, train.costs, precall=precall, scores=unseen)
    knowledge = settle_knowledge(train, evidence, precall, states, metered=not as_chain)
    smoothers = {
        paid: Smoother(knowledge.rows(evidence, paid), shape_by=gains, folds=folds, seed=seed)
        for paid in sorted(states, key=len, reverse=True)
    }
    # First without a price of doubt; the margin of what was chosen then sets that price.
    _, careless = _plan(train, asked, smoothers, prices, doubt=0.0, as_chain=as_chain)
    doubt = _price_of_doubt(careless, target, flagship=float(train.scores[:, 0].mean()))
    wanted, settings = _plan(train, asked, smoothers, prices, doubt=doubt, as_chain=as_chain)
    return Cascade(
        models=train.models,
        asked=asked,
        knowledge=knowledge,
        steps={paid: smoother.freeze(wanted[paid]) for paid, smoother in smoothers.items()},
        settings=settings,
        chosen=choose_setting(settings, target),
        unit_cost=float(train.costs[:, 0].mean()),
        unseen_scores=unseen,
        as_chain=as_chain,
    )


def choose_setting(settings: Sequence[Setting], target: float) -> int | None:
    """Return the setting that saves most among those whose lower bound meets the target; None if none saves anything."""
    safe = [
        number
        for number, setting in enumerate(settings)
        if setting.quality.lower_bound() >= target and setting.saving > 0
    ]
    return max(safe, key=lambda number: settings[number].saving, default=None)


def _price_of_doubt(settings: Sequence[Setting], target: float, *, flagship: float) -> float:
    """Return what a unit of squared difference to the flagship costs in score points.

    A policy must keep its ratio minus its margin above the target, and the margin grows with the standard error. The price is
    the derivative of that margin with respect to one item's squared difference, at the plan chosen without it. An answer that
    differs often, though for better as often as for worse, is thus paid for by its gain or left.
    """
    chosen = choose_setting(settings, target)
    saving = [setting for setting in settings if setting.saving > 0] or list(settings)
    plan = max(saving, key=lambda each: each.quality.lower_bound()) if chosen is None else settings[chosen]
    error, labels = plan.quality.standard_error, plan.quality.labels
    if not 0 < error < np.inf:
        return 0.0
    return STEPS_OF_SLACK / (2 * labels * error * flagship)


def _plan(
    train: Outcomes,
    asked: tuple[int, ...],
    smoothers: dict[Paid, Smoother],
    prices: Sequence[float],
    *,
    doubt: float,
    as_chain: bool,
) -> tuple[dict[Paid, Floats], tuple[Setting, ...]]:
    """Return what each state's smoother has to predict, and what the policy did at each price, out of fold.

    Args:
        smoothers: By state, the fullest first.
    """
    gains, unit = train.relative(), train.costs[:, 0].mean()
    rates = np.array(prices) / unit
    wanted: dict[Paid, Floats] = {}
    # In the end `after[()]` holds, per price, what the policy earned and paid on each training item, out of fold.
    after: dict[Paid, _Value] = {}
    for paid, smoother in smoothers.items():
        unpaid = _buyable(asked, paid, as_chain=as_chain)
        worths = [after[_with(paid, model)].worth for model in unpaid]
        wanted[paid] = np.hstack([gains - doubt * gains**2, train.costs, *worths])
        predicted = smoother.unseen(wanted[paid])
        after[paid] = _back_up(train, paid, asked, predicted, rates, after, as_chain=as_chain)
    value = after[()]
    return wanted, tuple(
        Setting(
            price=float(price),
            quality=paired_quality(value.relative[:, number], train.scores[:, 0], lost=int(as_chain)),
            saving=1 - float(value.cost[:, number].mean() / unit),
        )
        for number, price in enumerate(prices)
    )


@dataclass(frozen=True)
class _Value:
    """Per training item and price: predicted worth of playing on from a state, and what playing on really brought."""

    worth: Floats
    relative: Floats
    cost: Floats


def _back_up(
    train: Outcomes,
    paid: Paid,
    asked: tuple[int, ...],
    predicted: Floats,
    rates: Floats,
    after: dict[Paid, _Value],
    *,
    as_chain: bool,
) -> _Value:
    """Return the value of a state from the out-of-fold predictions of its moves."""
    pool = len(train.models) - 1
    gains, costs = predicted[:, :pool], predicted[:, pool : 2 * pool + 1]
    count, width = len(train), len(rates)
    true_gains = train.relative()
    nothing = np.zeros((count, width))
    worths, brought = [], []
    unpaid = _buyable(asked, paid, as_chain=as_chain)
    for move in open_moves(paid, pool + 1, as_chain=as_chain):
        model = move.model
        if move.kind == "escalate":
            worths.append(-rates * costs[:, [0]])
            brought.append((nothing, nothing + train.costs[:, [0]]))
        elif move.kind == "stop":
            worths.append(nothing + gains[:, [model - 1]])
            brought.append((nothing + true_gains[:, [model - 1]], nothing))
        elif model in unpaid:
            start = 2 * pool + 1 + unpaid.index(model) * width
            worths.append(predicted[:, start : start + width] - rates * costs[:, [model]])
            later = after[_with(paid, model)]
            brought.append((later.relative, later.cost + train.costs[:, [model]]))
        else:
            worths.append(gains[:, [model - 1]] - rates * costs[:, [model]])
            brought.append((nothing + true_gains[:, [model - 1]], nothing + train.costs[:, [model]]))
    stacked = np.stack(worths)
    best = np.argmax(stacked, axis=0)[None]
    return _Value(
        worth=np.take_along_axis(stacked, best, axis=0)[0],
        relative=np.take_along_axis(np.stack([relative for relative, _ in brought]), best, axis=0)[0],
        cost=np.take_along_axis(np.stack([cost for _, cost in brought]), best, axis=0)[0],
    )


def _asked(train: Outcomes) -> tuple[int, ...]:
    """Return the pool models whose answers can inform a later move, at most `MOST_ASKED`, best score for its cost first."""
    relative_cost = train.costs.mean(axis=0) / train.costs[:, 0].mean()
    merit = train.scores.mean(axis=0) - relative_cost
    ranked = sorted(answered_models(train), key=lambda model: -merit[model])
    return tuple(sorted(ranked[:MOST_ASKED]))


def _with(paid: Paid, model: int) -> Paid:
    return tuple(sorted((*paid, model)))
