"""Grounding: a value stands in the source verbatim, or as the same date or amount; anything else was made up."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from policies.grounding import Source, placeholder, ungrounded

TEXT = """BOOK ÉTAGE SDN. BHD.
Jalan Besar 12
45600  Batang
Date: 25/12/2018 8:13 PM
Total RM 1,209.50
Due Mar 4, 2019
Invoice 0318 dated 25 May 2026"""


@pytest.mark.parametrize(
    "value",
    ["Book Étage Sdn Bhd", "book étage", "2018-12-25", "25 Dec 2018", "December 25, 2018", "20181225", "2019-03-04", "2026-05-25",
     "1209.50", -1209.5,
     "RM 1.209,50", 1209.5, "Jalan Besar 12, 45600 Batang", "12 Batang Besar"],
)  # fmt: skip
def test_what_stands_in_the_source_is_found(value: str | float) -> None:
    assert Source(TEXT).holds(value)


@pytest.mark.parametrize(
    "value", ["Book Etagere", "2018-12-26", "26 Dec 2018", "1209.60", 1209, "Jalan Kecil 12", "RM 12.50", "2017"]
)
def test_what_does_not_is_not(value: str | float) -> None:
    assert not Source(TEXT).holds(value)


@pytest.mark.parametrize(
    ("text", "held", "strange"),
    [
        ("PEN 2 9.00", [2, 9, "9.00", "RM 9.00"], [29, "29.00"]),
        ("2 x 4.50 9.00", [4.5, 9], [4.509, 45.09]),
        ("Total 1 234.50", [1234.5, "1 234.50", "1,234.50", 1, 234.5], [1234]),
        ("Total 12'345'678", [12345678, "12'345'678"], [1234, 5678]),
        ("1.50 234.00", [1.5, 234], [1.50234, "150234.00"]),
        ("12 3456", [12, 3456], [123456]),
    ],
)
def test_a_blank_groups_thousands_and_parts_everything_else(
    text: str, held: list[str | float], strange: list[str | float]
) -> None:
    source = Source(text)
    assert [value for value in held if not source.holds(value)] == []
    assert [value for value in strange if source.holds(value)] == []


def test_only_what_the_model_could_choose_freely_is_looked_up() -> None:
    schema = {
        "type": "object",
        "properties": {
            "kind": {"enum": ["invoice", "receipt"]},
            "paid": {"type": "boolean"},
            "lines": {"type": "array", "items": {"type": "object", "properties": {"name": {"type": "string"}}}},
        },
    }
    data = {"kind": "receipt", "paid": True, "note": None, "lines": [{"name": "Batang"}, {"name": "Made up"}]}

    assert ungrounded(data, schema, Source(TEXT)) == ("/lines/1/name", "Made up")
    assert placeholder(data, schema) is None
    assert placeholder({"lines": [{"name": " N/A "}]}, schema) == "/lines/0/name"


def test_real_receipts_hold_their_gold_and_not_their_neighbours(shared_data: Path) -> None:
    rows = pq.read_table(shared_data / "docs-sroie-receipts.parquet").to_pylist()
    gold = [json.loads(row["gold"]) for row in rows]
    own = [
        Source(row["text"]).holds(str(value))
        for row, values in zip(rows, gold, strict=True)
        for value in values.values()
        if value
    ]
    pairs = [
        (row, str(other[key]))
        for row, values, other in zip(rows, gold, gold[7:] + gold[:7], strict=True)
        for key in ("company", "date", "address", "total")
        if other.get(key) and values.get(key) != other.get(key)
    ]
    strange = [Source(row["text"]).holds(value) for row, value in pairs]

    assert sum(own) / len(own) > 0.97
    assert sum(strange) / len(strange) < 0.06
