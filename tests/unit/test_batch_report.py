from __future__ import annotations

import io
from decimal import Decimal
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from producers.report import Totals, exact, savings_table, summary, table

PARTS = ("routing_usd", "local_usd", "lane_usd", "prompt_cache_usd", "response_cache_usd", "unused_usd")
money = st.decimals(min_value=0, max_value=100, places=12)
lanes = st.lists(
    st.fixed_dictionaries(
        {
            "intent": st.sampled_from(["extraction", "reasoning"]),
            "model": st.sampled_from(["a", "b"]),
            "service": st.sampled_from(["interactive", "local"]),
            "answered": st.integers(0, 9),
            "attempts": st.integers(0, 9),
            "input_tokens": st.integers(0, 10**6),
            "output_tokens": st.integers(0, 10**6),
            "usd": money,
            "estimated_usd": money,
            "flagship_usd": money,
            "unpriced": st.integers(0, 2),
            **dict.fromkeys(PARTS, money),
        }
    ),
    max_size=12,
)


def lane(model: str, answered: int, attempts: int, usd: str, flagship: str, **more: Any) -> dict[str, Any]:
    figures = {"intent": "extraction", "service": "interactive", "input_tokens": 10, "output_tokens": 5, "unpriced": 0}
    return figures | {
        "model": model, "answered": answered, "attempts": attempts, "usd": Decimal(usd),
        "estimated_usd": Decimal(0), "flagship_usd": Decimal(flagship), **dict.fromkeys(PARTS, Decimal(0)), **more,
    }  # fmt: skip


def states(intent: str = "extraction", **numbers: int) -> list[dict[str, Any]]:
    return [{"intent": intent, "state": s, "jobs": n, "first_s": 100.0, "last_s": 104.0} for s, n in numbers.items()]


@settings(deadline=None)  # the machine may be busy
@given(lanes, st.integers(0, 12))
def test_figures_added_chunk_by_chunk_are_the_figures_of_the_whole(rows: list[dict[str, Any]], cut: int) -> None:
    whole, first, second = Totals(), Totals(), Totals()
    whole.add(rows, states(succeeded=3))
    first.add(rows[:cut], states(succeeded=1))
    second.add(rows[cut:], states(succeeded=2))
    first.merge(second)

    report = summary(first, ["r"], seconds=1.0)

    assert report == summary(whole, ["r"], seconds=1.0)
    for group in (report["by_model"], report["services"]):
        assert sum(Decimal(part["usd"]) for part in group.values()) == sum((row["usd"] for row in rows), Decimal(0))
    assert Decimal(report["usd"]) == sum((row["usd"] for row in rows), Decimal(0))


def test_failed_attempts_count_in_what_was_spent_and_not_in_what_the_flagship_would_cost() -> None:
    totals = Totals()
    totals.add(
        [lane("cheap", 8, 10, "0.30", "1.00"), lane("strong", 1, 1, "0.10", "0.25")], states(succeeded=9, failed=1)
    )

    report = summary(totals, ["r"])

    assert (report["jobs"], report["succeeded"], report["failed"], report["attempts"]) == (10, 9, 1, 11)
    assert (report["usd"], report["flagship_usd"], report["saved_ratio"]) == ("0.4", "1.25", 0.68)
    assert report["by_model"]["cheap"]["jobs"] == 8
    assert report["by_intent"]["extraction"]["usd"] == "0.4"
    assert (report["seconds"], report["jobs_per_s"], report["run_id"]) == (4.0, 2.5, "r")


def test_dead_and_cancelled_jobs_are_failed_and_waiting_ones_are_not() -> None:
    totals = Totals()
    totals.add([], states(dead=1, cancelled=2, queued=3, running=4, succeeded=5))

    report = summary(totals, ["a", "b"])

    assert (report["jobs"], report["failed"], report["unfinished"], report["succeeded"]) == (15, 3, 7, 5)
    assert report["saved_ratio"] is None
    assert report["run_id"] == ["a", "b"]


def test_an_empty_run_has_a_report() -> None:
    report = summary(Totals(), ["r"])

    assert (report["jobs"], report["usd"], report["jobs_per_s"]) == (0, "0", None)
    shown(report)


def test_the_table_names_every_intent_and_model_and_what_is_unsure() -> None:
    totals = Totals()
    totals.add(
        [lane("cheap", 1, 2, "0.30", "1.00", unpriced=1, estimated_usd=Decimal("0.1"))], states(succeeded=1, failed=2)
    )

    text = shown(summary(totals, ["r"], flagship="best-model"))

    for part in ("extraction", "cheap", "best-model", "0.300000", "70.0%", "no answer", "no known price", "estimated"):
        assert part in text


def test_the_savings_stack_says_what_saved_how_much_and_adds_up() -> None:
    totals = Totals()
    totals.add(
        [
            lane(
                "cheap", 2, 3, "0.30", "2.00", routing_usd=Decimal("1.20"), lane_usd=Decimal("0.40"),
                prompt_cache_usd=Decimal("0.15"), unused_usd=Decimal("0.05"),
            ),
            lane("cheap", 1, 1, "0", "1.00", service="reuse", routing_usd=Decimal("0.6"), response_cache_usd=Decimal("0.4")),
            lane("ours", 1, 1, "0", "0.5", service="local", local_usd=Decimal("0.5")),
        ],
        states(succeeded=4),
    )  # fmt: skip

    report = summary(totals, ["r"], flagship="best-model")

    stack = {name: Decimal(part["usd"]) for name, part in report["savings"].items()}
    assert stack == {
        "routing": Decimal("1.8"), "local": Decimal("0.5"), "lane": Decimal("0.4"),
        "prompt_cache": Decimal("0.15"), "response_cache": Decimal("0.4"), "unused": Decimal("-0.05"),
    }  # fmt: skip
    assert sum(stack.values()) == Decimal(report["flagship_usd"]) - Decimal(report["usd"])
    text = shown(report)
    for part in ("best-model", "3.500000", "our own model", "-0.400000", "answered before", "0.050000", "8.6%"):
        assert part in text


def shown(report: dict[str, Any]) -> str:
    out = io.StringIO()
    Console(file=out, width=140).print(table(report), savings_table(report))
    return out.getvalue()


@settings(deadline=None)  # the machine may be busy
@given(st.decimals(min_value=0, max_value=10**6, places=12))
def test_exact_money_loses_no_digit(usd: Decimal) -> None:
    assert Decimal(exact(usd)) == usd
    assert "E" not in exact(usd)
