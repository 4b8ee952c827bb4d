from __future__ import annotations

import csv
import io
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from producers.inputs import open_source
from producers.outputs import ABOUT, Finished, Output, _JsonLines, check_columns, defused, json_line, open_output
from producers.refusal import Refused

money = st.decimals(min_value=0, max_value=1000, places=12)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def made(path: Path, source: Path, rows: list[Finished], *, raw_csv: bool = False) -> Path:
    output = opened(path, source, raw_csv=raw_csv)
    output.write(rows)
    return output.finish()


def opened(path: Path, source: Path, *, raw_csv: bool = False) -> Output:
    there = open_source(source)
    return open_output(path, there, there.survey(None), raw_csv=raw_csv)


def jsonl(folder: Path, *rows: dict[str, Any]) -> Path:
    path = folder / "in.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@settings(deadline=None)  # the machine may be busy
@given(st.dictionaries(st.text(), json_values, max_size=4), json_values, money)
def test_a_jsonl_row_comes_back_as_it_was_with_every_digit_of_the_money(
    fields: dict[str, Any], answer: Any, usd: Decimal
) -> None:
    fields = {name: value for name, value in fields.items() if name not in ("answer", *ABOUT)}

    line = json_line(Finished(fields, "succeeded", answer, usd=usd)).encode("utf-8", "backslashreplace")
    back = json.loads(line, parse_float=lambda text: text)
    value = json.loads(line)

    assert line.count(b"\n") == 1
    assert Decimal(back["_usd"]) == usd
    assert {name: value[name] for name in fields} == fields
    assert value["answer"] == answer
    assert list(value)[-len(ABOUT) :] == list(ABOUT)


def test_a_jsonl_row_holds_what_json_cannot() -> None:
    fields = {"nan": float("nan"), "deep": [float("inf")], "price": Decimal("0.10"), "raw": b"\x00", "lone": "a\ud800"}

    line = json_line(Finished(fields, "invalid")).encode("utf-8", "backslashreplace")

    assert json.loads(line)["lone"] == "a\ud800"
    assert b'"price": 0.10' in line
    assert json.loads(line)["nan"] is None
    assert json.loads(line)["deep"] == [None]


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_rows_stand_in_the_order_written_with_columns_then_answer_then_about(tmp_path: Path, kind: str) -> None:
    source = jsonl(tmp_path, {"id": 2, "text": "b"}, {"id": 1, "text": "a"})
    rows = [
        Finished({"id": 2, "text": "b"}, "succeeded", {"x": 1}, usd=Decimal("0.000000000001"), attempts=1, job="j"),
        Finished({"id": 1}, "invalid", error="line 2: no"),
    ]

    path = made(tmp_path / f"out.{kind}", source, rows)

    if kind == "parquet":
        table = pq.read_table(path)
        names, back = table.column_names, table.to_pylist()
        assert table.schema.field("id").type == pa.int64()
        assert back[0]["_usd"] == Decimal("0.000000000001")
        assert json.loads(back[0]["answer"]) == {"x": 1}
        assert back[1]["text"] is None
    elif kind == "csv":
        names, *cells = csv.reader(io.StringIO(path.read_text()))
        back = [dict(zip(names, row, strict=True)) for row in cells]
        assert (back[0]["answer"], back[0]["_usd"]) == ('{"x": 1}', "0.000000000001")
    else:
        back = [json.loads(line) for line in path.read_text().splitlines()]
        names = list(back[0])
        assert back[0]["answer"] == {"x": 1}
    assert names == ["id", "text", "answer", *ABOUT]
    assert [str(row["id"]) for row in back] == ["2", "1"]
    assert [row["_status"] for row in back] == ["succeeded", "invalid"]


@settings(deadline=None)  # the machine may be busy
@given(st.lists(st.text(), min_size=1, max_size=5))
def test_no_csv_cell_begins_like_a_formula_and_nothing_else_is_changed(texts: list[str]) -> None:
    for text in texts:
        cell = defused(text)
        assert cell in (text, "'" + text)
        if cell[:1] in tuple("=+-@\t\r"):
            assert cell.lstrip("+-")[:1].isdigit()


@pytest.mark.parametrize("cell", ["-5", "+1.5e3", "-1,234.50", "+12%"])
def test_numbers_are_no_formulas(cell: str) -> None:
    assert defused(cell) == cell


