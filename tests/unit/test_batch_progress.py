from __future__ import annotations

import io
from decimal import Decimal

from hypothesis import given, settings
from hypothesis import strategies as st

from producers.progress import Lines, Pace, Standing, one_line


def test_projection_counts_only_what_this_command_pays() -> None:
    standing = Standing(total=100, succeeded=60, adopted=50, usd=Decimal("0.20"), rate=4.0)

    assert standing.projected_usd == Decimal("1.00")
    assert standing.eta_s == 10.0
    assert "60/100 done" in one_line(standing)
    assert "10 s to go" in one_line(standing)
    assert "about 1.0000 USD in the end" in one_line(standing)


def test_nothing_is_projected_from_nothing() -> None:
    standing = Standing(total=10)

    assert standing.projected_usd is None
    assert standing.eta_s is None
    assert "to go" not in one_line(standing)


def test_a_run_that_stands_still_asks_for_workers_and_an_outage_is_named() -> None:
    idle = Standing(total=10, waiting=10, idle_s=21)

    assert "are workers running" in one_line(idle)
    assert "workers" not in one_line(Standing(total=10, waiting=10, idle_s=5))
    assert "Postgres" in one_line(Standing(total=10, waiting=10, idle_s=21, hint="Postgres does not answer"))


@settings(deadline=None)  # the machine may be busy
@given(st.floats(0.1, 100), st.integers(10, 200))
def test_the_pace_of_a_steady_run_is_its_rate(rate: float, seconds: int) -> None:
    pace = Pace()

    measured = [pace.rate(float(second), int(rate * second)) for second in range(seconds)]

    assert measured[0] == 0.0
    assert abs(measured[-1] - rate) <= 1 / min(30, seconds - 1) + 1e-9


def test_lines_come_every_five_seconds() -> None:
    now, out = [0.0], io.StringIO()
    lines = Lines(out, clock=lambda: now[0])

    for second in range(12):
        now[0] = float(second)
        lines.show(Standing(total=12, succeeded=second))

    assert [line.split()[0] for line in out.getvalue().splitlines()] == ["5/12", "10/12"]
