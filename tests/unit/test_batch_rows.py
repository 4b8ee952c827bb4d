"""A row of a batch becomes an attempt by the same function as a claimed job, so its statement must have the same columns."""

from __future__ import annotations

import inspect
import re

from waybill.ledger import providerbatches, queries
from workers import attempt

_READ = set(re.findall(r"""row\["(\w+)"\]""", inspect.getsource(attempt.attempt_of) + inspect.getsource(attempt._why)))


def columns(sql: str) -> set[str]:
    """Names that a statement gives to its columns (and more)."""
    return set(re.findall(r"(?:as|\w\.)\s*(\w+)", sql))


def test_rows_of_batches_and_claims_have_what_an_attempt_is_made_of() -> None:
    assert len(_READ) > 15
    assert _READ - columns(queries.CLAIM) == set()
    assert _READ - columns(providerbatches.ROWS) == set()
