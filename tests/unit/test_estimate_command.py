"""`waybill estimate` and the lengths of time that `waybill run --deadline` takes."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from waybill.cli.durations import DURATION
from waybill.cli.estimate import estimate


@pytest.fixture
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The arguments for three notes, where no fleet and no settings are known."""
    monkeypatch.chdir(tmp_path)
    for name in ("WAYBILL_DATABASE_URL", "WAYBILL_REDIS_URL", "WAYBILL_POLICY_FILE"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "notes").mkdir()
    for number in range(3):
        (tmp_path / "notes" / f"{number}.txt").write_text("Stones are heavy. " * (number + 1))
    (tmp_path / "prompt.txt").write_text("Sum up: {text}")
    return [str(tmp_path / "notes"), "--intent", "summarization", "--prompt", str(tmp_path / "prompt.txt")]


def test_haste_has_a_price(notes: list[str]) -> None:
    found = CliRunner().invoke(estimate, [*notes, "--deadline", "10m", "--deadline", "1h", "--json"])

    assert found.exit_code == 0, found.output
    ten_minutes, hour, day = json.loads(found.output)["estimates"]
    assert [one["deadline_s"] for one in (ten_minutes, hour, day)] == [600, 3600, 86400]
    assert float(ten_minutes["usd"]) >= float(hour["usd"]) > float(day["usd"])
    assert day["saved_share"] > 0.45
    assert day["lanes"] == {"anthropic/claude-sonnet-5-5/batch": 3}
    assert all(one["in_time"] >= 0.995 for one in (ten_minutes, hour, day))


def test_it_says_in_words_what_haste_costs(notes: list[str]) -> None:
    found = CliRunner().invoke(estimate, [*notes])

    assert "at once" in found.output
    assert "haste costs $" in found.output


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("45s", 45), ("15m", 900), ("24h", 86400), ("1.5d", 129600)])
def test_lengths_of_time(text: str, seconds: float) -> None:
    assert DURATION.convert(text, None, None) == seconds


@pytest.mark.parametrize("text", ["soon", "-1h", "0", "3w", ""])
def test_what_is_no_length_of_time_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match="no length of time"):
        DURATION.convert(text, None, None)