@pytest.mark.parametrize("raw, expected", [(False, "'=cmd|' /C calc'!A0"), (True, "=cmd|' /C calc'!A0")])
def test_formulas_in_csv_are_defused_unless_raw(tmp_path: Path, raw: bool, expected: str) -> None:
    source = jsonl(tmp_path, {"t": "x"})

    path = made(tmp_path / "o.csv", source, [Finished({"t": "=cmd|' /C calc'!A0"}, "succeeded", "@a")], raw_csv=raw)

    row = next(csv.DictReader(io.StringIO(path.read_text())))
    assert row["t"] == expected
    assert row["answer"] == ("@a" if raw else "'@a")


def test_parquet_in_keeps_its_types_in_parquet_out(tmp_path: Path) -> None:
    table = pa.table(
        {
            "when": pa.array([0, None], pa.timestamp("ms", "UTC")),
            "price": pa.array([Decimal("1.10"), None], pa.decimal128(5, 2)),
            "tags": pa.array([["a"], []], pa.list_(pa.string())),
        }
    )
    pq.write_table(table, tmp_path / "in.parquet")
    rows = [Finished(row.fields, "succeeded", "x") for row in open_source(tmp_path / "in.parquet").rows()]

    path = made(tmp_path / "out.parquet", tmp_path / "in.parquet", rows)

    assert pq.read_table(path).select(table.column_names).equals(table)


def test_a_column_of_mixed_json_values_becomes_text_in_parquet(tmp_path: Path) -> None:
    values: list[Any] = [1, "a", None, [2], 2**70, "lone \ud800"]
    source = jsonl(tmp_path, *({"v": value} for value in values))

    path = made(tmp_path / "o.parquet", source, [Finished({"v": value}, "invalid") for value in values])

    assert pq.read_table(path)["v"].to_pylist() == ["1", "a", None, "[2]", str(2**70), "lone ?"]


def test_an_interrupted_output_is_valid_and_leaves_the_old_one_alone(tmp_path: Path) -> None:
    source = jsonl(tmp_path, {"t": "x"})
    old = made(tmp_path / "o.parquet", source, [Finished({"t": "old"}, "succeeded")])

    output = opened(old, source)
    output.write([Finished({"t": "new"}, "succeeded")])
    kept = output.keep()

    assert kept.name == "o.parquet.partial"
    assert pq.read_table(kept)["t"].to_pylist() == ["new"]
    assert pq.read_table(old)["t"].to_pylist() == ["old"]


def test_a_full_disk_is_one_line_that_says_how_to_go_on(tmp_path: Path) -> None:
    file = Path("/dev/full").open("wb")  # noqa: SIM115  # `keep` closes it
    output = Output(tmp_path / "o.jsonl", tmp_path / "o.jsonl.partial", file, _JsonLines(file))

    with pytest.raises(Refused, match="No space left on device; the answers are in the ledger"):
        output.write([Finished({"t": "x"}, "succeeded")])
    with pytest.raises(Refused):
        output.keep()


def test_two_runs_never_write_the_same_output(tmp_path: Path) -> None:
    source = jsonl(tmp_path, {"t": "x"})
    first = opened(tmp_path / "o.jsonl", source)

    with pytest.raises(Refused, match="another run is writing it"):
        opened(tmp_path / "o.jsonl", source)

    first.keep()
    opened(tmp_path / "o.jsonl", source).keep()


@pytest.mark.parametrize(
    "output, told",
    [
        ("in.jsonl", "lies in INPUT"),
        ("gone/o.jsonl", "does not exist; create it"),
        ("o.xml", "name it .jsonl, .csv or .parquet"),
        ("o", "no extension"),
        ("folder.csv", "is a folder"),
    ],
)
def test_an_output_that_cannot_be_written_is_refused_first(tmp_path: Path, output: str, told: str) -> None:
    source = jsonl(tmp_path, {"t": "x"})
    (tmp_path / "folder.csv").mkdir()

    with pytest.raises(Refused, match=told):
        opened(tmp_path / output, source)

    assert not list(tmp_path.glob("*.partial"))


def test_columns_that_the_output_needs_are_refused_in_the_input() -> None:
    check_columns({"text": 0, "_id": 0}, Path("in.csv"))

    with pytest.raises(Refused, match=r"'answer'.*rename it.*_usd"):
        check_columns({"answer": 0, "_usd": 0}, Path("in.csv"))
