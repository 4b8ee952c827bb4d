"""OpenAI's flex tier as a synchronous lane at half the price, with the capacity that it may lack."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

from tests.batchlane.stage import MODELS, stage


def test_flex_is_half_the_price_waits_for_capacity_and_is_left_when_time_runs_out(
    database_url: str, redis_url: str, tmp_path: Path
) -> None:
    with stage((database_url, redis_url), tmp_path, service="flex") as on:
        on.submit(4, models=MODELS[1:])
        on.until_final()
        assert on.states() == {"succeeded": 4}
        assert set(on.tiers()) == {"flex"}

        on.sandbox.fault("flex_unavailable", tier="flex")
        on.submit(2, models=MODELS[1:])
        snoozed = "select id from jobs where state = 'parked' and error_code = 'no_capacity'"
        on.until(lambda: len(on.rows(snoozed)) == 2, 60, "waiting for capacity")
        assert on.states()["succeeded"] == 4

        # Later there is no time to wait any more: the interactive lane of the same model.
        on.rows(
            "update jobs set due_at = now() + interval '20 seconds', not_before = now() where state = 'parked' returning id"
        )
        on.until_final()

        assert on.states() == {"succeeded": 6}
        tiers = on.tiers()
        assert set(tiers) == {"default", "flex"}
        assert abs(tiers["flex"] - tiers["default"]) < Decimal("0.0001")  # four at half, two at full
        on.check()
