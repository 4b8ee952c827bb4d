"""What a run would cost, and what haste costs: the router's own choice for every row, nothing submitted.

Prompt tokens are estimated from bytes, answers are taken at the most that the intent allows unless the fleet has learned
better, so that these are upper figures; what is exact is the comparison between lanes and deadlines.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal

from policies.lanes import Latency, span
from policies.pricing import PriceBook
from policies.routing import NoRoute, Request, Route, Snapshot, route, with_lanes
from producers.batch import BatchSpec, check
from producers.inputs import reading
from producers.template import FieldProblem
from waybill.client import AsyncClient


@dataclass(slots=True)
class Figures:
    """One deadline's figures.

    Attributes:
        due_s: The deadline; None = at once.
        rows: Rows that would be done.
        lanes: Rows by the lane they would take first.
        usd: Expected cost with the hedges that are likely.
        interactive_usd: The same rows all interactive.
        in_time: Sum of the probabilities to be done in time.
        problems: Rows that would not be done, by reason.
    """

    due_s: float | None
    rows: int = 0
    lanes: Counter[str] = field(default_factory=Counter)
    usd: Decimal = Decimal(0)
    interactive_usd: Decimal = Decimal(0)
    in_time: float = 0.0
    problems: Counter[str] = field(default_factory=Counter)

    def as_json(self) -> dict[str, object]:
        """For `--json`."""
        return {
            "deadline_s": self.due_s,
            "rows": self.rows,
            "usd": str(self.usd),
            "interactive_usd": str(self.interactive_usd),
            "saved_share": round(1 - float(self.usd / self.interactive_usd), 4) if self.interactive_usd else 0.0,
            "in_time": round(self.in_time / self.rows, 5) if self.rows else None,
            "lanes": dict(self.lanes),
            "problems": dict(self.problems),
        }


def estimate(
    spec: BatchSpec,
    client: AsyncClient,
    due: Sequence[float | None],
    *,
    off: Mapping[str, str],
    times: Mapping[str, Latency],
) -> list[Figures]:
    """The figures of a run for each deadline. Reads the whole input, asks no service.

    Raises:
        Refused: The run could not be carried out.
    """
    plan = check(spec, client)
    prices = PriceBook(spec.policy)
    snapshot = Snapshot(off=off, now=datetime.now(UTC), times=times)
    figures = [Figures(due_s) for due_s in due]
    around = sum(len(text.encode()) for text in (spec.system or "", spec.context or ""))
    sizes: dict[int, int] = defaultdict(int)
    with reading(plan.source, spec.limit) as rows:
        for row in rows:
            try:
                prompt = plan.template.render(row.fields, filled=spec.filled) if row.problem is None else None
            except FieldProblem as exc:
                row_problem = str(exc).partition(":")[0]
                prompt = None
            else:
                row_problem = row.problem or ""
            if prompt is None:
                for one in figures:
                    one.problems[row_problem or "cannot be read"] += 1
                continue
            sizes[len(prompt.encode("utf-8", "replace")) + around] += 1
    for size, count in sizes.items():
        for one in figures:
            _add(one, spec, size, count, snapshot, prices)
    return figures


def _add(figures: Figures, spec: BatchSpec, size: int, count: int, snapshot: Snapshot, prices: PriceBook) -> None:
    request = Request(
        intent=spec.intent,
        payload_bytes=size,
        model=spec.model,
        local_only=spec.local_only,
        needs=("json_schema",) if spec.schema is not None else ("labels",) if spec.labels else (),
        max_output_tokens=spec.max_output_tokens,
        slack_s=figures.due_s,
        priority="lo",
        due_s=figures.due_s,
    )
    found = route(request, spec.policy, snapshot, prices)
    if not isinstance(found, Route):
        figures.problems[found.reason if isinstance(found, NoRoute) else "no lane is open now"] += count
        return
    usual = found.candidates[0]
    found, weighed = with_lanes(found, request, spec.policy, snapshot, prices)
    taken = next((one for one in weighed if one["taken"]), None)
    head = found.candidates[0]
    figures.rows += count
    figures.lanes[f"{head.provider}/{head.model}/{head.service}"] += count
    figures.interactive_usd += count * usual.estimate_usd
    figures.usd += count * (Decimal(str(taken["expected_usd"])) if taken else usual.estimate_usd)
    figures.in_time += count * (float(str(taken["in_time"])) if taken else 1.0)


def told(figures: Sequence[Figures]) -> str:
    """The figures for people; the last line says what haste costs."""
    lines = []
    for one in figures:
        due = "at once" if one.due_s is None else f"within {span(one.due_s)}"
        lanes = ", ".join(f"{count:,} {lane}" for lane, count in one.lanes.most_common())
        saved = 1 - float(one.usd / one.interactive_usd) if one.interactive_usd else 0.0
        sure = f", in time p = {one.in_time / one.rows:.4f}" if one.rows and one.due_s is not None else ""
        lines.append(f"{due:<16} at most ${one.usd:.6f}  {saved:>4.0%} below interactive{sure}  ({lanes or 'no rows'})")
        lines += [f"{'':<16} {count:,} rows not: {problem}" for problem, count in one.problems.most_common(3)]
    first, last = figures[0], figures[-1]
    if len(figures) > 1 and first.usd > last.usd:
        haste = "at once" if first.due_s is None else f"within {span(first.due_s)}"
        lines.append(f"haste costs ${first.usd - last.usd:.6f}: {haste} instead of {span(last.due_s or 0)}")
    return "\n".join(lines)
