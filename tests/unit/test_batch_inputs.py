from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from producers.inputs import MAX_ROW_BYTES, open_source, take
from producers.refusal import Refused

cells = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
tables = st.lists(st.tuples(cells, cells.filter(bool)), min_size=1, max_size=8)


def read(path: Path) -> list[dict[str, Any]]:
    return [dict(row.fields) for row in open_source(path).rows()]


def problems(path: Path) -> list[tuple[str, str | None]]:
    return [(row.place, row.problem) for row in open_source(path).rows()]


@settings(deadline=None)  # the machine may be busy
@given(tables)
def test_csv_jsonl_and_parquet_of_the_same_table_give_the_same_rows(
    tmp_path_factory: pytest.TempPathFactory, table: list[tuple[str, str]]
) -> None:
    folder = tmp_path_factory.mktemp("same")
    # CSV cannot tell a carriage return in an unquoted cell from a line's end; csv.writer quotes it, and so does ours.
    rows = [{"a": a, "b": b} for a, b in table]
    with (folder / "t.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["a", "b"], quoting=csv.QUOTE_ALL)
        writer.writeheader()
        writer.writerows(rows)
    (folder / "t.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    pq.write_table(pa.Table.from_pylist(rows), folder / "t.parquet")

    assert read(folder / "t.csv") == read(folder / "t.jsonl") == read(folder / "t.parquet") == rows
    surveys = [open_source(folder / f"t.{kind}").survey(None) for kind in ("csv", "jsonl", "parquet")]
    assert {survey.rows for survey in surveys} == {len(rows)}
    assert {tuple(survey.columns) for survey in surveys} == {("a", "b")}


def test_a_bad_jsonl_line_spoils_itself_only(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    deep = b"[" * 100_000
    path.write_bytes(
        b'\xef\xbb\xbf{"t": "bom"}\n\n{"t": \n"text"\n{"t": "\xff"}\n'
        + deep
        + b'\n{"t": "'
        + b"x" * MAX_ROW_BYTES
        + b'"}\n{"t": "nul \\u0000"}\r\n[1]\n{"t": "last"}'
    )

    rows = list(open_source(path).rows())

    assert [row.number for row in rows] == list(range(9))
    assert [row.place for row in rows] == [f"line {n}" for n in (1, 3, 4, 5, 6, 7, 8, 9, 10)]
    good = {row.place: row.fields["t"] for row in rows if row.problem is None}
    assert good == {"line 1": "bom", "line 8": "nul \0", "line 10": "last"}
    told = {row.place: row.problem or "" for row in rows if row.problem}
    assert "not JSON" in told["line 3"]
    assert "a string, not an object" in told["line 4"]
    assert "not UTF-8 (byte 0xff" in told["line 5"]
    assert told["line 6"]
    assert "longer than 10 MB" in told["line 7"]
    assert "a list" in told["line 9"]


def test_a_bad_csv_record_spoils_itself_only(tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    path.write_bytes(b'id,text\r\n1,ok\r\n2\r\n\r\n3,a,b\r\n4,\xe9t\xe9\r\n5,"two\r\nlines, \0"\r\n6,"x"y\r\n7,end\r\n')

    rows = list(open_source(path).rows())

    assert {row.fields["id"]: row.fields["text"] for row in rows if row.problem is None} == {
        "1": "ok", "5": "two\r\nlines, \0", "7": "end",
    }  # fmt: skip
    assert [row.problem for row in rows if row.problem] == [
        "has 1 cells, the header has 2",
        "has 3 cells, the header has 2",
        "is not UTF-8 (byte 0xe9)",
        "is not CSV (',' expected after '\"')",
    ]


def test_a_quote_that_is_never_closed_is_said_and_not_swallowed(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text('a\n1\n"2\n3\n')

    assert problems(tmp_path / "in.csv")[1] == (
        "line 3",
        "opens a quote that is never closed: the rest of the file is lost",
    )


@pytest.mark.parametrize(
    "name, content, told",
    [
        ("in.csv", b"", "first line must name every column"),
        ("in.csv", b"a,,b\n", "first line must name every column"),
        ("in.csv", b"a,b,a\n1,2,3\n", "names the column 'a' twice"),
        ("in.csv", "a,b\n".encode("utf-16"), "UTF-16"),
        ("in.parquet", b"PAR1 no", "cannot be read as Parquet"),
        ("in.xlsx", b"PK", ".xlsx is not supported"),
        ("in", b"x", "without an extension"),
    ],
)
def test_an_unusable_input_is_one_clear_line(tmp_path: Path, name: str, content: bytes, told: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)

    with pytest.raises(Refused) as refused:
        open_source(path).survey(None)

    assert told in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_missing_input_and_a_pipe_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")

    with pytest.raises(Refused, match="no such file"):
        open_source(tmp_path / "gone.jsonl")
    with pytest.raises(Refused, match="not a regular file"):
        open_source(tmp_path / "pipe.jsonl")


def test_a_folder_is_read_sorted_and_never_left(tmp_path: Path) -> None:
    outside, folder = tmp_path / "secret.txt", tmp_path / "in"
    outside.write_text("secret")
    for name in ("b.txt", "a/z.txt", "a/é.txt", "c.txt", ".hidden", ".git/config"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"text of {name}")
    (folder / "huge.txt").write_bytes(b"")
    os.truncate(folder / "huge.txt", MAX_ROW_BYTES + 1)
    (folder / "bin.dat").write_bytes(b"\x89PNG\xff")
    (folder / "inside.txt").symlink_to("b.txt")
    (folder / "leaves.txt").symlink_to("../secret.txt")
    (folder / "loop").symlink_to(".")
    (folder / "dangling").symlink_to("nothing")
    os.mkfifo(folder / "pipe")

    rows = {row.place: row for row in open_source(folder).rows()}

    assert list(rows) == [
        "a/z.txt", "a/é.txt", "b.txt", "bin.dat", "c.txt", "dangling", "huge.txt", "inside.txt", "leaves.txt", "loop",
        "pipe",
    ]  # fmt: skip
    good = {place for place, row in rows.items() if row.problem is None}
    assert good == {"a/z.txt", "a/é.txt", "b.txt", "c.txt", "inside.txt"}
    assert all(row.fields["file"] == place for place, row in rows.items())
    assert rows["inside.txt"].fields["text"] == "text of b.txt"
    assert not any("secret" in str(row.fields["text"]) for row in rows.values())
    assert "leaves the folder" in str(rows["leaves.txt"].problem)
    assert "pipe" in str(rows["pipe"].problem)
    assert "10 MB" in str(rows["huge.txt"].problem)
    assert open_source(folder).survey(None).rows == len(rows)


def test_a_survey_knows_all_columns_and_their_kinds(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text(
        '{"a": 1}\n{"b": "x", "a": null}\nbad\n{"a": 2.5, "c": [1], "d": 9007199254740993}\n'
    )

    survey = open_source(tmp_path / "in.jsonl").survey(None)

    assert survey.rows == 4
    assert survey.columns == {"a": {"int", "float"}, "b": {"str"}, "c": {"other"}, "d": {"long"}}
    assert str(survey.first_problem).startswith("line 3 is not JSON")
    assert open_source(tmp_path / "in.jsonl").survey(2).rows == 2


def test_a_chunk_ends_when_its_texts_are_large(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"t": "x" * 60}) + "\n" for _ in range(10)))
    rows = open_source(tmp_path / "in.jsonl").rows()

    assert [len(take(rows, 500, 100)) for _ in range(6)] == [2, 2, 2, 2, 2, 0]
