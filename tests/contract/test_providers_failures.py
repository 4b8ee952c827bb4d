"""docs/failures.md against the code: the table there is the one the fleet goes by."""

from __future__ import annotations

from pathlib import Path

import pytest

from policies.fallback import GiveUp, History, Reroute, Retry, Snooze, decide
from waybill.contract import Candidate, Usage
from waybill.errors import Rejected, Throttled
from workers.providers.errors import _BY_CODE, _BY_STATUS, _BY_TYPE, _BY_WORDS
from workers.providers.failures import FAILURES, Seen, failure

TABLE = Path(__file__).resolve().parents[2] / "docs" / "failures.md"
ROUTE = (Candidate("anthropic", "a", "interactive", "first"), Candidate("openai", "b", "interactive", "second"))
WORDS = {Snooze: "snooze", Retry: "retry", Reroute: "fallback", GiveUp: "give up"}


def rows() -> dict[str, list[str]]:
    """code -> [kind, billed, account, next]."""
    found = {}
    for line in TABLE.read_text("utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `"):
            found[cells[0].strip("`")] = cells[1:5]
    return found


def test_the_table_has_every_code_and_no_other() -> None:
    assert list(rows()) == list(FAILURES)


@pytest.mark.parametrize("code", FAILURES)
def test_a_row_says_what_the_code_does(code: str) -> None:
    kind, billed, account, following = rows()[code]
    error = failure(code, "words", retry_after_s=1.0)

    assert kind == type(error).__name__
    assert billed == {False: "no", None: "unknown", True: "yes"}[error.billed]
    assert (account == "yes") is (isinstance(error, Rejected) and error.account_wide)
    assert following == " / ".join(WORDS[type(_decision(code, index))] for index in (0, 1))


def _decision(code: str, index: int) -> object:
    history = History(ROUTE, index, used=1, max_attempts=5)
    return decide(failure(code, "words", retry_after_s=1.0), history, jitter=0.5)


def test_an_account_wide_refusal_without_another_lane_ends_as_account() -> None:
    decision = _decision("quota", 1)

    assert isinstance(decision, GiveUp)
    assert decision.code == "account"


@pytest.mark.parametrize("code", FAILURES)
def test_output_that_was_seen_was_paid_whatever_the_code(code: str) -> None:
    usage = Usage(input_tokens=1, output_tokens=2)

    assert failure(code, "words", seen=Seen(output=True)).billed is True
    assert failure(code, "words", seen=Seen(started=True)).billed is not False
    assert failure(code, "words", seen=Seen(output=True, usage=usage)).usage is usage


def test_every_word_of_the_providers_leads_to_a_row() -> None:
    named = {*_BY_CODE.values(), *_BY_TYPE.values(), *_BY_STATUS.values(), *(code for _, code in _BY_WORDS)}

    assert named <= set(FAILURES)


def test_a_throttle_hands_on_its_wait() -> None:
    error = failure("rate_limit", "words", retry_after_s=3.0)

    assert isinstance(error, Throttled)
    assert error.retry_after_s == 3.0
