"""RouteLLM's measures of a pair of models, and the cost-quality curve as a small SVG drawn here, without a library."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from policies.evaluate.baselines import Measured
from policies.evaluate.outcomes import Floats


@dataclass(frozen=True)
class PairMeasures:
    """APGR, and the percentage of flagship calls that recovers half (CPT50) and four fifths (CPT80) of the gap.

    None where the pair has no gap, so that nothing can be recovered; a CPT is None when the order never recovers that much.
    """

    apgr: float | None
    cpt50: float | None
    cpt80: float | None


def measure_pair(hardness: Floats, *, weak: Floats, strong: Floats) -> PairMeasures:
    """Measure an order of items, those with the largest `hardness` going to the strong model first.

    APGR is the area under the recovered share of the gap over the share of strong calls, by the trapezoid rule over every
    possible number of strong calls (RouteLLM, arXiv 2406.18665). Items of equal hardness are spread evenly over their stretch,
    so that the order of the file cannot flatter.
    """
    gap = float(strong.mean() - weak.mean())
    if gap <= 0:
        return PairMeasures(None, None, None)
    order = np.argsort(-hardness, kind="stable")
    gains, keys = (strong - weak)[order], hardness[order]
    _, group = np.unique(-keys, return_inverse=True)
    even = np.bincount(group, weights=gains)[group] / np.bincount(group)[group]
    recovered = np.concatenate([[0.0], np.cumsum(even)]) / len(gains) / gap
    share = np.arange(len(gains) + 1) / len(gains)

    def percent_for(level: float) -> float | None:
        reached = np.flatnonzero(recovered >= level - 1e-12)
        return float(100 * share[reached[0]]) if len(reached) else None

    return PairMeasures(apgr=float(np.trapezoid(recovered, share)), cpt50=percent_for(0.5), cpt80=percent_for(0.8))


_WIDTH, _HEIGHT, _LEFT, _TOP, _RIGHT, _BOTTOM = 760, 460, 64, 48, 180, 52


def draw_curve(
    curve: Sequence[Measured], *, chosen: Measured, others: dict[str, Measured], target: float, title: str
) -> str:
    """Return an SVG of quality (up) over saving (right): the policy at every price, its choice, and the baselines."""
    points = [point for point in (*curve, chosen, *others.values()) if np.isfinite(point.quality_ratio)]
    low = min(0.9, *(point.quality_ratio for point in points)) - 0.01
    high = max(1.02, *(point.quality_ratio for point in points)) + 0.01
    left = min(0.0, *(point.saving for point in points))

    def at(point: Measured) -> tuple[float, float]:
        x = _LEFT + (point.saving - left) / (1 - left) * (_WIDTH - _LEFT - _RIGHT)
        y = _TOP + (high - point.quality_ratio) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)
        return round(x, 1), round(y, 1)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" font-size="12"',
        f'font-family="system-ui, sans-serif" aria-label="{escape(title, quote=True)}">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#ffffff"/>',
        f'<text x="{_LEFT}" y="24" font-size="15" fill="#1b2530">{escape(title)}</text>',
    ]
    for step in range(11):
        if step / 10 < left:
            continue
        x, _ = at(Measured(quality_ratio=high, saving=step / 10))
        parts.append(f'<line x1="{x}" y1="{_TOP}" x2="{x}" y2="{_HEIGHT - _BOTTOM}" stroke="#edf0f3"/>')
        parts.append(
            f'<text x="{x}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle" fill="#51606f">{step * 10} %</text>'
        )
    for tick in np.arange(np.ceil(low * 20) / 20, high, 0.05):
        _, y = at(Measured(quality_ratio=float(tick), saving=left))
        parts.append(f'<line x1="{_LEFT}" y1="{y}" x2="{_WIDTH - _RIGHT}" y2="{y}" stroke="#edf0f3"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 4}" text-anchor="end" fill="#51606f">{tick:.2f}</text>')
    _, y = at(Measured(quality_ratio=target, saving=left))
    parts.append(
        f'<line x1="{_LEFT}" y1="{y}" x2="{_WIDTH - _RIGHT}" y2="{y}" stroke="#c0392b" stroke-dasharray="5 4"/>'
    )
    parts.append(f'<text x="{_WIDTH - _RIGHT + 8}" y="{y + 4}" fill="#c0392b">target {target:g}</text>')
    path = " ".join(f"{x},{y}" for x, y in (at(point) for point in curve))
    parts.append(f'<polyline points="{path}" fill="none" stroke="#1f6fb2" stroke-width="2"/>')
    for name, point in others.items():
        if np.isfinite(point.quality_ratio):
            parts.append(_mark(*at(point), "#7a8794", name.replace("_", " ")))
    parts.append(_mark(*at(chosen), "#1f6fb2", "this policy", size=6))
    parts.append(
        f'<text x="{_LEFT}" y="{_HEIGHT - 12}" fill="#51606f">saving against the flagship (quality ratio upwards)</text>'
    )
    return "\n".join([*parts, "</svg>"])


def page(svg: str, *, title: str) -> str:
    """Return the SVG as a page of its own."""
    return (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>\n'
        f'<body style="margin:2rem;max-width:60rem">\n{svg}\n</body></html>\n'
    )


def _mark(x: float, y: float, colour: str, label: str, *, size: int = 4) -> str:
    return (
        f'<circle cx="{x}" cy="{y}" r="{size}" fill="{colour}"/>'
        f'<text x="{x + size + 4}" y="{y + 4}" fill="{colour}">{escape(label)}</text>'
    )
