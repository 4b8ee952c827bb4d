"""The savings report: everything that was spent, against the flagship and the best single model, with quality beside it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tests.fleet import ROOT, clean_environment
from tests.quality.ledgerrows import LedgerRows


@pytest.fixture
def ledger(database_url: str) -> Iterator[LedgerRows]:
    with LedgerRows(database_url) as rows:
        yield rows


def waybill(database_url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    code = "import sys; from waybill.cli import main; sys.argv[0] = 'waybill'; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
        env={**clean_environment(), "WAYBILL_DATABASE_URL": database_url},
    )  # fmt: skip


def report(database_url: str, tmp_path: Path, *arguments: str) -> dict[str, Any]:
    done = waybill(database_url, "savings", "--json", str(tmp_path / "s.json"), *arguments)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads((tmp_path / "s.json").read_text())
    return found


def test_rejected_failed_and_checking_calls_count_against_what_was_saved(
    database_url: str, ledger: LedgerRows, tmp_path: Path
) -> None:
    ledger.job(
        "extraction",
        [
            ("smollm2-135m-instruct", "weak", "0"),
            ("claude-haiku-5-5", "weak", "0.001"),
            ("gpt-6-luna", "succeeded", "0.002"),
        ],
        flagship_usd="0.04",
    )
    ledger.job(
        "extraction",
        [("claude-haiku-5-5", "unknown", "0.003"), ("claude-haiku-5-5", "succeeded", "0.001")],
        flagship_usd="0.06",
    )
    about = ledger.job("extraction", [("claude-haiku-5-5", "succeeded", "0.001")], flagship_usd="0.05")
    shadow = ledger.job("extraction", [("claude-opus-5-5", "succeeded", "0.02")], flagship_usd="0.02")
    ledger.all("insert into checks values (%s, %s, 'shadow')", shadow, about)
    ledger.all("update attempts set cpu_s = 0.25 where provider = 'local'")

    found = report(database_url, tmp_path)

    assert Decimal(found["usd"]) == Decimal("0.028")
    assert found["cpu_s"] == found["by_intent"]["extraction"]["cpu_s"] == 0.25
    assert "took 0.2 s of CPU" in waybill(database_url, "savings").stdout
    assert found["spent"] == {
        "answers": "0.004", "rejected answers": "0.001", "failed or lost calls": "0.003", "shadows and judges": "0.02",
    }  # fmt: skip
    assert found["calls"]["rejected answers"] == 2
    assert found["flagship_usd"] == "0.15"
    assert found["saved_against_flagship"] == pytest.approx(1 - 0.028 / 0.15, abs=1e-6)


def test_the_best_single_model_must_be_shown_to_keep_the_quality(
    database_url: str, ledger: LedgerRows, tmp_path: Path
) -> None:
    ledger.job("extraction", [("claude-haiku-5-5", "succeeded", "0.001")], flagship_usd="0.05")

    unknown = report(database_url, tmp_path)
    for model, right in (("gpt-6-luna", 1), ("claude-haiku-5-5", 0), ("claude-opus-5-5", 1)):
        ledger.all(
            "insert into grades (item, tenant, intent, model, source, score, cost_usd) select 'i/' || i, 'default',"
            " 'extraction', %s, 'import', %s, 0.01 from generate_series(1, 300) i", model, right,
        )  # fmt: skip
    known = report(database_url, tmp_path)

    assert unknown["best_single"]["model"] == "claude-opus-5-5"
    assert known["best_single"]["model"] == "gpt-6-luna"
    assert {each["model"]: each["shown"] for each in known["singles"]}["claude-haiku-5-5"] is False


def test_quality_of_what_was_served_stands_beside_the_saving(
    database_url: str, ledger: LedgerRows, tmp_path: Path
) -> None:
    for score in (1, 1, 0):
        job = ledger.job("extraction", [("claude-haiku-5-5", "succeeded", "0.001")], flagship_usd="0.05")
        for model, given in (("claude-haiku-5-5", score), ("claude-opus-5-5", 1)):
            ledger.all(
                "insert into grades (item, tenant, intent, model, source, score) values (%s, 'default', 'extraction',"
                " %s, 'user', %s)", job, model, given,
            )  # fmt: skip

    quality = report(database_url, tmp_path)["by_intent"]["extraction"]["quality"]

    assert (quality["answered"], quality["graded"]) == (3, 3)
    assert quality["mean_score"] == pytest.approx(2 / 3, abs=1e-4)
    assert quality["ratio_to_flagship"] == pytest.approx(2 / 4)  # one lost item is added: few labels show little


def test_it_draws_a_page_and_says_what_it_cannot(database_url: str, ledger: LedgerRows, tmp_path: Path) -> None:
    empty = waybill(database_url, "savings")
    ledger.job("extraction", [("claude-haiku-5-5", "succeeded", "0.001")], flagship_usd="0.05")
    shown = waybill(database_url, "savings", "--plot", str(tmp_path / "s.html"))

    assert "no calls in this period" in empty.stderr
    assert "none of 1 answers is graded" in shown.stdout
    assert "<svg" in (tmp_path / "s.html").read_text()
    for wrong in (("--since", "soon"), ("--plot", "s.png"), ("--plot", str(tmp_path / "no" / "s.html"))):
        done = waybill(database_url, "savings", *wrong)
        assert done.returncode != 0
        assert "Traceback" not in done.stderr
